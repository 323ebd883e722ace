"""The data files of the encyclopedia: what they say is what the oracle knows."""

from __future__ import annotations

import itertools
import json
import random
from statistics import fmean

import pytest

from alarm.models.classifiers import F_ERR, NF_ERR, NO_ERR
from alarm.tasks.qa.aspects import sentences, subsentences
from alarm.tasks.qa.data import load_examples
from alarm.tasks.qa.feedback import (
    PAIRS,
    completeness_pairs,
    factuality_labels,
    load_feedback,
    preference_pairs,
    relevance_labels,
)
from alarm.tasks.sentences import make_splitter
from miniature.qa import data, oracle
from miniature.qa.oracle import judge_row, read, unpack_ask, unpack_fact
from miniature.qa.world import Entity, names, vocabulary


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("qa") / "data"
    sizes = ["--train", "200", "--train_feedback", "120", "--dev", "40", "--dev_feedback", "30", "--test", "40"]
    data.main(["--save_dir", str(path), *sizes])
    return path


def test_passages_say_the_facts_and_references_answer(folder):
    for split in ("train", "dev", "test"):
        rows = load_examples(folder / f"{split}.json")
        assert len({row["question"] for row in rows}) == len(rows)
        for row in rows:
            said = []
            for page in row["passages"]:
                name = tuple(page["wikipage"].split())
                title = Entity(oracle.KIND_OF[name], name)
                assert title in names(split)[title.kind]
                said += [unit.fact for unit in read(page["content"], title)]
                assert page["content"] in row["text"]
            facts = [unpack_fact(fact) for fact in row["facts"]]
            assert said == facts
            assert judge_row(row, row["answer"][0]).total == 1
            assert row["text"].startswith(f"question: {row['question']} context: wikipage: ")
            # no other fact of the passages would answer a part of the question as well
            for part in map(unpack_ask, row["asks"]):
                assert sum(part.answered_by(fact) for fact in facts) == 1


def test_splits_share_no_name(folder):
    found = {}
    for split in ("train", "dev", "test"):
        text = (folder / f"{split}.json").read_text()
        if split != "test":  # feedback too, but for clauses whose words are shuffled
            text += (folder / f"{split}_noisy.json").read_text()
            for row in load_feedback(folder / f"{split}.json", folder / f"{split}_feedback.json"):
                if not any(error["error type"] == oracle.INCOHERENT for error in row.errors):
                    text += row.answers[0] + row.corrected
        tokens = oracle.TOKEN.findall(text)
        pairs = set(itertools.pairwise(tokens))
        found[split] = {name for name in oracle.KIND_OF if name in pairs}
        assert found[split] <= {entity.name for every in names(split).values() for entity in every}
        assert len(found[split]) > 40


def test_all_words_are_in_the_vocabulary(folder):
    known = set(vocabulary())
    for name in ("train.json", "test.json"):
        for row in load_examples(folder / name):
            assert set(oracle.TOKEN.findall(f"{row['text']} {row['answer'][0]}")) <= known


def test_feedback_labels_are_the_true_ones(folder):
    """The project's own rules, which read spans, give each sub-sentence and sentence the label that is true."""
    rows = {row["question"]: row for row in load_examples(folder / "train.json")}
    splitter = make_splitter("sentencizer")
    seen = set()
    for row in load_feedback(folder / "train.json", folder / "train_feedback.json"):
        answer = row.answers[0]
        found = judge_row(rows[row.question], answer)
        parts = subsentences([answer], splitter)[0]
        whole = sentences([answer], splitter)[0]
        if all(one.irrelevance != oracle.INCOHERENT for one in found.units):
            assert len(parts) == len(found.units)
            wanted = [NF_ERR if one.irrelevance else NO_ERR for one in found.units]
            assert relevance_labels(answer, parts, row.errors) == wanted
            seen |= set(wanted)
        labels = factuality_labels(answer, whole, row.errors)
        for (start, end), label in zip(whole, labels, strict=True):
            inside = [one for one in found.units if start <= one.unit.start < end]
            false = any(one.falsehood for one in inside)
            assert (label == F_ERR) == false
            seen.add(label)
        assert len(row.missing) == len(found.missing)
        for gap, part in zip(row.missing, found.missing, strict=True):
            page = rows[row.question]["passages"][gap["passage_id"]]
            sentence = page["content"].split(". ")[gap["sentence_id"][0]]
            assert part.answered_by(read(sentence, part.focus)[0].fact)
        if row.corrected:
            assert judge_row(rows[row.question], row.corrected).total == 1
    assert seen == {F_ERR, NF_ERR, NO_ERR, -100}


def test_preferences_and_pairs_follow_the_true_quality(folder):
    rows = {row["question"]: row for row in load_examples(folder / "train.json")}
    splitter, pairs = make_splitter("sentencizer"), 0
    for row in load_feedback(folder / "train.json", folder / "train_feedback.json"):
        truth = rows[row.question]
        totals = [judge_row(truth, answer).total for answer in row.answers]
        for verdict, (a, b) in zip(row.preference, PAIRS, strict=True):
            assert (verdict == 1, verdict == 2) == (totals[a] > totals[b], totals[a] < totals[b])
        for pair in preference_pairs(row):
            assert judge_row(truth, pair.chosen).total > judge_row(truth, pair.rejected).total
        for pair in completeness_pairs(row, splitter):
            chosen, rejected = judge_row(truth, pair.chosen), judge_row(truth, pair.rejected)
            assert chosen.completeness > rejected.completeness
            pairs += 1
    assert pairs > 20


def test_noisy_references_have_the_errors_they_should(folder):
    rows = load_examples(folder / "train.json")
    noisy = [json.loads(line) for line in (folder / "train_noisy.json").read_text().splitlines()]
    found = [judge_row(row, other["answer"][0]) for row, other in zip(rows, noisy, strict=True)]
    statements = [one for each in found for one in each.units]
    assert not [one for one in statements if one.irrelevance == oracle.INCOHERENT]
    assert fmean(any(one.irrelevance == oracle.IRRELEVANT for one in each.units) for each in found) == pytest.approx(
        data.NOISE.irrelevant, abs=0.12
    )
    asked = [one for one in statements if one.irrelevance is None]
    assert fmean(one.falsehood is not None for one in asked) == pytest.approx(data.NOISE.false, abs=0.08)
    assert fmean(bool(each.missing) for each in found) == pytest.approx(data.NOISE.missing, abs=0.12)


def test_a_seed_gives_the_same_rows_and_another_one_others():
    assert data.make_rows("dev", 5, 1) == data.make_rows("dev", 5, 1)
    assert data.make_rows("dev", 5, 1) != data.make_rows("dev", 5, 2)


def test_false_statements_are_false():
    rng = random.Random(0)
    for row in data.make_rows("train", 300, 3):
        facts = [unpack_fact(fact) for fact in row["facts"]]
        for part in map(unpack_ask, row["asks"]):
            fact = data.falsify(data.the_answer(part, facts), part.focus, facts, names("train"), rng)
            found = oracle.judge(" ".join(data.compose([(fact, part.focus)], rng)), facts, [part])
            assert (found.relevance, found.factuality, found.completeness) == (1, 0, 1)


def test_bad_input_is_one_line(folder, capsys):
    for argv, what in (
        (["--save_dir", str(folder)], "exists"),
        (["--save_dir", str(folder) + "2", "--dev", "10", "--dev_feedback", "20"], "--dev_feedback"),
    ):
        with pytest.raises(SystemExit) as stop:
            data.main(argv)
        assert stop.value.code == 2
        assert what in capsys.readouterr().err
