"""Labels and pairs of reward-model training, by hand and on real feedback rows, and what the scripts refuse."""

from __future__ import annotations

import argparse
import itertools
import json
import math
from dataclasses import replace

import pytest
import torch

from alarm.common.errors import UserError
from alarm.common.texts import without_shared
from alarm.learning.fit import set_aside
from alarm.learning.pairs import bradley_terry_loss, encode_training_pairs
from alarm.learning.reward_models import (
    balanced_weights,
    encode_answers,
    label_answers,
    train_aspect,
    unit_feedback,
    unit_loss,
    unit_margins,
)
from alarm.models.classifiers import F_ERR, NF_ERR, NO_ERR, UnitClassifier
from alarm.tasks.qa.feedback import (
    IGNORED,
    PAIRS,
    completeness_pairs,
    factuality_labels,
    load_feedback,
    preference_pairs,
    relevance_labels,
)
from alarm.tasks.sentences import make_splitter, subsentence_spans
from helpers import CHECKPOINTS, ROOT, load_script

DATA = ROOT / "quickstart" / "data" / "qa"


@pytest.fixture(scope="module")
def rows():
    return load_feedback(DATA / "train.json", DATA / "train_feedback.json")


@pytest.fixture(scope="module")
def splitter():
    return make_splitter("sentencizer")


def error(kind: str, start: int, end: int) -> dict:
    return {"error type": kind, "start": start, "end": end}


# --- labels ----------------------------------------------------------------------------------------------------------


def test_labels_of_an_answer_that_is_irrelevant_throughout(rows, splitter):
    # "When does the new bunk'd come out?": three sentences, marked 0-62 Irrelevant, 63-146 and 147-230 Redundant
    row = rows[0]
    sentences = splitter([row.answers[0]])[0]
    assert sentences == [(0, 62), (63, 146), (147, 230)]
    assert relevance_labels(row.answers[0], subsentence_spans(row.answers[0], sentences), row.errors) == [NF_ERR] * 3
    # nobody checked the facts of what is irrelevant
    assert factuality_labels(row.answers[0], sentences, row.errors) == [IGNORED] * 3


def test_labels_of_an_answer_with_errors_of_both_kinds(rows, splitter):
    # "Premier league record for most wins in a row?": one sentence of 22 clauses; Wrong-Grounding on "2018/19" in the
    # first, Irrelevant on the end of the first unit and on everything from "most away wins in a season" on
    row = rows[2]
    text = row.answers[0]
    sentences = splitter([text])[0]
    assert len(sentences) == 1
    assert factuality_labels(text, sentences, row.errors) == [F_ERR]
    units = subsentence_spans(text, sentences)
    labels = dict(zip([text[a:b] for a, b in units], relevance_labels(text, units, row.errors), strict=True))
    # 5 words are not left before "season,", so the first cut comes after "during the season,"
    first = "In the 2018/19 season, Manchester City set a number of Premier League records during the season,"
    assert labels[first] == NF_ERR  # 53 of its 96 characters are marked
    assert labels["including: most wins in a row in a season,"] == NO_ERR
    assert labels["most away wins in a season,"] == NF_ERR


def test_a_short_irrelevant_span_is_dropped_and_half_cover_counts():
    text = "one two three four five six seven eight"
    unit = [(0, len(text))]
    assert relevance_labels(text, unit, (error("Irrelevant", 0, 18),)) == [NO_ERR]  # 4 words
    assert relevance_labels(text, unit, (error("Irrelevant", 0, 23),)) == [NF_ERR]  # 5 words, 23 of 39 characters
    assert relevance_labels(text, unit, (error("Unverifiable", 0, 39),)) == [NO_ERR]  # another kind
    # two overlapping spans are not counted twice: 19 of 39 characters
    long = text + " " + "x" * 40
    twice = (error("Irrelevant", 0, 23), error("Redundant", 0, 23))
    assert relevance_labels(long, [(0, len(long))], twice) == [NO_ERR]


def test_a_sentence_that_touches_a_factual_error_is_wrong_whatever_else_it_holds():
    text = "Aa bb. Cc dd. Ee ff."
    units = [(0, 6), (7, 13), (14, 20)]
    errors = (error("Irrelevant", 0, 13), error("Wrong-Grounding", 9, 11))
    assert factuality_labels(text, units, errors) == [IGNORED, F_ERR, NO_ERR]


# --- pairs -----------------------------------------------------------------------------------------------------------


