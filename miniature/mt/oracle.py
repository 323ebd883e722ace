"""The true quality of a translation in the small world, in [0, 1], with its parts.

    quality = adequacy^2 * (0.5 + 0.5 * fluency)

adequacy: the share of the meaning that the answer says; words that say something else count against it.
fluency: 1 - errors / 4, at least 0: agreement, articles, forms, missing and surplus words, capital, full stop.

Why a product: a sum pays for short fluent sentences that say nothing. Why the square: half of the meaning is worth less
than half. Why fluency counts half at most: a clumsy translation still tells what was said.

How: the sentences of the grammar near the meaning are those that say it, and those that say it in another tense or
polarity. The answer is aligned with the nearest of them, so each part of the meaning gets the words that say it. Every
sentence that says the meaning exactly has quality 1. Agreement is that of the answer's own words: a wrong number of a
noun is an error of meaning, and a verb that agrees with it is none.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from .world import (
    ADJECTIVES,
    DETERMINERS,
    MANNERS,
    NOUNS,
    PLACES,
    PLURAL_OF,
    POLARITIES,
    PREPOSITIONS,
    PRONOUNS,
    TENSES,
    TIMES,
    VERBS,
    Meaning,
    Phrase,
    Token,
    adverbials,
    article,
    equal_words,
    person_of,
    phrases,
    sequence,
    subjects,
    verb_groups,
)

# what a part of the meaning weighs: the nouns and the verb of the main clause most, for who does what to whom
WEIGHTS = {
    "noun": 2.0,
    "pronoun": 2.0,
    "number": 0.5,
    "definite": 0.25,  # the, a
    "determiner": 0.75,  # the others
    "adjective": 1.0,
    "verb": 2.0,
    "tense": 1.0,
    "polarity": 2.0,
    "manner": 1.5,
    "time": 1.5,
    "preposition": 0.5,
    "place": 1.5,
    "relative noun": 1.0,
    "relative verb": 1.0,
    "relative tense": 0.5,
}
SURPLUS = 0.75  # of a word with a meaning that belongs to no part of the sentence's
ERRORS = 4.0  # so many errors leave no fluency
SAME_LEMMA, SAME_KIND, ADD_OR_DROP, OTHER_MEANING = 0.3, 1.0, 1.0, 0.2  # costs of the alignment
FORMS = ("base", "third", "past", "progressive")
# finite word -> the persons (0 I, 1 he, 2 we, 3 they) that it agrees with
AGREES = {"am": (0,), "do": (0, 2, 3), "don't": (0, 2, 3), "are": (2, 3), "aren't": (2, 3)}
AGREES |= dict.fromkeys(("is", "isn't", "does", "doesn't"), (1,))
AUXILIARIES = {"does": "do", "am": "is", "are": "is", "aren't": "isn't", "doesn't": "don't"}
AUXILIARIES |= {word: word for word in ("do", "is", "isn't", "don't", "did", "didn't", "will", "won't", "going", "to")}
NEGATORS = ("not", "never")
SINGULAR_DETS = ("a", "an", "this", "that", "every")
FREE_DETS = ("the", "my", "our")


@dataclass(frozen=True)
class Quality:
    """What an answer is worth, in [0, 1] each."""

    quality: float
    adequacy: float
    fluency: float


def _lexicon() -> tuple[dict[str, set[tuple[str, str]]], dict[str, str]]:
    """Word -> {(kind, lemma)}; form of a verb -> its name."""
    found: dict[str, set[tuple[str, str]]] = {}
    forms = {}

    def add(word: str, kind: str, lemma: str) -> None:
        found.setdefault(word, set()).add((kind, lemma))

    for noun, (plural, *_) in NOUNS.items():
        for word in (*equal_words(noun), *equal_words(plural)):
            add(word, "noun", noun)
    for verb, (third, past, progressive, *_) in VERBS.items():
        for word, form in zip((verb, third, past, progressive), FORMS, strict=True):
            add(word, "verb", verb)
            forms[word] = form
    for kind, words in (("manner", MANNERS), ("place", PLACES), ("preposition", PREPOSITIONS), ("pronoun", PRONOUNS)):
        for word in words:
            add(word, kind, word)
    for adjective in ADJECTIVES:
        for word in equal_words(adjective):
            add(word, "adjective", adjective)
    for det in DETERMINERS:
        add(det, "det", det)
        add(PLURAL_OF.get(det, det), "det", det)
    add("an", "det", "a")
    for word, lemma in (AUXILIARIES | dict.fromkeys(NEGATORS)).items():
        add(word, "aux", lemma or word)
    for link in ("who", "whom", "which", "that"):
        add(link, "link", link)
    for text in (text for times in TIMES.values() for text in times):
        for word in text.split():
            add(word, "time", word)
    return found, forms


LEXICON, VERB_FORM = _lexicon()
PLURALS = {word for noun, (plural, *_) in NOUNS.items() for word in equal_words(plural)}
ALL_TIMES = {text for times in TIMES.values() for text in times}
MEANINGFUL = ("noun", "verb", "manner", "place", "pronoun", "adjective", "time", "preposition")


def words_of(text: str) -> list[str]:
    """The words, commas and stops of an answer, the first word in lower case."""
    words = re.findall(r"[^\s.,!?]+|[.,!?]", text)
    if words and words[0] != "I":
        words[0] = words[0][:1].lower() + words[0][1:]
    return words


@lru_cache(maxsize=100_000)
def judge(meaning: Meaning, answer: str) -> Quality:
    """The true quality of an answer to a source with this meaning."""
    text = answer.strip()
    words = words_of(text)
    errors = 0.0
    if words and words[-1] == ".":
        words.pop()
    else:
        errors += 0.5
    errors += 0.5 * (not text[:1].isupper())
    if not any(word in LEXICON for word in words):
        return Quality(0.0, 0.0, 0.0)
    reading = nearest(meaning, words)
    said, whole = _said(meaning, reading)
    adequacy = said / whole
    fluency = max(0.0, 1 - (errors + _errors(meaning, reading)) / ERRORS)
    return Quality(adequacy**2 * (0.5 + 0.5 * fluency), adequacy, fluency)


# --- the nearest sentence --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reading:
    """An answer beside the nearest sentence of the grammar."""

    words: list[str]
    tokens: tuple[Token, ...]
    at: list[int | None]  # for each token, the place of the word that stands for it
    tense: str  # of that sentence's main verb
    polarity: str
    group: tuple[str, str]

    def word(self, role: str) -> str | None:
        """The word that stands for the first token of a role."""
        for token, place in zip(self.tokens, self.at, strict=True):
            if token.role == role:
                return None if place is None else self.words[place]
        return None

    @property
    def surplus(self) -> list[int]:
        """Places of the words that stand for nothing."""
        used = set(self.at)
        return [place for place in range(len(self.words)) if place not in used]


def nearest(meaning: Meaning, words: list[str]) -> Reading:
    """The cheapest alignment, found part by part: the verb, then the adverbials, then the relative clauses.

    Not every combination of parts is tried. A test holds that a sentence which says the meaning is found.
    """
    groups = _near_groups(meaning, words)
    places, subject, thing = adverbials(meaning), subjects(meaning), phrases(meaning.object, "object")
    group, place = groups[0], places[0]
    chosen = {"group": group, "place": place, "subject": subject[0], "thing": thing[0]}
    choices = {"place": places, "subject": subject, "thing": thing, "group": groups}

    def cost(parts: dict) -> tuple[float, list[int | None]]:
        tense, polarity, group = parts["group"]
        tokens = sequence(meaning, group, parts["place"], parts["subject"], parts["thing"])
        found, at = align(words, tokens)
        return found + OTHER_MEANING * ((tense != meaning.tense) + (polarity != meaning.polarity)), at

    best = cost(chosen)
    for _ in range(2):
        before = best[0]
        for part, options in choices.items():
            for option in options:
                if option is not chosen[part] and best[0] > 0:
                    trial = chosen | {part: option}
                    found = cost(trial)
                    if found[0] < best[0]:
                        best, chosen = found, trial
        if best[0] == before:
            break
    tense, polarity, group = chosen["group"]
    tokens = sequence(meaning, group, chosen["place"], chosen["subject"], chosen["thing"])
    return Reading(words, tokens, best[1], tense, polarity, group)


def _near_groups(meaning: Meaning, words: list[str]) -> list[tuple[str, str, tuple[str, str]]]:
    """The three ways to say the verb, in any tense and polarity, that share most with the answer's verbal words."""
    person = person_of(meaning.subject)
    forms = (meaning.verb, *VERBS[meaning.verb][:3])

    def normal(word: str) -> str:
        return meaning.verb if word == forms[1] else AUXILIARIES.get(word, word)

    own = {normal(word) for word in words if word in AUXILIARIES or word in NEGATORS or word in forms}
    found = []
    for tense in TENSES:
        for polarity in POLARITIES:
            for group in verb_groups(meaning.verb, tense, polarity, person):
                other = OTHER_MEANING * ((tense != meaning.tense) + (polarity != meaning.polarity))
                needed = {normal(word) for word in (*group[0].split(), group[1])}
                found.append((len(own ^ needed) + other, (tense, polarity, group)))
    return [group for _, group in sorted(found, key=lambda pair: pair[0])[:3]]


