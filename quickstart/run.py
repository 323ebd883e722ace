"""The quickstart: ALaRM from prompts to comparison, at a size that fits a laptop. `python -m quickstart.run`

Each stage is a command that you could type; it is printed before it runs. Run again after an interruption: finished
stages are skipped, and an interrupted PPO run goes on from its last checkpoint.

    mt, qa              a small world: start policy and reward models are shipped, the true quality of answers is known
    real-qa, real-mt    a sample of real data: every model is trained from scratch
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from alarm.common.console import Table, print_table
from alarm.common.errors import UserError, report_user_errors
from alarm.common.flags import parser, positive_int, seed_value
from miniature.stages import ROOT, check_work_dir, run_stages, time_table

TASKS = ("mt", "qa", "real-qa", "real-mt")
SMALL = {"built": None, "train_prompts": 3000, "dev_prompts": 300, "test_prompts": 500}  # flags of mt and qa
REAL = {"data_dir": None, "splitter": "en_core_web_sm"}  # flags of the others


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """UserError for a flag that --task does not read."""
    flags = parser(__doc__.split("\n\n")[0])
    add = flags.add_argument
    add("--task", default="mt", choices=TASKS, help="mt, qa: a small world; real-mt, real-qa: a sample of real data")
    add("--work_dir", help="folder of everything that is written (default: quickstart/work/TASK)")
    add("--steps", type=positive_int, help="at most this many steps in every training stage (for a quick look)")
    add("--seed", type=seed_value, default=42, help="seed of every stage")
    add("--built", help="mt, qa: folder that `python -m miniature.build` wrote (default: the shipped one)")
    for split in ("train", "dev", "test"):
        size = SMALL[f"{split}_prompts"]
        add(f"--{split}_prompts", type=positive_int, help=f"mt, qa: so many {split} prompts (default: {size})")
    add("--data_dir", help="real-qa, real-mt: folder of the sample (default: the shipped one)")
    add("--splitter", help=f"real-qa: a spaCy pipeline's name, pysbd or sentencizer (default: {REAL['splitter']})")
    args = flags.parse_args(argv)
    read, other = (REAL, SMALL) if args.task.startswith("real") else (SMALL, REAL)
    if given := [name for name in other if getattr(args, name) is not None]:
        raise UserError(f"--{given[0]} has no effect with --task {args.task}; drop it")
    for name, default in read.items():
        if getattr(args, name) is None:
            setattr(args, name, default)
    return args


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
    if args.task == "real-qa":
        from .real_qa import qa_stages as stages_of
        from .real_qa import qa_summary as summary
    elif args.task == "real-mt":
        from .real_mt import mt_stages as stages_of
        from .real_mt import mt_summary as summary
    else:
        from .small import small_stages as stages_of
        from .small import small_summary

        def summary(work: Path) -> list[Table | str]:
            return small_summary(args, work)

    stages = stages_of(args, work)
    check_work_dir(work)
    try:
        run_stages(stages, work)
    except KeyboardInterrupt:
        print("\ninterrupted; run the same command again to go on from here", file=sys.stderr, flush=True)
        sys.exit(130)
    print()
    print_summary([time_table(work, stages), *summary(work)])


if __name__ == "__main__":
    main()
