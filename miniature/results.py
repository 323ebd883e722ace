"""True quality of several policies on the same prompts, with intervals. `python -m miniature.results`

Reads generations files of `train_ppo --test`. Differences are paired by prompt; intervals are bootstraps over prompts,
95%. They say nothing of other seeds of training.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from alarm.common.bootstrap import MIN_PROMPTS, Resamples, interval, resample
from alarm.common.console import Table, plain_table, print_table
from alarm.common.errors import UserError, report_user_errors
from alarm.common.files import check_new_file, read_rows, write_json
from alarm.common.flags import parser, positive_int
from alarm.diagnostics import EMPTY_BOUND, FULL_BOUND, KL_BOUND

# name in the results -> column of the files; what no file has is left out
COLUMNS = {
    "holistic": "holistic_reward",
    "grammar_errors": "grammar_errors",
    "relevance": "relevance_rate",
    "factuality": "factuality_rate",
    "completeness": "completeness_reward",
    "length": "response_length",
}
Runs = Mapping[str, list[dict]]  # name -> rows of its answers; the first one is the start


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    flags = parser(__doc__.split("\n\n")[0])
    add = flags.add_argument
    add("files", nargs="+", help="generations files; the first one is the start, with which the others are compared")
    add(
        "--runs", help="folder of the runs' folders, named as the files: their logs say how far they are from the start"
    )
    add("--max_generated_len", type=positive_int, help="tokens of the longest answer: says which runs fill it")
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


def last_kl(run: Path) -> float:
    """Nats between policy and reference over a response, in the last step of a run. NaN if there is no log of it."""
    from alarm.training.run import read_log

    log = run / "log.jsonl"
    rows = [row["train"] for row in read_log(log) if "train" in row] if log.exists() else []
    return float(rows[-1]["kl"]) if rows and rows[-1].get("kl") is not None else float("nan")


def collapse(empty: float, length: float, limit: int | None, kl: float) -> str | None:
    """How a policy has collapsed, if it has. Share of empty answers, mean tokens, their limit, nats a response."""
    per_token = kl / max(length, 1)
    if empty > EMPTY_BOUND:
        return f"{empty:.0%} of the answers are empty"
    if limit and length > FULL_BOUND * limit:
        return f"answers of {length:.0f} of at most {limit} tokens"
    if per_token > KL_BOUND:
        return f"{per_token:.1f} nats a token from the start"
    return None


# --- statistics ------------------------------------------------------------------------------------------------------


def quality(rows: list[dict]) -> np.ndarray:
    """(N,) true quality of each answer."""
    return np.array([row["oracle"] for row in rows], dtype=float)


def described(values: np.ndarray, resamples: Resamples) -> dict[str, float]:
    """(N,) -> mean and its interval over prompts."""
    low, high = interval(resamples.prompts.astype(float) @ values / len(values))
    return {"mean": float(values.mean()), "low": low, "high": high}


def summarise(runs: Runs, kl: Mapping[str, float] | None = None, limit: int | None = None) -> dict[str, dict]:
    """Run -> {oracle: {mean, low, high}, gain over the first run: the same, means of the other columns, collapsed}.

    kl: of a run, nats a response at its end. limit: tokens of the longest answer. `collapsed` is None or a text.
    """
    start = quality(next(iter(runs.values())))
    resamples = resample(len(start))
    columns = {
        name: column
        for name, column in COLUMNS.items()
        if any(row.get(column) is not None for rows in runs.values() for row in rows)
    }
    found = {}
    for name, rows in runs.items():
        of = quality(rows)
        found[name] = {"oracle": described(of, resamples), "gain": described(of - start, resamples)}
        for shown, column in columns.items():
            values = [row[column] for row in rows if row.get(column) is not None]
            found[name][shown] = float(np.mean(values)) if values else None
        empty = sum(not row["generation"].strip() for row in rows) / len(rows)
        found[name]["empty"] = empty
        length = found[name].get("length") or 0.0
        found[name]["collapsed"] = collapse(empty, length, limit, (kl or {}).get(name, float("nan")))
    return found


def verdict(a: str, b: str, difference: Mapping[str, float], prompts: int) -> str:
    """What the interval of a's true quality less b's says, and no more."""
    mean, low, high = (difference[key] for key in ("mean", "low", "high"))
    if prompts < MIN_PROMPTS:
        return f"{a} and {b}: {prompts} prompts are too few to compare them"
    if high < 0:
        a, b, mean, low, high = b, a, -mean, -high, -low
    if low > 0:
        return f"{a} is better than {b} by {mean:.3f} [{low:.3f}, {high:.3f}]"
    return f"{a} and {b}: no difference that {prompts} prompts can show ({mean:z.3f} [{low:z.3f}, {high:z.3f}])"


def verdicts(runs: Runs) -> list[str]:
    """A sentence for each two runs, a later one less an earlier one only with the start."""
    first, *others = runs
    resamples = resample(len(runs[first]))
    pairs = [(name, first) for name in others] + list(itertools.combinations(others, 2))
    return [
        verdict(a, b, described(quality(runs[a]) - quality(runs[b]), resamples), len(runs[first])) for a, b in pairs
    ]


# --- what is shown ---------------------------------------------------------------------------------------------------


def table(found: dict[str, dict]) -> Table:
    prompts_note = "means over the prompts; true quality and gain over the start with 95% intervals over prompts"
    columns = [name for name in (*COLUMNS, "empty") if name in next(iter(found.values()))]

    def cell(part: dict) -> str:
        return f"{part['mean']:z.3f} [{part['low']:z.3f}, {part['high']:z.3f}]"

    rows = [
        (name, cell(row["oracle"]), "" if i == 0 else cell(row["gain"]))
        + tuple("-" if row[column] is None else f"{row[column]:z.2f}" for column in columns)
        for i, (name, row) in enumerate(found.items())
    ]
    return plain_table("True quality", ("run", "true_quality", "gain", *columns), rows, prompts_note)


def remarks(found: dict[str, dict]) -> list[str]:
    """A line for each run that collapsed."""
    return [f"{name} COLLAPSED: {row['collapsed']}" for name, row in found.items() if row["collapsed"]]


@report_user_errors
def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    if args.output:
        check_new_file(args.output, "--output", args.overwrite)
    runs = read_runs(args.files)
    kl = {name: last_kl(Path(args.runs) / name) for name in runs} if args.runs else None
    found = summarise(runs, kl, args.max_generated_len)
    if args.output:
        write_json(args.output, found)
    print_table(table(found))
    print("\n".join([*remarks(found), *verdicts(runs)]))


if __name__ == "__main__":
    main()
