"""The own generation of T5 on a CPU gives what transformers' gives: the tokens if greedy, else the probabilities."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    MT5Config,
    MT5ForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
)

from trl.generation import GREEDY, NEUTRAL, SAMPLING, generate, generation_settings, special_tokens
from trl.t5_generation import covers, decoder_of, draw, processors_of

SHIPPED = Path(__file__).parents[2] / "miniature" / "checkpoints" / "mt" / "start"
BY_TRANSFORMERS = {"synced_gpus": False}  # an argument of its `generate` that changes nothing: ours does not take it
NEW = 12


def small(kind: str = "relu", vocabulary: int = 40, ends=(1, 5, 7), factor: float = 1.0, **config):
    """Random weights of a size at which answers differ from query to query."""
    torch.manual_seed(1)
    model_class, config_class = (T5ForConditionalGeneration, T5Config)
    if kind == "mt5":
        model_class, config_class = MT5ForConditionalGeneration, MT5Config
    sizes = {"d_model": 32, "d_kv": 8, "num_heads": 4, "d_ff": 64, "num_layers": 2, "num_decoder_layers": 3}
    sizes |= {"num_layers": 3, "feed_forward_proj": "gated-gelu" if kind == "gated" else "relu"} | config
    if kind == "mt5":
        sizes["feed_forward_proj"] = "gated-gelu"
    made = config_class(
        vocab_size=vocabulary, decoder_start_token_id=0, pad_token_id=0, eos_token_id=list(ends),
        initializer_factor=factor, **sizes,
    )  # fmt: skip
    return model_class(made).eval()


def with_lora(model, **config):
    lora = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.5, "init_lora_weights": False, "task_type": "SEQ_2_SEQ_LM"}
    return get_peft_model(model, LoraConfig(**lora | config)).eval()


def queries(rows: int, longest: int = 9, vocabulary: int = 40, different: int | None = None):
    """Ids and mask, padded on the right; the rows repeat after `different` of them."""
    made = torch.Generator().manual_seed(3)
    ids = torch.randint(3, vocabulary, (different or rows, longest), generator=made)
    mask = torch.ones_like(ids)
    for row in range(len(ids)):
        mask[row, 1 + row % longest :] = 0
    ids = ids * mask
    times = -(-rows // len(ids))
    return ids.repeat(times, 1)[:rows], mask.repeat(times, 1)[:rows]


def answers(model, ids, mask, seed: int = 0, **given) -> list[list[int]]:
    torch.manual_seed(seed)
    return [row.tolist() for row in generate(model, ids, mask, special_tokens(model), **given)]


def is_ours(model, **given) -> bool:
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    settings = generation_settings(special_tokens(model), **given)
    return covers(settings, NEUTRAL) and decoder_of(model, base) is not None


MODELS = {
    "relu": lambda: small("relu"),
    "gated": lambda: small("gated"),
    "mt5": lambda: small("mt5"),
    "unscaled head": lambda: small("relu", tie_word_embeddings=False, scale_decoder_outputs=False),
    "lora": lambda: with_lora(small("relu"), target_modules=["q", "k", "v", "o", "wi", "wo"]),
    "lora on the head": lambda: with_lora(small("gated"), target_modules=["q", "lm_head"]),
}


# --- greedy ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 5, 40])  # from 32 on caches are laid out in another way
@pytest.mark.parametrize("model", MODELS)
def test_greedy_answers_are_those_of_transformers(model, rows):
    model = MODELS[model]()
    for given in (
        {},
        {"min_new_tokens": 4},
        {"min_length": 4},
        {"eos_token_id": None},
        {"eos_token_id": [*range(1, 20)]},
        {"pad_token_id": 3},
    ):
        given = GREEDY | {"max_new_tokens": NEW} | given
        assert is_ours(model, **given)
        ids, mask = queries(rows)
        assert answers(model, ids, mask, **given) == answers(model, ids, mask, **given, **BY_TRANSFORMERS), given


def test_answers_of_the_shipped_policy_are_those_of_transformers():
    """A trained model with real prompts, whose answers end."""
    model = T5ForConditionalGeneration.from_pretrained(SHIPPED).eval()
    tokenizer = AutoTokenizer.from_pretrained(SHIPPED)
    texts = ["Hoy este maestro alto nunca limpia el cuadro.", "Esos estudiantes nunca van a llamar a nuestro médico."]
    texts += [" ".join(text.split()[:n]) for text in texts for n in range(1, 6)] * 4
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    given = GREEDY | {"max_new_tokens": 24}
    assert is_ours(model, **given)
    found = answers(model, batch["input_ids"], batch["attention_mask"], **given)
    assert found == answers(model, batch["input_ids"], batch["attention_mask"], **given, **BY_TRANSFORMERS)
    assert len({len(row) for row in found}) > 2 and sum(row[-1] == 1 for row in found) > len(found) / 2


def test_a_long_answer_uses_all_positions():
    """Beyond the distance at which the position bias changes no more."""
    model = small(ends=(), relative_attention_max_distance=20)
    given = GREEDY | {"max_new_tokens": 60}
    ids, mask = queries(3)
    found = answers(model, ids, mask, **given)
    assert found == answers(model, ids, mask, **given, **BY_TRANSFORMERS) and {len(row) for row in found} == {60}


# --- sampling --------------------------------------------------------------------------------------------------------


def by_hand(model, ids, mask, **given) -> list[list[int]]:
    """Whole forward passes of transformers, its processors of logits, and the same uniform numbers."""
    torch.manual_seed(0)
    settings = generation_settings(special_tokens(model), **given)
    found = torch.zeros(len(ids), 1, dtype=torch.long)
    with torch.no_grad():
        for _ in range(settings.max_new_tokens):
            logits = model(input_ids=ids, attention_mask=mask, decoder_input_ids=found).logits[:, -1]
            probabilities = processors_of(settings, ids.device)(found, logits).softmax(-1)
            below = probabilities.double().cumsum(-1) <= torch.rand(len(ids), dtype=torch.float64)[:, None]
            found = torch.cat([found, below.sum(1, keepdim=True).clamp(max=probabilities.shape[1] - 1)], dim=1)
    rows = found[:, 1:].tolist()
    ends = settings.eos_token_id or []
    return [row[: next((t + 1 for t, id in enumerate(row) if id in ends), len(row))] for row in rows]


@pytest.mark.parametrize("rows", [6, 40])
@pytest.mark.parametrize("model", ["relu", "lora"])
@pytest.mark.parametrize(
    "given",
    [{}, {"temperature": 0.5}, {"temperature": 3.0, "top_k": 4}, {"top_p": 0.6}, {"min_new_tokens": 5}],
    ids=str,
)
def test_a_sampled_token_is_that_of_its_number(model, given, rows):
    """The probabilities of each token are transformers', and a row does not depend on when others end."""
    ends = {"eos_token_id": [1, 5, 7, 20, 21, 22, 23, 24, 25]}
    model, given = MODELS[model](), SAMPLING | ends | {"max_new_tokens": NEW} | given
    assert is_ours(model, **given)
    ids, mask = queries(rows, different=3)
    found = answers(model, ids, mask, **given)
    assert found == by_hand(model, ids, mask, **given)
    assert len({len(row) for row in found}) > 1


