"""How well each reward agrees with the truth, within prompts and across them. `python -m miniature.agreement`

For a task with an aspect `oracle`. Answers are sampled from a policy, several to a prompt. For each reward:
    within      of the pairs of answers to one prompt of unequal quality, the share that it orders rightly (ties: half)
    across      rank correlation with true quality, over one answer of each prompt
    length      change of the reward, in its own deviations, for one token more at equal quality, within prompts
Intervals are bootstraps over prompts, 95%.
"""

from __future__ import annotations

import argparse

import numpy as np

from alarm.common.bootstrap import interval, resample
from alarm.common.errors import report_user_errors
from alarm.common.files import check_new_file, write_json
from alarm.common.flags import parser, positive_int
from alarm.tasks.find import add_task_flag, find_task

from .sampling import load_parts, sampled, settings_for

SHAPED = ("none", "sigmoid", "centred")


def parse_args(argv: list[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    flags = parser(__doc__.split("\n\n")[0] + " Other flags are those of train_ppo.py.")
    add_task_flag(flags)
    add = flags.add_argument
    add("--policy_ckpt", required=True, help="policy whose answers are scored")
    add("--prompts", required=True, help="held-out prompts")
    add("--limit", type=positive_int, default=300, help="use the first so many prompts")
    add("--samples", type=positive_int, default=4, help="answers to a prompt")
    add("--holistic", nargs="*", default=[], help="folders of holistic models")
    add("--output", required=True, help="JSON file to write")
    add("--overwrite", action="store_true", help="replace --output if it exists")
    return flags.parse_known_args(argv)


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
        "within": float(right.sum() / pairs.sum()),
        "within_interval": interval(drawn @ right / (drawn @ pairs)),
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


@report_user_errors
def main(argv: list[str] | None = None) -> None:
    args, flags = parse_args(argv)
    check_new_file(args.output, "--output", args.overwrite)
    task = find_task(args.task)
    rows = task.load(args.prompts)[: args.limit]

    from alarm.models.holistic import HolisticModel
    from alarm.rewards import aspect_rewards
    from alarm.scoring import measure

    settings = settings_for(task, args.policy_ckpt, flags)
    aspects = [aspect.name for aspect in task.aspects]
    policy, tokenizer, scorer = load_parts(task, settings, aspects, holistic=False)
    holistic = {f"holistic {name}": HolisticModel.load(name) for name in args.holistic}
    values: dict[str, list[float]] = {}
    try:
        for rollout in sampled(task, settings, policy, tokenizer, rows, args.samples):
            measured = measure(rollout, scorer, aspects)
            batch = {"truth": measured.aspects["oracle"].metrics["oracle"], "length": measured.lengths}
            for name, model in holistic.items():
                limits = {"max_length": task.holistic_max_tokens, "batch_size": settings.rm_max_batch_size}
                batch[name] = model.score(rollout.queries, rollout.responses, **limits).tolist()
            for name in aspects:
                for shaping in SHAPED if name != "oracle" else ():
                    paid = aspect_rewards(measured.aspects[name], measured.lengths, shaping)
                    batch[f"{name}, {shaping}"] = [row.double().sum().item() for row in paid]
            for name, row in batch.items():
                values.setdefault(name, []).extend(row)
    finally:
        scorer.close()
    arrays = {name: np.array(row, dtype=float).reshape(-1, args.samples) for name, row in values.items()}
    truth, lengths = arrays.pop("truth"), arrays["length"]
    found = {name: agreement(reward, truth, lengths) for name, reward in arrays.items()}
    content = {"policy": args.policy_ckpt, "prompts": len(truth), "samples": args.samples}
    write_json(args.output, content | {"true_quality": float(truth.mean()), "rewards": found})
    print(f"{len(truth)} prompts, {args.samples} answers each, true quality {truth.mean():.3f}")
    print(table(found))
    print(f"wrote {args.output}")


if __name__ == "__main__":
    main()
