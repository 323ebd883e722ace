"""The mathematics of PPO as pure functions of tensors.

Shapes: B samples, T response tokens (padded on the right), V vocabulary entries. `mask` is (B, T) bool, True on
response tokens. `total` sums a tensor over all processes (identity in a single one), so that every mean and variance
is that of the union batch. All arithmetic is in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Total = Callable[[Tensor], Tensor]

# float32 numbers alive at once while log-probabilities are computed: 64 MB for each intermediate tensor
CHUNK_ELEMENTS = 1 << 24


def identity(x: Tensor) -> Tensor:
    return x


# --- from logits to log-probabilities -------------------------------------------------------------------------------


def _rows_per_chunk(vocabulary: int, chunk_rows: int | None) -> int:
    return chunk_rows or max(1, CHUNK_ELEMENTS // vocabulary)


def _by_chunks(function: Callable[..., Tensor], rows: int, *tensors: Tensor) -> Tensor:
    """`function` of `rows` rows at a time, (N,). The backward pass computes it again: nothing of its inside is kept."""
    # split, not slices: the backward pass of n slices would allocate n gradients of the full size
    chunks = zip(*[x.split(rows) for x in tensors], strict=True)
    if torch.is_grad_enabled() and tensors[0].requires_grad:
        parts = [checkpoint(function, *chunk, use_reentrant=False, preserve_rng_state=False) for chunk in chunks]
    else:
        parts = [function(*chunk) for chunk in chunks]
    return torch.cat(parts)


class _TokenStatistics(torch.autograd.Function):
    """log p(y) = z_y - log sum_v exp z_v, and the entropy H = log sum_v exp z_v - sum_v p_v z_v, which has no gradient.

    From (N, V) logits and (N,) labels, `rows` rows at a time. Besides the logits a number for each row is kept.
    """

    @staticmethod
    def forward(ctx, logits: Tensor, labels: Tensor, rows: int) -> tuple[Tensor, Tensor]:
        log_sums, entropies = [], []
        for part in logits.split(rows):
            z = part.float()
            highest = z.amax(-1, keepdim=True)
            highest = torch.where(torch.isfinite(highest), highest, 0)
            weights = (z - highest).exp_()
            total = weights.sum(-1)
            log_sums.append(total.log() + highest[:, 0])
            entropies.append(log_sums[-1] - weights.mul_(z).sum(-1) / total)
        log_sum, entropy = torch.cat(log_sums), torch.cat(entropies)
        ctx.save_for_backward(logits, labels, log_sum)
        ctx.rows = rows
        ctx.mark_non_differentiable(entropy)
        return logits.gather(-1, labels[:, None]).squeeze(-1).float() - log_sum, entropy

    @staticmethod
    def backward(ctx, gradient: Tensor, _) -> tuple[Tensor, None, None]:
        """d log p(y) / d z_v = [v = y] - p_v"""
        logits, labels, log_sum = ctx.saved_tensors
        found = torch.empty_like(logits)
        parts = zip(*[x.split(ctx.rows) for x in (logits, labels, log_sum, gradient, found)], strict=True)
        for z, y, s, g, place in parts:
            slope = (z.float() - s[:, None]).exp_().mul_(-g[:, None])
            place.copy_(slope.scatter_add_(1, y[:, None], g[:, None]))
        return found, None, None


def token_statistics(logits: Tensor, labels: Tensor, chunk_rows: int | None = None) -> tuple[Tensor, Tensor]:
    """Log-probabilities of `labels` (B, T) under `logits` (B, T, V) of any float type, and entropies in nats.

    Both (B, T) float32; the entropies have no gradient. Rows go through float32 a bounded chunk at a time, in the
    backward pass too: no float32 (B, T, V) tensor is ever kept.
    """
    vocabulary = logits.shape[-1]
    rows = _rows_per_chunk(vocabulary, chunk_rows)
    found = _TokenStatistics.apply(logits.reshape(-1, vocabulary), labels.reshape(-1), rows)
    return tuple(x.view(labels.shape) for x in found)


def token_logprobs(logits: Tensor, labels: Tensor, chunk_rows: int | None = None) -> Tensor:
    """The log-probabilities of `token_statistics`."""
    return token_statistics(logits, labels, chunk_rows)[0]


def _chunk_entropy(logits: Tensor) -> Tensor:
    """H = log sum_v exp z_v - sum_v p_v z_v, for (N, V) logits."""
    logits = logits.float()
    log_sum = logits.logsumexp(-1)
    return log_sum - ((logits - log_sum[:, None]).exp() * logits).sum(-1)


def token_entropy(logits: Tensor, chunk_rows: int | None = None, differentiable: bool = False) -> Tensor:
    """Entropy (B, T) float32 in nats of the distributions `logits` (B, T, V), chunk by chunk as `token_statistics`.

    It has a gradient only if `differentiable`.
    """
    logits = logits if differentiable else logits.detach()
    vocabulary = logits.shape[-1]
    rows = _rows_per_chunk(vocabulary, chunk_rows)
    return _by_chunks(_chunk_entropy, rows, logits.reshape(-1, vocabulary)).view(logits.shape[:-1])


# --- KL penalty ------------------------------------------------------------------------------------------------------


def kl_penalty(logprobs: Tensor, ref_logprobs: Tensor, kind: str) -> Tensor:
    """Per-token penalty (B, T) from the log-probabilities (B, T) of the sampled tokens, d = log p - log p_ref.

    kl: d (may be negative), abs: |d|, mse: d^2 / 2. For `full` see `full_kl`.
    """
    d = logprobs - ref_logprobs
    if kind == "kl":
        return d
    if kind == "abs":
        return d.abs()
    if kind == "mse":
        return 0.5 * d.square()
    raise ValueError(f"unknown KL penalty {kind!r}: kl, abs or mse (full_kl computes 'full')")


@torch.no_grad()
def full_kl(logits: Tensor, ref_logits: Tensor, chunk_rows: int | None = None) -> Tensor:
    """KL(p || p_ref) = sum_v p_v (log p_v - log p_ref,v), (B, T) float32, from two (B, T, V) logits, chunk by chunk."""
    vocabulary = logits.shape[-1]
    rows = _rows_per_chunk(vocabulary, chunk_rows)
    parts = []
    for z, z_ref in zip(
        logits.reshape(-1, vocabulary).split(rows), ref_logits.reshape(-1, vocabulary).split(rows), strict=True
    ):
        log_p = z.float().log_softmax(-1)
        parts.append((log_p.exp() * (log_p - z_ref.float().log_softmax(-1))).sum(-1))
    return torch.cat(parts).view(logits.shape[:-1])


class FixedKLController:
    """A coefficient that stays as it is."""

    def __init__(self, value: float) -> None:
        self.value = value

    def update(self, current_kl: float, n_samples: int) -> None:
        """Leave the coefficient alone."""

    def state_dict(self) -> dict:
        return {"value": self.value}

    def load_state_dict(self, state: dict) -> None:
        self.value = state["value"]


class AdaptiveKLController(FixedKLController):
    """Proportional controller (arXiv 1909.08593, section 2.2).

    beta <- beta (1 + n / horizon * clip(KL / target - 1, -0.2, 0.2))
    """

    def __init__(self, value: float, target: float, horizon: float) -> None:
        super().__init__(value)
        self.target = target
        self.horizon = horizon

    def update(self, current_kl: float, n_samples: int) -> None:
        """Move the coefficient after `n_samples` responses of `current_kl` nats each on average."""
        error = min(max(current_kl / self.target - 1, -0.2), 0.2)
        self.value *= 1 + error * n_samples / self.horizon


# --- masked statistics -----------------------------------------------------------------------------------------------


def masked_sum(x: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Sum of `x` over the True entries of `mask`, of everything (a scalar) or along `dim`.

    What stands in the padding, NaN included, has no part.
    """
    return torch.where(mask.bool(), x, 0).sum(dim)


