"""The policy and the trainer that both train_ppo.py build."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig
from transformers import AutoTokenizer, CLIPTextConfig, LlamaConfig, MarianConfig, MarianMTModel

from alarm import Task
from alarm.common.errors import UserError
from alarm.tasks.qa.spec import TASK
from alarm.training.main import parse_args
from alarm.training.policy import (
    build_trainer,
    check_adapter_flags,
    check_cache,
    is_encoder_decoder,
    load_policy,
    ppo_config,
)
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
    assert adapted(load_policy(TINY_T5, tokenizer, "float32", LoraConfig(r=2))) == {"q", "v"}
    assert "LoRA on q, v" in capsys.readouterr().out.splitlines()


def test_the_projections_of_attention_are_found_if_peft_knows_none(tokenizer, tmp_path, capsys):
    config = MarianConfig(
        vocab_size=512, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, max_position_embeddings=32, pad_token_id=0,
        eos_token_id=1, decoder_start_token_id=0,
    )  # fmt: skip
    MarianMTModel(config).save_pretrained(tmp_path)
    model = load_policy(str(tmp_path), tokenizer, "float32", LoraConfig(r=2, task_type="SEQ_2_SEQ_LM"))
    assert adapted(model) == {"k_proj", "out_proj", "q_proj", "v_proj"}
    assert "LoRA on k_proj, out_proj, q_proj, v_proj" in capsys.readouterr().out.splitlines()


def test_targets_that_are_given_go_before(tokenizer, capsys):
    model = load_policy(TINY_T5, tokenizer, "float32", LoraConfig(r=2), ["o", "EncDecAttention.k"])
    assert adapted(model) == {"o", "k"}
    assert not [name for name, _ in model.named_parameters() if "SelfAttention.k.lora" in name]
    assert "LoRA on o, EncDecAttention.k" in capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("wrong", ["q_proj", "", "SelfAttention.wi"])
def test_a_target_that_the_model_does_not_have_is_refused(tokenizer, wrong):
    with pytest.raises(UserError, match=f"(?s)--lora_targets.*{wrong!r}.*q, v"):
        load_policy(TINY_T5, tokenizer, "float32", LoraConfig(r=2), ["q", wrong])


def test_a_trained_adapter_stays_where_it_is(tokenizer, tmp_path):
    load_policy(TINY_T5, tokenizer, "float32", LoraConfig(r=2)).save_pretrained(tmp_path)
    assert adapted(load_policy(str(tmp_path), tokenizer, "float32", LoraConfig(r=2))) == {"q", "v"}
    with pytest.raises(UserError, match="drop --lora_targets"):
        load_policy(str(tmp_path), tokenizer, "float32", LoraConfig(r=2), ["k"])


def test_data_smaller_than_a_batch_is_refused_before_a_model_loads(tmp_path):
    args = parse_args(TASK, "", ["--save_dir", str(tmp_path), "--report_to", "none"])
    with pytest.raises(UserError, match="7 examples, fewer than one batch of 8"):
        build_trainer(args, str(tmp_path / "no such model"), None, [None] * 7)


@pytest.mark.parametrize("cache", ["dynamic", "static", "compiled"])
def test_steps_are_compiled_on_a_gpu_alone(cache):
    args = parse_args(TASK, "", ["--save_dir", "unused", "--generation_cache", cache])
    check_cache(args, torch.device("cuda"))
    if cache != "compiled":
        check_cache(args, torch.device("cpu"))
        return
    with pytest.raises(UserError, match="--generation_cache compiled"):
        check_cache(args, torch.device("cpu"))


def test_every_constant_reaches_the_trainer(tmp_path):
    values = {
        "lr": 1e-3, "batch_size": 6, "mini_batch_size": 3, "gradient_accumulation_steps": 2,
        "n_ppo_epoch_per_rollout": 7, "kl_threshold": 0.3, "init_kl_coef": 0.4, "kl_control": "fixed",
        "kl_penalty": "mse", "kl_target": 5.0, "kl_horizon": 99.0, "gamma": 0.9, "lam": 0.8, "cliprange": 0.1,
        "cliprange_value": 0.7, "vf_coef": 0.6, "ratio_threshold": 3.0, "max_grad_norm": 2.0, "seed": 5,
    }  # fmt: skip
    words = [word for name, value in values.items() for word in (f"--{name}", str(value))]
    found = ppo_config(parse_args(TASK, "", ["--save_dir", str(tmp_path), *words]))
    renamed = {"lr": "learning_rate", "n_ppo_epoch_per_rollout": "ppo_epochs", "kl_threshold": "target_kl"}
    renamed |= {"kl_target": "target", "kl_horizon": "horizon"}
    del values["kl_control"]
    assert {name: getattr(found, renamed.get(name, name)) for name in values} == values
    assert not found.adap_kl_ctrl


def test_defaults_are_the_published_ones_and_clip_gradients_for_new_tasks_alone(tmp_path):
    new = Task("new", prompt=str, aspects=[])
    for task, norm in ((TASK, None), (new, 1.0)):
        found = ppo_config(parse_args(task, "", ["--save_dir", str(tmp_path)]))
        assert (found.max_grad_norm, found.adap_kl_ctrl, found.early_stopping) == (norm, True, True)
        published = (found.init_kl_coef, found.target, found.horizon, found.gamma, found.lam, found.vf_coef)
        assert published == (0.2, 6.0, 10000.0, 1.0, 0.95, 0.1)
        assert (found.cliprange, found.cliprange_value, found.ratio_threshold) == (0.2, 0.2, 10.0)
    assert ppo_config(parse_args(new, "", ["--save_dir", "x", "--max_grad_norm", "0"])).max_grad_norm is None


def test_the_kind_of_a_policy_is_known_by_its_config_and_a_model_that_writes_no_text_is_refused(tmp_path):
    LlamaConfig(hidden_size=16, num_attention_heads=2, num_hidden_layers=1).save_pretrained(tmp_path / "llama")
    assert is_encoder_decoder(TINY_T5) and not is_encoder_decoder(str(tmp_path / "llama"))
    CLIPTextConfig().save_pretrained(tmp_path / "clip")
    with pytest.raises(UserError, match="clip_text_model"):
        is_encoder_decoder(str(tmp_path / "clip"))


@pytest.mark.parametrize("flags", [["--lora_targets", "q"], ["--policy_ckpt", "adapter"]])
def test_no_lora_contradicts_an_adapter(tokenizer, tmp_path, flags):
    if flags[1] == "adapter":
        load_policy(TINY_T5, tokenizer, "float32", LoraConfig(r=2)).save_pretrained(tmp_path)
        flags = ["--policy_ckpt", str(tmp_path)]
    args = parse_args(TASK, "", ["--save_dir", "x", "--policy_ckpt", TINY_T5, "--no_lora", *flags])
    with pytest.raises(UserError, match="--no_lora"):
        check_adapter_flags(args, args.policy_ckpt)
