"""Longformer without its padding: the same numbers as transformers' own."""

from __future__ import annotations

import copy
import json
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    LongformerConfig,
    LongformerForSequenceClassification,
    LongformerForTokenClassification,
    LongformerModel,
)
from transformers.models.longformer import modeling_longformer

import alarm.models.longformer
from alarm.models.classifiers import TextScorer, UnitClassifier
from alarm.models.longformer import BlockedSelfAttention, make_blocks, make_packing, use_packed_attention
from helpers import CHECKPOINTS, GOLDEN

PAD = 1


def config(window: int | list[int] = 8, **changes) -> LongformerConfig:
    layers = len(window) if isinstance(window, list) else 2
    defaults = {"vocab_size": 50, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "num_labels": 3}
    defaults |= {"num_hidden_layers": layers, "attention_window": window, "max_position_embeddings": 200}
    defaults |= {"pad_token_id": PAD, "initializer_range": 0.3}
    return LongformerConfig(**defaults | changes)


def both(model_class, settings: LongformerConfig) -> tuple:
    """transformers' model in float64, and a copy of it with packed attention."""
    torch.manual_seed(0)
    model = model_class(settings).double().eval()
    with torch.no_grad():  # biases start at zero, and would hide a mistake with them
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model, use_packed_attention(copy.deepcopy(model))


@pytest.fixture(autouse=True)
def exact_softmax(monkeypatch):
    """transformers takes its softmax in float32 whatever the model is in: here in the type of the scores."""
    softmax = torch.nn.functional.softmax
    monkeypatch.setattr(torch.nn.functional, "softmax", lambda scores, dim, dtype=None: softmax(scores, dim))


def batch(lengths: list[int], width: int | None = None) -> dict[str, Tensor]:
    """Random ids of these lengths, padded on the right."""
    real = torch.arange(width or max(lengths)) < torch.tensor(lengths)[:, None]
    ids = torch.randint(3, 50, real.shape, generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids.masked_fill(~real, PAD), "attention_mask": real.long()}


def globally(inputs: dict[str, Tensor], *positions: int) -> dict[str, Tensor]:
    """With global attention at these positions of every text."""
    mask = torch.zeros_like(inputs["input_ids"])
    mask[:, list(positions)] = 1
    return inputs | {"global_attention_mask": mask}


def assert_same(models: tuple, inputs: dict[str, Tensor], tolerance: float = 1e-10) -> None:
    """Outputs at real positions are the same, all others are numbers."""
    with torch.no_grad():
        expected, found = (model(**inputs).logits for model in models)
    assert found.isfinite().all()
    if expected.ndim == 3:
        expected, found = (logits[inputs["attention_mask"] == 1] for logits in (expected, found))
    assert (expected - found).abs().max() < tolerance


# --- agreement with transformers -------------------------------------------------------------------------------------


@st.composite
def cases(draw):
    """Windows of two layers, a block size, and a batch with masked and global positions anywhere."""
    small = draw(st.integers(2, 5)) * 2  # transformers' own crashes with a window of 2
    windows = draw(st.sampled_from([[small, small], [small, 2 * small], [3 * small, small]]))
    lengths = draw(st.lists(st.integers(1, 45), min_size=1, max_size=4))
    inputs = batch(lengths, max(lengths) + draw(st.integers(0, 3)))
    shape = inputs["input_ids"].shape
    numbers = torch.Generator().manual_seed(draw(st.integers(0, 9999)))
    if draw(st.booleans()):  # holes, and padding on the left
        drop = torch.rand(shape, generator=numbers) < draw(st.sampled_from([0.05, 0.5]))
        drop[inputs["attention_mask"].cumsum(1) == 1] = draw(st.booleans())
        drop &= (inputs["attention_mask"] * ~drop).any(1, keepdim=True)
        inputs["attention_mask"] = inputs["attention_mask"] * ~drop
    if share := draw(st.sampled_from([0.0, 0.05, 0.5])):
        inputs["global_attention_mask"] = (torch.rand(shape, generator=numbers) < share).long()
    return windows, draw(st.sampled_from([1, 3, 4, 16, 128])), inputs


