"""The stand-in's rules: each finds its error, and what is right stays unmarked."""

from __future__ import annotations

import pytest

from alarm.tasks.mt.grammar.rules import rule_matches


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
def test_matches_of_ten_thousand_characters_lie_inside_the_text_in_order(unit):
    text = (unit * 10_000)[:10_000]
    spans = [(match.start, match.end) for match in rule_matches(text)]
    assert spans == sorted(spans) and all(0 <= start < end <= len(text) for start, end in spans)
