"""Features of answers, each by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alarm.evaluation.features import CONTROLS, FEATURES, MEANING, content_share, copied_share, feature, words
from alarm.evaluation.features import repeated_share as repeated

PROMPT = "The quick brown fox jumps over the lazy dog."


def test_words():
    assert words("Don't STOP — it’s 3.5, C++") == ["don't", "stop", "it's", "3", "5", "c"]
    assert words(" \n.!") == []
    assert words("ﬁne Straße") == ["fine", "strasse"]  # ligatures and case


@pytest.mark.parametrize(
    ("name", "answer", "expected"),
    [
        ("words", "A fox, a dog.", 4),
        ("words", "", 0),
        ("sentences", "One. Two! Three?", 3),
        ("sentences", "no end", 1),
        ("sentences", "", 0),
        # "quick brown fox jumps" is a run of four; "the", "lazy" are in the prompt, but in no run of four
        ("copied", "A quick brown fox jumps, the cat is lazy.", 4 / 9),
        ("copied", "Fox brown quick the", 0),
        ("copied", "", 0),
        ("copied", "the quick brown", 0),  # three in a row are too few
        # a, cat, is are not in the prompt
        ("overlap", "A quick brown fox jumps, the cat is lazy.", 6 / 9),
        ("overlap", "fox FOX", 1),
        # runs of three: abc bca cab abc bcd -> one of five came before
        ("repetition", "a b c a b c d", 1 / 5),
        ("repetition", "no no no no", 1 / 2),
        ("repetition", "a b", 0),
        # cat, sat, mat of six words
        ("lexical_density", "The cat sat on the mat.", 3 / 6),
        ("lexical_density", "...", 0),
    ],
)
def test_by_hand(name, answer, expected):
    assert feature(name, [PROMPT], [answer]) == pytest.approx([expected])


def test_every_feature_has_a_meaning():
    assert FEATURES.keys() == MEANING.keys()
    assert ("length", *FEATURES) == CONTROLS


@given(st.lists(st.sampled_from("abc"), max_size=12), st.lists(st.sampled_from("abc"), max_size=12), st.integers(1, 5))
def test_copied_share_is_a_share_and_falls_with_the_run(prompt, answer, run):
    shares = [copied_share(prompt, answer, size) for size in (run, run + 1)]
    assert 1 >= shares[0] >= shares[1] >= 0
    expected = [word in prompt for word in answer]
    assert copied_share(prompt, answer, 1) == pytest.approx(np.mean(expected) if answer else 0)


@given(st.lists(st.sampled_from("abc"), min_size=4, max_size=12, unique=False))
def test_an_answer_said_twice_repeats_more(answer):
    assert repeated(answer * 2) >= repeated(answer)
    assert repeated(answer * 2) > 0


def test_equal_pairs_get_equal_values_in_their_places():
    prompts, answers = ["p q r s", "x", "p q r s"], ["p q r s t", "p q r s t", "p q r s t"]
    assert feature("copied", prompts, answers) == pytest.approx([4 / 5, 0, 4 / 5])
    assert feature("words", [], []) == []


def test_content_share_takes_contractions_apart():
    # do, n't, it, 's and I are function words; like and cats are not
    assert content_share("I don't like cats") == pytest.approx(2 / 5)
