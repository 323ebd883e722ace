"""What a row says beside others, by hand; which files are rollouts; what the page is given."""

from __future__ import annotations

import json
import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alarm.common.errors import UserError
from alarm.common.texts import prompt_id
from alarm.evaluation.features import repeated_share
from alarm.evaluation.pages.page import embed_json
from alarm.evaluation.rollouts.page import page_data, shown, strengths, token_rewards
from alarm.evaluation.rollouts.read import (
    against_start,
    changed_share,
    first_answers,
    read_rollouts,
    same_elsewhere,
    units,
)

APART = ("holistic_up", "holistic_down", "paid_up")


def short(step, prompt="p", split="dev", sample=0, **more) -> dict:
    return {"step": step, "prompt_id": prompt, "split": split, "sample": sample, "generation": "x", **more}


def test_repeated_runs_by_hand():
    assert repeated_share([]) == repeated_share([1, 2]) == repeated_share([1, 2, 3]) == 0
    assert repeated_share([1] * 12) == pytest.approx(0.9)  # 10 runs, 1 of its own
    assert repeated_share([1, 2, 3, 1, 2, 3]) == pytest.approx(1 / 4)  # 123 231 312 123


def test_changed_by_hand():
    assert changed_share(Counter("ab"), Counter("ba")) == 0
    assert changed_share(Counter("ab"), Counter("cd")) == 1
    assert changed_share(Counter("aab"), Counter("a")) == pytest.approx(1 - 2 / 4)
    assert changed_share(Counter(), Counter()) == 0


@given(st.lists(st.integers(0, 5)), st.lists(st.integers(0, 5)))
def test_shares_are_shares(a, b):
    assert 0 <= repeated_share(a) < 1
    assert 0 <= changed_share(Counter(a), Counter(b)) == changed_share(Counter(b), Counter(a)) <= 1


def test_the_first_answer_is_of_the_first_step_and_the_same_sample():
    rows = [
        short(4, sample=1),
        short(0, sample=0),
        short(0, sample=1),
        short(4, sample=3),
        short(4, "q"),
        short(4, split="train"),
    ]
    assert first_answers(rows) == [2, None, None, 1, None, None]


def test_apart_by_hand():
    def values(h, brevity):
        return {"holistic": h, "aspects": {"brevity": brevity}}

    # both columns have mean 0 and deviation sqrt(2) or 2
    rows = [
        short(0, **values(-2.0, 2.0)),
        short(1, **values(2.0, -2.0)),
        short(0, "q", **values(0.0, 2.0)),
        short(1, "q", **values(0.0, -2.0)),
    ]
    found = against_start(rows, first_answers(rows))
    assert found["holistic_up"] == [None, pytest.approx(2.0), None, None]  # h by 4/sqrt(2), brevity by -4/2
    assert found["holistic_down"] == [None] * 4
    # one step alone: against the mean of the first
    rows = [short(0, "a", **values(-1.0, 1.0)), short(0, "b", **values(1.0, -1.0)), short(1, "c", **values(-1.0, 1.0))]
    found = against_start(rows, first_answers(rows))
    assert found["holistic_down"][:2] == [None, None]
    assert found["holistic_down"][2] == pytest.approx(1 / math.sqrt(8 / 9))
    # what is paid rises while the score falls: both have deviation 1
    rows = [short(0, reward=-1.0, holistic=1.0), short(1, reward=1.0, holistic=-1.0)]
    assert against_start(rows, first_answers(rows))["paid_up"] == [None, pytest.approx(2.0)]
    # the raw score counts if there is one
    rows = [one | {"holistic_raw": 1.0} for one in rows]
    assert against_start(rows, first_answers(rows))["paid_up"] == [None] * 2
    # a number that is missing or not finite, a run without aspects
    rows = [short(0, **values(0.0, 0.0)), short(1, **values(math.nan, 5.0)), short(2, **values(1.0, None)), short(3)]
    assert against_start(rows, first_answers(rows)) == dict.fromkeys(APART, [None] * 4)


def test_the_same_answer_for_other_prompts():
    rows = [short(0, "a"), short(0, "b"), short(0, "b", sample=1), short(1, "c"), short(0, "d") | {"generation": " "}]
    rows.append(short(0, "e") | {"generation": " "})
    assert same_elsewhere(rows) == [1, 1, 1, 0, 0, 0]


def test_tokens_are_ids_or_words():
    assert units({"token_ids": [3, 4], "generation": "a b c"}) == [3, 4]
    assert units({"token_ids": None, "generation": "a b c"}) == units({"generation": "a b c"}) == ["a", "b", "c"]


