"""Measuring a rollout: what an aspect may return, and where on the tokens its values go."""

from __future__ import annotations

import math
import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from alarm import Aspect, Metric, Task
from alarm.common.errors import ServiceError, UserError
from alarm.common.threads import beside
from alarm.rewards import RewardRecipe, aspect_rewards, combine
from alarm.scoring import FunctionHolistic, Scorer, measure, metrics_of, place
from alarm.types import AspectScore, Rollout
from helpers import CHECKPOINTS

TEXT = "It is SO loud HERE."


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(CHECKPOINTS / "small-t5-tokenizer")


def rollout_of(tokenizer, answers: list[str], rows: list[dict] | None = None) -> Rollout:
    return Rollout(
        query_ids=[torch.zeros(1, dtype=torch.long)] * len(answers),
        response_ids=[torch.tensor(ids) for ids in tokenizer(answers).input_ids],
        queries=["prompt"] * len(answers),
        responses=answers,
        examples=rows or [{}] * len(answers),
        too_short=torch.tensor([not answer for answer in answers]),
    )


def scorer_of(tokenizer, *aspects: Aspect, holistic=None, source: str = "task.py") -> Scorer:
    task = Task("toy", prompt=str, aspects=aspects, holistic=holistic, source=source)
    loaded = {aspect.name: aspect.load(None) for aspect in aspects}
    return Scorer(None if holistic is None else FunctionHolistic(task), loaded, task, tokenizer)


def shouting(prompts, answers, rows):
    return [[(at, at + len(word), -1.0) for at, word in words_of(answer) if word.isupper()] for answer in answers]


def words_of(text: str) -> list[tuple[int, str]]:
    return [(text.index(word), word) for word in text.split()]


def paid(tokenizer, aspect: Aspect, answer: str) -> list[tuple[str, float]]:
    """The tokens of an answer that get a value."""
    rollout = rollout_of(tokenizer, [answer])
    score = measure(rollout, scorer_of(tokenizer, aspect), [aspect.name]).aspects[aspect.name]
    (rewards,) = aspect_rewards(score, [len(rollout.response_ids[0])], shaping="none")
    tokens = tokenizer.convert_ids_to_tokens(rollout.response_ids[0].tolist())
    return [(token, value) for token, value in zip(tokens, rewards.tolist(), strict=True) if value]


def test_a_number_goes_on_the_last_token(tokenizer):
    aspect = Aspect("brevity", lambda prompts, answers, rows: [-len(answer.split()) / 20 for answer in answers])
    assert paid(tokenizer, aspect, TEXT) == [("</s>", pytest.approx(-0.25))]


def test_spans_go_where_the_aspect_pays(tokenizer):
    last = paid(tokenizer, Aspect("shouting", shouting), TEXT)
    every = paid(tokenizer, Aspect("shouting", shouting, pay="tokens"), TEXT)
    assert len(last) == 2 and sum(value for _, value in last) == -2
    assert set(last) <= set(every) and all(value == -1 for _, value in every)
    letters = "".join(token for token, _ in every).replace("\u2581", "")
    assert letters.startswith("SOHERE")


def test_of_two_spans_on_one_token_last_adds_and_tokens_takes_the_later(tokenizer):
    # one token of two characters
    decoded = [("ab", [(0, 2)])]
    score = AspectScore([[(0, 1, 2.0), (1, 2, 3.0)]], {"x": [0.0]})
    for pay, value in {"last": 5.0, "tokens": 3.0}.items():
        placed = place(Aspect("x", shouting, pay=pay), score, decoded)
        assert aspect_rewards(placed, [1], shaping="none")[0].tolist() == [value]


def test_spans_pay_each_token_that_holds_a_character_of_one():
    # text:    "ab cd  efg"; tokens: "ab", " c", "d", "", "  ", "efg", end of sequence
    decoded = [("ab cd  efg", [(0, 2), (2, 4), (4, 5), (5, 5), (5, 7), (7, 10), (10, 10)])]
    aspect = Aspect("x", shouting, pay="tokens")

    def paid_tokens(*spans):
        score = AspectScore([[(start, end, -1.0) for start, end in spans]], {"x": [0.0]})
        return place(aspect, score, decoded).tokens[0].tolist()

    assert paid_tokens() == []
    assert paid_tokens((0, 2)) == [0]
    assert paid_tokens((3, 4)) == [1]  # the middle of a word
    assert paid_tokens((2, 3)) == [1]  # the space in front of it
    assert paid_tokens((3, 5)) == [1, 2]
    assert paid_tokens((4, 8)) == [2, 4, 5]  # not the token without text
    assert paid_tokens((0, 1), (1, 2), (9, 10)) == [0, 5]  # two spans on one token
    empty = AspectScore([[(0, 3, -1.0)]], {"x": [0.0]})
    assert place(aspect, empty, [("", [])]).tokens[0].tolist() == []


