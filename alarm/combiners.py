"""The ways to combine: how much of the aspect rewards and of the holistic reward is paid for each response.

A combiner is a pure function (h, gate, recipe) -> (share of the aspects, share of the holistic reward). All are (B,)
float64. h: z-normalised holistic scores. gate: 1 where h >= recipe.threshold, else 0, NaN where h is not finite.
A task can bring its own (Task.combiners). Importing this loads no torch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from .rewards import RewardRecipe

Combiner = Callable[["Tensor", "Tensor", "RewardRecipe"], tuple["Tensor", "Tensor"]]


def hierarchical(h: Tensor, gate: Tensor, recipe: RewardRecipe) -> tuple[Tensor, Tensor]:
    """The holistic reward; the aspects as well once a response is good overall (the paper's)."""
    return gate, gate.new_ones(gate.shape)


def holistic_only(h: Tensor, gate: Tensor, recipe: RewardRecipe) -> tuple[Tensor, Tensor]:
    """The holistic reward alone."""
    return gate.new_zeros(gate.shape), gate.new_ones(gate.shape)


def aspect_only(h: Tensor, gate: Tensor, recipe: RewardRecipe) -> tuple[Tensor, Tensor]:
    """The aspects alone."""
    return gate.new_ones(gate.shape), gate.new_zeros(gate.shape)


def weighted_sum(h: Tensor, gate: Tensor, recipe: RewardRecipe) -> tuple[Tensor, Tensor]:
    """Both, always."""
    return gate.new_ones(gate.shape), gate.new_ones(gate.shape)


COMBINERS: dict[str, Combiner] = {
    "hierarchical": hierarchical,
    "holistic_only": holistic_only,
    "aspect_only": aspect_only,
    "weighted_sum": weighted_sum,
}
