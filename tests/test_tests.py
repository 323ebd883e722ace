"""The tests hold to their own rules: no private names of other modules, and no assertion about elapsed time."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
CLOCKS = {"time", "time_ns", "monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns"}
# accelerate offers no public way to forget the state of a run
ALLOWED = {("helpers.py", "_reset_state")}


def is_private(name: str) -> bool:
    return re.match(r"_[^_]", name) is not None


def defined_names(tree: ast.AST) -> set[str]:
    """Functions, classes, variables and attributes that a file makes itself."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_own(node.value):
            names.add(node.attr)
    return names


def is_own(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def clock_names(tree: ast.AST) -> set[str]:
    """Names that `from time import` gives to clocks."""
    imports = (node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module == "time")
    return {alias.asname or alias.name for node in imports for alias in node.names if alias.name in CLOCKS}


def reads_clock(node: ast.AST, clocks: set[str]) -> bool:
    """Whether the code calls a clock; `clocks` are bare names of clocks."""
    for call in ast.walk(node):
        if not isinstance(call, ast.Call):
            continue
        called = call.func
        if isinstance(called, ast.Name) and called.id in clocks:
            return True
        if isinstance(called, ast.Attribute) and called.attr in CLOCKS and ast.unparse(called.value) == "time":
            return True
    return False


def names_of_times(nodes: list[ast.AST], clocks: set[str]) -> set[str]:
    """Names assigned from a clock, or from another such name."""
    times: set[str] = set()
    for node in nodes + nodes:  # ast.walk goes level by level, not in the order of the text
        if not isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign | ast.NamedExpr) or node.value is None:
            continue
        if reads_clock(node.value, clocks) or times & loaded_names(node.value):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            times |= {target.id for target in targets if isinstance(target, ast.Name)}
    return times


def timed_asserts(tree: ast.Module) -> set[int]:
    """The lines of asserts that read a clock, or a name assigned from one in the same function or in the module."""
    clocks = clock_names(tree)
    shared = names_of_times(tree.body, clocks)
    lines = set()
    for scope in ast.walk(tree):
        if not isinstance(scope, ast.Module | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        nodes = list(ast.walk(scope))
        times = shared if scope is tree else shared | names_of_times(nodes, clocks)
        for node in nodes:
            if isinstance(node, ast.Assert) and (reads_clock(node, clocks) or times & loaded_names(node)):
                lines.add(node.lineno)
    return lines


def loaded_names(node: ast.AST) -> set[str]:
    return {name.id for name in ast.walk(node) if isinstance(name, ast.Name)}


def named_by_texts(call: ast.Call) -> list[str]:
    """The parts of the names that setattr, delattr, getattr or a patch is given as text."""
    called = ast.unparse(call.func)
    if "patch" not in called.split(".") and called.split(".")[-1] not in ("setattr", "delattr", "getattr"):
        return []
    texts = [item.value for item in call.args[:2] if isinstance(item, ast.Constant) and isinstance(item.value, str)]
    return texts[0].split(".") if texts else []


def problems(source: str, file: str) -> list[str]:
    """What breaks the rules in the text of a test file, as `file:line: what`."""
    tree = ast.parse(source)
    own = defined_names(tree)
    found = [(line, "an assert about time") for line in timed_asserts(tree)]
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Attribute) and not is_own(node.value):
            names = [node.attr]
        elif isinstance(node, ast.Call):
            names = named_by_texts(node)
        found += [(node.lineno, f"private name {name}") for name in names if is_private(name) and name not in own]
        if isinstance(node, ast.Import | ast.ImportFrom):
            parts = [part for alias in node.names for part in alias.name.split(".")]
            parts += (getattr(node, "module", None) or "").split(".")
            found += [(node.lineno, f"private name {part}") for part in parts if is_private(part)]
    allowed = {f"private name {name}" for place, name in ALLOWED if place == file}
    return [f"{file}:{line}: {what}" for line, what in sorted(found) if what not in allowed]


@pytest.mark.parametrize("path", sorted(TESTS.rglob("*.py")), ids=lambda path: str(path.relative_to(TESTS)))
def test_no_private_names_and_no_elapsed_time(path):
    assert problems(path.read_text(encoding="utf-8"), str(path.relative_to(TESTS))) == []


@pytest.mark.parametrize(
    "source",
    [
        "module._name",
        "module.part._name()",
        "from module import _name",
        "from module import _name as name",
        "from package._part import name",
        "import package._part",
        "monkeypatch.setattr(module, '_name', 1)",
        "monkeypatch.setattr('module._name', 1)",
        "setattr(module, '_name', 1)",
        "mock.patch('module._name')",
        "mock.patch.object(module, '_name')",
        "assert time.monotonic() - 1 < 3",
        "def test():\n    started = time.time()\n    assert other() - started < 3",
        "from time import perf_counter\ndef test():\n    took = perf_counter() - 1\n    assert took < 3",
        "started = time.time()\ndef test():\n    assert started",
    ],
)
def test_the_rules_find(source):
    assert len(problems(source, "test_it.py")) == 1


@pytest.mark.parametrize(
    "source",
    [
        "self._name",
        "cls._name()",
        "module.__name__",
        "class Stub:\n    def _serve(self): ...\nstub._serve()",
        "monkeypatch.setattr(module, 'name', 1)",
        "def test():\n    end = time.monotonic() + 9\n    if time.monotonic() > end:\n        pytest.fail('hung')",
        "def one():\n    at = time.time()\n    use(at)\ndef other(at):\n    assert at",
    ],
)
def test_the_rules_allow(source):
    assert problems(source, "test_it.py") == []
