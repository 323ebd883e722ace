"""A policy answers a batch of prompts as it answers each alone, and its files change nothing."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers import BartConfig, BartForConditionalGeneration, GPT2Config, GPT2LMHeadModel

from alarm.training.generate import answer_all, generator
from alarm.training.rollout import Prompt
from trl import AutoModelForCausalLMWithValueHead, AutoModelForSeq2SeqLMWithValueHead
from trl.generation import GREEDY, SAMPLING

VOCABULARY, PAD, START, NEW = 16, 0, 2, 4
KINDS = ["encoder-decoder", "decoder-only"]
QUERIES = [[3], [4, 5, 6, 7, 8, 9, 10], [11, 3], [12, 13, 14, 15]]
PREFIX = (5, 9)


def tiny_model(kind: str, end: int | None = None):
    """Random weights large enough that answers differ from prompt to prompt. No token ends an answer unless given."""
    torch.manual_seed(1)
    ids = {"vocab_size": VOCABULARY, "bos_token_id": 1, "pad_token_id": PAD, "eos_token_id": end}
    if kind == "decoder-only":
        config = GPT2Config(n_embd=16, n_layer=1, n_head=2, n_positions=32, initializer_range=0.5, **ids)
        return AutoModelForCausalLMWithValueHead(GPT2LMHeadModel(config), value_head=False)
    sizes = {"layers": 1, "attention_heads": 2, "ffn_dim": 32}
    sizes = {f"{part}_{name}": size for part in ("encoder", "decoder") for name, size in sizes.items()}
    config = BartConfig(
        d_model=16, max_position_embeddings=32, init_std=0.5, decoder_start_token_id=START, forced_eos_token_id=None,
        **sizes, **ids,
    )  # fmt: skip
    return AutoModelForSeq2SeqLMWithValueHead(BartForConditionalGeneration(config), value_head=False)


def tokenizer_with(end: int | None = None) -> SimpleNamespace:
    return SimpleNamespace(pad_token_id=PAD, eos_token_id=end)


def answers(policy, queries=QUERIES, end: int | None = None, seed: int = 0, **settings) -> list[list[int]]:
    torch.manual_seed(seed)
    settings = GREEDY | {"max_new_tokens": NEW} | settings
    found = generator(policy, tokenizer_with(end), **settings)([torch.tensor(query) for query in queries])
    return [ids.tolist() for ids in found]


def greedy_by_hand(policy, query: list[int], prefix: tuple[int, ...] = ()) -> list[int]:
    """The likeliest token, again and again, from whole forward passes without padding."""
    model, found = policy.pretrained_model.eval(), []
    with torch.no_grad():
        for _ in range(NEW):
            if model.config.is_encoder_decoder:
                decoder_ids = torch.tensor([[START, *prefix, *found]])
                logits = model(input_ids=torch.tensor([query]), decoder_input_ids=decoder_ids).logits
            else:
                logits = model(input_ids=torch.tensor([query + found])).logits
            found.append(int(logits[0, -1].argmax()))
    return found


def cut_after(row: list[int], ends: set[int]) -> list[int]:
    """Up to the first end token, included."""
    place = next((t for t, token in enumerate(row) if token in ends), len(row))
    return row[: place + 1]


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_of_several_lengths_are_answered_as_one_by_one(kind):
    policy = tiny_model(kind)
    together = answers(policy)
    assert together == [greedy_by_hand(policy, query) for query in QUERIES]
    assert together == [answers(policy, [query])[0] for query in QUERIES]
    assert len({tuple(row) for row in together}) > 2  # the prompt matters


def test_an_answer_starts_after_the_prefix_of_the_decoder():
    policy = tiny_model("encoder-decoder")
    plain = answers(policy)
    policy.decoder_prefix = PREFIX
    assert answers(policy) == [greedy_by_hand(policy, query, PREFIX) for query in QUERIES] != plain


@pytest.mark.parametrize("kind", KINDS)
def test_each_end_token_ends_an_answer(kind):
    """One end token each of the tokenizer, the config and the generation config."""
    sampling = SAMPLING | {"max_new_tokens": 20}
    free = answers(tiny_model(kind), QUERIES * 8, **sampling)
    assert {len(row) for row in free} == {20}
    policy = tiny_model(kind, end=8)
    policy.pretrained_model.generation_config.eos_token_id = [1, 8]
    found = answers(policy, QUERIES * 8, end=12, **sampling)
    assert found == [cut_after(row, {12, 8, 1}) for row in free]
    assert {row[-1] for row in found if len(row) < 20} == {12, 8, 1}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", [GREEDY, SAMPLING], ids=["greedy", "sampling"])
def test_nothing_comes_from_the_generation_config(kind, mode):
    policy = tiny_model(kind)
    before = answers(policy, **mode)
    used = sorted({token for row in before for token in row})
    asked = {"repetition_penalty": 5.0, "no_repeat_ngram_size": 1, "suppress_tokens": used}
    policy.pretrained_model.generation_config.update(
        do_sample=mode is GREEDY, num_beams=3, top_k=1, temperature=0.1, max_length=3, min_new_tokens=9, **asked
    )
    assert answers(policy, **mode) == before
    # what is passed has its effect, so that the files could have had one
    for name, value in asked.items():
        assert answers(policy, **mode, **{name: value}) != before, name


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_is_off(kind):
    policy = tiny_model(kind)
    found = answers(policy)
    policy.train()
    assert answers(policy) == found


@pytest.mark.parametrize("batch_size", [1, 3, 4])
def test_texts_come_in_the_order_of_the_prompts(batch_size, fresh_accelerate):
    tokenizer = tokenizer_with()
    tokenizer.decode = lambda ids, **_: " ".join(map(str, ids))
    policy = tiny_model("decoder-only")
    prompts = [Prompt({}, "", "", "", torch.tensor(query)) for query in QUERIES]
    settings = GREEDY | {"max_new_tokens": NEW}
    found = answer_all(policy, tokenizer, prompts, batch_size, "answering", **settings)
    assert found == [" ".join(map(str, greedy_by_hand(policy, query))) for query in QUERIES]