def test_values_are_shaped_one_by_one_and_tokens_without_a_value_stay_at_0():
    score = AspectScore([[(0, 1, 2.0), (1, 2, 0.0)]], {"x": [0.0]})
    placed = place(Aspect("x", shouting), score, [("abc", [(0, 2), (2, 3)])])
    (row,) = aspect_rewards(placed, [2], shaping="sigmoid")
    assert row.tolist() == pytest.approx([1 / (1 + math.exp(-2)) + 0.5, 0.0])


def test_an_aspect_that_does_not_apply_pays_nothing_and_has_no_metric(tokenizer):
    aspect = Aspect("rhyme", lambda prompts, answers, rows: [None if "x" in answer else 1.0 for answer in answers])
    rollout = rollout_of(tokenizer, ["no rhyme: x", "a rhyme"])
    measured = measure(rollout, scorer_of(tokenizer, aspect, holistic=lambda p, a, r: [2.0, 4.0]), ["rhyme"])
    payment = combine(measured, RewardRecipe("weighted_sum", 0.0, 1.0, {"rhyme": 1.0}, holistic_mean=3.0))
    assert metrics_of(measured, payment)["rhyme"] == [None, 1.0]
    assert [rewards.sum().item() for rewards in payment.rewards] == [-1.0, 2.0]


def test_metrics_of_spans_and_numbers_by_hand(tokenizer):
    rollout = rollout_of(tokenizer, [TEXT, "quiet"])
    named = Aspect("shouting", shouting, metrics=[Metric("shouted_words"), Metric("loud", value=lambda s: len(s) > 1)])
    found = measure(rollout, scorer_of(tokenizer, named), ["shouting"]).aspects["shouting"]
    assert found.metrics == {"shouted_words": [2, 0], "loud": [True, False]}
    assert found.raw == [2, 0]
    unnamed = measure(rollout, scorer_of(tokenizer, Aspect("shouting", shouting)), ["shouting"]).aspects["shouting"]
    assert unnamed.metrics == {"shouting": [-2.0, 0]}  # the aspect's own total


def test_rows_and_prompts_reach_the_function(tokenizer):
    seen = []
    aspect = Aspect("seen", lambda prompts, answers, rows: seen.append((prompts, answers, rows)) or [0.0] * 2)
    rollout = rollout_of(tokenizer, ["one", "two"], rows=[{"k": 1}, {"k": 2}])
    measure(rollout, scorer_of(tokenizer, aspect), ["seen"])
    assert seen == [(["prompt"] * 2, ["one", "two"], [{"k": 1}, {"k": 2}])]


def raising(prompts, answers, rows):
    raise KeyError("weight")


@pytest.mark.parametrize(
    ("score", "named"),
    [
        (lambda p, a, r: [1.0], "1 scores for 2"),
        (lambda p, a, r: 1.0, "float"),
        (lambda p, a, r: None, "NoneType"),
        (lambda p, a, r: [1.0, math.nan], "nan"),
        (lambda p, a, r: [1.0, math.inf], "inf"),
        (lambda p, a, r: [1.0, "good"], "'good'"),
        (lambda p, a, r: [[(0, 1)], []], r"\(0, 1\)"),
        (lambda p, a, r: [[(0.0, 1.0, 2.0)], []], r"\(0.0, 1.0, 2.0\)"),
        (lambda p, a, r: [[(0, 1, math.nan)], []], "nan"),
        (lambda p, a, r: [[(0, 99, 1.0)], []], "0 to 99"),
        (lambda p, a, r: [[(-1, 1, 1.0)], []], "-1 to 1"),
        (lambda p, a, r: [[(2, 2, 1.0)], []], "2 to 2"),
        (lambda p, a, r: [[(1, 3, 1.0), (0, 1, 1.0)], []], "starts at 0"),
        (lambda p, a, r: [[(0, 3, 1.0), (2, 4, 1.0)], []], "starts at 2"),
        (raising, "KeyError"),
    ],
)
def test_what_is_no_score_is_one_line_with_the_file_and_the_aspect(tokenizer, score, named):
    rollout = rollout_of(tokenizer, ["an answer", "another"])
    with pytest.raises(UserError, match=named) as error:
        measure(rollout, scorer_of(tokenizer, Aspect("odd", score)), ["odd"])
    assert "task.py" in str(error.value) and "'odd'" in str(error.value) and "\n" not in str(error.value)


def test_a_service_that_fails_stays_a_service_error(tokenizer):
    def down(prompts, answers, rows):
        raise ServiceError("the server is gone")

    with pytest.raises(ServiceError, match="gone"):
        measure(rollout_of(tokenizer, ["a"]), scorer_of(tokenizer, Aspect("odd", down)), ["odd"])


