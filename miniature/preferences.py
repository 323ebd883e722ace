"""Preferences between sampled answers, ordered by the true quality, of which a known share is turned round.

    python -m miniature.preferences --task miniature/qa/task.py --samples FILE --flips 0.1 --save_path FILE

writes rows {prompt, chosen, rejected} for `python -m alarm.train_holistic`. Answers of equal quality make no pair.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
from statistics import fmean

from alarm.api import Task
from alarm.common.errors import UserError, report_user_errors
from alarm.common.files import check_new_file, write_text
from alarm.common.flags import finite_float, half_share, parser, positive_int, seed_value
from alarm.tasks.find import add_task_flag, task_of
from miniature.sample import load_samples

ORACLE = "oracle"  # the name of the aspect that is the true quality, in each world


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    flags = parser(__doc__.split("\n\n")[0])
    add = flags.add_argument
    add_task_flag(flags)
    add("--samples", required=True, help="file of miniature.sample")
    add("--flips", type=half_share, default=0.0, help="share of the pairs whose better answer is called the worse")
    add("--length_bias", type=finite_float, default=0.0, help="quality that the judge sees in each word more")
    add("--pairs_per_prompt", type=positive_int, default=3, help="at most so many pairs of a prompt's answers")
    add("--seed", type=seed_value, default=0, help="seed of the pairs and the flips")
    add("--save_path", required=True, help="new file")
    return flags.parse_args(argv)


def true_quality(task: Task, rows: list[dict], answers: list[str]) -> list[float]:
    """The oracle's word on each answer."""
    return task.aspect(ORACLE).score([task.prompt(row) for row in rows], answers, rows)


def make_pairs(
    task: Task,
    samples: list[tuple[dict, list[str]]],
    flips: float,
    pairs_per_prompt: int,
    rng: random.Random,
    length_bias: float = 0.0,
) -> list[dict]:
    """Rows {prompt, chosen, rejected}. The flips are exact: round(flips * pairs) of them, drawn at random.

    length_bias: true quality that the judge sees in each word more. It is added before the answers are ordered.
    """
    pairs = []
    for row, answers in samples:
        different = list(dict.fromkeys(answers))
        quality = true_quality(task, [row] * len(different), different)
        totals = [one + length_bias * len(text.split()) for one, text in zip(quality, different, strict=True)]
        options = [(a, b) for a, b in itertools.combinations(range(len(different)), 2) if totals[a] != totals[b]]
        for a, b in rng.sample(options, min(pairs_per_prompt, len(options))):
            better, worse = (a, b) if totals[a] > totals[b] else (b, a)
            pairs.append((task.prompt(row), different[better], different[worse]))
    turned = set(rng.sample(range(len(pairs)), round(flips * len(pairs))))
    return [
        {"prompt": prompt, "chosen": worse, "rejected": better}
        if number in turned
        else {"prompt": prompt, "chosen": better, "rejected": worse}
        for number, (prompt, better, worse) in enumerate(pairs)
    ]


@report_user_errors
def main(argv: list[str] | None = None) -> None:
    args, task = parse_args(argv), task_of(argv)
    check_new_file(args.save_path, "--save_path")
    pairs = make_pairs(
        task,
        load_samples(args.samples),
        args.flips,
        args.pairs_per_prompt,
        random.Random(f"pairs {args.seed}"),
        args.length_bias,
    )
    if not pairs:
        raise UserError(f"{args.samples} has no two answers of different quality to one prompt; sample more answers")
    write_text(args.save_path, "".join(f"{json.dumps(pair)}\n" for pair in pairs))
    longer = fmean(
        (len(pair["chosen"].split()) > len(pair["rejected"].split()))
        + 0.5 * (len(pair["chosen"].split()) == len(pair["rejected"].split()))
        for pair in pairs
    )
    print(f"{len(pairs)} pairs, {args.flips:.0%} turned round; the longer answer is preferred in {longer:.1%}")


if __name__ == "__main__":
    main()
