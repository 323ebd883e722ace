"""A small world of Spanish and English sentences: what they mean, and every way to say it in English.

A `Meaning` is data. `spanish` says it; `sequences` gives the English sentences that say it: orders of adverbials,
simple and progressive forms, contractions, synonyms, relative pronouns. The forms are those of American English.
The Spanish is never ambiguous: where `nosotros` has one form for two tenses, an expression of time decides.
"""

from __future__ import annotations

import itertools
import random
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

# --- words -----------------------------------------------------------------------------------------------------------

# singular, plural, gender, Spanish singular and plural
PERSONS = {
    "teacher": ("teachers", "m", "maestro", "maestros"),
    "neighbor": ("neighbors", "m", "vecino", "vecinos"),
    "girl": ("girls", "f", "niña", "niñas"),
    "doctor": ("doctors", "m", "médico", "médicos"),
    "engineer": ("engineers", "f", "ingeniera", "ingenieras"),
    "artist": ("artists", "f", "artista", "artistas"),
    "uncle": ("uncles", "m", "tío", "tíos"),
    "aunt": ("aunts", "f", "tía", "tías"),
    "student": ("students", "m", "estudiante", "estudiantes"),
    "woman": ("women", "f", "mujer", "mujeres"),
    "man": ("men", "m", "hombre", "hombres"),
    "farmer": ("farmers", "m", "granjero", "granjeros"),
}
THINGS = {
    "book": ("books", "m", "libro", "libros"),
    "letter": ("letters", "f", "carta", "cartas"),
    "apple": ("apples", "f", "manzana", "manzanas"),
    "egg": ("eggs", "m", "huevo", "huevos"),
    "orange": ("oranges", "f", "naranja", "naranjas"),
    "car": ("cars", "m", "coche", "coches"),
    "house": ("houses", "f", "casa", "casas"),
    "table": ("tables", "f", "mesa", "mesas"),
    "knife": ("knives", "m", "cuchillo", "cuchillos"),
    "box": ("boxes", "f", "caja", "cajas"),
    "clock": ("clocks", "m", "reloj", "relojes"),
    "engine": ("engines", "m", "motor", "motores"),
    "key": ("keys", "f", "llave", "llaves"),
    "picture": ("pictures", "m", "cuadro", "cuadros"),
}
NOUNS = PERSONS | THINGS
PLACES = {
    "garden": ("m", "jardín"),
    "kitchen": ("f", "cocina"),
    "market": ("m", "mercado"),
    "office": ("f", "oficina"),
    "park": ("m", "parque"),
    "station": ("f", "estación"),
    "school": ("f", "escuela"),
}
PREPOSITIONS = {"in": "en", "near": "cerca de", "behind": "detrás de"}
# masculine and feminine singular, masculine and feminine plural
ADJECTIVES = {
    "old": ("viejo", "vieja", "viejos", "viejas"),
    "new": ("nuevo", "nueva", "nuevos", "nuevas"),
    "red": ("rojo", "roja", "rojos", "rojas"),
    "white": ("blanco", "blanca", "blancos", "blancas"),
    "big": ("grande", "grande", "grandes", "grandes"),
    "small": ("pequeño", "pequeña", "pequeños", "pequeñas"),
    "ugly": ("feo", "fea", "feos", "feas"),
    "expensive": ("caro", "cara", "caros", "caras"),
    "beautiful": ("hermoso", "hermosa", "hermosos", "hermosas"),
    "tall": ("alto", "alta", "altos", "altas"),
    "young": ("joven", "joven", "jóvenes", "jóvenes"),
    "happy": ("feliz", "feliz", "felices", "felices"),
}
OF_PERSONS = ("old", "ugly", "beautiful", "tall", "young", "happy")
OF_THINGS = ("old", "new", "red", "white", "big", "small", "ugly", "expensive", "beautiful")
# English that is equally right
SYNONYMS = {"big": ("large",), "small": ("little",), "picture": ("painting",), "pictures": ("paintings",)}
# English third person, past, progressive; Spanish infinitive, present and past of yo, él, nosotros, ellos
_VERBS = """
open     opens     opened   opening    abrir     abro abre abrimos abren                 abrí abrió abrimos abrieron
buy      buys      bought   buying     comprar   compro compra compramos compran         compré compró compramos compraron
sell     sells     sold     selling    vender    vendo vende vendemos venden             vendí vendió vendimos vendieron
find     finds     found    finding    encontrar encuentro encuentra encontramos encuentran  encontré encontró encontramos encontraron
see      sees      saw      seeing     ver       veo ve vemos ven                        vi vio vimos vieron
paint    paints    painted  painting   pintar    pinto pinta pintamos pintan             pinté pintó pintamos pintaron
carry    carries   carried  carrying   llevar    llevo lleva llevamos llevan             llevé llevó llevamos llevaron
clean    cleans    cleaned  cleaning   limpiar   limpio limpia limpiamos limpian         limpié limpió limpiamos limpiaron
hide     hides     hid      hiding     esconder  escondo esconde escondemos esconden     escondí escondió escondimos escondieron
break    breaks    broke    breaking   romper    rompo rompe rompemos rompen             rompí rompió rompimos rompieron
call     calls     called   calling    llamar    llamo llama llamamos llaman             llamé llamó llamamos llamaron
help     helps     helped   helping    ayudar    ayudo ayuda ayudamos ayudan             ayudé ayudó ayudamos ayudaron
visit    visits    visited  visiting   visitar   visito visita visitamos visitan         visité visitó visitamos visitaron
follow   follows   followed following  seguir    sigo sigue seguimos siguen              seguí siguió seguimos siguieron
"""  # noqa: E501
VERBS = {words[0]: words[1:] for words in map(str.split, _VERBS.strip().splitlines())}
WITH_PERSONS = ("find", "see", "paint", "hide", "call", "help", "visit", "follow")
WITH_THINGS = ("open", "buy", "sell", "find", "see", "paint", "carry", "clean", "hide", "break")
# Spanish masculine and feminine singular, masculine and feminine plural ("": there is none)
DETERMINERS = {
    "the": ("el", "la", "los", "las"),
    "a": ("un", "una", "", ""),
    "this": ("este", "esta", "estos", "estas"),
    "that": ("ese", "esa", "esos", "esas"),
    "my": ("mi", "mi", "mis", "mis"),
    "our": ("nuestro", "nuestra", "nuestros", "nuestras"),
    "every": ("cada", "cada", "", ""),
    "two": ("", "", "dos", "dos"),
    "three": ("", "", "tres", "tres"),
    "four": ("", "", "cuatro", "cuatro"),
    "five": ("", "", "cinco", "cinco"),
    "many": ("", "", "muchos", "muchas"),
    "some": ("", "", "algunos", "algunas"),
}
PLURAL_OF = {"this": "these", "that": "those"}
NUMERALS = ("two", "three", "four", "five")
# English, and person and number as in the forms of verbs: yo, él, nosotros, ellos
PRONOUNS = {"I": ("yo", 0), "he": ("él", 1), "she": ("ella", 1), "we": ("nosotros", 2), "they": ("ellos", 3)}
TIMES = {
    "past": {"yesterday": "ayer", "last week": "la semana pasada", "last night": "anoche"},
    "present": {"now": "ahora", "every day": "cada día", "today": "hoy"},
    "future": {"tomorrow": "mañana", "next week": "la próxima semana", "tonight": "esta noche"},
}
TENSES = tuple(TIMES)
POLARITIES = ("yes", "not", "never")
MANNERS = {
    "slowly": "lentamente",
    "quickly": "rápidamente",
    "carefully": "cuidadosamente",
    "quietly": "silenciosamente",
}
SPANISH_FUTURE = ("voy", "va", "vamos", "van")


