"""The core alone: a wheel, installed into a new environment that has torch, transformers, numpy and nothing else."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from transformers import AutoTokenizer

from alarm import HierarchicalReward
from alarm.tasks.find import find_task
from helpers import CHECKPOINTS, ROOT

ASSETS = (".js", ".css", ".html")
CORE = ("torch", "transformers", "numpy")
ABSENT = ("trl", "accelerate", "peft", "spacy", "pysbd", "datasets", "matplotlib", "openai", "requests", "tests")
MODULES = """api combiners recipe types rewards scoring hierarchical tasks.spans tasks.find tasks.qa.spec tasks.mt.spec
models.holistic models.load models.classifiers models.longformer training.calibration diagnostics""".split()

PROGRAM = """
import importlib, importlib.util, json, sys
import alarm
assert "torch" not in sys.modules, "import alarm loads torch"
for name in sys.argv[1].split():
    assert importlib.util.find_spec(name) is None, name + " is here, so this environment shows nothing"
for name in sys.argv[2].split():
    importlib.import_module("alarm." + name)
from alarm import HierarchicalReward
from alarm.tasks.find import find_task
task = find_task(sys.argv[3])
prompts, answers = ["headline: A storm", "headline: A cat"], ["STORM comes", "A cat, a cat"]
rows = [{"headline": "storm"}, {"headline": "cat"}]
weights = {"brevity": 1.0, "shouting": 2.0}
found = {"file": alarm.__file__}
for name, holistic in {"strings": task.holistic, "checkpoint": sys.argv[4]}.items():
    parts = HierarchicalReward(holistic, task.aspects, weights=weights, threshold=-5.0).score(prompts, answers, rows)
    found[name] = {"total": parts.total.tolist(), "holistic": parts.holistic.tolist(), "gate": parts.gate.tolist()}
try:
    HierarchicalReward(sys.argv[5], task.aspects, weights=weights).score(prompts, answers, rows)
except alarm.api.UserError as error:
    found["error"] = str(error)
print(json.dumps(found))
"""


def dependencies(*names: str) -> dict[str, metadata.Distribution]:
    """The installed distributions that these need, themselves among them."""
    found: dict[str, metadata.Distribution] = {}
    todo = list(names)
    while todo:
        name = re.sub(r"[-_.]+", "-", todo.pop()).lower()
        if name in found:
            continue
        found[name] = metadata.distribution(name)
        wanted = map(Requirement, found[name].requires or ())
        todo += [one.name for one in wanted if one.marker is None or one.marker.evaluate({"extra": ""})]
    return found


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    source = tmp_path_factory.mktemp("source")
    for name in ("alarm", "trl"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "requirements.txt", "MANIFEST.in"):
        shutil.copy(ROOT / name, source)
    out = source / "out"
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", out, source]
    subprocess.run(command, check=True, capture_output=True)
    (found,) = out.glob("alarm_rlhf-*.whl")
    return found


@pytest.fixture(scope="module")
def core(wheel, tmp_path_factory) -> Path:
    """The python of a new environment with the wheel and, as links, what it needs."""
    folder = tmp_path_factory.mktemp("core")
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    (site,) = folder.glob("lib/python*/site-packages")
    for distribution in dependencies(*CORE).values():
        for name in {file.parts[0] for file in distribution.files} - {"..", "__pycache__"}:
            if not (site / name).exists():
                (site / name).symlink_to(distribution.locate_file(name))
    command = [sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index", wheel]
    subprocess.run(command, check=True, capture_output=True)
    return python


def test_the_core_scores_without_our_trainer_and_without_extras(core, tmp_path):
    holistic = tmp_path / "holistic"
    shutil.copytree(CHECKPOINTS / "tiny-ultrarm", holistic)
    AutoTokenizer.from_pretrained(holistic).save_pretrained(holistic)
    assert (holistic / "tokenizer.json").is_file()
    task_file = shutil.copy(ROOT / "examples" / "headlines.py", tmp_path)
    command = [core, "-c", PROGRAM, " ".join(ABSENT), " ".join(MODULES), task_file, holistic]
    command += [CHECKPOINTS / "tiny-ultrarm"]
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert core.parent.parent in Path(found["file"]).parents
    # on topic: 5 of 5 letters of "storm", 3 of 3 of "cat"; w_h 1, brevity 1, shouting 2, an open gate
    assert found["strings"]["holistic"] == [1.0, 1.0] and found["strings"]["gate"] == [1.0, 1.0]
    assert found["strings"]["total"] == pytest.approx([1 - 2 / 20 - 2, 1 - 4 / 20])
    assert "sentencepiece" in found["error"]  # for a tokenizer.model
    # the same as in this environment
    task = find_task(task_file)
    reward = HierarchicalReward(holistic, task.aspects, weights={"brevity": 1.0, "shouting": 2.0}, threshold=-5.0)
    here = reward.score(["headline: A storm", "headline: A cat"], ["STORM comes", "A cat, a cat"])
    assert found["checkpoint"]["total"] == pytest.approx(here.total.tolist(), abs=1e-6)
    assert found["checkpoint"]["holistic"] == pytest.approx(here.holistic.tolist(), abs=1e-6)


def test_what_the_wheel_needs_and_holds(wheel):
    with zipfile.ZipFile(wheel) as files:
        names = set(files.namelist())
        (about,) = [name for name in names if name.endswith(".dist-info/METADATA")]
        told = files.read(about).decode()
        # links in the tree, files in the wheel
        links = {"models/weights.py": "weights.py", "common/paths.py": "paths.py"}
        for link, target in (links | {"common/launch_settings.py": "launch.py"}).items():
            assert (ROOT / "alarm" / link).is_symlink()
            assert files.read(f"alarm/{link}") == (ROOT / "trl" / "trl" / target).read_bytes()
    assert {name.split("/")[0] for name in names} == {"alarm", about.split("/")[0]}
    # scripts, styles and what others wrote with its licence
    assets = {path.relative_to(ROOT).as_posix() for path in (ROOT / "alarm").rglob("*.*") if path.suffix in ASSETS}
    assert assets <= names and "alarm/evaluation/pages/vendor/LICENSE.tabulator" in names
    needs = [Requirement(line.split(": ", 1)[1]) for line in told.splitlines() if line.startswith("Requires-Dist: ")]
    core = {one.name: one for one in needs if "extra" not in str(one.marker)}
    assert set(core) == set(CORE) and all(one.specifier and "==" not in str(one.specifier) for one in core.values())

    # the tested pins are those of the core and of all extras, and satisfy every bound
    pins = dict(
        line.split("==") for line in (ROOT / "requirements.txt").read_text().splitlines() if line and line[0] != "#"
    )
    assert {one.name for one in needs} == set(pins)
    assert {one.name for one in needs if 'extra == "all"' in str(one.marker)} == set(pins) - set(CORE)
    assert all(one.specifier.contains(pins[one.name]) for one in needs)
