"""A holistic model that is divided among two real processes: the scores of the copied one, half of the weights."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from alarm.common.errors import UserError
from alarm.common.flags import check_holistic
from alarm.models.export import main as export
from alarm.training.rollout import deal_batches, most_batches
from helpers import CHECKPOINTS, ROOT

FOLDER = Path(__file__).parent


@pytest.fixture(scope="module")
def everything(tmp_path_factory) -> list[list[dict]]:
    """What each of two processes found, for a model in the UltraRM layout and for a classifier."""
    out, model = tmp_path_factory.mktemp("sharded"), CHECKPOINTS / "tiny-ultrarm"
    export(["--holistic_model", str(model), "--save_dir", str(out / "model"), "--dtype", "float32"])
    environment = os.environ | {
        "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'trl'}",
    }  # fmt: skip
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [sys.executable, *launch, str(FOLDER / "shard_in_processes.py"), str(out), str(model), str(out / "model")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((out / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.fixture(params=[0, 1], ids=["ultrarm", "classifier"])
def found(request, everything) -> list[dict]:
    """What each of two processes found for one model."""
    return [one[request.param] for one in everything]


def test_scores_are_those_of_the_copied_model(found):
    for one in found:
        assert one["scores"] == one["copied"]  # the same weights in the same batches: to the last bit
        assert one["probe"] == one["own_probe"]
    assert [len(one["scores"]["more batches on one"]) for one in found] == [7, 1]
    assert len(set(found[0]["scores"]["more batches on one"])) == 7


def test_each_process_holds_half_of_the_weights(found):
    whole = found[0]["whole"]
    assert sum(one["held"] for one in found) == whole
    for one in found:
        assert one["held"] == pytest.approx(whole / 2, rel=0.01)
        # all that lives beside the parts, before and after scores: a hundredth of the model and the tables of positions
        assert one["held"] <= one["loaded"] < 0.6 * whole
        assert one["held"] <= one["used"] < 0.6 * whole


def test_processes_with_fewer_batches_wait_for_nobody(found):
    for one in found:
        assert one["calls"] == 3
        assert one["failed"] == "the service is gone" and one["calls_then"] == 6
        assert one["after"] == one["expected_after"]


@pytest.mark.parametrize("count", [0, 1, 5, 8, 9])
def test_the_most_batches_of_a_process(count):
    prompts = [argparse.Namespace(ids=[0])] * count
    for processes in (1, 2, 3):
        dealt = [len(deal_batches(prompts, 2, process, processes)) for process in range(processes)]
        assert most_batches(count, 2, processes) == max(dealt)


@pytest.mark.parametrize(
    ("parts", "world", "words"),
    [
        ({}, "1", "there is one; start more"),
        ({"holistic_server": "http://localhost:1"}, "2", "a server runs the model"),
        ({"holistic_model": None}, "2", "no --holistic_model"),
    ],
)
def test_what_cannot_be_divided_is_refused(parts, world, words, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", world)
    flags = {
        "holistic_model": "a/b",
        "holistic_server": None,
        "holistic_check": False,
        "holistic_8bit": False,
        "holistic_shard": True,
    }
    with pytest.raises(UserError, match=words):
        check_holistic(argparse.Namespace(**flags | parts))
