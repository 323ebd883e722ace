from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from trl import AutoModelForSeq2SeqLMWithValueHead, PPOConfig, PPOTrainer
from trl.trainer import DamagedStateError

STEPS, CUT = 4, 2


def make_trainer(folder, lora: bool = True, advantage: str = "gae", **tracking) -> PPOTrainer:
    torch.manual_seed(0)
    peft_config = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.1, task_type="SEQ_2_SEQ_LM") if lora else None
    gae = advantage == "gae"
    model = AutoModelForSeq2SeqLMWithValueHead.from_pretrained(folder, peft_config=peft_config, value_head=gae)
    config = PPOConfig(
        batch_size=4, mini_batch_size=2, gradient_accumulation_steps=1, ppo_epochs=2, learning_rate=1e-3, seed=3,
        advantage=advantage, samples_per_prompt=1 if gae else 2, **{"log_with": "none"} | tracking,
    )  # fmt: skip
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trainable, lr=1e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.9**step)
    g = torch.Generator().manual_seed(1)
    data = [torch.randint(3, 500, (length,), generator=g) for length in (3, 5, 2, 7, 4, 6, 3, 5, 8)]  # 2 batches
    return PPOTrainer(config, model, dataset=data, data_collator=list, optimizer=optimizer, lr_scheduler=schedule)


def train(trainer: PPOTrainer, first: int, last: int) -> list[dict]:
    """Steps `first` to `last`, sampling responses in between; 2 batches an epoch, or 4 of 2 responses a prompt."""
    history = []
    while first < last:
        trainer.dataloader.batch_sampler.set_epoch(*divmod(first, len(trainer.dataloader)))
        for queries in trainer.dataloader:
            if first == last:
                break
            queries = [query for query in queries for _ in range(trainer.config.samples_per_prompt)]
            responses = trainer.generate(queries, batch_size=None, do_sample=True, max_new_tokens=6)
            scores = [(response % 7).float() / 7 for response in responses]
            stats = trainer.step(queries, responses, scores)
            history.append(
                {name: np.asarray(value).tolist() for name, value in stats.items() if not name.startswith("time/")}
            )
            first += 1
    return history


@pytest.mark.parametrize(("lora", "advantage"), [(True, "gae"), (False, "gae"), (False, "rloo"), (True, "grpo")])
def test_a_resumed_run_is_bit_identical(tiny_t5, tmp_path, lora, advantage):
    whole = make_trainer(tiny_t5, lora, advantage)
    history = train(whole, 0, STEPS)

    begun = make_trainer(tiny_t5, lora, advantage)
    assert train(begun, 0, CUT) == history[:CUT]
    begun.save_state(tmp_path / "state")
    names = {path.name for path in (tmp_path / "state").iterdir()}
    assert "model.safetensors" not in names  # the frozen base model is not written again
    saved = load_file(tmp_path / "state" / "trainable.safetensors")
    assert any(name.startswith("v_head.") for name in saved) == (advantage == "gae")

    resumed = make_trainer(tiny_t5, lora, advantage)
    train(resumed, 0, 1)  # whatever happened before must be forgotten
    resumed.load_state(tmp_path / "state")
    assert resumed.steps_done == CUT and resumed.kl_controller.value == begun.kl_controller.value
    assert train(resumed, CUT, STEPS) == history[CUT:]
    expected, got = dict(whole.policy.named_parameters()), dict(resumed.policy.named_parameters())
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    if lora:
        size = (tmp_path / "state" / "trainable.safetensors").stat().st_size
        assert size < 4 * 1.5 * sum(p.numel() for p in got.values() if p.requires_grad) + 10_000


def test_a_state_that_does_not_fit_is_refused(tiny_t5, tmp_path):
    trainer = make_trainer(tiny_t5)
    with pytest.raises(ValueError, match=r"trainer_state\.json is missing"):
        trainer.load_state(tmp_path)
    trainer.save_state(tmp_path / "state")
    for name in ("random_states_0.pkl", "optimizer.bin", "trainable.safetensors", "custom_checkpoint_0.pkl"):
        broken = tmp_path / f"without-{name}"
        shutil.copytree(tmp_path / "state", broken)
        (broken / name).unlink()
        with pytest.raises(ValueError, match=f"not a whole training state: {name} is missing"):
            trainer.load_state(broken)
        (broken / name).write_bytes(b"cut")
        with pytest.raises(ValueError) as error:
            trainer.load_state(broken)
        assert "\n" not in str(error.value)
    (tmp_path / "state" / "trainer_state.json").write_text('{"num_processes": 2}')
    with pytest.raises(ValueError, match="written by 2 process"):
        trainer.load_state(tmp_path / "state")
    whole = make_trainer(tiny_t5, lora=False)
    whole.save_state(tmp_path / "whole")
    for other in (make_trainer(tiny_t5), make_trainer(tiny_t5, lora=False, advantage="rloo")):
        with pytest.raises(ValueError, match="is of another model"):
            other.load_state(tmp_path / "whole")


PARTS = ("random_states_0.pkl", "optimizer.bin", "scheduler.bin", "trainable.safetensors", "custom_checkpoint_0.pkl")


def contents(trainer: PPOTrainer) -> list:
    """All that a state holds of a trainer."""
    weights = [p.detach().clone() for p in trainer.policy.parameters()]
    moments = [x.clone() for state in trainer.optimizer.state.values() for x in state.values()]
    numbers = [trainer.kl_controller.value, trainer.steps_done, trainer.lr_scheduler.get_last_lr()]
    return [*weights, *moments, torch.get_rng_state(), *map(torch.tensor, numbers)]


