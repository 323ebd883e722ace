"""Labels, pairs and metrics of reward-model training, by hand and on real feedback rows."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alarm.errors import UserError
from alarm.reward_training import (
    IGNORED,
    PAIRS,
    auroc,
    bradley_terry_loss,
    classification_metrics,
    completeness_pairs,
    encode_answers,
    f1,
    factuality_labels,
    label_answers,
    load_feedback,
    pair_metrics,
    preference_pairs,
    relevance_labels,
)
from alarm.spans import make_splitter, subsentence_spans
from alarm.tasks.long_form_qa import F_ERR, NF_ERR, NO_ERR
from helpers import ROOT, load_script

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


# --- what the model reads is what it will be given -------------------------------------------------------------------


@pytest.mark.parametrize("aspect", ["relevance", "factuality"])
def test_training_reads_the_input_that_scoring_builds(aspect, rows, splitter, monkeypatch):
    from alarm.tasks.long_form_qa import MODEL_FOLDERS, UnitClassifier
    from helpers import CHECKPOINTS

    judge = UnitClassifier(aspect, _linked(CHECKPOINTS, MODEL_FOLDERS[aspect]), "cpu", "float32", 4)
    answers = label_answers(aspect, rows[:6], splitter)
    items, _ = encode_answers(judge.tokenizer, answers, judge.max_length)
    seen = []

    def logits(rows, global_first):
        seen.extend(rows)
        return [torch.arange(len(row))[:, None].expand(-1, 3) for row in rows]

    monkeypatch.setattr(judge, "logits", logits)
    read_at = judge([answer.context for answer in answers], [answer.units for answer in answers])
    assert [item["input_ids"] for item in items] == seen
    for item, answer, positions in zip(items, answers, read_at, strict=True):
        labelled = [(i, label) for i, label in enumerate(item["labels"]) if label != IGNORED]
        # separators beyond what the model takes are not read
        expected = zip(positions[:, 0].tolist(), answer.labels, strict=False)
        assert labelled == [(i, label) for i, label in expected if label != IGNORED]


def _linked(checkpoints, name):
    """The fixtures are called tiny-rel_rm, ...; the loader looks for rel_rm."""
    import tempfile
    from pathlib import Path

    folder = Path(tempfile.mkdtemp())
    (folder / name).symlink_to(checkpoints / f"tiny-{name}")
    return folder


# --- metrics ---------------------------------------------------------------------------------------------------------


def test_auroc_by_hand():
    # positives .9 and .4, negatives .5 and .4: wins 1 + 1 + 0 + a half, of 4
    assert auroc([0.9, 0.4, 0.5, 0.4], [True, True, False, False]) == 2.5 / 4
    assert auroc([1.0, 2.0], [True, True]) is None


@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=30))
def test_auroc_is_the_share_of_won_pairs(points):
    scores, flags = [float(s) for s, _ in points], [f for _, f in points]
    wins = [
        1.0 if a > b else 0.5 if a == b else 0.0
        for a, f in zip(scores, flags, strict=True)
        for b, g in zip(scores, flags, strict=True)
        if f and not g
    ]
    assert auroc(scores, flags) == (pytest.approx(sum(wins) / len(wins)) if wins else None)


def test_classification_metrics_by_hand():
    # said: error, error, none, none; true: error, none, none, none
    found = classification_metrics([1.0, 0.5, -1.0, 0.0], [True, False, False, False])
    assert found["accuracy"] == 0.75 and found["baseline_accuracy"] == 0.75
    assert found["f1_error"] == pytest.approx(2 / 3) and found["f1_no_error"] == pytest.approx(0.8)
    assert found["auroc"] == 1.0
    assert f1([False], [False]) == 0.0


def test_pair_metrics_by_hand(rows):
    pairs = preference_pairs(rows[0])[:2]
    found = pair_metrics(pairs, [1.0, 0.0], [0.0, 0.0])
    assert found["pairwise_accuracy"] == 0.75  # a win and a tie


def test_bradley_terry_loss_by_hand():
    # -log sigmoid(2) and -log sigmoid(-1)
    expected = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(1))) / 2
    assert bradley_terry_loss(torch.tensor([3.0, 0.0]), torch.tensor([1.0, 1.0])).item() == pytest.approx(expected)


# --- bad input -------------------------------------------------------------------------------------------------------


def written(folder, name, rows):
    path = folder / name
    path.write_text(json.dumps(rows))
    return path


def test_bad_feedback_is_named(tmp_path):
    questions = json.loads((DATA / "dev.json").read_text())[:2]
    feedback = json.loads((DATA / "dev_feedback.json").read_text())[:2]
    good = written(tmp_path, "q.json", questions)
    with pytest.raises(UserError, match="has no question"):
        load_feedback(written(tmp_path, "one.json", questions[:1]), written(tmp_path, "f.json", feedback))
    with pytest.raises(UserError, match="asks a question twice"):
        load_feedback(written(tmp_path, "twice.json", questions[:1] * 2), written(tmp_path, "f.json", feedback))
    with pytest.raises(UserError, match="six values"):
        load_feedback(good, written(tmp_path, "f.json", [{**feedback[0], "preference": [1, 2]}]))
    outside = {"error type": "Irrelevant", "start": 0, "end": 10**6}
    broken = {**feedback[0], "feedback": {**feedback[0]["feedback"], "errors": [outside]}}
    with pytest.raises(UserError, match=r"row 1.*no error span"):
        load_feedback(good, written(tmp_path, "f.json", [broken]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--train_file": "absent.json"}, "absent.json does not exist"),
        ({"--train_file": "empty.json"}, "holds no rows"),
        ({"--save_dir": "taken"}, "already holds something"),
        ({"--model_path": "./no/model"}, "no folder ./no/model"),
        ({"--train_feedback_file": "other.json"}, "has no question"),
        ({"--splitter": "no_pipeline"}, "no_pipeline is not installed"),
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
    assert stop.value.code == 2 and "invalid choice: 'style'" in capsys.readouterr().err
