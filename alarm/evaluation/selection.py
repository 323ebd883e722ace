"""Which aspect to add to the holistic reward: the paper's selection, with its uncertainty.

One policy answers every prompt twice, greedily and by sampling. An aspect that often prefers the other of the two
answers than the holistic reward does would pull against it, so the aspect that contradicts it least is chosen.
"""

from __future__ import annotations

import numpy as np

from ..api import Task
from ..common.bootstrap import DRAWS, resample, resampled_shares, share, share_interval
from ..common.errors import UserError
from .compare import (
    HOLISTIC,
    LENGTH,
    comparable_metrics,
    inconsistency_terms,
    metric_verdicts,
    win_terms,
)
from .generations import Generations

MIN_DECIDED = 10.0  # percent of prompts on which an aspect must name a winner: one that always ties contradicts nothing
SEPARABLE = 95.0  # percent of draws


def select_aspect(greedy: Generations, sampled: Generations, task: Task, draws: int = DRAWS) -> dict:
    """Measure how often each metric contradicts the holistic reward between two answers, and recommend an aspect.

    greedy, sampled: answers of one policy to the same N prompts; equal ones tie (`evaluation.comparable_metrics`).
    Returns a dict of numbers that can be written as JSON (percentages; intervals hold 95% of `draws` resamples of the
    prompts):

        metrics          {metric: inconsistency, inconsistency_interval, inconsistency_without_ties, decided_share,
                         win_rate (of greedy), win_rate_interval, length_correlation, eligible, why_not}
        correlations     {metric: {metric: Spearman's rho over all 2N answers, None if one is constant}}
        recommended      the eligible metric of least inconsistency, None if none will do; reason: one line
        least_share      {eligible metric: percent of the draws in which it is the least}; separable: that of the
                         recommended one is at least 95
        prompts, decided (with a holistic winner), draws, flags (of train_ppo.py), paper (the paper's inconsistency)

    Raises UserError if the holistic reward prefers neither answer on any prompt.
    """
    prompts = len(greedy.queries)
    values = comparable_metrics([greedy, sampled])
    verdicts = {metric: metric_verdicts(*pair, metric in task.lower_wins) for metric, pair in values.items()}
    holistic = verdicts.pop(HOLISTIC)
    decided = int(np.sum(holistic != 0))
    if not decided:
        raise UserError(
            f"{greedy.name} and {sampled.name} have the same answer or the same {HOLISTIC} on every prompt; give "
            "greedy and sampled generations of one policy"
        )
    names = list(verdicts)
    stacked = np.stack(list(verdicts.values()))[None]  # (1, C, N)
    resamples = resample(prompts, draws=draws)
    contradicted = resampled_shares(*inconsistency_terms(stacked, holistic), resamples)  # (D, C)
    without_ties = resampled_shares(*_without_ties(stacked, holistic), resamples)
    won = resampled_shares(*win_terms(stacked), resamples)

    answers = {metric: pair.ravel() for metric, pair in values.items()}
    correlations = {a: {b: spearman(answers[a], answers[b]) for b in answers} for a in answers}
    metrics = {}
    for c, name in enumerate(names):
        terms = inconsistency_terms(verdicts[name], holistic)
        decided_terms = _without_ties(verdicts[name], holistic)
        decided_share = 100 * float(np.mean(verdicts[name] != 0))
        why_not = no_aspect(task, name)
        if why_not is None and decided_share < MIN_DECIDED:
            why_not = f"names a winner on {decided_share:.1f}% of the prompts only"
        metrics[name] = {
            "inconsistency": share(*terms),
            "inconsistency_interval": share_interval(*terms, contradicted[:, c]),
            "inconsistency_without_ties": share(*decided_terms),
            "inconsistency_without_ties_interval": share_interval(*decided_terms, without_ties[:, c]),
            "decided_share": decided_share,
            "win_rate": share(*win_terms(verdicts[name])),
            "win_rate_interval": share_interval(*win_terms(verdicts[name]), won[:, c]),
            "length_correlation": correlations[name][LENGTH],
            "eligible": why_not is None,
            "why_not": why_not,
        }
    eligible = [name for name in names if metrics[name]["eligible"]]
    drawn = contradicted[:, [names.index(name) for name in eligible]]
    drawn = drawn[np.isfinite(drawn).all(axis=1)]
    least = drawn == drawn.min(axis=1, keepdims=True, initial=np.inf)
    least_share = 100 * (least / least.sum(axis=1, keepdims=True)).mean(axis=0)  # draws that tie are shared
    selection = {
        "task_type": task.name,
        "greedy": greedy.name,
        "sampled": sampled.name,
        "prompts": prompts,
        "decided": decided,
        "draws": draws,
        "metrics": metrics,
        "correlations": correlations,
        "least_share": dict(zip(eligible, map(float, least_share), strict=True)),
        "paper": task.paper.get("inconsistency", {}),
    }
    return selection | _recommend(selection, task)


