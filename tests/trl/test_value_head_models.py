from __future__ import annotations

import shutil

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from trl import AutoModelForCausalLMWithValueHead, AutoModelForSeq2SeqLMWithValueHead

SEQ2SEQ_LORA = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.05, task_type="SEQ_2_SEQ_LM")


def mask_of(lengths: list[int], side: str = "right") -> torch.Tensor:
    columns = torch.arange(max(lengths))
    rows = torch.tensor(lengths)[:, None]
    return (columns < rows if side == "right" else columns >= max(lengths) - rows).long()


def with_random_head(model):
    torch.nn.init.normal_(model.v_head.summary.weight)
    return model


def test_seq2seq_forward_scores_every_response_token(tiny_t5):
    model = with_random_head(AutoModelForSeq2SeqLMWithValueHead.from_pretrained(tiny_t5))
    torch.manual_seed(0)
    queries, responses = torch.randint(3, 500, (2, 7)), torch.randint(3, 500, (2, 5))
    inputs = model.response_inputs(queries, mask_of([7, 4]), responses, mask_of([5, 3]))
    assert inputs["decoder_input_ids"].tolist() == [[0, *row[:-1]] for row in responses.tolist()]
    logits, _, values = model(**inputs)
    output = model.pretrained_model(
        input_ids=queries, attention_mask=mask_of([7, 4]), labels=responses, output_hidden_states=True
    )
    torch.testing.assert_close(logits[0], output.logits[0])
    torch.testing.assert_close(logits[1, :3], output.logits[1, :3])
    hidden = output.decoder_hidden_states[-1]
    torch.testing.assert_close(values[0], model.v_head(hidden)[0].squeeze(-1))
    assert values.shape == (2, 5) and values.dtype == torch.float32


