"""The shipped sample is whole, in the published format, and its parts do not overlap."""

from __future__ import annotations

import json

import pytest

from alarm.tasks.qa.feedback import load_feedback
from helpers import ROOT

DATA = ROOT / "quickstart" / "data" / "qa"


@pytest.mark.parametrize(("split", "size"), [("train", 200), ("dev", 50), ("test", 50)])
def test_feedback_matches_its_questions(split, size):
    rows = load_feedback(DATA / f"{split}.json", DATA / f"{split}_feedback.json")
    questions = [row["question"] for row in json.loads((DATA / f"{split}.json").read_text())]
    assert [row.question for row in rows] == questions
    assert len(set(questions)) == size


def test_splits_share_no_question_and_the_sample_is_small():
    files = [DATA / f"{split}.json" for split in ("train", "dev", "test")]
    questions = [row["question"] for file in files for row in json.loads(file.read_text())]
    assert len(set(questions)) == 300
    assert sum(path.stat().st_size for path in DATA.iterdir()) < 5_000_000
