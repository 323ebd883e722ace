"""Supervised start of translation: fine-tune mT5 or T5 on Spanish-English pairs, and measure BLEU on the dev pairs."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from alarm.common.errors import report_user_errors
from alarm.common.files import write_json
from alarm.common.flags import positive_int
from alarm.common.launch import process_state
from alarm.learning.fit import check_training, training_parser, warn_of_shared
from alarm.tasks.mt.data import DATASET, load_parts, prompt


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    flags = training_parser(__doc__, model_path="google/mt5-base", num_epochs=3, batch_size=32, lr=5e-4)
    add = flags.add_argument
    add("--train_file", help="pairs to train on: JSON list, JSON lines or parquet (default: of --dataset)")
    add("--dev_file", help="held-out pairs; the epoch of least loss on them is kept (default: of --dataset)")
    add("--dataset", default=DATASET, help="hub name, folder or file that gives the splits for which no file is named")
    add("--max_len", type=positive_int, default=128, help="tokens of a prompt, and of a translation; the rest is cut")
    return flags.parse_args(argv)


@report_user_errors
def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    check_training(args)
    rows = load_parts({"train": args.train_file, "dev": args.dev_file}, args.dataset)
    # Europarl repeats its formulas: what dev shares with training stays in training, else nobody would translate them
    warn_of_shared(map(prompt, rows["train"]), map(prompt, rows["dev"]))
    pairs = {split: [(prompt(row), row["translation"]["en"]) for row in part] for split, part in rows.items()}

    from alarm.learning.sft import train_seq2seq

    train_seq2seq(pairs["train"], pairs["dev"], args, args.max_len, args.max_len)
    measure(rows["dev"], args)


def measure(dev: list[dict], args: argparse.Namespace) -> None:
    """BLEU and chrF of what was written to args.save_dir, added to its metrics.json."""
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    from alarm.models.load import load_model
    from alarm.tasks.mt.quality import overlap_scores, translate
    from alarm.training.rollout import encode_prompts

    state = process_state()
    tokenizer = AutoTokenizer.from_pretrained(args.save_dir)
    model = load_model(AutoModelForSeq2SeqLM, args.save_dir, "the trained model", state.device, args.dtype)
    prompts, _ = encode_prompts(tokenizer, dev, [prompt(row) for row in dev], args.max_len)
    scores = overlap_scores(
        translate(model, tokenizer, prompts, args.max_len, batch_size=64), [row["translation"]["en"] for row in dev]
    )
    if state.is_main_process:
        path = Path(args.save_dir) / "metrics.json"
        write_json(path, {**json.loads(path.read_text()), **scores})
        print(f"greedy translations of {len(dev)} dev pairs: BLEU {scores['bleu']:.2f}, chrF {scores['chrf']:.2f}")
        print(f"wrote {args.save_dir}")


if __name__ == "__main__":
    main()