def _kind(role: str) -> str:
    part = role.rsplit(".", 1)[-1]
    return "place" if role == "place.noun" else part


def align(words: list[str], tokens: tuple[Token, ...]) -> tuple[float, list[int | None]]:
    """Least cost of making the words the tokens; for each token the place of its word, or None."""
    rows = [[0.0] * (len(words) + 1) for _ in range(len(tokens) + 1)]
    rows[0] = [ADD_OR_DROP * i for i in range(len(words) + 1)]
    known = [LEXICON.get(word, ()) for word in words]
    for t, token in enumerate(tokens, start=1):
        above, row = rows[t - 1], rows[t]
        row[0] = above[0] + ADD_OR_DROP
        costs = _costs(token)
        for w, word in enumerate(words, start=1):
            drop = min(above[w], row[w - 1]) + ADD_OR_DROP
            row[w] = min(drop, above[w - 1] + _substitution(costs, word, known[w - 1]))
    at: list[int | None] = [None] * len(tokens)
    t, w = len(tokens), len(words)
    while t and w:
        costs = _costs(tokens[t - 1])
        if rows[t][w] == rows[t - 1][w - 1] + _substitution(costs, words[w - 1], known[w - 1]):
            t, w = t - 1, w - 1
            at[t] = w
        elif rows[t][w] == rows[t - 1][w] + ADD_OR_DROP:
            t -= 1
        else:
            w -= 1
    return rows[-1][-1], at


