"""How good a reward model is on held-out questions: metrics, their baselines, and how sure both are.

A statistic is written once, over weights (D, N) of N examples: D times at once. With weights of one it is the metric;
with the number of times that a bootstrap drew each example's question it is D draws of it. Questions are drawn, not
examples: the units of an answer, and the pairs of a question, stand or fall together.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from ..common.bootstrap import DRAWS, interval, resample
from ..common.console import Column, Section, Table, print_table
from ..common.errors import UserError
from ..common.launch import process_state
from ..common.texts import one_spelling
from ..tasks.preferences import Pair

Statistics = Callable[[np.ndarray], dict[str, np.ndarray]]


# --- statistics over weights -----------------------------------------------------------------------------------------


def weighted_mean(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """values (N,), weights (D, N) -> (D,)."""
    return weights @ values / weights.sum(axis=1)


def weighted_f1(predicted: np.ndarray, true: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """2 tp / (2 tp + fp + fn), 0 if nothing is predicted and nothing is true.

    predicted, true (N,) bool, weights (D, N) -> (D,).
    """
    hits, total = weights @ (predicted & true), weights @ predicted + weights @ true
    return np.divide(2 * hits, total, out=np.zeros(len(weights)), where=total > 0)


def weighted_auroc(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """P(score of a positive > score of a negative), ties counting half; NaN if a class is absent.

    scores (N,), positive (N,) bool, weights (D, N) -> (D,).
    """
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(scores[order]) > 0])  # of each run of equal scores
    positives = np.add.reduceat((weights * positive)[:, order], starts, axis=1)
    negatives = np.add.reduceat((weights * ~positive)[:, order], starts, axis=1)
    below = np.cumsum(negatives, axis=1) - negatives
    wins = (positives * (below + negatives / 2)).sum(axis=1)
    total = positives.sum(axis=1) * negatives.sum(axis=1)
    return np.divide(wins, total, out=np.full(len(weights), np.nan), where=total > 0)


def with_intervals(
    statistics: Statistics, questions: list[str], draws: int = DRAWS, in_memory: int = 4_000_000
) -> dict[str, dict]:
    """Each statistic with its 95% interval from a bootstrap over questions.

    questions: of each of the N examples; in_memory: weights at a time, which changes no number.
    -> {name: {"value", "interval": [low, high]}}. A statistic that is undefined is None; with one question, so is every
    interval.
    """
    names, member = np.unique(questions, return_inverse=True)
    found = {name: values[0] for name, values in statistics(np.ones((1, len(member)))).items()}
    drawn: dict[str, list[np.ndarray]] = {name: [] for name in found}
    if len(names) > 1:
        counts = resample(len(names), draws=draws).prompts  # (D, questions)
        block = max(1, in_memory // len(member))
        for start in range(0, draws, block):
            for name, values in statistics(counts[start : start + block, member].astype(float)).items():
                drawn[name].append(values)
    return {
        name: {
            "value": float(value) if math.isfinite(value) else None,
            "interval": interval(np.concatenate(drawn[name])) if drawn[name] else None,  # a draw may miss a class
        }
        for name, value in found.items()
    }


# --- metrics of a model ----------------------------------------------------------------------------------------------


def classification_metrics(margins: list[float], is_error: list[bool], questions: list[str]) -> dict:
    """Metrics of one error class against `no error`. A margin above 0 predicts an error.

    The baseline predicts the majority class of the dev set itself, which slightly favours it.
    """
    questions = one_spelling(questions)
    scores, true = finite(margins), np.array(is_error, dtype=bool)
    predicted = scores > 0
    usual = bool(2 * true.sum() > len(true))

    def statistics(weights: np.ndarray) -> dict[str, np.ndarray]:
        accuracy, baseline = weighted_mean(predicted == true, weights), weighted_mean(true == usual, weights)
        return {
            "error_share": weighted_mean(true, weights),
            "accuracy": accuracy,
            "baseline_accuracy": baseline,
            "accuracy_gain": accuracy - baseline,
            "f1_error": weighted_f1(predicted, true, weights),
            "f1_no_error": weighted_f1(~predicted, ~true, weights),
            "auroc": weighted_auroc(scores, true, weights),
        }

    found = with_intervals(statistics, questions)
    area = found["auroc"]
    above = {"value": area["value"] and area["value"] - 0.5, "interval": area["interval"] and _less(area["interval"])}
    return {
        "units": len(true),
        "questions": len(set(questions)),
        **_flat(found),
        "comparisons": {
            "AUROC against chance": comparison(above),
            "accuracy against the most frequent class": comparison(found["accuracy_gain"]),
        },
    }


def finite(scores: list[float]) -> np.ndarray:
    """The scores as (N,) float64. UserError if one is not finite: NaN > 0 would count as a decision."""
    array = np.array(scores, dtype=float)
    if bad := int((~np.isfinite(array)).sum()):
        raise UserError(f"{bad} of {len(array)} scores on the dev file are not finite; train with a lower --lr")
    return array


def _less(interval: list[float]) -> list[float]:
    return [bound - 0.5 for bound in interval]


def _flat(found: dict[str, dict]) -> dict:
    """Values under their names, intervals apart: {name: value, ..., "intervals": {name: [low, high]}}."""
    return {name: one["value"] for name, one in found.items()} | {
        "intervals": {name: one["interval"] for name, one in found.items()}
    }


def pair_metrics(pairs: list[Pair], chosen: list[float], rejected: list[float]) -> dict:
    """Pairwise accuracy (a tie counts half), Bradley-Terry log loss (by chance log 2), Brier score; per kind too.

    Baselines: chance, and length: the longer answer is better, or the shorter if that wins more of these very pairs.
    `score_gap`: mean of |chosen - rejected|, near 0 for a model that hardly tells answers apart.
    """
    margins = finite(chosen) - finite(rejected)
    asked = one_spelling(pair.question for pair in pairs)
    longer = np.array([len(pair.chosen.split()) - len(pair.rejected.split()) for pair in pairs], dtype=float)

    def measure(index: np.ndarray) -> dict:
        right, by_length = win_shares(margins[index]), win_shares(longer[index])
        rule = by_length if by_length.mean() >= 0.5 else 1 - by_length
        log_loss, brier = np.logaddexp(0, -margins[index]), sigmoid(-margins[index]) ** 2

        def statistics(weights: np.ndarray) -> dict[str, np.ndarray]:
            accuracy = weighted_mean(right, weights)
            return {
                "pairwise_accuracy": accuracy,
                "longer_wins_accuracy": weighted_mean(by_length, weights),
                "gain_over_chance": accuracy - 0.5,
                "gain_over_length": accuracy - weighted_mean(rule, weights),
                "log_loss": weighted_mean(log_loss, weights),
                "brier": weighted_mean(brier, weights),
                "log_loss_gain": math.log(2) - weighted_mean(log_loss, weights),
                "score_gap": weighted_mean(np.abs(margins[index]), weights),
            }

        questions = [asked[i] for i in index]
        found = with_intervals(statistics, questions)
        length_rule = "longer" if by_length.mean() >= 0.5 else "shorter"
        return {
            "pairs": len(index),
            "questions": len(set(questions)),
            "baseline_accuracy": 0.5,
            **_flat(found),
            "comparisons": {
                "pairwise accuracy against chance": comparison(found["gain_over_chance"]),
                f"pairwise accuracy against `the {length_rule} wins`": comparison(found["gain_over_length"]),
            },
        }

    metrics = measure(np.arange(len(pairs)))
    kinds = sorted({pair.kind for pair in pairs})
    if len(kinds) > 1:
        metrics["kinds"] = {
            kind: measure(np.array([i for i, pair in enumerate(pairs) if pair.kind == kind])) for kind in kinds
        }
    return metrics


def win_shares(margins: np.ndarray) -> np.ndarray:
    """1 for a margin above 0, 0.5 for a tie, 0 below."""
    return (np.sign(margins) + 1) / 2


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)), without overflow."""
    return np.exp(-np.logaddexp(0, -x))


