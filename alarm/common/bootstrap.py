"""Shares of prompts with their uncertainty: a bootstrap over prompts, and over seeds if there are several.

A share is sum(numerator) / sum(denominator) over prompts, so that win rates, (W + T/2)/N and inconsistency are one
thing. Seeds answer the same prompts, so both are resampled at once (a crossed or "pigeonhole" bootstrap, Owen 2007).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

DRAWS = 2000
LEVEL = 0.95
MIN_PROMPTS = 20  # fewer say nothing about a regression of two parameters


@dataclass(frozen=True)
class Resamples:
    """D random re-weightings of N prompts and S seeds, shared by everything that is compared."""

    prompts: np.ndarray  # (D, N) float32, how often each prompt was drawn; rows sum to N
    seeds: np.ndarray  # (D, S) float64; rows sum to 1


def resample(prompts: int, seeds: int = 1, draws: int = DRAWS, random_seed: int = 0) -> Resamples:
    """Draw N prompts (or other independent units), and of S > 1 seeds S - 1, with replacement, `draws` times.

    S - 1 of S make the variance between seeds unbiased (Rao & Wu 1988); S of S would understate it by a third at S = 3.
    """
    random = np.random.default_rng(random_seed)
    counts = np.empty((draws, prompts), dtype=np.float32)
    for row in counts:
        row[:] = np.bincount(random.integers(prompts, size=prompts), minlength=prompts)
    if seeds == 1:
        return Resamples(counts, np.ones((draws, 1)))
    drawn = random.integers(seeds, size=(draws, seeds - 1))
    return Resamples(counts, (drawn[:, :, None] == np.arange(seeds)).sum(axis=1) / (seeds - 1))


def share(numerator: np.ndarray, denominator: np.ndarray) -> float | None:
    """100 * sum(numerator) / sum(denominator); None if the denominator is empty. (N,), (N,) -> percent."""
    total = float(np.sum(denominator))
    return 100 * float(np.sum(numerator)) / total if total else None


def resampled_shares(numerator: np.ndarray, denominator: np.ndarray, resamples: Resamples) -> np.ndarray:
    """`share` in every draw, averaged over the drawn seeds. (S, C, N) twice -> (D, C) percent, NaN if undefined."""
    seeds, series, prompts = numerator.shape
    draws = len(resamples.prompts)

    def sums(terms: np.ndarray) -> np.ndarray:
        flat = terms.reshape(seeds * series, prompts).astype(np.float32)
        return (resamples.prompts @ flat.T).reshape(draws, seeds, series).astype(np.float64)

    with np.errstate(invalid="ignore", divide="ignore"):
        shares = 100 * sums(numerator) / sums(denominator)
        weights = resamples.seeds[:, :, None] * np.isfinite(shares)
        return np.where(weights > 0, weights * shares, 0).sum(axis=1) / weights.sum(axis=1)


def resampled_means(values: np.ndarray, resamples: Resamples) -> np.ndarray:
    """The mean over the drawn prompts of C finite series. (N, C) -> (D, C)."""
    mean = values.mean(axis=0)  # float32 is enough for what deviates from it
    return mean + resamples.prompts @ (values - mean).astype(np.float32) / len(values)


def interval(draws: np.ndarray) -> list[float] | None:
    """The central 95% of the draws that exist. (D,) -> [low, high], None if none does."""
    known = draws[np.isfinite(draws)]
    return intervals(known[:, None])[0].tolist() if len(known) else None


def intervals(draws: np.ndarray) -> np.ndarray:
    """The central 95% of C series of finite draws. (D, C) -> (C, 2)."""
    tail = 50 * (1 - LEVEL)
    return np.percentile(draws, [tail, 100 - tail], axis=0).T


def share_interval(numerator: np.ndarray, denominator: np.ndarray, drawn: np.ndarray) -> list[float] | None:
    """The 95% interval of a `share`, in percent. (N,) or (S, N) twice, its (D,) resamples -> [low, high].

    Where all prompts went one way it is Clopper-Pearson's: resampling draws the same again and again there, and would
    claim certainty. None if the share is undefined, or no resample differs for another cause (nothing but ties).
    """
    total, counted = float(np.sum(denominator)), float(np.sum(numerator))
    if not total:
        return None
    if counted in (0, total):
        prompts = int(np.max(np.sum(np.asarray(denominator) > 0, axis=-1)))  # which seeds share
        bound = 100 * ((1 - LEVEL) / 2) ** (1 / prompts)
        return [bound, 100.0] if counted else [0.0, 100 - bound]
    bounds = interval(drawn)
    return None if bounds is None or bounds[0] == bounds[1] else bounds


def length_controlled(verdicts: np.ndarray, differences: np.ndarray, resamples: Resamples) -> dict:
    """`controlled` for the length alone. differences: (S, N), length of a's answer minus that of b's."""
    return controlled(verdicts, {"length": differences}, resamples)


def controlled(verdicts: np.ndarray, differences: Mapping[str, np.ndarray], resamples: Resamples) -> dict:
    """The win rate that answers with equal features would have: a logistic regression of the verdict on differences.

    verdicts: (S, N) of 1 (a wins), 0 (tie, half a win), -1, NaN (unknown). differences: K features, each (S, N): that
    of a's answer minus that of b's. Model (after length-controlled AlpacaEval, Dubois et al. 2024; several features as
    in Arena-Hard's style control):

        P(a wins) = sigmoid(t + sum_k g_k tanh(difference_k / std(differences_k)))

    Returns {"win_rate": 100 sigmoid(t), "interval": [low, high]}, comparable to (W + T/2)/N, or {"refused": why}. The
    interval comes from the resamples, each taken as one Newton step from the estimate. Needs 10 prompts a parameter.
    """
    known = np.isfinite(verdicts)
    for values in differences.values():
        known = known & np.isfinite(values)
    wins, losses = int(np.sum(verdicts[known] > 0)), int(np.sum(verdicts[known] < 0))
    needed = MIN_PROMPTS * (1 + len(differences)) // 2
    if known.any(axis=0).sum() < needed:
        return {"refused": f"fewer than {needed} prompts"}
    if not wins or not losses:
        return {"refused": "every prompt is a tie" if not wins + losses else "one run never wins"}
    columns = [np.ones_like(verdicts)]
    for name, values in differences.items():
        spread = float(np.std(values[known]))
        if spread == 0:
            what = "the lengths differ" if name == "length" else f"{name} differs"
            return {"refused": f"{what} by the same on every prompt"}
        if values[known].min() > 0 or values[known].max() < 0:
            what = "is longer" if name == "length" else f"has more {name}"
            return {"refused": f"one run {what} on every prompt"}
        columns.append(np.where(known, np.tanh(values / spread), 0))
    design = np.stack(columns)  # (1 + K, S, N)
    of_known = design[:, known]
    if np.linalg.cond(of_known @ of_known.T) > 1e8:
        return {"refused": f"{', '.join(differences)} cannot be told apart on these prompts"}
    decides = {"refused": f"{', '.join(differences)} alone decides the verdicts"}
    y = np.where(known, (verdicts + 1) / 2, 0.5)
    beta = np.zeros(len(design))
    for _ in range(50):
        p = 1 / (1 + np.exp(-np.tensordot(beta, design, 1)))
        residual = np.where(known, y - p, 0)
        information = np.einsum("asn,bsn,sn->ab", design, design, np.where(known, p * (1 - p), 0))
        if np.linalg.cond(information) > 1e8:
            return decides
        inverse = np.linalg.inv(information)
        step = inverse @ np.tensordot(design, residual, axes=([1, 2], [0, 1]))
        beta = beta + step
        if np.abs(beta).max() > 20:
            return decides
        if np.abs(step).max() < 1e-10:
            break
    else:
        return {"refused": "the regression does not converge"}
    influence = np.tensordot(inverse[0], design, 1) * residual  # (S, N), of each verdict on t
    per_seed = resamples.prompts @ influence.T.astype(np.float32)  # (D, S)
    drawn = beta[0] + (len(verdicts) * resamples.seeds * per_seed).sum(axis=1)
    return {"win_rate": float(_percent(beta[0])), "interval": interval(_percent(drawn))}


def _percent(logit):
    return 100 / (1 + np.exp(-logit))
