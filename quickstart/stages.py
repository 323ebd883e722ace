"""What the quickstarts of both tasks are written in: stages, which are commands with one output each."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Stage:
    """One command. `words` is called when the stage's turn comes: it may read what earlier stages wrote."""

    name: str
    output: str  # file or folder in the work folder; it appears whole, or holds a run that --resume continues
    words: Callable[[], list[str]]
    resumable: bool = False


def flag_words(**values) -> list[str]:
    """Keyword arguments as command-line words; True stands for a switch."""
    words = []
    for name, value in values.items():
        if value is True:
            words.append(f"--{name}")
        elif value is not None:
            words += [f"--{name}", f"{value:.6g}" if isinstance(value, float) else str(value)]
    return words


def short(path: Path) -> str:
    """The path as typed from the repository root."""
    path = Path(os.path.abspath(path))
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def raw_scores(path: Path) -> list[float]:
    """The holistic scores of a policy's answers, scored with mean 0 and deviation 1."""
    scores = [row["holistic_reward"] for row in json.loads(path.read_text())]
    # an empty answer stands at -10 instead of a score
    return [score for score in scores if score != -10] or [0.0]


def holistic_scale(path: Path) -> tuple[float, float]:
    """Mean and deviation of the raw holistic scores of the policy's own answers, which the gate is relative to."""
    scores = raw_scores(path)
    deviation = statistics.stdev(scores) if len(scores) > 1 else 0.0
    return statistics.mean(scores), deviation or 1.0


def median_threshold(path: Path) -> float:
    """The threshold, in deviations, that half of the policy's own answers reach."""
    mean, deviation = holistic_scale(path)
    return (statistics.median(raw_scores(path)) - mean) / deviation
