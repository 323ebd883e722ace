"""Questions about the encyclopedia with passages, answers and feedback, in the format of qa-feedback.

    python -m miniature.qa.data --save_dir DIR

writes {train,dev,test}.json with correct references, {train,dev}_noisy.json with the references of a supervised start
(errors in known shares, see NOISE) and {train,dev}_feedback.json: four answers to each question, errors by span,
what is missing, and which of two answers is better. All labels are true ones, from the oracle.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

from alarm.common.errors import UserError, report_user_errors
from alarm.common.files import check_writable, whole_folder, write_text
from alarm.common.flags import parser, positive_int, seed_value
from alarm.tasks.qa.feedback import ANSWERS, PAIRS
from miniature.qa.oracle import judge_row, pack, unpack_ask, unpack_fact
from miniature.qa.world import (
    NAMES,
    RELATIONS,
    Ask,
    Entity,
    Fact,
    Pool,
    ask,
    capital,
    draw,
    forms_of,
    make_article,
    names,
    say,
    values_of,
)

FACTS_OF_FOCUS, FACTS_OF_OTHER = 4, 2
PARTS = (2, 2, 3)  # of a question, drawn with equal chances
SAME_KIND = 0.4  # share of the second articles that are about the same kind of thing as the first

MEASURED = 1000  # noisy references whose true quality is printed
PARTS_OF_QUALITY = ("total", "relevance", "factuality", "completeness")

Statement = tuple[Fact, Entity]  # a fact and what it is said of, which mostly stands in front


# --- texts ------------------------------------------------------------------------------------------------------------


def compose(statements: list[Statement], rng: random.Random, joined: float = 0.0) -> list[str]:
    """The sentences that say this, in other words each time. joined: chance that a clause joins the one before it."""
    sentences: list[str] = []
    last, clauses = None, 0  # what stood in front last; clauses of the last sentence
    for fact, about in statements:
        direct = forms_of(fact, about)
        form = rng.choice(direct if direct and rng.random() < 0.9 else forms_of(fact))
        front = fact.role(form.text[0])
        pronoun = {front: front.pronoun} if front == last and rng.random() < 0.8 else None
        clause = say(fact, form, pronoun)
        if sentences and clauses < 2 and rng.random() < joined:
            sentences[-1] = f"{sentences[-1][:-1]}, and {clause}."
            clauses += 1
        else:
            sentences.append(f"{capital(clause)}.")
            clauses = 1
        last = front
    return sentences


# --- questions --------------------------------------------------------------------------------------------------------


def make_row(split: str, number: int, seed: int) -> dict:
    """Question `number` of a split: `text`, `question`, `answer`, `passages`, and `facts` and `asks` for the oracle."""
    rng = random.Random(f"row {seed} {split} {number}")
    pool = names(split)
    focus_kind = rng.choice(list(NAMES))
    focus = rng.choice(pool[focus_kind])
    kind = focus_kind if rng.random() < SAME_KIND else rng.choice(list(NAMES))
    article = make_article(focus, FACTS_OF_FOCUS, pool, rng)
    other = make_article(draw(pool[kind], rng, (focus,)), FACTS_OF_OTHER, pool, rng, without=(focus,))
    asks = [
        Ask(fact.relation, focus, article.role(fact), fact.object if RELATIONS[fact.relation].polar else None)
        for fact in rng.sample(article.facts, rng.choice(PARTS))
    ]
    pages = [article, other] if rng.random() < 0.5 else [other, article]
    contents = [compose([(fact, page.entity) for fact in page.facts], rng) for page in pages]
    question = ask(asks)
    passages = [
        {"content": " ".join(sentences), "wikipage": page.entity.title}
        for page, sentences in zip(pages, contents, strict=True)
    ]
    context = " | ".join(f"wikipage: {page['wikipage']} text: {page['content']}" for page in passages)
    answer = compose([(the_answer(part, article.facts), focus) for part in asks], rng, joined=0.5)
    return {
        "text": f"question: {question} context: {context}",
        "question": question,
        "answer": [" ".join(answer)],
        "passages": passages,
        "facts": [pack(fact) for page in pages for fact in page.facts],
        "asks": [pack(part) for part in asks],
    }


def the_answer(part: Ask, facts: tuple[Fact, ...] | list[Fact]) -> Fact:
    """The fact that answers a part of a question."""
    return next(fact for fact in facts if part.answered_by(fact))


def make_rows(split: str, count: int, seed: int) -> list[dict]:
    """`count` rows with different questions."""
    found: dict[str, dict] = {}
    for number in itertools.count():
        if len(found) == count:
            return list(found.values())
        row = make_row(split, number, seed)
        found.setdefault(row["question"], row)


# --- answers with errors ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Noise:
    """How often an answer has errors."""

    false: float  # of statements: another value, another person, a turned negation
    missing: float  # of answers: lack one part of the question (not their only one)
    irrelevant: float  # of answers: say one thing of the passages that was not asked
    repeated: float  # of answers: say one thing again
    broken: float = 0.0  # of answers: one clause has its words in a wrong order
    loops: float = 0.0  # of answers: say one thing two to four times more
    copies: float = 0.0  # of answers: the sentences of a passage


NOISE = Noise(false=0.12, missing=0.3, irrelevant=0.45, repeated=0.15)
# of the four answers of a feedback row: all errors that a policy may come to make
FEEDBACK_NOISE = Noise(false=0.3, missing=0.35, irrelevant=0.4, repeated=0.2, broken=0.15, loops=0.1, copies=0.05)


def make_answer(row: dict, noise: Noise, pool: Pool, rng: random.Random) -> str:
    """An answer to the question of a row, with errors as `noise` has it."""
    facts, asks = [unpack_fact(fact) for fact in row["facts"]], [unpack_ask(part) for part in row["asks"]]
    if rng.random() < noise.copies:
        return rng.choice(row["passages"])["content"]
    focus = asks[0].focus
    asked = [the_answer(part, facts) for part in asks]
    said: list[Statement] = [(fact, focus) for fact in asked]
    if len(said) > 1 and rng.random() < noise.missing:
        said.pop(rng.randrange(len(said)))
    said = [(falsify(fact, focus, facts, pool, rng) if rng.random() < noise.false else fact, focus) for fact, _ in said]
    if rng.random() < noise.irrelevant:
        fact = rng.choice([fact for fact in facts if fact not in asked])
        about = focus if focus in (fact.subject, fact.object) else fact.subject
        said.insert(rng.randint(1, len(said)), (fact, about))
    for share, times in ((noise.repeated, 1), (noise.loops, rng.randint(2, 4))):
        if rng.random() < share:
            at = rng.randrange(len(said))
            # right behind, or at the end
            place = at + 1 if rng.random() < 0.5 else len(said)
            said[place:place] = [said[at]] * times
    sentences = compose(said, rng, joined=0.5)
    if rng.random() < noise.broken:
        at = rng.randrange(len(sentences))
        words = sentences[at][:-1].split()
        start = rng.randrange(len(words))
        words[start:] = rng.sample(words[start:], len(words) - start)
        sentences[at] = f"{' '.join(words)}."
    return " ".join(sentences)


def falsify(fact: Fact, focus: Entity, facts: list[Fact], pool: Pool, rng: random.Random) -> Fact:
    """A false statement about what a fact is about: half of the wrong values stand elsewhere in the passages."""
    relation = RELATIONS[fact.relation]
    if relation.polar:
        return fact.opposite
    if len(relation.asks) > 1 and rng.random() < 0.3:
        return replace(fact, subject=fact.object, object=fact.subject)
    role, kind = ("object", relation.object) if fact.subject == focus else ("subject", relation.subject)
    options, without = values_of(kind, pool), (getattr(fact, role), focus)
    nearby = [value for known in facts for value in (known.subject, known.object) if value in options]
    nearby = [value for value in nearby if value not in without]
    return replace(fact, **{role: draw(nearby if nearby and rng.random() < 0.5 else options, rng, without)})


# --- feedback ---------------------------------------------------------------------------------------------------------


def feedback_row(row: dict, answers: list[str], rng: random.Random) -> dict:
    """What a faultless annotator would say of four answers. Errors and missing information belong to the first."""
    judged = [judge_row(row, answer) for answer in answers]
    first = judged[0]
    errors = [
        {"error type": kind, "explanation": "", "start": one.unit.start, "end": one.unit.end}
        for one in first.units
        for kind in (one.irrelevance, one.falsehood)
        if kind
    ]
    facts = [unpack_fact(fact) for fact in row["facts"]]
    asks = [unpack_ask(part) for part in row["asks"]]
    places = [(p, s) for p, page in enumerate(row["passages"]) for s in range(page["content"].count("."))]
    missing = [
        {"error type": "Missing-Answer", "passage_id": passage, "sentence_id": [sentence]}
        for part in first.missing
        for passage, sentence in [places[facts.index(the_answer(part, facts))]]
    ]
    corrected = compose([(the_answer(part, facts), part.focus) for part in asks], rng, joined=0.5)
    totals = [one.total for one in judged]
    return {
        "question": row["question"],
        "passages": [[page["wikipage"], *_sentences(page["content"])] for page in row["passages"]],
        "gold": row["answer"][0],
        **dict(zip(ANSWERS, answers, strict=True)),
        "feedback": {
            "errors": errors,
            "missing-info": missing,
            "corrected-prediction": " ".join(corrected) if first.total < 1 else "",
        },
        "preference": [0 if totals[a] == totals[b] else 1 if totals[a] > totals[b] else 2 for a, b in PAIRS],
    }


def _sentences(content: str) -> list[str]:
    return [f"{sentence}." for sentence in content.rstrip(".").split(". ")]


# --- the command ------------------------------------------------------------------------------------------------------


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    flags = parser(__doc__.split("\n\n")[0])
    add = flags.add_argument
    add("--save_dir", required=True, help="new folder for the files")
    for split, count in (("train", 12000), ("dev", 300), ("test", 1000)):
        add(f"--{split}", type=positive_int, default=count, help=f"{split} questions")
    for split, count in (("train", 4000), ("dev", 300)):
        add(f"--{split}_feedback", type=positive_int, default=count, help=f"of these, {split} questions with feedback")
    add("--seed", type=seed_value, default=0, help="another seed makes another encyclopedia")
    return flags.parse_args(argv)


@report_user_errors
def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    save_dir = Path(args.save_dir)
    check_writable(save_dir, "--save_dir")
    if save_dir.exists():
        raise UserError(f"--save_dir {save_dir} exists; give the path of a new folder")
    for split in ("train", "dev"):
        if getattr(args, f"{split}_feedback") > getattr(args, split):
            raise UserError(f"--{split}_feedback is more than --{split}; feedback is on questions of that split")
    with whole_folder(save_dir) as folder:
        for split in ("train", "dev", "test"):
            rows = make_rows(split, getattr(args, split), args.seed)
            write_rows(folder / f"{split}.json", rows)
            if split == "test":
                continue
            rng, pool = random.Random(f"answers {args.seed} {split}"), names(split)
            noisy = [make_answer(row, NOISE, pool, rng) for row in rows]
            write_rows(
                folder / f"{split}_noisy.json",
                [
                    {"text": row["text"], "question": row["question"], "answer": [answer]}
                    for row, answer in zip(rows, noisy, strict=True)
                ],
            )
            given = rows[: getattr(args, f"{split}_feedback")]
            answers = [[make_answer(row, FEEDBACK_NOISE, pool, rng) for _ in ANSWERS] for row in given]
            write_rows(
                folder / f"{split}_feedback.json",
                [feedback_row(row, four, rng) for row, four in zip(given, answers, strict=True)],
            )
            found = [judge_row(row, answer) for row, answer in zip(rows[:MEASURED], noisy, strict=False)]
            means = ", ".join(f"{part} {fmean(getattr(one, part) for one in found):.3f}" for part in PARTS_OF_QUALITY)
            print(f"{split}: {len(rows)} questions; noisy references: {means}")
    print(f"wrote {save_dir}")


def write_rows(path: Path, rows: list[dict]) -> None:
    """Write JSON lines."""
    write_text(path, "".join(f"{json.dumps(row, separators=(',', ':'))}\n" for row in rows))


if __name__ == "__main__":
    main()