def test_preferences_of_a_real_row(rows):
    row = rows[0]
    assert row.preference == (1, 1, 2, 0, 2, 2)
    found = [(row.answers.index(p.chosen), row.answers.index(p.rejected)) for p in preference_pairs(row)]
    # 1 beats 2 and 3, 4 beats all, 2 and 3 tie: 4 > 1 > 2 = 3
    assert found == [(0, 1), (0, 2), (3, 0), (3, 1), (3, 2)]


def test_the_pair_order_makes_preferences_transitive_and_agree_with_the_reference():
    rows = json.loads((DATA / "train_feedback.json").read_text())

    def violations(order) -> int:
        bad = 0
        for row in rows:
            better = {}
            for (a, b), verdict in zip(order, row["preference"], strict=True):
                better[a, b] = {0: 0, 1: 1, 2: -1}[verdict]
                better[b, a] = -better[a, b]
            for a, b, c in itertools.permutations(range(4), 3):
                upward = better[a, b] >= 0 and better[b, c] >= 0 and better[a, b] + better[b, c] > 0
                bad += upward and better[a, c] <= 0
        return bad

    swapped = list(PAIRS)
    swapped[2], swapped[3] = swapped[3], swapped[2]
    assert violations(PAIRS) < 40 < 5 * 40 < violations(swapped)

    def overlap(answer: str, gold: str) -> float:
        a, g = set(answer.lower().split()), set(gold.lower().split())
        return 2 * len(a & g) / (len(a) + len(g))

    agree = []
    for row in rows:
        scores = [overlap(row[f"prediction {k}"], row["gold"]) for k in (1, 2, 3, 4)]
        for (a, b), verdict in zip(PAIRS, row["preference"], strict=True):
            if verdict and scores[a] != scores[b]:
                agree.append((scores[a] > scores[b]) == (verdict == 1))
    assert sum(agree) / len(agree) > 0.55


def test_completeness_pairs_are_ordered_by_covered_information(rows, splitter):
    row = next(row for row in rows if row.missing and len(splitter([row.corrected])[0]) > 1)
    added, left_out = completeness_pairs(row, splitter)
    assert (added.kind, added.chosen, added.rejected) == ("added", row.corrected, row.answers[0].strip())
    assert left_out.chosen == row.corrected
    assert set(left_out.rejected.split()) <= set(row.corrected.split())
    assert len(left_out.rejected) < len(row.corrected)
    assert [p.kind for p in completeness_pairs(replace(row, missing=()), splitter)] == ["left out"]
    assert completeness_pairs(replace(row, corrected=""), splitter) == []
    unchanged = completeness_pairs(replace(row, corrected=row.answers[0].strip()), splitter)
    assert [p.kind for p in unchanged] in ([], ["left out"])


# --- what the model reads is what it will be given -------------------------------------------------------------------


@pytest.mark.parametrize(("aspect", "folder"), [("relevance", "tiny-rel_rm"), ("factuality", "tiny-fact_rm")])
def test_training_reads_the_input_that_scoring_builds(aspect, folder, rows, splitter):
    """The same model gives the same logits at the same units, answer by answer."""
    judge = UnitClassifier(CHECKPOINTS / folder, aspect, "cpu", torch.float32, 4)
    answers = label_answers(aspect, rows[:6], splitter)
    items, _ = encode_answers(judge.tokenizer, answers, judge.max_length)
    logits = judge([answer.context for answer in answers], [answer.units for answer in answers])
    error = unit_feedback(aspect).scores.error
    for item, answer, found in zip(items, answers, logits, strict=True):
        margins, is_error, _ = unit_margins(judge.model, judge.tokenizer.pad_token_id, [item], error, 1)
        # separators beyond what the model takes are not read
        read = [(row, label) for row, label in zip(found, answer.labels, strict=False) if label != IGNORED]
        assert margins == pytest.approx([(row[error] - row[NO_ERR]).item() for row, _ in read], abs=1e-5)
        assert is_error == [label == error for _, label in read] and margins


def test_an_aspect_without_labelled_units_is_named_with_those_that_have_some(rows, splitter):
    for name in ("completeness", "relevanse"):
        with pytest.raises(UserError, match=f"'{name}'.*relevance, factuality"):
            label_answers(name, rows[:1], splitter)
    with pytest.raises(UserError, match=r"'relevanse'.*relevance, factuality, completeness"):
        train_aspect("relevanse", rows[:1], rows[1:2], splitter, argparse.Namespace())


