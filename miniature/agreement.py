"""How well each reward agrees with the truth, within prompts and across them. `python -m miniature.agreement`

Reads samples of `train_ppo --test --num_samples N` with a column `oracle`. For each reward:
    within      of the pairs of answers to one prompt of unequal quality, the share that it orders rightly (ties: half)
    across      rank correlation with true quality, over the first answer to each prompt
    length      change of the reward, in its own deviations, for one token more at equal quality, within prompts
Intervals are bootstraps over prompts, 95%.
"""

from __future__ import annotations

import argparse

import numpy as np

from alarm.api import Task
from alarm.common.bootstrap import interval, resample
from alarm.common.errors import UserError, report_user_errors
from alarm.common.files import check_new_file, write_json
from alarm.common.flags import parser, positive_int
from alarm.evaluation.best_of_n.samples import Samples, read_samples
from alarm.tasks.find import add_task_flag, find_task

TRUTH = "oracle"
LENGTH = "response_length"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    flags = parser(__doc__.split("\n\n")[0])
    add_task_flag(flags)
    add = flags.add_argument
    add("--samples", required=True, help="samples of train_ppo.py --test --test_do_sample --num_samples N")
    add("--holistic", nargs="*", default=[], help="folders of other holistic models, which score the same answers")
    add("--rm_max_batch_size", type=positive_int, default=64, help="texts per forward pass of a holistic model")
    add("--output", required=True, help="JSON file to write")
    add("--overwrite", action="store_true", help="replace --output if it exists")
    return flags.parse_args(argv)


def within(reward: np.ndarray, quality: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(P, K) twice -> for each prompt: pairs that are ordered rightly (ties count half), pairs of unequal quality."""
    first, second = np.triu_indices(reward.shape[1], 1)
    truth = np.sign(quality[:, first] - quality[:, second])
    right = (1 + truth * np.sign(reward[:, first] - reward[:, second])) / 2
    return (right * (truth != 0)).sum(1), (truth != 0).sum(1)


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks, equal values sharing the mean of theirs. (N,) -> (N,)."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts - 1) / 2)[inverse]


def correlations(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Correlation of x and y (N,) under each row of weights (D, N) -> (D,). NaN where one of them is constant."""
    weights = weights / weights.sum(1, keepdims=True)
    dx, dy = x - weights @ x[:, None], y - weights @ y[:, None]
    with np.errstate(invalid="ignore", divide="ignore"):
        return (weights * dx * dy).sum(1) / np.sqrt((weights * dx**2).sum(1) * (weights * dy**2).sum(1))


def length_effect(reward: np.ndarray, quality: np.ndarray, lengths: np.ndarray) -> float | None:
    """The least-squares coefficient of length beside quality, prompt by prompt centred; (P, K) thrice."""

    def centred(values: np.ndarray) -> np.ndarray:
        return (values - values.mean(1, keepdims=True)).ravel()

    deviation = reward.std()
    if deviation == 0:
        return None
    design = np.stack([centred(quality), centred(lengths)], axis=1)
    return float(np.linalg.lstsq(design, centred(reward) / deviation, rcond=None)[0][1])


def agreement(reward: np.ndarray, quality: np.ndarray, lengths: np.ndarray) -> dict:
    """The numbers of one reward. (P, K) thrice."""
    drawn = resample(len(reward)).prompts.astype(float)
    right, pairs = within(reward, quality)
    across = ranks(reward[:, 0]), ranks(quality[:, 0])
    one = np.ones((1, len(reward)))
    rank = float(correlations(*across, one)[0])
    return {
        "within": float(right.sum() / pairs.sum()) if pairs.any() else None,
        "within_interval": interval(drawn @ right / (drawn @ pairs)) if pairs.any() else None,
        "across": rank if np.isfinite(rank) else None,
        "across_interval": interval(correlations(*across, drawn)),
        "length": length_effect(reward, quality, lengths),
    }


def table(found: dict[str, dict]) -> str:
    lines = [f"{'reward':<26}{'within prompts':>24}{'across prompts':>24}{'length':>9}"]
    for name, row in found.items():
        cells = []
        for key in ("within", "across"):
            low, high = row[f"{key}_interval"] or (float("nan"), float("nan"))
            value = row[key]
            cells.append("-" if value is None else f"{value:.3f} [{low:.3f}, {high:.3f}]")
        length = "-" if row["length"] is None else f"{row['length']:+.3f}"
        lines.append(f"{name:<26}{cells[0]:>24}{cells[1]:>24}{length:>9}")
    return "\n".join(lines)


def rewards_of(task: Task, samples: Samples) -> dict[str, np.ndarray]:
    """Name -> (B,): the holistic score, each metric of the paid aspects (turned so that more is better), the length."""
    found = {"holistic": samples.raw}
    for aspect in task.aspects:
        if all(metric.no_aspect for metric in aspect.metrics):
            continue  # the truth and its parts
        for metric in aspect.metrics:
            values = samples.columns[metric.key]
            found[metric.name] = -values if metric.lower_wins else values
    return found | {"length": samples.columns[LENGTH]}


@report_user_errors
def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    check_new_file(args.output, "--output", args.overwrite)
    task, samples = find_task(args.task), read_samples(args.samples)
    if TRUTH not in samples.columns:
        raise UserError(f"{args.samples} has no column '{TRUTH}'; make it with the task file of a small world")
    many = set(samples.sizes.tolist())
    if len(many) > 1 or many == {1}:
        raise UserError(f"{args.samples} needs the same number of answers to each prompt, two or more; sample it anew")
    rewards = rewards_of(task, samples)
    if args.holistic:
        from alarm.models.holistic import HolisticModel

        limits = {"max_length": task.holistic_max_tokens, "batch_size": args.rm_max_batch_size}
        for name in args.holistic:
            rewards[f"holistic {name}"] = HolisticModel.load(name).score(samples.queries, samples.answers, **limits)
    shape = (-1, many.pop())
    truth, lengths = (samples.columns[name].reshape(shape) for name in (TRUTH, LENGTH))
    found = {
        name: agreement(np.asarray(values, dtype=float).reshape(shape), truth, lengths)
        for name, values in rewards.items()
        if np.isfinite(values).all()
    }
    left_out = sorted(rewards.keys() - found.keys())
    content = {"prompts": len(truth), "samples": shape[1], "true_quality": float(truth.mean())}
    write_json(args.output, content | {"rewards": found, "not_finite": left_out})
    print(f"{len(truth)} prompts, {shape[1]} answers each, true quality {truth.mean():.3f}")
    print(table(found))
    if left_out:
        print(f"left out, because a score is missing: {', '.join(left_out)}")
    print(f"wrote {args.output}")


if __name__ == "__main__":
    main()
