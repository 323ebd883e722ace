"""Characters <-> response tokens.

A span is a (start, end) pair of character offsets, end excluded.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from itertools import groupby
from weakref import WeakKeyDictionary

Span = tuple[int, int]


def token_offsets(tokenizer, ids) -> tuple[str, list[Span]]:
    """Decode sampled ids, and find the characters of each id.

    Args:
        tokenizer: any Hugging Face tokenizer.
        ids: (T,) tensor or list of int, as sampled; they need not be the canonical segmentation of their text.

    Returns:
        text: `tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)`
        offsets: T spans of it, starts and ends never decreasing, that cover all of it. Tokens that share the bytes
            of one character each have the whole character. A special token has an empty span (between the bytes of
            one character: that character).

    Time is linear in T for byte-level and sentencepiece-like tokenizers. The result is checked against the full
    decode. If a tokenizer decodes in another way, every prefix is decoded instead (quadratic, but right).
    """
    ids = ids.tolist() if hasattr(ids, "tolist") else list(ids)
    text = _decode(tokenizer, ids)
    if tokenizer not in _PIECES:
        _PIECES[tokenizer] = _Pieces(tokenizer)
    rebuilt, offsets = _offsets_from_bytes(_PIECES[tokenizer].of(tokenizer, ids))
    if rebuilt == text:
        return text, offsets
    if rebuilt == " " + text:  # the decoder drops the space in front of the first word
        return text, [(max(start - 1, 0), max(end - 1, 0)) for start, end in offsets]
    return text, _offsets_from_prefixes(tokenizer, ids, text)


def _decode(tokenizer, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def _byte_level_alphabet() -> dict[str, int]:
    """Character -> byte of byte-level BPE: printable Latin-1 is its own, the others are moved to 256 and up."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    moved = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + i): byte for i, byte in enumerate(moved)}


_BYTE_LEVEL = _byte_level_alphabet()
_FALLBACK_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_REPLACEMENT = "\ufffd"


class _Pieces:
    """The bytes that each id of one tokenizer adds to the middle of a text; looked up once per id."""

    def __init__(self, tokenizer):
        # no reference to the tokenizer: the cache below must not keep it alive
        self.known: dict[int, bytes] = {}
        self.fallback_bytes: set[int] = set()
        self.anchor = self._find_anchor(tokenizer)

    @staticmethod
    def _find_anchor(tokenizer) -> int | None:
        """An id with plain text: decoded after it, a piece keeps its leading space."""
        for id in range(len(tokenizer)):
            piece = _decode(tokenizer, [id])
            if piece.isascii() and piece.isalnum():
                return id
        return None

    def of(self, tokenizer, ids: list[int]) -> list[bytes]:
        for id in set(ids) - self.known.keys():
            self.known[id] = self._look_up(tokenizer, id)
        pieces = [self.known[id] for id in ids]
        # sentencepiece decodes a run of byte tokens as a whole: valid UTF-8, or one replacement character per token
        present = [k for k, piece in enumerate(pieces) if piece]
        for are_bytes, run in groupby(present, key=lambda k: ids[k] in self.fallback_bytes):
            run = list(run)
            if are_bytes and not _is_utf8(b"".join(pieces[k] for k in run)):
                for k in run:
                    pieces[k] = _REPLACEMENT.encode()
        return pieces

    def _look_up(self, tokenizer, id: int) -> bytes:
        name = tokenizer.convert_ids_to_tokens(id)
        context = [] if self.anchor is None else [self.anchor]
        piece = _decode(tokenizer, [*context, id])[len(_decode(tokenizer, context)) :]
        if name is None or piece == "":
            return b""
        if match := _FALLBACK_BYTE.fullmatch(name):
            if piece != name:
                self.fallback_bytes.add(id)
                return bytes([int(match[1], 16)])
        elif _REPLACEMENT in piece and all(char in _BYTE_LEVEL for char in name):
            return bytes(_BYTE_LEVEL[char] for char in name)
        return piece.encode()


_PIECES: WeakKeyDictionary = WeakKeyDictionary()  # tokenizer -> _Pieces


def _is_utf8(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


def _offsets_from_bytes(pieces: list[bytes]) -> tuple[str, list[Span]]:
    """The text of the joined pieces, invalid UTF-8 replaced, and the characters that each piece has a byte of."""
    raw = b"".join(pieces)
    text, char_of_byte = [], []
    position = 0
    while position < len(raw):
        try:
            valid, bad = raw[position:].decode(), b""
        except UnicodeDecodeError as error:
            valid = raw[position : position + error.start].decode()
            bad = raw[position + error.start : position + error.end]
        for char in valid:
            char_of_byte += [len(text)] * len(char.encode())
            text.append(char)
        if bad:
            char_of_byte += [len(text)] * len(bad)
            text.append(_REPLACEMENT)
        position = len(char_of_byte)
    offsets, byte = [], 0
    for piece in pieces:
        end_byte = byte + len(piece)
        before = char_of_byte[byte - 1] if byte else -1
        start = char_of_byte[byte] if byte < len(raw) else len(text)
        if piece:
            offsets.append((start, char_of_byte[end_byte - 1] + 1))
        else:
            offsets.append((start, before + 1))  # empty, but for a token between the bytes of one character
        byte = end_byte
    return "".join(text), offsets


def _offsets_from_prefixes(tokenizer, ids: list[int], text: str) -> list[Span]:
    """Offsets from the text of every prefix: tokens that complete no character wait for the one that does."""
    special = set(tokenizer.all_special_ids)
    offsets, end, waiting = [], 0, 0
    for count, id in enumerate(ids, start=1):
        prefix = _decode(tokenizer, ids[:count])
        start = end
        if count == len(ids):
            end = len(text)
        elif not prefix.endswith(_REPLACEMENT):
            end = min(max(len(prefix), end), len(text))
        waiting = 0 if id in special and not waiting else waiting + 1
        offsets.append((start, start))
        if end > start:
            waiting = max(waiting, 1)
            offsets[len(offsets) - waiting :] = [(start, end)] * waiting
            waiting = 0
    return offsets


def last_token_of(offsets: list[Span], span: Span) -> int | None:
    """Index of the last token that holds a character of `span`; None if no token does."""
    start, end = span
    for index in range(bisect_left(offsets, end, key=lambda offset: offset[0]) - 1, -1, -1):
        token_start, token_end = offsets[index]
        if token_end <= start:
            return None
        if token_end > token_start:
            return index
    return None


def tokens_overlapping(offsets: list[Span], span: Span) -> range:
    """The tokens that hold a character of `span`: a range of indices. Special tokens inside it count as members."""
    start, end = span
    last = last_token_of(offsets, span)
    if last is None or start >= end:
        return range(0)
    # ends never decrease
    first = bisect_left(offsets, start + 1, key=lambda offset: offset[1])
    return range(first, last + 1)
