"""alarm/common/bootstrap.py: hand arithmetic, exact intervals, and whether intervals hold what they claim to hold."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alarm.common.bootstrap import (
    Resamples,
    controlled,
    interval,
    intervals,
    length_controlled,
    resample,
    resampled_means,
    resampled_shares,
    share,
    share_interval,
)
from alarm.evaluation.compare import ties_half_terms, win_terms


def test_share_by_hand():
    assert share(np.array([1, 0, 2]), np.array([1, 1, 2])) == 75
    assert share(np.array([0, 0]), np.array([0, 0])) is None
    verdicts = np.array([1.0, 1.0, 0.0, -1.0, np.nan])
    assert share(*win_terms(verdicts)) == pytest.approx(100 * 2 / 3)
    assert share(*ties_half_terms(verdicts)) == pytest.approx(100 * 2.5 / 4)


def test_resampled_means_by_hand():
    draws = Resamples(np.array([[2, 1, 0], [0, 0, 3]], dtype=np.float32), np.ones((2, 1)))
    values = np.array([[1e6, 1.0], [1e6 + 3, 2.0], [1e6 + 6, 6.0]])
    assert resampled_means(values, draws).tolist() == [
        [pytest.approx(1e6 + 1, abs=1e-3), pytest.approx(4 / 3)],
        [pytest.approx(1e6 + 6, abs=1e-3), pytest.approx(6)],
    ]


def test_intervals_are_those_of_each_series():
    draws = np.random.default_rng(0).normal(size=(500, 3)) * [1, 10, 0]
    assert intervals(draws).tolist() == [interval(series) for series in draws.T]


def test_resampled_shares_by_hand():
    #                     seed 0: prompts 0, 1    seed 1
    wins = np.array([[[1.0, 0.0]], [[0.0, 0.0]]])  # (S 2, C 1, N 2)
    decided = np.array([[[1.0, 1.0]], [[0.0, 1.0]]])
    resamples = Resamples(
        prompts=np.array([[1, 1], [2, 0], [0, 2]], dtype=np.float32),
        seeds=np.array([[0.5, 0.5], [0.5, 0.5], [1.0, 0.0]]),
    )
    # draw 0: seed 0 wins 1 of 2, seed 1 0 of 1 -> 25; draw 1: seed 0 2 of 2, seed 1 undefined and left out -> 100;
    # draw 2: seed 0 alone, 0 of 2
    assert resampled_shares(wins, decided, resamples)[:, 0].tolist() == [25, 100, 0]
    assert np.isnan(resampled_shares(wins, 0 * decided, resamples)).all()


def test_resamples_are_what_they_say():
    one = resample(7, draws=50)
    assert one.prompts.shape == (50, 7)
    assert (one.prompts.sum(axis=1) == 7).all()
    assert (one.seeds == 1).all()
    three = resample(7, 3, draws=2000)
    assert np.allclose(three.seeds.sum(axis=1), 1)
    assert set(np.unique(three.seeds)) == {0, 0.5, 1}
    # the variance between seeds is unbiased: var of the mean of values with sample variance 1 is 1/3
    values = np.array([-1.0, 0.0, 1.0])
    assert np.var(three.seeds @ values) == pytest.approx(1 / 3, rel=0.1)
    assert (resample(7, 3, draws=9).prompts == resample(7, 3, draws=9).prompts).all()


def test_interval_of_draws():
    assert interval(np.arange(1001.0)) == pytest.approx([25, 975])
    assert interval(np.array([np.nan, 3.0])) == [3, 3]
    assert interval(np.array([np.nan])) is None


def test_interval_of_a_share():
    drawn = np.linspace(0, 100, 1001)
    assert share_interval(np.array([1, 0]), np.array([1, 1]), drawn) == pytest.approx([2.5, 97.5])
    # Clopper-Pearson, 5 of 5 and 0 of 20: tables of the binomial. Seeds share their prompts
    certain = np.full(1000, 100.0)
    assert share_interval(np.ones(5), np.ones(5), certain) == pytest.approx([47.82, 100], abs=0.01)
    assert share_interval(np.ones((3, 5)), np.ones((3, 5)), certain) == pytest.approx([47.82, 100], abs=0.01)
    assert share_interval(np.zeros(30), np.arange(30) < 20, 0 * certain) == pytest.approx([0, 16.84], abs=0.01)
    # undefined, and nothing but ties
    assert share_interval(np.zeros(5), np.zeros(5), np.full(9, np.nan)) is None
    assert share_interval(np.full(5, 0.5), np.ones(5), np.full(9, 50.0)) is None


def simulate(prompts: int, logit: np.ndarray, random: np.random.Generator, ties: float = 0.2) -> np.ndarray:
    """(S, N) logits of a win -> verdicts, a share of them ties."""
    won = random.random(logit.shape) < 1 / (1 + np.exp(-logit))
    return np.where(random.random(logit.shape) < ties, 0, np.where(won, 1.0, -1.0))


@pytest.mark.parametrize(("prompts", "logit"), [(50, 0.0), (200, 0.8)])
def test_interval_covers_a_known_win_rate(prompts, logit):
    """400 simulated comparisons: 95% intervals hold the truth in about 95% (two standard errors are 2.2%)."""
    random = np.random.default_rng(0)
    truth, covered = 100 / (1 + np.exp(-logit)), 0
    for number in range(400):
        verdicts = simulate(prompts, np.full((1, prompts), logit), random)
        resamples = resample(prompts, draws=1000, random_seed=number)
        low, high = interval(resampled_shares(*win_terms(verdicts[:, None]), resamples)[:, 0])
        covered += low <= truth <= high
    assert 0.92 <= covered / 400 <= 0.98


@pytest.mark.parametrize(("seed_spread", "expected"), [(0.0, (0.95, 1.0)), (0.3, (0.90, 0.98))])
def test_interval_over_three_seeds(seed_spread, expected):
    """Wide rather than narrow where seeds differ by chance alone; about right where they differ by 7 points."""
    random = np.random.default_rng(0)
    true_logits = random.normal(size=(400, 1)) * seed_spread + random.normal(size=(1, 4000)) + 0.3
    truth, covered = 100 * np.mean(1 / (1 + np.exp(-true_logits))), 0
    for number in range(300):
        logit = random.normal(size=(3, 1)) * seed_spread + random.normal(size=(1, 150)) + 0.3
        verdicts = simulate(150, logit, random)
        resamples = resample(150, 3, draws=1000, random_seed=number)
        low, high = interval(resampled_shares(*win_terms(verdicts[:, None]), resamples)[:, 0])
        covered += low <= truth <= high
    assert expected[0] <= covered / 300 <= expected[1]


# --- length control ------------------------------------------------------------------------------------------------


def test_length_control_recovers_the_rate_at_equal_length():
    """Verdicts that depend on length, of runs that differ in length: the raw rate is off, the estimate is not."""
    random = np.random.default_rng(0)
    covered, raw = 0, []
    for number in range(300):
        difference = random.normal(15, 20, size=(1, 300))
        verdicts = simulate(300, 0.4 + 1.5 * np.tanh(difference / np.std(difference)), random, ties=0)
        found = length_controlled(verdicts, difference, resample(300, draws=1000, random_seed=number))
        covered += found["interval"][0] <= 100 / (1 + np.exp(-0.4)) <= found["interval"][1]
        raw.append(share(*ties_half_terms(verdicts[0])))
    assert 0.92 <= covered / 300 <= 0.98
    assert np.mean(raw) > 100 / (1 + np.exp(-0.4)) + 8


def test_length_control_without_length_effect_is_the_plain_rate():
    # every difference occurs with the same verdicts: 3 wins, 1 tie, 1 loss -> 70%
    verdicts = np.tile([1.0, 1.0, 1.0, 0.0, -1.0], 8)[None]
    difference = np.repeat([-4.0, 4.0], 20)[None]
    found = length_controlled(verdicts, difference, resample(40))
    assert found["win_rate"] == pytest.approx(70)
    assert found["interval"][0] < 70 < found["interval"][1]


@given(st.integers(0, 2**32 - 1), st.integers(1, 3))
@settings(max_examples=30, deadline=None)
def test_length_control_is_symmetric(seed, seeds):
    random = np.random.default_rng(seed)
    verdicts = random.integers(-1, 2, size=(seeds, 40)).astype(float)
    difference = random.normal(size=(seeds, 40))
    resamples = resample(40, seeds, draws=200)
    forth, back = (length_controlled(sign * verdicts, sign * difference, resamples) for sign in (1, -1))
    assert forth.keys() == back.keys()
    if "win_rate" in forth:
        assert forth["win_rate"] + back["win_rate"] == pytest.approx(100)
        assert forth["interval"][0] + back["interval"][1] == pytest.approx(100, abs=1e-3)


ONES, MIXED = np.ones((1, 40)), np.tile([1.0, -1.0, 0.0, 1.0], 10)[None]
SPREAD = np.linspace(-1, 1, 40)[None]


@pytest.mark.parametrize(
    ("verdicts", "difference", "reason"),
    [
        (MIXED[:, :19], SPREAD[:, :19], "fewer than 20 prompts"),
        (np.where(np.arange(40) < 19, MIXED, np.nan), SPREAD, "fewer than 20 prompts"),
        (0 * ONES, SPREAD, "every prompt is a tie"),
        (ONES, SPREAD, "one run never wins"),
        (np.where(MIXED > 0, 0, MIXED), SPREAD, "one run never wins"),
        (MIXED, 3 * ONES, "the lengths differ by the same"),
        (MIXED, 0 * ONES, "the lengths differ by the same"),
        (MIXED, SPREAD + 5, "longer on every prompt"),
        (MIXED, SPREAD - 5, "longer on every prompt"),
        (np.sign(SPREAD), SPREAD, "length alone decides"),
        (-np.sign(SPREAD), SPREAD, "length alone decides"),
    ],
)
def test_length_control_refuses_degenerate_data(verdicts, difference, reason):
    found = length_controlled(verdicts, difference, resample(verdicts.shape[1], draws=100))
    assert reason in found["refused"]
    assert found.keys() == {"refused"}


# --- control of several features -----------------------------------------------------------------------------------


def test_control_of_several_features_recovers_the_rate_where_length_alone_does_not():
    """Verdicts that depend on two features, in both of which the runs differ."""
    random = np.random.default_rng(1)
    covered, by_length = 0, []
    for number in range(200):
        length, copied = random.normal(10, 20, size=(1, 300)), random.normal(0.2, 0.3, size=(1, 300))
        logit = 0.4 + 1.2 * np.tanh(length / np.std(length)) + 1.5 * np.tanh(copied / np.std(copied))
        verdicts = simulate(300, logit, random, ties=0)
        resamples = resample(300, draws=1000, random_seed=number)
        found = controlled(verdicts, {"length": length, "copied": copied}, resamples)
        covered += found["interval"][0] <= 100 / (1 + np.exp(-0.4)) <= found["interval"][1]
        by_length.append(length_controlled(verdicts, length, resamples)["win_rate"])
    assert 0.91 <= covered / 200 <= 0.985
    assert np.mean(by_length) > 100 / (1 + np.exp(-0.4)) + 8


def test_control_without_effects_is_the_plain_rate():
    # each of four combinations of signs has the same verdicts: 3 wins, 1 tie, 1 loss -> 70%
    verdicts = np.tile([1.0, 1.0, 1.0, 0.0, -1.0], 8)[None]
    one, other = np.repeat([-4.0, 4.0], 20)[None], np.tile(np.repeat([-1.0, 1.0], 10), 2)[None]
    assert controlled(verdicts, {"a": one, "b": other}, resample(40))["win_rate"] == pytest.approx(70)


def test_one_feature_is_length_control_under_another_name():
    random = np.random.default_rng(3)
    verdicts, difference = random.integers(-1, 2, size=(2, 40)).astype(float), random.normal(size=(2, 40))
    resamples = resample(40, 2, draws=200)
    found = controlled(verdicts, {"words": difference}, resamples)
    assert found == length_controlled(verdicts, difference, resamples)
    assert "win_rate" in found


@pytest.mark.parametrize(
    ("verdicts", "features", "reason"),
    [
        (MIXED[:, :29], {"a": SPREAD[:, :29], "b": SPREAD[:, :29] ** 2}, "fewer than 30 prompts"),
        (MIXED, {"a": SPREAD, "b": 0 * ONES}, "b differs by the same"),
        (MIXED, {"a": SPREAD, "b": SPREAD**2 + 1}, "one run has more b"),
        (MIXED, {"a": SPREAD, "b": 2 * SPREAD}, "a, b cannot be told apart"),
        (np.sign(SPREAD), {"a": SPREAD, "b": SPREAD**2 - 0.3}, "a, b alone decides"),
    ],
)
def test_control_refuses_degenerate_data(verdicts, features, reason):
    found = controlled(verdicts, features, resample(verdicts.shape[1], draws=100))
    assert reason in found["refused"]
    assert found.keys() == {"refused"}