# --- meanings --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Phrase:
    """A noun phrase. `det` is the English singular: this, not these."""

    det: str
    noun: str
    plural: bool
    adjective: str = ""
    relative: Relative | None = None


@dataclass(frozen=True)
class Relative:
    """`who saw the girl` (the noun sees), or `that the girl saw` (is_object: the noun is seen)."""

    verb: str
    tense: str  # present or past
    other: Phrase
    is_object: bool


@dataclass(frozen=True)
class Meaning:
    """What a sentence says."""

    subject: Phrase | str  # a phrase, or a key of PRONOUNS
    verb: str
    tense: str
    polarity: str
    object: Phrase
    manner: str = ""
    place: tuple[str, str] | None = None  # preposition, place
    time: str = ""


def to_json(meaning: Meaning) -> list:
    """Nested lists that JSON keeps; `from_json` reads them."""

    def phrase(found: Phrase | str) -> list | str:
        if isinstance(found, str):
            return found
        inner = found.relative
        tail = None if inner is None else [inner.verb, inner.tense, phrase(inner.other), inner.is_object]
        return [found.det, found.noun, found.plural, found.adjective, tail]

    m = meaning
    place = None if m.place is None else list(m.place)
    return [phrase(m.subject), m.verb, m.tense, m.polarity, phrase(m.object), m.manner, place, m.time]


