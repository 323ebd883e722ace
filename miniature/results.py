"""True quality of several policies on the same prompts, with intervals. `python -m miniature.results`

Reads generations files of `train_ppo --test`. Differences are paired by prompt; intervals are bootstraps over prompts,
95%. They say nothing of other seeds of training.
"""

from __future__ import annotations

import argparse
from itertools import combinations
from pathlib import Path

import numpy as np

from alarm.common.bootstrap import interval, resample
from alarm.common.console import Table, plain_table, print_table
from alarm.common.errors import UserError, report_user_errors
from alarm.common.files import check_new_file, read_rows, write_json
from alarm.common.flags import parser
from alarm.diagnostics import EMPTY_BOUND, FULL_BOUND, FULL_START, KL_BOUND

COLUMNS = {  # what is shown beside the truth, if the files have it -> its column
    "holistic": "holistic_reward",
    "grammar_errors": "grammar_errors",
    "relevance": "relevance_rate",
    "factuality": "factuality_rate",
    "completeness": "completeness_reward",
    "length": "response_length",
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    flags = parser(__doc__.split("\n\n")[0])
    add = flags.add_argument
    add("files", nargs="+", help="generations files; the first one is the start, with which the others are compared")
    add("--output", help="JSON file to write")
    add("--overwrite", action="store_true", help="replace --output if it exists")
    return flags.parse_args(argv)


def read_runs(files: list[str]) -> dict[str, list[dict]]:
    """Name of the file without its ending -> rows. UserError if two have other prompts or no true quality."""
    runs: dict[str, list[dict]] = {}
    for name in files:
        rows = read_rows(name)
        if Path(name).stem in runs:
            raise UserError(f"two files are named {Path(name).stem}; rename one")
        if any(not isinstance(row.get("oracle"), int | float) for row in rows):
            raise UserError(f"{name} has rows without `oracle`; make it with the task file of a small world")
        first = next(iter(runs.values()), rows)
        if [row["query"] for row in rows] != [row["query"] for row in first]:
            raise UserError(f"{name} answers other prompts than {files[0]}; give files of one set of prompts")
        runs[Path(name).stem] = rows
    return runs


def described(values: np.ndarray) -> dict[str, float]:
    """Mean of a value a prompt, (N,), and its interval."""
    low, high = interval(resample(len(values)).prompts.astype(float) @ values / len(values))
    return {"mean": float(values.mean()), "low": low, "high": high}


def quality(rows: list[dict]) -> np.ndarray:
    return np.array([row["oracle"] for row in rows], dtype=float)


def summarise(runs: dict[str, list[dict]], limit: int | None = None) -> dict[str, dict]:
    """Run -> {oracle: {mean, low, high}, gain over the first run: the same, and means of the other columns}.

    `empty` is the share of answers without text, `full_length` that of answers of `limit` tokens.
    """
    start = quality(next(iter(runs.values())))
    known = [(key, column) for key, column in COLUMNS.items() if any(column in rows[0] for rows in runs.values())]
    found = {}
    for name, rows in runs.items():
        found[name] = {"oracle": described(quality(rows)), "gain": described(quality(rows) - start)}
        for key, column in known:
            values = [row[column] for row in rows if row.get(column) is not None]
            found[name][key] = float(np.mean(values)) if values else None
        found[name]["empty"] = sum(not row["generation"].strip() for row in rows) / len(rows)
        if limit:
            found[name]["full_length"] = sum(row["response_length"] >= limit for row in rows) / len(rows)
    return found


def collapse(row: dict, start: dict, kl: float | None = None) -> list[str]:
    """Why a run counts as collapsed, by the bounds of alarm.diagnostics. row, start: of `summarise`; kl: a token."""
    reasons = []
    if row["empty"] > EMPTY_BOUND:
        reasons.append(f"{row['empty']:.0%} of its answers have no text")
    if row.get("full_length", 0) > FULL_BOUND and start["full_length"] < FULL_START:
        reasons.append(f"{row['full_length']:.0%} of its answers fill the limit of tokens")
    if kl is not None and kl > KL_BOUND:
        reasons.append(f"it is {kl:.2f} nats a token away from the start, tolerated {KL_BOUND:g}")
    return reasons


def sentence(name: str, other: str, difference: dict[str, float], prompts: int) -> str:
    """What the interval of the true quality of `name` less that of `other` supports."""
    mean, low, high = (difference[key] for key in ("mean", "low", "high"))
    if low <= 0 <= high:
        told = f"{name} less {other}: {mean:+.3f} [{low:+.3f}, {high:+.3f}]"
        return f"no difference that {prompts} prompts can show: {told}"
    better, worse = (name, other) if low > 0 else (other, name)
    ends = (low, high) if low > 0 else (-high, -low)
    return f"{better} is better than {worse} by {abs(mean):.3f} [{ends[0]:.3f}, {ends[1]:.3f}]"


def sentences(runs: dict[str, list[dict]]) -> list[str]:
    """One for every two runs."""
    return [
        sentence(name, other, described(quality(runs[name]) - quality(runs[other])), len(runs[name]))
        for other, name in combinations(runs, 2)
    ]


def result_table(found: dict[str, dict], prompts: int) -> Table:
    """A row a run. The holistic reward is shown as the change from the first run: its level may be arbitrary."""
    first = next(iter(found.values()))
    others = [key for key in first if key in COLUMNS or (key == "empty" and any(row[key] for row in found.values()))]

    def cell(row: dict, key: str) -> str:
        value = row[key]
        if value is None or first[key] is None:
            return "-"
        if key == "holistic":
            return f"{value - first[key]:+.2f}"
        return f"{value:.1%}" if key == "empty" else f"{value:.1f}" if key == "length" else f"{value:.2f}"

    rows = []
    for name, row in found.items():
        parts = [f"{part['mean']:.3f} [{part['low']:.3f}, {part['high']:.3f}]" for part in (row["oracle"], row["gain"])]
        rows.append((name, parts[0], "" if row is first else parts[1], *(cell(row, key) for key in others)))
    heads = ["holistic change" if key == "holistic" else key for key in others]
    note = f"{prompts} prompts; 95% intervals over prompts; gains are paired by prompt, over {next(iter(found))}"
    return plain_table("True quality", ("run", "quality", "gain", *heads), rows, note)


@report_user_errors
def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    if args.output:
        check_new_file(args.output, "--output", args.overwrite)
    runs = read_runs(args.files)
    found = summarise(runs)
    if args.output:
        write_json(args.output, found)
    print_table(result_table(found, len(next(iter(runs.values())))))
    print(*sentences(runs), sep="\n")


if __name__ == "__main__":
    main()
