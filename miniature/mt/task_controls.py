"""Controls: aspects that are the truth, noise, the length, and grammar errors on the wrong tokens.

The first three are about 0 on average with a deviation of about 1, so that they differ in what they say alone.
"""

from __future__ import annotations

import random
import re
import sys
from dataclasses import replace
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))
from alarm import Aspect
from alarm.tasks.mt.aspects import Grammar
from alarm.types import AspectScore, Rollout
from miniature.mt.oracle import judge
from miniature.mt.task import TASK as REAL
from miniature.mt.task_simulated import normal
from miniature.mt.world import from_json


def truth(prompts: list[str], answers: list[str], rows: list[dict]) -> list[float]:
    return [
        (judge(from_json(row["meaning"]), answer).quality - 0.6) / 0.35
        for answer, row in zip(answers, rows, strict=True)
    ]


def noise(prompts: list[str], answers: list[str], rows: list[dict]) -> list[float]:
    return [normal(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]


def words(prompts: list[str], answers: list[str], rows: list[dict]) -> list[float]:
    return [(len(answer.split()) - 9) / 3 for answer in answers]


def permuted(text: str, spans: list[tuple[int, int, float]]) -> list[tuple[int, int, float]]:
    """As many words as the spans touch, but others drawn at random (the same for the same text)."""
    places = [found.span() for found in re.finditer(r"\S+", text)]
    values = [next((value for a, b, value in spans if a < end and start < b), None) for start, end in places]
    hit = [value for value in values if value is not None]
    drawn = random.Random(text).sample(range(len(places)), len(hit))
    return [(*places[place], value) for place, value in zip(sorted(drawn), hit, strict=True)]


class Permuted(Grammar):
    """Grammar, each error moved to another word."""

    def __call__(self, rollout: Rollout) -> AspectScore:
        found = super().__call__(rollout)
        scores = [permuted(text, spans) for text, spans in zip(rollout.responses, found.scores, strict=True)]
        return AspectScore(scores, {"permuted": found.raw}, found.raw, elsewhere=found.elsewhere, best=found.best)


[GRAMMAR] = [aspect for aspect in REAL.aspects if aspect.name == "grammar"]
CONTROLS = [
    *(Aspect(score.__name__, score, flag=f"w_{score.__name__}", weight=0.0) for score in (truth, noise, words)),
    replace(
        GRAMMAR,
        name="permuted",
        score=Permuted,
        metrics=[replace(GRAMMAR.metrics[1], name="permuted", title="errors on other words")],
        flag="w_permuted",
        weight=0.0,
        flags=[],
    ),
]
# the name stays, so that calibrations of the world fit
TASK = replace(REAL, aspects=[*REAL.aspects, *CONTROLS])