def processors_of_transformers(model, **given):
    seen = {}

    def spy(model, input_ids, logits_processor, **rest):
        seen["processors"] = list(logits_processor)
        return input_ids

    answers(model, *queries(2), custom_generate=spy, **given)
    return seen["processors"]


@pytest.mark.parametrize(
    "given",
    [
        SAMPLING,
        GREEDY | {"min_new_tokens": 3},
        SAMPLING | {"temperature": 0.7, "top_k": 5, "top_p": 0.9, "min_length": 2},
        GREEDY | {"temperature": 0.7, "top_p": 0.9},
    ],
)
def test_processors_are_those_of_transformers(given):
    model, given = small(), given | {"max_new_tokens": 4}
    mine = processors_of(generation_settings(special_tokens(model), **given), torch.device("cpu"))
    others = processors_of_transformers(model, **given)
    if "min_new_tokens" in given:
        # transformers sets min_length from it too, which asks for the same
        others = [other for other in others if "NewTokens" in type(other).__name__]
    assert [type(one) for one in mine] == [type(one) for one in others]
    logits, ids = torch.randn(2, 40), torch.zeros(2, 2, dtype=torch.long)
    for one, other in zip(mine, others, strict=True):
        assert torch.equal(one(ids, logits.clone()), other(ids, logits.clone()))


