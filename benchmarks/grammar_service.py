"""How fast the grammar checker is, and how well it finds planted errors. Prints two tables.

    python benchmarks/grammar_service.py --data pairs.jsonl

An error of each kind is planted in a copy of every sentence that has room for it. Recall: the share of copies in which
a match overlaps the planted error. Precision: the same number of hits, over hits and the matches that the rules
behind them make in the sentences as they were (some of those are errors of the authors). The spelling rule, which
knows few names, is left out of the latter and reported apart.
"""

from __future__ import annotations

import random
import re
import time
from collections import Counter

from alarm.common.console import plain_table, print_table
from alarm.common.errors import report_user_errors
from alarm.common.flags import parser, positive_int
from alarm.tasks.mt.data import load_rows
from alarm.tasks.mt.grammar import BACKENDS, Match, make_checker

SPELLING = "MORFOLOGIK_RULE_EN_US"

Planted = tuple[str, int, int]  # text, and where the error is

_SWAPS = {"is": "are", "are": "is", "was": "were", "has": "have", "have": "has", "does": "do", "do": "does"}
_SUBJECTS = re.compile(
    r"(?<![A-Za-z] )\b((?:he|she|it|this) (is|was|has|does)|(?:they|we|these) (are|have|do))\b", re.IGNORECASE
)


def plant_agreement(text: str, rng: random.Random) -> Planted | None:
    found = _SUBJECTS.search(text)
    if not found:
        return None
    group = 2 if found[2] else 3
    start, end = found.span(group)
    verb = _SWAPS[found[group].lower()]
    return text[:start] + verb + text[end:], found.start(), start + len(verb)


def plant_article(text: str, rng: random.Random) -> Planted | None:
    found = re.search(r"\b(a)(?= [bcdfgjklmnpqrstvwz][a-z])|\b(an)(?= [aei][a-z])", text)
    if not found:
        return None
    wrong = "an" if found[1] else "a"
    return text[: found.start()] + wrong + text[found.end() :], found.start(), found.start() + len(wrong)


def plant_doubled_word(text: str, rng: random.Random) -> Planted | None:
    words = [word for word in re.finditer(r"\b[a-z]{3,}\b", text) if word[0] not in ("that", "had", "very")]
    if not words:
        return None
    word = rng.choice(words)
    return f"{text[: word.end()]} {word[0]}{text[word.end() :]}", word.start(), word.end() + 1 + len(word[0])


def plant_lower_case(text: str, rng: random.Random) -> Planted | None:
    found = re.match(r"[A-Z][a-z]+", text)
    return (text[0].lower() + text[1:], 0, found.end()) if found else None


KINDS = {
    "agreement": plant_agreement,
    "a/an": plant_article,
    "doubled word": plant_doubled_word,
    "missing capital": plant_lower_case,
}


def overlaps(match: Match, start: int, end: int) -> bool:
    return match.start < end and match.end > start


def rate(check, texts: list[str]) -> float:
    started = time.perf_counter()
    check(texts)
    return len(texts) / (time.perf_counter() - started)


def show(title: str, head: list[str], rows: list[list]) -> None:
    cells = [[f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    print_table(plain_table(title, head, cells))


@report_user_errors
def main(argv: list[str] | None = None) -> None:
    flags = parser(__doc__.split("\n")[0])
    flags.add_argument("--data", required=True, help="translation pairs; the English side is checked")
    flags.add_argument("--rows", type=positive_int, default=500, help="sentences that errors are planted in")
    flags.add_argument("--speed_rows", type=positive_int, default=200, help="sentences for each timing")
    flags.add_argument("--in_flight", type=positive_int, default=8, help="requests at a time")
    flags.add_argument("--grammar_backend", default="languagetool", choices=BACKENDS, help="what finds the errors")
    flags.add_argument("--grammar_server", help="URL of a running LanguageTool server")
    flags.add_argument("--seed", type=int, default=42, help="seed of the planted errors")
    args = flags.parse_args(argv)

    sentences = list(dict.fromkeys(row["translation"]["en"] for row in load_rows(args.data)))
    texts, rest = sentences[: args.rows], sentences[args.rows :]
    checker = make_checker(args.grammar_backend, args.grammar_server)
    started = time.perf_counter()
    checker.check(["This is one sentence."])
    first = time.perf_counter() - started

    clean = dict(zip(texts, checker.check(texts), strict=True))
    rows, rng = [], random.Random(args.seed)
    for kind, plant in KINDS.items():
        planted = {text: found for text in texts if (found := plant(text, rng))}
        answers = checker.check([text for text, _, _ in planted.values()])
        hits, rules = 0, Counter()
        for (_, start, end), matches in zip(planted.values(), answers, strict=True):
            behind = {match.rule for match in matches if overlaps(match, start, end)}
            hits += bool(behind)
            rules.update(behind)
        usual = {rule for rule, count in rules.items() if count >= max(2, 0.02 * hits) and rule != SPELLING}
        false = sum(match.rule in usual for matches in clean.values() for match in matches)
        names = ", ".join(rule for rule, _ in rules.most_common(3))
        rows.append([kind, len(planted), hits, hits / max(len(planted), 1), false, hits / max(hits + false, 1), names])
    head = ["kind", "planted", "found", "recall", "in clean text", "precision", "rules"]
    show(f"planted errors, {len(texts)} sentences, {args.grammar_backend}", head, rows)
    rules = Counter(match.rule for matches in clean.values() for match in matches)
    print(f"matches in the {len(clean)} sentences as they were: {rules.total()}, of which spelling {rules[SPELLING]}")

    n = args.speed_rows  # texts not seen before, each timing its own; the warm-up was above
    if hasattr(checker, "in_flight"):
        speeds = []
        for requests in (1, args.in_flight):
            checker.in_flight = requests
            speeds.append([f"{requests} in flight", rate(checker.check, rest[:n])])
            rest = rest[n:]
        seen = sentences[args.rows : args.rows + n]
        speeds.append(["cached", rate(checker.check, seen)])
        show("texts per second", ["", "texts/s"], speeds)
        print(f"the first text, with the server's start: {first:.1f} s")
    else:
        show("texts per second", ["", "texts/s"], [["rules", rate(checker.check, rest[:n])]])
    print(checker.counts)
    checker.close()


if __name__ == "__main__":
    main()
