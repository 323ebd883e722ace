"""Feedback on the answers of a policy, in the format of qa-feedback: what a faultless annotator would say.

    python -m miniature.qa.feedback --samples FILE --save_path FILE

Some first answers, on which errors are marked, are made up instead (`--planted`): they have errors that the policy does
not make yet, and comes to make when it is trained.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

from alarm.common.errors import UserError, report_user_errors
from alarm.common.files import check_new_file
from alarm.common.flags import parser, seed_value, unit_share
from alarm.tasks.qa.feedback import ANSWERS
from miniature.qa.data import FEEDBACK_NOISE, feedback_row, make_answer, write_rows
from miniature.qa.world import SPLITS, names
from miniature.sample import load_samples


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    flags = parser(__doc__.split("\n\n")[0])
    add = flags.add_argument
    add("--samples", required=True, help="file of miniature.sample, with four answers to each prompt")
    add("--split", default="train", choices=SPLITS, help="whose names the made-up answers may use")
    add("--planted", type=unit_share, default=0.3, help="share of the first answers that are made up")
    add("--seed", type=seed_value, default=0, help="seed of the made-up answers")
    add("--save_path", required=True, help="new file")
    return flags.parse_args(argv)


@report_user_errors
def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    check_new_file(args.save_path, "--save_path")
    samples = load_samples(args.samples)
    if any(len(answers) != len(ANSWERS) for _, answers in samples):
        raise UserError(f"{args.samples} must hold {len(ANSWERS)} answers to each prompt; sample with --samples 4")
    rng, pool, found = random.Random(f"feedback {args.seed}"), names(args.split), []
    for row, answers in samples:
        planted = rng.random() < args.planted
        first = make_answer(row, FEEDBACK_NOISE, pool, rng) if planted else answers[0]
        found.append(feedback_row(row, [first, *answers[1:]], rng))
    write_rows(Path(args.save_path), found)
    errors = sum(bool(row["feedback"]["errors"]) for row in found)
    print(f"{len(found)} questions; {errors / len(found):.0%} of the first answers have errors; wrote {args.save_path}")


if __name__ == "__main__":
    main()
