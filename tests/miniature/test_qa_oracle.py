"""The oracle of the encyclopedia: statements by hand, and what each kind of error costs."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miniature.qa import oracle
from miniature.qa.world import (
    RELATIONS,
    SPLITS,
    Ask,
    Entity,
    Fact,
    ask,
    capital,
    draw,
    forms_of,
    make_article,
    names,
    say,
    values_of,
    vocabulary,
)

ADELA = Entity("person", ("Adela", "Farrow"))
BODO = Entity("person", ("Bodo", "Quast"))
MAREK = Entity("person", ("Marek", "Holvar"))
BRASK, KELM, JARL = (Entity("town", name) for name in (("Old", "Brask"), ("Little", "Kelm"), ("High", "Jarl")))
LUTE = Entity("instrument", ("long", "lute"))
HARP = Entity("instrument", ("bent", "harp"))
BORN, WORK = Fact("birthplace", ADELA, BRASK), Fact("trade", ADELA, "weaver")
TAUGHT, LUTE_NOT = Fact("taught", ADELA, BODO), Fact("plays", ADELA, LUTE, holds=False)
DIED = Fact("death", ADELA, KELM)
FACTS = [BORN, WORK, TAUGHT, LUTE_NOT, DIED, Fact("birthplace", MAREK, JARL)]
ASKS = [
    Ask("birthplace", ADELA, "S"),
    Ask("trade", ADELA, "S"),
    Ask("taught", ADELA, "S"),
    Ask("plays", ADELA, "S", LUTE),
]
WHOLE = (
    "Adela Farrow was born in Old Brask, and she worked as a weaver. She gave lessons to Bodo Quast. "
    "She never played the long lute."
)


def parts(answer: str) -> tuple[float, float, float]:
    found = oracle.judge(answer, FACTS, ASKS)
    return found.relevance, found.factuality, found.completeness


def test_the_question_reads_as_english():
    assert ask(ASKS) == (
        "Where was Adela Farrow born, what work did she do, whom did she teach, and did she play the long lute?"
    )


@pytest.mark.parametrize(
    "answer",
    [
        WHOLE,
        # other words, another order, the other role in front
        "She did not play the long lute. Bodo Quast was a pupil of Adela Farrow. Adela Farrow was a weaver by trade. "
        "Old Brask was the birthplace of Adela Farrow.",
        # shared subjects, no names at all, capitals and white space
        "Adela Farrow was born in Old Brask and worked as a weaver and gave lessons to Bodo Quast and never played the "
        "long lute.",
        "she was born in Old Brask;  she worked as a weaver, and she was the teacher of Bodo Quast; SHE never played "
        "the long lute",
    ],
)
def test_paraphrases_are_worth_the_same(answer):
    assert parts(answer) == (1, 1, 1)
    assert {one.unit.fact for one in oracle.judge(answer, FACTS, ASKS).units} == {BORN, WORK, TAUGHT, LUTE_NOT}


@pytest.mark.parametrize(
    ("was", "now", "wanted"),
    [
        ("Old Brask", "High Jarl", (1, 3 / 4, 1)),  # a town of the passages, of another person
        ("Old Brask", "Great Pell", (1, 3 / 4, 1)),  # a town of no passage
        ("a weaver", "a miller", (1, 3 / 4, 1)),
        ("never played", "played", (1, 3 / 4, 1)),  # negation
        ("She gave lessons to Bodo Quast", "Bodo Quast gave lessons to Adela Farrow", (1, 3 / 4, 1)),  # roles
        ("She gave lessons to", "She was a pupil of", (1, 3 / 4, 1)),
        (" She never played the long lute.", "", (1, 1, 3 / 4)),  # missing
        (", and she worked as a weaver", "", (1, 1, 3 / 4)),
        ("lute.", "lute. She died in Little Kelm.", (4 / 5, 1, 1)),  # true, not asked
        ("lute.", "lute. Marek Holvar was born in High Jarl.", (4 / 5, 1, 1)),  # of somebody else
        ("lute.", "lute. She worked as a weaver.", (4 / 5, 1, 1)),  # again
        ("lute.", "lute. She was a weaver by trade.", (4 / 5, 1, 1)),  # again in other words
        ("lute.", "lute. Weaver she Old.", (4 / 5, 1, 1)),  # no statement
        ("lute.", "lute. Weaver she Old the the a in.", (4 / 6, 1, 1)),  # seven words: two units
        ("the long lute", "the bent harp", (3 / 4, 3 / 4, 3 / 4)),  # of another instrument nothing is known or asked
        ("lute.", "lute. She died in High Jarl.", (4 / 5, 4 / 5, 1)),  # neither asked nor true
    ],
)
def test_an_error_costs_its_part_and_no_other(was, now, wanted):
    answer = WHOLE.replace(was, now, 1)
    assert answer != WHOLE
    assert parts(answer) == pytest.approx(wanted)


def test_kinds_of_false_statements_follow_the_passages():
    answer = (
        "She was born in High Jarl. She was married to Bodo Quast. She played the long lute. She played the bent harp."
    )
    kinds = [one.falsehood for one in oracle.judge(answer, FACTS, ASKS).units]
    assert kinds == [oracle.WRONG, oracle.UNVERIFIABLE, oracle.WRONG, oracle.UNVERIFIABLE]


def test_a_pronoun_means_the_subject_before_it():
    born = oracle.read("Bodo Quast was a pupil of Adela Farrow. He was born in High Jarl.", ADELA)[1]
    assert born.fact == Fact("birthplace", BODO, JARL)
    back = oracle.read("Bodo Quast was a pupil of Adela Farrow. She was born in High Jarl.", ADELA)[1]
    assert back.fact == Fact("birthplace", ADELA, JARL)
    assert oracle.read("He was born in High Jarl.", ADELA)[0].fact is None


def test_units_have_the_characters_of_their_clauses():
    text = "Adela Farrow was born in Old Brask, and she worked as a weaver. Nothing more."
    assert [text[unit.start : unit.end] for unit in oracle.read(text)] == [
        "Adela Farrow was born in Old Brask", "she worked as a weaver", "Nothing more",
    ]  # fmt: skip


def test_a_marriage_has_no_order_and_a_lesson_has():
    asks = [Ask("married", ADELA, "S")]
    married = [Fact("married", ADELA, BODO)]
    assert oracle.judge("Bodo Quast was married to Adela Farrow.", married, asks).total == 1
    assert oracle.judge("Adela Farrow was married to Bodo Quast.", [Fact("married", BODO, ADELA)], asks).total == 1
    both = [TAUGHT, Fact("taught", MAREK, ADELA)]
    assert oracle.judge("Marek Holvar gave lessons to Adela Farrow.", both, [ASKS[2]]).total == 0  # true, not asked
    assert oracle.judge("Marek Holvar gave lessons to Adela Farrow.", both, [Ask("taught", ADELA, "O")]).total == 1


@pytest.mark.parametrize(
    ("answer", "most"),
    [
        ("", 0),
        ("...", 0),
        (ask(ASKS), 0),  # the question
        ("Marek Holvar was born in High Jarl.", 0),  # another question
        ("She died in Little Kelm.", 0),
        (" ".join([WHOLE] * 4), 1 / 4),
        (" ".join(["She was born in Old Brask."] * 8), 1 / 32),
        ("She was born in Old Brask. She was born in High Jarl. She was born in Little Kelm.", 1 / 12),
        ("weaver " * 40, 0),
        # parts of a question in its own words
        ("Where was Adela Farrow born, what work did she do. " + WHOLE, 2 / 3),
    ],
)
def test_tricks_are_worth_little(answer, most):
    assert oracle.judge(answer, FACTS, ASKS).total <= most + 1e-9


def test_a_copy_of_the_passages_is_worth_the_share_that_was_asked():
    copy = " ".join(f"{capital(say(fact, forms_of(fact)[0]))}." for fact in FACTS)
    assert oracle.judge(copy, FACTS, [ASKS[0], ASKS[1]]).total == pytest.approx(2 / 6)


# --- the whole language -----------------------------------------------------------------------------------------------


def facts_of(seed: int) -> tuple[Entity, list[Fact]]:
    rng = random.Random(seed)
    pool = names(rng.choice(SPLITS))
    article = make_article(rng.choice(pool[rng.choice(list(pool))]), 4, pool, rng)
    return article.entity, list(article.facts)


@given(st.integers(0, 10_000))
def test_every_form_is_read_back(seed):
    _, facts = facts_of(seed)
    for fact in facts:
        for form in forms_of(fact):
            text = f"{capital(say(fact, form))}."
            assert [unit.fact for unit in oracle.read(text)] == [fact], text
            assert set(oracle.TOKEN.findall(text)) <= set(vocabulary())
        for form in forms_of(fact.opposite):
            assert [unit.fact for unit in oracle.read(say(fact, form))] == [fact.opposite]


@given(st.integers(0, 10_000))
def test_a_pronoun_in_front_is_read_as_the_focus(seed):
    entity, facts = facts_of(seed)
    for fact in facts:
        for form in forms_of(fact, entity):
            text = say(fact, form, {entity: entity.pronoun})
            assert [unit.fact for unit in oracle.read(text, entity)] == [fact]
            assert len(text.split()) >= 5, "a shorter clause could not be marked as an error"


@given(st.integers(0, 10_000))
def test_another_object_is_another_fact(seed):
    """Wrong values cost factuality in every relation, and nothing else."""
    entity, facts = facts_of(seed)
    rng, pool = random.Random(seed), names("train")
    asks = [
        Ask(fact.relation, entity, "S" if fact.subject == entity else "O", fact.object if polar else None)
        for fact in facts
        for polar in [RELATIONS[fact.relation].polar]
    ]
    said = list(facts)
    changed = rng.randrange(len(said))
    fact = said[changed]
    relation = RELATIONS[fact.relation]
    if relation.polar:
        wrong = fact.opposite
    elif fact.subject == entity:
        other = draw(values_of(relation.object, pool), rng, (entity, fact.object))
        wrong = Fact(fact.relation, entity, other)
    else:
        other = draw(values_of(relation.subject, pool), rng, (entity, fact.subject))
        wrong = Fact(fact.relation, other, entity)
    right = ". ".join(say(one, rng.choice(forms_of(one))) for one in said)
    said[changed] = wrong
    found = oracle.judge(". ".join(say(one, rng.choice(forms_of(one))) for one in said), facts, asks)
    assert oracle.judge(right, facts, asks).total == 1
    assert (found.relevance, found.factuality, found.completeness) == (1, 3 / 4, 1)


def test_facts_and_questions_survive_json():
    for fact in FACTS:
        assert oracle.unpack_fact(oracle.pack(fact)) == fact
    for part in ASKS:
        assert oracle.unpack_ask(oracle.pack(part)) == part
    row = {"facts": [oracle.pack(fact) for fact in FACTS], "asks": [oracle.pack(part) for part in ASKS]}
    assert oracle.quality(row, WHOLE) == 1


def test_splits_share_no_name_and_all_words():
    for kind in names("train"):
        pools = [set(names(split)[kind]) for split in SPLITS]
        assert all(pools)
        assert not (pools[0] & pools[1] or pools[0] & pools[2] or pools[1] & pools[2])
    assert 300 <= len(vocabulary()) <= 500
