"""The estimator by hand and against every draw, ties, and when two settings rank alike."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alarm.common.bootstrap import resample
from alarm.evaluation.best_of_n.ranking import Ranking, best_weights, kl_of_best, mean_with_interval


def every_draw(rewards: list[float], quality: list[float], n: int) -> float:
    """The mean over all draws of n answers; of those that tie for the best of a draw, one is taken at random."""
    found = []
    for drawn in combinations(range(len(rewards)), n):
        best = max(rewards[i] for i in drawn)
        found.append(np.mean([quality[i] for i in drawn if rewards[i] == best]))
    return float(np.mean(found))


def expected(rewards: list[float], quality: list[float], most: int) -> list[float]:
    ranking = Ranking(np.array([rewards], dtype=float), np.array([len(rewards)]))
    return ranking.expected_best(np.array(quality, dtype=float), most)[0, 0].tolist()


def test_the_weights_of_three_answers():
    # columns: n = 1, 2, 3. Of the three pairs the highest wins two, the middle one one
    assert best_weights(3, 3).tolist() == [
        [pytest.approx(1 / 3), 0, 0],
        [pytest.approx(1 / 3), pytest.approx(1 / 3), 0],
        [pytest.approx(1 / 3), pytest.approx(2 / 3), 1],
    ]


def test_by_hand():
    # ranked 10 < 40 < 70 by reward
    assert expected([2.0, 1.0, 3.0], [40.0, 10.0, 70.0], 3) == pytest.approx([40, (40 + 70 + 70) / 3, 70])
    # the two best tie: of 3 pairs two hold one of them, one holds both
    assert expected([1.0, 0.0, 1.0], [4.0, 0.0, 8.0], 3) == pytest.approx([4, (4 + 8 + 6) / 3, 6])
    # all tie: a random answer
    assert expected([5.0] * 4, [1.0, 2.0, 3.0, 6.0], 4) == pytest.approx([3.0] * 4)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), sizes=st.lists(st.integers(1, 6), min_size=1, max_size=4))
def test_it_is_the_mean_over_every_draw(data, sizes):
    """Prompts of uneven sizes, several settings, many ties."""
    most, total = min(sizes), sum(sizes)
    numbers = st.lists(st.integers(-2, 2).map(float), min_size=total, max_size=total)
    rewards = [data.draw(numbers) for _ in range(2)]
    quality = data.draw(st.lists(st.floats(-100, 100), min_size=total, max_size=total))
    found = Ranking(np.array(rewards), np.array(sizes)).expected_best(np.array(quality), most)
    assert found.shape == (2, len(sizes), most)
    starts = np.cumsum([0, *sizes])
    for s, row in enumerate(rewards):
        for p, size in enumerate(sizes):
            part = slice(starts[p], starts[p] + size)
            wanted = [every_draw(row[part], quality[part], n) for n in range(1, most + 1)]
            assert found[s, p].tolist() == pytest.approx(wanted, abs=1e-9)


def test_sums_that_differ_by_rounding_tie():
    assert 0.1 + 0.2 != 0.3
    assert expected([0.1 + 0.2, 0.3], [0.0, 1.0], 2) == [0.5, 0.5]
    assert expected([0.3, 0.3001], [0.0, 1.0], 2) == [0.5, 1.0]


def test_many_answers_keep_their_probabilities():
    weights = best_weights(400, 400)
    assert np.allclose(weights.sum(axis=0), 1) and weights[-1, -1] == 1


def test_settings_that_rank_alike_have_one_key():
    rewards = np.array([[1.0, 2, 3, 0, 5], [10.0, 20, 30, -9, 1], [1.0, 2, 2, 0, 5], [1.0, 3, 2, 0, 5]])
    first, same, tied, other = Ranking(rewards, np.array([3, 2])).keys()
    assert first == same and len({first, tied, other}) == 3


def test_kl():
    assert kl_of_best(np.array([1, 2, 16])).tolist() == pytest.approx([0, math.log(2) - 0.5, math.log(16) - 15 / 16])


def test_intervals_are_paired():
    """A difference that is the same on every prompt has no width, however much prompts differ."""
    values = np.random.default_rng(0).normal(size=(200, 1)) * 10
    resamples = resample(200)
    mean, bounds = mean_with_interval(values + 0.5 - values, resamples)
    assert mean.tolist() == pytest.approx([0.5]) and bounds.tolist() == [pytest.approx([0.5, 0.5])]
    mean, bounds = mean_with_interval(values, resamples)
    width = bounds[0, 1] - bounds[0, 0]
    assert width == pytest.approx(2 * 1.96 * values.std() / math.sqrt(200), rel=0.1)
