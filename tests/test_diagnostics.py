"""What a training step says about its rewards: sizes, correlation with length, drift. By hand, and by chance."""

from __future__ import annotations

import json
import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alarm.diagnostics import (
    HALF_LIFE,
    MIN_WEIGHT,
    Diagnostics,
    Scale,
    Seen,
    add_to_moments,
    aspect_share,
    excess,
    mean_and_std,
    pearson,
    update_drift,
)
from alarm.rewards import RewardRecipe, pay
from alarm.training.log import training_row, with_text
from alarm.training.loop import improves

UNIT = {"h": Scale(0.0, 1.0)}

# --- what was paid ---------------------------------------------------------------------------------------------------


@given(
    st.sampled_from(["hierarchical", "holistic_only", "aspect_only", "weighted_sum", "soft_gate", "lagrangian"]),
    st.lists(st.floats(0, 1, width=32), min_size=1, max_size=5),
    st.floats(-3, 3, width=32),
    st.booleans(),
)
def test_sizes_of_positive_aspects_add_up_to_the_reward(reward_type, tokens, h, empty):
    recipe = RewardRecipe(reward_type, threshold=0.0, holistic_weight=3.0, weights={"a": 1.0})
    paid = pay({"a": [torch.tensor(tokens)]}, [len(tokens)], torch.tensor([h]), torch.tensor([empty]), recipe)
    parts = paid.aspects[0].abs().sum().item() + math.copysign(paid.holistic.abs().item(), h)
    assert paid.rewards[0].sum().item() == pytest.approx(parts, abs=1e-4)


def test_aspect_share_by_hand():
    assert aspect_share([1.0, 0.0], [2.0, 1.0]) == 0.25
    assert aspect_share([0.0], [0.0]) is None


# --- correlation -----------------------------------------------------------------------------------------------------


def test_pearson_by_hand():
    assert pearson([1, 2, 3], [2, 4, 6]) == pytest.approx(1)
    assert pearson([1, 2, 3], [1, 0, -1]) == pytest.approx(-1)
    # deviations (-1, 0, 1) and (-1, 1, 0): 1 / 2
    assert pearson([1, 2, 3], [0, 2, 1]) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("x", "y"),
    [([], []), ([1, 2], [3, 4]), ([1, 1, 1], [1, 2, 3]), ([1, 2, 3], [5, 5, 5]), ([1, 2, math.nan], [1, 2, 3])],
)
def test_pearson_is_none_where_it_is_not_defined(x, y):
    assert pearson(x, y) is None


@given(st.lists(st.tuples(st.integers(-50, 50), st.integers(-50, 50)), min_size=3, max_size=20))
def test_pearson_agrees_with_numpy(pairs):
    x, y = zip(*pairs, strict=True)
    found = pearson(x, y)
    if found is None:
        assert len(set(x)) == 1 or len(set(y)) == 1
    else:
        assert found == pytest.approx(np.corrcoef(x, y)[0, 1], abs=1e-9)


def samples(**changes) -> dict[str, list[float]]:
    return {
        "holistic_reward": [0.0, 1.0, 2.0, -10.0],
        "response_length": [4.0, 5.0, 6.0, 1.0],
        "factuality_rate": [1.0, 1.0, 1.0, 0.5],
        "reward": [0.0, 3.0, 6.0, -30.0],
        "gate_rate": [0.0, 1.0, 1.0, 0.0],
        "empty_rate": [0.0, 0.0, 0.0, 1.0],
        "aspect_paid": [0.0, 2.0, 2.0, 0.0],
        "holistic_paid": [0.0, 3.0, 6.0, 3.0],
    } | changes


STATS = {"ppo/updates": 4, "ppo/skipped_nonfinite": 0, "objective/kl": 0.25, "objective/kl_coef": 0.2}