def test_frequencies_are_the_exact_probabilities_of_sequences():
    """Every sequence of up to three of five tokens, its probability from whole forward passes; chi-square."""
    model = small(vocabulary=5, ends=(1,), factor=0.7)
    ids, mask = queries(1, vocabulary=5)
    exact: dict[tuple, float] = {}
    with torch.no_grad():
        for row in itertools.product(range(5), repeat=3):
            log = model(input_ids=ids, attention_mask=mask, decoder_input_ids=torch.tensor([[0, *row[:2]]])).logits
            log = log[0].double().log_softmax(-1)
            end = next((t for t, token in enumerate(row) if token == 1), 2)
            exact[row[: end + 1]] = math.exp(sum(log[t, row[t]].item() for t in range(end + 1)))
    assert sum(exact.values()) == pytest.approx(1)
    count = 20_000
    found = answers(model, ids.repeat(count, 1), mask.repeat(count, 1), **SAMPLING, max_new_tokens=3)
    seen = Counter(map(tuple, found))
    assert set(seen) <= set(exact) and len(exact) > 20
    often = [row for row, p in exact.items() if count * p >= 5]
    groups = [(seen[row], count * exact[row]) for row in often]
    groups.append((count - sum(n for n, _ in groups), count - sum(e for _, e in groups)))
    chi = sum((n - e) ** 2 / e for n, e in groups if e > 1)
    freedom = sum(e > 1 for _, e in groups) - 1
    assert chi < freedom + 4 * math.sqrt(2 * freedom)
    assert len(often) > 10


def test_a_number_picks_the_first_token_whose_sum_passes_it():
    logits = torch.tensor([[0.25, 0.0, 0.5, 0.25, 0.0]]).log().repeat(6, 1)
    uniform = torch.tensor([0.0, 0.2, 0.25, 0.7, 0.75, 1 - 2**-53], dtype=torch.float64)
    assert draw(logits, uniform).tolist() == [0, 0, 2, 2, 3, 3]  # never 1 or 4, whose probability is zero


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_no_distribution_is_an_error(bad):
    model = small()
    model.decoder.final_layer_norm.weight.data.fill_(bad)
    assert is_ours(model, **SAMPLING, max_new_tokens=2)
    with pytest.raises(RuntimeError):
        answers(model, *queries(2), **SAMPLING, max_new_tokens=2)


# --- the model, and what is left to transformers ---------------------------------------------------------------------


def test_the_model_is_only_read():
    model = MODELS["lora"]()
    before = {name: (tensor.data_ptr(), tensor.clone()) for name, tensor in model.state_dict().items()}
    answers(model, *queries(4), **SAMPLING, max_new_tokens=5)
    after = model.state_dict()
    assert list(after) == list(before)
    for name, (place, tensor) in before.items():
        assert after[name].data_ptr() == place and torch.equal(after[name], tensor)


def test_adapters_that_are_off_have_no_part():
    model = MODELS["lora"]()
    ids, mask = queries(5)
    given = GREEDY | {"max_new_tokens": NEW}
    on = answers(model, ids, mask, **given)
    with model.disable_adapter():
        off = answers(model, ids, mask, **given)
        assert off == answers(model, ids, mask, **given, **BY_TRANSFORMERS)
    assert off == answers(small(), ids, mask, **given) != on


@pytest.mark.parametrize(
    "given",
    [
        {"num_beams": 2},
        {"repetition_penalty": 2.0},
        {"no_repeat_ngram_size": 2},
        {"typical_p": 0.5},
        {"min_p": 0.1},
        {"num_return_sequences": 2},
        {"bad_words_ids": [[3]]},
        {"forced_eos_token_id": 1},
        {"suppress_tokens": [3]},
        {"use_cache": False},
        {"max_new_tokens": None, "max_length": 5},
    ],
    ids=str,
)
def test_other_settings_are_left_to_transformers(given):
    assert is_ours(small(), **SAMPLING, max_new_tokens=5)
    assert not is_ours(small(), **SAMPLING | {"max_new_tokens": 5} | given)


def hooked():
    model = small()
    model.decoder.block[0].register_forward_hook(lambda _m, _i, output: output)
    return model


OTHER_MODELS = {
    "GPT-2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=9, n_embd=8, n_layer=1, n_head=2)).eval(),
    "train mode": lambda: small().train(),
    "bfloat16": lambda: small().to(torch.bfloat16),
    "a hook": hooked,
    "DoRA": lambda: with_lora(small(), use_dora=True, target_modules=["q"]),
    "a bias": lambda: with_lora(small(), lora_bias=True, target_modules=["q"]),
    "LoRA on embeddings": lambda: with_lora(small(), target_modules=["shared", "embed_tokens"]),
    "a part that is saved": lambda: with_lora(small(), target_modules=["q"], modules_to_save=["lm_head"]),
}


@pytest.mark.parametrize("name", OTHER_MODELS)
def test_other_models_are_left_to_transformers(name):
    assert not is_ours(OTHER_MODELS[name](), **SAMPLING, max_new_tokens=5)