def from_json(value: list) -> Meaning:
    def phrase(found: list | str) -> Phrase | str:
        if isinstance(found, str):
            return found
        tail = found[4]
        inner = None if tail is None else Relative(tail[0], tail[1], phrase(tail[2]), tail[3])
        return Phrase(*found[:4], inner)

    subject, verb, tense, polarity, thing, manner, place, time = value
    where = None if place is None else (place[0], place[1])
    return Meaning(phrase(subject), verb, tense, polarity, phrase(thing), manner, where, time)


def person_of(subject: Phrase | str) -> int:
    """0 I, 1 he or she, 2 we, 3 they: the order of the forms of verbs."""
    return PRONOUNS[subject][1] if isinstance(subject, str) else 3 if subject.plural else 1


# --- Spanish ---------------------------------------------------------------------------------------------------------


def spanish(meaning: Meaning, time_first: bool = False, drop_pronoun: bool = False) -> str:
    """The Spanish sentence. drop_pronoun: leaves out `yo` and `nosotros`, which the verb shows."""
    m = meaning
    person = person_of(m.subject)
    if isinstance(m.subject, str):
        subject = [] if drop_pronoun and person in (0, 2) else [PRONOUNS[m.subject][0]]
    else:
        subject = spanish_phrase(m.subject)
    words = subject + {"yes": [], "not": ["no"], "never": ["nunca"]}[m.polarity]
    words += _spanish_verb(m.verb, m.tense, person)
    words += ["a"] * (m.object.noun in PERSONS) + spanish_phrase(m.object)
    if m.manner:
        words.append(MANNERS[m.manner])
    if m.place:
        preposition, place = m.place
        gender, noun = PLACES[place]
        words += [*PREPOSITIONS[preposition].split(), "el" if gender == "m" else "la", noun]
    if m.time:
        time = TIMES[m.tense][m.time].split()
        words = time + words if time_first else words + time
    text = " ".join(words)
    text = f"{text[0].upper()}{text[1:]}."
    return text.replace(" a el ", " al ").replace(" de el ", " del ")


def spanish_phrase(phrase: Phrase) -> list[str]:
    _, gender, singular, plural = NOUNS[phrase.noun]
    column = 2 * phrase.plural + (gender == "f")
    words = [DETERMINERS[phrase.det][column], plural if phrase.plural else singular]
    if phrase.adjective:
        words.append(ADJECTIVES[phrase.adjective][column])
    if inner := phrase.relative:
        other = spanish_phrase(inner.other)
        words.append("que")
        if inner.is_object:
            words += other + _spanish_verb(inner.verb, inner.tense, person_of(inner.other))
        else:
            verb = _spanish_verb(inner.verb, inner.tense, person_of(phrase))
            words += verb + ["a"] * (inner.other.noun in PERSONS) + other
    return words


