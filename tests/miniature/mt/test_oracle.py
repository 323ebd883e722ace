"""The oracle of the small world of translation: what is right, and what each planted error costs."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miniature.mt import world
from miniature.mt.oracle import judge
from miniature.mt.world import Meaning, Phrase, Relative

MEANING = Meaning(
    Phrase("the", "girl", False), "see", "past", "not",
    Phrase("two", "doctor", True, "old"), "", ("in", "garden"), "yesterday",
)  # fmt: skip
RIGHT = "The girl did not see two old doctors in the garden yesterday."
PRESENT = Meaning(Phrase("my", "uncle", False), "sell", "present", "yes", Phrase("a", "orange", False))


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_every_paraphrase_is_worth_one(seed):
    rng = random.Random(seed)
    meaning = world.draw(rng)
    for text in itertools.islice(world.paraphrases(meaning), rng.randrange(3), None, 3):
        assert judge(meaning, text).quality == 1, text


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32 - 1), st.data())
def test_a_wrong_a_missing_and_a_repeated_word_cost_something(seed, data):
    meaning = world.draw(random.Random(seed))
    right = set(world.paraphrases(meaning))
    words = next(world.paraphrases(meaning)).split()
    place = data.draw(st.integers(0, len(words) - 1))
    other = data.draw(st.sampled_from(sorted(world.words()[1])))
    before, after = words[:place], words[place + 1 :]
    for changed in (before + after, [*before, words[place], *words[place:]], [*before, other, *after]):
        text = " ".join(changed)
        if text not in right:
            assert judge(meaning, text).quality < 1, text


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32 - 1), st.data())
def test_whatever_the_answer_the_parts_lie_between_0_and_1(seed, data):
    meaning = world.draw(random.Random(seed))
    words = sorted(world.words()[1] | {".", ",", "perro"})
    text = " ".join(data.draw(st.lists(st.sampled_from(words), max_size=12)))
    found = judge(meaning, text)
    assert all(0 <= part <= 1 for part in (found.quality, found.adequacy, found.fluency))


@pytest.mark.parametrize(
    ("meaning", "text"),
    [
        (MEANING, "The girl saw two old doctors in the garden yesterday."),  # negation
        (MEANING, "The girl never saw two old doctors in the garden yesterday."),
        (MEANING, "The girl does not see two old doctors in the garden yesterday."),  # tense
        (MEANING, "The girl will not see two old doctors in the garden yesterday."),
        (MEANING, "The girls did not see two old doctors in the garden yesterday."),  # number
        (MEANING, "The girl did not see three old doctors in the garden yesterday."),
        (MEANING, "The girl did not see two young doctors in the garden yesterday."),
        (MEANING, "The girl did not see two doctors in the garden yesterday."),
        (MEANING, "The girl did not see two old doctors near the garden yesterday."),
        (MEANING, "The girl did not see two old doctors in the garden."),
        (MEANING, "The girl did not see two old doctors in the garden last night."),
        (MEANING, "The girl did not call two old doctors in the garden yesterday."),
        (PRESENT, "Our uncle sells an orange."),
        (PRESENT, "My uncle sells the orange."),
        (PRESENT, "My uncles sell an orange."),
        (PRESENT, "She sells an orange."),
    ],
)
def test_an_error_of_meaning_lowers_adequacy_alone(meaning, text):
    found = judge(meaning, text)
    assert found.adequacy < 1
    if text.startswith("She"):
        return  # a pronoun for a noun costs words too
    assert found.fluency == 1


@pytest.mark.parametrize(
    ("meaning", "text"),
    [
        (MEANING, "The girl did not see two old doctor in the garden yesterday."),
        (MEANING, "The girl did not saw two old doctors in the garden yesterday."),
        (MEANING, "the girl did not see two old doctors in the garden yesterday."),
        (MEANING, "The girl did not see two old doctors in the garden yesterday"),
        (MEANING, "The girl did not see two old doctors in garden yesterday."),
        (MEANING, "The girl did not see two old doctors in the the garden yesterday."),
        (MEANING, "The girl did not see two old doctors in three garden yesterday."),
        (PRESENT, "My uncle sell an orange."),
        (PRESENT, "My uncle sells a orange."),
        (PRESENT, "My uncle are selling an orange."),
        (PRESENT, "My uncle is sell an orange."),
        (PRESENT, "My uncle is sells an orange."),
    ],
)
def test_an_error_of_grammar_lowers_fluency_alone(meaning, text):
    found = judge(meaning, text)
    assert (found.adequacy, found.fluency < 1) == (1, True)


def test_hand_checked_numbers():
    # the weights: girl 2.75 with article and number, see 2, past 1, not 2, two old doctors 2 + 0.75 + 1, in 0.5, garden
    # 1.5, yesterday 1.5: 15 in all
    without_not = judge(MEANING, "The girl saw two old doctors in the garden yesterday.")
    assert without_not.adequacy == pytest.approx(13 / 15)
    assert without_not.quality == pytest.approx((13 / 15) ** 2)
    one_error = judge(MEANING, "The girl did not see two old doctor in the garden yesterday.")
    assert one_error.quality == pytest.approx(0.5 + 0.5 * 0.75)


def test_who_does_what_to_whom_counts():
    meaning = Meaning(Phrase("the", "girl", False), "call", "past", "yes", Phrase("the", "doctor", False))
    assert judge(meaning, "The girl called the doctor.").quality == 1
    assert judge(meaning, "The doctor called the girl.").quality < 0.5


def test_order_inside_a_relative_clause_counts():
    inner = Relative("help", "past", Phrase("my", "aunt", False), True)
    meaning = Meaning("he", "visit", "past", "yes", Phrase("the", "woman", False, "", inner))
    assert judge(meaning, "He visited the woman whom my aunt helped.").quality == 1
    assert judge(meaning, "He visited the woman my aunt helped.").quality == 1
    assert judge(meaning, "He visited the woman who helped my aunt.").quality < 1
    assert judge(meaning, "He visited my aunt whom the woman helped.").quality < 0.8


def test_agreement_is_that_of_the_answers_own_words():
    right = judge(PRESENT, "My uncles sell an orange.")
    wrong = judge(PRESENT, "My uncles sells an orange.")
    assert (right.fluency, wrong.fluency) == (1, 0.75)
    assert right.adequacy == wrong.adequacy < 1


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_answers_that_do_not_translate_are_worth_little(seed):
    rng = random.Random(seed)
    meaning = world.draw(rng)
    right = next(world.paraphrases(meaning))
    other = world.draw(random.Random(seed + 1))
    worth = {
        "the source": (world.spanish(meaning), 0.05),
        "other Spanish": (world.spanish(other), 0.05),
        "nothing": ("", 0.0),
        "blanks": ("  \n", 0.0),
        "a stop": (".", 0.0),
        "one word again and again": (" ".join(["the"] * 20), 0.05),
        "its first three words": (" ".join(right.split()[:3]), 0.5),  # three of at least four words
        "itself three times": (" ".join([right] * 3), 0.3),
    }
    for what, (text, limit) in worth.items():
        assert judge(meaning, text).quality <= limit, (what, text)
