"""True quality of several policies on the same prompts, with intervals. `python -m miniature.results`

Reads generations files of `train_ppo --test`. Differences are paired by prompt; intervals are bootstraps over prompts,
95%. They say nothing of other seeds of training.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from alarm.common.bootstrap import MIN_PROMPTS, interval, resample
from alarm.common.console import Table, plain_table, print_table
from alarm.common.errors import UserError, report_user_errors
from alarm.common.files import check_new_file, read_rows, write_json
from alarm.common.flags import parser, positive_int
from alarm.diagnostics import EMPTY_BOUND, FULL_BOUND, FULL_START, KL_BOUND

SHOWN = {  # column of the file -> its key in results
    "holistic_reward": "holistic",
    "grammar_errors": "grammar_errors",
    "verbosity_rate": "relevance_rate",  # its published name
    "factuality_rate": "factuality_rate",
    "response_length": "length",
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    flags = parser(__doc__.split("\n\n")[0])
    add = flags.add_argument
    add("files", nargs="+", help="generations files; the first one is the start, with which the others are compared")
    add("--runs", help="folder of the runs' folders, named as the files; their logs say how far they moved")
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
    """Nats a response between policy and reference, in the last step of a run. NaN: no log; infinite: not finite."""
    from alarm.training.run import read_log

    log = run / "log.jsonl"
    return end_of([row["train"]["kl"] for row in read_log(log) if "train" in row] if log.exists() else [])


def end_of(kl: Sequence[float | None]) -> float:
    """The last of a run's KLs. NaN: there is none; infinite: it is null in the file, since it was not finite."""
    if not kl:
        return math.nan
    return math.inf if kl[-1] is None else float(kl[-1])


def collapse(empty: float, length: float, limit: int | None, kl: float) -> str | None:
    """How a policy has collapsed, if it has. Share of empty answers, mean tokens, their limit, nats a response."""
    if empty > EMPTY_BOUND:
        return f"{empty:.0%} of the answers are empty"
    if limit and length > FULL_BOUND * limit:
        return f"answers of {length:.0f} of at most {limit} tokens"
    if math.isinf(kl):
        return "its distance from the start is not finite"
    if kl / max(length, 1) > KL_BOUND:
        return f"{kl / max(length, 1):.1f} nats a token from the start"
    return None


def resampled(values: np.ndarray) -> np.ndarray:
    """Means of random draws of the seeds and of the prompts of (S, N) values. -> (D,)"""
    seeds, prompts = values.shape
    drawn = resample(prompts, seeds)
    return (drawn.seeds * (drawn.prompts @ values.T / prompts)).sum(1)


def described(values: np.ndarray) -> dict[str, float]:
    """Mean and its interval over prompts. (N,)"""
    low, high = interval(resampled(values[None]))
    return {"mean": float(values.mean()), "low": low, "high": high}


def quality(rows: list[dict]) -> np.ndarray:
    return np.array([row["oracle"] for row in rows])


def summarise(
    runs: dict[str, list[dict]], kl: Mapping[str, float] | None = None, limit: int | None = None
) -> dict[str, dict]:
    """Run -> {oracle: {mean, low, high}, gain over the first run: the same, means of the other columns, collapsed}.

    kl: of a run, nats a response at its end. limit: tokens of the longest answer. `collapsed` is null or says how; a
    start that fills the limit makes no later run that does so a collapse.
    """
    start = next(iter(runs.values()))
    found = {}
    for name, rows in runs.items():
        found[name] = {"oracle": described(quality(rows)), "gain": described(quality(rows) - quality(start))}
        for column, key in SHOWN.items():
            values = [row[column] for row in rows if row.get(column) is not None]
            if values:
                found[name][key] = float(np.mean(values))
        empty = sum(not row["generation"].strip() for row in rows) / len(rows)
        found[name]["empty"] = empty
        if rows is start:
            found[name]["collapsed"] = None
            if limit and found[name].get("length", 0.0) >= FULL_START * limit:
                limit = None
            continue
        fallen = collapse(empty, found[name].get("length", 0.0), limit, (kl or {}).get(name, math.nan))
        if fallen is None and found[name]["oracle"]["mean"] < quality(start).mean() / 2:
            fallen = "less than half of the start's true quality"
        found[name]["collapsed"] = fallen
    return found


def results_table(found: dict[str, dict], prompts: int) -> Table:
    """A row a run. The holistic reward is shown as its change from the first run, as its level may be arbitrary."""
    first = next(iter(found.values()))
    keys = [key for key in SHOWN.values() if any(key in row for row in found.values())]
    rows, heads = [], {"holistic": "change of holistic"}
    for name, row in found.items():
        gain = "" if row is first else ends(row["gain"], "+.3f")
        mark = " (collapsed)" if row["collapsed"] else ""
        numbers = [
            "-" if key not in row or key not in first
            else f"{row[key] - first[key]:+.2f}" if key == "holistic" else f"{row[key]:.2f}"
            for key in keys
        ]  # fmt: skip
        rows.append((name + mark, f"{row['oracle']['mean']:.3f}", ends(row["oracle"], ".3f")[6:], gain, *numbers))
    return plain_table(
        "True quality of sampled answers",
        ("run", "true quality", "95%", "gain over the start", *(heads.get(key, key.replace("_", " ")) for key in keys)),
        rows,
        f"{prompts} prompts; intervals are over prompts, not over other seeds of training",
    )


def ends(part: dict[str, float], form: str) -> str:
    """A mean and its interval in words: +.031 [+.010, +.052]."""
    return f"{part['mean']:{form}} [{part['low']:{form}}, {part['high']:{form}}]"


def sentence(one: str, other: str, difference: dict[str, float], prompts: int) -> str:
    """What the interval of a paired difference supports."""
    if prompts < MIN_PROMPTS:
        return f"{one} and {other}: {prompts} prompts are too few to compare them"
    if difference["low"] > 0:
        return f"{one} is better than {other}: {ends(difference, '+.3f')}"
    if difference["high"] < 0:
        return f"{one} is worse than {other}: {ends(difference, '+.3f')}"
    return f"{one} and {other}: no difference that {prompts} prompts can show, {ends(difference, '+.3f')}"


def sentences(runs: dict[str, list[dict]]) -> list[str]:
    """A sentence for each run against the start (the first run), and for each two runs."""
    start, *others = runs
    pairs = [(name, start) for name in others] + list(itertools.combinations(others, 2))
    prompts = len(runs[start])
    return [sentence(one, other, described(quality(runs[one]) - quality(runs[other])), prompts) for one, other in pairs]


def collapses(found: dict[str, dict]) -> list[str]:
    """A line for each run that collapsed."""
    return [f"{name} collapsed: {row['collapsed']}" for name, row in found.items() if row["collapsed"]]


def answers_before_and_after(runs: dict[str, list[dict]], before: str, after: str, count: int = 3) -> str:
    """The first prompts of the file whose two answers differ, whatever they are worth."""
    pairs = [
        pair for pair in zip(runs[before], runs[after], strict=True) if pair[0]["generation"] != pair[1]["generation"]
    ]
    lines = [f"the first {count} test prompts whose answers differ (true quality in brackets)"]
    for one, other in pairs[:count]:
        lines.append(f"  {one['query'][:300]}")
        for name, row in ((before, one), (after, other)):
            lines.append(f"    {name:<14}[{row['oracle']:.2f}] {row['generation'][:200]}")
    return "\n".join(lines)


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
    print_table(results_table(found, len(next(iter(runs.values())))))
    print("\n".join([*collapses(found), *sentences(runs)]))


if __name__ == "__main__":
    main()
