"""How far a judge agrees with people, and what sways it: rates over pairs of answers that people have compared.

Everything is a share of sums over pairs, in percent. Intervals draw questions, not pairs: the pairs of a question stand
or fall together. Loads no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from ..common.bootstrap import DRAWS, Resamples, interval, resample, share, share_interval
from ..common.errors import UserError
from ..common.files import read_rows, require_fields
from ..common.texts import answer_key, one_spelling
from ..tasks.qa.feedback import PAIRS, load_feedback
from .features import words


@dataclass(frozen=True)
class HumanPair:
    """Two answers to a prompt and what people say of them."""

    question: str  # pairs with one question are no independent evidence
    prompt: str
    a: str
    b: str
    votes: tuple[int, ...]  # of each annotator: 1 a is better, -1 b is, 0 tie
    row: dict  # the data row of the prompt

    @property
    def majority(self) -> int:
        """1, -1, or 0 if as many are for one side as for the other."""
        return int(np.sign(sum(self.votes)))


@dataclass(frozen=True)
class Preferences:
    """What people prefer, and where it comes from."""

    name: str
    pairs: list[HumanPair]
    ordered: bool  # whether the order of a and b means something: not in a file of chosen and rejected answers
    left_out: int  # pairs of two equal answers


# --- reading ---------------------------------------------------------------------------------------------------------


def read_feedback(questions: str | Path, feedback: str | Path) -> Preferences:
    """The six comparisons of four answers of each question of qa-feedback, by one annotator. Raises UserError."""
    rows = {row["question"]: row for row in read_rows(questions)}
    pairs = [
        HumanPair(row.question, row.prompt, row.answers[i], row.answers[j], ((0, 1, -1)[vote],), rows[row.question])
        for row in load_feedback(questions, feedback)
        for (i, j), vote in zip(PAIRS, row.preference, strict=True)
    ]
    return _checked(Path(feedback).name, pairs, ordered=True, where=feedback)


def read_preferences(path: str | Path) -> Preferences:
    """Rows {prompt, chosen, rejected}; rows on the same two answers are the votes of several annotators.

    An optional `annotator` names who votes: nobody may vote twice on a pair. An optional `tie` (true) is a vote for
    neither. Raises UserError.
    """
    rows = read_rows(path)
    require_fields(rows, dict.fromkeys(("prompt", "chosen", "rejected"), str), path)
    found: dict[tuple[str, str, str], tuple[dict, list[int]]] = {}
    voted = set()
    for number, row in enumerate(rows, start=1):
        if not isinstance(tie := row.get("tie", False), bool):
            raise UserError(f"{path}, row {number}: 'tie' is {tie!r}; give true or false")
        one, other = row["chosen"], row["rejected"]
        turned = (row["prompt"], other, one) in found
        key = (row["prompt"], other, one) if turned else (row["prompt"], one, other)
        if "annotator" in row:
            if (who := (key, str(row["annotator"]))) in voted:
                raise UserError(f"{path}, row {number}: {row['annotator']!r} votes a second time on two answers")
            voted.add(who)
        found.setdefault(key, (row, []))[1].append(0 if tie else -1 if turned else 1)
    pairs = [HumanPair(prompt, prompt, a, b, tuple(votes), row) for (prompt, a, b), (row, votes) in found.items()]
    return _checked(Path(path).name, pairs, ordered=False, where=path)


def _checked(name: str, pairs: list[HumanPair], ordered: bool, where: str | Path) -> Preferences:
    kept = [pair for pair in pairs if answer_key(pair.a) != answer_key(pair.b)]
    if not kept:
        raise UserError(f"{where}: the two answers of each of {len(pairs)} pairs are equal; give other preferences")
    if not any(vote for pair in kept for vote in pair.votes):
        raise UserError(f"{where} holds ties only; give preferences")
    return Preferences(name, kept, ordered, len(pairs) - len(kept))


# --- rates -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rate:
    """A percentage, None if there is nothing to count."""

    value: float | None
    interval: list[float] | None  # 95%
    count: int  # how many decisions it is a share of


@dataclass(frozen=True)
class Agreement:
    """What a judge does on the pairs."""

    people: Rate  # its verdict is that of an annotator who is for one side; a tie counts half
    majority: Rate  # the same for the majority, over pairs with several annotators
    over_length: Rate  # `people` less the same of the rule that the longer answer wins, in points
    longer: Rate  # of its decisions, for the answer with more words
    first: Rate  # of its answers, for the one shown first; 50: no bias
    ties: Rate  # of its verdicts
    changed: Rate  # of two repeats, another verdict
    failures: Rate  # no verdict


@dataclass(frozen=True)
class Verdicts:
    """What a judge says of N pairs, R times."""

    values: np.ndarray  # (R, N) of 1: a is better, 0: tie, -1: b is, NaN: no verdict
    first: np.ndarray | None = None  # (N,) how often it preferred what it was shown first; None: it sees one at a time
    placed: np.ndarray | None = None  # (N,) how often it preferred one of the two


class Meter:
    """Measures verdicts on the same pairs by the same draws."""

    def __init__(self, pairs: Sequence[HumanPair], draws: int = DRAWS):
        names = one_spelling(pair.question for pair in pairs)
        _, self._question = np.unique(names, return_inverse=True)
        self.questions = int(self._question.max()) + 1
        self._resamples: Resamples = resample(self.questions, draws=draws)
        self.pairs = pairs
        self.longer = np.sign([float(len(words(pair.a)) - len(words(pair.b))) for pair in pairs])  # (N,)
        self._for_a = np.array([sum(vote > 0 for vote in pair.votes) for pair in pairs], dtype=float)
        self._for_b = np.array([sum(vote < 0 for vote in pair.votes) for pair in pairs], dtype=float)
        self.several = np.array([len(pair.votes) > 1 for pair in pairs])
        self.majority = np.array([pair.majority for pair in pairs], dtype=float)

    def rate(self, numerator: np.ndarray, denominator: np.ndarray, points: bool = False) -> Rate:
        """sum(numerator) / sum(denominator) in percent; (N,) each. points: a difference, which may be below 0."""
        parts = [
            np.bincount(self._question, weights=np.asarray(part, dtype=float), minlength=self.questions)
            for part in (numerator, denominator)
        ]
        above, below = (self._resamples.prompts @ part.astype(np.float32) for part in parts)
        with np.errstate(invalid="ignore", divide="ignore"):
            drawn = 100 * above.astype(float) / below
        bounds = interval(drawn) if points else share_interval(*parts, drawn)
        bounds = None if bounds is None or bounds[0] == bounds[1] else bounds  # one question, or all alike
        return Rate(share(*parts), bounds, int(np.sum(denominator)))

    def measure(self, verdicts: Verdicts) -> Agreement:
        values = verdicts.values
        known = np.isfinite(values)
        signs = np.where(known, values, 0)
        decided = self._for_a + self._for_b  # votes for one of the two
        balance = self._for_a - self._for_b
        counted = known.sum(axis=0)  # (N,) verdicts
        sums = signs.sum(axis=0)
        by_majority = self.several & (self.majority != 0)
        decides = signs != 0
        differ, both = np.zeros(values.shape[1]), np.zeros(values.shape[1])
        for one, other in combinations(range(len(values)), 2):
            pair_known = known[one] & known[other]
            both += pair_known
            differ += pair_known & (signs[one] != signs[other])
        none = np.zeros(values.shape[1])
        return Agreement(
            people=self.rate((counted * decided + sums * balance) / 2, counted * decided),
            majority=self.rate(by_majority * (counted + sums * self.majority) / 2, by_majority * counted),
            over_length=self.rate((sums - counted * self.longer) * balance / 2, counted * decided, points=True),
            longer=self.rate((signs * self.longer > 0).sum(axis=0), (decides & (self.longer != 0)).sum(axis=0)),
            first=self.rate(
                none if verdicts.first is None else verdicts.first, none if verdicts.placed is None else verdicts.placed
            ),
            ties=self.rate((known & ~decides).sum(axis=0), counted),
            changed=self.rate(differ, both),
            failures=self.rate((~known).sum(axis=0), np.full(values.shape[1], len(values))),
        )

    def of_people(self, ordered: bool) -> Agreement:
        """People by the same measures: an annotator against the majority of the others on the pair.

        `first` is the first of the file, if its order means something.
        """
        agree, pairs = np.zeros(len(self.pairs)), np.zeros(len(self.pairs))
        for i, pair in enumerate(self.pairs):
            for vote in pair.votes:
                rest = np.sign(sum(pair.votes) - vote)
                if vote and len(pair.votes) > 1:
                    pairs[i] += 1
                    agree[i] += (vote * rest + 1) / 2
        decided = self._for_a + self._for_b
        votes = np.array([len(pair.votes) for pair in self.pairs], dtype=float)
        for_longer = np.where(self.longer > 0, self._for_a, self._for_b) * (self.longer != 0)
        none = np.zeros(len(self.pairs))
        return Agreement(
            people=self.rate(agree, pairs),
            majority=self.rate(none, none),
            over_length=self.rate(none, none),
            longer=self.rate(for_longer, decided * (self.longer != 0)),
            first=self.rate(self._for_a if ordered else none, decided if ordered else none),
            ties=self.rate(votes - decided, votes),
            changed=self.rate(none, none),
            failures=self.rate(none, none),
        )


# --- verdicts from scores --------------------------------------------------------------------------------------------


def verdicts_of_scores(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(N,) scores of both sides, the higher wins -> (N,) verdicts; NaN where a score is not finite."""
    known = np.isfinite(a) & np.isfinite(b)
    return np.where(known, np.sign(np.where(known, a, 0) - np.where(known, b, 0)), np.nan)


def majority_vote(members: Sequence[np.ndarray]) -> np.ndarray:
    """(R, N) verdicts of each judge -> (R, N): the side with more votes; a judge without a verdict abstains."""
    stacked = np.stack(members)
    known = np.isfinite(stacked)
    sums = np.where(known, stacked, 0).sum(axis=0)
    return np.where(known.any(axis=0), np.sign(sums), np.nan)


def mean_ranks(scores: Sequence[np.ndarray], groups: np.ndarray) -> np.ndarray:
    """The mean over judges of each answer's rank among those to its prompt: 1 the lowest, equal scores share a rank.

    scores: (M,) each, higher is better; groups: (M,) which prompt. NaN for an answer that a judge has no score for.
    """
    total = np.zeros(len(groups))
    members = np.split(np.argsort(groups, kind="stable"), np.cumsum(np.bincount(groups))[:-1])
    for values in scores:
        for group in members:
            of_group = values[group]
            known = np.isfinite(of_group)
            _, place, counts = np.unique(of_group[known], return_inverse=True, return_counts=True)
            ranks = np.full(len(group), np.nan)
            ranks[known] = (np.cumsum(counts) - (counts - 1) / 2)[place]
            total[group] += ranks
    return total / len(scores)
