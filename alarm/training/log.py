"""A row of the log: what the responses of one step, or the records of an evaluation, are on average."""

from __future__ import annotations

from typing import TYPE_CHECKING

from accelerate.utils import gather_object

from ..api import HOLISTIC, LENGTH, RAW_HOLISTIC
from ..diagnostics import Seen, aspect_share, pearson
from ..scoring import metrics_of
from ..types import Measured, Payment, Rollout

if TYPE_CHECKING:
    from accelerate import Accelerator

    from ..recipe import RewardRecipe

# columns of the samples that are no metrics of an aspect
NOT_METRICS = (
    LENGTH,
    RAW_HOLISTIC,
    "reward",
    "gate_rate",
    "empty_rate",
    "aspect_paid",
    "holistic_paid",
    "response_paid",
)


def means(records: list[dict]) -> dict[str, float | None]:
    """The mean of every number in the records. None is no number: such a record has no part in that mean."""
    names = [name for name, value in records[0].items() if not isinstance(value, str) and name != "index"]
    return {name: mean([record[name] for record in records]) for name in names}


def mean(values: list[float | None]) -> float | None:
    """The mean of the values that are not None; None if there is none."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def gather_samples(
    rollout: Rollout, measured: Measured, payment: Payment, accelerator: Accelerator
) -> dict[str, list[float | None]]:
    """Name -> a value for each response of the union batch. Metrics of one step, what was paid, and the gate."""
    values = metrics_of(measured, payment)
    # of an answer without text it is not paid, and says nothing
    raw = measured.holistic.tolist()
    values[RAW_HOLISTIC] = [None if short else score for short, score in zip(rollout.too_short, raw, strict=True)]
    values["reward"] = [rewards.sum().item() for rewards in payment.rewards]
    values["gate_rate"] = payment.gate.tolist()
    values["empty_rate"] = rollout.too_short.float().tolist()
    values["aspect_paid"] = [paid.double().abs().sum().item() for paid in payment.aspects]
    values["holistic_paid"] = payment.holistic.abs().tolist()
    if payment.response is not None:
        values["response_paid"] = payment.response.tolist()
    rows = gather_object(list(zip(*values.values(), strict=True)))
    return {name: list(column) for name, column in zip(values, zip(*rows, strict=True), strict=True)}


def with_text(samples: dict[str, list[float]]) -> dict[str, list[float]]:
    """The responses that are not empty: the others have a penalty instead of a holistic reward."""
    return {
        name: [value for value, empty in zip(values, samples["empty_rate"], strict=True) if not empty]
        for name, values in samples.items()
    }


def seen(samples: dict[str, list[float]], payment: Payment, recipe: RewardRecipe, stats: dict) -> Seen:
    """What `Diagnostics` reads of one step, from `gather_samples`, the payment and the trainer's statistics."""
    texts = with_text(samples)
    parts = dict(zip(recipe.paid, payment.totals.T.tolist(), strict=False))  # without aspects there are no columns
    parts = {name: [recipe.paid[name] * value for value in values] for name, values in parts.items()}
    if recipe.reward_type != "aspect_only":
        parts["holistic"] = [recipe.holistic_weight * h for h in texts[HOLISTIC]]
    kl = stats.get("objective/kl")
    per_token = None if kl is None else kl / max(mean(samples[LENGTH]), 1)
    return Seen(samples["empty_rate"], texts[LENGTH], texts["reward"], texts["gate_rate"], parts, per_token, texts)


def training_row(samples: dict[str, list[float]], stats: dict) -> dict[str, float | None]:
    """The log entry of one step from `gather_samples` and the trainer's statistics.

    Means of the samples; `aspect_share`, the aspects' part of the reward that was paid, by size; `length_correlation/X`
    of the metrics X with the response length, over the responses with text (None if it is not defined).
    """
    row = {name: mean(values) for name, values in samples.items()}
    row["aspect_share"] = aspect_share(samples["aspect_paid"], samples["holistic_paid"])
    texts = with_text(samples)
    for name, values in texts.items():
        if name not in NOT_METRICS:
            known = [pair for pair in zip(values, texts[LENGTH], strict=True) if pair[0] is not None]
            row[f"length_correlation/{name}"] = pearson(*map(list, zip(*known, strict=True))) if known else None
    row["skipped"] = int(stats["ppo/updates"] == 0 and stats["ppo/skipped_nonfinite"] > 0)
    # a step that was skipped for its rewards has no KL
    chosen = {"kl": "objective/kl", "kl_coef": "objective/kl_coef", "entropy": "objective/entropy"}
    chosen |= {"policy_kl": "ppo/policy/kl_estimate", "early_stopped": "ppo/early_stopped"}
    return row | {name: stats[key] for name, key in chosen.items() if key in stats}
