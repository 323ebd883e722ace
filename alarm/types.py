"""The carriers that pass through one training iteration: rollout -> aspect scores -> reward scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

REWARD_TYPES = ("hierarchical", "holistic_only", "aspect_only", "weighted_sum")


@dataclass(frozen=True)
class Rollout:
    """Prompts and what the policy answered. Ids carry no padding; a response ends with EOS where one was sampled."""

    query_ids: list[torch.Tensor]  # B x (Q_i,) int64
    response_ids: list[torch.Tensor]  # B x (T_i,) int64
    queries: list[str]  # B prompts, as the data has them
    responses: list[str]  # B answers, special tokens left out
    examples: list[dict]  # B data rows
    too_short: torch.Tensor  # (B,) bool: still no text after one resampling


@dataclass(frozen=True)
class AspectScore:
    """One aspect on one rollout."""

    rewards: list[torch.Tensor]  # B x (T_i,) float32, on response tokens, already shaped, not yet weighted
    metrics: dict[str, list[float]]  # name -> B values (rates, counts, raw scores)


@dataclass(frozen=True)
class Payment:
    """What PPO is paid, and its parts. PPO, the log, the files and the inspector all read this one."""

    rewards: list[torch.Tensor]  # B x (T_i,) float32: the aspect part, and the holistic part on the last token
    aspects: list[torch.Tensor]  # B x (T_i,) float32, weighted and gated: as paid
    holistic: torch.Tensor  # (B,) float64, w_h * h as paid; 0 if it was left out
    gate: torch.Tensor  # (B,) float64: 1 open, 0 closed, NaN if the holistic score is not finite


@dataclass(frozen=True)
class RewardScores:
    """One rollout, scored and paid."""

    payment: Payment
    holistic: torch.Tensor  # (B,) float64, z-normalised
    metrics: dict[str, list[float]]  # name -> B values
    raw: torch.Tensor  # (B,) float32, the holistic model's scores
    aspects: dict[str, AspectScore]  # the aspects that were computed