@pytest.mark.parametrize("fixture", ["tiny_gpt2", "tiny_llama"])
def test_causal_forward_does_not_see_padding_or_batch_mates(fixture, request):
    model = AutoModelForCausalLMWithValueHead.from_pretrained(request.getfixturevalue(fixture))
    model = with_random_head(model)
    torch.manual_seed(0)
    query, response = torch.randint(3, 48, (1, 3)), torch.randint(3, 48, (1, 4))
    alone = model(**model.response_inputs(query, mask_of([3]), response, mask_of([4])))
    # plain reading of the joined sequence: output at position p scores token p + 1
    joined = torch.cat([query, response], dim=1)
    output = model.pretrained_model(input_ids=joined, output_hidden_states=True)
    torch.testing.assert_close(alone[0], output.logits[:, 2:-1])
    torch.testing.assert_close(alone[2], model.v_head(output.hidden_states[-1][:, 2:-1]).squeeze(-1))
    # beside a longer query and a longer response
    queries = torch.cat([torch.cat([torch.zeros(1, 5).long(), query], 1), torch.randint(3, 48, (1, 8))])
    responses = torch.cat([torch.cat([response, torch.zeros(1, 2).long()], 1), torch.randint(3, 48, (1, 6))])
    padded = model(**model.response_inputs(queries, mask_of([3, 8], "left"), responses, mask_of([4, 6])))
    torch.testing.assert_close(padded[0][:1, :4], alone[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(padded[2][:1, :4], alone[2], atol=1e-5, rtol=1e-5)


def test_all_positions_by_default(tiny_llama):
    model = AutoModelForCausalLMWithValueHead.from_pretrained(tiny_llama)
    logits, _, values = model(torch.ones(1, 5).long(), attention_mask=torch.ones(1, 5).long())
    assert logits.shape == (1, 5, 48) and values.shape == (1, 5)


def same_weights(a, b) -> bool:
    a, b = dict(a.named_parameters()), dict(b.named_parameters())
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("lora", [False, True])
def test_round_trip_restores_weights_and_value_head(tiny_t5, tmp_path, lora):
    config = SEQ2SEQ_LORA if lora else None
    model = with_random_head(AutoModelForSeq2SeqLMWithValueHead.from_pretrained(tiny_t5, peft_config=config))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    model.save_pretrained(tmp_path / "saved")
    again = AutoModelForSeq2SeqLMWithValueHead.from_pretrained(tmp_path / "saved")
    assert same_weights(model, again)
    trainable = {name for name, p in again.named_parameters() if p.requires_grad}
    assert trainable == {name for name, p in model.named_parameters() if p.requires_grad}
    assert any("lora_" in name for name in trainable) is lora
    assert {"v_head.summary.weight", "v_head.summary.bias"} <= trainable
    if lora:  # A and B on q and v of 6 attentions, value head
        assert len(trainable) == 2 * 2 * 6 + 2


def test_precision(tiny_t5):
    model = AutoModelForSeq2SeqLMWithValueHead.from_pretrained(
        tiny_t5, peft_config=SEQ2SEQ_LORA, dtype=torch.bfloat16, v_head_init_strategy="zeros"
    )
    assert model.base_model.shared.weight.dtype == torch.bfloat16
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    ids, mask = torch.ones(1, 3).long(), torch.ones(1, 3).long()
    logits, _, values = model(ids, None, mask, decoder_input_ids=ids, decoder_attention_mask=mask)
    assert logits.dtype == torch.bfloat16 and values.dtype == torch.float32
    # an untrained value head says 0, and no value projection of attention was unfrozen with it
    assert not values.any()
    assert not [n for n, p in model.named_parameters() if p.requires_grad and "lora_" not in n and "v_head" not in n]


def edited(tiny_t5, tmp_path, edit):
    folder = tmp_path / "edited"
    shutil.copytree(tiny_t5, folder)
    state = load_file(folder / "model.safetensors")
    edit(state)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_missing_weights_are_named(tiny_t5, tmp_path):
    name = "decoder.block.1.layer.2.DenseReluDense.wo.weight"
    folder = edited(tiny_t5, tmp_path, lambda state: state.pop(name))
    with pytest.raises(ValueError, match=name.replace(".", r"\.")) as error:
        AutoModelForSeq2SeqLMWithValueHead.from_pretrained(folder)
    assert "\n" not in str(error.value)


def test_weights_of_the_wrong_shape_are_named(tiny_t5, tmp_path):
    name = "encoder.final_layer_norm.weight"
    folder = edited(tiny_t5, tmp_path, lambda state: state.update({name: torch.ones(3)}))
    with pytest.raises(ValueError, match=r"final_layer_norm.*\(3,\) where \(64,\)"):
        AutoModelForSeq2SeqLMWithValueHead.from_pretrained(folder)


def test_adapter_errors(tiny_t5, tmp_path):
    model = AutoModelForSeq2SeqLMWithValueHead.from_pretrained(tiny_t5, peft_config=SEQ2SEQ_LORA)
    model.save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match="leave peft_config out"):
        AutoModelForSeq2SeqLMWithValueHead.from_pretrained(tmp_path / "adapter", peft_config=SEQ2SEQ_LORA)
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    state = load_file(path)
    lost = sorted(state)[0]
    state.pop(lost)
    save_file(state, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"lacks weights: {lost}"):
        AutoModelForSeq2SeqLMWithValueHead.from_pretrained(tmp_path / "adapter")


def test_an_adapter_whose_base_model_has_moved_is_named(tiny_t5, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(tiny_t5, base)
    model = AutoModelForSeq2SeqLMWithValueHead.from_pretrained(base, peft_config=SEQ2SEQ_LORA)
    model.save_pretrained(tmp_path / "adapter")
    base.rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="base_model_name_or_path") as error:
        AutoModelForSeq2SeqLMWithValueHead.from_pretrained(tmp_path / "adapter")
    assert str(tmp_path / "adapter") in str(error.value) and str(base) in str(error.value)
    (tmp_path / "elsewhere").rename(base)
    assert same_weights(model, AutoModelForSeq2SeqLMWithValueHead.from_pretrained(tmp_path / "adapter"))


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere", "a/b/nowhere", "~/nowhere"])
def test_a_folder_that_is_not_there_is_no_hub_name(name):
    with pytest.raises(ValueError, match="no folder") as error:
        AutoModelForSeq2SeqLMWithValueHead.from_pretrained(name)
    assert name in str(error.value)


def test_a_wrong_value_head_is_named(tiny_t5, tmp_path):
    AutoModelForSeq2SeqLMWithValueHead.from_pretrained(tiny_t5).save_pretrained(tmp_path / "m")
    save_file({"weight": torch.ones(1, 5), "bias": torch.ones(1)}, tmp_path / "m" / "v_head.safetensors")
    with pytest.raises(ValueError, match=r"v_head\.safetensors does not hold this model's value head"):
        AutoModelForSeq2SeqLMWithValueHead.from_pretrained(tmp_path / "m")


def test_wrong_kind_of_model(tiny_t5, tiny_gpt2, tmp_path):
    with pytest.raises(ValueError, match="gpt2 model, which is not an encoder-decoder"):
        AutoModelForSeq2SeqLMWithValueHead.from_pretrained(tiny_gpt2)
    with pytest.raises(ValueError, match="t5 model, which is not a decoder-only"):
        AutoModelForCausalLMWithValueHead.from_pretrained(tiny_t5)
    with pytest.raises(ValueError, match=r"neither config\.json nor adapter_config\.json"):
        AutoModelForSeq2SeqLMWithValueHead.from_pretrained(tmp_path)


def test_causal_lora_round_trip(tiny_llama, tmp_path):
    lora = LoraConfig(r=2, task_type="CAUSAL_LM", target_modules=["q_proj"])
    model = with_random_head(AutoModelForCausalLMWithValueHead.from_pretrained(tiny_llama, peft_config=lora))
    model.save_pretrained(tmp_path / "saved")
    assert same_weights(model, AutoModelForCausalLMWithValueHead.from_pretrained(tmp_path / "saved"))
