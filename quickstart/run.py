"""The quickstart: ALaRM at a size that fits a laptop. `python -m quickstart.run --task mt`

Each stage is a command that you could type; it is printed before it runs. Run again after an interruption: finished
stages are skipped, and an interrupted PPO run goes on from its last checkpoint.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from alarm.common.console import Table, print_table
from alarm.common.errors import UserError, report_user_errors
from alarm.common.flags import parser, positive_int, seed_value
from alarm.tasks.mt.grammar import BACKENDS
from miniature.settings import WORLDS
from miniature.stages import (
    MARKER,
    ROOT,
    Stage,
    Together,
    check_work_dir,
    marker_of,
    run_stages,
    short,
    single,
    time_table,
)

SMALL = {"built": None, "train_prompts": 3000, "dev_prompts": 200, "test_prompts": 500}  # flags of the small worlds
REAL = {"data_dir": None, "splitter": "en_core_web_sm"}  # flags of the others
READ = {"mt": SMALL | {"grammar_backend": "rules"}, "qa": SMALL, "real-mt": REAL, "real-qa": REAL}  # and defaults


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """UserError for a flag that --task does not read."""
    flags = parser(__doc__.split("\n\n")[0])
    add = flags.add_argument
    add("--task", default="mt", choices=READ, help="mt, qa: a small world; real-mt, real-qa: a sample of real data")
    add("--work_dir", help="folder of everything that is written (default: quickstart/work/TASK)")
    add("--built", help="mt, qa: a world of miniature.build (default: the shipped one)")
    add(
        "--grammar_backend", choices=BACKENDS, help="mt: what finds errors of grammar (default: rules, which is faster)"
    )
    for name, size in SMALL.items():
        if name.endswith("_prompts"):
            add(f"--{name}", type=positive_int, help=f"mt, qa: so many {name.replace('_', ' ')} (default: {size})")
    add("--data_dir", help="real-mt, real-qa: folder of the sample (default: the shipped one)")
    add("--splitter", help=f"real-qa: a spaCy pipeline's name, pysbd or sentencizer (default: {REAL['splitter']})")
    add("--steps", type=positive_int, help="at most this many steps in every training stage (for a quick look)")
    add("--seed", type=seed_value, default=42, help="seed of every stage")
    args = flags.parse_args(argv)
    read = READ[args.task]
    unread = {name for flags_read in READ.values() for name in flags_read} - read.keys()
    if given := sorted(name for name in unread if getattr(args, name) is not None):
        raise UserError(f"--{given[0]} has no effect with --task {args.task}; drop it")
    for name, default in read.items():
        if getattr(args, name) is None:
            setattr(args, name, default)
    return args


def check_stages(work: Path, stages: Sequence[Stage | Together]) -> None:
    """Raise UserError for a folder of another quickstart: its answers would be compared with the new ones."""
    known = {marker_of(stage, work) for stage in single(stages)}
    if strange := sorted(set((work / MARKER).glob("*.json")) - known):
        raise UserError(
            f"--work_dir {short(work)} holds `{strange[0].stem}` of another quickstart; remove this folder (make "
            "clean-quickstart removes the default ones), or give a new one"
        )


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
    check_stages(work, stages)
    try:
        run_stages(stages, work)
    except KeyboardInterrupt:
        print("\ninterrupted; run the same command again to go on from here", file=sys.stderr, flush=True)
        sys.exit(130)
    print()
    print_summary([time_table(work, stages), *summary_of(work)])


if __name__ == "__main__":
    main()
