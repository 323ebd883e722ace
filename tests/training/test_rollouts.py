"""Which answers are kept in rollouts.jsonl, and what of them. With training: test_loop and tests/e2e/test_rollouts."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from alarm.common.texts import prompt_id
from alarm.rewards import RewardRecipe, combine
from alarm.training.rollout import Prompt, decode
from alarm.training.rollouts import Plan, Rollouts, as_table, numbered, rows_of, token_texts, whole_groups
from alarm.training.run import Run
from alarm.types import Measured, Rollout, TokenScore
from helpers import CHECKPOINTS


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(CHECKPOINTS / "tiny-t5")


# --- which -----------------------------------------------------------------------------------------------------------


def kept(plan: Plan, now: int) -> list[int]:
    return [step for step in range(now + 1) if plan.keeps(step, now)]


def test_steps_that_are_kept_by_hand():
    plan = Plan(first=1, interval=3, last=12, rows=2, bound=6)
    assert kept(plan, 8) == [1, 4, 7] and not plan.thins(7)
    assert plan.thins(10) and kept(plan, 10) == [1, 7]
    assert kept(plan, 12) == [1, 7, 12]  # the last step is kept besides
    assert kept(Plan(0, 10, 25, 1, 9), 25) == [0, 10, 20, 25]
    assert kept(Plan(1, 1, 9, 0, 5), 9) == []


plans = st.builds(
    lambda first, interval, last, rows, more: Plan(first, interval, last, rows, rows + more),
    st.integers(0, 1), st.integers(1, 7), st.integers(1, 200), st.integers(1, 9), st.integers(0, 40),
)  # fmt: skip


def written(plan: Plan, steps: range, before: list[int]) -> list[int]:
    """The steps in the file after `steps`, as Rollouts adds and removes them."""
    found = list(before)
    for step in steps:
        if plan.thins(step):
            found = [one for one in found if plan.keeps(one, step)]
        assert len([one for one in found if one != plan.last]) * plan.rows <= plan.bound
        found += [step] if plan.keeps(step, step) else []
    return found


@given(plans)
def test_the_file_holds_what_the_plan_says_and_no_more_than_its_bound(plan):
    found = written(plan, range(plan.first, plan.last + 1), [])
    assert found == kept(plan, plan.last) and found[0] == plan.first and found[-1] == plan.last
    assert len(found[:-1]) * plan.rows <= plan.bound


@given(plans, st.data())
def test_a_run_that_was_killed_anywhere_ends_with_the_same_steps(plan, data):
    reached = data.draw(st.integers(plan.first, plan.last))
    back = data.draw(st.integers(plan.first - 1, reached))  # the last checkpoint
    before = written(plan, range(plan.first, reached + 1), [])
    again = written(plan, range(back + 1, plan.last + 1), [step for step in before if step <= back])
    assert again == written(plan, range(plan.first, plan.last + 1), [])


@pytest.mark.parametrize(
    ("most", "samples", "there", "found"),
    [
        (8, 1, 16, 8),
        (8, 4, 16, 8),
        (9, 4, 16, 8),
        (8, 16, 32, 8),
        (8, 1, 4, 4),
        (0, 1, 4, 0),
        (0, 4, 4, 0),
        (7, 2, 4, 4),
    ],
)
def test_groups_stay_whole_where_one_fits(most, samples, there, found):
    assert whole_groups(most, samples, there) == found


# --- what ------------------------------------------------------------------------------------------------------------


def test_tokens_of_an_answer_by_hand(tokenizer):
    ids = tokenizer("The cat sat.")["input_ids"]
    texts = token_texts(tokenizer, torch.tensor(ids))
    assert "".join(texts) == "The cat sat." and len(texts) == len(ids)
    assert texts[-1] == ""  # the end token


@pytest.mark.parametrize("name", ["tiny-t5", "tiny-rel_rm"])
@given(data=st.data())
def test_the_texts_of_any_tokens_join_to_the_answer(name, data):
    """Byte-level tokens too, of which several make one character."""
    one = AutoTokenizer.from_pretrained(CHECKPOINTS / name)
    ids = torch.tensor(data.draw(st.lists(st.integers(0, len(one) - 1), min_size=1, max_size=12)))
    assert ["".join(token_texts(one, ids))] == decode(one, [ids])


def batch(tokenizer, recipe: RewardRecipe, raw=(0.8, 2.0)) -> tuple[list[Prompt], Rollout, Measured, list[dict]]:
    """Two answers; the aspect pays 0.5 and -0.25 in the first, and does not apply to the second."""
    ids = [torch.tensor([20, 30, 1]), torch.tensor([40, 1])]
    prompts = [Prompt({}, f"q{k}", "reader's", f"model's {k}", torch.tensor([5])) for k in range(2)]
    rollout = Rollout(
        [p.ids for p in prompts], ids, ["reader's"] * 2, decode(tokenizer, ids), [{}, {}], torch.zeros(2) == 1
    )
    score = TokenScore(
        [torch.tensor([0, 1]), torch.tensor([], dtype=torch.long)],
        [torch.tensor([0.5, -0.25]).double(), torch.tensor([]).double()],
        {"rude_words": [2, None]},
        [0.25, 0.0],
        applies=[True, False],
    )
    measured = Measured([3, 2], rollout.too_short, torch.tensor(raw), {"polite": score})
    payment = combine(measured, recipe)
    rows = rows_of(prompts, rollout, measured, payment, recipe, tokenizer, [0, 1], [0.5, 1.5])
    return prompts, rollout, measured, rows


def test_a_row_by_hand(tokenizer):
    recipe = RewardRecipe("hierarchical", 1.0, 2.0, {"polite": 4.0}, holistic_mean=0.5, holistic_std=0.5)
    _, rollout, _, (one, two) = batch(tokenizer, recipe)
    h = (torch.tensor(0.8).item() - 0.5) / 0.5
    assert one == {
        "prompt_id": prompt_id("q0"),
        "prompt": "model's 0",
        "generation": rollout.responses[0],
        "token_ids": [20, 30, 1],
        "tokens": token_texts(tokenizer, torch.tensor([20, 30, 1])),
        "token_rewards": pytest.approx([0, 0, 2 * h]),
        "holistic_raw": torch.tensor(0.8).item(),
        "holistic": pytest.approx(h),
        "aspects": {"polite": 0.25},
        "paid": {"holistic": pytest.approx(2 * h), "polite": 0.0},
        "gate": False,
        "reward": pytest.approx(2 * h),
        "kl": 0.5,
        "length": 3,
        "empty": False,
        "metrics": {"rude_words": 2},
    }
    assert (two["gate"], two["aspects"], two["paid"]) == (True, {"polite": None}, {"holistic": 6.0, "polite": 0.0})
    assert two["kl"] == 1.5


@pytest.mark.parametrize(
    "kind", ["weighted_sum", "hierarchical", "log_sigmoid", "worst_case", "lagrangian", "soft_gate"]
)
def test_the_parts_add_up_to_the_reward(tokenizer, kind):
    *_, rows = batch(tokenizer, RewardRecipe(kind, 0.0, 1.5, {"polite": 3.0}))
    for row in rows:
        assert sum(row["paid"].values()) == pytest.approx(row["reward"]) == pytest.approx(sum(row["token_rewards"]))
        assert ("response" in row["paid"]) == (kind in ("log_sigmoid", "worst_case"))
        assert (row["gate"] is None) == (kind not in ("hierarchical", "soft_gate"))


def test_a_score_that_is_not_finite_stays_so_and_has_no_gate(tokenizer):
    *_, (one, _) = batch(tokenizer, RewardRecipe("hierarchical", 0.0, 1.0, {"polite": 1.0}), raw=(float("nan"), 0.0))
    assert one["gate"] is None and one["holistic"] != one["holistic"] and one["reward"] != one["reward"]


def test_a_prompt_has_one_id_and_its_answers_are_numbered():
    assert prompt_id("a") == prompt_id("a") != prompt_id("b") and len(prompt_id("\ud800")) == 16
    rows = numbered([{"prompt_id": one} for one in "aabab"], 3, "train")
    assert [row["sample"] for row in rows] == [0, 1, 0, 2, 1]
    assert all((row["step"], row["split"]) == (3, "train") for row in rows)


def test_a_table_has_a_column_for_each_name_and_no_lists():
    rows = [{"step": 1, "tokens": ["a"], "paid": {"x": 1.0}}, {"step": 1, "paid": {"x": float("nan"), "y": 2.0}}]
    assert as_table(rows) == (["step", "paid/x", "paid/y"], [[1, 1.0, None], [1, None, 2.0]])
    assert as_table([]) == ([], [])


# --- written ---------------------------------------------------------------------------------------------------------


def test_one_split_makes_room_and_the_other_keeps_its_rows(tmp_path, capsys):
    tables = []
    ppo = SimpleNamespace(
        accelerator=SimpleNamespace(is_main_process=True), log_table=lambda *table: tables.append(table)
    )
    run = Run(tmp_path, {})
    keeper = Rollouts(run, ppo, None, {"train": Plan(1, 1, 5, 1, 2), "dev": Plan(0, 1, 9, 1, 9)})
    for step in range(1, 6):
        for split in ("train", "dev"):
            keeper.make_room(split, step)
            keeper.add(split, step, [{"prompt_id": "a", "x": float("inf")}])
    rows = [json.loads(line) for line in (tmp_path / "rollouts.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["split"] == "train"] == [1, 5]
    assert [row["step"] for row in rows if row["split"] == "dev"] == [1, 2, 3, 4, 5]
    assert all(row["x"] is None for row in rows)
    said = capsys.readouterr().out + capsys.readouterr().err
    assert said.count("--max_rollouts") == 2  # at steps 3 and 5
    assert [name for name, *_ in tables].count("rollouts/train") == 4  # steps 1, 2, 3 and 5
