"""Agreement of a reward with the truth, on numbers that are worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from miniature.agreement import agreement, correlations, length_effect, ranks, within


def test_within_counts_ties_half_and_leaves_out_equal_quality():
    quality = np.array([[0.1, 0.5, 0.5], [0.2, 0.4, 0.9]])
    reward = np.array([[1.0, 2.0, 0.0], [3.0, 3.0, 4.0]])
    right, pairs = within(reward, quality)
    assert pairs.tolist() == [2, 3]  # two of the first three answers are equal
    assert right.tolist() == [1.0, 2.5]


def test_ranks_of_equal_values_are_their_mean():
    assert ranks(np.array([3.0, 1.0, 3.0, 2.0])).tolist() == [3.5, 1.0, 3.5, 2.0]


def test_correlation_under_weights_is_that_of_the_repeated_rows():
    x, y = np.array([1.0, 2.0, 4.0, 3.0]), np.array([2.0, 1.0, 5.0, 3.0])
    weights = np.array([[1.0, 1, 1, 1], [2, 0, 1, 1]])
    repeated = [0, 0, 2, 3]
    expected = [np.corrcoef(x, y)[0, 1], np.corrcoef(x[repeated], y[repeated])[0, 1]]
    assert correlations(x, y, weights) == pytest.approx(expected)


def test_a_level_for_each_prompt_leaves_within_and_takes_across():
    rng = np.random.default_rng(0)
    quality = rng.random((400, 4))
    lengths = rng.integers(5, 15, (400, 4))
    found = agreement(quality + 100 * rng.random((400, 1)), quality, lengths)
    assert found["within"] == 1
    assert abs(found["across"]) < 0.2
    assert abs(found["length"]) < 0.01


def test_length_effect_is_in_deviations_of_the_reward():
    rng = np.random.default_rng(1)
    quality, lengths = rng.random((200, 4)), rng.integers(5, 15, (200, 4)).astype(float)
    reward = 2 * quality + 0.3 * lengths + rng.random((200, 1))
    assert length_effect(reward, quality, lengths) == pytest.approx(0.3 / reward.std())
    assert length_effect(np.ones((200, 4)), quality, lengths) is None
