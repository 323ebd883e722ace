"""The small world of translation: how large it is, that its splits are apart, and that its sentences are right."""

from __future__ import annotations

import itertools
import random

import pytest

from miniature.mt import world
from miniature.mt.world import Meaning, Phrase, Relative


def plain_phrases(nouns, adjectives):
    """Every noun phrase without a relative clause."""
    for noun, (det, forms), plural in itertools.product(nouns, world.DETERMINERS.items(), (False, True)):
        if forms[2 * plural]:
            yield from (Phrase(det, noun, plural, adjective) for adjective in ("", *adjectives))


def test_the_world_has_more_than_a_million_pairs():
    subjects = {" ".join(world.spanish_phrase(p)) for p in plain_phrases(world.PERSONS, world.OF_PERSONS)}
    objects = {" ".join(world.spanish_phrase(p)) for p in plain_phrases(world.THINGS, world.OF_THINGS)}
    verbs = {form for verb in world.WITH_THINGS for form in world.VERBS[verb][4:]}
    # words of verbs stand in no phrase, so each choice of the three gives another sentence
    assert not verbs & {word for phrase in subjects | objects for word in phrase.split()}
    assert len(subjects) * len(objects) * len(verbs) / 4 > 1e6  # a subject has a quarter of the forms


def test_the_world_has_some_hundred_words():
    spanish, english = world.words()
    assert 200 <= len(spanish | english) <= 500
    assert spanish & english == {"a"}


def test_all_words_of_sentences_are_known():
    spanish, english = world.words()
    rng = random.Random(1)
    for _ in range(500):
        meaning = world.draw(rng)
        said = world.spanish(meaning).rstrip(".").split()
        assert {said[0].lower(), *said[1:]} <= spanish
        text = next(world.paraphrases(meaning)).rstrip(".").replace(",", "").split()
        assert {text[0] if text[0] == "I" else text[0].lower(), *text[1:]} <= english


def test_splits_share_no_subject_verb_and_object():
    rng = random.Random(2)
    found: dict[str, set] = {"train": set(), "dev": set(), "test": set()}
    for _ in range(5000):
        meaning = world.draw(rng)
        subject = meaning.subject if isinstance(meaning.subject, str) else meaning.subject.noun
        found[world.split_of(meaning)].add((subject, meaning.verb, meaning.object.noun))
    assert all(found.values())
    assert not any(a & b for a, b in itertools.combinations(found.values(), 2))


def test_json_keeps_a_meaning():
    import json

    rng = random.Random(3)
    for _ in range(200):
        meaning = world.draw(rng)
        assert world.from_json(json.loads(json.dumps(world.to_json(meaning)))) == meaning


def test_no_spanish_sentence_has_two_meanings():
    rng = random.Random(4)
    meanings: dict[str, Meaning] = {}
    for _ in range(20000):
        meaning = world.draw(rng)
        assert meanings.setdefault(world.spanish(meaning), meaning) == meaning


GIRL = Phrase("the", "girl", False)


@pytest.mark.parametrize(
    ("meaning", "spanish", "english"),
    [
        (
            Meaning(Phrase("my", "artist", True, "tall"), "find", "past", "not", Phrase("a", "apple", False, "red")),
            "Mis artistas altas no encontraron una manzana roja.",
            "My tall artists did not find a red apple.",
        ),
        (
            Meaning("we", "call", "future", "yes", Phrase("the", "doctor", False), time="tomorrow"),
            "Nosotros vamos a llamar al médico mañana.",
            "We will call the doctor tomorrow.",
        ),
        (
            Meaning("I", "paint", "present", "never", Phrase("a", "egg", False), place=("near", "garden")),
            "Yo nunca pinto un huevo cerca del jardín.",
            "I never paint an egg near the garden.",
        ),
        (
            Meaning(
                Phrase("this", "man", True, "", Relative("open", "present", Phrase("the", "box", False), False)),
                "see", "past", "yes", Phrase("two", "woman", True),
            ),
            "Estos hombres que abren la caja vieron a dos mujeres.",
            "These men who open the box saw two women.",
        ),
        (
            Meaning(
                GIRL, "buy", "past", "yes",
                Phrase("that", "clock", False, "", Relative("sell", "past", Phrase("my", "uncle", False), True)),
            ),
            "La niña compró ese reloj que mi tío vendió.",
            "The girl bought that clock which my uncle sold.",
        ),
    ],
)  # fmt: skip
def test_sentences(meaning, spanish, english):
    assert world.spanish(meaning) == spanish
    assert next(world.paraphrases(meaning)) == english


def test_paraphrases_have_all_orders_and_forms():
    meaning = Meaning(GIRL, "open", "present", "not", Phrase("a", "box", False, "big"), "slowly", None, "now")
    found = set(world.paraphrases(meaning))
    for text in (
        "The girl does not open a big box slowly now.",
        "The girl isn't opening a large box now slowly.",
        "Now, the girl doesn't open a big box slowly.",
        "Slowly the girl is not opening a large box now.",
    ):
        assert text in found
    assert not any("a open" in text or "an big" in text for text in found)
