"""The reward of a response: shape aspects, weigh them, combine them with the holistic reward (the paper's section 3).

`combine` is the method; the functions below it are its steps. All are pure functions of tensors. A batch of rewards is
a list of (T_i,) float32 tensors, one value per response token.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from .api import HOLISTIC_PART, RESPONSE_PART
from .combiners import group_moments
from .recipe import RewardRecipe
from .types import Measured, Payment, Scores, Shares, TokenScore

TOO_SHORT_HOLISTIC = -10.0  # instead of the z-normalised holistic reward of a response without text
Gather = Callable[[Tensor], tuple[Tensor, int]]  # rows of this process -> rows of all, and where these begin


def one_process(rows: Tensor) -> tuple[Tensor, int]:
    """The `Gather` of a single process."""
    return rows, 0


def combine(
    measured: Measured, recipe: RewardRecipe, groups: Tensor | None = None, gather: Gather = one_process
) -> Payment:
    """What each response of a rollout is paid, and its parts: everything computed once.

    groups: (B,) int64, equal for answers to one prompt. gather: for several processes, so that combiners read the
    responses of all.
    """
    raw = less_baseline(measured, recipe, groups, gather)
    h = normalise_holistic(raw, recipe.holistic_mean, recipe.holistic_std, measured.too_short)
    return pay(aspects_of(measured, recipe), measured.lengths, h, measured.too_short, recipe, groups, gather)


def less_baseline(
    measured: Measured, recipe: RewardRecipe, groups: Tensor | None, gather: Gather = one_process
) -> Tensor:
    """Raw holistic scores less their baseline, so that levels of different prompts do not count. -> (B,).

    `group`: the mean of the prompt's answers that have text. The others are in `measured.baseline`. A preference model
    learns from pairs, which leave the level of each prompt free.
    """
    if recipe.baseline == "none":
        return measured.holistic
    if measured.baseline is not None:
        return measured.holistic.double() - measured.baseline
    if recipe.baseline != "group" or groups is None:
        raise ValueError(f"the baseline {recipe.baseline!r} was not measured")
    table = torch.stack([measured.holistic.double(), groups.double(), (~measured.too_short).double()], dim=1)
    union, start = gather(table)
    return less_group_mean(union[:, 0], union[:, 1], union[:, 2] == 1)[start : start + len(groups)]


def without_group(measured: Measured, recipe: RewardRecipe) -> Measured:
    """Of answers that are not compared with others to their prompt: `recipe.level` stands for a group's mean."""
    if recipe.baseline != "group":
        return measured
    return replace(measured, baseline=torch.full(measured.holistic.shape, recipe.level, dtype=torch.float64))


def less_group_mean(raw: Tensor, groups: Tensor, counted: Tensor) -> Tensor:
    """Scores less the mean of their group, which is that of its counted responses. All (B,); -> (B,) float64."""
    _, ids = groups.unique(return_inverse=True)
    mean, _ = group_moments(raw.double()[:, None], ids, counted)
    return raw.double() - mean[:, 0]


def aspects_of(measured: Measured, recipe: RewardRecipe) -> dict[str, list[Tensor]]:
    """Name -> what is paid for it before weights and gate, B x (T_i,), for all that reaches the reward."""
    if recipe.length_mean is not None:
        return {"length": length_rewards(measured.lengths, recipe.length_mean)}
    return {
        name: aspect_rewards(measured.aspects[name], measured.lengths, recipe.shaping, recipe.placement)
        for name in recipe.paid_aspects
    }


def aspect_rewards(score: TokenScore, lengths: list[int], shaping: str, placement: str = "spans") -> list[Tensor]:
    """One aspect's value on each response token, shaped but not weighed; 0 on tokens that carry none. -> B x (T_i,).

    Values that meet on a token are shaped, then added. placement: `spans`, where the aspect put them;
    `mean_over_spans`, there and divided by their number, so that more of them earn no more; `last`, their sum on the
    last token; `uniform`, an equal part of their sum on each token (ABC's control, arXiv 2402.00782).
    """
    rewards = [torch.zeros(length) for length in lengths]
    for row, tokens, values in zip(rewards, score.tokens, score.values, strict=True):
        shaped = shape(values, shaping, score.best).float()
        if placement == "mean_over_spans":
            shaped = shaped / max(len(shaped), 1)
        if placement in ("spans", "mean_over_spans"):
            row.index_add_(0, tokens, shaped)
        elif placement == "last":
            row[-1:] = shaped.sum()
        else:
            row[:] = shaped.sum() / max(len(row), 1)
    return rewards


def aspect_totals(values: list[Tensor], shaping: str, placement: str, best: float = 0.0) -> Tensor:
    """The sums over tokens of `aspect_rewards`, in float64. values: B x (K_i,), of responses with tokens. -> (B,)."""
    counts = torch.tensor([len(row) for row in values])
    shaped = shape(torch.cat(values).double(), shaping, best)
    rows = torch.repeat_interleave(torch.arange(len(values)), counts)
    total = torch.zeros(len(values), dtype=torch.float64).index_add(0, rows, shaped)
    return total / counts.clamp(min=1) if placement == "mean_over_spans" else total