@settings(max_examples=40, deadline=None)
@given(cases())
def test_any_batch(case):
    windows, block, inputs = case
    with mock.patch.object(alarm.models.longformer, "CPU_BLOCK", block):
        assert_same(both(LongformerForTokenClassification, config(windows)), inputs)


@pytest.mark.parametrize("length", [1, 3, 4, 5, 7, 8, 9, 15, 16, 17, 24])
def test_lengths_around_borders(length):
    """Windows of 8, in blocks of 4 and 8, and a window that is wider than the text."""
    inputs = batch([length, max(1, length - 1), length])
    for window, block in [(8, 4), (8, 8), (64, 8)]:
        with mock.patch.object(alarm.models.longformer, "CPU_BLOCK", block):
            assert_same(both(LongformerForTokenClassification, config(window)), inputs)
            assert_same(both(LongformerForSequenceClassification, config(window)), inputs)  # the first token is global


def test_several_global_tokens():
    """Others in each text; one of them is masked, which leaves it local in none."""
    inputs = globally(batch([40, 30, 30, 12]), 0)
    inputs["global_attention_mask"][0, [7, 8, 39]] = 1
    inputs["global_attention_mask"][3, 20] = 1
    models = both(LongformerForTokenClassification, config(4))
    with mock.patch.object(alarm.models.longformer, "CPU_BLOCK", 8):
        assert_same(models, inputs)


def test_gradients():
    """Of every parameter, the same; and the same parameters have none."""
    for model_class, inputs in [
        (LongformerForTokenClassification, batch([30, 19, 30])),
        (LongformerForTokenClassification, globally(batch([30, 19, 30]), 0, 17)),
        (LongformerForSequenceClassification, batch([30, 19, 30])),
    ]:
        settings = config(8, attention_probs_dropout_prob=0.0, hidden_dropout_prob=0.0)
        models = both(model_class, settings)
        with mock.patch.object(alarm.models.longformer, "CPU_BLOCK", 8):
            for model in models:
                logits = model.train()(**inputs).logits
                if logits.ndim == 3:
                    logits = logits[inputs["attention_mask"] == 1]
                logits.square().sum().backward()
        for (name, expected), found in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
            assert (expected.grad is None) == (found.grad is None), name
            if expected.grad is not None:
                assert torch.allclose(expected.grad, found.grad, rtol=1e-9, atol=1e-9), name


@pytest.mark.parametrize("golden", GOLDEN)
@pytest.mark.parametrize("name", ["rel_rm", "fact_rm", "comp_rm"])
def test_golden_checkpoints(golden, name):
    """Real texts, one batch of ragged lengths, in float32."""
    folder = golden / "checkpoints" / f"tiny-{name}"
    loader = AutoModelForSequenceClassification if name == "comp_rm" else AutoModelForTokenClassification
    model = loader.from_pretrained(folder).eval()
    items = json.loads((golden / "finegrained_reward.json").read_text())["items"][::3]
    texts = [f"{item['prompt']} answer: {item['text']}" for item in items]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    inputs = dict(tokenizer(texts, truncation=True, max_length=1280, padding=True, return_tensors="pt"))
    assert_same((model, use_packed_attention(copy.deepcopy(model))), inputs, 5e-5)


@pytest.mark.parametrize(
    "device",
    ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))],
)
def test_4096_tokens(device):
    """The published window, padding, and global attention at the first token and far from it, in float32."""
    settings = config(512, hidden_size=64, num_attention_heads=2, max_position_embeddings=4098, initializer_range=0.1)
    models = both(LongformerForTokenClassification, settings)
    inputs = globally(batch([4096, 3001]), 0, 1700)
    inputs = {name: values.to(device) for name, values in inputs.items()}
    assert_same(tuple(model.float().to(device) for model in models), inputs, 1e-4)


