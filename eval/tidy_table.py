"""Every number of generations files as one tidy table (seed, run, prompt, sample, metric, value), parquet and CSV.

python ./eval/tidy_table.py --generations runs/seed42 --output scores
"""

from __future__ import annotations

import argparse
from pathlib import Path

from alarm.common.errors import UserError, report_user_errors
from alarm.common.files import check_new_file
from alarm.common.flags import parser


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    flags = parser(__doc__.split("\n\n")[0])
    add = flags.add_argument
    add("--generations", nargs="+", type=Path, required=True, help="files, folders of files, or of seed folders")
    add("--output", type=Path, required=True, help="STEM of STEM.parquet, STEM.csv, STEM-prompts.parquet and .csv")
    add("--overwrite", action="store_true", help="replace these files if they exist")
    return flags.parse_args(argv)


@report_user_errors
def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)

    from alarm.evaluation.tidy import run_files, tidy, write_tables

    stem = args.output
    for name in (stem.name, f"{stem.name}-prompts"):
        for ending in (".parquet", ".csv"):
            check_new_file(stem.with_name(name + ending), "--output", args.overwrite)
    files = run_files(args.generations)
    try:
        import pandas  # noqa: F401
        import pyarrow  # noqa: F401
    except ImportError:
        raise UserError("the tables need pandas and pyarrow; pip install pandas pyarrow") from None
    scores, prompts = tidy(files)
    for path in write_tables(scores, prompts, stem):
        print(f"wrote {path}")
    counts = {name: scores[name].nunique() for name in ("seed", "run", "prompt", "metric")}
    print(f"{len(scores)} numbers: " + ", ".join(f"{count} {name}s" for name, count in counts.items()))


if __name__ == "__main__":
    main()
