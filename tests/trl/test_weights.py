"""What a checkpoint must hold to be loaded: prefixes, lost, foreign and misshapen weights, new heads. By name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
)

from trl import AutoModelForSeq2SeqLMWithValueHead
from trl.weights import WeightsError, load_whole


def changed(source: Path, folder: Path, change, **config) -> Path:
    """A copy of a checkpoint: its weights through `change(dict) -> dict`, its config with other values."""
    shutil.copytree(source, folder)
    save_file(
        {name: tensor.clone() for name, tensor in change(load_file(folder / "model.safetensors")).items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return folder


def under(prefix: str):
    return lambda weights: {prefix + name: tensor for name, tensor in weights.items()}


def refusal(folder: Path) -> str:
    with pytest.raises(ValueError) as error:
        AutoModelForSeq2SeqLMWithValueHead.from_pretrained(folder)
    assert str(folder) in str(error.value) and "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "model.", "model.model."])
def test_the_prefix_to_strip_is_named(prefix, tiny_t5, tmp_path):
    assert f"strip the prefix '{prefix}'" in refusal(changed(tiny_t5, tmp_path / "policy", under(prefix)))


def test_one_prefixed_copy_beside_whole_weights_is_refused(tiny_t5, tmp_path):
    """Which of the two is the trained one, nobody can tell."""

    def twice(weights):
        return weights | {f"ema.{name}": tensor for name, tensor in weights.items() if name.startswith("encoder")}

    assert "'ema.'" in refusal(changed(tiny_t5, tmp_path / "policy", twice))


def test_an_encoder_alone_is_no_policy(tiny_t5, tmp_path):
    def encoder(weights):
        return {name: tensor for name, tensor in weights.items() if not name.startswith("decoder")}

    assert "decoder.block.0.layer.0.SelfAttention.k.weight" in refusal(changed(tiny_t5, tmp_path / "policy", encoder))


def test_weights_in_a_module_that_the_model_has_must_have_a_place(tiny_t5, tmp_path):
    layers = json.loads((tiny_t5 / "config.json").read_text())["num_layers"]
    fewer = changed(tiny_t5, tmp_path / "fewer", dict, num_layers=layers - 1, num_decoder_layers=layers - 1)
    assert f"coder.block.{layers - 1}.layer" in refusal(fewer)
    bias, lora = "encoder.block.0.layer.0.SelfAttention.q.bias", "decoder.block.0.layer.0.SelfAttention.q.lora_A.weight"
    for number, name in enumerate((bias, lora)):
        folder = changed(tiny_t5, tmp_path / str(number), lambda weights, name=name: weights | {name: torch.ones(3)})
        assert name in refusal(folder)


def test_another_shape_is_named_with_both(tiny_t5, tmp_path):
    name = "decoder.final_layer_norm.weight"
    found = refusal(changed(tiny_t5, tmp_path / "policy", lambda weights: weights | {name: torch.ones(3)}))
    width = json.loads((tiny_t5 / "config.json").read_text())["d_model"]
    assert name in found and "(3,)" in found and f"({width},)" in found


@pytest.mark.parametrize(
    "name",
    [
        "encoder.rotary_emb.inv_freq",
        "encoder.embeddings.position_ids",
        "decoder.block.0.layer.0.attn.masked_bias",
        "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",  # which transformers itself ignores
        "score.weight",
    ],
)
def test_harmless_extra_weights_change_nothing(name, tiny_t5, tmp_path):
    folder = changed(tiny_t5, tmp_path / "policy", lambda weights: weights | {name: torch.ones(3)})
    plain, found = (
        AutoModelForSeq2SeqLMWithValueHead.from_pretrained(one, v_head_init_strategy="zeros")
        for one in (tiny_t5, folder)
    )
    for (key, a), (_, b) in zip(plain.state_dict().items(), found.state_dict().items(), strict=True):
        assert torch.equal(a, b), key


# --- new heads -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """{class: folder} of one tiny BERT's shapes, each with the head of its class."""
    sizes = {"vocab_size": 50, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    folders = {}
    for kind, labels in (
        (BertModel, 2),
        (BertForMaskedLM, 2),
        (BertForTokenClassification, 3),
        (BertForSequenceClassification, 2),
    ):
        folders[kind] = tmp_path_factory.mktemp("bert") / kind.__name__
        kind(BertConfig(**sizes, intermediate_size=8, num_labels=labels)).save_pretrained(folders[kind])
    return folders


HEAD = ["classifier.bias", "classifier.weight"]
POOLER = ["bert.pooler.dense.bias", "bert.pooler.dense.weight"]


@pytest.mark.parametrize(
    ("start", "new", "unused"),
    [
        (BertModel, HEAD, ""),
        (BertForMaskedLM, [*POOLER, *HEAD], "cls.predictions"),
        (BertForTokenClassification, [*POOLER, *HEAD], ""),  # its head is of another shape
    ],
)
def test_a_base_model_gets_a_new_head(start, new, unused, bert):
    model, heads = load_whole(BertForSequenceClassification, str(bert[start]), new_head=True, num_labels=1)
    assert heads.new == new
    assert bool(heads.unused) == bool(unused) and all(name.startswith(unused) for name in heads.unused)
    body = load_file(bert[start] / "model.safetensors")
    name = "embeddings.word_embeddings.weight"
    assert torch.equal(model.bert.get_parameter(name), body[name if start is BertModel else f"bert.{name}"])
    # only if it is asked for
    with pytest.raises(WeightsError, match=new[0]):
        load_whole(BertForSequenceClassification, str(bert[start]), num_labels=1)


def test_a_classifier_keeps_its_head_or_is_refused(bert, tmp_path):
    source = bert[BertForSequenceClassification]
    assert load_whole(BertForSequenceClassification, str(source), new_head=True)[1].new == []
    with pytest.raises(WeightsError, match=r"classifier\.weight \(\(2, 8\) where \(1, 8\) is due\)"):
        load_whole(BertForSequenceClassification, str(source), new_head=True, num_labels=1)

    def headless(weights):
        return {name: tensor for name, tensor in weights.items() if not name.startswith("classifier")}

    with pytest.raises(WeightsError, match=r"classifier\.weight"):
        load_whole(BertForSequenceClassification, str(changed(source, tmp_path / "a", headless)), new_head=True)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod."])
def test_a_prefix_is_no_new_head(prefix, bert, tmp_path):
    for number, source in enumerate(bert.values()):
        folder = changed(source, tmp_path / str(number), under(prefix))
        with pytest.raises(WeightsError, match=f"strip the prefix '{prefix}'"):
            load_whole(BertForSequenceClassification, str(folder), new_head=True, num_labels=1)


def test_a_lost_body_weight_is_no_new_head(bert, tmp_path):
    lost = "encoder.layer.0.output.dense.bias"

    def without(weights):
        return {name: tensor for name, tensor in weights.items() if name != lost}

    with pytest.raises(WeightsError, match=lost):
        folder = changed(bert[BertModel], tmp_path / "base", without)
        load_whole(BertForSequenceClassification, str(folder), new_head=True, num_labels=1)
