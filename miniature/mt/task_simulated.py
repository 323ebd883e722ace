"""The translation world with a simulated holistic reward: true quality and noise that depends on the texts alone.

A control for what a learned model adds: its noise has no pattern that a policy could use.
"""

from __future__ import annotations

import sys
import zlib
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist

sys.path.append(str(Path(__file__).resolve().parents[2]))
from miniature.mt.oracle import judge
from miniature.mt.task import TASK as REAL
from miniature.mt.world import from_json


def normal(*texts: str) -> float:
    """A standard normal number, the same for the same texts."""
    return NormalDist().inv_cdf((zlib.crc32("\n".join(texts).encode()) + 0.5) / 2**32)


def simulated(noise: float):
    """A holistic reward: true quality plus normal noise of this deviation."""

    def holistic(prompts: list[str], answers: list[str], rows: list[dict]) -> list[float]:
        return [
            judge(from_json(row["meaning"]), answer).quality + noise * normal(prompt, answer)
            for prompt, answer, row in zip(prompts, answers, rows, strict=True)
        ]

    return holistic


TASK = replace(REAL, name="miniature_mt_simulated", holistic=simulated(0.2))
