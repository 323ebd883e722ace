"""The data of the translation world: faults are those that are asked for, and splits are apart."""

from __future__ import annotations

import random

import pytest

from miniature.mt.data import SIZES, grammar_faults, main, make_rows, other_fault, quality_of


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("she sees an egg", "she see a egg"),
        ("they see two old eggs", "they sees two old egg"),
        ("he is not opening many boxes", "he are not opening many box"),
        ("he will open the boxes", "he will open the boxes"),
        ("he doesn't open the box", "he don't open the box"),
        ("we are going to buy some keys", "we is going to buy some key"),
    ],
)
def test_faults_of_grammar(right, wrong):
    assert " ".join(grammar_faults(right.split(), random.Random(0), share=1.0)) == wrong


def test_other_faults_change_one_place():
    rng, words = random.Random(0), "the girl saw two eggs".split()
    kinds = set()
    for _ in range(50):
        kind, found = other_fault(words, rng)
        kinds.add(kind)
        assert {"wrong": len(found) == 5, "missing": len(found) == 4, "repeated": 6 <= len(found) <= 8}[kind]
    assert kinds == {"wrong", "missing", "repeated"}


def test_answers_without_faults_are_worth_one():
    rows, faults = make_rows(100, "dev", random.Random(0), set(), None)
    assert not faults
    assert all(quality_of(row, row["answer"]) == 1 for row in rows)


def test_faults_cost_quality():
    rows, faults = make_rows(200, "train", random.Random(0), set(), (1.0, 1.0))
    assert sum(faults[kind] for kind in ("wrong", "missing", "repeated")) == 200
    assert sum(quality_of(row, row["answer"]) for row in rows) / 200 < 0.8


def test_the_files_share_no_source_and_a_seed_makes_them(tmp_path):
    import json

    sizes = [word for name in SIZES for word in (f"--{name}", "50")]
    for folder in ("a", "b"):
        main(["--save_dir", str(tmp_path / folder), *sizes])
    texts = []
    for name in SIZES:
        one, two = ((tmp_path / folder / f"{name}.jsonl").read_text() for folder in ("a", "b"))
        assert one == two
        texts += [json.loads(line)["text"] for line in one.splitlines()]
    assert len(texts) == len(set(texts)) == 50 * len(SIZES)
