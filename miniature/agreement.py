"""How well rewards agree with the true quality: on answers to one prompt, and over prompts.

    python -m miniature.agreement --task miniature/qa/task.py --samples FILE --holistic NAME=DIR --save_path FILE

The samples should be of prompts that no reward model was trained on. For each reward:

    within   share of the pairs of answers to one prompt, of different quality, that it orders as the truth does; a tie
             counts half
    pooled   correlation with the truth over all answers
    between  correlation of the prompts' means with the truth's
    length   correlation with length beside the truth: partial, over answers less their prompt's mean
    value    its mean

An aspect that stands for a part of the truth (PARTS of the world) is compared with that part too: `own`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from alarm.api import Task
from alarm.common.bootstrap import DRAWS
from alarm.common.errors import UserError, report_user_errors
from alarm.common.files import check_writable, write_json
from alarm.common.flags import parser, positive_int
from alarm.tasks.find import add_task_flag, task_of
from alarm.training.flags import add_reward_flags
from miniature.preferences import ORACLE
from miniature.sample import load_samples


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    task = task_of(argv)
    flags = parser(__doc__.split("\n\n")[0])
    add = flags.add_argument
    add_task_flag(flags)
    add("--samples", required=True, help="file of miniature.sample")
    add("--holistic", nargs="+", default=[], metavar="NAME=DIR", help="preference models, with names for the table")
    add("--rm_max_batch_size", type=positive_int, default=64, help="texts per forward pass of a reward model")
    add("--save_path", required=True, help="new JSON file")
    add_reward_flags(flags, task)
    return flags.parse_args(argv)


# --- statistics -------------------------------------------------------------------------------------------------------


def correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Pearson's; NaN if one of them does not vary."""
    x, y = x - x.mean(), y - y.mean()
    scale = np.sqrt((x**2).sum() * (y**2).sum())
    return float((x * y).sum() / scale) if scale > 0 else float("nan")


def partial_correlation(x: np.ndarray, y: np.ndarray, given: np.ndarray) -> float:
    """Correlation of x and y once both are freed of their linear dependence on `given`."""
    xy, xz, yz = correlation(x, y), correlation(x, given), correlation(y, given)
    scale = np.sqrt((1 - xz**2) * (1 - yz**2))
    return float((xy - xz * yz) / scale) if scale > 0 else float("nan")


def ordered_alike(reward: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """reward, truth (P, K) -> per prompt: pairs of different truth that the reward orders alike (a tie: half), pairs.

    (P,) float, (P,) int.
    """
    difference = np.sign(truth[:, :, None] - truth[:, None, :])
    agrees = np.sign(reward[:, :, None] - reward[:, None, :]) * difference
    upper = np.triu(np.ones(truth.shape[1:] * 2, dtype=bool), 1) & (difference != 0)
    return ((agrees + 1) / 2 * upper).sum(axis=(1, 2)), upper.sum(axis=(1, 2))


def agreement(reward: np.ndarray, truth: np.ndarray, length: np.ndarray, draws: int = DRAWS, seed: int = 0) -> dict:
    """The statistics of a reward, all (P, K): P prompts with K answers each. `within` has a 95% bootstrap interval."""
    right, pairs = ordered_alike(reward, truth)
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, len(pairs), (draws, len(pairs)))
    shares = right[drawn].sum(1) / np.maximum(pairs[drawn].sum(1), 1)

    def inside(values: np.ndarray) -> np.ndarray:
        return (values - values.mean(1, keepdims=True)).ravel()

    return {
        "within": float(right.sum() / pairs.sum()) if pairs.sum() else float("nan"),
        "within_interval": [float(end) for end in np.quantile(shares, (0.025, 0.975))],
        "pairs": int(pairs.sum()),
        "pooled": correlation(reward.ravel(), truth.ravel()),
        "between": correlation(reward.mean(1), truth.mean(1)),
        "length": partial_correlation(inside(reward), inside(length), inside(truth)),
        "value": float(reward.mean()),
    }


# --- the command ------------------------------------------------------------------------------------------------------


