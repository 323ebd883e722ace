"""Preferences of the oracle between sampled answers of a policy, some of them flipped. `python -m miniature.pairs`

Files of --save_dir: train-0.jsonl, train-10.jsonl, ... with that share (percent) of flipped pairs; dev.jsonl, whose
pairs are all as the oracle has it; pairs.json with the numbers. Rows {prompt, chosen, rejected}.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import statistics

from alarm.api import Task
from alarm.common.errors import report_user_errors
from alarm.common.files import check_new_folder, whole_folder, write_json
from alarm.common.flags import finite_float, parser, positive_int, seed_value, unit_share
from alarm.tasks.find import add_task_flag, find_task

from .sampling import load_parts, sampled, settings_for


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    flags = parser(__doc__.split("\n\n")[0])
    add_task_flag(flags)
    add = flags.add_argument
    add("--policy_ckpt", required=True, help="policy whose answers are compared")
    add("--train_file", required=True, help="prompts of the training pairs")
    add("--dev_file", required=True, help="prompts of the held-out pairs")
    add("--save_dir", required=True, help="new folder for the pairs")
    add("--train_prompts", type=positive_int, default=4000, help="use the first so many of --train_file")
    add("--dev_prompts", type=positive_int, default=300, help="use the first so many of --dev_file")
    add("--samples", type=positive_int, default=4, help="answers to a prompt; each two of unequal quality are a pair")
    add("--flips", type=unit_share, nargs="+", default=[0.0, 0.1, 0.25], help="shares of pairs that are turned round")
    add("--length_bias", type=finite_float, default=0.0, help="quality that the judge sees in each word more")
    add("--seed", type=seed_value, default=42, help="seed of the answers and the flips")
    return flags.parse_args(argv)


def compared(task: Task, args: argparse.Namespace, rows: list[dict], parts: tuple) -> list[dict]:
    """Pairs {prompt, chosen, rejected, margin} by true quality and the bias; margin: of true quality."""
    from alarm.scoring import measure

    policy, tokenizer, scorer, settings = parts
    pairs = []
    for rollout in sampled(task, settings, policy, tokenizer, rows, args.samples):
        quality = measure(rollout, scorer, ["oracle"]).aspects["oracle"].metrics["oracle"]
        for start in range(0, len(quality), args.samples):
            group = list(range(start, start + args.samples))
            for i, j in itertools.combinations(group, 2):
                a, b = rollout.responses[i], rollout.responses[j]
                margin = quality[i] - quality[j]
                seen = margin + args.length_bias * (len(a.split()) - len(b.split()))
                if a == b or seen == 0:
                    continue
                if seen < 0:
                    a, b, margin = b, a, -margin
                pairs.append({"prompt": rollout.queries[i], "chosen": a, "rejected": b, "margin": margin})
    return pairs


def flipped(pairs: list[dict], share: float, rng: random.Random) -> list[dict]:
    """The pairs, each turned round with probability `share`."""
    turned = (rng.random() < share for _ in pairs)
    return [
        pair | {"chosen": pair["rejected"], "rejected": pair["chosen"]} if turn else pair
        for pair, turn in zip(pairs, turned, strict=True)
    ]


def longer_chosen(pairs: list[dict]) -> float:
    """Of the pairs of unequal length, the share in which the longer answer is chosen."""
    lengths = [(len(pair["chosen"].split()), len(pair["rejected"].split())) for pair in pairs]
    return statistics.mean(a > b for a, b in lengths if a != b)


@report_user_errors
def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    check_new_folder(args.save_dir, "--save_dir")
    task = find_task(args.task)
    splits = {"train": task.load(args.train_file)[: args.train_prompts], "dev": task.load(args.dev_file)}
    splits["dev"] = splits["dev"][: args.dev_prompts]
    settings = settings_for(task, args.policy_ckpt, ["--seed", str(args.seed)])
    parts = (*load_parts(task, settings, ["oracle"], holistic=False), settings)
    found = {split: compared(task, args, rows, parts) for split, rows in splits.items()}
    files = {f"train-{round(100 * share)}": (found["train"], share) for share in args.flips} | {
        "dev": (found["dev"], 0.0)
    }
    report = {"length_bias": args.length_bias, "samples": args.samples}
    with whole_folder(args.save_dir) as folder:
        for name, (pairs, share) in files.items():
            made = flipped(pairs, share, random.Random(args.seed))
            fields = ({key: pair[key] for key in ("prompt", "chosen", "rejected")} for pair in made)
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in fields)
            (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
            report[name] = {"pairs": len(made), "flipped": share, "longer_chosen": longer_chosen(made)}
            print(
                f"{name}: {len(made)} pairs, the longer answer is chosen in {100 * report[name]['longer_chosen']:.1f}%"
            )
        write_json(folder / "pairs.json", report)
    print(f"wrote {args.save_dir}")


if __name__ == "__main__":
    main()
