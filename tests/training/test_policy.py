"""The policy and the trainer that both train_ppo.py build."""

from __future__ import annotations

import argparse

import pytest
from peft import LoraConfig
from transformers import AutoTokenizer, MarianConfig, MarianMTModel

from alarm.common.errors import UserError
from alarm.training.policy import build_trainer, load_model
from helpers import CHECKPOINTS

TINY_T5 = str(CHECKPOINTS / "tiny-t5")


@pytest.fixture
def tokenizer():
    return AutoTokenizer.from_pretrained(TINY_T5)


def adapted(model) -> set[str]:
    """The names of the layers with LoRA, without those of the modules around them."""
    names = [name for name, p in model.named_parameters() if p.requires_grad and ".lora_A." in name]
    return {name.split(".lora_A.")[0].split(".")[-1] for name in names}


def test_peft_chooses_for_t5_as_published(tokenizer, capsys):
    assert adapted(load_model(TINY_T5, tokenizer, "float32", LoraConfig(r=2))) == {"q", "v"}
    assert "LoRA on q, v" in capsys.readouterr().out.splitlines()


def test_the_projections_of_attention_are_found_if_peft_knows_none(tokenizer, tmp_path, capsys):
    config = MarianConfig(
        vocab_size=512, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, max_position_embeddings=32, pad_token_id=0,
        eos_token_id=1, decoder_start_token_id=0,
    )  # fmt: skip
    MarianMTModel(config).save_pretrained(tmp_path)
    model = load_model(str(tmp_path), tokenizer, "float32", LoraConfig(r=2, task_type="SEQ_2_SEQ_LM"))
    assert adapted(model) == {"k_proj", "out_proj", "q_proj", "v_proj"}
    assert "LoRA on k_proj, out_proj, q_proj, v_proj" in capsys.readouterr().out.splitlines()


def test_targets_that_are_given_go_before(tokenizer, capsys):
    model = load_model(TINY_T5, tokenizer, "float32", LoraConfig(r=2), ["o", "EncDecAttention.k"])
    assert adapted(model) == {"o", "k"}
    assert not [name for name, _ in model.named_parameters() if "SelfAttention.k.lora" in name]
    assert "LoRA on o, EncDecAttention.k" in capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("wrong", ["q_proj", "", "SelfAttention.wi"])
def test_a_target_that_the_model_does_not_have_is_refused(tokenizer, wrong):
    with pytest.raises(UserError, match=f"(?s)--lora_targets.*{wrong!r}.*q, v"):
        load_model(TINY_T5, tokenizer, "float32", LoraConfig(r=2), ["q", wrong])


def test_a_trained_adapter_stays_where_it_is(tokenizer, tmp_path):
    load_model(TINY_T5, tokenizer, "float32", LoraConfig(r=2)).save_pretrained(tmp_path)
    assert adapted(load_model(str(tmp_path), tokenizer, "float32", LoraConfig(r=2))) == {"q", "v"}
    with pytest.raises(UserError, match="drop --lora_targets"):
        load_model(str(tmp_path), tokenizer, "float32", LoraConfig(r=2), ["k"])


def test_data_smaller_than_a_batch_is_refused_before_a_model_loads(tmp_path):
    args = argparse.Namespace(
        seed=0, lr=1e-5, batch_size=8, mini_batch_size=4, gradient_accumulation_steps=2, n_ppo_epoch_per_rollout=4,
        kl_threshold=1.0, test=False, report_to="none", run_name="run", save_dir=str(tmp_path), dtype="float32",
    )  # fmt: skip
    with pytest.raises(UserError, match="7 examples, fewer than one batch of 8"):
        build_trainer(args, str(tmp_path / "no such model"), None, [None] * 7)
