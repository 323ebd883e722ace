"""Human feedback on the answers of long-form QA: what the files hold, and the labels and pairs that follow from it.

A feedback row marks errors in its first answer by character spans, lists what that answer leaves out, holds the
annotator's corrected answer, and compares four answers in pairs.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ...common.errors import UserError
from ...common.files import is_text, read_rows, require_fields
from ...common.texts import answer_key
from ...models.classifiers import F_ERR, NF_ERR, NO_ERR
from ..preferences import Pair

if TYPE_CHECKING:
    from ..sentences import Splitter
    from ..spans import Span

RELEVANCE_ERRORS = frozenset({"Irrelevant", "Redundant", "Incoherent"})
FACTUALITY_ERRORS = frozenset({"Wrong-Grounding", "Unverifiable"})
IGNORED = -100
ANSWERS = ("prediction 1", "prediction 2", "prediction 3", "prediction 4")
# The order of the six comparisons and their coding, 1 = the first is better, 2 = the second, 0 = tie. Both follow from
# the data: of the 720 orders of the pairs this one (and its mirror image) is all but transitive, 30 violations in 300
# rows against 270 for the next; and read this way the better answer has the greater word overlap with the reference
# in 62% of the comparisons, read the other way round in 38%, by the mirror image in 46%.
PAIRS = tuple(itertools.combinations(range(4), 2))
# a sub-sentence has at least this many words, so a shorter span cannot make one irrelevant
_MIN_SPAN_WORDS = 5


@dataclass(frozen=True)
class Feedback:
    """One question with its prompt and the human feedback on its answers."""

    prompt: str
    question: str
    answers: tuple[str, ...]  # the four sampled answers; errors and missing information belong to the first
    corrected: str  # the first, rewritten by the annotator; may be empty
    errors: tuple[dict, ...]  # {"error type", "start", "end"}, characters of answers[0]
    missing: tuple[dict, ...]  # {"error type", "passage_id", "sentence_id"}
    preference: tuple[int, ...]  # six values over PAIRS


def load_feedback(questions_path: str | Path, feedback_path: str | Path) -> list[Feedback]:
    """Join a questions file and its feedback file by question.

    Raises UserError for a malformed row, for a question that either file asks twice, and for feedback on a question
    that the questions file lacks.
    """
    questions, rows = read_rows(questions_path), read_rows(feedback_path)
    require_fields(questions, {"text": str, "question": str}, questions_path)
    require_fields(
        rows, {"question": str, **dict.fromkeys(ANSWERS, str), "feedback": dict, "preference": list}, feedback_path
    )
    prompts = {row["question"]: row["text"] for row in questions}
    if len(prompts) < len(questions):
        raise UserError(f"{questions_path} asks a question twice; feedback is joined by question, so remove one")
    joined, seen = [], set()
    for number, row in enumerate(rows, start=1):
        where = f"{feedback_path}, row {number}"
        if row["question"] not in prompts:
            raise UserError(f"{where}: {questions_path} has no question {row['question']!r}; give the matching file")
        if row["question"] in seen:
            raise UserError(f"{where}: a second row of feedback on {row['question']!r}; remove one")
        seen.add(row["question"])
        joined.append(_read_row(row, prompts[row["question"]], where))
    return joined


def _read_row(row: dict, prompt: str, where: str) -> Feedback:
    given, answer = row["feedback"], row[ANSWERS[0]]
    preference = row["preference"]
    if len(preference) != len(PAIRS) or not all(type(value) is int and 0 <= value <= 2 for value in preference):
        raise UserError(f"{where}: 'preference' must hold six values 0 (tie), 1 (first) or 2 (second)")
    for name, kind, words in (
        ("errors", list, "a list of error spans"),
        ("missing-info", list, "a list"),
        ("corrected-prediction", str, "text"),
    ):
        if not isinstance(given.get(name, kind()), kind):
            raise UserError(f"{where}: '{name}' must be {words}; fix it or leave it out")
    if not is_text(given.get("corrected-prediction", "")):
        raise UserError(f"{where}: 'corrected-prediction' holds half a surrogate pair; fix it or leave it out")
    errors = given.get("errors", [])
    for error in errors:
        start, end = (error.get("start"), error.get("end")) if isinstance(error, dict) else (None, None)
        inside = isinstance(start, int) and isinstance(end, int) and 0 <= start <= end <= len(answer)
        kind = error.get("error type") if inside else None
        if not isinstance(kind, str) or kind not in RELEVANCE_ERRORS | FACTUALITY_ERRORS:
            raise UserError(f"{where}: {str(error)[:200]} is no error span of '{ANSWERS[0]}'; fix or remove it")
    return Feedback(
        prompt=prompt,
        question=row["question"],
        answers=tuple(row[name] for name in ANSWERS),
        corrected=given.get("corrected-prediction", "").strip(),
        errors=tuple(errors),
        missing=tuple(given.get("missing-info", [])),
        preference=tuple(preference),
    )


# --- labels of text units --------------------------------------------------------------------------------------------


def _overlap(unit: Span, error: dict) -> int:
    """Characters that a unit and an error span share."""
    return max(0, min(unit[1], error["end"]) - max(unit[0], error["start"]))


def relevance_labels(text: str, units: list[Span], errors: tuple[dict, ...]) -> list[int]:
    """NF_ERR for each sub-sentence that relevance errors cover by half or more, else NO_ERR.

    Spans of fewer words than a sub-sentence has are dropped.
    """
    kept = [
        error
        for error in errors
        if error["error type"] in RELEVANCE_ERRORS
        and len(text[error["start"] : error["end"]].split()) >= _MIN_SPAN_WORDS
    ]
    covered = {index for error in kept for index in range(error["start"], error["end"])}
    return [
        NF_ERR if 2 * sum(index in covered for index in range(*unit)) >= unit[1] - unit[0] else NO_ERR for unit in units
    ]


def factuality_labels(text: str, units: list[Span], errors: tuple[dict, ...]) -> list[int]:
    """F_ERR for each sentence that a factual error touches, IGNORED if only other errors do, else NO_ERR.

    Annotators did not check the facts of what they had marked as irrelevant.
    """
    labels = []
    for unit in units:
        kinds = {error["error type"] for error in errors if _overlap(unit, error)}
        labels.append(F_ERR if kinds & FACTUALITY_ERRORS else IGNORED if kinds else NO_ERR)
    return labels


# --- pairs of answers ------------------------------------------------------------------------------------------------


def preference_pairs(row: Feedback) -> list[Pair]:
    """The comparisons of a row that are no ties."""
    pairs = []
    for (first, second), verdict in zip(PAIRS, row.preference, strict=True):
        if verdict:
            better, worse = (first, second) if verdict == 1 else (second, first)
            pairs.append(Pair(row.question, row.prompt, row.answers[better], row.answers[worse], "preference"))
    return pairs


def completeness_pairs(row: Feedback, splitter: Splitter) -> list[Pair]:
    """Pairs in which one answer surely covers more information.

    `added`: the corrected answer against the first answer, if that one misses information.
    `left out`: the corrected answer against itself without its longest sentence.
    """
    if not row.corrected:
        return []
    pairs = []
    if row.missing and answer_key(row.corrected) != answer_key(row.answers[0]):
        pairs.append(Pair(row.question, row.prompt, row.corrected, row.answers[0].strip(), "added"))
    sentences = splitter([row.corrected])[0]
    if len(sentences) > 1:
        gone = max(sentences, key=lambda span: span[1] - span[0])
        rest = " ".join(row.corrected[start:end] for start, end in sentences if (start, end) != gone)
        pairs.append(Pair(row.question, row.prompt, row.corrected, rest, "left out"))
    return pairs
