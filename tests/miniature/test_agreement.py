"""How rewards are compared with the truth: numbers by hand."""

from __future__ import annotations

import numpy as np
import pytest

from miniature.agreement import agreement, correlation, ordered_alike, partial_correlation


def test_pairs_of_one_prompt_by_hand():
    truth = np.array([[0.0, 0.5, 1.0], [0.2, 0.2, 0.9]])
    reward = np.array([[1.0, 3.0, 2.0], [5.0, 7.0, 7.0]])
    right, pairs = ordered_alike(reward, truth)
    # prompt 1: (0, 1) right, (0, 2) right, (1, 2) wrong; prompt 2: (0, 1) is no pair, (0, 2) right, (1, 2) a tie
    assert right.tolist() == [2.0, 1.5]
    assert pairs.tolist() == [3, 2]


def test_statistics_of_the_truth_itself_and_of_its_opposite():
    truth = np.random.default_rng(0).random((40, 4))
    length = np.random.default_rng(1).random((40, 4))
    same, opposite = agreement(3 * truth - 1, truth, length), agreement(-truth, truth, length)
    assert (same["within"], same["pooled"], same["between"]) == pytest.approx((1, 1, 1))
    assert (opposite["within"], opposite["pooled"], opposite["between"]) == pytest.approx((0, -1, -1))
    assert same["pairs"] == 40 * 6
    assert same["within_interval"] == [1, 1]


def test_a_level_for_each_prompt_changes_between_and_not_within():
    rng = np.random.default_rng(0)
    truth = rng.random((200, 4))
    shifted = agreement(truth + 10 * rng.random((200, 1)), truth, np.ones((200, 4)))
    assert shifted["within"] == 1
    assert abs(shifted["between"]) < 0.3


def test_length_beside_the_truth():
    rng = np.random.default_rng(0)
    truth, length = rng.random((300, 4)), rng.random((300, 4))
    biased, fair = agreement(truth + length, truth, length), agreement(truth + rng.random((300, 4)), truth, length)
    assert biased["length"] > 0.9
    assert abs(fair["length"]) < 0.1


def test_correlations_by_hand():
    x, y = np.array([0.0, 1.0, 2.0, 3.0]), np.array([0.0, 1.0, 0.0, 1.0])
    assert correlation(x, y) == pytest.approx(2 / np.sqrt(20))
    assert np.isnan(correlation(x, np.ones(4)))
    assert partial_correlation(x, y, np.array([1.0, -1.0, -1.0, 1.0])) == pytest.approx(correlation(x, y))  # unrelated