def _spanish_verb(verb: str, tense: str, person: int) -> list[str]:
    forms = VERBS[verb]
    if tense == "future":
        return [SPANISH_FUTURE[person], "a", forms[3]]
    return [forms[4 + person if tense == "present" else 8 + person]]


# --- English ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Token:
    """A word of an English sentence and its part in the meaning. Role: `main.verb`, `subject.noun`, `time`, ..."""

    word: str
    role: str


Tokens = tuple[Token, ...]


def _all(words: str, role: str) -> Tokens:
    return tuple(Token(word, role) for word in words.split())


def _be(person: int) -> str:
    return ("am", "is", "are", "are")[person]


def verb_groups(verb: str, tense: str, polarity: str, person: int) -> list[tuple[str, str]]:
    """Every way to say a verb: (what stands before the main verb, the main verb), the simple form first."""
    third, past, progressive = VERBS[verb][:3]
    be = _be(person)
    do, did = ("does" if person == 1 else "do"), "did"
    not_be = [f"{be} not"] + ([] if be == "am" else [f"{be}n't"])
    simple = third if person == 1 else verb
    if tense == "present":
        if polarity == "yes":
            return [("", simple), (be, progressive)]
        if polarity == "never":
            return [("never", simple), (f"{be} never", progressive)]
        return [(f"{do} not", verb), (f"{do}n't", verb), *((before, progressive) for before in not_be)]
    if tense == "past":
        if polarity == "yes":
            return [("", past)]
        return [("never", past)] if polarity == "never" else [(f"{did} not", verb), (f"{did}n't", verb)]
    if polarity == "yes":
        return [("will", verb), (f"{be} going to", verb)]
    if polarity == "never":
        return [("will never", verb), (f"{be} never going to", verb)]
    return [("will not", verb), ("won't", verb), *((f"{before} going to", verb) for before in not_be)]


def article(word: str) -> str:
    """`a` or `an` before a word of this world."""
    return "an" if word[0] in "aeiou" else "a"


def phrases(phrase: Phrase, role: str) -> list[Tokens]:
    """The English of a noun phrase, synonyms left to `equal_words`; the relative clause in each of its forms."""
    det = PLURAL_OF.get(phrase.det, phrase.det) if phrase.plural else phrase.det
    noun = NOUNS[phrase.noun][0] if phrase.plural else phrase.noun
    if det == "a":
        det = article(phrase.adjective or noun)
    head = (Token(det, f"{role}.det"), *_all(phrase.adjective, f"{role}.adjective"), Token(noun, f"{role}.noun"))
    if phrase.relative is None:
        return [head]
    inner = phrase.relative
    inside = f"{role}.relative"
    is_person = phrase.noun in PERSONS
    other = phrases(inner.other, f"{inside}.other")[0]
    person = person_of(inner.other if inner.is_object else phrase)
    found = []
    links = ["who" if is_person else "which", "that", *(["whom"] if is_person and inner.is_object else [])]
    links = [_all(link, f"{inside}.link") for link in links] + ([()] if inner.is_object else [])
    for link, (before, main) in itertools.product(links, verb_groups(inner.verb, inner.tense, "yes", person)):
        verb = (*_all(before, f"{inside}.aux"), Token(main, f"{inside}.verb"))
        found.append(head + link + ((*other, *verb) if inner.is_object else (*verb, *other)))
    return found


