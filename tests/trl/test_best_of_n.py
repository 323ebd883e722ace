from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedTokenizerFast,
)

from trl import AutoModelForCausalLMWithValueHead, AutoModelForSeq2SeqLMWithValueHead, BestOfNSampler
from trl.core import LengthSampler, set_seed
from trl.extras.best_of_n_sampler import BestOfNSampler as SameSampler

# as scripts write them
CLASSIC = {"min_length": -1, "top_k": 0.0, "top_p": 1.0, "do_sample": True, "pad_token_id": 1}
QUERIES = [[5, 6, 7], [8, 9]]


@pytest.fixture(scope="module")
def words() -> PreTrainedTokenizerFast:
    """The vocabulary of the tiny GPT-2: id 7 is the word w7, ids 0 and 1 pad and end."""
    vocabulary = {"<pad>": 0, "<end>": 1} | {f"w{id}": id for id in range(2, 48)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="w2"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>")


@pytest.fixture
def gpt2(tiny_gpt2):
    return AutoModelForCausalLMWithValueHead.from_pretrained(tiny_gpt2).eval()


def lengths(texts: list[str]) -> list[float]:
    return [float(len(text)) for text in texts]


class Recorder:
    """A reward that remembers what it was asked."""

    def __init__(self, reward=lengths):
        self.calls: list[list[str]] = []
        self.reward = reward

    def __call__(self, texts):
        self.calls.append(list(texts))
        return self.reward(texts)


def test_one_class():
    assert BestOfNSampler is SameSampler


@pytest.mark.parametrize(
    "queries, expected",
    [
        (QUERIES[0], 1),
        (torch.tensor(QUERIES[0]), 1),
        (QUERIES, 2),
        ([torch.tensor(query) for query in QUERIES], 2),
        ([torch.tensor([query]) for query in QUERIES], 2),
        ([], 0),
    ],
    ids=["ids", "tensor", "lists", "tensors", "rows", "nothing"],
)
def test_each_form_of_a_query(gpt2, words, queries, expected):
    sampler = BestOfNSampler(gpt2, words, lengths, LengthSampler(2, 6), generation_config=GenerationConfig(**CLASSIC))
    found = sampler.generate(queries)
    assert len(found) == expected
    for texts, start in zip(found, ["w5 w6 w7", "w8 w9"], strict=False):
        assert len(texts) == 1 and texts[0].startswith(start)


@pytest.mark.parametrize("sample_size, n_candidates", [(1, 1), (4, 2), (6, 6)])
@pytest.mark.parametrize("kind", ["decoder", "encoder-decoder"])
def test_the_best_are_returned_best_first(gpt2, words, tiny_t5, kind, sample_size, n_candidates):
    model, tokenizer, queries = gpt2, words, QUERIES
    if kind == "encoder-decoder":
        model, tokenizer = (
            AutoModelForSeq2SeqLMWithValueHead.from_pretrained(tiny_t5),
            AutoTokenizer.from_pretrained(tiny_t5),
        )
        queries = [tokenizer.encode(text) for text in ("the river", "a cold morning")]
    reward = Recorder()
    sampler = BestOfNSampler(model.eval(), tokenizer, reward, lambda: 12, sample_size, 0, n_candidates)
    found = sampler.generate(queries)
    assert [len(texts) for texts in reward.calls] == [sample_size] * 2
    assert len(found) == 2
    for texts, asked in zip(found, reward.calls, strict=True):
        assert lengths(texts) == sorted(lengths(asked), reverse=True)[:n_candidates]
        assert set(texts) <= set(asked)
    if kind == "decoder":
        assert all(text.startswith("w5 w6 w7") for text in reward.calls[0])
    else:
        assert not any(text.startswith("the river") for text in reward.calls[0])


def test_samples_differ_and_a_seed_repeats_them(gpt2, words):
    def asked(**settings):
        reward = Recorder()
        BestOfNSampler(gpt2, words, reward, lambda: 8, seed=3, **settings).generate(QUERIES[0])
        return reward.calls[0]

    assert len(set(asked(sample_size=8))) > 4  # though nothing asks for sampling
    assert asked() == asked() == asked(generation_config=GenerationConfig())
    assert len(set(asked(generation_config=GenerationConfig(do_sample=False)))) == 1
    torch.manual_seed(5)
    before = torch.get_rng_state()
    BestOfNSampler(gpt2, words, lengths, lambda: 8)
    assert torch.equal(torch.get_rng_state(), before)


def test_only_the_callers_settings_count(gpt2, words, tiny_gpt2):
    reward = Recorder()

    def asked(model, **given):
        set_seed(0)
        BestOfNSampler(model, words, reward, lambda: 8, generation_config=given.pop("config", None)).generate(
            QUERIES[0], **given
        )
        return reward.calls[-1]

    plain = asked(gpt2)
    bent = AutoModelForCausalLM.from_pretrained(tiny_gpt2).eval()
    bent.generation_config.repetition_penalty = 50.0
    bent.generation_config.top_k = 1
    assert asked(bent) == plain
    assert asked(bent, top_k=1) != plain and len(set(asked(bent, top_k=1))) == 1
    # what is passed goes before the settings, and those before what is left open
    config = GenerationConfig(top_k=1, do_sample=True)
    assert asked(gpt2, config=config) == asked(gpt2, top_k=1)
    assert asked(gpt2, config=config, top_k=0) == plain
    texts = asked(gpt2, max_new_tokens=2, eos_token_id=None, skip_special_tokens=False)
    assert {len(text.split()) for text in texts} == {5}


def test_one_length_per_query(gpt2, words):
    sampled = iter([2, 5])
    reward = Recorder()
    config = GenerationConfig(**CLASSIC)
    sampler = BestOfNSampler(gpt2, words, reward, lambda: next(sampled), generation_config=config)
    sampler.generate([[5, 6], [5, 6]], eos_token_id=None, skip_special_tokens=False)
    assert [{len(text.split()) for text in texts} for texts in reward.calls] == [{4}, {7}]


def test_special_tokens_can_be_kept(gpt2, words):
    reward = Recorder()
    BestOfNSampler(gpt2, words, reward, lambda: 60, sample_size=8, seed=0).generate(
        QUERIES[0], skip_special_tokens=False
    )
    assert any(text.endswith("<end>") for text in reward.calls[0])
    # a response ends with its end token: no padding after it
    assert all(text.count("<end>") <= 1 and "<end> " not in text for text in reward.calls[0])


@pytest.mark.parametrize(
    "reward, message",
    [
        (lambda texts: [1.0], "1 scores for 4"),
        (lambda texts: [1.0, float("nan"), 2.0, 3.0], "NaN"),
    ],
)
def test_scores_that_rank_nothing(gpt2, words, reward, message):
    with pytest.raises(ValueError, match=message):
        BestOfNSampler(gpt2, words, reward, lambda: 3).generate(QUERIES[0])


def test_scores_of_other_kinds(gpt2, words):
    for reward in (
        lambda texts: torch.tensor(lengths(texts)),
        lambda texts: [torch.tensor([n]) for n in lengths(texts)],
    ):
        set_seed(0)
        found = BestOfNSampler(gpt2, words, reward, lambda: 6).generate(QUERIES)
        set_seed(0)
        assert found == BestOfNSampler(gpt2, words, lengths, lambda: 6).generate(QUERIES)


def test_arguments_that_do_not_fit(gpt2, words):
    for given, message in [
        ({"n_candidates": 5}, "n_candidates"),
        ({"n_candidates": 0}, "n_candidates"),
        ({"tokenizer": "gpt2"}, "tokenizer"),
        ({"model": "gpt2"}, "model"),
    ]:
        arguments = {"model": gpt2, "tokenizer": words, "queries_to_scores": lengths, "length_sampler": lambda: 3}
        with pytest.raises(ValueError, match=message):
            BestOfNSampler(**arguments | given)
    with pytest.raises(ValueError, match="1-D"):
        BestOfNSampler(gpt2, words, lengths, lambda: 3).generate(torch.tensor([QUERIES[0]]))


def test_a_plain_encoder_decoder(tiny_t5):
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(tiny_t5), AutoTokenizer.from_pretrained(tiny_t5)
    reward = Recorder()
    (texts,) = BestOfNSampler(model, tokenizer, reward, lambda: 6).generate(tokenizer.encode("the river"), device="cpu")
    assert texts[0] in reward.calls[0]
