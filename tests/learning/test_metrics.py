"""Metrics of reward models by hand, their intervals against what is known of them, and the verdict."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alarm.common.errors import UserError
from alarm.learning.metrics import (
    classification_metrics,
    comparison,
    metrics_table,
    pair_metrics,
    report_metrics,
    verdict,
    weighted_auroc,
    weighted_f1,
    weighted_mean,
    with_intervals,
)
from alarm.learning.reliability import draw_reliability, reliability, reliability_table
from alarm.tasks.preferences import Pair

ONE = np.ones((1, 4))


def pair(question: str, chosen: str = "a b", rejected: str = "a", kind: str = "preference") -> Pair:
    return Pair(question, question, chosen, rejected, kind)


# --- statistics over weights -----------------------------------------------------------------------------------------


def test_auroc_by_hand():
    # positives .9 and .4, negatives .5 and .4: wins 1 + 1 + 0 + a half, of 4
    scores, positive = np.array([0.9, 0.4, 0.5, 0.4]), np.array([True, True, False, False])
    assert weighted_auroc(scores, positive, ONE) == [2.5 / 4]
    # the .4 of the positives three times: 2 + 3 * .5, of 8
    assert weighted_auroc(scores, positive, np.array([[1, 3, 1, 1]])) == [3.5 / 8]
    assert np.isnan(weighted_auroc(scores, positive, np.array([[1, 1, 0, 0]])))


@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans(), st.integers(0, 3)), min_size=1, max_size=15))
def test_weights_are_numbers_of_copies(points):
    scores, positive = np.array([s for s, _, _ in points], float), np.array([p for _, p, _ in points])
    times = [t for _, _, t in points]
    many_scores, many_positive = np.repeat(scores, times), np.repeat(positive, times)
    wins = [
        1.0 if a > b else 0.5 if a == b else 0.0
        for a in many_scores[many_positive]
        for b in many_scores[~many_positive]
    ]
    found = weighted_auroc(scores, positive, np.array([times], float))[0]
    assert found == pytest.approx(np.mean(wins)) if wins else math.isnan(found)
    said = scores > 0
    both = 2 * (said & positive) @ np.array(times)
    total = said @ np.array(times) + positive @ np.array(times)
    assert weighted_f1(said, positive, np.array([times], float))[0] == pytest.approx(both / total if total else 0)


# --- the bootstrap ---------------------------------------------------------------------------------------------------


def test_the_interval_of_a_mean_is_that_of_its_questions():
    """100 questions of 4 equal examples: the deviation of the mean is that of 100 values, not of 400."""
    values = np.repeat(np.arange(100) % 2, 4).astype(float)
    questions = [str(i // 4) for i in range(400)]
    found = with_intervals(lambda weights: {"mean": weighted_mean(values, weights)}, questions, draws=4000)["mean"]
    assert found["value"] == 0.5
    low, high = found["interval"]
    # 1.96 * sqrt(.25 / 100) = 0.098; as 400 examples of their own it would be 0.049
    assert 0.5 - low == pytest.approx(0.098, abs=0.012) and high - 0.5 == pytest.approx(0.098, abs=0.012)


def test_blocks_of_draws_change_nothing():
    questions, values = [str(i % 7) for i in range(30)], np.arange(30.0)

    def found(**kwargs):
        return with_intervals(lambda weights: {"mean": weighted_mean(values, weights)}, questions, draws=200, **kwargs)

    assert found(in_memory=30 * 16) == found()


def test_a_single_question_has_no_interval():
    found = with_intervals(lambda weights: {"mean": weighted_mean(np.array([0.0, 1.0]), weights)}, ["q", "q"])["mean"]
    assert found == {"value": 0.5, "interval": None}


# --- classification --------------------------------------------------------------------------------------------------


def test_classification_metrics_by_hand():
    # said: error, error, none, none; true: error, none, none, none
    found = classification_metrics([1.0, 0.5, -1.0, 0.0], [True, False, False, False], ["p", "q", "r", "s"])
    assert found["accuracy"] == 0.75 and found["baseline_accuracy"] == 0.75
    assert found["f1_error"] == pytest.approx(2 / 3) and found["f1_no_error"] == pytest.approx(0.8)
    assert found["auroc"] == 1.0 and (found["units"], found["questions"]) == (4, 4)
    assert found["comparisons"]["accuracy against the most frequent class"]["beats"] is False


def test_a_model_that_knows_beats_both_baselines_and_one_that_guesses_does_not():
    rng = np.random.default_rng(3)
    true = rng.random(400) < 0.3
    questions = [str(i // 4) for i in range(400)]
    knows = classification_metrics((true - 0.5 + rng.normal(0, 0.4, 400)).tolist(), true.tolist(), questions)
    assert all(one["beats"] for one in knows["comparisons"].values())
    low, high = knows["intervals"]["auroc"]
    assert low < knows["auroc"] < high and low > 0.8
    guesses = classification_metrics(rng.normal(0, 1, 400).tolist(), true.tolist(), questions)
    assert not any(one["beats"] for one in guesses["comparisons"].values())
    # the usual class, always: nothing gained, nothing lost, in every draw
    lazy = classification_metrics([-1.0] * 400, true.tolist(), questions)
    assert lazy["intervals"]["accuracy_gain"] == [0, 0] and lazy["auroc"] == 0.5 and lazy["f1_error"] == 0


def test_one_class_only_cannot_be_told():
    found = classification_metrics([1.0, -1.0], [False, False], ["p", "q"])
    assert found["auroc"] is None and found["intervals"]["auroc"] is None
    lines = verdict("relevance", found["comparisons"])
    assert lines[0] == "  AUROC against chance: cannot be told from this file"
    assert "does not beat its baseline" in lines[-1]


# --- pairs -----------------------------------------------------------------------------------------------------------


def test_pair_metrics_by_hand():
    pairs = [pair("p", "one two", "one"), pair("q", "one", "one two"), pair("r", "one", "one two")]
    found = pair_metrics(pairs, [1.0, 0.0, 0.0], [0.0, 0.0, 2.0])
    assert found["pairwise_accuracy"] == pytest.approx(1.5 / 3)  # a win, a tie, a loss
    assert found["longer_wins_accuracy"] == pytest.approx(1 / 3)
    # the shorter answer wins two of three, and that is the rule to beat
    gain = found["comparisons"]["pairwise accuracy against `the shorter wins`"]["gain"]
    assert gain == pytest.approx(1.5 / 3 - 2 / 3)
    expected = (math.log(1 + math.exp(-1)) + math.log(2) + math.log(1 + math.exp(2))) / 3
    assert found["log_loss"] == pytest.approx(expected)
    lost = [1 / (1 + math.e), 0.5, 1 / (1 + math.exp(-2))]
    assert found["brier"] == pytest.approx(sum(p * p for p in lost) / 3)
    assert "kinds" not in found


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_scores_that_are_not_finite_decide_nothing(value):
    with pytest.raises(UserError, match="1 of 2"):
        classification_metrics([value, 1.0], [True, False], ["a", "b"])
    pairs = [pair("a"), pair("b")]
    for measure in (pair_metrics, reliability):
        with pytest.raises(UserError, match="1 of 2"):
            measure(pairs, [1.0, value], [0.0, 0.0])


def test_kinds_of_pairs_are_measured_apart():
    pairs = [pair("p", kind="added"), pair("q", kind="left out"), pair("r", kind="left out")]
    kinds = pair_metrics(pairs, [1.0, 1.0, 1.0], [0.0, 2.0, 0.0])["kinds"]
    assert {name: (kind["pairs"], kind["pairwise_accuracy"]) for name, kind in kinds.items()} == {
        "added": (1, 1.0),
        "left out": (2, 0.5),
    }
    json.dumps(kinds)


# --- the verdict -----------------------------------------------------------------------------------------------------


def test_the_verdict_says_what_the_intervals_say():
    better = comparison({"value": 0.2, "interval": [0.1, 0.3]})
    unsure = comparison({"value": 0.2, "interval": [-0.1, 0.5]})
    worse = comparison({"value": -0.2, "interval": [-0.3, -0.1]})
    assert verdict("m", {"a": better})[-1] == "m: beats its baselines"
    lines = verdict("m", {"a": better, "b": unsure, "c": worse})
    assert lines[0] == "  a: +0.200 [+0.100, +0.300] beats it"
    assert lines[1].endswith("does not beat it: the interval includes 0") and lines[2].endswith("worse")
    assert lines[3] == "m: beats its baseline in a, but not in b, c"
    assert verdict("m", {"b": unsure})[-1] == "m: does not beat its baseline in b"


def test_the_table_shows_each_number_with_its_interval(capsys, fresh_accelerate):
    pairs = [pair(str(i), kind=kind) for i, kind in enumerate(["added", "left out"] * 4)]
    metrics = pair_metrics(pairs, [1.0, 0.0] * 4, [0.0, 0.5] * 4)
    whole, *kinds = metrics_table(metrics, "title").sections
    low, high = metrics["intervals"]["pairwise_accuracy"]
    assert ("pairwise_accuracy", "0.5000", f"{low:.4f} .. {high:.4f}") in whole.rows
    assert [kind.heading for kind in kinds] == ["added", "left out"]
    assert all("pairwise_accuracy" in [row[0] for row in kind.rows] for kind in kinds)
    report_metrics("completeness", metrics, "title")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "title" and lines[-1].startswith("completeness: ")
    assert not any("warning" in line for line in lines)
    flat = pair_metrics(pairs, [0.001, 0.0] * 4, [0.0, 0.001] * 4)
    assert flat["score_gap"] == pytest.approx(0.001)
    report_metrics("completeness", flat, "title")
    assert "warning" in capsys.readouterr().out


# --- reliability -----------------------------------------------------------------------------------------------------


def test_reliability_by_hand():
    # sigmoid(log 3) = 3/4: three of four right is perfect, and the side of the pair does not matter
    pairs, three_to_one = [pair(str(i)) for i in range(4)], math.log(3)
    found = reliability(
        pairs, [three_to_one, three_to_one, 0.0, 2 * three_to_one], [0.0, 0.0, three_to_one, three_to_one]
    )
    (bin,) = found["bins"]  # too few pairs for two bins
    assert (bin["pairs"], bin["predicted"], bin["observed"]) == (4, pytest.approx(0.75), 0.75)
    assert found["expected_error"] == pytest.approx(0)


def test_reliability_tells_a_calibrated_model_from_one_too_sure_of_itself(tmp_path):
    rng = np.random.default_rng(5)
    margins = np.abs(rng.normal(0, 1.5, 2000))
    right = rng.random(2000) < 1 / (1 + np.exp(-margins))
    signed = np.where(right, margins, -margins)
    pairs = [pair(str(i)) for i in range(2000)]
    honest = reliability(pairs, signed.tolist(), [0.0] * 2000)
    assert len(honest["bins"]) == 10 and {row["pairs"] for row in honest["bins"]} == {200}
    assert honest["expected_error"] < 2 * honest["chance_error"]
    inside = [row["interval"][0] <= row["predicted"] <= row["interval"][1] for row in honest["bins"]]
    assert sum(inside) >= 8
    boastful = reliability(pairs, (5 * signed).tolist(), [0.0] * 2000)
    assert boastful["expected_error"] > 5 * boastful["chance_error"]
    assert boastful["expected_error"] > 0.1

    draw_reliability(honest, "model", tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert len(reliability_table(honest).sections[0].rows) == 10
    json.dumps(honest)


def test_a_model_without_opinion_is_calibrated_at_a_half():
    pairs = [pair(str(i)) for i in range(100)]
    found = reliability(pairs, [0.0] * 100, [0.0] * 100)
    assert [(row["predicted"], row["observed"]) for row in found["bins"]] == [(0.5, 0.5)] * 2
    assert found["expected_error"] == 0
