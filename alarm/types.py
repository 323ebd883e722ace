"""The carriers that pass through one training iteration: rollout -> measured -> payment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# of one answer: a number, (start, end, value) spans of its characters, or None if the aspect does not apply to it
Score = float | list[tuple[int, int, float]] | None


@dataclass(frozen=True)
class Rollout:
    """Prompts and what the policy answered. Ids carry no padding; a response ends with EOS where one was sampled."""

    query_ids: list[torch.Tensor]  # B x (Q_i,) int64
    response_ids: list[torch.Tensor] | None  # B x (T_i,) int64; None if only texts are known
    queries: list[str]  # B prompts, as the reward models read them
    responses: list[str]  # B answers, special tokens left out
    examples: list[dict]  # B data rows
    too_short: torch.Tensor  # (B,) bool: still no text after one resampling


@dataclass(frozen=True)
class AspectScore:
    """What one aspect finds in B answers. Nothing is weighed, shaped or placed on tokens."""

    scores: list[Score]  # B
    metrics: dict[str, list[float | None]]  # name -> B values (rates, counts, normalised scores)
    raw: list[float | None] | None = None  # B numbers for a calibration to describe; None: those of the first metric
    elsewhere: float | None = None  # the value of each token that no span touches; None: such tokens carry none


@dataclass(frozen=True)
class TokenScore:
    """One aspect on B responses, placed on their tokens."""

    tokens: list[torch.Tensor]  # B x (K_i,) int64: the tokens that carry a value; one can stand there more than once
    values: list[torch.Tensor]  # B x (K_i,) float64: their values, which add up on a token
    metrics: dict[str, list[float | None]]  # name -> B values
    raw: list[float | None]  # B numbers for a calibration to describe


@dataclass(frozen=True)
class Measured:
    """All that reward models and aspects find in one rollout, before anything is paid."""

    lengths: list[int]  # B response tokens, EOS among them
    too_short: torch.Tensor  # (B,) bool
    holistic: torch.Tensor | None  # (B,) float32, raw scores; None if nobody asked for them
    aspects: dict[str, TokenScore]  # the aspects that were computed


@dataclass(frozen=True)
class Payment:
    """What PPO is paid, and its parts. PPO, the log, the files and the inspector all read this one."""

    rewards: list[torch.Tensor]  # B x (T_i,) float32: the aspect part, and the holistic part on the last token
    aspects: list[torch.Tensor]  # B x (T_i,) float32, weighted and gated: as paid
    holistic: torch.Tensor  # (B,) float64, w_h * h as paid; 0 if it was left out
    gate: torch.Tensor  # (B,) float64: 1 open, 0 closed, NaN if the holistic score is not finite
    h: torch.Tensor  # (B,) float64, the z-normalised holistic score
    share: torch.Tensor  # (B,) float64: of the aspect rewards that is paid
    holistic_share: torch.Tensor  # (B,) float64: of the holistic reward that is paid
