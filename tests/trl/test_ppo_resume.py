from __future__ import annotations

import shutil

import pytest
import torch
from peft import LoraConfig

from trl import AutoModelForSeq2SeqLMWithValueHead, PPOConfig, PPOTrainer

STEPS, CUT = 4, 2


def make_trainer(folder, lora: bool = True) -> PPOTrainer:
    torch.manual_seed(0)
    peft_config = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.1, task_type="SEQ_2_SEQ_LM") if lora else None
    model = AutoModelForSeq2SeqLMWithValueHead.from_pretrained(folder, peft_config=peft_config)
    config = PPOConfig(
        log_with="none", batch_size=4, mini_batch_size=2, gradient_accumulation_steps=1, ppo_epochs=2,
        learning_rate=1e-3, seed=3,
    )  # fmt: skip
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trainable, lr=1e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.9**step)
    g = torch.Generator().manual_seed(1)
    data = [torch.randint(3, 500, (length,), generator=g) for length in (3, 5, 2, 7, 4, 6, 3, 5, 8)]  # 2 batches
    return PPOTrainer(config, model, dataset=data, optimizer=optimizer, lr_scheduler=schedule)


def train(trainer: PPOTrainer, first: int, last: int) -> list[dict]:
    """Steps `first` to `last`, sampling responses in between; 2 batches an epoch."""
    history = []
    while first < last:
        trainer.dataloader.batch_sampler.set_epoch(*divmod(first, len(trainer.dataloader)))
        for queries in trainer.dataloader:
            if first == last:
                break
            responses = trainer.generate(queries, do_sample=True, max_new_tokens=6)
            scores = [(response % 7).float() / 7 for response in responses]
            stats = trainer.step(queries, responses, scores)
            history.append({name: value for name, value in stats.items() if not name.startswith("time/")})
            first += 1
    return history


@pytest.mark.parametrize("lora", [True, False])
def test_a_resumed_run_is_bit_identical(tiny_t5, tmp_path, lora):
    whole = make_trainer(tiny_t5, lora)
    history = train(whole, 0, STEPS)

    begun = make_trainer(tiny_t5, lora)
    assert train(begun, 0, CUT) == history[:CUT]
    begun.save_state(tmp_path / "state")
    names = {path.name for path in (tmp_path / "state").iterdir()}
    assert "model.safetensors" not in names  # the frozen base model is not written again

    resumed = make_trainer(tiny_t5, lora)
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
    with pytest.raises(ValueError, match="is of another model"):
        make_trainer(tiny_t5).load_state(tmp_path / "whole")
