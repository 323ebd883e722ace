"""A trained adapter as --policy_ckpt: loaded whole, its own reference, saved whole."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from helpers import forget_accelerate
from trl import AutoModelForSeq2SeqLMWithValueHead

ADDED = ["<zz>", "<yy>"]


@pytest.fixture(scope="module")
def adapter(world, tmp_path_factory):
    """LoRA over embeddings that were trained too and resized for added tokens, saved by PEFT."""
    folder = tmp_path_factory.mktemp("adapter")
    torch.manual_seed(0)
    model = AutoModelForSeq2SeqLM.from_pretrained(world.folder / "policy")
    tokenizer = AutoTokenizer.from_pretrained(world.folder / "policy")
    tokenizer.add_tokens(ADDED)
    model.resize_token_embeddings(max(tokenizer.get_vocab().values()) + 1)
    model = get_peft_model(model, LoraConfig(r=4, task_type="SEQ_2_SEQ_LM"))
    for name, parameter in model.named_parameters():
        if "lora_B" in name or "shared" in name:
            parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(str(folder), save_embedding_layers=True)
    tokenizer.save_pretrained(str(folder))
    return folder


def log_of(run) -> list[dict]:
    rows = [json.loads(line)["train"] for line in (run / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if not name.startswith("time/")} for row in rows]


@torch.no_grad()
def logits(folder) -> torch.Tensor:
    model = AutoModelForSeq2SeqLMWithValueHead.from_pretrained(folder)
    ids = torch.tensor([[5, 9, 30, len(model.base_model.shared.weight) - 1, 1]])
    inputs = {"attention_mask": torch.ones_like(ids), "decoder_attention_mask": torch.ones_like(ids)}
    return model(input_ids=ids, decoder_input_ids=ids, **inputs)[0]


def test_first_kl_is_zero_resumed_or_not_and_nothing_is_lost(world, adapter, train_ppo, tmp_path):
    flags = [*world.flags, "--policy_ckpt", str(adapter), "--eval_interval", "0", "--lr", "1e-2"]
    whole, parts, after, still = (tmp_path / name for name in ("whole", "parts", "after", "still"))
    for run, steps, resume in ((whole, 3, []), (parts, 2, []), (parts, 3, ["--resume"])):
        train_ppo([*flags, "--save_dir", str(run), "--max_steps", str(steps), *resume])
        forget_accelerate()
    rows = log_of(whole)
    assert rows == log_of(parts)
    assert abs(rows[0]["kl"]) < 1e-5
    assert all(abs(row["kl"]) > 1e-3 for row in rows[1:])
    assert torch.equal(logits(whole / "policy"), logits(parts / "policy"))
    assert set(ADDED) <= AutoTokenizer.from_pretrained(whole / "policy").get_vocab().keys()

    # the policy of a run is the reference of the next
    flags[flags.index(str(adapter))] = str(whole)
    train_ppo([*flags, "--save_dir", str(after), "--max_steps", "1"])
    assert abs(log_of(after)[0]["kl"]) < 1e-5

    # what was loaded is what is saved
    forget_accelerate()
    flags[flags.index("1e-2")] = "1e-9"
    flags[flags.index(str(whole))] = str(adapter)
    train_ppo([*flags, "--save_dir", str(still), "--max_steps", "1"])
    torch.testing.assert_close(logits(still / "policy"), logits(adapter), atol=1e-4, rtol=0)
    assert not torch.allclose(logits(whole / "policy"), logits(adapter), atol=1e-2)


def refused(main, flags, capfd) -> str:
    capfd.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main(flags)
    assert stopped.value.code == 2
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    return line


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(world, adapter, train_ppo, tmp_path, capfd):
    policy = shutil.copytree(world.folder / "policy", tmp_path / "policy")
    AutoTokenizer.from_pretrained(adapter).save_pretrained(policy)
    flags = [*world.flags, "--policy_ckpt", str(policy), "--test", "--save_dir", str(tmp_path / "out.json")]
    line = refused(train_ppo, flags, capfd)
    assert str(policy) in line
    assert str(len(AutoModelForSeq2SeqLM.from_pretrained(policy).shared.weight)) in line


def test_prompt_tuning_is_refused(world, train_ppo, tmp_path, capfd):
    model = AutoModelForSeq2SeqLM.from_pretrained(world.folder / "policy")
    model = get_peft_model(model, PromptTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=4))
    model.save_pretrained(str(tmp_path / "prompts"))
    AutoTokenizer.from_pretrained(world.folder / "policy").save_pretrained(tmp_path / "prompts")
    flags = [*world.flags, "--policy_ckpt", str(tmp_path / "prompts"), "--save_dir", str(tmp_path / "run")]
    assert "PROMPT_TUNING" in refused(train_ppo, flags, capfd)
