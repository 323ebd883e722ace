"""Answers to a file of prompts, scored: order, what stands for a group, samples. A policy that looks its answer up."""

from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator
from transformers import AutoTokenizer

from alarm import Aspect, Task
from alarm.common.errors import ServiceError
from alarm.rewards import RewardRecipe
from alarm.scoring import FunctionHolistic, Scorer
from alarm.training.evaluate import evaluate
from alarm.training.rollout import encode_prompts
from helpers import CHECKPOINTS

# the holistic score is the length of the prompt; the aspect counts spaces
TASK = Task(
    "t",
    prompt=lambda row: row["text"],
    holistic=lambda prompts, answers, rows: [float(len(row["text"])) for row in rows],
    aspects=[Aspect("spaces", lambda prompts, answers, rows: [float(answer.count(" ")) for answer in answers])],
)
ROWS = [{"text": text} for text in ("cc", "a", "dddd", "bbb", "a")]


@pytest.fixture
def world(fresh_accelerate):
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINTS / "tiny-t5")
    prompts, _ = encode_prompts(tokenizer, ROWS, TASK, 16)
    aspects = {"spaces": TASK.aspect("spaces").load(None)}
    batches = []

    def generate(queries):
        batches.append([len(query) for query in queries])
        return [torch.tensor([20, 30, 40, 1]) for _ in queries]

    def run(recipe: RewardRecipe, batch_size: int = 2, **settings) -> list[dict]:
        batches.clear()
        scorer = Scorer(FunctionHolistic(TASK), aspects, TASK, tokenizer)
        return evaluate(prompts, generate, tokenizer, scorer, recipe, Accelerator(), batch_size, "test", **settings)

    run.batches = batches
    return run


def recipe(kind: str = "weighted_sum", **changes) -> RewardRecipe:
    return RewardRecipe(kind, 0.0, 1.0, {"spaces": 2.0}, **changes)


def test_records_are_sorted_by_query_and_do_not_depend_on_the_batches(world):
    found = world(recipe())
    assert [(record["query"], record["index"]) for record in found] == [
        ("a", 1), ("a", 4), ("bbb", 3), ("cc", 0), ("dddd", 2),
    ]  # fmt: skip
    assert world.batches[0][0] == max(map(max, world.batches))  # the longest first
    assert world(recipe(), batch_size=5) == found and len(world.batches) == 1


def test_a_record_holds_the_metrics_and_the_whole_reward(world):
    (first, *_) = world(recipe(holistic_mean=0.5, holistic_std=0.25))
    assert first["holistic_reward"] == (1 - 0.5) / 0.25 and first["response_length"] == 4
    assert first["total_reward"] == pytest.approx(2.0 + 2 * first["spaces"])


@pytest.mark.parametrize(("kind", "instead"), [("decoupled", "weighted_sum"), ("stratified", "hierarchical")])
def test_what_compares_answers_is_replaced(world, kind, instead):
    assert world(recipe(kind)) == world(recipe(instead))


def test_one_level_takes_the_place_of_a_groups_mean(world):
    """Not the mean of the file, by which every run would have the same scores."""
    found = world(recipe("holistic_only", baseline="group", level=3.0))
    assert [record["holistic_reward"] for record in found] == [-2.0, -2.0, 0.0, -1.0, 1.0]


def test_several_samples_stand_together_with_their_parts(world):
    found = world(recipe(baseline="group", level=1.0), samples=3)
    assert [(record["index"], record["sample"]) for record in found[:6]] == [
        (1, 0),
        (1, 1),
        (1, 2),
        (4, 0),
        (4, 1),
        (4, 2),
    ]
    assert len(found) == 15 and "total_reward" not in found[0]
    assert found[0]["raw_holistic"] == 1.0 and found[0]["holistic_reward"] == 0.0
    (part,) = found[0]["aspects"].values()
    assert part == {"total": found[0]["spaces"], "values": [found[0]["spaces"]], "best": 0.0}


def test_each_batch_is_seeded_by_its_number(world):
    seen = []
    drawn = torch.randint
    world(recipe(), sampling_seed=7)
    seen.append(drawn(1000, (1,)).item())
    world(recipe(), sampling_seed=7)
    assert drawn(1000, (1,)).item() == seen[0]  # after the last batch the state is that of its seed


def test_a_service_that_fails_ends_the_evaluation(world, monkeypatch):
    def down(rollout):
        raise ServiceError("the server is down")

    monkeypatch.setattr(FunctionHolistic, "__call__", lambda self, rollout: down(rollout))
    with pytest.raises(ServiceError, match="down"):
        world(recipe())
