"""The translation world as a task. `--task miniature/mt/task.py`, from the root of the repository.

The aspects are those of the paper: LanguageTool, readability, confidence that it is English. The oracle's numbers are
columns that no weight can pay.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from alarm import Aspect, Metric, Task
from alarm.tasks.mt.spec import CONFIDENCE, GRAMMAR, READABILITY
from alarm.types import AspectScore, Rollout

sys.path.append(str(Path(__file__).resolve().parents[2]))
from miniature.mt.oracle import judge
from miniature.mt.world import from_json

PARTS = ("quality", "adequacy", "fluency")


class Oracle:
    """The true quality of each answer. Its scores are None, so that it is never paid."""

    @classmethod
    def load(cls, settings) -> Oracle:
        return cls()

    def __call__(self, rollout: Rollout) -> AspectScore:
        pairs = zip(rollout.examples, rollout.responses, strict=True)
        found = [judge(from_json(row["meaning"]), text) for row, text in pairs]
        metrics = {"oracle" if part == "quality" else part: [getattr(one, part) for one in found] for part in PARTS}
        return AspectScore([None] * len(found), metrics)


ORACLE = Aspect(
    "oracle",
    Oracle,
    metrics=[
        Metric(name, title=title, ends=(0, 1), no_aspect="held out: it is the truth")
        for name, title in (("oracle", "true quality"), ("adequacy", "true adequacy"), ("fluency", "true fluency"))
    ],
)

TASK = Task(
    "miniature_mt",
    prompt=lambda row: row["text"],
    aspects=[GRAMMAR, replace(READABILITY, weight=0.0), replace(CONFIDENCE, weight=0.0), ORACLE],
    max_input_len=32,
    max_generated_len=24,
    holistic_max_tokens=96,
    sft={"num_epochs": 1, "batch_size": 64, "lr": 3e-3},
    defaults={
        "lr": 4e-4,
        "batch_size": 64,
        "mini_batch_size": 32,
        "n_ppo_epoch_per_rollout": 2,
        "kl_control": "fixed",
        "eval_interval": 0,
        "eval_batch_size": 128,
        "rm_max_batch_size": 64,
    },
)
