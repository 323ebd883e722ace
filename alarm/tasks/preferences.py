"""Preference pairs: two answers to one prompt, of which people prefer the first."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..common.files import read_rows, require_fields


@dataclass(frozen=True)
class Pair:
    """Two answers to one prompt, the first one better."""

    question: str  # what tells held-out examples from training ones; the prompt itself if there is no question
    prompt: str
    chosen: str
    rejected: str
    kind: str  # source of the pair


def load_preferences(path: str | Path) -> list[Pair]:
    """Read {prompt, chosen, rejected} rows."""
    rows = read_rows(path)
    require_fields(rows, dict.fromkeys(("prompt", "chosen", "rejected"), str), path)
    return [Pair(row["prompt"], row["prompt"], row["chosen"], row["rejected"], "pair") for row in rows]
