"""The reward inside the real TRL of Hugging Face, which `make test` installs into build/hf-trl."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers import CHECKPOINTS, ROOT

FOLDER = ROOT / "build" / "hf-trl"


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    if not (FOLDER / "trl").is_dir():
        pytest.skip("build/hf-trl is not here; `make test` installs it")
    env = os.environ | {"PYTHONPATH": f"{FOLDER}:{ROOT}", "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    script = Path(__file__).with_name("trl_run.py")
    command = [sys.executable, script, CHECKPOINTS / "tiny-ultrarm", tmp_path_factory.mktemp("trl")]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    return json.loads(line.removeprefix("RESULT "))


def test_it_is_the_pinned_trl(result):
    assert f"trl=={result['version']}" in (ROOT / "requirements-trl.txt").read_text()


@pytest.mark.parametrize(("run", "steps"), [("GRPO", 2), ("GRPO chat", 2), ("RLOO", 1), ("RLOO chat", 1)])
def test_the_log_of_trl_has_the_numbers_of_score(result, run, steps):
    calls, logs = result["runs"][run]["calls"], result["runs"][run]["logs"]
    assert len(calls) == len(logs) == steps
    for call, log in zip(calls, logs, strict=True):
        assert call["rewards"] == call["total"]
        for name in ("holistic", "gate_rate", "vowels", "spaces"):
            assert log[name] == pytest.approx(call[name], abs=1e-6), name
        assert log["reward"] == pytest.approx(sum(call["total"]) / len(call["total"]), abs=1e-5)


def test_an_answer_without_any_part_abstains(result):
    assert result["abstains"] == [None, pytest.approx(0.1)]