def test_a_training_row_by_hand():
    row = training_row(samples(), STATS)
    assert row["holistic_reward"] == -7 / 4 and row["gate_rate"] == 0.5 and row["empty_rate"] == 0.25
    assert row["aspect_share"] == 4 / 16
    # over the responses with text: lengths and rewards rise together, the rate is constant
    assert row["length_correlation/holistic_reward"] == pytest.approx(1)
    assert row["length_correlation/factuality_rate"] is None
    assert {name for name in row if "/" in name} == {
        "length_correlation/holistic_reward",
        "length_correlation/factuality_rate",
    }
    assert (row["kl"], row["kl_coef"], row["skipped"]) == (0.25, 0.2, 0)
    assert with_text(samples())["holistic_reward"] == [0.0, 1.0, 2.0]


def test_a_row_with_nan_says_so_and_keeps_the_rest():
    row = training_row(samples(holistic_reward=[0.0, math.nan, 2.0, -10.0]), STATS)
    assert math.isnan(row["holistic_reward"]) and row["length_correlation/holistic_reward"] is None
    assert row["gate_rate"] == 0.5


# --- drift -----------------------------------------------------------------------------------------------------------


def test_moments_halve_after_a_half_life():
    moments = add_to_moments([0.0, 0.0, 0.0], [1.0, 3.0])
    assert moments == [2.0, 4.0, 10.0] and mean_and_std(moments) == (2.0, 1.0)
    later = add_to_moments(moments, [0.0] * HALF_LIFE)
    assert later == pytest.approx([1.0 + HALF_LIFE, 2.0, 5.0])
    assert add_to_moments(moments, [math.nan, math.inf]) == moments


def watch(batches: list[list[float]], scales=UNIT, state: dict | None = None):
    """-> the state at the end, and (step, kind) of every warning."""
    state, found = state or {}, []
    for step, batch in enumerate(batches, start=1):
        state, row, warnings = update_drift(state, scales, dict.fromkeys(scales, batch))
        assert not warnings or row
        found += [(step, kind) for kind in warnings]
        state = json.loads(json.dumps(state))  # what a checkpoint does to it
    return state, found


def normal(steps: int, size: int, mean: float = 0.0, std: float = 1.0, seed: int = 0) -> list[list[float]]:
    rng = random.Random(seed)
    return [[rng.gauss(mean, std) for _ in range(size)] for _ in range(steps)]


