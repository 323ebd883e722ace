"""Shaping, weighing and combining rewards."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alarm.combiners import COMBINERS
from alarm.recipe import RewardRecipe
from alarm.rewards import length_rewards, normalise_holistic, pay, sigmoid_shape, weigh_aspects
from helpers import GOLDEN


def recipe(reward_type: str, **changes) -> RewardRecipe:
    return RewardRecipe(reward_type, **{"threshold": 0.6, "holistic_weight": 5.0, "weights": {"a": 1.0}} | changes)


def pay_one(aspects: list[torch.Tensor], h: torch.Tensor, too_short: torch.Tensor, how: RewardRecipe):
    """`pay` with one aspect, for answers to one prompt."""
    groups = torch.zeros(len(h), dtype=torch.int64)
    return pay({"a": aspects}, [len(row) for row in aspects], h, too_short, how, groups)


NONE_SHORT = torch.tensor([False, False])


def test_sigmoid_shape_by_hand():
    assert sigmoid_shape(torch.tensor([0.0, math.log(3.0)])).tolist() == pytest.approx([0.5, 0.75])


def test_normalise_holistic_by_hand():
    h = normalise_holistic(torch.tensor([5.0, 1.0, 9.0]), 3.0, 2.0, torch.tensor([False, False, True]))
    assert h.tolist() == [1.0, -1.0, -10.0]
    assert h.dtype == torch.float64


def test_weigh_aspects_by_hand():
    aspects = {
        "relevance": [torch.tensor([0.0, 1.0]), torch.tensor([2.0])],
        "factuality": [torch.tensor([4.0, 0.0]), torch.tensor([8.0])],
        "completeness": [torch.tensor([math.nan, 0.0]), torch.tensor([1.0])],
    }
    total = weigh_aspects(aspects, torch.tensor([[1.0, 0.5, 0.0], [1.0, 0.25, 0.0]]), [2, 1])
    assert [rewards.tolist() for rewards in total] == [[2.0, 1.0], [4.0]]
    assert aspects["relevance"][0].tolist() == [0.0, 1.0]  # inputs untouched


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
    combined = pay_one(aspects, torch.tensor([0.5, 0.7]), NONE_SHORT, recipe(reward_type)).rewards
    assert [rewards.tolist() for rewards in combined] == [below, above]
    assert aspects[0].tolist() == [1.0, 0.0, 2.0]  # new tensors, inputs untouched


@pytest.mark.parametrize("reward_type", COMBINERS)
def test_too_short_gets_the_penalty_and_no_aspect(reward_type):
    too_short, aspects = torch.tensor([True, False]), [torch.tensor([7.0, 7.0])] * 2
    holistic = normalise_holistic(torch.tensor([9.0, 9.0]), 0.0, 1.0, too_short)
    paid = pay_one(aspects, holistic, too_short, recipe(reward_type))
    assert paid.rewards[0].tolist() == [0.0, -50.0]
    # even if the threshold lies below the penalty
    assert pay_one(aspects, holistic, too_short, recipe(reward_type, threshold=-20.0)).gate.tolist() == [0.0, 1.0]


@pytest.mark.parametrize(
    ("reward_type", "aspects", "holistic"),
    [
        ("hierarchical", [0.0, 0.5, 0.0], [-1.0, 1.4, -20.0]),
        ("holistic_only", [0.0, 0.0, 0.0], [-1.0, 1.4, -20.0]),
        ("aspect_only", [2.5, 0.5, 0.0], [0.0, 0.0, -20.0]),
        ("weighted_sum", [2.5, 0.5, 0.0], [-1.0, 1.4, -20.0]),
    ],
)
def test_parts_of_a_payment_by_hand(reward_type, aspects, holistic):
    vectors = [torch.tensor([1.0, -0.5, 2.0]), torch.tensor([0.25, 0.25]), torch.tensor([7.0])]
    h, too_short = torch.tensor([-0.5, 0.7, -10.0], dtype=torch.float64), torch.tensor([False, False, True])
    paid = pay_one(vectors, h, too_short, recipe(reward_type, holistic_weight=2.0))
    assert [part.sum().item() for part in paid.aspects] == aspects
    assert paid.holistic.tolist() == pytest.approx(holistic)
    assert paid.gate.tolist() == [0.0, 1.0, 0.0]
    for reward, part, last in zip(paid.rewards, paid.aspects, paid.holistic.tolist(), strict=True):
        assert reward[:-1].tolist() == part[:-1].tolist()
        assert reward[-1].item() == pytest.approx(part[-1].item() + last)


def exact_gate(raw: float, mean: float, std: float, threshold: float) -> float:
    """What the paper's comparison gives for numbers as a calibration file holds them."""
    return float((raw - mean) / std >= threshold)


def test_a_score_at_a_calibrated_threshold_is_paid_as_it_is_logged():
    # bfloat16 scores tie, so a quantile is often one of them: the gate decides by >= of the same float64 numbers
    for trial in range(100):
        raw = (torch.randn(51, generator=torch.Generator().manual_seed(trial)) * 3 - 5).bfloat16().float()
        mean, std = raw.double().mean().item(), raw.double().std(correction=0).item()
        threshold = (raw.double().median().item() - mean) / std
        one = recipe("hierarchical", holistic_mean=mean, holistic_std=std, threshold=threshold, holistic_weight=0.0)
        none_short = torch.zeros(len(raw), dtype=torch.bool)
        h = normalise_holistic(raw, mean, std, none_short)
        paid = pay_one([torch.ones(2)] * len(raw), h, none_short, one)
        assert paid.gate.tolist() == [exact_gate(x, mean, std, threshold) for x in raw.tolist()]
        assert [reward[0].item() for reward in paid.rewards] == paid.gate.tolist()


@pytest.mark.parametrize("reward_type", COMBINERS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_holistic_score_that_is_not_finite_stays_visible(reward_type, value):
    h = normalise_holistic(torch.tensor([value, 9.0]), 0.0, 1.0, NONE_SHORT)
    paid = pay_one([torch.ones(2), torch.ones(2)], h, NONE_SHORT, recipe(reward_type))
    assert math.isnan(paid.gate[0].item()) and paid.gate[1].item() == 1
    # aspect_only does not pay it
    assert torch.isfinite(paid.rewards[0]).all() == (reward_type == "aspect_only")
    # decoupled compares with it, and whitens over the batch
    assert torch.isfinite(paid.rewards[1]).all() == (reward_type != "decoupled")


def test_an_aspect_that_is_not_finite_is_paid_as_it_is_or_not_at_all():
    aspects = [torch.tensor([math.nan, 1.0]), torch.tensor([math.nan, 1.0])]
    paid = pay_one(aspects, torch.tensor([0.5, 0.7]), NONE_SHORT, recipe("hierarchical"))
    assert paid.rewards[0].tolist() == [0.0, 2.5]
    assert math.isnan(paid.rewards[1][0].item()) and paid.rewards[1][1].item() == 4.5


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
    below, above = pay_one(vectors, torch.tensor([low, high]), NONE_SHORT, recipe("hierarchical")).rewards
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
        combined = pay_one(
            aspects,
            holistic,
            too_short,
            RewardRecipe(
                case["reward_type"],
                constants["hierarchical_threshold"],
                constants["holistic_reward_weight"],
                {"a": 1.0},
            ),
        )
        for ours, theirs in zip(combined.rewards, case["rewards"], strict=True):
            worst = max(worst, (ours - torch.tensor(theirs)).abs().max().item())
    print(f"combine_{task}: largest difference {worst:.1e}")
    assert worst < 1e-5