def measure_samples(
    task: Task, samples: list[tuple[dict, list[str]]], holistic: dict[str, str], args: argparse.Namespace
) -> dict[str, np.ndarray]:
    """Name -> (P, K): all metrics of the task, the answers' lengths in words, and the preference models' raw scores."""
    import torch

    from alarm.api import Settings
    from alarm.models.holistic import HolisticModel
    from alarm.scoring import load_scorer, measure
    from alarm.types import Rollout

    rows = [row for row, answers in samples for _ in answers]
    answers = [answer for _, answers in samples for answer in answers]
    prompts = [(task.reward_prompt or task.prompt)(row) for row in rows]
    shape = (len(samples), -1)
    settings = Settings(args, None, torch.device("cpu"), torch.float32)
    scorer = load_scorer(task, [aspect.name for aspect in task.aspects], settings, None)
    rollout = Rollout([], None, prompts, answers, rows, torch.zeros(len(rows), dtype=torch.bool))
    measured = measure(rollout, scorer, scorer.aspects)
    scorer.close()
    found = {
        name: np.array(values, dtype=float).reshape(shape)
        for aspect in measured.aspects.values()
        for name, values in aspect.metrics.items()
    }
    found["length"] = np.array([len(answer.split()) for answer in answers], dtype=float).reshape(shape)
    for name, folder in holistic.items():
        model = HolisticModel.load(folder)
        scores = model.score(prompts, answers, task.holistic_max_tokens, args.rm_max_batch_size)
        found[f"holistic {name}"] = scores.double().numpy().reshape(shape)
    return found


def format_table(results: dict[str, dict]) -> str:
    width = max(map(len, results), default=0) + 2
    head = ("within", "95%", "own", "pooled", "between", "length", "value")
    lines = [f"{'':<{width}}" + "".join(f"{name:>16}" if name == "95%" else f"{name:>9}" for name in head)]
    for name, row in results.items():
        low, high = row["within_interval"]
        own = f"{row['own']:>9.3f}" if "own" in row else f"{'':>9}"
        numbers = "".join(f"{row[key]:>9.3f}" for key in head[3:])
        lines.append(f"{name:<{width}}{row['within']:>9.3f}{f'{low:.3f} to {high:.3f}':>16}{own}{numbers}")
    return "\n".join(lines)


@report_user_errors
def main(argv: list[str] | None = None) -> None:
    args, task = parse_args(argv), task_of(argv)
    check_writable(args.save_path, "--save_path")
    if Path(args.save_path).exists():
        raise UserError(f"--save_path {args.save_path} exists; give the path of a new file")
    holistic = {}
    for word in args.holistic:
        name, equals, folder = word.partition("=")
        if not equals or name in holistic:
            raise UserError(f"--holistic {word}: give NAME=DIR, each name once")
        holistic[name] = folder
    samples = load_samples(args.samples)
    if len({len(answers) for _, answers in samples}) != 1 or len(samples[0][1]) < 2:
        raise UserError(f"{args.samples} must hold the same number of answers, two or more, to each prompt")
    for aspect in task.aspects:
        aspect.check(args)
    found = measure_samples(task, samples, holistic, args)
    truth, length = found[ORACLE], found["length"]
    results = {name: agreement(values, truth, length) for name, values in found.items() if name != ORACLE}
    for name, part in own_parts(task).items():
        right, pairs = ordered_alike(found[name], found[part])
        results[name]["own"] = float(right.sum() / pairs.sum()) if pairs.sum() else float("nan")
    write_json(args.save_path, {"prompts": len(samples), "answers": len(samples[0][1]), "rewards": results})
    print(f"{len(samples)} prompts with {len(samples[0][1])} answers each; true quality {truth.mean():.3f}")
    print(format_table(results))


def own_parts(task: Task) -> dict[str, str]:
    """Metric of an aspect -> the metric of the part of the truth that it stands for: `oracle_NAME` for aspect NAME."""
    names = {metric.name for metric in task.metrics}
    return {
        aspect.metrics[0].name: f"{ORACLE}_{aspect.name}"
        for aspect in task.aspects
        if f"{ORACLE}_{aspect.name}" in names
    }


if __name__ == "__main__":
    main()
