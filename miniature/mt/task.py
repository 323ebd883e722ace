"""The translation world as a task. `--task miniature/mt/task.py`, from the root of the repository.

The aspects are those of the paper: LanguageTool, readability, confidence that it is English. The oracle's numbers are
columns that no weight can pay.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from alarm import Aspect, Metric, Task
from alarm.tasks.mt.spec import CONFIDENCE, GRAMMAR, READABILITY

sys.path.append(str(Path(__file__).resolve().parents[2]))
from miniature.mt.oracle import Quality, judge
from miniature.mt.world import from_json


@lru_cache(maxsize=4096)
def judged(meaning: str, text: str) -> Quality:
    return judge(from_json(json.loads(meaning)), text)


def held_out(part: str):
    """An aspect that is a part of the truth. It is measured, never paid."""

    def score(prompts, answers, rows):
        pairs = zip(rows, answers, strict=True)
        return [getattr(judged(json.dumps(row["meaning"]), answer), part) for row, answer in pairs]

    return score


ORACLE = [
    Aspect(
        name, held_out(part), metrics=[Metric(name, title=title, ends=(0, 1), no_aspect="held out: it is the truth")]
    )
    for name, part, title in (
        ("oracle", "quality", "true quality"),
        ("adequacy", "adequacy", "true adequacy"),
        ("fluency", "fluency", "true fluency"),
    )
]

TASK = Task(
    "miniature_mt",
    prompt=lambda row: row["text"],
    aspects=[GRAMMAR, replace(READABILITY, weight=0.0), replace(CONFIDENCE, weight=0.0), *ORACLE],
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