def adverbials(meaning: Meaning) -> list[tuple[Tokens, Tokens, Tokens]]:
    """Each way to place them: (in front of the subject, before the main verb, at the end). Source order first."""
    parts = []
    if meaning.manner:
        parts.append(_all(meaning.manner, "manner"))
    if meaning.place:
        preposition, place = meaning.place
        words = (Token(preposition, "place.preposition"), Token("the", "place.det"), Token(place, "place.noun"))
        parts.append(words)
    if meaning.time:
        parts.append(_all(meaning.time, "time"))
    comma = (Token(",", "comma"),)
    found = []
    for order in itertools.permutations(parts):
        found.append(((), (), tuple(itertools.chain(*order))))
    for first in parts:
        for order in itertools.permutations([part for part in parts if part is not first]):
            rest = tuple(itertools.chain(*order))
            found += [(first, (), rest), (first + comma, (), rest)]
    if meaning.manner and meaning.polarity == "yes":
        manner = parts[0]
        others = parts[1:]
        for order in itertools.permutations(others):
            found.append(((), manner, tuple(itertools.chain(*order))))
        for first in others:
            rest = tuple(itertools.chain(*(part for part in others if part is not first)))
            found += [(first, manner, rest), (first + comma, manner, rest)]
    return found


def sequence(meaning: Meaning, group: tuple[str, str], place: tuple, subject: Tokens, thing: Tokens) -> Tokens:
    """One English sentence, from one choice of each part."""
    front, middle, end = place
    before, main = group
    verb = (*(Token(word, "main.aux") for word in before.split()), *middle, Token(main, "main.verb"))
    return front + subject + verb + thing + end


def subjects(meaning: Meaning) -> list[Tokens]:
    if isinstance(meaning.subject, str):
        return [(Token(meaning.subject, "subject.pronoun"),)]
    return phrases(meaning.subject, "subject")


def sequences(meaning: Meaning) -> Iterator[Tokens]:
    """Every English sentence of the grammar with this meaning, without capital, stop and synonyms. Canonical first."""
    groups = verb_groups(meaning.verb, meaning.tense, meaning.polarity, person_of(meaning.subject))
    for place, subject, thing, group in itertools.product(
        adverbials(meaning), subjects(meaning), phrases(meaning.object, "object"), groups
    ):
        yield sequence(meaning, group, place, subject, thing)


def write(words: list[str]) -> str:
    """Words as a sentence: capital, full stop, no space before a comma."""
    text = " ".join(words).replace(" ,", ",")
    return f"{text[:1].upper()}{text[1:]}."


def equal_words(word: str) -> tuple[str, ...]:
    """The word and what is equally right for it."""
    return (word, *SYNONYMS.get(word, ()))


def paraphrases(meaning: Meaning) -> Iterator[str]:
    """Every English sentence of the grammar with this meaning, synonyms too."""
    for tokens in sequences(meaning):
        for words in itertools.product(*(equal_words(token.word) for token in tokens)):
            yield write(fix_articles(list(words)))


def fix_articles(words: list[str]) -> list[str]:
    """`a` or `an` as the next word asks for."""
    pairs = zip(words, [*words[1:], ""], strict=True)
    return [article(after) if word in ("a", "an") and after else word for word, after in pairs]


# --- drawing sentences -----------------------------------------------------------------------------------------------


def draw_phrase(rng: random.Random, nouns: tuple[str, ...], adjective: float) -> Phrase:
    noun = rng.choice(nouns)
    det = rng.choices(tuple(DETERMINERS), (24, 12, 6, 6, 6, 6, 3, 6, 6, 5, 5, 6, 6))[0]
    forms = DETERMINERS[det]
    plural = not forms[0] or (bool(forms[2]) and rng.random() < 0.4)
    chosen = rng.choice(OF_PERSONS if noun in PERSONS else OF_THINGS) if rng.random() < adjective else ""
    return Phrase(det, noun, plural, chosen)


