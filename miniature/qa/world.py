"""An invented encyclopedia: people, towns, rivers and instruments, typed facts about them, and the words for the facts.

An article is made from a seed and a number. Names are made of two words. The pairs of words are dealt out to the
splits, so train, dev and test share no name and no fact, while every word occurs in all of them. As in a real
encyclopedia a name can belong to two articles: what is true of a question stands in its own passages.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

SPLITS = ("train", "dev", "test")
SHARES = (0.8, 0.1, 0.1)  # of the names of each type

# --- words ------------------------------------------------------------------------------------------------------------

SHE = "Adela Berit Corra Dagny Elsin Fenna Gerda Hedda Ilka Jorun Katla Lisbet Mirel Nerys".split()
HE = "Anselm Bodo Corvin Detlev Eskil Falko Goran Harald Ivo Jannik Kuno Lothar Marek Norbert".split()
FAMILY = (
    "Aldrup Bergan Cantler Dorvik Elming Farrow Gantz Holvar Imrich Jessel Kestner Lundgar Morvan Nordal "
    "Ostrey Pelling Quast Rendal Sarkin Tolbert Ulmer Varley Wexman Zander"
).split()
TOWN = tuple(itertools.product(
    "Old New Upper Lower High Little Great Saint East West North South".split(),
    "Arden Brask Colm Durren Eskby Fold Garth Hask Inver Jarl Kelm Lorne Marrow Norby Orrin Pell Rusk Stave Thorn "
    "Ulva".split(),
))  # fmt: skip
RIVER = tuple(itertools.product(
    "Grey White Black Green Red Silver Cold Blue Brown Golden Dark Clear".split(),
    "Isk Ovra Tamm Lenn Murg Sorne Yarrel Wend Dravel Ebra Quell Tisk Aller Bode Ceph Drin".split(),
))  # fmt: skip
INSTRUMENT = tuple(itertools.product(
    "long short bent broad narrow double small round flat crooked heavy light".split(),
    "lute horn fiddle harp pipe drum zither flute organ cymbal viol lyre gong bell".split(),
))  # fmt: skip
PERSON = tuple(itertools.product((*SHE, *HE), FAMILY))
NAMES = {"person": PERSON, "town": TOWN, "river": RIVER, "instrument": INSTRUMENT}

VALUES = {
    "year": tuple(str(year) for year in range(1701, 1781, 4)),
    "trade": "weaver baker smith miller tanner potter carpenter glazier shepherd printer mason clockmaker".split(),
    "goods": "glass cheese rope paper salt wool pottery honey leather soap candles lace".split(),
    "building": "mill castle school market theatre harbour library prison mint tower".split(),
    "hills": "Amber Birch Crow Dusk Fern Hazel Juniper Lark Maple Raven".split(),
    "miles": "forty fifty sixty seventy eighty ninety".split(),
    "fish": "trout salmon eels carp pike perch crabs".split(),
    "material": "oak copper bone silver ash brass clay reed tin walnut".split(),
    "count": "three four five six seven eight nine ten".split(),
    "sound": "soft bright harsh deep hollow sweet thin warm".split(),
    "event": "weddings funerals fairs harvests dances processions".split(),
}


@dataclass(frozen=True)
class Entity:
    """Somebody or something with a name of two words."""

    kind: str  # a key of NAMES
    name: tuple[str, str]

    def __str__(self) -> str:
        """As it stands in a sentence."""
        return f"{'the ' if self.kind in ('river', 'instrument') else ''}{self.title}"

    @property
    def title(self) -> str:
        return " ".join(self.name)

    @property
    def pronoun(self) -> str:
        return "it" if self.kind != "person" else "she" if self.name[0] in SHE else "he"


Object = Entity | str | None
Pool = dict[str, tuple[Entity, ...]]  # kind -> entities


# --- relations --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Form:
    """A way to say a fact: the words of a clause, with S and O where subject and object stand. One stands in front.

    A clause has five words or more, even with a pronoun in front: it is then a sub-sentence of its own, and can be
    marked as an error (`alarm.tasks.qa.feedback` drops shorter spans).
    """

    text: str
    holds: bool = True  # False: it says that the fact does not hold


@dataclass(frozen=True)
class Relation:
    """What can hold between a subject and an object.

    object: the kind of an entity, the name of a list of VALUES, or "" for a property of the subject.
    asks: role that the focus has -> the clause that asks for the other role, with F for the focus. A polar relation is
        asked with both roles.
    """

    name: str
    subject: str
    object: str
    forms: tuple[Form, ...]
    asks: dict[str, str]
    polar: bool = False  # can be false in a passage, and is asked by yes or no
    symmetric: bool = False


def _relation(name: str, subject: str, object: str, forms: str, asks: dict[str, str], denied: str = "", **kwargs):
    every = [Form(text.strip()) for text in forms.split("|")]
    every += [Form(text.strip(), holds=False) for text in denied.split("|") if text.strip()]
    return Relation(name, subject, object, tuple(every), asks, polar=bool(denied), **kwargs)


RELATIONS = {
    relation.name: relation
    for relation in (
        _relation(
            "birthplace", "person", "town", "S was born in O | O was the birthplace of S", {"S": "where was F born"}
        ),
        _relation(
            "birthyear",
            "person",
            "year",
            "S was born in O | S came into the world in O",
            {"S": "in which year was F born"},
        ),
        _relation("trade", "person", "trade", "S worked as a O | S was a O by trade", {"S": "what work did F do"}),
        _relation(
            "taught",
            "person",
            "person",
            "S gave lessons to O | S was the teacher of O | O was taught by S | O was a pupil of S",
            {"S": "whom did F teach", "O": "by whom was F taught"},
        ),
        _relation(
            "plays",
            "person",
            "instrument",
            "S played O | S knew how to play O",
            {"S": "did F play O"},
            denied="S never played O | S did not play O",
        ),
        _relation("death", "person", "town", "S died in O | S spent the last days in O", {"S": "where did F die"}),
        _relation(
            "married",
            "person",
            "person",
            "S was married to O | S shared a life with O",
            {"S": "whom did F marry"},
            symmetric=True,
        ),
        _relation(
            "bank",
            "town",
            "river",
            "S lies on O | S stands by O | O flows through S",
            {"S": "on which river does F lie"},
        ),
        _relation(
            "founder", "town", "person", "S was founded by O | O was the founder of S", {"S": "by whom was F founded"}
        ),
        _relation(
            "founded",
            "town",
            "year",
            "S was founded in O | S dates from the year O",
            {"S": "in which year was F founded"},
        ),
        _relation("product", "town", "goods", "S is known for O | S is famous for O", {"S": "what is F known for"}),
        _relation(
            "building",
            "town",
            "building",
            "S has its own O",
            {"S": "does F have a O"},
            denied="S has no O of its own | S does not have a O",
        ),
        _relation(
            "older",
            "town",
            "town",
            "S is older than O | O is younger than S",
            {"S": "which town is F older than", "O": "which town is F younger than"},
        ),
        _relation(
            "source", "river", "hills", "S rises in the O hills | S comes from the O hills", {"S": "where does F rise"}
        ),
        _relation(
            "mouth",
            "river",
            "river",
            "S flows into O | S ends in O | O takes in S",
            {"S": "into which river does F flow", "O": "which river does F take in"},
        ),
        _relation("length", "river", "miles", "S is O miles long | S has a length of O miles", {"S": "how long is F"}),
        _relation("fish", "river", "fish", "S is full of O | S is rich in O", {"S": "which fish does F have"}),
        _relation(
            "freezes",
            "river",
            "",
            "S freezes over in winter",
            {"S": "does F freeze over in winter"},
            denied="S never freezes over in winter | S does not freeze over in winter",
        ),
        _relation(
            "material", "instrument", "material", "S is made of O | S is built from O", {"S": "what is F made of"}
        ),
        _relation("strings", "instrument", "count", "S has O strings in all", {"S": "how many strings does F have"}),
        _relation(
            "inventor",
            "instrument",
            "person",
            "S was invented by O | O invented S",
            {"S": "by whom was F invented"},
        ),
        _relation("home", "instrument", "town", "S comes from O | O is the home of S", {"S": "where does F come from"}),
        _relation("sound", "instrument", "sound", "S has a O sound | S makes a O sound", {"S": "how does F sound"}),
        _relation(
            "use",
            "instrument",
            "event",
            "S is played at O | S is heard at O",
            {"S": "is F played at O"},
            denied="S is never played at O | S is not played at O",
        ),
    )
}


@dataclass(frozen=True)
class Fact:
    """What holds, or with `holds=False` what does not."""

    relation: str
    subject: Entity
    object: Object
    holds: bool = True

    @property
    def key(self) -> Fact:
        """The same for two facts that say the same."""
        if RELATIONS[self.relation].symmetric and str(self.subject) > str(self.object):
            return Fact(self.relation, self.object, self.subject, self.holds)
        return self

    @property
    def opposite(self) -> Fact:
        return replace(self, holds=not self.holds)

    def role(self, role: str) -> Object:
        return self.subject if role == "S" else self.object


@dataclass(frozen=True)
class Ask:
    """One part of a question: what stands in the other role of the relation than the focus; with `polar`, whether."""

    relation: str
    focus: Entity
    role: str  # of the focus
    polar: Object = None  # the object of a polar question

    def answered_by(self, fact: Fact) -> bool:
        """Whether a fact says what is asked, rightly or not."""
        relation = RELATIONS[self.relation]
        if fact.relation != self.relation:
            return False
        if relation.polar:
            return fact.subject == self.focus and fact.object == self.polar
        return fact.role(self.role) == self.focus or (relation.symmetric and self.focus in (fact.subject, fact.object))


# --- articles ---------------------------------------------------------------------------------------------------------


@cache
def names(split: str, seed: int = 0) -> Pool:
    """Kind -> the entities of a split. The names of two splits differ in at least one word."""
    found = {}
    for kind, every in NAMES.items():
        shuffled = list(every)
        random.Random(f"names {seed} {kind}").shuffle(shuffled)
        ends = [0, *(round(sum(SHARES[: i + 1]) * len(shuffled)) for i in range(len(SHARES)))]
        at = SPLITS.index(split)
        found[kind] = tuple(Entity(kind, name) for name in shuffled[ends[at] : ends[at + 1]])
    return found


@dataclass(frozen=True)
class Article:
    """What the encyclopedia knows about one entity. Its facts have different relations."""

    entity: Entity
    facts: tuple[Fact, ...]

    def role(self, fact: Fact) -> str:
        """The role of the article's entity in a fact."""
        return "S" if fact.subject == self.entity else "O"


