"""From translation pairs: the text that base models are made from, and preferences that need no human.

A preference is made, not judged: the reference against the same reference damaged (words out of order, a word left
out, a word twice), or against the reference of another sentence. It teaches a reward model what is plainly wrong and
nothing finer.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

from alarm.common.errors import report_user_errors
from alarm.common.files import check_new_folder, whole_folder, write_json
from alarm.common.flags import parser, seed_value
from alarm.tasks.mt.data import load_rows, prompt


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    flags = parser(__doc__.split("\n\n")[0])
    add = flags.add_argument
    add("--train_file", default="quickstart/data/mt/train.jsonl", help="pairs of which both are made")
    add("--dev_file", default="quickstart/data/mt/dev.jsonl", help="pairs of which held-out preferences are made")
    add("--save_dir", required=True, help="new folder for text.json, train.jsonl and dev.jsonl")
    add("--seed", type=seed_value, default=42, help="seed of the damage")
    return flags.parse_args(argv)


def out_of_order(words: list[str], rng: random.Random) -> list[str]:
    shuffled = list(words)
    while shuffled == words and len(set(words)) > 1:
        rng.shuffle(shuffled)
    return shuffled


def left_out(words: list[str], rng: random.Random) -> list[str]:
    place = rng.randrange(len(words))
    return words[:place] + words[place + 1 :]


def doubled(words: list[str], rng: random.Random) -> list[str]:
    place = rng.randrange(len(words))
    return words[: place + 1] + words[place:]


DAMAGES = (out_of_order, left_out, doubled)


def preferences(rows: list[dict], rng: random.Random) -> list[dict]:
    """Two {prompt, chosen, rejected} for each pair: against its reference damaged, and against another one's."""
    made = []
    for row in rows:
        reference = row["translation"]["en"]
        damaged = " ".join(rng.choice(DAMAGES)(reference.split(), rng))
        other = rng.choice(rows)["translation"]["en"]
        made += [
            {"prompt": prompt(row), "chosen": reference, "rejected": rejected}
            for rejected in (damaged, other)
            if rejected.strip() and rejected != reference
        ]
    return made


@report_user_errors
def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    check_new_folder(args.save_dir, "--save_dir")
    rows = {"train": load_rows(args.train_file), "dev": load_rows(args.dev_file)}
    with whole_folder(args.save_dir) as folder:
        text = [{"text": prompt(row), "answer": [row["translation"]["en"]]} for row in rows["train"]]
        write_json(folder / "text.json", text)
        for split, part in rows.items():
            made = preferences(part, random.Random(args.seed))
            Path(folder / f"{split}.jsonl").write_text(
                "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in made), encoding="utf-8"
            )
            print(f"{split}: {len(made)} preferences from {len(part)} pairs")
    print(f"wrote {args.save_dir}")


if __name__ == "__main__":
    main()
