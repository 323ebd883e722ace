"""A few rules as an offline stand-in for LanguageTool."""

from __future__ import annotations

import logging
import re

from .matches import Match

logger = logging.getLogger(__name__)


class RulesChecker:
    """A stand-in for LanguageTool that knows a handful of unmistakable errors and nothing else."""

    def __init__(self):
        self.counts = {"texts": 0, "empty": 0}
        logger.warning(
            "GRAMMAR STAND-IN: --grammar_backend rules finds a handful of unmistakable errors, not what LanguageTool "
            "finds; its rewards and error rates compare with nothing else"
        )

    def check(self, texts: list[str]) -> list[list[Match]]:
        """The errors of each text, in its order."""
        self.counts["texts"] += len(texts)
        self.counts["empty"] += sum(not text.strip() for text in texts)
        return [rule_matches(text) for text in texts]

    def close(self) -> None:
        pass


# --- the rules of the stand-in ---------------------------------------------------------------------------------------

_CLAUSE_START = r"(?:^|(?<=[.!?,;:]\s)|(?<=\band\s)|(?<=\bbut\s)|(?<=\bbecause\s))"
_RULES = [
    (rule, re.compile(pattern, flags), message)
    for rule, pattern, flags, message in (
        # "had had" and "that that" can be right
        (
            "DOUBLED_WORD",
            r"\b(?!(?:had|that|bye|no|very|so|ha)\b)([^\W\d_]+)\s+\1\b(?!['’-])",
            re.IGNORECASE,
            "a word twice",
        ),
        ("SENTENCE_START", r"^\s*[\"'“‘(]?\b([a-z]+)\b(?![.@/]\w)", 0, "a sentence starts with a capital"),
        (
            "SENTENCE_START",
            r"(?:(?<=[a-z]{3}[.!?]\s)|(?<=[!?]\s))[\"'“‘(]?([a-z]+)\b(?![.@/]\w)",
            0,
            "a sentence starts with a capital",
        ),
        (
            "A_AN",
            r"\b([Aa] (?=[aeiou])(?!(?:one|once|eu|ewe|ut[eo]|u[bnrs][aeiu])[a-z]*)[a-z]{2,})\b",
            0,
            "an before a vowel",
        ),
        ("A_AN", r"\b([Aa]n (?=[bcdfgjklmnpqrstvwxyz])[a-z]{2,})\b(?<!\ban x-ray)", 0, "a before a consonant"),
        ("COMMA_SPACE", r"(?<=[^\W\d_]{2})(,(?=[^\W\d_]{2})[^\W\d_]+)", 0, "a space follows a comma"),
        ("COMMA_SPACE", r"(?<=\w)(\s+,)(?=\s|$)", 0, "no space before a comma"),
        (
            "AGREEMENT",
            _CLAUSE_START + r"((?:he|she|it) (?:are|am|have|do|don['’]t|aren['’]t|haven['’]t))\b",
            re.IGNORECASE,
            "verb and subject disagree",
        ),
        (
            "AGREEMENT",
            r"(?<!\bof )\b((?:they|we|you) (?:is|was|has|does|am|isn['’]t|wasn['’]t|hasn['’]t|doesn['’]t))\b",
            re.IGNORECASE,
            "verb and subject disagree",
        ),
        ("AGREEMENT", r"\b(I (?:are|is|has|does|aren['’]t|hasn['’]t|doesn['’]t))\b", 0, "verb and subject disagree"),
    )
]
# "x and I is", "James I has"
_BEFORE_I = re.compile(r"(?:\b(?:and|or)|[A-Z]\w+) $")


def rule_matches(text: str) -> list[Match]:
    """The stand-in's errors of one text, by position."""
    matches = []
    for rule, pattern, message in _RULES:
        for found in pattern.finditer(text):
            start, end = found.span() if rule == "DOUBLED_WORD" else found.span(1)
            if text[start:end].startswith("I ") and _BEFORE_I.search(text, max(0, start - 40), start):
                continue
            matches.append(Match(start, end, rule, message))
    return sorted(matches, key=lambda match: (match.start, match.end))