# --- what else a model is asked for ----------------------------------------------------------------------------------


def test_hidden_states_and_tuples():
    inputs = batch([21, 13])
    real = inputs["attention_mask"] == 1
    model, ours = both(LongformerModel, config(8))
    with torch.no_grad():
        expected, found = (m(**inputs, output_hidden_states=True) for m in (model, ours))
        found_tuple = ours(**inputs, output_hidden_states=True, return_dict=False)
        from_embeddings = ours(inputs_embeds=ours.embeddings.word_embeddings(inputs["input_ids"][:1]))
    assert torch.allclose(found.pooler_output, expected.pooler_output, atol=1e-10)
    assert len(found.hidden_states) == len(expected.hidden_states) == 3
    for a, b in zip(found.hidden_states, expected.hidden_states, strict=True):
        assert torch.allclose(a[real], b[real], atol=1e-10)
    assert torch.equal(found_tuple[0], found.last_hidden_state)
    assert torch.equal(found_tuple[1], found.pooler_output)
    assert all(torch.equal(a, b) for a, b in zip(found_tuple[2], found.hidden_states, strict=True))
    assert (found.last_hidden_state[~real] == 0).all()
    assert torch.allclose(from_embeddings.last_hidden_state[0], found.last_hidden_state[0], atol=1e-10)


def test_attention_probabilities_are_refused():
    _, ours = both(LongformerForTokenClassification, config(8))
    with pytest.raises(ValueError, match="no attention probabilities"):
        ours(**batch([5]), output_attentions=True)
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
        ours(attention_mask=torch.ones(1, 5))


def test_a_text_without_a_real_token_disturbs_no_other():
    inputs = globally(batch([9, 0, 5]), 0)
    _, ours = both(LongformerForTokenClassification, config(4))
    with torch.no_grad():
        logits = ours(**inputs).logits
        alone = ours(**{name: values[[0, 2]] for name, values in inputs.items()}).logits
    assert logits.isfinite().all()
    assert torch.allclose(logits[[0, 2]], alone, atol=1e-12)


def test_attention_dropout_keeps_the_mean():
    """Attention is linear in its probabilities: the mean over draws is what there is without dropout."""
    settings = config(8, attention_probs_dropout_prob=0.4, hidden_dropout_prob=0.0)
    _, ours = both(LongformerModel, settings)
    attention = ours.encoder.layer[0].attention.self
    kinds = torch.ones(1, 20)
    kinds[0, 0] = 2
    packing = make_packing(kinds, {4}, 8)
    hidden = torch.randn(1, 20, 16, dtype=torch.float64)
    with torch.no_grad():
        [expected] = attention(hidden, packing)
        draws = torch.stack([attention.train()(hidden, packing)[0] for _ in range(1000)])
    assert draws.std(0).min() > 0.01
    errors = (draws.mean(0) - expected) / (draws.std(0) / len(draws) ** 0.5)
    assert errors.abs().max() < 5
    attention.dropout = 1.0
    assert torch.equal(attention(hidden, packing)[0], torch.zeros_like(expected))


def test_training_in_bfloat16_and_with_recomputation():
    """Autocast gives attention another type than the residual stream; a recomputed layer gives the same gradient."""
    inputs = globally(batch([30, 19]), 0, 17)
    settings = config(8, attention_probs_dropout_prob=0.0, hidden_dropout_prob=0.0)
    _, ours = both(LongformerForTokenClassification, settings)
    ours.float().train()
    ours(**inputs).logits.square().mean().backward()
    expected = ours.longformer.encoder.layer[0].attention.self.key_global.weight.grad.clone()
    ours.zero_grad()
    ours.activation_checkpointing_enable()
    ours(**inputs).logits.square().mean().backward()
    assert torch.allclose(ours.longformer.encoder.layer[0].attention.self.key_global.weight.grad, expected, atol=1e-7)
    ours.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        loss = ours(**inputs).logits.float().square().mean()
    loss.backward()
    found = ours.longformer.encoder.layer[0].attention.self.key_global.weight.grad
    assert torch.cosine_similarity(found.flatten(), expected.flatten(), dim=0) > 0.95
    with torch.no_grad():
        exact = ours.eval()(**inputs).logits
        assert (ours.bfloat16()(**inputs).logits - exact).abs().max() < 0.1 * exact.abs().max()


