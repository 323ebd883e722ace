"""The reward of a response: shape aspects, weigh them, combine them with the holistic reward (the paper's section 3).

Pure functions of tensors. A batch of rewards is a list of (T_i,) float32 tensors, one value per response token.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from .types import REWARD_TYPES, AspectScore

TOO_SHORT_HOLISTIC = -10.0  # in place of the z-normalised holistic reward of a response without text


@dataclass(frozen=True)
class RewardRecipe:
    """How aspect and holistic rewards become the one reward that PPO sees."""

    reward_type: str  # one of REWARD_TYPES
    threshold: float  # hierarchical: aspects are added where h >= threshold
    holistic_weight: float  # w_h
    weights: dict[str, float] = field(default_factory=dict)  # aspect name -> w
    holistic_mean: float = 0.0  # of raw holistic scores, for the z-normalisation
    holistic_std: float = 1.0
    length_mean: float | None = None  # set: T / length_mean takes the place of the aspect sum (an ablation)

    @classmethod
    def from_flags(cls, args, weights: dict[str, float]) -> RewardRecipe:
        """From the parsed flags that both tasks share (alarm.flags)."""
        return cls(
            reward_type=args.reward_type,
            threshold=args.hierarchical_threshold,
            holistic_weight=args.holistic_reward_weight,
            weights=weights,
            holistic_mean=args.ultra_mean,
            holistic_std=args.ultra_std,
            length_mean=args.length_mean if args.length_reward else None,
        )

    def __post_init__(self):
        if self.reward_type not in REWARD_TYPES:
            raise ValueError(f"reward_type {self.reward_type!r} is none of {', '.join(REWARD_TYPES)}")


def sigmoid_shape(x: Tensor) -> Tensor:
    """Map rewards into (0, 1): 1 / (1 + exp(-x)). Positive, so crossing the threshold never lowers the total."""
    return torch.sigmoid(x)


def normalise_holistic(raw: Tensor, mean: float, std: float, too_short: Tensor) -> Tensor:
    """h = (raw - mean) / std, and -10 where `too_short`. raw (B,), too_short (B,) bool -> (B,) float32."""
    # in float64: a score exactly at the threshold must not fall below it by rounding
    h = (raw.double() - mean) / std
    return h.masked_fill(too_short, TOO_SHORT_HOLISTIC).float()


def weigh_aspects(aspects: dict[str, AspectScore], weights: dict[str, float]) -> list[Tensor]:
    """Per response, sum over aspects of weight * rewards. -> B x (T_i,). An aspect of weight 0 takes no part."""
    batches = [(weights[name], score.rewards) for name, score in aspects.items()]
    total = [torch.zeros_like(rewards) for rewards in batches[0][1]]
    for weight, rewards in batches:
        if weight != 0:
            total = [t + weight * r for t, r in zip(total, rewards, strict=True)]
    return total


def length_rewards(lengths: list[int], length_mean: float) -> list[Tensor]:
    """Zeros, with T / length_mean on the last token. -> B x (T_i,)."""
    return [_on_last_token(length, length / length_mean) for length in lengths]


def combine_rewards(
    aspect_rewards: list[Tensor], holistic: Tensor, too_short: Tensor, recipe: RewardRecipe
) -> list[Tensor]:
    """The token rewards of each response: aspects where the recipe lets them in, w_h * h on the last token.

    aspect_rewards B x (T_i,), holistic (B,) normalised, too_short (B,) bool -> B x (T_i,) float32.

    holistic_only: w_h * h. aspect_only: aspects. weighted_sum: both. hierarchical: both where h >= threshold, else
    w_h * h alone. A response that is too short gets w_h * h (h = -10) and no aspect reward in every reward type.
    """
    combined = []
    for aspects, h, empty in zip(aspect_rewards, holistic.float(), too_short.tolist(), strict=True):
        with_aspects, with_holistic = _parts_paid(h, empty, recipe)
        reward = aspects.float().clone() if with_aspects else torch.zeros(len(aspects), device=aspects.device)
        if with_holistic:
            reward = reward + _on_last_token(len(aspects), recipe.holistic_weight * h.item()).to(reward.device)
        combined.append(reward)
    return combined


def _parts_paid(h: Tensor, too_short: bool, recipe: RewardRecipe) -> tuple[bool, bool]:
    """Whether a response is paid its aspects, and its holistic reward h."""
    if too_short:
        return False, True
    with_aspects = {
        "holistic_only": False,
        "aspect_only": True,
        "weighted_sum": True,
        "hierarchical": not h < recipe.threshold,  # a NaN stays visible either way
    }[recipe.reward_type]
    return with_aspects, recipe.reward_type != "aspect_only"


def reward_sizes(
    rewards: list[Tensor], holistic: Tensor, too_short: Tensor, recipe: RewardRecipe
) -> tuple[list[float], list[float]]:
    """What `combine_rewards` paid, taken apart: per response sum_t |aspect part of token t|, and |w_h h|.

    rewards B x (T_i,) as combined, holistic (B,) normalised, too_short (B,) bool -> B sizes, B sizes; 0 for a part that
    was not paid.
    """
    aspect_sizes, holistic_sizes = [], []
    for reward, h, empty in zip(rewards, holistic.float(), too_short.tolist(), strict=True):
        _, with_holistic = _parts_paid(h, empty, recipe)
        paid = _on_last_token(len(reward), recipe.holistic_weight * h.item() if with_holistic else 0.0)
        aspect_sizes.append((reward.cpu().double() - paid.double()).abs().sum().item())
        holistic_sizes.append(paid.double().abs().sum().item())
    return aspect_sizes, holistic_sizes


def _on_last_token(length: int, value: float) -> Tensor:
    reward = torch.zeros(length)
    reward[-1:] = value
    return reward
