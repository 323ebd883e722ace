"""What a script of TRL's users does, unchanged, on a tiny GPT-2."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from helpers import load_script
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from trl import AutoModelForCausalLMWithValueHead

WORDS = "<|endoftext|> the a movie film plot cast was is good great fine bad poor dull slow long and but so very too".split()
STEPS = 14


@pytest.fixture(scope="module")
def model_name(tmp_path_factory) -> str:
    """A GPT-2 of one word per token, without a pad token as GPT-2 is, with settings that GPT-2's own file has."""
    folder = str(tmp_path_factory.mktemp("gpt2-reviews"))
    tokenizer = Tokenizer(models.WordLevel({word: id for id, word in enumerate(WORDS)}, unk_token=WORDS[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=WORDS[0], eos_token=WORDS[0], unk_token=WORDS[0]
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(WORDS), n_positions=32, n_embd=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0,
        task_specific_params={"text-generation": {"do_sample": True, "max_length": 50}},
    )  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def reviews() -> list[str]:
    draw = np.random.default_rng(0)
    return [" ".join(draw.choice(WORDS[1:], 8)) for _ in range(16 * STEPS)]


def gain(rewards: list[float]) -> float:
    """Mean reward of the last four steps over that of the first four."""
    assert len(rewards) == STEPS
    return float(np.mean(rewards[-4:]) - np.mean(rewards[:4]))
