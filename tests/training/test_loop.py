"""The training loop with a trainer that trains nothing: order, log, best policy, checkpoints, stops. Milliseconds."""

from __future__ import annotations

import contextlib
import json
import math
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from transformers import AutoTokenizer

from alarm import Aspect, Task
from alarm.common.errors import ServiceError, UserError
from alarm.rewards import RewardRecipe
from alarm.scoring import FunctionHolistic, Scorer
from alarm.training.loop import Training
from alarm.training.rollout import encode_prompts
from alarm.training.run import Run
from helpers import CHECKPOINTS

ANSWER = [20, 30, 1]  # ids, EOS last


class Batches:
    """A dataloader of PPOTrainer: two prompts a batch, in order."""

    def __init__(self, prompts: list):
        self.prompts, self.batch_sampler, self.first = prompts, self, 0

    def set_epoch(self, epoch: int, start_batch: int = 0) -> None:
        self.first = start_batch

    def __len__(self) -> int:
        return len(self.prompts) // 2

    def __iter__(self):
        for batch in range(self.first, len(self)):
            yield self.prompts[2 * batch : 2 * batch + 2]


class Trainer:
    """What the loop asks of PPOTrainer. `events` tells in which order."""

    def __init__(self, prompts: list, updates: list[int] | None = None):
        self.accelerator, self.dataloader = Accelerator(), Batches(prompts)
        self.events: list[str] = []
        self.tables: list[tuple] = []  # for the tracker
        self.paid: list[list[float]] = []
        self.updates = iter(updates or [1] * 99)
        self.loaded = None

    def whole_weights(self) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext()

    def step(self, queries, responses, rewards) -> dict:
        self.events.append(f"step {[len(query) for query in queries]}")
        self.paid.append([row.sum().item() for row in rewards])
        updates = next(self.updates)
        return {"ppo/updates": updates, "ppo/skipped_nonfinite": 1 - updates, "objective/kl": 0.5}

    def log_stats(self, stats: dict) -> None:
        pass

    def log_table(self, name: str, columns: list[str], rows: list[list]) -> None:
        self.tables.append((name, columns, rows))

    def start_tracker(self, first_step: int) -> None:
        self.events.append(f"tracker from {first_step}")

    def save_pretrained(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.events.append(f"save {folder.name}")

    def save_state(self, folder: Path) -> None:
        self.events.append(f"checkpoint {folder.name}")

    def load_state(self, folder: Path) -> None:
        self.loaded = folder.name


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(CHECKPOINTS / "tiny-t5")


def training(tmp_path, tokenizer, holistic, steps=3, updates=None, answer=ANSWER, aspects=(), **flags) -> Training:
    task = Task("toy", prompt=lambda row: row["text"], aspects=aspects, holistic=holistic)
    rows = [{"text": "a " * n} for n in range(1, 7)]
    prompts, _ = encode_prompts(tokenizer, rows, task, 99)
    ppo = Trainer(prompts, updates)
    scorer = Scorer(FunctionHolistic(task), {a.name: a.load(None) for a in aspects}, task, tokenizer)
    args = {"eval_interval": 0, "eval_batch_size": 4, "checkpoint_interval": 2, "keep_checkpoints": 2}
    args |= {"rollout_interval": 0, "rollouts_per_step": 8, "max_rollouts": 99}
    args = Namespace(**args | {"samples_per_prompt": 1, "max_generated_len": 16, "batch_size": 2} | flags)
    recipe = RewardRecipe("weighted_sum", 0.0, 1.0, {aspect.name: 1.0 for aspect in aspects})
    given = lambda queries: [torch.tensor(answer) for _ in queries]  # noqa: E731
    run = Run(tmp_path / "run", {"resume_anyway": False})
    run.check(resume=True, models={})
    return Training(ppo, run, scorer, recipe, tokenizer, given, given, prompts[:1], steps, args, {})


def log_rows(tmp_path) -> list[dict]:
    return [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]


def ones(prompts, answers, rows):
    return [1.0] * len(answers)


def test_the_order_of_a_run(tmp_path, tokenizer, fresh_accelerate):
    one = training(tmp_path, tokenizer, ones, eval_interval=2)
    one.train()
    lengths = [len(prompt.ids) for prompt in one.ppo.dataloader.prompts]
    steps = [f"step {lengths[2 * k : 2 * k + 2]}" for k in range(3)]
    assert one.ppo.events == [
        "tracker from 0",
        "save best",  # the dev file before the first step
        "checkpoint .0",
        steps[0],
        steps[1],
        "checkpoint .2",
        steps[2],
        "checkpoint .3",
        "save policy",
    ]
    assert [("dev" if "dev" in row else "train", row["step"]) for row in log_rows(tmp_path)] == [
        ("dev", 0), ("train", 1), ("train", 2), ("dev", 2), ("train", 3), ("dev", 3),
    ]  # fmt: skip
    assert {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()} == {"2", "3"}


def test_a_run_goes_on_after_its_last_checkpoint(tmp_path, tokenizer, fresh_accelerate):
    training(tmp_path, tokenizer, ones, steps=2).train()
    again = training(tmp_path, tokenizer, ones, steps=5)
    state = again.train()
    assert (again.ppo.loaded, state.step, again.ppo.events[0]) == ("2", 5, "tracker from 3")
    lengths = [len(prompt.ids) for prompt in again.ppo.dataloader.prompts]
    # the third batch of the epoch, then the first of the next one
    taken = [event for event in again.ppo.events if event.startswith("step")]
    assert taken[:2] == [f"step {lengths[4:6]}", f"step {lengths[0:2]}"]
    assert [row["step"] for row in log_rows(tmp_path)] == [1, 2, 3, 4, 5]


def test_what_is_measured_is_paid_and_logged(tmp_path, tokenizer, fresh_accelerate):
    quarter = Aspect("quarter", lambda prompts, answers, rows: [0.25] * len(answers))
    one = training(tmp_path, tokenizer, ones, steps=1, aspects=[quarter])
    one.train()
    assert one.ppo.paid == [[1.25, 1.25]]
    (row,) = (row["train"] for row in log_rows(tmp_path))
    found = (row["reward"], row["holistic_reward"], row["quarter"], row["gate_rate"], row["kl"], row["aspect_share"])
    assert found == (1.25, 1.0, 0.25, 1.0, 0.5, 0.2)


def test_an_aspect_that_applies_to_some_answers_is_averaged_over_them(tmp_path, tokenizer, fresh_accelerate):
    odd = Aspect("odd", lambda prompts, answers, rows: [3.0 if k % 2 else None for k in range(len(answers))])
    one = training(tmp_path, tokenizer, ones, steps=1, aspects=[odd])
    one.train()
    (row,) = (row["train"] for row in log_rows(tmp_path))
    assert row["odd"] == 3.0 and one.ppo.paid == [[1.0, 4.0]]


def test_several_answers_to_each_prompt_stand_together(tmp_path, tokenizer, fresh_accelerate):
    one = training(tmp_path, tokenizer, ones, steps=1, samples_per_prompt=3)
    one.train()
    a, b = (len(prompt.ids) for prompt in one.ppo.dataloader.prompts[:2])
    assert f"step {[a, a, a, b, b, b]}" in one.ppo.events


def test_the_best_policy_is_that_of_the_best_finite_dev_reward(tmp_path, tokenizer, fresh_accelerate):
    dev = iter([math.nan, 1.0, math.nan, 0.5])

    def holistic(prompts, answers, rows):
        return [next(dev)] if len(answers) == 1 else [0.0] * len(answers)

    state = training(tmp_path, tokenizer, holistic, eval_interval=1).train()
    assert (state.best["step"], state.best["total_reward"]) == (1, 1.0)
    saved = json.loads((tmp_path / "run" / "checkpoints" / "3" / "loop.json").read_text())
    assert saved["best"]["step"] == 1 and saved["dev_due"] is False


def test_a_run_whose_dev_rewards_are_never_finite_has_no_best_policy(tmp_path, tokenizer, fresh_accelerate):
    def holistic(prompts, answers, rows):
        return [math.nan if len(answers) == 1 else 0.0] * len(answers)

    one = training(tmp_path, tokenizer, holistic, eval_interval=1, steps=1)
    assert one.train().best is None
    assert "save best" not in one.ppo.events and "save policy" in one.ppo.events
    assert log_rows(tmp_path)[0]["dev"]["total_reward"] is None


def test_three_steps_in_a_row_that_teach_nothing_end_the_run(tmp_path, tokenizer, fresh_accelerate):
    one = training(tmp_path, tokenizer, lambda p, answers, r: [math.nan] * len(answers), 9, [0, 0, 1, 0, 0, 0])
    with pytest.raises(UserError, match=r"bad_batch\.json"):
        one.train()
    assert [row["train"]["skipped"] for row in log_rows(tmp_path)] == [1, 1, 0, 1, 1, 1]
    assert json.loads((tmp_path / "run" / "bad_batch.json").read_text())[0]["token_rewards"][-1] == "nan"


def test_a_service_that_fails_leaves_a_checkpoint_to_go_on_from(tmp_path, tokenizer, fresh_accelerate):
    calls = iter(range(9))

    def holistic(prompts, answers, rows):
        if next(calls) == 1:
            raise ServiceError("the server is gone")
        return [1.0] * len(answers)

    with pytest.raises(ServiceError):
        training(tmp_path, tokenizer, holistic, checkpoint_interval=0).train()
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["1"]


def test_an_answer_without_text_is_sampled_once_more_and_then_punished(tmp_path, tokenizer, fresh_accelerate):
    one = training(tmp_path, tokenizer, ones, steps=1, answer=[1])
    one.train()
    assert one.ppo.paid == [[-10.0, -10.0]]
    assert log_rows(tmp_path)[0]["train"]["empty_rate"] == 1.0
