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
    baseline: torch.Tensor | None = None  # (B,) float64: raw holistic scores to compare with, if any


@dataclass(frozen=True)
class AspectScore:
    """What one aspect finds in B answers. Nothing is weighed, shaped or placed on tokens."""

    scores: list[Score]  # B
    metrics: dict[str, list[float | None]]  # name -> B values (rates, counts, normalised scores)
    raw: list[float | None] | None = None  # B numbers for a calibration to describe; None: those of the first metric
    elsewhere: float | None = None  # the value of each token that no span touches; None: such tokens carry none
    best: float = 0.0  # of a unit without fault: `centred` shaping pays 0 for it


@dataclass(frozen=True)
class TokenScore:
    """One aspect on B responses, placed on their tokens."""

    tokens: list[torch.Tensor]  # B x (K_i,) int64: the tokens that carry a value; one can stand there more than once
    values: list[torch.Tensor]  # B x (K_i,) float64: their values, which add up on a token
    metrics: dict[str, list[float | None]]  # name -> B values
    raw: list[float | None]  # B numbers for a calibration to describe
    best: float = 0.0  # of a unit without fault
    applies: list[bool] | None = None  # B: whether the aspect has a score for the response; None: for all of them

    def at(self, places: list[int]) -> TokenScore:
        """The same for the responses at `places`, which may be named several times."""
        return TokenScore(
            [self.tokens[i] for i in places],
            [self.values[i] for i in places],
            {name: [values[i] for i in places] for name, values in self.metrics.items()},
            [self.raw[i] for i in places],
            self.best,
            None if self.applies is None else [self.applies[i] for i in places],
        )


@dataclass(frozen=True)
class Measured:
    """All that reward models and aspects find in one rollout, before anything is paid."""

    lengths: list[int]  # B response tokens, EOS among them
    too_short: torch.Tensor  # (B,) bool
    holistic: torch.Tensor | None  # (B,) float32, raw scores; None if nobody asked for them
    aspects: dict[str, TokenScore]  # the aspects that were computed
    baseline: torch.Tensor | None = None  # (B,) float64, raw: subtracted from `holistic`; None: nothing is

    def at(self, places: list[int]) -> Measured:
        """The same for the responses at `places`, which may be named several times."""
        return Measured(
            [self.lengths[i] for i in places],
            self.too_short[places],
            None if self.holistic is None else self.holistic[places],
            {name: score.at(places) for name, score in self.aspects.items()},
            None if self.baseline is None else self.baseline[places],
        )


@dataclass(frozen=True)
class Scores:
    """What a combiner reads: the responses of one step, of all processes. The K aspects are those with a weight."""

    h: torch.Tensor  # (B,) float64, the z-normalised holistic score
    gate: torch.Tensor  # (B,) float64: 1 where h >= threshold, else 0, NaN if h is not finite
    aspects: torch.Tensor  # (B, K) float64, each aspect's sum over the response: shaped, not weighed
    weights: torch.Tensor  # (K,) float64
    names: tuple[str, ...]  # K
    counted: torch.Tensor  # (B,) bool: has text. The others have a penalty, and no part in any statistic
    groups: torch.Tensor | None  # (B,) int64, equal for answers to one prompt; None if each answer stands alone


@dataclass(frozen=True)
class Shares:
    """What a combiner decides for each response."""

    aspects: torch.Tensor  # (B,) or, one for each aspect, (B, K) float64: the share of its token rewards that is paid
    holistic: torch.Tensor  # (B,) float64: the share of w_h * h that is paid
    response: torch.Tensor | None = None  # (B,) float64, paid on the last token as well; None: nothing


@dataclass(frozen=True)
class Payment:
    """What PPO is paid, and its parts. PPO, the log, the files and the inspector all read this one."""

    rewards: list[torch.Tensor]  # B x (T_i,) float32: the aspect part; on the last token the two others as well
    aspects: list[torch.Tensor]  # B x (T_i,) float32, weighted and gated: as paid
    holistic: torch.Tensor  # (B,) float64, w_h * h as paid; 0 if it was left out
    response: torch.Tensor | None  # (B,) float64, what a combiner pays for a response as a whole, if it does
    gate: torch.Tensor  # (B,) float64: 1 open, 0 closed, NaN if the holistic score is not finite
    h: torch.Tensor  # (B,) float64, the z-normalised holistic score
    share: torch.Tensor  # (B, K) float64: of each aspect's rewards, that is paid
    holistic_share: torch.Tensor  # (B,) float64: of the holistic reward that is paid
    totals: torch.Tensor  # (N, K) float64, `Scores.aspects` of the N counted responses of all processes
    parts: dict[str, torch.Tensor]  # name -> (B,) float64, paid over the response; all of them add up to its reward
