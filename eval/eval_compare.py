"""Compare the generations of several runs: metric means, pairwise win rates, inconsistency with the holistic reward.

python ./eval/eval_compare.py --generations_dir ./long-form-QA/model_generations/seed42 --task_type qa
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from alarm.errors import UserError, report_user_errors


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Compare every two runs of a folder of generation files (written by train_ppo.py --test), prompt "
        "by prompt, on every metric. Prints tables and writes <generations_dir>_results/eval-results.json, replacing "
        "the results of an earlier comparison.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--generations_dir", type=Path, required=True, help="folder of generation files, one *.json per run"
    )
    parser.add_argument(
        "--task_type", choices=("qa", "mt"), required=True, help="which task's metrics the files hold: qa or mt"
    )
    parser.add_argument(
        "--max_compare", type=int, help="compare this many prompts, drawn at random (default: all of them)"
    )
    parser.add_argument("--seed", type=int, default=42, help="seed of the draw of --max_compare (default: %(default)s)")
    parser.add_argument(
        "--drop_duplicates", action="store_true", help="keep the first row of a repeated query (default: an error)"
    )
    parser.add_argument(
        "--output", type=Path, help="results file (default: <generations_dir>_results/eval-results.json)"
    )
    return parser.parse_args(argv)


@report_user_errors
def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)

    from rich.console import Console

    from alarm.evaluation import compare, draw_prompts, is_results_file, print_results, read_folder
    from alarm.files import write_json

    # abspath drops a trailing slash and gives "." a name
    folder = Path(os.path.abspath(args.generations_dir))
    output = Path(os.path.abspath(args.output or f"{folder}_results/eval-results.json"))
    if output.parent == folder:
        raise UserError(f"--output {output} would be read as a run the next time; put it outside --generations_dir")
    replaced = output.exists()
    if replaced and not is_results_file(output):
        raise UserError(f"{output} exists and was not written by this script; move it away or give another --output")

    runs = read_folder(folder, args.task_type, args.drop_duplicates)
    compared = draw_prompts(runs, args.max_compare, args.seed)
    results = compare(compared)
    try:
        write_json(output, results)
    except OSError as error:
        raise UserError(f"{output} cannot be written ({error.strerror}); give a writable --output") from None

    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # for a run name that the terminal cannot show
    # 100 columns where there is no terminal to measure; names are text, never markup
    console = Console(width=None if sys.stdout.isatty() else 100, markup=False, emoji=False, highlight=False)
    total, used = len(runs[0].queries), len(compared[0].queries)
    prompts = f"all {total} prompts" if used == total else f"{used} of {total} prompts, drawn with seed {args.seed}"
    console.print(f"{folder}: {len(runs)} run{'s' if len(runs) > 1 else ''}, {prompts}\n", soft_wrap=True)
    print_results(results, console)
    console.print(f"Results{' (replacing the earlier ones)' if replaced else ''}: {output}", soft_wrap=True)


if __name__ == "__main__":
    main()
