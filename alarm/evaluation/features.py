"""Plain features of an answer that can decide a comparison without being quality: what `--control` holds equal.

Each is defined here and nowhere else. All read the texts alone; the passage of a prompt is the prompt itself.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Callable, Hashable, Sequence

from ..common.distinct import distinct
from ..common.errors import UserError
from ..tasks.sentences import find_splitter, make_splitter

COPIED_RUN = 4  # words in a row that the prompt has too: fewer are chance
REPEATED = 3  # words or tokens that count as repeated if they came before

_WORD = re.compile(r"\w+(?:'\w+)*")


def words(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation; an apostrophe inside belongs to its word."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold().replace("’", "'"))


def copied_share(prompt: Sequence[str], answer: Sequence[str], run: int = COPIED_RUN) -> float:
    """The share of the answer's words that lie in `run` or more words which stand in this order in the prompt.

    0 for an answer without words. With run 1 it is the coverage of Grusky et al. 2018 (arXiv 1804.11283).
    """
    if not answer:
        return 0.0
    known = {tuple(prompt[i : i + run]) for i in range(len(prompt) - run + 1)}
    covered = [False] * len(answer)
    for i in range(len(answer) - run + 1):
        if tuple(answer[i : i + run]) in known:
            covered[i : i + run] = [True] * run
    return sum(covered) / len(answer)


def repeated_share(answer: Sequence[Hashable], size: int = REPEATED) -> float:
    """The share of the runs of `size` words or tokens that came before in the answer; 0 for one without such a run."""
    count = len(answer) - size + 1
    return 1 - len({tuple(answer[i : i + size]) for i in range(count)}) / count if count > 0 else 0.0


@functools.cache
def _english():
    import spacy

    return spacy.blank("en")


def content_share(text: str) -> float:
    """Lexical density (Ure 1971): the share of an English text's words that are no function words; 0 without words.

    Words and function words are those of spaCy's tokenizer and stop list.
    """
    found = [word.is_stop for word in _english()(text) if not word.is_punct and not word.is_space]
    return 1 - sum(found) / len(found) if found else 0.0


def _of_words(measure: Callable[[list[str], list[str]], float]):
    def feature(prompts: list[str], answers: list[str]) -> list[float]:
        read = functools.cache(words)  # a prompt has several answers
        return [float(measure(read(prompt), read(answer))) for prompt, answer in zip(prompts, answers, strict=True)]

    return feature


def _sentences(prompts: list[str], answers: list[str]) -> list[float]:
    return [float(len(spans)) for spans in make_splitter("sentencizer")(answers)]


LENGTH_CONTROL = "length"  # the tokens that the files count; the others are measured on the texts

# name -> (prompts, answers) -> a number for each
FEATURES: dict[str, Callable[[list[str], list[str]], list[float]]] = {
    "words": _of_words(lambda prompt, answer: len(answer)),
    "sentences": _sentences,
    "copied": _of_words(copied_share),
    "overlap": _of_words(functools.partial(copied_share, run=1)),
    "repetition": _of_words(lambda prompt, answer: repeated_share(answer)),
    "lexical_density": lambda prompts, answers: [content_share(answer) for answer in answers],
}
MEANING = {
    "words": "number of words",
    "sentences": "number of sentences, by punctuation",
    "copied": f"share of words in runs of {COPIED_RUN} or more that the prompt has too",
    "overlap": "share of words that the prompt has too",
    "repetition": f"share of runs of {REPEATED} words that came before in the answer",
    "lexical_density": "share of words that are no English function words",
}
CONTROLS = (LENGTH_CONTROL, *FEATURES)


def check_features(names: Sequence[str]) -> None:
    """Raise UserError if a feature needs a package that is not installed."""
    if {"sentences", "lexical_density"} & set(names):
        try:
            find_splitter("sentencizer")
        except UserError:
            raise UserError("the features sentences and lexical_density need spaCy; pip install spacy") from None


def feature(name: str, prompts: Sequence[str], answers: Sequence[str]) -> list[float]:
    """The feature of this name (a key of FEATURES) of N answers. Equal pairs of texts are measured once. -> N."""
    pairs, places = distinct(zip(prompts, answers, strict=True))
    found = FEATURES[name]([prompt for prompt, _ in pairs], [answer for _, answer in pairs])
    return [found[place] for place in places]