# --- losses and the choice of the epoch ------------------------------------------------------------------------------


def test_bradley_terry_loss_by_hand():
    # -log sigmoid(2) and -log sigmoid(-1)
    expected = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(1))) / 2
    found = bradley_terry_loss(torch.tensor([3.0, 0.0]), torch.tensor([1.0, 1.0]))
    assert found.shape == (2,) and found.mean().item() == pytest.approx(expected)


def test_balanced_weights_let_both_classes_count_the_same():
    items = [{"labels": [IGNORED, F_ERR, NO_ERR]}, {"labels": [NO_ERR, NO_ERR]}]
    weights = balanced_weights(items)
    assert weights == [4 / (2 * 1), 0.0, 4 / (2 * 3)]

    class Fixed(torch.nn.Module):
        def forward(self, input_ids, attention_mask):
            # the error unit gets its label with probability p = e / (e + 2), the three others with 1 / (e + 2) each
            logits = torch.tensor([[1.0, 0.0, 0.0]]).expand(*input_ids.shape, 3)
            return argparse.Namespace(logits=logits)

    batch = {
        "input_ids": torch.zeros(2, 3, dtype=torch.long),
        "attention_mask": torch.ones(2, 3),
        "labels": torch.tensor([[IGNORED, F_ERR, NO_ERR], [NO_ERR, NO_ERR, IGNORED]]),
    }
    error, none = math.log(math.e + 2) - 1, math.log(math.e + 2)
    plain, balanced = unit_loss(None)(Fixed(), batch), unit_loss(weights)(Fixed(), batch)
    assert plain.weights.tolist() == [2, 2]
    assert (plain.sums.sum() / plain.weights.sum()).item() == pytest.approx((error + 3 * none) / 4)
    assert (balanced.sums.sum() / balanced.weights.sum()).item() == pytest.approx((error + none) / 2)


def test_the_epoch_is_chosen_on_whole_questions(capsys):
    items = [{"question": str(i // 3), "number": i} for i in range(30)]
    args = argparse.Namespace(selection_share=0.2, seed=1, batch_size=4, num_epochs=2.0, max_steps=None)
    train, choosing = set_aside(items, args)
    assert sorted(row["number"] for row in train + choosing) == list(range(30))
    assert len({row["question"] for row in choosing}) == 2 and len(choosing) == 6
    assert "2 of the 10 training questions" in capsys.readouterr().out
    # one epoch, or no share: nothing to choose
    for change in ({"num_epochs": 1.0}, {"max_steps": 8}, {"selection_share": 0.0}):
        assert set_aside(items, argparse.Namespace(**(vars(args) | change))) == (items, [])


def test_pairs_that_read_the_same_teach_nothing(rows, capsys):
    pairs = preference_pairs(rows[0])

    def first_words(count):
        return lambda prompts, answers: [answer.split()[:count] for answer in answers]

    whole = encode_training_pairs(first_words(1000), pairs, 1000)
    assert [item["question"] for item in whole] == [rows[0].question] * len(pairs)
    with pytest.raises(UserError, match=rf"{len(pairs)} training pairs.*--max_length"):
        encode_training_pairs(first_words(0), pairs, 0)
    same = replace(pairs[0], rejected=pairs[0].chosen)
    capsys.readouterr()
    assert len(encode_training_pairs(first_words(1000), [*pairs, same], 1000)) == len(pairs)
    assert "1 training pairs" in capsys.readouterr().out


# --- bad input -------------------------------------------------------------------------------------------------------


def written(folder, name, rows):
    path = folder / name
    path.write_text(json.dumps(rows))
    return path


def test_bad_feedback_is_named(tmp_path):
    questions = json.loads((DATA / "dev.json").read_text())[:2]
    feedback = json.loads((DATA / "dev_feedback.json").read_text())[:2]
    good = written(tmp_path, "q.json", questions)
    with pytest.raises(UserError, match=r"one\.json"):
        load_feedback(written(tmp_path, "one.json", questions[:1]), written(tmp_path, "f.json", feedback))
    with pytest.raises(UserError, match=r"twice\.json"):
        load_feedback(written(tmp_path, "twice.json", questions[:1] * 2), written(tmp_path, "f.json", feedback))
    with pytest.raises(UserError, match="'preference'"):
        load_feedback(good, written(tmp_path, "f.json", [{**feedback[0], "preference": [1, 2]}]))
    for part, value in (
        ("errors", [{"error type": ["Irrelevant"], "start": 0, "end": 3}]),
        ("errors", [{"error type": None, "start": 0, "end": 3}]),
        ("errors", [None]),
        ("corrected-prediction", "half \ud83d"),
        ("corrected-prediction", None),
    ):
        bad = {**feedback[0], "feedback": {**feedback[0]["feedback"], part: value}}
        with pytest.raises(UserError, match="row 1: ") as error:
            load_feedback(good, written(tmp_path, "f.json", [bad]))
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="row 1: 'prediction 2'"):
        load_feedback(good, written(tmp_path, "f.json", [{**feedback[0], "prediction 2": "\ud83d"}]))
    outside = {"error type": "Irrelevant", "start": 0, "end": 10**6}
    broken = {**feedback[0], "feedback": {**feedback[0]["feedback"], "errors": [outside]}}
    with pytest.raises(UserError, match=r"row 1: .*'prediction 1'"):
        load_feedback(good, written(tmp_path, "f.json", [broken]))
    with pytest.raises(UserError, match=r"f.json, row 3"):
        load_feedback(good, written(tmp_path, "f.json", [*feedback, feedback[0]]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"errors": None}, "'errors'"),
        ({"errors": ["0-5"]}, "0-5.*'prediction 1'"),
        ({"errors": [{"error type": "Odd", "start": 0, "end": 1}]}, "Odd.*'prediction 1'"),
        ({"missing-info": "none"}, "'missing-info'"),
        ({"corrected-prediction": None}, "'corrected-prediction'"),
        ({"preference": [1, 2, 0, 0, 1, [2]]}, "'preference'"),
        ({"preference": [1, 2, 0, 0, 1, True]}, "'preference'"),
    ],
)
def test_malformed_feedback_is_named_by_its_row(change, message, tmp_path):
    questions = json.loads((DATA / "dev.json").read_text())[:2]
    first, second = json.loads((DATA / "dev_feedback.json").read_text())[:2]
    for name, value in change.items():
        holder = second if name == "preference" else second["feedback"]
        holder[name] = value
    with pytest.raises(UserError, match=message) as found:
        load_feedback(written(tmp_path, "q.json", questions), written(tmp_path, "f.json", [first, second]))
    assert "f.json, row 2" in str(found.value) and "\n" not in str(found.value)