def test_a_holistic_function_of_the_wrong_length_is_refused(tokenizer):
    scorer = scorer_of(tokenizer, holistic=lambda prompts, answers, rows: [1.0])
    with pytest.raises(UserError, match="1 numbers for 2"):
        measure(rollout_of(tokenizer, ["a", "b"]), scorer, [])


@given(data=st.data())
def test_every_value_of_disjoint_spans_is_paid_once(tokenizer, data):
    """Random answers and spans of whole words: what lies on the tokens adds up to what was given."""
    words = data.draw(st.lists(st.sampled_from(["a", "longer", "Strasse", "x1", "!?"]), min_size=1, max_size=8))
    text = " ".join(words)
    spans, at = [], 0
    for word in words:
        value = data.draw(st.integers(-3, 3))
        spans.append((at, at + len(word), float(value)))
        at += len(word) + 1
    rollout = rollout_of(tokenizer, [text])
    aspect = Aspect("spans", lambda prompts, answers, rows: [spans])
    score = measure(rollout, scorer_of(tokenizer, aspect), ["spans"]).aspects["spans"]
    (row,) = aspect_rewards(score, [len(rollout.response_ids[0])], shaping="none")
    assert row.sum().item() == sum(value for _, _, value in spans)
    assert row[-1] == 0  # the end of sequence holds no character


# --- aspects that begin before the models ---------------------------------------------------------------------------


class Beside:
    """An aspect with `start`: one number an answer, by `value`, in a thread of its own."""

    def __init__(self, value):
        self.value = value

    def load(self, settings):
        return self

    def start(self, rollout):
        return beside(self, rollout)

    def __call__(self, rollout):
        return [self.value(answer) for answer in rollout.responses]


def constant(value: float):
    return lambda prompts, answers, rows: [value] * len(answers)


def test_an_aspect_with_start_goes_on_beside_the_others_and_the_holistic_score(tokenizer):
    others = {name: threading.Event() for name in ("aspect", "holistic")}

    def last(answer: str) -> float:
        # not one of the two has come before if it is called in the order of the aspects
        return float(sum(event.wait(timeout=60) for event in others.values()))

    def sets(name: str):
        return lambda prompts, answers, rows: others[name].set() or [0.5] * len(answers)

    aspects = [Aspect("first", Beside(last)), Aspect("second", sets("aspect"))]
    scorer = scorer_of(tokenizer, *aspects, holistic=sets("holistic"))
    measured = measure(rollout_of(tokenizer, [TEXT]), scorer, ["first", "second"])
    assert list(measured.aspects) == ["first", "second"]
    assert [score.raw for score in measured.aspects.values()] == [[2.0], [0.5]]
    assert measured.holistic.tolist() == [0.5]


@given(
    begun=st.lists(st.booleans(), min_size=1, max_size=4),
    failing=st.sets(st.integers(0, 4)),
    service=st.booleans(),
)
def test_of_several_errors_the_first_in_order_is_raised(tokenizer, begun, failing, service):
    """The holistic score comes behind all aspects (place len(begun))."""

    def part(place: int):
        def value(answer: str) -> float:
            if place in failing:
                raise ServiceError(f"place {place}") if service else ValueError(f"place {place}")
            return float(place)

        return value

    def function(place: int):
        return lambda prompts, answers, rows: [part(place)(answer) for answer in answers]

    aspects = [
        Aspect(f"aspect{place}", Beside(part(place)) if aside else function(place)) for place, aside in enumerate(begun)
    ]
    scorer = scorer_of(tokenizer, *aspects, holistic=function(len(begun)))
    names = [aspect.name for aspect in aspects]
    state = torch.get_rng_state()
    if failures := sorted(place for place in failing if place <= len(begun)):
        with pytest.raises(ServiceError if service else UserError, match=f"place {failures[0]}"):
            measure(rollout_of(tokenizer, [TEXT]), scorer, names)
    else:
        measured = measure(rollout_of(tokenizer, [TEXT]), scorer, names)
        assert [score.raw for score in measured.aspects.values()] == [[float(k)] for k in range(len(begun))]
    assert torch.equal(torch.get_rng_state(), state)


def test_a_start_that_raises_is_an_error_of_its_aspect(tokenizer):
    class Fails(Beside):
        def start(self, rollout):
            raise ValueError("no thread")

    scorer = scorer_of(tokenizer, Aspect("good", constant(1.0)), Aspect("bad", Fails(len)))
    with pytest.raises(UserError, match="'bad' raised ValueError: no thread"):
        measure(rollout_of(tokenizer, [TEXT]), scorer, ["good", "bad"])
