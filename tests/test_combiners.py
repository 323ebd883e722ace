"""Each combiner by hand: two aspects, two prompts with two answers each."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alarm.combiners import COMBINERS, Options, update_multipliers
from alarm.recipe import RewardRecipe
from alarm.rewards import combine, pay, shape
from alarm.types import Measured, TokenScore

H = torch.tensor([1.0, -1.0, 2.0, 0.0], dtype=torch.float64)
GROUPS = torch.tensor([0, 0, 7, 7])
FACTS = [torch.tensor([0.5, 0.5]), torch.tensor([2.0]), torch.tensor([0.0, 0.0, 1.0]), torch.tensor([3.0])]  # 1 2 1 3
STYLE = [torch.tensor([0.0, 4.0]), torch.tensor([0.0]), torch.tensor([1.0, 0.0, 1.0]), torch.tensor([-2.0])]  # 4 0 2 -2


def paid(reward_type: str, groups: torch.Tensor | None = GROUPS, too_short=(), **changes):
    options = {name: changes.pop(name) for name in list(changes) if name in Options.__dataclass_fields__}
    recipe = RewardRecipe(
        reward_type,
        **{"threshold": 0.5, "holistic_weight": 2.0, "weights": {"facts": 1.0, "style": 0.5}} | changes,
        options=Options(**options),
    )
    short = torch.tensor([i in too_short for i in range(4)])
    lengths = [len(row) for row in FACTS]
    return pay({"facts": FACTS, "style": STYLE}, lengths, H.masked_fill(short, -10.0), short, recipe, groups)


def totals(payment) -> list[float]:
    return [row.double().sum().item() for row in payment.rewards]


def sg(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_soft_gate():
    # w_h h is 2, -2, 4, 0; the weighted aspects are 3, 2, 2, 2
    gates = [sg((h - 0.5) / 0.1) for h in H.tolist()]
    expected = [2 + 3 * gates[0], -2 + 2 * gates[1], 4 + 2 * gates[2], 2 * gates[3]]
    assert totals(paid("soft_gate", gate_temperature=0.1)) == pytest.approx(expected, abs=1e-6)


def test_soft_gate_becomes_the_gate():
    assert totals(paid("soft_gate", gate_temperature=1e-4)) == pytest.approx(totals(paid("hierarchical")))


def test_log_sigmoid():
    found = paid("log_sigmoid", references={"holistic": 1.0, "facts": 2.0})
    first = 2 * math.log(sg(0)) + math.log(sg(-1)) + 0.5 * math.log(sg(4))
    assert totals(found)[0] == pytest.approx(first)
    assert found.rewards[0].tolist() == [0.0, pytest.approx(first)]  # on the last token
    assert found.response.tolist()[0] == pytest.approx(first) and found.holistic.tolist() == [0.0] * 4


def test_log_sigmoid_of_very_bad_scores_is_finite():
    h = torch.tensor([-2000.0], dtype=torch.float64)
    recipe = RewardRecipe("log_sigmoid", 0.0, 1.0, {"a": 1.0})
    found = pay({"a": [torch.tensor([0.0])]}, [1], h, torch.tensor([False]), recipe)
    assert totals(found) == pytest.approx([-2000 + math.log(0.5)])


def test_worst_case_and_uncertainty():
    # parts: (2, 1, 2), (-2, 2, 0), (4, 1, 1), (0, 3, -1)
    assert totals(paid("worst_case")) == [1.0, -2.0, 1.0, -1.0]
    # mean 5/3, mean of squares 3, variance 3 - 25/9 = 2/9
    assert totals(paid("uncertainty", variance_cost=0.5))[0] == pytest.approx(5 / 3 - 0.5 * 2 / 9)


def test_stratified():
    # both sides of the gate have one answer for each prompt: 1/2 of each range
    assert totals(paid("stratified", failed_range=0.1, passed_range=0.2)) == pytest.approx([2.0, 0.0, 2.0, 0.0])
    # all pass: the weighted aspects are 3, 2 and 2, 2
    found = paid("stratified", threshold=-5.0, failed_range=0.1, passed_range=0.2)
    assert totals(found) == pytest.approx([2 * 1.2, 2 * 0.8, 2.0, 2.0])
    # none passes
    found = paid("stratified", threshold=5.0, failed_range=0.1, passed_range=0.2)
    assert totals(found) == pytest.approx([2 * 0.1, -2 * 0.1, 0.0, 0.0], abs=1e-6)


def test_lagrangian():
    found = paid("lagrangian", multipliers={"facts": math.log(3), "style": 0.0})  # shares 0.75 and 0.5
    expected = [
        0.75 * facts + 0.5 * 0.5 * style + (2 - 1.25) * 2 * h
        for facts, style, h in zip([1, 2, 1, 3], [4, 0, 2, -2], H.tolist(), strict=True)
    ]
    assert totals(found) == pytest.approx(expected)
    assert found.aspects[2].tolist() == pytest.approx([0.25, 0.0, 1.0])  # on the tokens


def test_a_multiplier_grows_while_its_aspect_is_below_its_target():
    recipe = RewardRecipe(
        "lagrangian", 0.0, 1.0, {"facts": 1.0, "off": 0.0, "style": 0.5},
        multipliers={"style": math.log(3)}, options=Options(targets={"facts": 2.0}, multiplier_lr=0.1),
    )  # fmt: skip
    found = update_multipliers(paid("weighted_sum").totals, recipe)
    # means 1.75 and 1; slopes sg' = 0.25 and 0.1875
    assert found == {
        "facts": pytest.approx(-0.1 * 0.25 * (1.75 - 2)),
        "style": pytest.approx(math.log(3) - 0.1 * 0.1875 * 1),
    }
    assert update_multipliers(torch.full((2, 2), math.nan, dtype=torch.float64), recipe) == {
        "facts": 0.0,
        "style": math.log(3),
    }


ROOT_HALF = math.sqrt(0.5)  # deviation of two values that are 1 apart; advantages of a pair are +- 1 / sqrt(2)


def test_decoupled():
    # each part gives +-ROOT_HALF in a pair: h + -, + -; facts - +, - +; style + -, + -
    raw = paid("decoupled", decoupled_raw=True)
    one = ROOT_HALF * (2 - 1 + 0.5)
    assert totals(raw) == pytest.approx([one, -one, one, -one], abs=1e-6)
    # whitened: deviation of +-1, +-1 with n - 1 is sqrt(4 / 3)
    unit = 1 / math.sqrt(4 / 3)
    assert totals(paid("decoupled")) == pytest.approx([unit, -unit, unit, -unit], abs=1e-6)


def test_decoupled_with_weights_by_variation():
    # h: mean 0.5, std sqrt(5/3); facts: mean 1.75, std sqrt(11/12); style: mean 1, std sqrt(20/3)
    cv = [math.sqrt(5 / 3) / 0.5, math.sqrt(11 / 12) / 1.75, math.sqrt(20 / 3)]
    w = [weight * v / (sum(cv) / 3) for weight, v in zip([2, 1, 0.5], cv, strict=True)]
    one = ROOT_HALF * (w[0] - w[1] + w[2])
    assert totals(paid("decoupled", decoupled_raw=True, decoupled_cv=True)) == pytest.approx(
        [one, -one, one, -one], abs=1e-4
    )


def test_decoupled_without_answers_whose_parts_disagree():
    # |2 - 1 + 0.5| / 3.5 = 0.43 for all: all are left out
    assert totals(paid("decoupled", decoupled_raw=True, decoupled_conflict=0.5)) == [0.0] * 4
    same = paid("decoupled", decoupled_raw=True, decoupled_conflict=0.4)
    assert totals(same) == totals(paid("decoupled", decoupled_raw=True))


def test_equal_answers_have_no_advantage():
    recipe = RewardRecipe("decoupled", 0.0, 1.0, {"a": 1.0})
    rows, h = [torch.tensor([0.1, 0.2])] * 4, torch.full((4,), 0.3, dtype=torch.float64)
    found = pay({"a": rows}, [2] * 4, h, torch.zeros(4, dtype=torch.bool), recipe, GROUPS)
    assert totals(found) == [0.0] * 4


@pytest.mark.parametrize("reward_type", ["decoupled", "stratified"])
def test_answers_without_text_are_no_part_of_a_group(reward_type):
    found = paid(reward_type, too_short=(1,))
    assert found.rewards[1].tolist() == [-20.0]  # w_h times the penalty
    # the first answer is alone then: nothing to compare with
    expected = {"decoupled": 0.0, "stratified": 2.0}
    assert found.response[0].item() == pytest.approx(expected[reward_type])


@pytest.mark.parametrize("reward_type", ["decoupled", "stratified"])
@pytest.mark.parametrize("groups", [None, torch.tensor([0, 0, 7, 8])])
def test_one_answer_to_a_prompt_is_refused(reward_type, groups):
    with pytest.raises(ValueError, match="two or more"):
        paid(reward_type, groups=groups)


@pytest.mark.parametrize("reward_type", COMBINERS)
def test_processes_are_paid_as_one(reward_type):
    """Each process gives its rows and gets those of all; here the second of two."""
    whole = paid(reward_type)
    tables = []
    recipe = RewardRecipe(reward_type, 0.5, 2.0, {"facts": 1.0, "style": 0.5})
    none_short = torch.zeros(2, dtype=torch.bool)

    def part(rows: slice, gather):
        lengths = [len(row) for row in FACTS[rows]]
        aspects = {"facts": FACTS[rows], "style": STYLE[rows]}
        return pay(aspects, lengths, H[rows], none_short, recipe, GROUPS[rows], gather)

    def keep(rows):
        tables.append(rows)
        return rows, 0

    part(slice(0, 2), keep)
    found = part(slice(2, 4), lambda rows: (torch.cat([tables[0], rows]), 2))
    assert [row.tolist() for row in found.rewards] == [row.tolist() for row in whole.rewards[2:]]


# --- shaping, placement, baseline ------------------------------------------------------------------------------------


def test_shaping_by_hand():
    values = torch.tensor([0.0, -1.0, 2.0])
    assert shape(values, "none").tolist() == [0.0, -1.0, 2.0]
    assert shape(values, "sigmoid").tolist() == pytest.approx([0.5, sg(-1), sg(2)])
    assert shape(values, "centred").tolist() == pytest.approx([0.0, sg(-1) - 0.5, sg(2) - 0.5])
    assert shape(values, "centred", best=2.0).tolist() == pytest.approx([0.5 - sg(2), sg(-1) - sg(2), 0.0])


def measured(**changes) -> Measured:
    score = TokenScore(
        [torch.tensor([0, 2]), torch.tensor([], dtype=torch.long)],
        [torch.tensor([1.0, 3.0], dtype=torch.float64), torch.tensor([], dtype=torch.float64)],
        {},
        [None, None],
    )
    content = {"lengths": [4, 2], "too_short": torch.tensor([False, False]), "holistic": torch.tensor([3.0, 1.0])}
    return Measured(**content | {"aspects": {"a": score}} | changes)


@pytest.mark.parametrize(
    ("placement", "tokens"),
    [
        ("spans", [1.0, 0.0, 3.0, 0.0]),
        ("mean_over_spans", [0.5, 0.0, 1.5, 0.0]),
        ("last", [0.0, 0.0, 0.0, 4.0]),
        ("uniform", [1.0, 1.0, 1.0, 1.0]),
    ],
)
def test_placement_by_hand(placement, tokens):
    found = combine(measured(), RewardRecipe("aspect_only", 0.0, 1.0, {"a": 2.0}, placement=placement))
    assert found.rewards[0].tolist() == [2 * value for value in tokens]
    assert found.rewards[1].tolist() == [0.0, 0.0]


@given(st.lists(st.floats(-3, 3, width=32), min_size=1, max_size=6), st.sampled_from(["spans", "last", "uniform"]))
def test_placement_keeps_the_sum(values, placement):
    score = TokenScore([torch.arange(len(values))], [torch.tensor(values, dtype=torch.float64)], {}, [None])
    one = Measured([len(values) + 1], torch.tensor([False]), torch.tensor([0.0]), {"a": score})
    found = combine(one, RewardRecipe("aspect_only", 0.0, 1.0, {"a": 1.0}, placement=placement))
    assert found.rewards[0].sum().item() == pytest.approx(sum(values), abs=1e-5)


def test_a_baseline_is_subtracted_before_the_scale():
    recipe = RewardRecipe("hierarchical", 0.9, 1.0, {"a": 1.0}, holistic_std=2.0, baseline="reference")
    found = combine(measured(baseline=torch.tensor([1.0, 5.0], dtype=torch.float64)), recipe)
    assert found.h.tolist() == [1.0, -2.0] and found.gate.tolist() == [1.0, 0.0]
    with pytest.raises(ValueError, match="reference"):
        combine(measured(), recipe)


def test_the_baseline_of_a_group_is_its_mean():
    recipe = RewardRecipe("holistic_only", 0.0, 1.0, baseline="group")
    assert combine(measured(), recipe, torch.tensor([4, 4])).h.tolist() == [1.0, -1.0]
    empty = measured(too_short=torch.tensor([False, True]))
    assert combine(empty, recipe, torch.tensor([4, 4])).h.tolist() == [0.0, -10.0]  # alone: it is its own mean


def test_unknown_names_are_refused():
    for changes in ({"shaping": "tanh"}, {"placement": "first"}, {"baseline": "best"}):
        with pytest.raises(ValueError, match=next(iter(changes.values()))):
            RewardRecipe("hierarchical", 0.0, 1.0, **changes)
