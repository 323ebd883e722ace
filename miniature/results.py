"""True quality of several policies on the same prompts, with intervals. `python -m miniature.results`

Reads generations files of `train_ppo --test`. Differences are paired by prompt; intervals are bootstraps over prompts,
95%. They say nothing of other seeds of training.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from alarm.common.bootstrap import interval, resample
from alarm.common.errors import UserError, report_user_errors
from alarm.common.files import check_new_file, read_rows, write_json
from alarm.common.flags import parser

SHOWN = ("holistic_reward", "grammar_errors", "response_length")


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


def summarise(runs: dict[str, list[dict]]) -> dict[str, dict]:
    """Run -> {oracle: {mean, low, high}, gain over the first run: the same, and means of the other columns}."""
    start = np.array([row["oracle"] for row in next(iter(runs.values()))])
    drawn = resample(len(start)).prompts.astype(float) / len(start)

    def described(values: np.ndarray) -> dict:
        low, high = interval(drawn @ values)
        return {"mean": float(values.mean()), "low": low, "high": high}

    found = {}
    for name, rows in runs.items():
        quality = np.array([row["oracle"] for row in rows])
        found[name] = {"oracle": described(quality), "gain": described(quality - start)}
        for column in SHOWN:
            values = [row[column] for row in rows if row.get(column) is not None]
            found[name][column] = float(np.mean(values)) if values else None
        found[name]["empty"] = sum(not row["generation"].strip() for row in rows) / len(rows)
    return found


def table(found: dict[str, dict]) -> str:
    heads = ["true quality", "gain over the start", *(name.replace("_", " ") for name in SHOWN), "empty"]
    lines = [
        f"{'run':<28}" + "".join(f"{head:>{max(len(head), 24 if i < 2 else 0) + 2}}" for i, head in enumerate(heads))
    ]
    for name, row in found.items():
        cells = [f"{part['mean']:.3f} [{part['low']:.3f}, {part['high']:.3f}]" for part in (row["oracle"], row["gain"])]
        cells += ["-" if row[column] is None else f"{row[column]:.2f}" for column in SHOWN] + [f"{row['empty']:.2f}"]
        widths = [max(len(head), 24 if i < 2 else 0) + 2 for i, head in enumerate(heads)]
        lines.append(f"{name:<28}" + "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True)))
    return "\n".join(lines)


@report_user_errors
def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    if args.output:
        check_new_file(args.output, "--output", args.overwrite)
    found = summarise(read_runs(args.files))
    if args.output:
        write_json(args.output, found)
    print(table(found))


if __name__ == "__main__":
    main()
