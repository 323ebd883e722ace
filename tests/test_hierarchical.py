"""The reward without a trainer, by hand."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoTokenizer

from alarm import Aspect, HierarchicalReward
from alarm.common.errors import UserError
from helpers import CHECKPOINTS


def shouting(prompts, answers, rows):
    spans = [[(answer.index(word), answer.index(word) + len(word)) for word in answer.split()] for answer in answers]
    return [
        [(start, end, -1.0) for start, end in of if answer[start:end].isupper()]
        for answer, of in zip(answers, spans, strict=True)
    ]


def length(prompts, answers, rows):
    return [float(len(answer.split())) for answer in answers]


def holistic(prompts, answers, rows):
    return [row["good"] for row in rows]


ASPECTS = [Aspect("shouting", shouting, pay="tokens"), Aspect("length", length)]
ANSWERS = ["it is SO loud", "I see", "OH NO"]
ROWS = [{"good": 3.0}, {"good": 0.0}, {"good": 1.0}]


def reward(**changes) -> HierarchicalReward:
    values = {"weights": {"shouting": 2.0}, "holistic_weight": 10, "holistic_mean": 1.0, "holistic_std": 2.0}
    return HierarchicalReward(holistic, ASPECTS, **values | changes)


def test_a_hierarchical_reward_by_hand():
    parts = reward().score(["q"] * 3, ANSWERS, ROWS)
    assert parts.holistic.tolist() == [1.0, -0.5, 0.0]
    assert parts.gate.tolist() == [1.0, 0.0, 1.0]
    assert parts.aspects == {"shouting": [-1.0, -1.0, -2.0], "length": [4.0, 2.0, 2.0]}
    assert parts.total.tolist() == [10 - 2, -5.0, 0 - 4]  # the second answer shouts too, behind a closed gate
    assert parts.tokens is None


def test_tokens_add_up_to_the_total():
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINTS / "small-t5-tokenizer")
    ids = [torch.tensor(row) for row in tokenizer(ANSWERS).input_ids]
    parts = reward().score(["q"] * 3, ANSWERS, ROWS, tokenizer, ids)
    assert [len(row) for row in parts.tokens] == [len(row) for row in ids]
    assert [row.double().sum().item() for row in parts.tokens] == parts.total.tolist()
    assert [row[-1].item() for row in parts.tokens] == [10.0, -5.0, 0.0]  # the holistic part


def test_other_combinations():
    flat = reward(combine="weighted_sum").score(["q"] * 3, ANSWERS, ROWS)
    assert flat.total.tolist() == [8.0, -7.0, -4.0]
    alone = reward(combine="aspect_only", weights={"length": 1.0}).score(["q"] * 3, ANSWERS, ROWS)
    assert alone.total.tolist() == [4.0, 2.0, 2.0]


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: reward(combine="sum"), "'sum'"),
        (lambda: reward(weights={"shouts": 1.0}), "'shouts'.*shouting, length"),
        (lambda: reward().score(["q"], ANSWERS, ROWS), "1 prompts, 3 answers"),
        (lambda: reward().score(["q"] * 3, ANSWERS, ROWS, tokenizer="t5"), "response_ids"),
    ],
)
def test_mistakes_are_named(make, named):
    with pytest.raises(UserError, match=named):
        make()