def make_article(entity: Entity, count: int, pool: Pool, rng: random.Random, without: tuple = ()) -> Article:
    """An article with `count` facts, in random order, none of which names one of `without`."""
    relations = [relation for relation in RELATIONS.values() if relation.subject == entity.kind]
    facts = []
    for relation in rng.sample(relations, count):
        other = draw(values_of(relation.object, pool), rng, (entity, *without)) if relation.object else None
        swapped = "O" in relation.asks and rng.random() < 0.5
        subject, object = (other, entity) if swapped else (entity, other)
        facts.append(Fact(relation.name, subject, object, holds=not relation.polar or rng.random() < 0.5))
    return Article(entity, tuple(facts))


def values_of(kind: str, pool: Pool) -> tuple[Entity | str, ...]:
    """The entities of a kind, or the words of a list of VALUES."""
    return pool[kind] if kind in pool else VALUES[kind]


def draw(options: Sequence, rng: random.Random, without: tuple = ()) -> Entity | str:
    """One of the options that is none of `without`."""
    while (found := rng.choice(options)) in without:
        pass
    return found


# --- words for facts --------------------------------------------------------------------------------------------------


def say(fact: Fact, form: Form, names: dict[Entity, str] | None = None) -> str:
    """The words of a clause. names: how to name an entity that stands in front, instead of in full ("" drops it)."""
    words = form.text.split()
    sides = {"S": fact.subject, "O": fact.object}
    front = sides[words[0]]
    said = [str(sides[word]) if word in sides else word for word in words]
    if names is not None and front in names:
        said[0] = names[front]
    return " ".join(word for word in said if word)