def shape(values: Tensor, shaping: str, best: float = 0.0) -> Tensor:
    """The values of an aspect, shaped one by one.

    `sigmoid`: sg(x), positive, so that crossing the threshold never lowers the total; but each value earns something,
    so that length is paid. `centred`: sg(x) - sg(best), which is 0 for a unit without fault and below 0 for the others.
    """
    if shaping == "none":
        return values
    return sigmoid_shape(values) - (0.0 if shaping == "sigmoid" else sigmoid_shape(values.new_tensor(best)))


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


def weigh_aspects(aspects: dict[str, list[Tensor]], factors: Tensor, lengths: list[int]) -> list[Tensor]:
    """Per response, sum over its K aspects of factor * rewards. factors: (B, K). -> B x (T_i,). Factor 0: left out."""
    total = [torch.zeros(length) for length in lengths]
    for k, rows in enumerate(aspects.values()):
        for i, factor in enumerate(factors[:, k].tolist()):
            if factor != 0:
                total[i] = total[i] + factor * rows[i]
    return total


def length_rewards(lengths: list[int], length_mean: float) -> list[Tensor]:
    """Zeros, with T / length_mean on the last token. -> B x (T_i,)."""
    return [_on_last_token(length, length / length_mean) for length in lengths]


def pay(
    aspects: dict[str, list[Tensor]],
    lengths: list[int],
    h: Tensor,
    too_short: Tensor,
    recipe: RewardRecipe,
    groups: Tensor | None = None,
    gather: Gather = one_process,
) -> Payment:
    """What each response is paid: its shares of w_k * aspect k and, on the last token, of w_h * h (alarm.combiners).

    aspects: name -> B x (T_i,), not weighed. h (B,) float64 normalised, too_short (B,) bool; groups, gather: as for
    `combine`. A response that is too short gets w_h * h (h = -10) and no aspect reward in every reward type. The gate
    is computed in every reward type, because the log reports how many responses reach it.
    """
    h = h.double()
    aspects = {name: [row.float().cpu() for row in aspects[name]] for name in recipe.paid if name in aspects}
    weights = h.new_tensor([recipe.paid[name] for name in aspects])
    gate = open_gate(h, too_short, recipe.threshold)

    # 1. what the combiner decides, for the responses of all processes
    sums = [h.new_tensor([row.double().sum().item() for row in rows]) for rows in aspects.values()]
    none = torch.full_like(h, -1.0)  # of no group
    table = torch.stack([h, gate, ~too_short, none if groups is None else groups, *sums], dim=1)
    union, start = gather(table)
    counted, found = union[:, 2] == 1, None if groups is None else union[:, 3].long()
    scores = Scores(union[:, 0], union[:, 1], union[:, 4:], weights, tuple(aspects), counted, found)
    shares = decide(scores, recipe)

    # 2. the part of this process
    mine = slice(start, start + len(h))
    share, holistic_share = shares.aspects[mine], shares.holistic[mine]
    response = None if shares.response is None else shares.response[mine]

    # 3. the rewards
    paid_holistic = _share_of(recipe.holistic_weight * h, holistic_share)
    paid_aspects = weigh_aspects(aspects, _share_of(weights, share), lengths)
    last = paid_holistic if response is None else paid_holistic + response
    rewards = [row + _on_last_token(len(row), value) for row, value in zip(paid_aspects, last.tolist(), strict=True)]
    totals = scores.aspects[counted]
    paid = _share_of(weights * scores.aspects[mine], share)
    parts = {HOLISTIC_PART: paid_holistic} | dict(zip(aspects, paid.T, strict=True))
    parts |= {} if response is None else {RESPONSE_PART: response}
    return Payment(rewards, paid_aspects, paid_holistic, response, gate, h, share, holistic_share, totals, parts)


def decide(scores: Scores, recipe: RewardRecipe) -> Shares:
    """What the combiner decides, aspects as (B, K). A response that is not counted gets w_h * h and nothing else."""
    shares = recipe.combiner(scores, recipe)
    share = shares.aspects if shares.aspects.dim() == 2 else shares.aspects[:, None].expand(-1, len(scores.names))
    short = ~scores.counted
    response = None if shares.response is None else shares.response.masked_fill(short, 0.0)
    return Shares(share.masked_fill(short[:, None], 0.0), shares.holistic.masked_fill(short, 1.0), response)


def total_rewards(scores: Scores, recipe: RewardRecipe) -> Tensor:
    """What each response is paid in all, in float64. -> (B,). `pay` places the same sums on tokens."""
    shares = decide(scores, recipe)
    total = _share_of(recipe.holistic_weight * scores.h, shares.holistic)
    total = total + _share_of(scores.weights * scores.aspects, shares.aspects).sum(1)
    return total if shares.response is None else total + shares.response


def _share_of(value: Tensor, share: Tensor) -> Tensor:
    """share * value. What is left out must leave no trace, and 0 * NaN would be one."""
    return torch.where(share == 0, 0.0, share * value)


def _on_last_token(length: int, value: float) -> Tensor:
    reward = torch.zeros(length)
    reward[-1:] = value
    return reward
