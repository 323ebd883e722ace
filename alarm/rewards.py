"""The reward of a response: shape aspects, weigh them, combine them with the holistic reward (the paper's section 3).

`combine` is the method; the functions below it are its steps. All are pure functions of tensors. A batch of rewards is
a list of (T_i,) float32 tensors, one value per response token.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .combiners import COMBINERS, Combiner
from .types import Measured, Payment, TokenScore

if TYPE_CHECKING:
    from argparse import Namespace

    from .api import Task

TOO_SHORT_HOLISTIC = -10.0  # instead of the z-normalised holistic reward of a response without text


@dataclass(frozen=True)
class RewardRecipe:
    """How aspect and holistic rewards become the one reward that PPO sees."""

    reward_type: str  # a name in COMBINERS, or of the task's own combiner
    threshold: float  # hierarchical: aspects are added where h >= threshold
    holistic_weight: float  # w_h
    weights: dict[str, float] = field(default_factory=dict)  # aspect name -> w
    holistic_mean: float = 0.0  # of raw holistic scores, for the z-normalisation
    holistic_std: float = 1.0
    length_mean: float | None = None  # set: T / length_mean takes the place of the aspect sum (an ablation)
    sigmoid_shaping: bool = False  # pass each value of an aspect through a sigmoid
    combiner: Combiner | None = None  # None: the one that `reward_type` names

    @classmethod
    def from_flags(cls, args: Namespace, task: Task) -> RewardRecipe:
        """From the parsed flags of train_ppo.py."""
        return cls(
            reward_type=args.reward_type,
            threshold=args.hierarchical_threshold,
            holistic_weight=args.holistic_reward_weight,
            weights=task.weights(args),
            holistic_mean=args.ultra_mean,
            holistic_std=args.ultra_std,
            length_mean=args.length_mean if args.length_reward else None,
            sigmoid_shaping=args.sigmoid_shaping,
            combiner=task.all_combiners[args.reward_type],
        )

    @property
    def paid_aspects(self) -> tuple[str, ...]:
        """The aspects whose values reach the reward. The others need not be computed to train."""
        if self.reward_type == "holistic_only" or self.length_mean is not None:
            return ()
        return tuple(name for name, weight in self.weights.items() if weight != 0)

    def __post_init__(self):
        if self.combiner is None:
            if self.reward_type not in COMBINERS:
                raise ValueError(f"reward_type {self.reward_type!r} is none of {', '.join(COMBINERS)}")
            object.__setattr__(self, "combiner", COMBINERS[self.reward_type])


def combine(measured: Measured, recipe: RewardRecipe) -> Payment:
    """What each response of a rollout is paid, and its parts: everything computed once."""
    h = normalise_holistic(measured.holistic, recipe.holistic_mean, recipe.holistic_std, measured.too_short)
    return combine_rewards(aspect_sum(measured, recipe), h, measured.too_short, recipe)


def aspect_sum(measured: Measured, recipe: RewardRecipe) -> list[Tensor]:
    """The weighted sum of the shaped aspects, or what takes its place, before any gate. -> B x (T_i,)."""
    if recipe.length_mean is not None:
        return length_rewards(measured.lengths, recipe.length_mean)
    if not measured.aspects:
        return [torch.zeros(length) for length in measured.lengths]
    shaped = {
        name: aspect_rewards(score, measured.lengths, recipe.sigmoid_shaping)
        for name, score in measured.aspects.items()
    }
    return weigh_aspects(shaped, recipe.weights)


def aspect_rewards(score: TokenScore, lengths: list[int], sigmoid_shaping: bool) -> list[Tensor]:
    """One aspect's value on each response token, shaped but not weighed; 0 on tokens that carry none. -> B x (T_i,).

    Values that meet on a token are shaped, then added.
    """
    rewards = [torch.zeros(length) for length in lengths]
    for row, tokens, values in zip(rewards, score.tokens, score.values, strict=True):
        shaped = sigmoid_shape(values) if sigmoid_shaping else values
        row.index_add_(0, tokens, shaped.float())
    return rewards


def sigmoid_shape(x: Tensor) -> Tensor:
    """Map rewards into (0, 1): 1 / (1 + exp(-x)). Positive, so crossing the threshold never lowers the total."""
    return torch.sigmoid(x)


def normalise_holistic(raw: Tensor, mean: float, std: float, too_short: Tensor) -> Tensor:
    """h = (raw - mean) / std, and -10 where `too_short`. raw (B,), too_short (B,) bool -> (B,) float64.

    float64, because the gate compares h with a threshold that may be one of these very scores, normalised in float64.
    """
    return ((raw.double() - mean) / std).masked_fill(too_short, TOO_SHORT_HOLISTIC)


def open_gate(holistic: Tensor, too_short: Tensor, threshold: float) -> Tensor:
    """The gate of the hierarchy: 1 if h >= threshold, else 0.

    holistic (B,) float64, too_short (B,) bool -> (B,) float64. A response that is too short has a closed gate. A
    response whose h is not finite is on neither side: NaN.
    """
    gate = (holistic.double() >= threshold).double().masked_fill(~torch.isfinite(holistic), torch.nan)
    return gate.masked_fill(too_short, 0.0)


def weigh_aspects(rewards: dict[str, list[Tensor]], weights: dict[str, float]) -> list[Tensor]:
    """Per response, sum over aspects of weight * rewards. -> B x (T_i,). An aspect of weight 0 takes no part."""
    total = [torch.zeros_like(row) for row in next(iter(rewards.values()))]
    for name, rows in rewards.items():
        if weights[name] != 0:
            total = [t + weights[name] * row for t, row in zip(total, rows, strict=True)]
    return total


def length_rewards(lengths: list[int], length_mean: float) -> list[Tensor]:
    """Zeros, with T / length_mean on the last token. -> B x (T_i,)."""
    return [_on_last_token(length, length / length_mean) for length in lengths]


def combine_rewards(aspects: list[Tensor], holistic: Tensor, too_short: Tensor, recipe: RewardRecipe) -> Payment:
    """What each response is paid: its share of the aspects, and of w_h * h on the last token (see alarm.combiners).

    aspects B x (T_i,), holistic (B,) float64 normalised, too_short (B,) bool.

    A response that is too short gets w_h * h (h = -10) and no aspect reward in every reward type. The gate is computed
    in every reward type, because the log reports how many responses reach it.
    """
    gate = open_gate(holistic, too_short, recipe.threshold)
    share, holistic_share = recipe.combiner(holistic, gate, recipe)
    share, holistic_share = share.masked_fill(too_short, 0.0), holistic_share.masked_fill(too_short, 1.0)
    paid_holistic = torch.where(holistic_share == 0, 0.0, holistic_share * (recipe.holistic_weight * holistic))
    # what is left out must leave no trace, and 0 * NaN would be one
    paid_aspects = [
        torch.zeros(len(row)) if part == 0 else part * row.float().cpu()
        for row, part in zip(aspects, share.tolist(), strict=True)
    ]
    rewards = [
        row + _on_last_token(len(row), value) for row, value in zip(paid_aspects, paid_holistic.tolist(), strict=True)
    ]
    return Payment(rewards, paid_aspects, paid_holistic, gate, holistic, share, holistic_share)


def _on_last_token(length: int, value: float) -> Tensor:
    reward = torch.zeros(length)
    reward[-1:] = value
    return reward