def draw(rng: random.Random) -> Meaning:
    """A meaning. Sentences have 5 to 19 words in English, 10 on average."""
    persons, things = tuple(PERSONS), tuple(THINGS)
    subject = rng.choice(tuple(PRONOUNS)) if rng.random() < 0.25 else draw_phrase(rng, persons, 0.35)
    with_person = rng.random() < 0.4
    verb = rng.choice(WITH_PERSONS if with_person else WITH_THINGS)
    thing = draw_phrase(rng, persons if with_person else things, 0.45)
    tense = rng.choices(TENSES, (45, 35, 20))[0]
    polarity = rng.choices(POLARITIES, (75, 17, 8))[0]
    manner, place, time = "", None, ""
    chosen = rng.sample(("manner", "place", "time"), rng.choices((0, 1, 2), (25, 50, 25))[0])
    if subject == "we" and tense != "future" and "time" not in chosen:
        chosen = [*chosen[:1], "time"]
    if "manner" in chosen:
        manner = rng.choice(tuple(MANNERS))
    if "place" in chosen:
        place = (rng.choice(tuple(PREPOSITIONS)), rng.choice(tuple(PLACES)))
    if "time" in chosen:
        time = rng.choice(tuple(TIMES[tense]))
    if rng.random() < 0.15:
        tense_inside = rng.choice(("present", "past"))
        if rng.random() < 0.5 and isinstance(subject, Phrase):
            inner = Relative(rng.choice(WITH_THINGS), tense_inside, draw_phrase(rng, things, 0.0), False)
            subject = Phrase(subject.det, subject.noun, subject.plural, subject.adjective, inner)
        else:
            verbs = WITH_PERSONS if with_person else WITH_THINGS
            inner = Relative(rng.choice(verbs), tense_inside, draw_phrase(rng, persons, 0.0), True)
            thing = Phrase(thing.det, thing.noun, thing.plural, thing.adjective, inner)
    return Meaning(subject, verb, tense, polarity, thing, manner, place, time)


def split_of(meaning: Meaning) -> str:
    """train, dev or test, by who does what to what: no two splits share a combination of subject, verb and object."""
    subject = meaning.subject if isinstance(meaning.subject, str) else meaning.subject.noun
    bucket = zlib.crc32(f"{subject} {meaning.verb} {meaning.object.noun}".encode()) % 10
    return {0: "test", 1: "dev"}.get(bucket, "train")


def vocabulary() -> list[str]:
    """Every word of both languages as sentences write it, with and without a capital, the marks and the speakers."""
    forms = {form for language in words() for word in language for form in (word, word[:1].upper() + word[1:])}
    return sorted(forms | {".", ",", ":", "Human", "Assistant"})


def words() -> tuple[set[str], set[str]]:
    """All Spanish and all English words, in lower case (I is I)."""
    es = {"no", "nunca", "a", "al", "de", "del", "que", *SPANISH_FUTURE}
    en = {"a", "an", "that", "who", "whom", "which", "not", "never", "am", "is", "are", "isn't", "aren't"}
    en |= {"do", "does", "don't", "doesn't", "did", "didn't", "will", "won't", "going", "to", "the"}
    for noun, (plural, _, one, many) in NOUNS.items():
        en |= {*equal_words(noun), *equal_words(plural)}
        es |= {one, many}
    for place, (_, noun) in PLACES.items():
        en.add(place)
        es.add(noun)
    for adjective, forms in ADJECTIVES.items():
        en |= set(equal_words(adjective))
        es |= set(forms)
    for verb, forms in VERBS.items():
        en |= {verb, *forms[:3]}
        es |= set(forms[3:])
    for det, forms in DETERMINERS.items():
        en |= {det, PLURAL_OF.get(det, det)}
        es |= {form for form in forms if form}
    for pronoun, (one, _) in PRONOUNS.items():
        en.add(pronoun)
        es.add(one)
    for preposition, one in PREPOSITIONS.items():
        en.add(preposition)
        es |= set(one.split())
    for text, one in [*MANNERS.items(), *(pair for times in TIMES.values() for pair in times.items())]:
        en |= set(text.split())
        es |= set(one.split())
    return es, en
