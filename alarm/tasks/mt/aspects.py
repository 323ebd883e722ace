"""Machine translation: the rewards for readability, grammar and confidence.

Importing this module loads no torch: what can be checked without a model is checked first.
A translation without text is defined, and counted: no grammar error (every token gets the reward of a correct one),
error rate 0, confidence 0, and the grade of no words, -15.7, before normalisation.
"""

from __future__ import annotations

import warnings
from argparse import Namespace
from collections.abc import Callable
from typing import TYPE_CHECKING

from ...common.distinct import distinct
from ...common.threads import beside
from ...types import AspectScore, Rollout
from .grammar import Checker, Match, make_checker

if TYPE_CHECKING:
    from ...api import Settings


def readability_grade(text: str) -> float:
    """Flesch-Kincaid grade, as textstat 0.7.4 counts words and syllables; -15.7 for a text without words."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # textstat 0.7.4 imports pkg_resources
        import textstat
    return float(textstat.flesch_kincaid_grade(text))


class EnglishConfidence:
    """Lingua's probability that a text is English rather than Spanish; 0 for a text without words."""

    def __init__(self):
        self._detector = None

    def __call__(self, text: str) -> float:
        from lingua import Language, LanguageDetectorBuilder

        if self._detector is None:
            self._detector = LanguageDetectorBuilder.from_languages(Language.ENGLISH, Language.SPANISH).build()
        # the last bits differ from call to call (it sums in no fixed order), and a run must be repeatable
        return round(self._detector.compute_language_confidence(text, Language.ENGLISH), 9)


# --- the aspects -----------------------------------------------------------------------------------------------------


class Readability:
    """The Flesch-Kincaid grade, z-normalised."""

    def __init__(self, mean: float, std: float):
        self.mean, self.std = mean, std

    @classmethod
    def load(cls, settings: Settings) -> Readability:
        return cls(settings.args.readability_mean, settings.args.readability_std)

    def __call__(self, rollout: Rollout) -> AspectScore:
        raw = [readability_grade(text) for text in rollout.responses]
        values = [(grade - self.mean) / self.std for grade in raw]
        return AspectScore(values, {"readability": values}, raw)


class Confidence:
    """The probability that a text is English."""

    def __init__(self, probability: Callable[[str], float]):
        self.probability = probability

    @classmethod
    def load(cls, settings: Settings) -> Confidence:
        return cls(EnglishConfidence())

    def __call__(self, rollout: Rollout) -> AspectScore:
        texts, places = distinct(rollout.responses)
        found = [self.probability(text) for text in texts]
        values = [found[place] for place in places]
        return AspectScore(values, {"language_confidence": values})


class Grammar:
    """A value for each token: --grammar_incorrect_reward inside a grammar error, --grammar_correct_reward elsewhere.

    checker: finds the errors (see grammar.make_checker); `close` closes it.
    """

    def __init__(self, checker: Checker, correct: float, incorrect: float):
        self.checker, self.correct, self.incorrect = checker, correct, incorrect
        self.empty = 0

    @staticmethod
    def check(args: Namespace) -> None:
        """Raise UserError if the checker that the flags ask for cannot work. Starts nothing."""
        make_checker(args.grammar_backend, args.grammar_server).close()

    @classmethod
    def load(cls, settings: Settings) -> Grammar:
        args = settings.args
        checker = make_checker(args.grammar_backend, args.grammar_server)
        return cls(checker, args.grammar_correct_reward, args.grammar_incorrect_reward)

    def start(self, rollout: Rollout) -> Callable[[], AspectScore]:
        return beside(self, rollout)  # LanguageTool is another process

    def __call__(self, rollout: Rollout) -> AspectScore:
        """Metrics: grammar_errors (matches), error_rate (matches / tokens, the end of sequence among them).

        Raises GrammarServiceError if the grammar service fails for good.
        """
        self.empty += sum(not text.strip() for text in rollout.responses)
        matches = self.checker.check(rollout.responses)
        scores = [[(start, end, self.incorrect) for start, end in covered(found)] for found in matches]
        errors = [len(found) for found in matches]
        if rollout.response_ids is None:
            rates = [None] * len(errors)
        else:
            lengths = [len(ids) for ids in rollout.response_ids]
            rates = [count / max(length, 1) for count, length in zip(errors, lengths, strict=True)]
        metrics = {"grammar_errors": errors, "error_rate": rates}
        return AspectScore(scores, metrics, rates, elsewhere=self.correct, best=self.correct)

    def counts(self) -> dict[str, int]:
        return {
            "translations without text that were scored": self.empty,
            "failures of the grammar checker, after which texts were checked again": self.checker.counts.get(
                "failures", 0
            ),
        }

    def close(self) -> None:
        self.checker.close()


def covered(matches: list[Match]) -> list[tuple[int, int]]:
    """The stretches of text that lie in at least one match, in order. Linear after a sort."""
    spans: list[tuple[int, int]] = []
    for start, end in sorted((match.start, match.end) for match in matches if match.start < match.end):
        if spans and start <= spans[-1][1]:
            spans[-1] = (spans[-1][0], max(spans[-1][1], end))
        else:
            spans.append((start, end))
    return spans
