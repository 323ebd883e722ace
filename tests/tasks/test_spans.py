"""Characters <-> tokens."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from alarm.tasks.spans import last_token_of, token_offsets, tokens_overlapping
from helpers import CHECKPOINTS

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


class Counting:
    """A tokenizer that counts the ids that it decodes."""

    def __init__(self, tokenizer):
        self.tokenizer, self.decoded = tokenizer, 0

    def __len__(self):
        return len(self.tokenizer)

    def convert_ids_to_tokens(self, id):
        return self.tokenizer.convert_ids_to_tokens(id)

    def decode(self, ids, **kwargs):
        self.decoded += len(ids)
        return self.tokenizer.decode(ids, **kwargs)


@by_tokenizer
def test_every_id_is_decoded_once_however_long_the_text(name):
    tokenizer = Counting(TOKENIZERS[name])
    one = TOKENIZERS[name]("The new album 🙂 was  released in 2019. ").input_ids
    token_offsets(tokenizer, one)  # looks each id of the text up
    for count in (1, 100, 1600):
        tokenizer.decoded = 0
        token_offsets(tokenizer, one * count)
        assert tokenizer.decoded == len(one) * count


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
