"""The true quality of an answer: it is read back into statements, and these are compared with what the passages say.

    relevance     units that answer a part of the question and say something new / all units
    factuality    statements that hold in the passages / all statements
    completeness  parts of the question that a statement answers, rightly or not / all parts
    quality       the product of the three, so that no part makes up for another

All are 0 for an answer without units. A unit is a statement, or text that is none (one unit for each six words begun).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import lru_cache

from miniature.qa.world import NAMES, RELATIONS, VALUES, Ask, Entity, Fact, Form, Object, Relation

IRRELEVANT, REDUNDANT, INCOHERENT = "Irrelevant", "Redundant", "Incoherent"
WRONG, UNVERIFIABLE = "Wrong-Grounding", "Unverifiable"
WORDS_OF_A_UNIT = 6

# --- reading ----------------------------------------------------------------------------------------------------------

TOKEN = re.compile(r"\w+|[^\w\s]")
_ENDS = frozenset(".;,")
_PRONOUNS = frozenset(("she", "he", "it"))
KIND_OF = {name: kind for kind, every in NAMES.items() for name in every}
_VALUES = {kind: frozenset(values) for kind, values in VALUES.items()}
_ARTICLE = ("river", "instrument")


def _forms() -> dict[tuple[str, str], list[tuple[Relation, Form, str, list[str]]]]:
    """(kind of what stands in front, next word) -> relation, form, role in front, the words behind it."""
    found: dict = {}
    for relation in RELATIONS.values():
        for form in relation.forms:
            front, *rest = form.text.split()
            kind = relation.subject if front == "S" else relation.object
            found.setdefault((kind, rest[0]), []).append((relation, form, front, rest))
    return found


_FORMS = _forms()


@dataclass(frozen=True)
class Unit:
    """A statement, or text that is none (fact None), and its characters."""

    start: int
    end: int
    words: int
    fact: Fact | None = None


class _Reader:
    """One text as tokens, with what `read` needs to go through it."""

    def __init__(self, text: str):
        matches = list(TOKEN.finditer(text))
        self.tokens = [match.group() for match in matches]
        self.lower = [token.lower() for token in self.tokens]
        self.spans = [match.span() for match in matches]

    def entity(self, i: int) -> tuple[Entity, int] | None:
        """The name at token i -> the entity and the token behind it."""
        has_article = i < len(self.lower) and self.lower[i] == "the"
        i += has_article
        name = tuple(self.tokens[i : i + 2])
        kind = KIND_OF.get(name)
        if kind is None or has_article != (kind in _ARTICLE):
            return None
        return Entity(kind, name), i + 2

    def other(self, kind: str, i: int) -> tuple[Object, int] | None:
        if kind in NAMES:
            found = self.entity(i)
            return found if found and found[0].kind == kind else None
        return (self.tokens[i], i + 1) if i < len(self.tokens) and self.tokens[i] in _VALUES[kind] else None

    def clause(self, front: Entity, i: int) -> tuple[Fact, int] | None:
        """What is said behind `front` from token i on -> the fact, the token behind it. The longest reading wins."""
        best = None
        for relation, form, role, rest in _FORMS.get((front.kind, self.lower[i] if i < len(self.lower) else ""), ()):
            at, other = i, None
            for word in rest:
                if word in ("S", "O"):
                    found = self.other(relation.subject if word == "S" else relation.object, at)
                    if found is None:
                        break
                    other, at = found
                elif at < len(self.lower) and self.lower[at] == word.lower():
                    at += 1
                else:
                    break
            else:
                subject, object = (front, other) if role == "S" else (other, front)
                if best is None or at > best[1]:
                    best = Fact(relation.name, subject, object, form.holds), at
        return best

    def boundary(self, i: int) -> int:
        """The next token from i on at which a clause can end."""
        while i < len(self.tokens) and self.tokens[i] not in _ENDS:
            i += 1
        return i

    def unit(self, start: int, end: int, fact: Fact | None = None) -> Unit:
        return Unit(self.spans[start][0], self.spans[end - 1][1], end - start, fact)


def read(text: str, focus: Entity | None = None) -> list[Unit]:
    """The units of a text, in order.

    A pronoun means what stands in front of the statement before if that fits, else the focus. A clause behind "and"
    may lack its front. What cannot be read up to the next mark is a unit without a fact.
    """
    reader = _Reader(text)
    tokens, units = reader.tokens, []
    i, last, carried = 0, None, False  # what stood in front last; whether a clause may lack its own front
    while i < len(tokens):
        start = i
        named = reader.entity(i)
        if named:
            front, at = named
        elif reader.lower[i] in _PRONOUNS:
            front = next((one for one in (last, focus) if one and one.pronoun == reader.lower[i]), None)
            at = i + 1
        else:
            front, at = (last if carried else None), i
        said = reader.clause(front, at) if front else None
        if said:
            units.append(reader.unit(start, said[1], said[0]))
            last, i = front, said[1]
            stop = reader.boundary(i)
            if stop > i and reader.lower[i] != "and":  # words behind a statement that do not belong to it
                units.append(reader.unit(i, stop))
                i = stop
        else:
            i = max(reader.boundary(i), i + 1)
            units.append(reader.unit(start, i))
        # between two clauses: "." or ";" or ", and" or "," or "and"
        marked = i < len(tokens) and tokens[i] in _ENDS
        carried = bool(said) and marked and tokens[i] == ","
        i += marked
        if i < len(tokens) and reader.lower[i] == "and" and (said or marked):
            carried = bool(said)
            i += 1
    return units


# --- judging ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Judged:
    """A unit and what is wrong with it: one of the three kinds of irrelevance, one of the two of false facts."""

    unit: Unit
    irrelevance: str | None
    falsehood: str | None
    answers: tuple[Ask, ...] = ()  # the parts of the question that it is about


@dataclass(frozen=True)
class Quality:
    """Parts and whole, each in [0, 1]."""

    relevance: float
    factuality: float
    completeness: float
    units: tuple[Judged, ...]
    missing: tuple[Ask, ...]  # the parts of the question without a statement

    @property
    def total(self) -> float:
        return self.relevance * self.factuality * self.completeness


def judge(answer: str, facts: list[Fact], asks: list[Ask]) -> Quality:
    """Compare an answer with what the passages say (`facts`) and with what was asked (one focus)."""
    true = {fact.key for fact in facts}
    judged, seen, answered = [], set(), set()
    for unit in read(answer, asks[0].focus):
        if unit.fact is None:
            judged.append(Judged(unit, INCOHERENT, None))
            continue
        fact = unit.fact
        holds = fact.key in true
        about = tuple(part for part in asks if part.answered_by(fact) or (not holds and _is_swapped(part, fact)))
        falsehood = None if holds else WRONG if any(_is_near(fact, known) for known in facts) else UNVERIFIABLE
        irrelevance = IRRELEVANT if not about else REDUNDANT if fact.key in seen else None
        judged.append(Judged(unit, irrelevance, falsehood, about))
        seen.add(fact.key)
        answered.update(about)
    weights = [1 if one.unit.fact else math.ceil(one.unit.words / WORDS_OF_A_UNIT) for one in judged]
    statements = [one for one in judged if one.unit.fact]
    relevant = sum(one.irrelevance is None for one in judged)
    return Quality(
        relevant / sum(weights) if judged else 0.0,
        sum(one.falsehood is None for one in statements) / len(statements) if statements else 0.0,
        len(answered) / len(asks),
        tuple(judged),
        tuple(part for part in asks if part not in answered),
    )


def _is_near(fact: Fact, known: Fact) -> bool:
    """Whether the passages speak of what a false statement is about: the same relation of one of its entities."""
    if fact.relation != known.relation:
        return False
    if RELATIONS[fact.relation].polar:
        return fact.opposite == known
    entities = {one for one in (fact.subject, fact.object) if isinstance(one, Entity)}
    return not entities.isdisjoint((known.subject, known.object))


def _is_swapped(part: Ask, fact: Fact) -> bool:
    """Whether a fact is about the relation that is asked for, but with the focus in the other role."""
    relation = RELATIONS[part.relation]
    return fact.relation == part.relation and not relation.polar and part.focus in (fact.subject, fact.object)


# --- rows -------------------------------------------------------------------------------------------------------------


def pack(value: Fact | Ask | Entity | str | None) -> list | str | None:
    """As JSON: a fact as [relation, subject, object, holds], a part of a question as [relation, focus, role, polar]."""
    if isinstance(value, Entity):
        return [value.kind, *value.name]
    if isinstance(value, Fact):
        return [value.relation, pack(value.subject), pack(value.object), value.holds]
    if isinstance(value, Ask):
        return [value.relation, pack(value.focus), value.role, pack(value.polar)]
    return value


def _unpack(value: list | tuple | str | None) -> Object:
    return Entity(value[0], (value[1], value[2])) if isinstance(value, list | tuple) else value


def unpack_fact(value: list) -> Fact:
    relation, subject, object, holds = value
    return Fact(relation, _unpack(subject), _unpack(object), holds)


def unpack_ask(value: list) -> Ask:
    relation, focus, role, polar = value
    return Ask(relation, _unpack(focus), role, _unpack(polar))


def judge_row(row: dict, answer: str) -> Quality:
    """`judge` for a row of the data files, which holds `facts` and `asks` (see `pack`)."""
    return _judge_packed(answer, _frozen(row["facts"]), _frozen(row["asks"]))


@lru_cache(maxsize=20_000)
def _judge_packed(answer: str, facts: tuple, asks: tuple) -> Quality:
    return judge(answer, [unpack_fact(fact) for fact in facts], [unpack_ask(part) for part in asks])


def _frozen(value):
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value


def quality(row: dict, answer: str) -> float:
    """True quality in [0, 1]."""
    return judge_row(row, answer).total
