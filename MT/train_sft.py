"""Supervised start of translation: fine-tune mT5 or T5 on Spanish-English pairs, and measure BLEU on the dev pairs."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from alarm.common.errors import report_user_errors
from alarm.common.files import write_json
from alarm.common.launch import process_state
from alarm.learning import sft
from alarm.tasks.mt.spec import TASK


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    return sft.parse_args(TASK, __doc__, argv)


@report_user_errors
def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    sft.run_sft(TASK, args)
    measure(args)


def measure(args: argparse.Namespace) -> None:
    """BLEU and chrF of what was written to args.save_dir, added to its metrics.json."""
    from alarm.tasks.mt.quality import overlap_scores
    from alarm.training.generate import translate_split

    state = process_state()
    dev, translations = translate_split(TASK, "dev", args.save_dir, args, batch_size=64)
    scores = overlap_scores(translations, [TASK.answer(row) for row in dev])
    if state.is_main_process:
        path = Path(args.save_dir) / "metrics.json"
        write_json(path, {**json.loads(path.read_text()), **scores})
        print(f"greedy translations of {len(dev)} dev pairs: BLEU {scores['bleu']:.2f}, chrF {scores['chrf']:.2f}")
        print(f"wrote {args.save_dir}")


if __name__ == "__main__":
    main()
