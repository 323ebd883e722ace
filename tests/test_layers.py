"""The layers of the package: imports go one way, and in no circle."""

from __future__ import annotations

import ast
from pathlib import Path

from helpers import ROOT

# from the bottom; the modules at the top of the package lie between the layers
LAYERS = (
    ("common", "combiners", "types", "diagnostics"),
    ("models",),
    ("api",),
    ("recipe",),
    ("rewards",),
    ("tasks",),
    ("scoring",),
    ("learning",),
    ("training",),
    ("integrations",),
    ("hierarchical",),
    ("evaluation",),
    (
        "train_ppo",
        "train_sft",
        "train_holistic",
        "calibrate",
        "plot_run",
        "best_of_n",
        "score",
        "export_holistic",
        "__init__",
    ),
)
PACKAGE = ROOT / "alarm"
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}


def imports_of(path: Path, typing_too: bool = False) -> set[str]:
    """The modules of the package that a file imports, also inside functions; not those for type checkers alone."""
    module = path.relative_to(PACKAGE).with_suffix("").parts
    tree = ast.parse(path.read_text())
    skipped = set()
    if not typing_too:
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
                skipped |= {id(inner) for inner in ast.walk(node)}
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level and id(node) not in skipped:
            base = module[: len(module) - node.level]
            target = (*base, *(node.module.split(".") if node.module else ()))
            for name in node.names:
                whole = PACKAGE.joinpath(*target, name.name)
                is_module = whole.with_suffix(".py").is_file() or (whole / "__init__.py").is_file()
                found.add(".".join((*target, name.name) if is_module else target))
    return found


def graph() -> dict[str, set[str]]:
    files = sorted(PACKAGE.rglob("*.py"))
    return {".".join(path.relative_to(PACKAGE).with_suffix("").parts): imports_of(path) for path in files}


def test_every_module_has_a_layer():
    assert {name.split(".")[0] for name in graph()} == set(RANK)


def test_no_import_goes_up():
    upward = [
        f"{module} imports {target}"
        for module, targets in graph().items()
        for target in targets
        if RANK[target.split(".")[0] or "__init__"] > RANK[module.split(".")[0]]
    ]
    assert upward == []


def test_no_circle():
    arrows = graph()
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path, module))
        if module not in done:
            for target in arrows.get(module, arrows.get(f"{module}.__init__", ())):
                visit(target if target in arrows else f"{target}.__init__", (*path, module))
            done.add(module)

    for module in arrows:
        visit(module, ())