def test_token_lengths_are_those_of_javascript():
    one = {"tokens": ["a", " 😀", ""], "generation": "a 😀", "token_rewards": [0.0, 0.123456, None]}
    assert token_rewards(one) == ([1, 3, 0], [0, 0.12346, None])
    assert token_rewards(one | {"token_rewards": None}) == ([1, 3, 0], None)
    assert token_rewards(one | {"token_rewards": [1.0]}) == ([1, 3, 0], None)
    assert token_rewards(one | {"generation": "other"}) == token_rewards({"generation": "a"}) == (None, None)


def test_numbers_as_shown():
    assert [shown(value) for value in (1.0, 0.1234567, True, None, "x")] == [1, 0.12346, None, None, None]
    assert [shown(value) for value in (math.nan, math.inf, -math.inf, 10**400)] == ["nan", "inf", "-inf", "inf"]


def test_strengths_fit_the_rewards():
    assert strengths([[1.0, 3.0], None, ["nan"]]) == [0.1, 0.3, 1, 3]
    assert strengths([[0.002, 0.0, 0.003]]) == [0.0001, 0.0003, 0.001, 0.003]
    assert strengths([[0.5] * 9]) == [0.1, 0.3, 1, 3]
    assert strengths([]) == [0.1, 0.3, 1, 3]


# --- files -----------------------------------------------------------------------------------------------------------


def test_both_runs_are_read(runs):
    honest, hacked = (read_rollouts(folder, folder.name) for folder in runs)
    assert (honest.has_log, hacked.has_log) == (True, False)
    assert (len(honest.rows), len(hacked.rows)) == (15, 19)
    assert hacked.log.dev[0] == {
        "reward": 0,
        "holistic_reward": 0,
        "brevity": 0,
        "kl": 0.1,
        "response_length": 3,
        "gate_rate": 1,
    }
    data = json.loads(embed_json(page_data([honest, hacked])))
    columns = data["columns"]
    assert {len(column) for column in columns.values()} == {34}
    assert columns["first"][5] == 0 and columns["first"][15 + 4] == 15
    assert columns["repeated"][15 + 8] == pytest.approx(0.9)
    assert columns["same"][15 + 8] == 2
    assert columns["kl"][-1] == "inf" and columns["holistic"][-1] == "nan" and columns["rewards"][-1] == ["nan"]
    assert sum(value is not None and value > 0.5 for value in columns["holistic_down"]) == 3
    assert len(data["groups"]["aspects"]["brevity"]) == 34
    assert [panel["name"] for panel in data["curves"]][:2] == ["reward", "holistic_reward"]


def test_a_row_needs_a_step_and_an_answer_alone(tmp_path):
    (tmp_path / "rollouts.jsonl").write_text('{"step": 3, "generation": "hello"}\n{"step": 4, "gener')
    (one,) = read_rollouts(tmp_path, "x").rows  # the last line is still being written
    assert (one["split"], one["sample"], one["prompt"], one["prompt_id"]) == ("train", 0, "", prompt_id(""))
    data = page_data([read_rollouts(tmp_path, "x")])
    assert data["columns"]["reward"] == data["columns"]["gate"] == data["columns"]["lengths"] == [None]
    assert data["curves"] == []


def test_runs_of_two_tasks_have_blanks_where_the_other_has_none(runs, tmp_path):
    (tmp_path / "rollouts.jsonl").write_text('{"step": 0, "generation": "a", "aspects": {"grammar": 2}}\n')
    data = page_data([read_rollouts(tmp_path, "mt"), read_rollouts(runs[0], "honest")])
    assert data["groups"]["aspects"] == {
        "grammar": [2] + [None] * 15,
        "brevity": [None] + [1] * 4 + [0] + [1] * 4 + [0] + [1] * 4 + [0],
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no whole row"),
        ('{"step": 1', "no whole row"),
        ('nonsense\n{"step": 1, "generation": "a"}\n', "line 1 .*no JSON"),
        ('{"step": 1, "generation": "a"}\n{"step": 1}\n', "line 2 .*no 'generation'"),
        ('{"step": true, "generation": "a"}\n\n', "line 1 .*whole number"),
        ("[1]\n\n", "line 1 .*no object"),
    ],
)
def test_what_is_no_file_of_rollouts(tmp_path, text, message):
    (tmp_path / "rollouts.jsonl").write_text(text)
    with pytest.raises(UserError, match=message):
        read_rollouts(tmp_path, "x")


def test_runs_without_rollouts(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"step": 0, "train": {"reward": 1}}\n')
    for path, message in (
        (tmp_path, "holds no rollouts.jsonl"),
        (tmp_path / "no", "does not exist"),
        (tmp_path / "log.jsonl", "is a file"),
    ):
        with pytest.raises(UserError, match=message):
            read_rollouts(path, "x")
