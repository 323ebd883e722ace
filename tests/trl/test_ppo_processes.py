from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

SCRIPT = Path(__file__).parent / "two_processes.py"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The same training in one process and in two real ones (gloo on CPU)."""
    out = tmp_path_factory.mktemp("processes")
    model = Path(__file__).parent.parent / "fixtures" / "golden" / "checkpoints" / "tiny-t5"
    root = SCRIPT.parent.parent.parent
    environment = os.environ | {
        "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root / "trl"),
    }  # fmt: skip
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    for launcher in ([], torchrun):
        command = [sys.executable, *launcher, str(SCRIPT), str(model), str(out)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
    results = [json.loads((out / f"results-{n}.json").read_text()) for n in (1, 2)]
    weights = [load_file(out / f"weights-{n}.safetensors") for n in (1, 2)]
    return results, weights


def test_two_processes_do_what_one_does_on_the_union(runs):
    (one, two), (weights_one, weights_two) = runs
    assert (one["processes"], two["processes"]) == (1, 2)
    for a, b in zip(one["stats"], two["stats"], strict=True):
        assert a.keys() == b.keys()
        for name in a:
            assert b[name] == pytest.approx(a[name], rel=1e-3, abs=1e-5), name
    assert one["moved"] > 1e-2
    for name, weight in weights_one.items():
        torch.testing.assert_close(weights_two[name], weight, atol=2e-5, rtol=1e-4)
    assert two["processes_agree"]


def test_all_processes_stop_early_together(runs):
    (one, two), _ = runs
    decisions = [[stats["ppo/early_stopped"] for stats in run["stats"][:2]] for run in (one, two)]
    assert decisions[0] == decisions[1] and 1.0 in decisions[0]
    updates = [[stats["ppo/updates"] for stats in run["stats"][:2]] for run in (one, two)]
    assert updates[0] == updates[1] and 0 < updates[0][0] < 6


def test_a_nonfinite_score_on_one_process_stops_all(runs):
    for run in runs[0]:
        assert run["stats"][2]["ppo/skipped_nonfinite"] == 1 and run["unmoved_by_nan"]


def test_every_example_is_seen_once(runs):
    (one, two), _ = runs
    for run in (one, two):
        for epoch in run["seen"]:
            assert len(epoch) == len(set(epoch)) == 16
    assert one["seen"] == two["seen"]


def test_random_states_come_back_to_their_process(runs):
    assert all(run["restored"] and run["different_draws"] for run in runs[0])


def test_a_damaged_state_is_refused_by_all_processes(runs):
    for run in runs[0]:
        assert run["refused, hashes: True"] == run["refused, hashes: False"] == run["processes"]
