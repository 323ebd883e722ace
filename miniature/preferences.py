"""Preferences between sampled answers, ordered by the true quality, of which a known share is turned round.

    python -m miniature.preferences --task miniature/qa/task.py --samples FILE --flips 0 0.1 --save_dir DIR

writes DIR/0.jsonl and DIR/10.jsonl, rows {prompt, chosen, rejected} for `python -m alarm.train_holistic`. The pairs are
the same; the shares of them (percent) that are turned round differ. Answers of equal quality make no pair.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
from statistics import fmean

from alarm.api import Task
from alarm.common.errors import UserError, report_user_errors
from alarm.common.files import check_new_folder, whole_folder, write_text
from alarm.common.flags import finite_float, half_share, parser, positive_int, seed_value
from alarm.tasks.find import add_task_flag, task_of
from miniature.sample import load_samples

ORACLE = "oracle"  # the name of the aspect that is the true quality, in each world


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    flags = parser(__doc__.split("\n\n")[0])
    add = flags.add_argument
    add_task_flag(flags)
    add("--samples", required=True, help="file of miniature.sample")
    add(
        "--flips", type=half_share, nargs="+", default=[0.0], help="shares of pairs whose better answer is called worse"
    )
    add("--length_bias", type=finite_float, default=0.0, help="quality that the judge sees in each word more")
    add("--pairs_per_prompt", type=positive_int, default=3, help="at most so many pairs of a prompt's answers")
    add("--seed", type=seed_value, default=0, help="seed of the pairs and the flips")
    add("--save_dir", required=True, help="new folder")
    return flags.parse_args(argv)


def true_quality(task: Task, rows: list[dict], answers: list[str]) -> list[float]:
    """The oracle's word on each answer."""
    return task.aspect(ORACLE).score([task.prompt(row) for row in rows], answers, rows)


def make_pairs(
    task: Task,
    samples: list[tuple[dict, list[str]]],
    pairs_per_prompt: int,
    rng: random.Random,
    length_bias: float = 0.0,
) -> list[dict]:
    """Rows {prompt, chosen, rejected}, at most `pairs_per_prompt` a prompt.

    length_bias: true quality that the judge sees in each word more. It is added before the answers are ordered.
    """
    pairs = []
    for row, answers in samples:
        different = list(dict.fromkeys(answers))
        quality = true_quality(task, [row] * len(different), different)
        seen = [one + length_bias * len(text.split()) for one, text in zip(quality, different, strict=True)]
        options = [(a, b) for a, b in itertools.combinations(range(len(different)), 2) if seen[a] != seen[b]]
        for a, b in rng.sample(options, min(pairs_per_prompt, len(options))):
            better, worse = (a, b) if seen[a] > seen[b] else (b, a)
            pairs.append({"prompt": task.prompt(row), "chosen": different[better], "rejected": different[worse]})
    return pairs


def flipped(pairs: list[dict], share: float, rng: random.Random) -> list[dict]:
    """The pairs, round(share * pairs) of them turned round."""
    turned = set(rng.sample(range(len(pairs)), round(share * len(pairs))))
    return [
        pair | {"chosen": pair["rejected"], "rejected": pair["chosen"]} if number in turned else pair
        for number, pair in enumerate(pairs)
    ]


def longer_chosen(pairs: list[dict]) -> float:
    """Of the pairs of unequal length, in words, the share in which the longer answer is chosen. NaN without any."""
    lengths = [(len(pair["chosen"].split()), len(pair["rejected"].split())) for pair in pairs]
    unequal = [a > b for a, b in lengths if a != b]
    return fmean(unequal) if unequal else math.nan


@report_user_errors
def main(argv: list[str] | None = None) -> None:
    args, task = parse_args(argv), task_of(argv)
    check_new_folder(args.save_dir, "--save_dir")
    samples = load_samples(args.samples)
    pairs = make_pairs(task, samples, args.pairs_per_prompt, random.Random(f"pairs {args.seed}"), args.length_bias)
    if not pairs:
        raise UserError(f"{args.samples} has no two answers of different quality to one prompt; sample more answers")
    with whole_folder(args.save_dir) as folder:
        for share in args.flips:
            found = flipped(pairs, share, random.Random(f"flips {args.seed}"))
            write_text(folder / f"{round(100 * share)}.jsonl", "".join(f"{json.dumps(pair)}\n" for pair in found))
            longer = longer_chosen(found)
            print(f"{len(found)} pairs, {share:.0%} turned round; the longer answer is preferred in {longer:.1%}")
    print(f"wrote {args.save_dir}")


if __name__ == "__main__":
    main()
