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

NOISE = 0.2  # standard deviation, in units of true quality


def holistic(prompts: list[str], answers: list[str], rows: list[dict]) -> list[float]:
    """True quality plus normal noise; the same texts have the same noise."""
    found = []
    for prompt, answer, row in zip(prompts, answers, rows, strict=True):
        share = (zlib.crc32(f"{prompt}\n{answer}".encode()) + 0.5) / 2**32
        found.append(judge(from_json(row["meaning"]), answer).quality + NormalDist(0, NOISE).inv_cdf(share))
    return found


TASK = replace(REAL, name="miniature_mt_simulated", holistic=holistic)
