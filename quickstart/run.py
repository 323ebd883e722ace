"""The quickstart: ALaRM from data to comparison, at a size that fits a laptop.

mt and qa are small worlds, where the true quality of every answer is known. real-qa and real-mt are real data.
Each stage is a command that you could type; it is printed before it runs. Run again after an interruption: finished
stages are skipped, and an interrupted PPO run goes on from its last checkpoint.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from alarm.common.console import Table, print_table
from alarm.common.errors import UserError, report_user_errors
from alarm.common.flags import parser, positive_int, seed_value
from miniature.stages import ROOT, check_work_dir, run_stages, time_table

SMALL, REAL = ("mt", "qa"), ("real-mt", "real-qa")
ONLY = {"built": SMALL, "test_prompts": SMALL, "dev_prompts": SMALL, "data_dir": REAL, "splitter": ("real-qa",)}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    flags = parser(__doc__.split("\n\n")[0])
    add = flags.add_argument
    add("--task", default="mt", choices=(*SMALL, *REAL), help="mt, qa: small worlds; real-mt, real-qa: real data")
    add("--work_dir", help="folder of everything that is written (default: quickstart/work/TASK)")
    add("--steps", type=positive_int, help="at most this many steps in every training stage (for a quick look)")
    add("--seed", type=seed_value, default=42, help="seed of every stage")
    add("--workers", type=positive_int, default=2, help="commands at once, one thread each, where they can")
    add("--built", help="mt, qa: folder that `python -m miniature.build` wrote (default: the shipped one)")
    add("--test_prompts", type=positive_int, help="mt, qa: prompts on which results are reported (default: 500)")
    add("--dev_prompts", type=positive_int, help="mt, qa: prompts on which the combiner is chosen (default: 300)")
    add("--data_dir", help="real-mt, real-qa: folder of the sample (default: the shipped one)")
    add("--splitter", help="real-qa: a spaCy pipeline's name, pysbd or sentencizer (default: en_core_web_sm)")
    return flags.parse_args(argv)


def print_summary(blocks: list[Table | str]) -> None:
    for block in blocks:
        if isinstance(block, Table):
            print_table(block)
        else:
            print(block + "\n", flush=True)


@report_user_errors
def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    for flag, tasks in ONLY.items():
        if getattr(args, flag) is not None and args.task not in tasks:
            raise UserError(f"--{flag} belongs to --task {' and '.join(tasks)}; drop it")
    work = Path(args.work_dir or ROOT / "quickstart" / "work" / args.task)
    if args.task in SMALL:
        from . import small

        place = small.place_of(args, work)
        stages, total = small.stages_of(place), small.STAGES
    else:
        from .real_mt import mt_stages, mt_summary
        from .real_qa import qa_stages, qa_summary

        stages_of, summary_of = {"real-mt": (mt_stages, mt_summary), "real-qa": (qa_stages, qa_summary)}[args.task]
        args.splitter = args.splitter or "en_core_web_sm"
        stages = stages_of(args, work)
        total = len(stages)
    check_work_dir(work)
    try:
        done = run_stages(stages, work, total, args.workers)
    except KeyboardInterrupt:
        print("\ninterrupted; run the same command again to go on from here", file=sys.stderr, flush=True)
        sys.exit(130)
    print()
    blocks = small.summary_of(place, None if args.work_dir else small.COPY) if args.task in SMALL else summary_of(work)
    times = time_table(work, done)
    print_summary([*blocks[:-1], times, blocks[-1]] if args.task in SMALL else [times, *blocks])


if __name__ == "__main__":
    main()