def masked_mean(x: Tensor, mask: Tensor, total: Total = identity, dim: int | None = None) -> Tensor:
    """Mean of `x` over the True entries of `mask`, of everything (a scalar) or along `dim`."""
    return total(masked_sum(x, mask, dim)) / total(mask.sum(dim))


def masked_var(x: Tensor, mask: Tensor, total: Total = identity) -> Tensor:
    """Unbiased variance over the True entries of `mask`: sum (x - mean)^2 / (n - 1); 0 where n is 1."""
    squares = total(masked_sum((x - masked_mean(x, mask, total)).square(), mask))
    return squares / (total(mask.sum()) - 1).clamp(min=1)


def masked_whiten(x: Tensor, mask: Tensor, shift_mean: bool = True, total: Total = identity) -> Tensor:
    """(x - mean) / sqrt(var + 1e-8), with the masked mean and variance; `shift_mean=False` adds the mean again."""
    mean, var = masked_mean(x, mask, total), masked_var(x, mask, total)
    whitened = (x - mean) * torch.rsqrt(var + 1e-8)
    return whitened if shift_mean else whitened + mean


# --- rewards and advantages ------------------------------------------------------------------------------------------


def place_scores(scores: Sequence[Tensor], mask: Tensor, actions: Tensor | None = None) -> Tensor:
    """Scores on tokens, (B, T) float32: score t of a (T_i,) vector on response token t, a scalar on the last action.

    `mask` (B, T) marks the T_i response tokens of sample i, which start in column 0. `actions` (B, T) marks those of
    them that the policy chose, at least one of each sample; left out, all of them. A vector of shape (1,) is a scalar.
    """
    actions = mask if actions is None else actions
    last = _last_columns(actions).tolist()
    placed = torch.zeros(mask.shape, dtype=torch.float32, device=mask.device)
    for row, (score, length) in enumerate(zip(scores, mask.sum(1).tolist(), strict=True)):
        score = torch.as_tensor(score, dtype=torch.float32, device=mask.device)
        if score.shape in ((), (1,)):
            placed[row, last[row]] = score
        elif score.shape == (length,):
            placed[row, :length] = score
        else:
            raise ValueError(
                f"score {row} has shape {tuple(score.shape)}; give a scalar, "
                f"or one value per response token: shape ({length},)"
            )
    if (lost := torch.where(actions, 0, placed).nonzero()).numel():
        row, column = lost[0].tolist()
        raise ValueError(f"score {row} pays token {column}, which response_masks masks; give masked tokens the score 0")
    return placed


