"""Settings: what they pay is what training pays, and only what a combiner reads is varied."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alarm import Aspect, Task
from alarm.combiners import COMBINERS, Options
from alarm.common.errors import UserError
from alarm.evaluation.best_of_n import settings as module
from alarm.evaluation.best_of_n.ranking import Ranking
from alarm.evaluation.best_of_n.samples import Samples
from alarm.evaluation.best_of_n.settings import PARTS, READS, Payer, Scale, grid, scale_of
from alarm.recipe import PLACEMENTS, SHAPINGS, RewardRecipe
from alarm.rewards import combine
from alarm.training.main import parse_args
from alarm.types import Measured, TokenScore

TASK = Task("toy", prompt=str, aspects=[Aspect("facts", len, weight=1.0), Aspect("style", len)])
VARIED = {
    "threshold": (-0.5, 0.7),
    "holistic_weight": (0.3, 4.0),
    "shaping": ("none", "centred"),
    "placement": ("spans", "mean_over_spans"),
    "weights": ({"facts": 1.0, "style": 0.2}, {"facts": 0.1, "style": 3.0}),
    "multipliers": ({}, {"facts": 4.0, "style": -4.0}),
    "gate_temperature": (0.05, 3.0),
    "references": ({}, {"holistic": 2.0, "facts": -2.0}),
    "variance_cost": (0.0, 3.0),
    "failed_range": (0.0, 0.9),
    "passed_range": (0.0, 0.9),
    "decoupled_cv": (False, True),
    "decoupled_conflict": (0.0, 0.9),
    "decoupled_raw": (False, True),
    "targets": ({}, {"facts": 3.0}),
    "multiplier_lr": (0.05, 3.0),
}


def make(prompts: int = 30, size: int = 5, seed: int = 0, empty: int = 0) -> Samples:
    random = np.random.default_rng(seed)
    count = prompts * size
    values = [[random.normal(size=random.integers(0, 5)) for _ in range(count)] for _ in range(2)]
    return Samples(
        path="samples.json",
        index=np.repeat(np.arange(prompts), size),
        sample=np.tile(np.arange(size), prompts),
        queries=[f"q{i // size}" for i in range(count)],
        answers=[" " if i < empty else f"answer {i}" for i in range(count)],
        raw=random.normal(size=count) + np.repeat(random.normal(size=prompts), size),
        baseline=random.normal(size=count),
        values=dict(zip(("facts", "style"), values, strict=True)),
        best={"facts": 0.5, "style": 0.0},
        columns={},
    )


def recipe_of(name: str, **changes) -> RewardRecipe:
    options = {key: changes.pop(key) for key in list(changes) if key in Options.__dataclass_fields__}
    base = {"threshold": 0.1, "holistic_weight": 1.0, "weights": {"facts": 1.0, "style": 0.5}, "holistic_std": 1.4}
    return RewardRecipe(name, **base | changes, options=Options(**options))


@pytest.mark.parametrize("name", COMBINERS)
@pytest.mark.parametrize("shaping", SHAPINGS)
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_setting_pays_what_training_pays(name, shaping, placement):
    samples = make(prompts=6, empty=2)
    payer = Payer(samples)
    scores = {}
    for aspect, rows in samples.values.items():
        tokens = [torch.arange(len(row)) for row in rows]
        scores[aspect] = TokenScore(tokens, [torch.from_numpy(row) for row in rows], {}, [], samples.best[aspect])
    for baseline in ("none", "group", "greedy"):
        recipe = recipe_of(name, shaping=shaping, placement=placement, baseline=baseline)
        given_baseline = torch.from_numpy(samples.baseline) if baseline == "greedy" else None
        raw = torch.from_numpy(samples.raw)
        measured = Measured([5] * len(raw), payer.too_short, raw, scores, given_baseline)
        payment = combine(measured, recipe, payer.groups)
        wanted = [row.double().sum().item() for row in payment.rewards]
        assert payer.pay(recipe).tolist() == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("name", COMBINERS)
def test_what_a_combiner_does_not_read_changes_no_ranking(name):
    samples = make()
    payer = Payer(samples)

    def key(**changes) -> bytes:
        return Ranking(payer.pay(recipe_of(name, **changes))[None], samples.sizes).keys()[0]

    for what, values in VARIED.items():
        assert (len({key(**{what: value}) for value in values}) > 1) == (what in READS[name]), what
    # baselines have scales of their own; divided by the group's deviation, that of h does not matter
    changed = key() != key(baseline="group", holistic_mean=0.0, holistic_std=0.2)
    assert changed == ("baseline" in READS[name] and name != "decoupled")


def test_the_grid_varies_what_is_read():
    lists = {"holistic_weight": [1.0, 2.0], "shaping": ["none"], "placement": ["spans"], "baseline": ["none"]}
    lists |= {"gate_temperature": [0.1, 0.2, 0.3], "multipliers": [{}]}
    weights = {"facts": [0.0, 1.0], "style": [0.0]}
    scales, thresholds = {"none": Scale(0.5, 2.0, "flags")}, {"none": [0.0, 1.0]}
    found = grid(TASK, list(COMBINERS), lists, weights, scales, thresholds)
    counts = {name: sum(one.recipe.reward_type == name for one in found) for name in COMBINERS}
    assert counts["holistic_only"] == 1 and counts["hierarchical"] == 4 and counts["soft_gate"] == 12
    assert counts["weighted_sum"] == 2 and counts["aspect_only"] == 1
    assert all(one.recipe.holistic_std == 2.0 for one in found)
    (soft, *_) = (one for one in found if one.recipe.reward_type == "soft_gate")
    assert soft.flags["w_facts"] == 1.0 and "--gate_temperature 0.1" in soft.command
    assert "variance_cost" not in soft.flags


@pytest.mark.parametrize("name", COMBINERS)
def test_training_takes_the_flags_of_a_setting(name):
    """What is printed, typed into train_ppo.py, is the recipe that ranked."""
    lists = {"holistic_weight": [0.7], "shaping": ["centred"], "placement": ["mean_over_spans"]}
    lists |= {"baseline": ["group"], "multipliers": [{}], "gate_temperature": [0.3], "variance_cost": [0.2]}
    lists |= {"references": [{"holistic": 1.5, "facts": -0.5}], "failed_range": [0.1], "passed_range": [0.2]}
    lists |= {"decoupled_cv": [True], "decoupled_conflict": [0.4]}
    scales, thresholds = {"group": Scale(0.0, 1.0 / 3, "measured")}, {"group": [-1.0 / 7]}
    (setting,) = grid(TASK, [name], lists, {"facts": [0.1], "style": [-2.0]}, scales, thresholds)
    args = parse_args(TASK, "", ["--save_dir", "x", *setting.command.split()])
    found, wanted = RewardRecipe.from_flags(args, TASK), setting.recipe
    for what in READS[name]:
        if what in Options.__dataclass_fields__:
            assert getattr(found.options, what) == getattr(wanted.options, what), what
        else:
            assert getattr(found, what) == getattr(wanted, what), what
    if "baseline" in READS[name]:
        assert (found.holistic_mean, found.holistic_std) == (wanted.holistic_mean, wanted.holistic_std)


def test_a_baseline_comes_with_its_scale():
    lists = {"holistic_weight": [1.0], "shaping": ["none"], "placement": ["spans"], "baseline": ["none", "group"]}
    scales = {"none": Scale(0.5, 2.0, "flags"), "group": Scale(0.0, 1.5, "measured")}
    weights = {"facts": [1.0], "style": [0.0]}
    plain, group = grid(TASK, ["weighted_sum"], lists, weights, scales, {"none": [0.0], "group": [0.0]})
    assert "ultra_std" not in plain.flags and group.flags["ultra_std"] == 1.5 and group.recipe.holistic_std == 1.5


def test_too_many_settings(monkeypatch):
    lists = {"holistic_weight": list(np.linspace(0, 1, 400)), "shaping": ["none"], "placement": ["spans"]}
    lists |= {"baseline": ["none"]}
    weights = {"facts": list(np.linspace(0.1, 1, 400)), "style": [0.0]}
    with pytest.raises(UserError, match=str(module.MOST)):
        grid(TASK, ["weighted_sum"], lists, weights, {"none": Scale(0, 1, "")}, {"none": [0.0]})


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.sampled_from(["none", "group"]))
def test_a_measured_scale_gives_mean_0_and_deviation_1(seed, baseline):
    payer = Payer(make(prompts=4, seed=seed, empty=3))
    scale = scale_of(payer, baseline)
    recipe = recipe_of("holistic_only", baseline=baseline, holistic_mean=scale.mean)
    recipe = replace(recipe, holistic_std=scale.std)
    h = payer.scores(recipe).h[~payer.too_short]
    assert h.mean().item() == pytest.approx(0, abs=1e-9) and h.std(correction=0).item() == pytest.approx(1)


def test_equal_scores_have_no_scale():
    samples = replace(make(prompts=2), raw=np.full(10, 3.0))
    with pytest.raises(UserError, match="equal"):
        scale_of(Payer(samples), "none")


def test_every_built_in_combiner_says_what_it_reads():
    assert READS.keys() == COMBINERS.keys()
    known = {*PARTS, "threshold", "multipliers", *Options.__dataclass_fields__}
    assert set().union(*READS.values()) <= known
