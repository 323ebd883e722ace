"""Preferences from the truth, with a known share turned round; the task file that gives the truth."""

from __future__ import annotations

import json
import random

import pytest

from alarm.tasks.find import find_task
from alarm.tasks.preferences import load_preferences
from helpers import ROOT
from miniature import preferences
from miniature.qa import data
from miniature.qa.oracle import judge_row
from miniature.qa.world import names

TASK_FILE = ROOT / "miniature" / "qa" / "task.py"


@pytest.fixture(scope="module")
def samples():
    rng = random.Random(0)
    rows = data.make_rows("train", 60, 0)
    return [(row, [data.make_answer(row, data.FEEDBACK_NOISE, names("train"), rng) for _ in range(4)]) for row in rows]


def test_the_task_has_the_papers_aspects_and_the_truth_that_is_not_paid(samples):
    task = find_task(str(TASK_FILE))
    assert [aspect.name for aspect in task.aspects[:3]] == ["relevance", "factuality", "completeness"]
    row, answers = samples[0]
    for name, part in (("oracle", "total"), ("oracle_relevance", "relevance"), ("oracle_factuality", "factuality")):
        aspect = task.aspect(name)
        assert aspect.weight == 0
        found = aspect.score([task.prompt(row)] * 4, answers, [row] * 4)
        assert found == [getattr(judge_row(row, answer), part) for answer in answers]


def test_pairs_follow_the_truth_but_for_the_share_that_is_turned_round(samples):
    task = find_task(str(TASK_FILE))
    rows = {row["text"]: row for row, _ in samples}
    for flips in (0.0, 0.25):
        made = preferences.make_pairs(task, samples, 3, random.Random(0))
        pairs = preferences.flipped(made, flips, random.Random(0))
        gains = [
            judge_row(rows[pair["prompt"]], pair["chosen"]).total
            - judge_row(rows[pair["prompt"]], pair["rejected"]).total
            for pair in pairs
        ]
        assert len(pairs) > 60
        assert 0 not in gains
        assert sum(gain < 0 for gain in gains) == round(flips * len(pairs))
        assert max(sum(pair["prompt"] == prompt for pair in pairs) for prompt in rows) <= 3


def test_the_command_writes_what_train_holistic_reads(samples, tmp_path, capsys):
    file, target = tmp_path / "samples.jsonl", tmp_path / "pairs"
    file.write_text("".join(json.dumps({"row": row, "answers": answers}) + "\n" for row, answers in samples))
    command = ["--task", str(TASK_FILE), "--samples", str(file), "--flips", "0", "0.1", "--save_dir", str(target)]
    preferences.main(command)
    right, pairs = (load_preferences(target / f"{percent}.jsonl") for percent in (0, 10))
    assert f"{len(pairs)} pairs" in capsys.readouterr().out
    assert sum(one != other for one, other in zip(right, pairs, strict=True)) == round(0.1 * len(pairs))
    with pytest.raises(SystemExit) as stop:
        preferences.main(command)
    assert stop.value.code == 2
    assert str(target) in capsys.readouterr().err


def test_a_judge_with_a_length_bias_prefers_longer_answers(samples):
    task = find_task(str(TASK_FILE))
    shares = [
        preferences.longer_chosen(preferences.make_pairs(task, samples, 3, random.Random(0), bias))
        for bias in (-1.0, 0.0, 1.0)
    ]
    assert shares[0] == 0
    assert 0 < shares[1] < 1
    assert shares[2] == 1


def test_the_share_of_longer_choices_leaves_out_equal_lengths():
    pair = {"prompt": "", "chosen": "a b", "rejected": "a"}
    turned = {"prompt": "", "chosen": "a", "rejected": "a b"}
    equal = {"prompt": "", "chosen": "a", "rejected": "b"}
    assert preferences.longer_chosen([pair, pair, turned, equal]) == pytest.approx(2 / 3)
