"""The classic helper functions: against hand-computed numbers, and against torch if it has the same."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.distributions import Categorical
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl import AutoModelForCausalLMWithValueHead, core
from trl.import_utils import is_peft_available, is_torch_greater_2_0, is_transformers_greater_than

VALUES = torch.tensor([1.0, 2.0, 3.0, 4.0])
MASKS = [[0, 1, 1, 0], [1.0, 0.0, 1.0, 1.0], [True, True, True, True]]


# --- statistics under a mask -----------------------------------------------------------------------------------------


def test_means_and_variances_by_hand():
    mask = torch.tensor([0, 1, 1, 0])
    assert core.masked_mean(VALUES, mask) == 2.5
    assert core.masked_var(VALUES, mask) == 0.5  # (0.25 + 0.25) / 1
    assert core.masked_var(VALUES, mask, unbiased=False) == 0.25
    # (2 - 2.5) / sqrt(0.5)
    torch.testing.assert_close(core.masked_whiten(VALUES, mask)[1:3], torch.tensor([-1.0, 1.0]) * math.sqrt(0.5))
    table = torch.tensor([[1.0, 2.0, 9.0], [4.0, 9.0, 9.0]])
    masks = torch.tensor([[1, 1, 0], [1, 0, 0]])
    assert core.masked_mean(table, masks, axis=1).tolist() == [1.5, 4.0]
    assert core.masked_mean(table, masks, axis=0)[:2].tolist() == [2.5, 2.0]
    assert core.masked_mean(table, masks, axis=0)[2].isnan()
    assert core.masked_mean(table, masks) == pytest.approx(7 / 3)


@pytest.mark.parametrize("mask", MASKS, ids=["int", "float", "bool"])
def test_masked_statistics_are_those_of_what_is_left(mask):
    mask = torch.tensor(mask)
    kept = VALUES[mask.bool()]
    torch.testing.assert_close(core.masked_mean(VALUES, mask), kept.mean())
    torch.testing.assert_close(core.masked_var(VALUES, mask), kept.var())
    torch.testing.assert_close(core.masked_var(VALUES, mask, unbiased=False), kept.var(unbiased=False))
    for shift in (True, False):
        whitened = core.masked_whiten(VALUES, mask, shift_mean=shift)[mask.bool()]
        torch.testing.assert_close(whitened, core.whiten(kept, shift_mean=shift))
        torch.testing.assert_close(whitened.var(), torch.tensor(1.0))
        torch.testing.assert_close(whitened.mean(), torch.tensor(0.0) if shift else kept.mean(), atol=1e-6, rtol=0)


def test_masks_that_have_no_answer():
    assert core.masked_var(VALUES, torch.tensor([0, 1, 0, 0])) == 0
    with pytest.raises(ValueError, match="masked"):
        core.masked_var(VALUES, torch.zeros(4))
    assert core.masked_mean(VALUES, torch.zeros(4)).isnan()
    for statistic in (core.masked_mean, core.masked_var, core.masked_whiten):
        with pytest.raises(ValueError, match="0 and 1"):
            statistic(VALUES, torch.tensor([0.5, 1.0, 1.0, 1.0]))
    # what is masked has no part, whatever it is; what is not masked stays not finite
    bad = torch.tensor([math.nan, 2.0, 3.0, math.inf])
    assert core.masked_mean(bad, torch.tensor([0, 1, 1, 0])) == 2.5
    assert core.masked_mean(bad, torch.ones(4)).isnan()


def test_clipping():
    x = torch.tensor([-3.0, 0.5, 3.0])
    assert core.clip_by_value(x, -1, 1.0).tolist() == [-1.0, 0.5, 1.0]
    assert core.clip_by_value(x, x - 1, torch.tensor([-4.0, 0.0, 9.0])).tolist() == [-4.0, 0.0, 3.0]
    assert core.clip_by_value(torch.tensor([math.nan]), -1, 1).isnan().all()


# --- logits ----------------------------------------------------------------------------------------------------------


def test_logprobs_and_entropy_by_hand():
    logits = torch.tensor([[[1.0, 3.0], [5.0, 5.0]]]).log()  # probabilities 1/4, 3/4 and 1/2, 1/2
    labels = torch.tensor([[1, 0]])
    expected = torch.tensor([[0.75, 0.5]]).log()
    torch.testing.assert_close(core.logprobs_from_logits(logits, labels), expected)
    torch.testing.assert_close(
        core.logprobs_from_logits(logits, labels, gather=False).exp(), torch.tensor([[[0.25, 0.75], [0.5, 0.5]]])
    )
    # 1/4 log 4 + 3/4 log 4/3
    entropy = torch.tensor([[0.25 * math.log(4) + 0.75 * math.log(4 / 3), math.log(2)]])
    torch.testing.assert_close(core.entropy_from_logits(logits), entropy)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logprobs_and_entropy_against_torch(dtype):
    torch.manual_seed(0)
    logits = (3 * torch.randn(2, 5, 11)).to(dtype).requires_grad_()
    labels = torch.randint(11, (2, 5))
    same = logits.detach().clone().float().requires_grad_()
    torch.testing.assert_close(core.logprobs_from_logits(logits, labels), Categorical(logits=same).log_prob(labels))
    torch.testing.assert_close(core.entropy_from_logits(logits), Categorical(logits=same).entropy())
    # an entropy bonus has a gradient
    core.entropy_from_logits(logits).sum().backward()
    Categorical(logits=same).entropy().sum().backward()
    tolerance = {"atol": 1e-5, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 0.01, "rtol": 0.01}
    torch.testing.assert_close(logits.grad.float(), same.grad, **tolerance)


def test_filtering_by_hand():
    logits = torch.tensor([[0.1, 0.4, 0.2, 0.3]]).log()

    def kept(**settings):
        return core.top_k_top_p_filtering(logits, **settings).isfinite()[0].tolist()

    assert kept() == [True] * 4
    assert kept(top_k=2) == [False, True, False, True]
    assert kept(top_p=0.65) == [False, True, False, True]  # 0.4 + 0.3
    assert kept(top_p=0.1) == [False, True, False, False]
    assert kept(top_p=0.1, min_tokens_to_keep=3) == [False, True, True, True]
    assert core.top_k_top_p_filtering(logits, top_k=1, filter_value=-7.0)[0].tolist()[::2] == [-7.0, -7.0]


# --- dictionaries of statistics --------------------------------------------------------------------------------------


def test_dictionaries():
    nested = {"a": {"b": 1, "c": {"d": 2}}, "e": 3}
    assert core.flatten_dict(nested) == {"a/b": 1, "a/c/d": 2, "e": 3}
    assert core.flatten_dict(nested, sep=".") == {"a.b": 1, "a.c.d": 2, "e": 3}
    for bad in ({"a/b": 1}, {"a": {"b/c": 1}}):
        with pytest.raises(ValueError, match="separator"):
            core.flatten_dict(bad)
    assert core.add_suffix({"a": 1}, "_x") == {"a_x": 1}

    one, two = {"x": torch.tensor([[1.0, 2.0]]), "y": torch.tensor(1)}, {"x": torch.tensor([3.0]), "y": torch.tensor(2)}
    stacked = core.stack_dicts([one, two])
    assert stacked["x"].tolist() == [[1.0, 2.0], [3.0, core.WANDB_PADDING]]
    assert stacked["y"].tolist() == [[1], [2]]
    average = core.average_torch_dicts([{"x": torch.tensor([1.0, 2.0])}, {"x": torch.tensor([3.0, 6.0])}])
    assert average["x"].tolist() == [2.0, 4.0]


def test_statistics_as_numbers():
    stats = {"a": torch.tensor(2), "b": np.array([1.5]), "c": torch.tensor([1.0, 2.0]), "d": "text", "e": 4}
    scalars = core.convert_to_scalar(stats)
    assert (scalars["a"], scalars["b"], scalars["d"], scalars["e"]) == (2, 1.5, "text", 4)
    assert type(scalars["a"]) is int and scalars["c"] is stats["c"]

    arrays = core.stats_to_np({**stats, "f": torch.tensor([0.5], dtype=torch.bfloat16, requires_grad=True)})
    assert isinstance(arrays["c"], np.ndarray) and arrays["c"].tolist() == [1.0, 2.0]
    assert arrays["f"].dtype == np.float32 and arrays["f"].tolist() == [0.5]
    assert arrays["e"] == 4.0 and isinstance(arrays["e"], float) and arrays["d"] == "text"
    assert arrays["a"].shape == () and arrays["a"] == 2


# --- batches ---------------------------------------------------------------------------------------------------------


def test_batches():
    table = torch.arange(6).reshape(2, 3)
    assert [row.tolist() for row in core.listify_batch(table)] == [[0, 1, 2], [3, 4, 5]]
    assert core.pad_to_size(table, 4, padding=9).tolist() == [[0, 1, 2, 9], [3, 4, 5, 9]]
    assert core.pad_to_size(table, 3, dim=0).tolist() == [[0, 1, 2], [3, 4, 5], [50256] * 3]
    assert core.pad_to_size(table, 3).tolist() == table.tolist()
    with pytest.raises(ValueError, match="3 entries"):
        core.pad_to_size(table, 2)


def test_texts_for_a_classifier(tiny_t5):
    tokenizer = AutoTokenizer.from_pretrained(tiny_t5)
    texts = ["the river", "the river is cold in the morning"]
    ids, mask = core.build_bert_batch_from_txt(texts, tokenizer, "cpu")
    expected = [tokenizer.encode(text) for text in texts]
    longest = len(expected[1])
    assert len(expected[0]) < longest and ids.shape == mask.shape == (2, longest)
    for row, given in enumerate(expected):
        missing = longest - len(given)
        assert ids[row].tolist() == given + [0] * missing
        assert mask[row].tolist() == [1.0] * len(given) + [0.0] * missing


# --- sampling --------------------------------------------------------------------------------------------------------


def test_lengths():
    sampler = core.LengthSampler(3, 6)
    np.random.seed(0)
    drawn = [sampler() for _ in range(200)]
    assert {type(length) for length in drawn} == {int} and set(drawn) == {3, 4, 5}
    np.random.seed(0)
    assert drawn == [int(np.random.choice([3, 4, 5])) for _ in range(200)]  # a seed gives the lengths that it gave
    with pytest.raises(ValueError, match="above"):
        core.LengthSampler(3, 3)


def test_a_response_of_a_fixed_length(tiny_gpt2):
    """Token by token from the softmax of the last logits, which is what the function stands for."""
    model = AutoModelForCausalLM.from_pretrained(tiny_gpt2).eval()
    model.generation_config.repetition_penalty = 50.0
    queries = torch.tensor([[5, 6, 7], [8, 9, 10]])
    for top_k, top_p in [(0, 1.0), (3, 1.0), (0, 0.5)]:
        core.set_seed(0)
        found = core.respond_to_batch(model, queries, txt_len=30, top_k=top_k, top_p=top_p)
        core.set_seed(0)
        ids = queries
        for _ in range(30):
            with torch.no_grad():
                logits = core.top_k_top_p_filtering(model(ids).logits[:, -1], top_k, top_p)
            ids = torch.cat([ids, torch.multinomial(logits.softmax(-1), 1)], dim=1)
        assert found.tolist() == ids[:, 3:].tolist()
    core.set_seed(0)
    wrapped = AutoModelForCausalLMWithValueHead.from_pretrained(tiny_gpt2)
    many = core.respond_to_batch(wrapped.eval(), queries.repeat(16, 1), txt_len=20)
    assert many.shape == (32, 20) and (many[:, :-1] == 1).any()  # the end token ends nothing


def test_seeding_repeats_every_kind_of_number():
    drawn = []
    for _ in range(2):
        core.set_seed(3)
        drawn.append((float(np.random.rand()), float(torch.rand(()))))
    assert drawn[0] == drawn[1]


def test_what_is_installed():
    assert is_peft_available() and is_torch_greater_2_0()
    # 5.23 is above 5.3, though not as a string
    assert is_transformers_greater_than("5.3.0") and not is_transformers_greater_than("99.0")