@lru_cache(maxsize=10_000)
def _costs(token: Token) -> tuple[tuple[str, ...], set[tuple[str, str]], str]:
    kind = _kind(token.role)
    return equal_words(token.word), {pair for pair in LEXICON.get(token.word, ()) if pair[0] == kind}, kind


def _substitution(costs: tuple, word: str, known: set[tuple[str, str]]) -> float:
    equal, lemmas, kind = costs
    if word in equal:
        return 0.0
    for pair in known:
        if pair in lemmas:
            return SAME_LEMMA
    for pair in known:
        if pair[0] == kind:
            return SAME_KIND
    return 2 * ADD_OR_DROP + 0.1  # never better than dropping the one and adding the other


# --- adequacy --------------------------------------------------------------------------------------------------------


def _says(word: str | None, kind: str, lemma: str) -> bool:
    return word is not None and (kind, lemma) in LEXICON.get(word, ())


def _said(meaning: Meaning, reading: Reading) -> tuple[float, float]:
    """The weight of what the answer says of the meaning, and of the whole, surplus words in it."""
    parts: list[tuple[str, float]] = []  # name in WEIGHTS, share that is said

    def phrase(found: Phrase | str, role: str, noun_weight: str) -> None:
        if isinstance(found, str):
            parts.append(("pronoun", _says(reading.word(f"{role}.pronoun"), "pronoun", found)))
            return
        det, noun = reading.word(f"{role}.det"), reading.word(f"{role}.noun")
        right = _says(noun, "noun", found.noun)
        parts.append((noun_weight, right))
        said = _says(det, "det", found.det)
        parts.append(("definite" if found.det in ("the", "a") else "determiner", right and said))
        forms = DETERMINERS[found.det]
        if forms[0] and forms[2]:
            shown = noun in PLURALS or (found.det in PLURAL_OF and det in PLURAL_OF.values())
            singular = noun not in PLURALS or (found.det in PLURAL_OF and det in PLURAL_OF)
            parts.append(("number", right and (shown if found.plural else singular)))
        if found.adjective:
            parts.append(("adjective", _says(reading.word(f"{role}.adjective"), "adjective", found.adjective)))
        if inner := found.relative:
            verb = reading.word(f"{role}.relative.verb")
            said = _says(verb, "verb", inner.verb)
            parts.append(("relative verb", said))
            past = said and VERB_FORM[verb] == "past"
            parts.append(("relative tense", said and past == (inner.tense == "past")))
            phrase(inner.other, f"{role}.relative.other", "relative noun")

    phrase(meaning.subject, "subject", "noun")
    phrase(meaning.object, "object", "noun")
    verb = reading.word("main.verb")
    parts.append(("verb", _says(verb, "verb", meaning.verb)))
    has_verb = verb is not None
    parts.append(("tense", has_verb and _shown_tense(reading) == meaning.tense))
    parts.append(("polarity", has_verb and _shown_polarity(reading) == meaning.polarity))
    if meaning.manner:
        parts.append(("manner", _says(reading.word("manner"), "manner", meaning.manner)))
    if meaning.place:
        preposition, place = meaning.place
        parts.append(("preposition", _says(reading.word("place.preposition"), "preposition", preposition)))
        parts.append(("place", _says(reading.word("place.noun"), "place", place)))
    if meaning.time:
        rows = zip(reading.tokens, reading.at, strict=True)
        same = [at is not None and reading.words[at] == token.word for token, at in rows if token.role == "time"]
        parts.append(("time", float(all(same))))
    said = sum(WEIGHTS[name] * share for name, share in parts)
    surplus = [reading.words[place] for place in reading.surplus]
    useless = sum(any(kind in MEANINGFUL for kind, _ in LEXICON.get(word, ())) for word in surplus)
    useless += sum(word in NEGATORS for word in surplus)
    return said, sum(WEIGHTS[name] for name, _ in parts) + SURPLUS * useless


