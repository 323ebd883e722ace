"""What the quickstarts of both tasks share: stages (commands with one output each), and tables of their results."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path

from alarm.common.console import Table, plain_table
from alarm.common.files import read_rows
from alarm.evaluation.provenance import SIDECAR
from alarm.training.run import read_log
from miniature.stages import Stage, short


def plots(work: Path) -> Stage:
    """The curves of both PPO runs in one figure."""
    runs = [word for name in ("hierarchical", "holistic_only") for word in ("--run_dir", short(work / "runs" / name))]
    words = ["-m", "alarm.plot_run", *runs, "--save_dir", short(work / "plots")]
    return Stage("curves of the PPO runs", "plots", lambda: words)


def what_to_look_at(work: Path) -> str:
    """The files that are made to be looked at, a line each."""
    files = {
        "the comparison, a page": "generations_results/eval-report/index.html",
        "rewards token by token, a page": "inspection.html",
        "curves of the PPO runs": "plots/training.png",
    }
    return "\n".join(f"{what:<32}{short(work / file)}" for what, file in files.items())


# --- what came out ---------------------------------------------------------------------------------------------------


def pair_baseline(dev: dict) -> float:
    """The best accuracy on pairs that needs no model: chance, `longer wins` or `shorter wins`."""
    return max(dev["baseline_accuracy"], dev["longer_wins_accuracy"], 1 - dev["longer_wins_accuracy"])


def training_rows(run: Path) -> list[dict]:
    """The training steps of a run's log."""
    return [row["train"] for row in read_log(run / "log.jsonl") if "train" in row]


def read_policies(work: Path) -> dict[str, list[dict]]:
    """Policy -> its rows of the test file."""
    files = [path for path in sorted((work / "generations").glob("*.json")) if not path.name.endswith(SIDECAR)]
    return {path.stem: read_rows(path) for path in files}


def policy_table(generations: dict[str, list[dict]]) -> Table:
    """Mean metrics of each policy's answers; a score that is not finite (null in the file) is left out."""
    first = next(iter(generations.values()))
    names = [name for name, value in first[0].items() if not isinstance(value, str)]

    def mean(rows: list[dict], name: str) -> str:
        values = [row[name] for row in rows if row[name] is not None]
        return f"{statistics.mean(values):.3f}" if values else "-"

    cells = [(policy, *(mean(rows, name) for name in names)) for policy, rows in generations.items()]
    return plain_table("Test file", ("policy", *names), cells, "means over the answers")


def one_answer_each(
    generations: dict[str, list[dict]], title: str, shown: Callable[[str], str] = lambda query: query
) -> str:
    """One prompt of the test file, and what each policy answers."""
    query = next(iter(generations.values()))[0]["query"]
    lines = [f"{title}: {shown(query)[:110]}"]
    for policy, rows in generations.items():
        answer = next(row["generation"] for row in rows if row["query"] == query)
        lines.append(f"  {policy}: {answer[:220]!r}")
    return "\n".join(lines)