def test_what_is_held_out_is_not_trained_on(rows):
    # case and white space do not make another question
    asked = [replace(rows[1], question=f" {rows[1].question.upper()}  "), rows[3]]
    kept, shared = without_shared(rows[:3], asked, lambda row: row.question)
    assert (kept, shared) == ([rows[0], rows[2]], 1)
    with pytest.raises(UserError, match="2 questions"):
        without_shared(rows[:2], rows[:5], lambda row: row.question)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--train_file": "absent.json"}, "absent.json"),
        ({"--train_file": "empty.json"}, "empty.json"),
        ({"--save_dir": "taken"}, "--save_dir taken"),
        ({"--model_path": "./no/model"}, "./no/model"),
        ({"--train_feedback_file": "other.json"}, "other.json, row 1"),
        ({"--splitter": "no_pipeline"}, "--splitter"),
        ({}, "50 questions"),
        (
            {"--aspect": "completeness", "--class_weights": "balanced"},
            "--class_weights",
        ),
    ],
)
def test_bad_input_of_train_rm_is_one_line(change, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("mine")
    (tmp_path / "empty.json").write_text("[]")
    (tmp_path / "other.json").write_text((DATA / "test_feedback.json").read_text())
    flags = {"--aspect": "relevance", "--model_path": "model", "--save_dir": "new"}
    for split in ("train", "dev"):
        flags[f"--{split}_file"] = str(DATA / "dev.json")
        flags[f"--{split}_feedback_file"] = str(DATA / "dev_feedback.json")
    with pytest.raises(SystemExit) as stop:
        load_script("long-form-QA/train_rm.py").main([word for pair in (flags | change).items() for word in pair])
    assert stop.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and message in lines[0]
    assert (tmp_path / "taken" / "file").read_text() == "mine"


def test_an_unknown_aspect_is_refused(capsys):
    with pytest.raises(SystemExit) as stop:
        load_script("long-form-QA/train_rm.py").main(["--aspect", "style", "--save_dir", "new"])
    assert stop.value.code == 2 and "'style'" in capsys.readouterr().err
