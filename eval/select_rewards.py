"""Select the aspect reward: which aspect contradicts the holistic reward least, between two answers of one policy?

python ./eval/select_rewards.py --greedy greedy.json --sampled sampled.json --task_type qa
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from alarm.common.errors import UserError, report_user_errors
from alarm.tasks.find import add_task_flag, find_task


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Measure how often each aspect contradicts the holistic reward, between greedy and sampled answers "
        "of the supervised policy (train_ppo.py --test, without and with --test_do_sample), and recommend the one that "
        "does so least. Prints tables and writes them with the paper's bar figure and a page to --output_dir, "
        "replacing an earlier selection.",
        allow_abbrev=False,
    )
    parser.add_argument("--greedy", type=Path, required=True, help="greedy generations of the policy, a JSON file")
    parser.add_argument("--sampled", type=Path, required=True, help="sampled generations of it, on the same prompts")
    add_task_flag(parser, "--task_type")
    parser.add_argument(
        "--drop_duplicates", action="store_true", help="keep the first row of a repeated query (default: an error)"
    )
    parser.add_argument(
        "--output_dir", type=Path, help="folder to write (default: <folder of --greedy>_results/selection)"
    )
    return parser.parse_args(argv)


@report_user_errors
def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)

    from alarm.common.console import screen
    from alarm.evaluation.compare import describe_conflicts
    from alarm.evaluation.report.report import check_report_folder, print_selection, write_selection_report
    from alarm.evaluation.runs import missing_metrics, read_run, require_same_metrics, require_same_queries
    from alarm.evaluation.selection import select_aspect

    greedy_path, sampled_path = (Path(os.path.abspath(path)) for path in (args.greedy, args.sampled))
    if greedy_path == sampled_path:
        raise UserError(f"--greedy and --sampled are both {args.greedy}; give two files")
    output = Path(os.path.abspath(args.output_dir or f"{greedy_path.parent}_results/selection"))
    check_report_folder(output)
    task = find_task(args.task_type)
    greedy, sampled = (read_run(path, task, args.drop_duplicates) for path in (greedy_path, sampled_path))
    require_same_queries("--greedy and --sampled", greedy.name, greedy, sampled.name, sampled)

    require_same_metrics("--greedy and --sampled", [greedy, sampled])
    if lacking := missing_metrics(task, greedy):
        print(f"not compared, because the files do not have it: {', '.join(lacking)}", flush=True)
    for line in describe_conflicts(task, [greedy, sampled]):
        print(f"warning: {line}", file=sys.stderr, flush=True)
    selection = select_aspect(greedy, sampled, task)
    try:
        write_selection_report(output, selection, task)
    except OSError as error:
        raise UserError(f"{output} cannot be written ({error.strerror}); give a writable --output_dir") from None
    print_selection(selection, task, screen())
    print(f"Figure, page and numbers: {output}")


if __name__ == "__main__":
    main()
