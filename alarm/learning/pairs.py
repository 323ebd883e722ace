"""Training a preference model on pairs of answers, and measuring it: what holistic and completeness models share."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..common.errors import UserError
from ..common.launch import process_state
from ..common.texts import answer_key
from ..tasks.preferences import Pair
from .fit import Losses, fit, set_aside
from .metrics import mean_and_deviation

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerBase

Encode = Callable[[list[str], list[str]], list[list[int]]]  # prompts, answers -> token ids
Score = Callable[["nn.Module", dict[str, "Tensor"]], "Tensor"]  # model, padded batch -> (B,)


def encode_pairs(encode: Encode, pairs: list[Pair]) -> list[dict]:
    """-> items {input_ids: the chosen text, rejected_ids: the other, question}."""
    prompts = [pair.prompt for pair in pairs]
    chosen = encode(prompts, [pair.chosen for pair in pairs])
    rejected = encode(prompts, [pair.rejected for pair in pairs])
    return [
        {"input_ids": a, "rejected_ids": b, "question": pair.question}
        for a, b, pair in zip(chosen, rejected, pairs, strict=True)
    ]


def encode_training_pairs(encode: Encode, pairs: list[Pair], max_length: int) -> list[dict]:
    """`encode_pairs` without the pairs whose two sides read the same; prints how many these are.

    Raises UserError if no pair is left.
    """
    items = encode_pairs(encode, pairs)
    told_apart = [
        item
        for item, pair in zip(items, pairs, strict=True)
        if item["input_ids"] != item["rejected_ids"] and answer_key(pair.chosen) != answer_key(pair.rejected)
    ]
    if not told_apart:
        raise UserError(
            f"cut to {max_length} tokens both answers of each of the {len(items)} training pairs read the same; "
            "give a longer --max_length, or a model that takes longer inputs"
        )
    if len(told_apart) < len(items):
        process_state().print(f"{len(items) - len(told_apart)} training pairs left out: both answers read the same")
    return told_apart


def bradley_terry_loss(chosen: Tensor, rejected: Tensor) -> Tensor:
    """-log sigmoid(chosen - rejected) of each pair; scores (B,) -> (B,)."""
    from torch.nn.functional import logsigmoid

    return -logsigmoid(chosen - rejected)


def collate_pairs(tokenizer: PreTrainedTokenizerBase) -> Callable[[list[dict]], dict[str, Tensor]]:
    """Items {input_ids, rejected_ids} -> one padded batch (2B, T): the chosen texts, then the rejected ones."""

    def collate(items: list[dict]) -> dict[str, Tensor]:
        ids = [item["input_ids"] for item in items] + [item["rejected_ids"] for item in items]
        return dict(tokenizer.pad({"input_ids": ids}, return_tensors="pt", padding_side="right"))

    return collate


def pair_loss(score: Score) -> Callable[[nn.Module, dict[str, Tensor]], Losses]:
    """The Bradley-Terry losses of a batch from `collate_pairs`, a pair counting one; `score(model, batch)` -> (2B,)."""

    def loss(model: nn.Module, batch: dict[str, Tensor]) -> Losses:
        chosen, rejected = score(model, batch).float().chunk(2)
        sums = bradley_terry_loss(chosen, rejected)
        return Losses(sums, sums.new_ones(len(sums)))

    return loss


def fit_pairs(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    items: list[dict],
    dev_items: list[dict],
    score: Score,
    args: argparse.Namespace,
    finish: Callable[[nn.Module, Path], dict],
) -> dict:
    """Train on encoded pairs by the Bradley-Terry loss; a part of `items` chooses the epoch (`set_aside`).

    dev_items: their loss is shown if nothing is set aside. score: see `pair_loss`; finish: see `fit`.
    """
    to_train, to_select = set_aside(items, args)
    return fit(
        model,
        tokenizer,
        to_train,
        to_select or dev_items,
        collate_pairs(tokenizer),
        args,
        pair_loss(score),
        finish,
        keep_last=not to_select,
    )


@dataclass(frozen=True)
class PairScores:
    """Raw scores of N pairs, and the mean and deviation of all answers that were scored."""

    chosen: list[float]  # N
    rejected: list[float]  # N
    mean: float
    deviation: float


def measure_preferences(
    model: nn.Module,
    pad_id: int,
    score: Score,
    encode: Encode,
    pairs: list[Pair],
    answers: list[tuple[str, str]],
    batch_size: int,
) -> PairScores:
    """Score both sides of `pairs`. Mean and deviation are those of `answers`, or of the pairs if there are none.

    answers: (prompt, answer) texts. Each text is scored once.
    """
    import torch

    from ..models.load import padded_batches

    sides = [(pair.prompt, text) for pair in pairs for text in (pair.chosen, pair.rejected)]
    unique = list(dict.fromkeys(answers + sides))
    ids_of = encode([prompt for prompt, _ in unique], [answer for _, answer in unique])
    scores = {}
    device = next(model.parameters()).device
    with torch.inference_mode():
        for indices, ids, mask in padded_batches(ids_of, pad_id, batch_size, device):
            values = score(model, {"input_ids": ids, "attention_mask": mask}).float().tolist()
            scores.update((unique[i], value) for i, value in zip(indices, values, strict=True))
    mean, deviation = mean_and_deviation([scores[text] for text in answers or sides])
    return PairScores(
        [scores[pair.prompt, pair.chosen] for pair in pairs],
        [scores[pair.prompt, pair.rejected] for pair in pairs],
        mean,
        deviation,
    )