def no_aspect(task: Task, key: str) -> str | None:
    """Why a metric cannot stand for an aspect; None if it can. Each aspect's first metric that may stands for it."""
    if key == LENGTH:
        return "length is no quality"
    for aspect in task.aspects:
        first = next((metric.key for metric in aspect.metrics if not metric.no_aspect), None)
        for metric in aspect.metrics:
            if metric.key == key and key != first:
                return metric.no_aspect or f"{first} stands for {aspect.name}"
    return None


def flags_of(task: Task, key: str) -> str:
    """The flags of train_ppo.py that train on the aspect of this metric alone."""
    chosen = next(aspect for aspect in task.aspects if key in {metric.key for metric in aspect.metrics})
    return " ".join(f"--{aspect.flag} {int(aspect is chosen)}" for aspect in task.aspects)


def _without_ties(verdicts: np.ndarray, holistic: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return verdicts * holistic < 0, verdicts * holistic != 0


def _recommend(selection: dict, task: Task) -> dict:
    """recommended, separable, flags and reason, from the numbers."""
    metrics, least_share = selection["metrics"], selection["least_share"]
    none = {"recommended": None, "separable": False, "flags": None}
    order = sorted(least_share, key=lambda name: metrics[name]["inconsistency"])
    if not order:
        return none | {"reason": f"no aspect names a winner on {MIN_DECIDED:.0f}% of the prompts or more"}
    best = order[0]
    low, high = metrics[best]["inconsistency_interval"]
    rate = f"{metrics[best]['inconsistency']:.1f}% [{low:.1f}, {high:.1f}]"
    reason = f"{best} contradicts the holistic reward on {rate} of the {selection['decided']} prompts that this decides"
    if (metrics[best]["inconsistency_without_ties"] or 0) >= 50:
        reason = f"even {reason}, and no less often than it agrees with it"
        return none | {"reason": reason}

    separable = least_share[best] >= SEPARABLE
    if len(order) > 1:
        reason += (
            f", the least of {len(order)} aspects in {least_share[best]:.0f}% of the resamples; next is {order[1]} "
            f"with {metrics[order[1]]['inconsistency']:.1f}%"
        )
    if not separable:
        reason += "; more prompts are needed to tell them apart"
    # an aspect whose ties never meet a holistic winner's verdict has no such share
    rates = {name: metrics[name]["inconsistency_without_ties"] for name in order}
    without = min((name for name in order if rates[name] is not None), key=rates.__getitem__, default=best)
    if without != best:
        reason += f"; with ties left out it would be {without}"
    return {
        "recommended": best,
        "separable": separable,
        "flags": flags_of(task, best),
        "reason": reason,
    }


def spearman(a: np.ndarray, b: np.ndarray) -> float | None:
    """Spearman's rank correlation, ties ranked by their mean; None if one of the two is constant. (N,), (N,)."""
    ranks = [_ranks(values) for values in (a, b)]
    if min(np.ptp(of) for of in ranks) == 0:
        return None
    return float(np.corrcoef(*ranks)[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]
