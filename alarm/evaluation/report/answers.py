"""The answers of a comparison: every prompt in a table with search and filters, each verdict a link to both answers."""

from __future__ import annotations

import random
from itertools import combinations
from pathlib import Path

import numpy as np

from ...api import Task
from ..compare import HOLISTIC, Judgements, comparable_metrics, criterion_title, pair_verdicts
from ..generations import Generations
from ..pages.page import read_asset, rounded
from .page import Answers

FOLDER = Path(__file__).parent


def answers_section(
    seeds: dict[str, list[Generations]], task: Task, judgements: list[Judgements] | None, draw_seed: int
) -> Answers:
    """seeds: the compared runs of each seed, under "" if there are no seed folders. draw_seed: of the random order."""
    data = answers_data(seeds, task, judgements, draw_seed)
    return Answers(read_asset(FOLDER / "answers.html"), read_asset(FOLDER / "answers.js"), data)


def answers_data(
    seeds: dict[str, list[Generations]], task: Task, judgements: list[Judgements] | None, draw_seed: int
) -> dict:
    """What answers.js reads. S seeds, R runs, N prompts."""
    every = list(seeds.values())
    runs = every[0]
    pairs = {
        (i, j): pair_verdicts(every, i, j, task, judgements) for i, j in combinations(range(len(runs)), 2)
    }  # -> criterion -> (S, N)
    criteria = list(next(iter(pairs.values()))) if pairs else list(runs[0].metrics)
    spread = []
    for of_seed in every:
        rewards = comparable_metrics(of_seed)[HOLISTIC]  # (R, N)
        spread.append(_numbers(rewards.max(axis=0) - rewards.min(axis=0)))
    order = list(range(len(runs[0].queries)))
    random.Random(draw_seed).shuffle(order)
    return {
        "seeds": list(seeds),
        "runs": [run.name for run in runs],
        "criteria": [{"name": name, "title": criterion_title(name, task.lower_wins)} for name in criteria],
        "prompts": runs[0].queries,
        "answers": [[run.generations for run in of_seed] for of_seed in every],  # S x R x N, null for none
        "metrics": {
            metric: [[_numbers(run.metrics[metric]) for run in of_seed] for of_seed in every]
            for metric in runs[0].metrics
        },  # S x R x N
        "verdicts": {
            f"{i}/{j}": {name: [_verdicts(row) for row in values] for name, values in found.items()}
            for (i, j), found in pairs.items()
        },  # S x N: 1, 0, -1, null
        "spread": spread,  # S x N
        "random": order,  # N places in a random order
    }


def _numbers(values: np.ndarray) -> list[float]:
    return [rounded(value) for value in values]


def _verdicts(values: np.ndarray) -> list[int | None]:
    return [None if np.isnan(value) else int(value) for value in values]
