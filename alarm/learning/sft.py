"""Supervised fine-tuning of an encoder-decoder policy on (prompt, target) pairs."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..common.launch import process_state
from .fit import Losses, fit, token_losses

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Encoded:
    """Tokenised pairs, and how many of their sides were longer than the limits."""

    items: list[dict]  # N x {input_ids: list[int] (Q_i,), labels: list[int] (T_i,), EOS last}
    cut_prompts: int
    cut_targets: int


def encode_pairs(
    tokenizer: PreTrainedTokenizerBase, pairs: list[tuple[str, str]], max_prompt: int, max_target: int
) -> Encoded:
    """Tokenise pairs; what is too long loses its end, but keeps EOS."""

    def encode(texts: list[str], limit: int) -> tuple[list[list[int]], int]:
        whole = tokenizer(texts, truncation=False, verbose=False)["input_ids"]
        cut = sum(len(ids) > limit for ids in whole)
        return tokenizer(texts, truncation=True, max_length=limit)["input_ids"] if cut else whole, cut

    prompts, cut_prompts = encode([prompt for prompt, _ in pairs], max_prompt)
    targets, cut_targets = encode([target for _, target in pairs], max_target)
    items = [{"input_ids": ids, "labels": labels} for ids, labels in zip(prompts, targets, strict=True)]
    return Encoded(items, cut_prompts, cut_targets)


def target_loss(model: nn.Module, batch: dict[str, Tensor]) -> Losses:
    """Cross-entropy at the target tokens of a batch, EOS included; each token counts one."""
    # given labels the model computes a loss too; some models need them to make the decoder's input
    inputs = {name: value for name, value in batch.items() if name != "labels" or "decoder_input_ids" not in batch}
    return token_losses(model(**inputs).logits, batch["labels"])


def train_seq2seq(
    train: list[tuple[str, str]],
    dev: list[tuple[str, str]],
    args: argparse.Namespace,
    max_prompt: int,
    max_target: int,
) -> dict:
    """Fine-tune `args.model_path` on `train`, keep the epoch of least loss on `dev`, write `args.save_dir`.

    `args` holds the flags of `supervised.training_parser`; lengths count tokens, EOS included. Returns the metrics that
    are written beside the model.
    """
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, DataCollatorForSeq2Seq, set_seed

    from trl.generation import describe_unused, keep_special_tokens

    from ..models.load import load_start, reported

    set_seed(args.seed)
    with reported("the tokenizer of the model", args.model_path):
        tokenizer = AutoTokenizer.from_pretrained(args.model_path)
    model = load_start(AutoModelForSeq2SeqLM, args.model_path)
    if unused := describe_unused(model):
        process_state().print(unused)
    keep_special_tokens(model)

    encoded = {}
    for name, pairs in (("train", train), ("dev", dev)):
        encoded[name] = one = encode_pairs(tokenizer, pairs, max_prompt, max_target)
        process_state().print(
            f"{name}: {len(pairs)} pairs; {one.cut_prompts} prompts cut to {max_prompt} tokens, "
            f"{one.cut_targets} targets to {max_target}"
        )
    return fit(
        model,
        tokenizer,
        encoded["train"].items,
        encoded["dev"].items,
        DataCollatorForSeq2Seq(tokenizer, model=model),
        args,
        target_loss,
    )
