"""Loading checkpoints: what is checked, and what is said. Models of a few hundred weights."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import BertConfig, GPT2Config, GPT2LMHeadModel, LongformerConfig, T5Config

from alarm.common.errors import UserError
from alarm.models.load import (
    CPU_TOKENS,
    has_encoder,
    load_config,
    load_model,
    load_tokenizer,
    padded_batches,
    position_limit,
)


@pytest.fixture
def gpt2(tmp_path):
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=11, n_embd=4, n_layer=1, n_head=1, n_positions=8, bos_token_id=0, eos_token_id=0)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_model_answers_and_does_not_train(gpt2):
    model = load_model(GPT2LMHeadModel, gpt2, "the model", "cpu", "float32")
    assert not model.training and not any(weight.requires_grad for weight in model.parameters())
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    half = load_model(GPT2LMHeadModel, gpt2, "the model", "cpu", torch.bfloat16)
    assert {weight.dtype for weight in half.parameters()} == {torch.bfloat16}


def test_a_missing_weight_is_named(gpt2):
    weights = load_file(gpt2 / "model.safetensors")
    del weights["transformer.ln_f.bias"]
    save_file(weights, gpt2 / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"the judge .*ln_f\.bias"):
        load_model(GPT2LMHeadModel, gpt2, "the judge", "cpu", "float32")


def test_what_is_no_checkpoint_is_named(tmp_path):
    for load in (lambda path: load_config(path, "the judge"), lambda path: load_tokenizer(path, "the judge")):
        with pytest.raises(UserError, match=r"the judge.*nowhere"):
            load(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="the judge"):
        load_config(tmp_path, "the judge")


def test_which_models_read_by_an_encoder():
    assert has_encoder(T5Config(), "it") and not has_encoder(GPT2Config(), "it")
    # as T5EncoderModel saves it
    assert has_encoder(T5Config(is_encoder_decoder=False), "it")
    with pytest.raises(UserError, match="longformer"):
        has_encoder(LongformerConfig(), "it")


def test_positions_after_the_padding_index_are_fewer():
    class Tokenizer:
        model_max_length = 1000

    assert position_limit(BertConfig(max_position_embeddings=514, pad_token_id=1), Tokenizer()) == 514
    assert position_limit(LongformerConfig(max_position_embeddings=514, pad_token_id=1), Tokenizer()) == 512
    Tokenizer.model_max_length = 100
    assert position_limit(BertConfig(max_position_embeddings=514), Tokenizer()) == 100


@given(st.lists(st.lists(st.integers(1, 9), max_size=6), min_size=1, max_size=9), st.integers(1, 4))
def test_padded_batches_hold_each_row_once(rows, size):
    seen = {}
    widths = []
    for indices, ids, mask in padded_batches(rows, 0, size, "cpu"):
        assert len(indices) <= size and ids.shape == mask.shape
        widths.append(ids.shape[1])
        for i, row, kept in zip(indices, ids, mask, strict=True):
            seen[i] = row[kept.bool()].tolist()
            assert row[~kept.bool()].tolist() == [0] * (ids.shape[1] - len(rows[i]))
    assert [seen[i] for i in range(len(rows))] == rows
    assert widths == sorted(widths, reverse=True)


@pytest.mark.parametrize(
    "device, packed, sizes",
    [("cpu", False, [1, 2, 4, 8, 5]), ("cpu", True, [8, 8, 4]), ("meta", False, [8, 8, 4])],
)
def test_a_batch_on_a_cpu_is_limited_by_its_tokens(device, packed, sizes):
    """Long rows go alone, short ones together; not where more rows are faster, or padding costs nothing."""
    lengths = [3 * CPU_TOKENS, CPU_TOKENS // 2, CPU_TOKENS // 2, *[CPU_TOKENS // 4] * 4, *[2] * 13]
    batches = list(padded_batches([[1] * length for length in lengths], 0, 8, device, packed))
    assert [len(indices) for indices, _, _ in batches] == sizes
    assert [ids.shape[1] for _, ids, _ in batches] == [lengths[indices[0]] for indices, _, _ in batches]


def test_config_of_another_kind_is_read(gpt2):
    content = json.loads((gpt2 / "config.json").read_text())
    assert load_config(gpt2, "it").n_embd == content["n_embd"] == 4