def _main_words(reading: Reading) -> list[str]:
    pairs = zip(reading.tokens, reading.at, strict=True)
    return [reading.words[at] for token, at in pairs if at is not None and token.role == "main.aux"]


def _shown_polarity(reading: Reading) -> str:
    """Of the answer's own verbal words: a surplus `not` negates too."""
    words = [*_main_words(reading), *(reading.words[place] for place in reading.surplus)]
    if "never" in words:
        return "never"
    return "not" if any(word == "not" or (word.endswith("n't") and word in LEXICON) for word in words) else "yes"


def _shown_tense(reading: Reading) -> str:
    """Of the answer's own verbal words."""
    before = _main_words(reading)
    if {"will", "won't", "going"} & set(before):
        return "future"
    if {"did", "didn't"} & set(before):
        return "past"
    form = VERB_FORM.get(reading.word("main.verb") or "")
    return "past" if form == "past" and not _has_auxiliary(before) else "present"


def _has_auxiliary(words: list[str]) -> bool:
    return any(word in AUXILIARIES for word in words)


# --- fluency ---------------------------------------------------------------------------------------------------------


def _errors(meaning: Meaning, reading: Reading) -> float:
    """How many errors of grammar the answer has, beside capital and stop."""
    errors = 0.0
    # 1. words that no sentence has there, and words that a sentence needs
    says_a_time = _own_time(reading) in ALL_TIMES
    for place in reading.surplus:
        word = reading.words[place]
        if not (says_a_time and _is_time(word)):
            errors += 0.5 if word in (",", ".") else 1.0
    missing = [token for token, at in zip(reading.tokens, reading.at, strict=True) if at is None]
    whole = {"manner", "time", "place", "adjective"}
    present = {token.role.split(".")[0] for token, at in zip(reading.tokens, reading.at, strict=True) if at is not None}
    for token in missing:
        group = token.role.split(".")[0]
        if _kind(token.role) == "adjective" or token.role == "manner":
            continue  # a sentence without it is whole
        if group in whole and (group not in present or (group == "time" and says_a_time)):
            continue  # nor is anything wrong with one that names no time or place
        errors += 0.5 if token.role == "comma" else 1.0
    # words that are no other meaning but wrong: `behind three station`, `do aren't see`, `men which see`
    for token, at in zip(reading.tokens, reading.at, strict=True):
        if at is not None and (token.role == "place.det" or _kind(token.role) in ("aux", "link")):
            errors += _substitution(_costs(token), reading.words[at], LEXICON.get(reading.words[at], ())) == SAME_KIND
    # 2. articles before the answer's own words
    for word, after in zip(reading.words, reading.words[1:], strict=False):
        if word in ("a", "an") and after[:1].isalpha() and article(after) != word:
            errors += 1
    # 3. agreement
    errors += _phrase_errors(meaning.subject, "subject", reading) + _phrase_errors(meaning.object, "object", reading)
    errors += _verb_errors(reading, "main", meaning.subject, "subject")
    return errors


