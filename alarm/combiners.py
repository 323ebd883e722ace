"""The ways to combine: what each response is paid for its holistic score h and for its K aspects.

A combiner is a pure function (scores, recipe) -> Shares; see alarm.types for both. In the formulas S_k is the sum of
aspect k over the response, w_k its weight, w_h the weight of h, sg the sigmoid and theta the threshold. A response
without text has a penalty instead, whatever the combiner; it has no part in any statistic.

docs/combiners.md says when each fails. A task can bring its own (Task.combiners). Importing this loads no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .types import Scores, Shares

if TYPE_CHECKING:
    from torch import Tensor

    from .recipe import RewardRecipe

Combiner = Callable[["Scores", "RewardRecipe"], "Shares"]


@dataclass(frozen=True)
class Options:
    """The constants of the combiners. Each has a flag of its name."""

    gate_temperature: float = 0.25  # soft_gate: tau, above 0
    references: Mapping[str, float] = field(default_factory=dict)  # log_sigmoid: name -> ref; 0 if not named
    variance_cost: float = 0.5  # uncertainty: c
    failed_range: float = 0.05  # stratified: alpha
    passed_range: float = 0.05  # stratified: beta
    targets: Mapping[str, float] = field(default_factory=dict)  # lagrangian: aspect -> theta_k; 0 if not named
    multiplier_lr: float = 0.05  # lagrangian: step of the multipliers
    decoupled_raw: bool = False  # decoupled: not whitened, which is MO-GRPO
    decoupled_cv: bool = False  # decoupled: SAW's weights
    decoupled_conflict: float = 0.0  # decoupled: GD2PO's mask below this agreement; 0: no mask


# --- pay for the parts as they are -----------------------------------------------------------------------------------


def hierarchical(scores: Scores, recipe: RewardRecipe) -> Shares:
    """w_h h + 1[h >= theta] sum_k w_k S_k: aspects count once a response is good overall (the paper's)."""
    return Shares(scores.gate, _ones(scores))


def holistic_only(scores: Scores, recipe: RewardRecipe) -> Shares:
    """w_h h."""
    return Shares(_zeros(scores), _ones(scores))


def aspect_only(scores: Scores, recipe: RewardRecipe) -> Shares:
    """sum_k w_k S_k."""
    return Shares(_ones(scores), _zeros(scores))


def weighted_sum(scores: Scores, recipe: RewardRecipe) -> Shares:
    """w_h h + sum_k w_k S_k (Fine-grained RLHF, arXiv 2306.01693)."""
    return Shares(_ones(scores), _ones(scores))


def soft_gate(scores: Scores, recipe: RewardRecipe) -> Shares:
    """w_h h + sg((h - theta) / tau) sum_k w_k S_k. `hierarchical` as tau goes to 0."""
    return Shares(((scores.h - recipe.threshold) / recipe.options.gate_temperature).sigmoid(), _ones(scores))


def lagrangian(scores: Scores, recipe: RewardRecipe) -> Shares:
    """(K - sum_k sg(l_k)) w_h h + sum_k sg(l_k) w_k S_k (arXiv 2310.04373). `update_multipliers` moves l."""
    share = scores.h.new_tensor([recipe.multipliers.get(name, 0.0) for name in scores.names]).sigmoid()
    return Shares(share.expand(len(scores.h), -1), _ones(scores) * (1 - share).sum())


def update_multipliers(totals: Tensor, recipe: RewardRecipe) -> dict[str, float]:
    """One step of gradient descent on sum_k sg(l_k) (mean S_k - theta_k). totals: (N, K) S of one step. -> name -> l.

    A multiplier grows while its aspect is below its target. Means that are not finite move nothing.
    """
    found = {}
    for name, mean in zip(recipe.paid, totals.mean(0), strict=True):
        multiplier = recipe.multipliers.get(name, 0.0)
        share = totals.new_tensor(multiplier).sigmoid()
        slope = share * (1 - share) * (mean - recipe.options.targets.get(name, 0.0))
        found[name] = multiplier - recipe.options.multiplier_lr * slope.item() if slope.isfinite() else multiplier
    return found


# --- pay one number a response, on its last token --------------------------------------------------------------------


def log_sigmoid(scores: Scores, recipe: RewardRecipe) -> Shares:
    """w_h log sg(h - ref_h) + sum_k w_k log sg(S_k - ref_k) (LSC, arXiv 2402.00742)."""
    from torch.nn.functional import logsigmoid

    references = [recipe.options.references.get(name, 0.0) for name in ("holistic", *scores.names)]
    return _response(scores, logsigmoid(_parts(scores) - scores.h.new_tensor(references)) @ _weights(scores, recipe))


def worst_case(scores: Scores, recipe: RewardRecipe) -> Shares:
    """The least of w_h h and all w_k S_k (arXiv 2310.02743). The parts must have one scale."""
    return _response(scores, (_parts(scores) * _weights(scores, recipe)).amin(1))


def uncertainty(scores: Scores, recipe: RewardRecipe) -> Shares:
    """mean - c * variance of w_h h and all w_k S_k (arXiv 2310.02743). The parts must have one scale."""
    parts = _parts(scores) * _weights(scores, recipe)
    return _response(scores, parts.mean(1) - recipe.options.variance_cost * parts.var(1, correction=0))


# --- compare the answers to one prompt -------------------------------------------------------------------------------


def stratified(scores: Scores, recipe: RewardRecipe) -> Shares:
    """w_h ((1 - beta) + 2 beta m) behind the gate, w_h (-alpha + 2 alpha m) before it (HERO, arXiv 2510.07242).

    m is sum_k w_k S_k, from 0 for the least to 1 for the greatest answer to the prompt on the same side of the gate;
    1/2 if these are equal. Needs groups.
    """
    total = scores.aspects @ scores.weights
    passed = scores.gate == 1
    side = _group_ids(scores) * 2 + passed
    inside = scores.counted & scores.gate.isfinite()
    count = int(side.max()) + 1
    low = _zeros(scores).new_full((count,), float("inf")).scatter_reduce(0, side[inside], total[inside], "amin")[side]
    high = _zeros(scores).new_full((count,), -float("inf")).scatter_reduce(0, side[inside], total[inside], "amax")[side]
    m = ((total - low) / (high - low)).where(high != low, 0.5)
    alpha, beta = recipe.options.failed_range, recipe.options.passed_range
    paid = ((1 - beta) + 2 * beta * m).where(passed, -alpha + 2 * alpha * m)
    return _response(scores, recipe.holistic_weight * paid + 0 * scores.gate)  # NaN if h has no side


def decoupled(scores: Scores, recipe: RewardRecipe) -> Shares:
    """sum_j w_j (s_j - mean_g) / std_g over h and all S_k, whitened over the batch (GDPO, arXiv 2601.05242).

    mean_g, std_g: over the answers to the prompt, std with n - 1. A part that is equal for all of them gives 0.
    Options: not whitened (MO-GRPO, arXiv 2509.22047); weights times cv_j / mean cv, cv = std / |mean| over the batch
    (SAW, arXiv 2606.07705); answers with |sum_j A_j| / sum_j |A_j| below a bound get 0, and the rest of their group its
    kept share (GD2PO, arXiv 2606.16771). Needs groups.
    """
    parts, weights, counted = _parts(scores), _weights(scores, recipe), scores.counted
    ids = _group_ids(scores)
    mean, std = group_moments(parts, ids, counted)
    equal = std <= 1e-6 * (1 + mean.abs())  # false for NaN, which stays NaN
    advantages = ((parts - mean) / std).where(~equal, 0.0)
    if recipe.options.decoupled_cv:
        seen = parts[counted]
        cv = seen.std(0) / (seen.mean(0).abs() + 1e-6)
        weights = weights * cv / cv.mean().clamp(min=1e-12)
    weighed = advantages * weights
    total = weighed.sum(1)
    if recipe.options.decoupled_conflict > 0:
        size = weighed.abs().sum(1)
        kept = (total.abs() >= recipe.options.decoupled_conflict * size) | ~size.isfinite()
        share, _ = group_moments(kept.double()[:, None], ids, counted)
        total = total.where(kept, 0.0) * share[:, 0]
    if not recipe.options.decoupled_raw:
        seen = total[counted]
        spread = seen.std() if len(seen) > 1 else seen.new_tensor(0.0)
        total = 0.0 * total if spread <= 1e-6 else (total - seen.mean()) / spread
    return _response(scores, total)


COMBINERS: dict[str, Combiner] = {
    "hierarchical": hierarchical,
    "holistic_only": holistic_only,
    "aspect_only": aspect_only,
    "weighted_sum": weighted_sum,
    "soft_gate": soft_gate,
    "lagrangian": lagrangian,
    "log_sigmoid": log_sigmoid,
    "worst_case": worst_case,
    "uncertainty": uncertainty,
    "stratified": stratified,
    "decoupled": decoupled,
}
# those whose payment depends on h whatever its weight
READ_HOLISTIC = ("hierarchical", "holistic_only", "soft_gate", "worst_case", "uncertainty", "stratified")
# compare the answers to one prompt -> what an answer alone is worth: a dev file, --test, one string
ALONE: dict[str, str] = {"stratified": "hierarchical", "decoupled": "weighted_sum"}


# --- steps -----------------------------------------------------------------------------------------------------------


def _ones(scores: Scores) -> Tensor:
    return scores.h.new_ones(len(scores.h))


def _zeros(scores: Scores) -> Tensor:
    return scores.h.new_zeros(len(scores.h))


def _response(scores: Scores, value: Tensor) -> Shares:
    """Pay (B,) values and none of the parts."""
    return Shares(_zeros(scores), _zeros(scores), value)


def _parts(scores: Scores) -> Tensor:
    """(B, 1 + K): h, then the aspects. Infinity becomes NaN: a minimum or a sigmoid would hide it."""
    import torch

    parts = torch.cat([scores.h[:, None], scores.aspects], dim=1)
    return parts.where(parts.isfinite(), torch.nan)


def _weights(scores: Scores, recipe: RewardRecipe) -> Tensor:
    """(1 + K,): w_h, then the aspects'."""
    import torch

    return torch.cat([scores.h.new_tensor([recipe.holistic_weight]), scores.weights])


def _group_ids(scores: Scores) -> Tensor:
    """(B,) int64 from 0. ValueError if there are no groups, or if one has a single answer."""
    if scores.groups is None:
        raise ValueError("this combiner compares answers to one prompt; give groups of two or more")
    _, ids, counts = scores.groups.unique(return_inverse=True, return_counts=True)
    if int(counts.min()) < 2:
        raise ValueError("this combiner compares answers to one prompt, and a prompt has one answer; give two or more")
    return ids


def group_moments(x: Tensor, ids: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (n - 1) of each response's group. x (B, J) -> (B, J), (B, J).

    Over the counted responses. A group with one of them has deviation 0; one with none has mean 0.
    """
    count = int(ids.max()) + 1
    kept = x[counted]
    n = x.new_zeros(count, 1).index_add(0, ids[counted], x.new_ones(len(kept), 1))
    mean = x.new_zeros(count, x.shape[1]).index_add(0, ids[counted], kept) / n.clamp(min=1)
    squares = x.new_zeros(count, x.shape[1]).index_add(0, ids[counted], (kept - mean[ids[counted]]) ** 2)
    return mean[ids], (squares / (n - 1).clamp(min=1)).sqrt()[ids]
