"""What the quickstarts of both tasks are written in: stages, which are commands with one output each."""

from __future__ import annotations

import os
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


def plots(work: Path) -> Stage:
    """The curves of both PPO runs in one figure."""
    runs = [word for name in ("hierarchical", "holistic_only") for word in ("--run_dir", short(work / "runs" / name))]
    words = ["-m", "alarm.plot_run", *runs, "--save_dir", short(work / "plots")]
    return Stage("curves of the PPO runs", "plots", lambda: words)


def what_to_look_at(work: Path) -> list[str]:
    """The files that are made to be looked at."""
    files = {
        "the comparison, a page": "generations_results/eval-report/index.html",
        "rewards token by token, a page": "inspection.html",
        "curves of the PPO runs": "plots/training.png",
    }
    return [f"{what:<32}{short(work / file)}" for what, file in files.items()]