def _is_time(word: str) -> bool:
    return any(kind == "time" for kind, _ in LEXICON.get(word, ()))


def _own_time(reading: Reading) -> str:
    """The words of time that the answer has, other than the determiner `every`."""
    others = {at for token, at in zip(reading.tokens, reading.at, strict=True) if token.role != "time"}
    return " ".join(word for place, word in enumerate(reading.words) if place not in others and _is_time(word))


def _phrase_errors(found: Phrase | str, role: str, reading: Reading) -> float:
    if isinstance(found, str):
        return 0.0
    errors = float(_number_clashes(role, reading))
    if inner := found.relative:
        inside = f"{role}.relative"
        errors += _phrase_errors(inner.other, f"{inside}.other", reading)
        subject, place = (inner.other, f"{inside}.other") if inner.is_object else (found, role)
        errors += _verb_errors(reading, inside, subject, place)
    return errors


def _number_clashes(role: str, reading: Reading) -> bool:
    det, noun = reading.word(f"{role}.det"), reading.word(f"{role}.noun")
    if det is None or noun is None or det in FREE_DETS:
        return False
    return (det in SINGULAR_DETS) == (noun in PLURALS)


def _verb_errors(reading: Reading, where: str, subject: Phrase | str, role: str) -> float:
    """Form and agreement of a verb group, by the answer's own words."""
    pairs = list(zip(reading.tokens, reading.at, strict=True))
    verb = reading.word(f"{where}.verb")
    if verb is None or verb not in VERB_FORM:
        return 0.0
    before = [reading.words[at] for token, at in pairs if at is not None and token.role == f"{where}.aux"]
    before = [word for word in before if word not in NEGATORS]
    form = VERB_FORM[verb]
    if "to" in before or {"will", "won't", "do", "don't", "does", "doesn't", "did", "didn't"} & set(before):
        needed = ("base",)
    elif {"am", "is", "are", "isn't", "aren't"} & set(before):
        needed = ("progressive",)
    else:
        needed = ("base", "third", "past")
    errors = float(form not in needed)
    finite = next((word for word in before if word in AGREES), None)
    if finite is None and not before and form in ("base", "third"):
        persons = (1,) if form == "third" else (0, 2, 3)
    elif finite is None:
        return errors
    else:
        persons = AGREES[finite]
    if isinstance(subject, str):
        own = reading.word(f"{role}.pronoun")
        return errors + (own in PRONOUNS and PRONOUNS[own][1] not in persons)
    noun = reading.word(f"{role}.noun")
    if noun is None or _number_clashes(role, reading):
        return errors
    return errors + ((3 if noun in PLURALS else 1) not in persons)