def _last_columns(mask: Tensor) -> Tensor:
    """The column (B,) of the last True entry of each row of `mask` (B, T)."""
    return mask.shape[1] - 1 - mask.int().flip(1).argmax(1)


class RunningMoments:
    """Mean and variance of all scores so far, over the union batch of all processes (`total`).

    Merged as by Chan, Golub and LeVeque (1979): the mean and the sum of squared deviations of both parts.
    """

    def __init__(self) -> None:
        self.mean = 0.0
        self.squares = 0.0  # sum of squared deviations from the mean
        self.count = 0.0

    @property
    def std(self) -> float:
        """Unbiased standard deviation; 1 as long as all scores were the same, so that a division leaves them alone."""
        variance = self.squares / max(self.count - 1, 1.0)
        return variance**0.5 if variance > 0 else 1.0

    def update(self, scores: Tensor, total: Total = identity) -> None:
        """Take in the scores (B,) of one step."""
        everyone = torch.ones_like(scores, dtype=torch.bool)
        count, mean = float(total(everyone.sum())), masked_mean(scores, everyone, total)
        squares = float(total((scores - mean).square().sum()))
        moved, whole = float(mean) - self.mean, self.count + count
        self.squares += squares + moved**2 * self.count * count / whole
        self.mean += moved * count / whole
        self.count = whole

    def state_dict(self) -> dict:
        return {"mean": self.mean, "squares": self.squares, "count": self.count}

    def load_state_dict(self, state: dict) -> None:
        self.mean, self.squares, self.count = state["mean"], state["squares"], state["count"]


def scale_scores(placed: Tensor, mask: Tensor, std: float, mean: float = 0.0) -> Tensor:
    """Placed scores (B, T) such that the sum s of each row becomes (s - mean) / std.

    Every token is divided by `std`; `mean` is taken off at the last True entry of `mask`, where a scalar is paid.
    """
    shifted = placed.clone()
    shifted[torch.arange(len(placed), device=placed.device), _last_columns(mask)] -= mean
    return shifted / std


