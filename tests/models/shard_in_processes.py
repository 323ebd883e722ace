"""Run by test_sharded.py in two processes: divided models beside copied ones. Writes what it found as JSON."""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path

import torch
from torch import Tensor

from alarm.common.errors import ServiceError
from alarm.common.launch import process_state
from alarm.models.holistic import HolisticModel
from alarm.models.sharded import ShardedHolisticModel
from alarm.scoring import HolisticScorer, equal_calls
from alarm.training.processes import failing_together
from alarm.types import Rollout

TEXTS = {  # (texts, batch size) of each process, for each call
    "as many": ((3, 2), (3, 2)),
    "more batches on one": ((7, 2), (1, 2)),
    "none on one": ((0, 2), (4, 1)),
    "none": ((0, 2), (0, 2)),
}


def texts(count: int, rank: int) -> tuple[list[str], list[str]]:
    return [f"Why {rank} {i}?" for i in range(count)], ["It is so. " * (i % 3 + 1) for i in range(count)]


def held_by_tensors() -> int:
    """Bytes of all storages that live in this process."""
    gc.collect()
    storages = {}
    for one in gc.get_objects():
        if isinstance(one, Tensor) and one.device.type == "cpu" and not hasattr(one, "to_local"):
            storage = one.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def rollout(count: int, rank: int) -> Rollout:
    prompts, answers = texts(count, rank)
    return Rollout([], None, prompts, answers, [{}] * count, torch.zeros(count, dtype=torch.bool))


def measured(folder: str, state) -> dict:
    """What this process finds for one model."""
    rank = state.process_index
    found = {"scores": {}, "copied": {}}

    before = held_by_tensors()
    divided = ShardedHolisticModel.load(folder)
    found["loaded"] = held_by_tensors() - before
    found["held"], found["whole"] = divided.held()
    for name, calls in TEXTS.items():
        count, batch_size = calls[rank]
        found["scores"][name] = divided.score(*texts(count, rank), 100, batch_size).tolist()
    found["used"] = held_by_tensors() - before
    found["probe"] = divided.probe()

    copied = HolisticModel.load(folder)
    for name, calls in TEXTS.items():
        count, batch_size = calls[rank]
        found["copied"][name] = copied.score(*texts(count, rank), 100, batch_size).tolist()
    found["own_probe"] = copied.probe()

    # loops of another length, and one that a service ends early
    scorer = HolisticScorer(folder, 100, 2, "cpu", torch.float32, sharded=True)
    with equal_calls(scorer, 3):
        for _ in range(3 - 2 * rank):
            scorer(rollout(2, rank))
    found["calls"] = scorer.calls
    try:
        with failing_together(state), equal_calls(scorer, 3):
            for _ in range(3):
                scorer(rollout(2, rank))
                if rank == 1:
                    raise ServiceError("the service is gone")
    except ServiceError as error:
        found["failed"] = str(error)
    found["calls_then"] = scorer.calls
    found["after"] = scorer(rollout(3, rank)).tolist()
    found["expected_after"] = copied.score(*texts(3, rank), 100, 2).tolist()
    return found


def main(out: str, *folders: str) -> None:
    torch.set_num_threads(1)
    state = process_state()
    found = [measured(folder, state) for folder in folders]
    Path(out, f"{state.process_index}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