def test_what_is_saved_is_transformers_own(tmp_path):
    for model_class in (LongformerForTokenClassification, LongformerModel):
        model, ours = both(model_class, config(8))
        ours.save_pretrained(tmp_path / model_class.__name__)
        model.save_pretrained(tmp_path / "plain")
        for file in ("config.json", "model.safetensors"):
            assert (tmp_path / model_class.__name__ / file).read_bytes() == (tmp_path / "plain" / file).read_bytes()
        back = model_class.from_pretrained(tmp_path / model_class.__name__)
        assert type(back.base_model) is modeling_longformer.LongformerModel


def test_other_models_stay():
    settings = BertConfig(
        vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, num_labels=1
    )
    model = BertForSequenceClassification(settings)
    before = [type(module) for module in model.modules()]
    assert use_packed_attention(model) is model
    assert [type(module) for module in model.modules()] == before


def test_reward_models_use_packed_attention():
    """By default; and their inputs are padded to the longest of the batch, not to the window."""
    models = [
        UnitClassifier(CHECKPOINTS / "tiny-rel_rm", "relevance", "cpu", torch.float32, 2),
        TextScorer(CHECKPOINTS / "tiny-comp_rm", "completeness", "cpu", torch.float32, 2),
    ]
    for reward_model in models:
        body = reward_model.model.longformer
        assert type(body) is alarm.models.longformer.LongformerModel
        assert {type(layer.attention.self) for layer in body.encoder.layer} == {BlockedSelfAttention}
    [logits, _] = models[0].logits([[0, 5, 6, 2], [0, 2]], global_first=False)
    assert logits.shape == (4, 3)


# --- by hand ---------------------------------------------------------------------------------------------------------


def test_blocks_by_hand():
    """Six tokens, the first global, the last but one masked; windows reach one token, blocks hold three."""
    first, second = make_blocks(torch.tensor([2, 1, 1, 1, 0, 1]), reach=1, size=3)
    assert (first.start, first.end, first.first, first.last, first.distant.tolist()) == (0, 3, 0, 4, [])
    assert first.allowed.int().tolist() == [[1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]
    assert (second.start, second.end, second.first, second.last, second.distant.tolist()) == (3, 6, 2, 6, [0])
    assert second.allowed.int().tolist() == [
        [1, 1, 0, 0, 1],
        [0, 1, 1, 1, 1],  # masked: it reads itself too, but no other reads it
        [0, 0, 0, 1, 1],
    ]


def test_packing_by_hand():
    kinds = torch.tensor([[1, 1, 1, 0], [0, 2, 1, 1], [1, 1, 1, 0], [1, 1, 1, 0]])
    packing = make_packing(kinds, {1, 2}, 8)
    assert packing.kept.tolist() == [0, 1, 2, 5, 6, 7, 8, 9, 10, 12, 13, 14]
    assert [(group.texts, group.length, group.global_at.tolist()) for group in packing.groups] == [
        (1, 3, []),
        (1, 3, [0]),
        (2, 3, []),
    ]
    assert set(packing.groups[0].blocks) == {1, 2}
    hidden = torch.arange(1.0, 17).view(4, 4, 1)
    packed = packing.pack(hidden)
    assert packed.shape == (1, 12, 1)
    assert torch.equal(packing.unpack(packed, kinds.shape)[..., 0], hidden[..., 0] * (kinds > 0))
    assert make_packing(torch.ones(2, 3), {1}, 8).kept is None