def clip_scores(placed: Tensor, limit: float) -> Tensor:
    """Placed scores (B, T), each row shrunk so far that its sum lies between -limit and limit."""
    sums = placed.sum(1, keepdim=True)
    return torch.where(sums.abs() > limit, placed * (limit / sums.abs()), placed)


def token_rewards(placed_scores: Tensor, kl: Tensor, kl_coef: float, mask: Tensor) -> Tensor:
    """r_t = score_t - beta KL_t on response tokens, 0 on padding; all (B, T)."""
    return torch.where(mask, placed_scores - kl_coef * kl, 0)


def gae(values: Tensor, rewards: Tensor, mask: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (arXiv 1506.02438): advantages and returns, both (B, T).

    delta_t = r_t + gamma V_{t+1} - V_t, with V = 0 after the last token
    A_t = delta_t + gamma lam A_{t+1}
    R_t = A_t + V_t

    t counts the tokens of `mask`: what stands between two of them is no step of its own, and has no meaning here.
    """
    mask = mask.bool()
    values = torch.where(mask, values, 0)
    rewards = torch.where(mask, rewards, 0)
    next_value = next_advantage = torch.zeros_like(values[:, 0])
    advantages = []
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        advantage = delta + gamma * lam * next_advantage
        advantages.append(advantage)
        next_advantage = torch.where(mask[:, t], advantage, next_advantage)
        next_value = torch.where(mask[:, t], values[:, t], next_value)
    advantages = torch.stack(advantages[::-1], dim=1)
    return advantages, advantages + values


# --- advantages without a value head: an answer against the others to the same prompt --------------------------------

GRPO_EPSILON = 1e-4  # beside the standard deviation, as in Hugging Face's GRPOTrainer


def sequence_returns(rewards: Tensor, mask: Tensor) -> Tensor:
    """The return of a response: the sum of its token rewards, without a discount. (B, T) -> (B,) float64.

    The KL penalty is a part of the token rewards, and so of the return, for rloo and grpo as for gae. The coefficient
    then means the same for all three. (The GRPO paper has the penalty in the loss.)
    """
    return torch.where(mask.bool(), rewards, 0).double().sum(1)


def group_rows(groups: Sequence[Hashable]) -> list[list[int]]:
    """The places of the responses of each group in a batch. N names -> one list of places a group.

    Raises ValueError for a group of one response, which has nothing to be compared with.
    """
    places: dict[Hashable, list[int]] = {}
    for place, group in enumerate(groups):
        places.setdefault(group, []).append(place)
    for group, rows in places.items():
        if len(rows) < 2:
            raise ValueError(f"group {group!r} has one response; give each prompt two or more")
    return list(places.values())


def group_advantages(returns: Tensor, groups: Sequence[Hashable], kind: str) -> Tensor:
    """One advantage a response from the returns of its group: those of one prompt. (N,), N names -> (N,) float64.

    rloo: A_i = R_i - mean of the other returns of the group (arXiv 2402.14740, equation 8)
    grpo: A_i = (R_i - mean) / (std + 1e-4), arXiv 2402.03300, section 4.1.2; the standard deviation divides by n - 1,
        as in Hugging Face's GRPOTrainer

    Each token of a response gets the advantage of its response. Both are 0 if all returns of a group are equal. They
    are not whitened: a batch of equal groups must not become noise of size 1.

    Raises ValueError for a group of one response and for another kind.
    """
    if kind not in ("rloo", "grpo"):
        raise ValueError(f"unknown advantage of a group {kind!r}: rloo or grpo")
    returns = returns.double()
    advantages = torch.zeros_like(returns)
    for rows in group_rows(groups):
        own = returns[rows]
        if own.min() == own.max():
            continue
        if kind == "rloo":
            advantages[rows] = own - (own.sum() - own) / (len(rows) - 1)
        else:
            advantages[rows] = (own - own.mean()) / (own.std() + GRPO_EPSILON)
    return advantages


# --- losses ----------------------------------------------------------------------------------------------------------


def policy_losses(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, cliprange: float
) -> tuple[Tensor, Tensor]:
    """Clipped policy loss of each token and where the clip binds, both (B, T); arXiv 1707.06347, equation 7.

    L_t = max(-A_t r_t, -A_t clip(r_t, 1 - eps, 1 + eps)), r_t = p(a_t) / p_old(a_t)
    """
    ratio = (logprobs - old_logprobs).exp()
    plain = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - cliprange, 1 + cliprange)
    return torch.max(plain, clipped), clipped > plain


def value_losses(values: Tensor, old_values: Tensor, returns: Tensor, cliprange_value: float) -> tuple[Tensor, Tensor]:
    """Clipped value loss of each token and where the clip binds, both (B, T).

    L_t = max((V_t - R_t)^2, (clip(V_t, V_old,t +- eps) - R_t)^2) / 2
    """
    near = torch.max(torch.min(values, old_values + cliprange_value), old_values - cliprange_value)
    plain = (values - returns).square()
    clipped = (near - returns).square()
    return 0.5 * torch.max(plain, clipped), clipped > plain


def kl_estimate(logprobs: Tensor, old_logprobs: Tensor) -> Tensor:
    """Non-negative estimate (B, T) of KL(old || new) on tokens drawn from the old policy.

    (r - 1) - log r, with r = p / p_old; its mean under p_old is the KL exactly
    """
    d = logprobs - old_logprobs
    return torch.expm1(d) - d


class LossSums(NamedTuple):
    """Sums over the response tokens of one mini-batch, float32 scalars: they add up over mini-batches and processes."""

    tokens: Tensor
    policy_loss: Tensor  # the only two with a gradient
    value_loss: Tensor
    ratio: Tensor
    policy_clipped: Tensor
    squared_log_ratio: Tensor
    log_ratio: Tensor
    kl_estimate: Tensor
    value_clipped: Tensor
    value_error: Tensor  # (V - R)^2
    value: Tensor
    entropy: Tensor


def loss_sums(
    logprobs: Tensor,
    values: Tensor | None,
    mask: Tensor,
    *,
    old_logprobs: Tensor,
    old_values: Tensor,
    advantages: Tensor,
    returns: Tensor,
    entropy: Tensor,
    cliprange: float,
    cliprange_value: float,
) -> LossSums:
    """Losses and statistics of one mini-batch, summed over its response tokens; all tensors (B, T).

    values None: there is no value head, and what is of values is 0.
    """
    if values is None:
        values = old_values = returns = torch.zeros_like(logprobs)
    policy, policy_clipped = policy_losses(logprobs, old_logprobs, advantages, cliprange)
    value, value_clipped = value_losses(values, old_values, returns, cliprange_value)
    with torch.no_grad():
        log_ratio = logprobs - old_logprobs
        statistics = [
            log_ratio.exp(),
            policy_clipped.float(),
            log_ratio.square(),
            log_ratio,
            kl_estimate(logprobs, old_logprobs),
            value_clipped.float(),
            (values - returns).square(),
            values,
            entropy,
        ]
        sums = [masked_sum(x, mask) for x in statistics]
    return LossSums(mask.sum().float(), masked_sum(policy, mask), masked_sum(value, mask), *sums)


def loss_statistics(sums: LossSums, vf_coef: float) -> dict[str, float]:
    """Token means, as Python floats, from sums over one or more mini-batches."""
    mean = LossSums(*[float(s.detach()) / max(float(sums.tokens), 1.0) for s in sums])
    return {
        "loss/policy": mean.policy_loss,
        "loss/value": mean.value_loss,
        "loss/total": mean.policy_loss + vf_coef * mean.value_loss,
        "policy/ratio": mean.ratio,
        "policy/clipfrac": mean.policy_clipped,
        "policy/approxkl": 0.5 * mean.squared_log_ratio,
        "policy/policykl": -mean.log_ratio,
        "policy/kl_estimate": mean.kl_estimate,
        "policy/entropy": mean.entropy,
        "val/clipfrac": mean.value_clipped,
        "val/error": mean.value_error,
        "val/vpred": mean.value,
    }


def ratio_guard(mean_ratio: float, threshold: float) -> bool:
    """True where the mean probability ratio is so far from 1 that the update must be left out."""
    return mean_ratio > threshold
