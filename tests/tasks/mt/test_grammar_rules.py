"""The stand-in's rules: each finds its error, and what is right stays unmarked."""

from __future__ import annotations

import time

import pytest

from alarm.tasks.mt.grammar.checker import Match, mark_tokens, rule_matches


@pytest.mark.parametrize(
    ("text", "rule", "marked"),
    [
        ("He saw the the dog.", "DOUBLED_WORD", "the the"),
        ("The the dog.", "DOUBLED_WORD", "The the"),
        ("this is a dog.", "SENTENCE_START", "this"),
        ("A dog ran. then it stopped.", "SENTENCE_START", "then"),
        ("Why? because.", "SENTENCE_START", "because"),
        ("It is a apple.", "A_AN", "a apple"),
        ("It is an book.", "A_AN", "an book"),
        ("Yes,but no.", "COMMA_SPACE", ",but"),
        ("Yes , but no.", "COMMA_SPACE", " ,"),
        ("He are here.", "AGREEMENT", "He are"),
        ("It rains, and she have none.", "AGREEMENT", "she have"),
        ("Then they was gone.", "AGREEMENT", "they was"),
        ("Today, I has one.", "AGREEMENT", "I has"),
        ("😀 It is a apple.", "A_AN", "a apple"),
    ],
)
def test_an_error_is_found_where_it_is(text, rule, marked):
    matches = rule_matches(text)
    assert [(m.rule, text[m.start : m.end]) for m in matches] == [(rule, marked)]


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "She had had enough, and said that that was all.",
        "An hour, an honest man, a university, a European, a one-way street, a unit, an x-ray, a used car.",
        "It cost 1,000 euros (about 1,100 dollars), i.e. little.",
        "Mr. Smith of the U.S. government has e.g. two.",
        "Does he have it? Let it have one; you and I are here; James I is dead.",
        "One of you is right, and neither of you was there.",
        "eBay.com and iPhone",
        "Wait... what? OK.",
        "The end.\nA new line.",
        "\x00\x07\ufffd⁇",
    ],
)
def test_what_is_right_is_left_alone(text):
    assert rule_matches(text) == []


@pytest.mark.parametrize("unit", ["a", "a ", " ", ",", "? ", "an ", "the\n", "😀", "e\u0301"])
def test_ten_thousand_characters_take_no_time(unit):
    started = time.perf_counter()
    rule_matches((unit * 10_000)[:10_000])
    assert time.perf_counter() - started < 1.0


def test_tokens_that_hold_a_character_of_a_match_are_marked():
    #          0123456789
    # text:    "ab cd  efg"; tokens: "ab", " c", "d", "", "  ", "efg", end of sequence
    offsets = [(0, 2), (2, 4), (4, 5), (5, 5), (5, 7), (7, 10), (10, 10)]

    def marked(*spans):
        marks = mark_tokens(offsets, [Match(start, end, "", "") for start, end in spans])
        return [i for i, mark in enumerate(marks) if mark]

    assert marked() == []
    assert marked((0, 2)) == [0]
    assert marked((3, 4)) == [1]  # the middle of a word
    assert marked((2, 3)) == [1]  # the space in front of it
    assert marked((3, 5)) == [1, 2]
    assert marked((4, 8)) == [2, 4, 5]  # the token without text is not marked
    assert marked((4, 4)) == []  # an empty match
    assert marked((0, 1), (0, 2), (9, 10)) == [0, 5]  # overlapping matches
    assert marked((9, 99)) == [5]
    assert mark_tokens([], [Match(0, 3, "", "")]) == []


def test_marking_is_linear():
    offsets = [(i, i + 1) for i in range(100_000)]
    matches = [Match(0, 100_000, "", "")] * 10_000
    started = time.perf_counter()
    assert all(mark_tokens(offsets, matches))
    assert time.perf_counter() - started < 1.0
