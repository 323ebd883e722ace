"""Make the data of the translation world: demonstrations with known faults, and prompts. `python -m miniature.mt.data`

Files of --save_dir, JSON lines {text, answer, meaning}:
    sft.jsonl, sft_dev.jsonl      demonstrations, whose answers are corrupted on purpose
    train.jsonl                   prompts for PPO and for preferences, with right answers
    dev.jsonl, test.jsonl         prompts that are held out; see `world.split_of`
    words.json                    the words of both languages
    corruption.json               how many demonstrations have which fault, and their true quality
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
from collections import Counter
from itertools import islice

from alarm.common.errors import report_user_errors
from alarm.common.files import check_new_folder, whole_folder, write_json
from alarm.common.flags import parser, positive_int, seed_value, unit_share

from .oracle import LEXICON, judge
from .world import NOUNS, NUMERALS, VERBS, Meaning, Token, draw, sequences, spanish, split_of, to_json, words, write

SIZES = {"sft": 57_600, "sft_dev": 500, "train": 20_000, "dev": 600, "test": 1000}
SPLIT = {"sft": "train", "sft_dev": "dev"}  # of which split of the world a file is
SINGULAR = {plural: noun for noun, (plural, *_) in NOUNS.items()}
# finite form -> the one of the other person
OTHER_PERSON = {"is": "are", "are": "is", "am": "is", "does": "do", "do": "does"}
OTHER_PERSON |= {"isn't": "aren't", "aren't": "isn't", "doesn't": "don't", "don't": "doesn't"}
OTHER_PERSON |= {form: other for base, (third, *_) in VERBS.items() for form, other in ((base, third), (third, base))}
BEFORE_BASE = ("to", "not", "will", "won't", "do", "don't", "does", "doesn't", "did", "didn't", "never")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    flags = parser(__doc__.split("\n\n")[0])
    add = flags.add_argument
    add("--save_dir", required=True, help="new folder for the files")
    for name, size in SIZES.items():
        add(f"--{name}", type=positive_int, default=size, help=f"rows of {name}.jsonl")
    add("--grammar_faults", type=unit_share, default=0.6, help="share of demonstrations that get faults of grammar")
    add("--other_faults", type=unit_share, default=0.35, help="share that get a wrong, missing or repeated word")
    add("--seed", type=seed_value, default=42, help="seed of the sentences and of the faults")
    return flags.parse_args(argv)


# --- faults ----------------------------------------------------------------------------------------------------------


def grammar_faults(tokens: list[str], rng: random.Random, share: float = 0.7) -> list[str]:
    """Agreement of verbs dropped, `an` to `a`, no plural after numerals: each place with probability `share`."""
    found = list(tokens)
    for i, word in enumerate(tokens):
        before = tokens[max(0, i - 2) : i]
        if word == "an" and rng.random() < share:
            found[i] = "a"
        elif word in SINGULAR and {*NUMERALS, "many", "some"} & set(before) and rng.random() < share:
            found[i] = SINGULAR[word]
        elif word in OTHER_PERSON and not set(before[-1:]) & set(BEFORE_BASE) and rng.random() < share:
            found[i] = OTHER_PERSON[word]
    return found


def other_fault(tokens: list[str], rng: random.Random) -> tuple[str, list[str]]:
    """-> the fault's name, and the words: one wrong, one missing, or the end twice."""
    kind = rng.choice(("wrong", "missing", "repeated"))
    place = rng.randrange(len(tokens))
    if kind == "wrong":
        kinds = {name for name, _ in LEXICON.get(tokens[place], ())}
        others = [word for word, known in LEXICON.items() if kinds & {name for name, _ in known}]
        return kind, [*tokens[:place], rng.choice(others or tokens), *tokens[place + 1 :]]
    if kind == "missing":
        return kind, tokens[:place] + tokens[place + 1 :]
    return kind, tokens + tokens[-rng.randint(1, 3) :]


# --- rows ------------------------------------------------------------------------------------------------------------


def say(meaning: Meaning, time_first: bool, rng: random.Random) -> tuple[Token, ...]:
    """An English sentence with this meaning: mostly the first form and the order of the source."""
    if time_first:
        fronted = (tokens for tokens in sequences(meaning) if tokens[0].role == "time")
        if options := list(islice(fronted, 2)):
            return rng.choice(options)
    options = list(islice(sequences(meaning), 12))
    return options[0] if rng.random() < 0.6 else rng.choice(options)


def make_rows(count: int, split: str, rng: random.Random, seen: set[str], shares: tuple[float, float] | None):
    """`count` rows of a split, whose sources are not in `seen`. shares: of faults; None: right answers."""
    rows, faults = [], Counter()
    while len(rows) < count:
        meaning = draw(rng)
        if split_of(meaning) != split:
            continue
        time_first, drop = rng.random() < 0.3, rng.random() < 0.5
        text = spanish(meaning, time_first, drop)
        if text in seen:
            continue
        seen.add(text)
        right = [token.word for token in say(meaning, time_first, rng)]
        said = right
        if shares is not None:
            if rng.random() < shares[0]:
                said = grammar_faults(right, rng)
                faults["grammar"] += said != right
            if rng.random() < shares[1]:
                kind, said = other_fault(said, rng)
                faults[kind] += 1
        rows.append({"text": text, "answer": write(said), "meaning": to_json(meaning)})
    return rows, faults


@report_user_errors
def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    check_new_folder(args.save_dir, "--save_dir")
    seen = set()
    report = {}
    with whole_folder(args.save_dir) as folder:
        for name in SIZES:
            shares = (args.grammar_faults, args.other_faults) if name in SPLIT else None
            rng = random.Random(f"{args.seed} {name}")  # so that dev and test do not depend on the sizes of the others
            rows, faults = make_rows(getattr(args, name), SPLIT.get(name, name), rng, seen, shares)
            lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
            quality = statistics.mean(quality_of(row, row["answer"]) for row in rows[:1000])
            report[name] = {"rows": len(rows), "true_quality": quality, "faults": dict(faults)}
            print(f"{name}: {len(rows)} rows, true quality of the answers {quality:.3f}, faults {dict(faults)}")
        write_json(folder / "corruption.json", report)
        write_json(folder / "words.json", dict(zip(("spanish", "english"), map(sorted, words()), strict=True)))
    print(f"wrote {args.save_dir}")


def quality_of(row: dict, answer: str) -> float:
    """The true quality of an answer to a data row."""
    from .world import from_json

    return judge(from_json(row["meaning"]), answer).quality


if __name__ == "__main__":
    main()