def assert_same(one: list, other: list) -> None:
    assert len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def flip_a_bit(path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("part", [*PARTS, "trainer_state.json"])
def test_a_damaged_state_is_refused_before_anything_is_loaded(tiny_t5, tmp_path, part):
    trainer = make_trainer(tiny_t5)
    train(trainer, 0, 1)
    trainer.save_state(tmp_path / "state")
    train(trainer, 1, 2)
    before = contents(trainer)
    whole = (tmp_path / "state" / part).read_bytes()
    damages = [whole[:-2], whole[: len(whole) // 2], b"", bytes(len(whole))]
    for damage in damages:
        (tmp_path / "state" / part).write_bytes(damage)
        with pytest.raises(DamagedStateError, match=part.replace(".", r"\.")) as error:
            trainer.load_state(tmp_path / "state")
        assert "\n" not in str(error.value)
        assert_same(contents(trainer), before)
    if part != "trainer_state.json":
        (tmp_path / "state" / part).write_bytes(whole)
        flip_a_bit(tmp_path / "state" / part)
        with pytest.raises(DamagedStateError):
            trainer.load_state(tmp_path / "state")
        assert_same(contents(trainer), before)


def test_a_whole_state_makes_good_what_a_damaged_one_without_hashes_left_half_loaded(tiny_t5, tmp_path):
    trainer = make_trainer(tiny_t5)
    train(trainer, 0, 1)
    trainer.save_state(tmp_path / "1")
    history = train(trainer, 1, 2)
    trainer.save_state(tmp_path / "2")
    expected = contents(trainer)
    (tmp_path / "2" / "trainer_state.json").write_text(json.dumps({"num_processes": 1}))  # as older versions wrote it
    for part in PARTS:
        broken = tmp_path / f"2-{part}"
        shutil.copytree(tmp_path / "2", broken)
        cut = (broken / part).read_bytes()[:-100]
        (broken / part).write_bytes(cut)
        with pytest.raises(DamagedStateError):
            trainer.load_state(broken)
        trainer.load_state(tmp_path / "1")
        assert train(trainer, 1, 2) == history
        assert_same(contents(trainer), expected)


def test_tensorboard_holds_each_step_once_after_resumes(tiny_t5, tmp_path):
    """Step -> the value that was logged last, in TensorBoard's own reader."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def shown() -> list[tuple[int, float]]:
        events = EventAccumulator(str(tmp_path / "log" / "mine"))
        events.Reload()
        return [(event.step, event.value) for event in events.Scalars("x")]

    parts: list[Path] = []  # the file of each part

    def part(state: int | None, first: int, last: int, value: float) -> None:
        """Steps `first` to `last` from the state of step `state`, as a process of its own."""
        trainer = make_trainer(tiny_t5, log_with="tensorboard", logging_dir=str(tmp_path / "log"), run_name="mine")
        if state is None:
            trainer.start_tracker(0)
        else:
            trainer.load_state(tmp_path / str(state))
        for step in range(first, last + 1):
            trainer.steps_done = step
            trainer.log_stats({"x": value})
            trainer.save_state(tmp_path / str(step))
        trainer.accelerator.end_training()
        # readers sort files by the second in their names, and here two parts can start in one second
        (file,) = set((tmp_path / "log" / "mine").glob("events.*")) - set(parts)
        parts.append(file.rename(file.with_name(f"events.out.tfevents.{len(parts)}.host")))

    part(None, 0, 2, 1.0)  # stopped before its first checkpoint was used: starts anew
    part(None, 0, 5, 2.0)
    assert shown() == [(step, 2.0) for step in range(6)]
    part(3, 4, 6, 3.0)
    part(2, 3, 4, 4.0)  # from an older state than the last time
    assert shown() == [(0, 2.0), (1, 2.0), (2, 2.0), (3, 4.0), (4, 4.0)]
    part(4, 5, 5, math.pi)
    assert shown()[-2:] == [(4, 4.0), (5, pytest.approx(math.pi))]


def test_two_runs_in_one_tracker_folder_are_both_shown(tiny_t5, tmp_path):
    """Nothing is left out of what another run logged there."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for value in (1.0, 2.0):
        trainer = make_trainer(tiny_t5, log_with="tensorboard", logging_dir=str(tmp_path), run_name="mine")
        trainer.log_stats({"x": value})
        trainer.accelerator.end_training()
    events = EventAccumulator(str(tmp_path / "mine"))
    events.Reload()
    assert sorted(event.value for event in events.Scalars("x")) == [1.0, 2.0]


@pytest.mark.parametrize("lora", [True, False])
def test_a_state_from_before_the_value_head_had_parts_goes_on(tiny_t5, tmp_path, lora):
    """Its value head was v_head.weight and v_head.bias."""
    trainer = make_trainer(tiny_t5, lora)
    train(trainer, 0, CUT)
    trainer.save_state(tmp_path / "state")
    path, state_path = tmp_path / "state" / "trainable.safetensors", tmp_path / "state" / "trainer_state.json"
    state = {name.replace("v_head.summary.", "v_head."): tensor for name, tensor in load_file(path).items()}
    assert {"v_head.weight", "v_head.bias"} <= state.keys()
    save_file(state, path)
    settings = json.loads(state_path.read_text())
    settings["sha256"].pop("trainable.safetensors")
    state_path.write_text(json.dumps(settings))
    expected = train(trainer, CUT, STEPS)
    resumed = make_trainer(tiny_t5, lora)
    resumed.load_state(tmp_path / "state")
    assert train(resumed, CUT, STEPS) == expected
