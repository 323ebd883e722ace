"""Agreement of judges with people: small files by hand, and the numbers of a reward model's own report."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alarm.common.errors import UserError
from alarm.evaluation.agreement import (
    HumanPair,
    Meter,
    Verdicts,
    majority_vote,
    mean_ranks,
    read_feedback,
    read_preferences,
    verdicts_of_scores,
)
from alarm.learning.metrics import pair_metrics
from alarm.tasks.preferences import Pair
from helpers import ROOT

QA = ROOT / "quickstart" / "data" / "qa"
NAN = float("nan")


def pair(question: str, votes: tuple[int, ...], a: str = "a b c", b: str = "a") -> HumanPair:
    return HumanPair(question, question, a, b, votes, {})


def write(tmp_path, rows):
    path = tmp_path / "pairs.json"
    path.write_text(json.dumps(rows))
    return path


def row(chosen: str, rejected: str, prompt: str = "q", **more) -> dict:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **more}


# --- reading ---------------------------------------------------------------------------------------------------------


def test_rows_on_the_same_answers_are_votes(tmp_path):
    rows = [
        row("x", "y"),
        row("y", "x"),
        row("x", "y"),
        row("y", "x", tie=True),
        row("x", "y", "other"),
        row("z", "z "),
    ]
    data = read_preferences(write(tmp_path, rows))
    assert [(one.prompt, one.a, one.b, one.votes) for one in data.pairs] == [
        ("q", "x", "y", (1, -1, 1, 0)),
        ("other", "x", "y", (1,)),
    ]
    assert data.pairs[0].majority == 1
    assert (data.left_out, data.ordered) == (1, False)


def test_feedback_is_six_comparisons_a_question():
    data = read_feedback(QA / "test.json", QA / "test_feedback.json")
    raw = json.loads((QA / "test_feedback.json").read_text())
    assert data.ordered
    assert len(data.pairs) + data.left_out == 6 * len(raw)
    first = raw[0]
    votes = {(one.a, one.b): one.votes for one in data.pairs if one.question == first["question"]}
    coded = {0: 0, 1: 1, 2: -1}
    expected = (coded[first["preference"][5]],)
    assert votes[first["prediction 3"], first["prediction 4"]] == expected
    assert data.pairs[0].row["passages"]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([row("x", "x"), row("y", " y")], "equal"),
        ([row("x", "y", tie=True)], "ties"),
        ([{"prompt": "q", "chosen": "x"}], "rejected"),
        ([row("x", "y", annotator=1), row("y", "x", annotator=1)], "second time"),
        ([row("x", "y", tie="no")], "tie"),
    ],
)
def test_bad_preferences(tmp_path, rows, words):
    with pytest.raises(UserError, match=words):
        read_preferences(write(tmp_path, rows))


# --- rates -----------------------------------------------------------------------------------------------------------


def test_rates_by_hand():
    pairs = [
        pair("1", (1, 1, -1)),  # a, the longer one, by majority
        pair("2", (-1,)),
        pair("3", (1, -1)),  # undecided
        pair("4", (0,)),  # people tie
        pair("5", (1,), "a", "a b"),  # the shorter one
        pair("6", (-1, -1)),
    ]
    #                              1  2  3  4   5    6
    verdicts = np.array([[1.0, 1, -1, 1, 0, NAN]])
    first = Verdicts(verdicts, first=np.array([2, 1, 1, 0, 1, 0]), placed=np.array([2, 2, 2, 2, 2, 1]))
    found = Meter(pairs, draws=200).measure(first)
    # votes for a side where there is a verdict: 3 + 1 + 2 + 0 + 1; of these 2 + 0 + 1 + 1/2 agree
    assert (found.people.value, found.people.count) == (pytest.approx(100 * 3.5 / 7), 7)
    # pair 1 alone has several votes, a majority and a verdict
    assert (found.majority.value, found.majority.count) == (100, 1)
    # the longer: 2 of 3, 0 of 1, 1 of 2, 0 of 1 -> 3 of 7
    assert found.over_length.value == pytest.approx(100 * (3.5 - 3) / 7)
    # decisions 1 to 4, all on pairs with a longer side: a, a, b, a
    assert (found.longer.value, found.longer.count) == (75, 4)
    assert (found.first.value, found.first.count) == (pytest.approx(100 * 5 / 11), 11)
    assert (found.ties.value, found.ties.count) == (20, 5)
    assert (found.failures.value, found.failures.count) == (pytest.approx(100 / 6), 6)
    assert found.changed.value is None
    assert found.people.interval[0] < 50 < found.people.interval[1]


def test_repeats_count_together_and_their_changes_are_counted():
    pairs = [pair(str(i), (1,)) for i in range(4)]
    found = Meter(pairs, draws=50).measure(Verdicts(np.array([[1.0, 1, -1, NAN], [1, -1, -1, 1]])))
    assert found.people.value == pytest.approx(100 * 4 / 7)
    # both are known on three pairs, and differ on one
    assert (found.changed.value, found.changed.count) == (pytest.approx(100 / 3), 3)
    assert found.failures.value == pytest.approx(100 / 8)


def test_one_way_intervals_are_not_empty():
    pairs = [pair(str(i), (1,)) for i in range(10)]
    found = Meter(pairs).measure(Verdicts(np.ones((1, 10))))
    assert found.people.value == 100
    # Clopper-Pearson: 0.025 ** (1 / 10)
    assert found.people.interval == pytest.approx([100 * 0.025**0.1, 100])
    ties = Meter(pairs).measure(Verdicts(np.zeros((1, 10))))
    assert (ties.people.value, ties.people.interval) == (50, None)
    assert ties.longer.value is None


def test_people_are_measured_alike():
    pairs = [pair("1", (1, 1, -1)), pair("2", (-1,)), pair("3", (0, 1))]
    found = Meter(pairs, draws=50).of_people(ordered=True)
    # of pair 1 the votes for a tie with the two others (1 and -1): a half each; the vote for b is against both.
    # of pair 3 the other one ties
    assert (found.people.value, found.people.count) == (pytest.approx(100 * (0.5 + 0.5 + 0 + 0.5) / 4), 4)
    # a is the longer one: 2 of 3, 0 of 1, 1 of 1
    assert found.longer.value == found.first.value == pytest.approx(100 * 3 / 5)
    assert found.ties.value == pytest.approx(100 / 6)
    assert Meter(pairs, draws=50).of_people(ordered=False).first.value is None


def test_agrees_with_the_report_of_a_reward_model():
    """The accuracy of alarm.train_holistic on the same scores, which is computed by other code."""
    data = read_feedback(QA / "test.json", QA / "test_feedback.json")
    random = np.random.default_rng(0)
    a, b = random.integers(0, 5, size=(2, len(data.pairs))).astype(float)  # with ties
    found = Meter(data.pairs, draws=300).measure(Verdicts(verdicts_of_scores(a, b)[None]))
    decided = [i for i, one in enumerate(data.pairs) if one.votes[0]]
    sides = [(a[i], b[i]) if data.pairs[i].votes[0] > 0 else (b[i], a[i]) for i in decided]
    pairs = [Pair(data.pairs[i].question, data.pairs[i].prompt, "x", "y z", "preference") for i in decided]
    report = pair_metrics(pairs, [one for one, _ in sides], [other for _, other in sides])
    assert found.people.value == pytest.approx(100 * report["pairwise_accuracy"])
    bounds = [100 * bound for bound in report["intervals"]["pairwise_accuracy"]]
    assert found.people.interval == pytest.approx(bounds, abs=1.5)  # other draws


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_turning_a_judge_turns_its_agreement(seed):
    random = np.random.default_rng(seed)
    pairs = [pair(str(i // 2), tuple(random.integers(-1, 2, size=random.integers(1, 4)).tolist())) for i in range(30)]
    values = random.choice([-1.0, 0, 1, NAN], size=(2, 30))
    meter = Meter(pairs, draws=100)
    forth, back = (meter.measure(Verdicts(sign * values)) for sign in (1, -1))
    for name in ("people", "majority", "longer"):
        one, other = getattr(forth, name), getattr(back, name)
        assert one.count == other.count
        if one.value is not None:
            assert one.value + other.value == pytest.approx(100)
    assert forth.changed == back.changed


# --- verdicts --------------------------------------------------------------------------------------------------------


def test_scores_to_verdicts():
    found = verdicts_of_scores(np.array([2.0, 1, 1, NAN, np.inf]), np.array([1.0, 2, 1, 1, 1]))
    np.testing.assert_array_equal(found, [1, -1, 0, NAN, NAN])


def test_majority_vote():
    members = [
        np.array([[1.0, 1, NAN, NAN, 0]]),
        np.array([[1.0, -1, -1, NAN, -1]]),
        np.array([[-1.0, 0, NAN, NAN, 0]]),
    ]
    np.testing.assert_array_equal(majority_vote(members), [[1, 0, -1, NAN, -1]])


def test_mean_ranks():
    groups = np.array([0, 1, 0, 0, 1])
    one = np.array([5.0, 1, 7, 5, 2])  # ranks 1.5, 1, 3, 1.5, 2
    other = np.array([0.1, 3, 0.2, 0.3, NAN])  # ranks 1, 1, 2, 3, none
    np.testing.assert_allclose(mean_ranks([one, other], groups), [1.25, 1, 2.5, 2.25, NAN])
