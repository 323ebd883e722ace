"""Shaping, weighing and combining rewards."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alarm.rewards import (
    REWARD_TYPES,
    RewardRecipe,
    combine_rewards,
    length_rewards,
    normalise_holistic,
    sigmoid_shape,
    weigh_aspects,
)
from alarm.types import AspectScore
from helpers import GOLDEN


def recipe(reward_type: str, **changes) -> RewardRecipe:
    return RewardRecipe(reward_type, **{"threshold": 0.6, "holistic_weight": 5.0} | changes)


NONE_SHORT = torch.tensor([False, False])


def test_sigmoid_shape_by_hand():
    assert sigmoid_shape(torch.tensor([0.0, math.log(3.0)])).tolist() == pytest.approx([0.5, 0.75])


def test_normalise_holistic_by_hand():
    h = normalise_holistic(torch.tensor([5.0, 1.0, 9.0]), 3.0, 2.0, torch.tensor([False, False, True]))
    assert h.tolist() == [1.0, -1.0, -10.0]
    assert h.dtype == torch.float32


def test_weigh_aspects_by_hand():
    aspects = {
        "relevance": AspectScore([torch.tensor([0.0, 1.0]), torch.tensor([2.0])], {}),
        "factuality": AspectScore([torch.tensor([4.0, 0.0]), torch.tensor([8.0])], {}),
        "completeness": AspectScore([torch.tensor([math.nan, 0.0]), torch.tensor([1.0])], {}),
    }
    total = weigh_aspects(aspects, {"relevance": 1.0, "factuality": 0.5, "completeness": 0.0})
    assert [rewards.tolist() for rewards in total] == [[2.0, 1.0], [6.0]]
    assert aspects["relevance"].rewards[0].tolist() == [0.0, 1.0]  # inputs untouched


def test_length_rewards_by_hand():
    assert [rewards.tolist() for rewards in length_rewards([3, 1], 2.0)] == [[0.0, 0.0, 1.5], [0.5]]


@pytest.mark.parametrize(
    ("reward_type", "below", "above"),
    [
        ("hierarchical", [0.0, 0.0, 2.5], [1.0, 0.0, 5.5]),
        ("holistic_only", [0.0, 0.0, 2.5], [0.0, 0.0, 3.5]),
        ("aspect_only", [1.0, 0.0, 2.0], [1.0, 0.0, 2.0]),
        ("weighted_sum", [1.0, 0.0, 4.5], [1.0, 0.0, 5.5]),
    ],
)
def test_reward_types_by_hand(reward_type, below, above):
    aspects = [torch.tensor([1.0, 0.0, 2.0]), torch.tensor([1.0, 0.0, 2.0])]
    combined = combine_rewards(aspects, torch.tensor([0.5, 0.7]), NONE_SHORT, recipe(reward_type))
    assert [rewards.tolist() for rewards in combined] == [below, above]
    assert aspects[0].tolist() == [1.0, 0.0, 2.0]  # new tensors, inputs untouched


@pytest.mark.parametrize("reward_type", REWARD_TYPES)
def test_too_short_gets_the_penalty_and_no_aspect(reward_type):
    holistic = normalise_holistic(torch.tensor([9.0]), 0.0, 1.0, torch.tensor([True]))
    combined = combine_rewards([torch.tensor([7.0, 7.0])], holistic, torch.tensor([True]), recipe(reward_type))
    assert combined[0].tolist() == [0.0, -50.0]


def test_unknown_reward_type_is_refused():
    with pytest.raises(ValueError, match="sum"):
        recipe("sum")


@given(
    aspects=st.lists(st.floats(0, 1, width=32), min_size=1, max_size=6),
    low=st.floats(-3, 0.59),
    high=st.floats(0.61, 3),
)
def test_crossing_the_threshold_never_lowers_a_shaped_total(aspects, low, high):
    vectors = [torch.tensor(aspects), torch.tensor(aspects)]
    below, above = combine_rewards(vectors, torch.tensor([low, high]), NONE_SHORT, recipe("hierarchical"))
    assert above.sum() >= below.sum()


@pytest.mark.parametrize("folder", GOLDEN)
@pytest.mark.parametrize("task", ["qa", "mt"])
def test_golden_combination(folder: Path, task: str):
    golden = json.loads((folder / f"combine_{task}.json").read_text())
    constants = golden["constants"]
    assert len(golden["cases"]) == {"qa": 16, "mt": 32}[task]
    worst = 0.0
    for case in golden["cases"]:
        inputs = case["fg_rewards_in"] if task == "qa" else case["fg_in"]["rewards"]
        aspects = [torch.tensor(rewards, dtype=torch.float32) for rewards in inputs]
        too_short = torch.zeros(len(aspects), dtype=torch.bool)
        too_short[case["too_short_idx"]] = True
        holistic = normalise_holistic(
            torch.tensor(case["raw_holistic"], dtype=torch.float64),
            constants["ultra_mean"],
            constants["ultra_std"],
            too_short,
        )
        assert holistic.tolist() == pytest.approx(case["holistic_rewards"], abs=1e-5)
        if case["length_reward"]:
            aspects = length_rewards([len(rewards) for rewards in aspects], constants["length_mean"])
        combined = combine_rewards(
            aspects,
            holistic,
            too_short,
            RewardRecipe(case["reward_type"], constants["hierarchical_threshold"], constants["holistic_reward_weight"]),
        )
        for ours, theirs in zip(combined, case["rewards"], strict=True):
            worst = max(worst, (ours - torch.tensor(theirs)).abs().max().item())
    print(f"combine_{task}: largest difference {worst:.1e}")
    assert worst < 1e-5
