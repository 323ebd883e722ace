"""Supervised start of long-form QA: fine-tune T5 on questions with their reference answers."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from alarm.common.errors import UserError, report_user_errors
from alarm.common.files import read_rows, require_fields, require_texts
from alarm.common.flags import positive_int
from alarm.learning.fit import check_training, leave_out_shared, training_parser

DATA = Path(os.path.relpath(Path(__file__).parent)) / "qa_feedback"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    flags = training_parser(__doc__, model_path="t5-large", num_epochs=10, batch_size=8, lr=1e-4)
    add = flags.add_argument
    add("--train_file", default=str(DATA / "train.json"), help="questions with answers (JSON list or JSON lines)")
    add(
        "--dev_file", default=str(DATA / "dev.json"), help="held-out questions; the epoch of least loss on them is kept"
    )
    add("--max_input_len", type=positive_int, default=1024, help="tokens of a prompt; what is longer loses its end")
    add("--max_generated_len", type=positive_int, default=200, help="tokens of an answer; what is longer loses its end")
    return flags.parse_args(argv)


def load_pairs(path: str) -> list[tuple[str, str]]:
    """(prompt, reference) for each reference of each question."""
    rows = read_rows(path)
    require_fields(rows, {"text": str}, path)
    require_texts(rows, "answer", path)
    pairs = [(row["text"], answer.strip()) for row in rows for answer in row["answer"] if answer.strip()]
    if not pairs:
        raise UserError(f"{path} holds no reference answer; every row needs at least one in 'answer'")
    return pairs


@report_user_errors
def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    check_training(args)
    train, dev = load_pairs(args.train_file), load_pairs(args.dev_file)
    train = leave_out_shared(train, dev, lambda pair: pair[0])

    from alarm.learning.sft import train_seq2seq

    train_seq2seq(train, dev, args, args.max_input_len, args.max_generated_len)


if __name__ == "__main__":
    main()