def forms_of(fact: Fact, front: Entity | None = None) -> list[Form]:
    """The forms that say a fact, polarity included; with `front`, those in which that entity stands in front."""
    found = [form for form in RELATIONS[fact.relation].forms if form.holds == fact.holds]
    if front is not None:
        found = [form for form in found if fact.role(form.text[0]) == front]
    return found


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def ask(question: list[Ask]) -> str:
    """The question that asks all of this: its focus in full in the first clause, then a pronoun."""
    clauses = []
    for number, part in enumerate(question):
        name = part.focus.pronoun if number else str(part.focus)
        text = RELATIONS[part.relation].asks[part.role]
        said = [name if word == "F" else str(part.polar) if word == "O" else word for word in text.split()]
        clauses.append(" ".join(said))
    joined = clauses[0] if len(clauses) == 1 else f"{', '.join(clauses[:-1])}, and {clauses[-1]}"
    return f"{capital(joined)}?"


def vocabulary() -> list[str]:
    """Every word and mark that articles, questions and answers are made of, sorted."""
    words = {"question", "context", "wikipage", "text", "answer", "Human", "Assistant", "and", "Yes", "No", "yes", "no"}
    words |= {"she", "he", "it", "She", "He", "It", "the", "The", *".,:;?|"}
    for every in NAMES.values():
        words |= {word for name in every for word in name}
    for values in VALUES.values():
        words |= set(values)
    for relation in RELATIONS.values():
        for form in relation.forms:
            words |= set(form.text.split()) - {"S", "O"}
        for text in relation.asks.values():
            clause = text.split()
            words |= set(clause) - {"F", "O"} | {capital(clause[0])}
    return sorted(words)
