"""The quickstart: ALaRM at a size that fits a laptop. `python -m quickstart.run --task mt`

Each stage is a command that you could type; it is printed before it runs. Run again after an interruption: finished
stages are skipped, and an interrupted PPO run goes on from its last checkpoint.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

from alarm.common.console import Table, print_table
from alarm.common.errors import report_user_errors
from alarm.common.flags import parser, positive_int, seed_value
from miniature.settings import WORLDS
from miniature.stages import ROOT, check_work_dir, run_stages, time_table

TASKS = (*WORLDS, "real-mt", "real-qa")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    flags = parser(__doc__.split("\n\n")[0])
    add = flags.add_argument
    add("--task", default="mt", choices=TASKS, help="mt, qa: a small world; real-mt, real-qa: a sample of real data")
    add("--work_dir", help="folder of everything that is written (default: quickstart/work/TASK)")
    add("--built", help="mt, qa: a world of miniature.build (default: the shipped one)")
    for name, size in (("train", 3000), ("dev", 200), ("test", 500)):
        add(f"--{name}_prompts", type=positive_int, default=size, help=f"mt, qa: so many {name} prompts")
    add("--data_dir", help="real-mt, real-qa: folder of the sample (default: the shipped one)")
    add("--splitter", default="en_core_web_sm", help="real-qa: a spaCy pipeline's name, pysbd or sentencizer")
    add("--steps", type=positive_int, help="at most this many steps in every training stage (for a quick look)")
    add("--seed", type=seed_value, default=42, help="seed of every stage")
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
    work = Path(args.work_dir or ROOT / "quickstart" / "work" / args.task)
    check_work_dir(work)
    if args.task in WORLDS:
        from quickstart.small_stages import small_stages, small_summary

        stages_of = partial(small_stages, WORLDS[args.task])
        summary_of = partial(small_summary, WORLDS[args.task])
    elif args.task == "real-qa":
        from quickstart.qa_stages import qa_stages as stages_of
        from quickstart.qa_stages import qa_summary as summary_of
    else:
        from quickstart.mt_stages import mt_stages as stages_of
        from quickstart.mt_stages import mt_summary as summary_of
    stages = stages_of(args, work)
    try:
        run_stages(stages, work)
    except KeyboardInterrupt:
        print("\ninterrupted; run the same command again to go on from here", file=sys.stderr, flush=True)
        sys.exit(130)
    print()
    print_summary([time_table(work, stages), *summary_of(work)])


if __name__ == "__main__":
    main()
