"""When two texts are the same. Files spell one text in many ways, which must not hide that it was seen before."""

from __future__ import annotations

import functools
import hashlib
import unicodedata
from collections.abc import Callable, Iterable
from typing import TypeVar

from .errors import UserError

Example = TypeVar("Example")


def question_key(text: str) -> str:
    """Equal for two texts that ask the same: the words of `text`, in one spelling of Unicode.

    Case, composed and decomposed letters, full-width letters, kinds and amounts of white space, invisible characters
    and punctuation do not tell texts apart. Letters, digits and symbols do ("C" and "C++", "3.5" and "35"). A text
    of punctuation alone keeps it.
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join("".join(map(_plain, folded)).split() or folded.split())


@functools.cache
def _plain(letter: str) -> str:
    category = unicodedata.category(letter)
    return "" if category == "Cf" else " " if category[0] == "P" else letter


def one_spelling(texts: Iterable[str]) -> list[str]:
    """Each text, or the first of those before it that ask the same (`question_key`)."""
    first: dict[str, str] = {}
    return [first.setdefault(question_key(text), text) for text in texts]


def answer_key(text: str) -> str:
    """Equal for two answers that look the same: NFC, without white space around. All else can make one better."""
    return unicodedata.normalize("NFC", text.strip())


def shared_questions(train: Iterable[str], held_out: Iterable[str]) -> set[str]:
    """The `question_key` of each text that both sides hold."""
    return {question_key(text) for text in held_out} & {question_key(text) for text in train}


def without_shared(
    train: list[Example], held_out: list[Example], question: Callable[[Example], str]
) -> tuple[list[Example], int]:
    """Training examples whose question is not also held out (`question_key`), and how many questions were.

    Raises UserError if no training example is left.
    """
    shared = shared_questions(map(question, train), map(question, held_out))
    kept = [example for example in train if question_key(question(example)) not in shared]
    if not kept:
        raise UserError(
            f"the training and the dev file ask the same {len(shared)} questions, so nothing is left to train on; "
            "give a dev file of other questions"
        )
    return kept, len(shared)


def prompt_id(prompt: str) -> str:
    """The same for the same prompt in every run: 16 hex digits."""
    return hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).hexdigest()[:16]
