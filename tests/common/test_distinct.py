"""One (prompt, answer), one score: exactly within a call, and up to rounding whatever stands beside it in a batch."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from alarm.common.distinct import distinct
from alarm.models.classifiers import TextScorer, UnitClassifier
from alarm.models.holistic import HolisticModel
from alarm.tasks.mt.spec import TASK
from alarm.types import Rollout
from helpers import CHECKPOINTS, Aspects

TEXTS = ["", "No.", "Yes, it is.", "The river is long. Nobody knows why.", "one two three four five six seven " * 6]
# largest difference of a score of about 1, alone and in a batch
TOLERANCE = {"float32": 1e-5, "bfloat16": 2**-5}


@given(st.lists(st.integers(0, 5)))
def test_distinct(rows):
    found, places = distinct(rows)
    assert [found[place] for place in places] == rows
    assert found == list(dict.fromkeys(rows))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for name in ("fact_rm", "comp_rm"):
        shutil.copytree(CHECKPOINTS / f"tiny-{name}", folder / name, copy_function=shutil.copyfile)
    return folder


@pytest.fixture(scope="module", params=list(TOLERANCE))
def scorers(request, folder):
    """Three functions: answers -> a score of each; how many inputs each has cut; and the tolerance."""
    dtype = getattr(torch, request.param)
    holistic = HolisticModel.load(CHECKPOINTS / "tiny-ultrarm", dtype=dtype)
    texts = TextScorer(folder / "comp_rm", "completeness", "cpu", dtype, 3)
    units = UnitClassifier(folder / "fact_rm", "factuality", "cpu", dtype, 3)
    scores = {
        "holistic": lambda answers: holistic.score(["Why?"] * len(answers), answers, 60, 3).tolist(),
        "text": texts,
        "unit": lambda answers: [
            logits.tolist() for logits in units(["Why?"] * len(answers), [[a, a] for a in answers])
        ],
    }
    return scores, holistic, TOLERANCE[request.param]


@given(chosen=st.lists(st.sampled_from(TEXTS), min_size=1, max_size=9))
@settings(max_examples=15, deadline=None)
def test_a_score_belongs_to_the_text(scorers, chosen):
    scores, _, tolerance = scorers
    for name, score in scores.items():
        together = score(chosen)
        by_text = dict(zip(chosen, together, strict=True))
        assert together == [by_text[text] for text in chosen]  # bit for bit
        for text, found in by_text.items():
            alone, found = (torch.tensor(value) for value in (score([text])[0], found))
            assert torch.allclose(alone, found, rtol=tolerance, atol=tolerance), (name, text)


def test_equal_inputs_are_computed_once_and_counted_each(scorers):
    _, model, _ = scorers
    rows = []
    hook = model.model.register_forward_pre_hook(
        lambda _, __, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    model.truncated = 0
    scores = model.score(["Why?"] * 7, [TEXTS[4]] * 5 + [TEXTS[1]] * 2, 40, 2)
    hook.remove()
    assert rows == [2]
    assert model.truncated == 5
    assert len(set(scores.tolist())) == 2
    assert model.score([], [], 40, 2).shape == (0,)


def test_translations_of_one_text_have_one_confidence():
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINTS / "small-t5-tokenizer")
    answers = ["the house is blue", "la casa", "the house is blue"]
    rollout = Rollout(
        query_ids=[torch.zeros(1, dtype=torch.long)] * 3,
        response_ids=[torch.tensor(ids) for ids in tokenizer(answers).input_ids],
        queries=["q"] * 3,
        responses=answers,
        examples=[{}] * 3,
        too_short=torch.zeros(3, dtype=torch.bool),
    )
    values = Aspects(TASK, tokenizer, ["confidence"])(rollout)["confidence"].metrics["language_confidence"]
    assert values[0] == values[2] > values[1]