@pytest.mark.parametrize("size", [2, 8, 64])
def test_responses_as_calibrated_never_warn(size):
    for seed in range(10):
        assert watch(normal(3000 // size, size, seed=seed))[1] == []
    # the paper's runs end at a mean of 0.6
    assert watch(normal(3000 // size, size, mean=0.6))[1] == []


def test_nothing_is_said_of_too_few_responses():
    _, row, warnings = update_drift({}, UNIT, {"h": [9.0] * (MIN_WEIGHT - 1)})
    assert row == {} and warnings == {}
    _, row, warnings = update_drift({}, UNIT, {"h": [9.0] * MIN_WEIGHT})
    assert row == {"drift/h_mean": 9.0, "drift/h_std": 0.0} and set(warnings) == {"h_mean", "h_std"}


def test_a_shift_warns_once_and_again_when_it_has_doubled():
    state, found = watch(normal(40, 8, mean=1.5))
    assert [kind for _, kind in found] == ["h_mean"] and found[0][0] * 8 >= MIN_WEIGHT
    assert watch(normal(40, 8, mean=1.9), state=state)[1] == []
    assert [kind for _, kind in watch(normal(40, 8, mean=3.6), state=state)[1]] == ["h_mean"]


def test_a_spread_that_grows_or_collapses_warns():
    assert [kind for _, kind in watch(normal(60, 8, std=2.6))[1]] == ["h_std"]
    assert [kind for _, kind in watch(normal(60, 8, std=0.3))[1]] == ["h_std"]
    assert watch(normal(60, 8, std=0.75))[1] == []


def test_a_deviation_made_by_rare_responses_may_vanish_by_chance():
    """One length in forty differs: a running deviation of 0 says little, and nothing is said."""
    assert excess(0.0, 0.1, 64, Scale(0.0, 1.0))["std"] == 5.0
    assert excess(0.0, 0.1, 64, Scale(0.0, 1.0, std_noise=4.0))["std"] == 0.0


def test_warnings_give_the_numbers():
    scales = {"response_length": Scale(100.0, 20.0)}
    _, row, warnings = update_drift({}, scales, {"response_length": [150.0, 160.0] * 32})
    assert row == {"drift/response_length_mean": pytest.approx(2.75), "drift/response_length_std": pytest.approx(0.25)}
    assert "mean of response_length is 155, calibrated 100: +2.75" in warnings["response_length_mean"]
    assert "deviation of response_length is 5, calibrated 20" in warnings["response_length_std"]


def test_state_goes_on_where_it_was():
    batches = normal(60, 4, mean=0.9, std=1.2)
    whole, found = watch(batches)
    half, first = watch(batches[:17])
    other, rest = watch(batches[17:], state=half)
    assert other == whole and found == first + [(step + 17, kind) for step, kind in rest]


# --- the other warnings: hand-made series ----------------------------------------------------------------------------

LIMIT = 100


def a_step(rng: random.Random, progress: float = 1.0, size: int = 16, **changes) -> Seen:
    """A step of a run that goes well: h rises by 0.6, lengths by a fifth, the KL to 0.2 nats a token."""
    h = [rng.gauss(0.6 * progress, 1) for _ in range(size)]
    length = [min(LIMIT, max(1, round(rng.gauss(60 + 12 * progress + 4 * x, 25)))) for x in h]
    factual = [rng.gauss(0.3 * progress, 0.5) for _ in range(size)]
    gate = [float(x >= 0.6) for x in h]
    reward = [x + g * f for x, g, f in zip(h, gate, factual, strict=True)]
    parts = {"holistic": h, "factual": factual}
    values = {"empty": [0.0] * size, "length": length, "reward": reward, "gate": gate, "parts": parts}
    return Seen(**values | {"kl": 0.2 * progress + rng.gauss(0, 0.05)} | changes)


def warned_of(steps: list[Seen], **settings) -> tuple[list[str], Diagnostics]:
    """The kinds in the order of their warnings; the state goes through JSON at each step, as in a checkpoint."""
    watch, kinds = Diagnostics(max_length=LIMIT, **settings), []
    for seen in steps:
        _, warnings = watch.update(seen)
        assert all("Try: " in text for text in warnings.values())
        kinds += warnings
        watch = Diagnostics(max_length=LIMIT, **settings, state=json.loads(json.dumps(watch.state)))
    return kinds, watch


@pytest.mark.parametrize("size", [2, 16, 64])
def test_a_run_that_goes_well_never_warns(size):
    steps = 1600 // size
    for seed in range(4):
        rng = random.Random(seed)
        kinds, watch = warned_of([a_step(rng, k / steps, size) for k in range(steps)])
        assert kinds == [] and watch.collapsed() == []


def ends(rng: random.Random, count: int = 20, **changes) -> list[Seen]:
    """A run that goes well for 10 steps, and then has these values."""
    return [a_step(rng, 0.1) for _ in range(10)] + [a_step(rng, 0.1, **changes) for _ in range(count)]


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("gate_closed", {"gate": [0.0] * 16}),
        ("gate_open", {"gate": [1.0] * 16}),
        ("empty", {"empty": [1.0, 1.0, 1.0, 0.0] * 4}),
        ("full_length", {"length": [LIMIT] * 16}),
        ("kl", {"kl": 1.8}),
        ("ceiling/factual", {"parts": {"holistic": [k / 4 - 2 for k in range(16)], "factual": [1.0] * 16}}),
        ("dominance/factual", {"parts": {"holistic": [0.0, 1.0] * 8, "factual": [-50.0, 50.0] * 8}}),
        ("dominance/holistic", {"parts": {"holistic": [-50.0, 50.0] * 8, "factual": [0.0, 1.0] * 8}}),
        ("length", {"length": [*range(40, 72, 2)], "reward": [k + 0.1 * (-1) ** k for k in range(16)]}),
    ],
)
def test_each_warning_comes_once(kind, changes):
    kinds, watch = warned_of(ends(random.Random(1), count=40, **changes))
    expected = (
        {kind, "dominance/holistic"} if kind.startswith("ceiling") else {kind}
    )  # what is constant leaves the rest
    assert sorted(kinds) == sorted(expected)
    collapsed = watch.collapsed()
    assert len(collapsed) == (kind in ("empty", "full_length", "kl"))
    assert all("collapsed" in line and "Try: " in line for line in collapsed)


def test_running_numbers_by_hand():
    watch = Diagnostics(max_length=10, reward_type="weighted_sum")
    few = Seen([0.0], [4], [1.0], [1.0], {"holistic": [1.0], "a": [0.0]}, kl=0.5)
    assert watch.update(few) == ({}, {}) and watch.collapsed() == []
    lengths, rewards = [4, 10, 4, 10] * 8, [1.0, 2.0, 3.0, 4.0] * 8
    # one step of 40, 8 of them without text
    watch = Diagnostics(max_length=10, reward_type="hierarchical")
    parts = {"holistic": [-3.0, 3.0] * 16, "a": [-1.0, 1.0] * 16}
    row, warnings = watch.update(Seen([1.0] * 8 + [0.0] * 32, lengths, rewards, [1.0, 0.0] * 16, parts, kl=0.5))
    # deviations of (4, 10) and (1, 2, 3, 4): 3 and sqrt(1.25); covariance 3 * (-1.5 + .5 - -.5 ...) = 1.5
    assert row == {
        "running/empty_rate": pytest.approx(0.2),
        "running/gate_rate": 0.5,
        "running/full_length_rate": 0.5,
        "running/kl_per_token": 0.5,
        "running/share/holistic": pytest.approx(0.75),
        "running/share/a": pytest.approx(0.25),
        "running/length_correlation": pytest.approx(1.5 / (3 * math.sqrt(1.25))),
    }
    assert warnings == {}


def test_a_run_that_starts_at_full_length_has_not_collapsed():
    """A policy that never ends its answers is another problem, and known before training."""
    full = [a_step(random.Random(k), length=[LIMIT] * 16) for k in range(40)]
    assert warned_of(full)[0] == []


def test_a_collapse_that_has_passed_is_not_on_the_last_screen():
    rng = random.Random(3)
    kinds, watch = warned_of(ends(rng, kl=1.8) + [a_step(rng, 0.1) for _ in range(60)])
    assert kinds == ["kl"] and watch.collapsed() == []


def test_no_word_about_a_gate_or_a_sum_that_is_not_there():
    changes = {"gate": [0.0] * 16, "parts": {"holistic": [-50.0, 50.0] * 8, "factual": [0.0, 1.0] * 8}}
    assert warned_of(ends(random.Random(2), **changes), reward_type="decoupled")[0] == []
    assert warned_of(ends(random.Random(2), gate=[0.0] * 16), reward_type="weighted_sum")[0] == []


def test_numbers_that_are_not_finite_take_no_part():
    parts = {"holistic": [math.nan] * 16, "factual": [math.inf] * 16}
    kinds, _ = warned_of([a_step(random.Random(k), reward=[math.nan] * 16, parts=parts, kl=math.nan) for k in range(9)])
    assert kinds == []


# --- the best policy -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "best", "better"),
    [
        (1.0, None, True),
        (1.0, 0.5, True),
        (1.0, 1.0, False),
        (0.5, 1.0, False),
        (math.nan, None, False),
        (math.nan, 1.0, False),
        (1.0, math.nan, True),
        (math.inf, 1.0, False),
    ],
)
def test_a_total_reward_that_is_not_finite_is_never_the_best(found, best, better):
    assert improves({"total_reward": found}, None if best is None else {"total_reward": best}) is better
