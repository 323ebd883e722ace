"""Compare the generations of several runs: metric means, pairwise win rates, inconsistency with the holistic reward.

python ./eval/eval_compare.py --generations_dir ./long-form-QA/model_generations/seed42 --task_type qa
"""

from __future__ import annotations

import argparse
import os
import sys
from itertools import combinations, islice
from pathlib import Path

from alarm.api import RESERVED, Task
from alarm.common.errors import UserError, report_user_errors
from alarm.common.flags import seed_value
from alarm.evaluation.features import CONTROLS, check_features
from alarm.evaluation.judge.judge import Comparison, Judge, Judgement, add_judge_flags, judge_from_flags
from alarm.tasks.find import add_task_flag, find_task


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Compare every two runs of a folder of generation files (written by train_ppo.py --test), prompt "
        "by prompt, on every metric, and by a judge with --use_gpt. Prints tables and writes "
        "<generations_dir>_results/eval-results.json and beside it eval-report/ (a page, Markdown, figures), replacing "
        "those of an earlier comparison.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--generations_dir",
        type=Path,
        required=True,
        help="folder of generation files, one *.json per run; or of one such folder per seed (seed42/, seed43/)",
    )
    add_task_flag(parser, "--task_type")
    parser.add_argument(
        "--max_compare", type=int, help="compare this many prompts, drawn at random (default: all of them)"
    )
    parser.add_argument(
        "--seed", type=seed_value, default=42, help="seed of the draw of --max_compare (default: %(default)s)"
    )
    parser.add_argument(
        "--drop_duplicates", action="store_true", help="keep the first row of a repeated query (default: an error)"
    )
    parser.add_argument(
        "--output", type=Path, help="results file (default: <generations_dir>_results/eval-results.json)"
    )
    parser.add_argument(
        "--control",
        nargs="+",
        choices=CONTROLS,
        default=["length"],
        metavar="FEATURE",
        help="beside the length-controlled rates, give those at equal values of these features of the answers: "
        f"{', '.join(CONTROLS)} (default: length alone)",
    )
    parser.add_argument(
        "--also",
        nargs="+",
        default=[],
        metavar="COLUMN",
        help="compare these columns of the files too, such as alarm.score adds; the higher value wins",
    )
    add_judge_flags(parser)
    return parser.parse_args(argv)


def scored_differently(task: Task, folder: Path, every: dict[str, list]) -> list[str]:
    """What the sidecars of the runs say of how they were scored, each difference once."""
    from alarm.evaluation.provenance import read_sidecar, scoring_differences

    files = {
        f"{seed}/{run.name}" if seed else run.name: folder / seed / f"{run.name}.json"
        for seed, runs in every.items()
        for run in runs
    }
    return scoring_differences(task, {name: read_sidecar(path) for name, path in files.items()})


def judge_all(judge: Judge, seeds: list[list]) -> list[dict[tuple[str, str], list[Judgement]]]:
    """Judge every two runs of every seed on every prompt. Returns one dict a seed, as `compare` takes them."""
    pairs = [[(a, b) for a, b in combinations(runs, 2)] for runs in seeds]
    comparisons = [
        Comparison(query, answer_a, answer_b)
        for of_seed in pairs
        for a, b in of_seed
        for query, answer_a, answer_b in zip(a.queries, a.generations, b.generations, strict=True)
    ]
    found = iter(judge.judge(comparisons))
    return [{(a.name, b.name): list(islice(found, len(a.queries))) for a, b in of_seed} for of_seed in pairs]


@report_user_errors
def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)

    from alarm.common.bootstrap import DRAWS
    from alarm.common.console import screen
    from alarm.common.files import check_writable, write_json
    from alarm.evaluation.compare import JUDGE, compare, describe_conflicts, is_results_file
    from alarm.evaluation.report.report import Setup, check_report_folder, print_results, write_report
    from alarm.evaluation.runs import draw_prompts, missing_metrics, read_seeds

    # abspath drops a trailing slash and gives "." a name
    folder = Path(os.path.abspath(args.generations_dir))
    output = Path(os.path.abspath(args.output or f"{folder}_results/eval-results.json"))
    report = output.with_name(f"{output.stem.removesuffix('-results')}-report")
    if output.parent == folder:
        raise UserError(f"--output {output} would be read as a run the next time; put it outside --generations_dir")
    replaced = output.exists()
    if replaced and not is_results_file(output):
        raise UserError(f"{output} exists and was not written by this script; move it away or give another --output")
    check_writable(output, "--output")
    check_report_folder(report)
    control = tuple(dict.fromkeys(args.control))
    check_features(control)
    judge = judge_from_flags(args, output.parent)

    task = find_task(args.task_type)
    need_text = judge is not None or control != ("length",)
    also = tuple(dict.fromkeys(name for name in args.also if name not in task.columns_in_order))
    if reserved := [name for name in also if name in (*RESERVED, JUDGE)]:
        raise UserError(f"--also {reserved[0]}: the name is not one of a metric; leave it out")
    every = read_seeds(folder, task, args.drop_duplicates, need_text, also)
    compared = {seed: draw_prompts(runs, args.max_compare, args.seed) for seed, runs in every.items()}
    first, used = next(iter(every.values())), next(iter(compared.values()))
    if judge is not None and len(first) < 2:
        raise UserError(f"{folder} holds one run, and a judge compares two; add another, or drop --use_gpt")

    if lacking := missing_metrics(task, used[0]):
        print(f"not compared, because the files do not have it: {', '.join(lacking)}", flush=True)
    for line in scored_differently(task, folder, every):
        print(line, file=sys.stderr if line.startswith("warning") else sys.stdout, flush=True)
    for line in describe_conflicts(task, *compared.values()):
        print(f"warning: {line}", file=sys.stderr, flush=True)
    judgements = judge_all(judge, list(compared.values())) if judge is not None else None
    found = compare(*compared.values(), task=task, judgements=judgements, control=control)
    setup = Setup(
        folder=str(args.generations_dir),
        prompts=len(used[0].queries),
        total_prompts=len(first[0].queries),
        draw_seed=args.seed,
        seeds=tuple(seed for seed in every if seed),
        draws=DRAWS,
        judge=judge.summary() if judge is not None else None,
    )
    try:
        write_json(output, found.published())
        write_report(report, found, setup, compared, judgements)
    except OSError as error:
        raise UserError(f"{output} cannot be written ({error.strerror}); give a writable --output") from None

    console = screen()
    print_results(found, setup, console)
    console.print(f"Results{' (replacing the earlier ones)' if replaced else ''}: {output}", soft_wrap=True)
    console.print(f"Page, Markdown and figures: {report}", soft_wrap=True)


if __name__ == "__main__":
    main()
