"""Train one aspect reward model of long-form QA (relevance, factuality or completeness) on human feedback."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from alarm.common.errors import UserError, report_user_errors
from alarm.common.flags import positive_int
from alarm.learning.fit import add_selection_flag, check_training, training_parser
from alarm.learning.reward_models import load_feedback_splits, train_aspect
from alarm.tasks.qa.aspects import MODEL_FOLDERS
from alarm.tasks.sentences import make_splitter

DATA = Path(os.path.relpath(Path(__file__).parent)) / "qa_feedback"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    flags = training_parser(__doc__, model_path="allenai/longformer-base-4096", num_epochs=5.0, batch_size=8, lr=3e-5)
    add = flags.add_argument
    add("--aspect", required=True, choices=tuple(MODEL_FOLDERS), help="what the model judges")
    for split, use in (("train", "trained on"), ("dev", "held out, on which the trained model is measured")):
        add(f"--{split}_file", default=str(DATA / f"{split}.json"), help=f"questions {use}")
        add(f"--{split}_feedback_file", default=str(DATA / f"{split}_feedback.json"), help="the feedback on them")
    add("--max_length", type=positive_int, default=2048, help="tokens of an input; what is longer loses its end")
    add(
        "--class_weights",
        default="none",
        choices=("none", "balanced"),
        help="relevance, factuality: weigh units in the loss so that error and no error count the same",
    )
    add_selection_flag(flags)
    add("--splitter", default="en_core_web_sm", help="sentence splitter: a spaCy pipeline's name, pysbd or sentencizer")
    return flags.parse_args(argv)


@report_user_errors
def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    check_training(args)
    if args.aspect == "completeness" and args.class_weights != "none":
        raise UserError("--class_weights is for relevance and factuality; completeness learns from pairs, leave it out")
    splitter = make_splitter(args.splitter)
    train, dev = load_feedback_splits(args)
    train_aspect(args.aspect, train, dev, splitter, args)


if __name__ == "__main__":
    main()