# --- against the baseline --------------------------------------------------------------------------------------------


def comparison(gain: dict) -> dict:
    """{"gain", "interval", "beats": whether the whole interval lies above 0}; all None if it cannot be told."""
    beats = None if gain["interval"] is None else gain["interval"][0] > 0
    return {"gain": gain["value"], "interval": gain["interval"], "beats": beats}


def verdict(name: str, comparisons: dict[str, dict]) -> list[str]:
    """A line for each comparison, and a last one that sums up what `name` beats."""
    lines, beaten = [], []
    for what, found in comparisons.items():
        if found["beats"] is None:
            lines.append(f"  {what}: cannot be told from this file")
            continue
        low, high = found["interval"]
        judged = "beats it" if found["beats"] else "worse" if high < 0 else "does not beat it: the interval includes 0"
        lines.append(f"  {what}: {found['gain']:+.3f} [{low:+.3f}, {high:+.3f}] {judged}")
        beaten += [what] if found["beats"] else []
    if len(beaten) == len(comparisons):
        return [*lines, f"{name}: beats its baselines"]
    rest = [what for what in comparisons if what not in beaten]
    result = f"beats its baseline in {', '.join(beaten)}, but not in" if beaten else "does not beat its baseline in"
    return [*lines, f"{name}: {result} {', '.join(rest)}"]


def flat_scores(metrics: dict) -> str | None:
    """A warning if the two scores of a pair are nearly equal, so that only their order is learnt."""
    if metrics["score_gap"] >= 0.02:  # the probability is within half a percent of 50%
        return None
    return (
        f"warning: the two scores of a pair differ by {metrics['score_gap']:.2g} on average; the model has hardly "
        "learnt to tell answers apart; train longer or with another --lr"
    )


def mean_and_deviation(values: list[float]) -> tuple[float, float]:
    """Mean and sample deviation (0 for a single value)."""
    mean = sum(values) / len(values)
    deviation = (sum((value - mean) ** 2 for value in values) / max(1, len(values) - 1)) ** 0.5
    return mean, deviation


def metrics_table(metrics: dict, title: str) -> Table:
    """The numbers of `classification_metrics` or `pair_metrics` with their intervals, those of each kind below."""

    def rows(values: dict) -> tuple[tuple[str, ...], ...]:
        found = []
        for key, value in values.items():
            if not isinstance(value, dict):
                shown = "-" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)
                interval = values["intervals"].get(key)
                found.append((key, shown, f"{interval[0]:.4f} .. {interval[1]:.4f}" if interval else ""))
        return tuple(found)

    kinds = metrics.get("kinds", {})
    sections = [Section(rows(metrics)), *(Section(rows(values), kind) for kind, values in kinds.items())]
    columns = (Column("metric", text=True), Column("value"), Column("95% interval", name=True))
    return Table(title, "intervals over questions", columns, tuple(sections))


def report_metrics(name: str, metrics: dict, title: str) -> None:
    """Print the table, a warning if there is one, and the verdict. On the main process."""
    if not process_state().is_main_process:
        return
    print_table(metrics_table(metrics, title))
    warning = flat_scores(metrics) if "score_gap" in metrics else None
    print("\n".join([*([warning] if warning else []), *verdict(name, metrics["comparisons"])]), flush=True)
