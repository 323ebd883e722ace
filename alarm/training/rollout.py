"""Generation: prompts in, what the policy answered out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from ..types import Rollout

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from trl import PPOTrainer

Generate = Callable[[list[torch.Tensor]], list[torch.Tensor]]  # B x (Q_i,) -> B x (T_i,)


def generator(ppo: PPOTrainer, **settings: Any) -> Generate:
    """The trainer's policy, answering all prompts of a batch at once with these generation settings."""
    return lambda queries: ppo.generate(queries, batch_size=None, return_prompt=False, **settings)


@dataclass(frozen=True)
class Prompt:
    """One data row as the policy reads it."""

    row: dict
    text: str  # whole, also where the ids are cut
    ids: torch.Tensor  # (Q,) int64, at most the input limit


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase, rows: list[dict], texts: list[str], max_tokens: int
) -> tuple[list[Prompt], int]:
    """Tokenise the prompts of a data set once. Returns them and how many were cut to `max_tokens`.

    A cut prompt keeps its head and its final EOS, as the tokenizer's own truncation leaves it.
    """
    whole = tokenizer(texts, truncation=False, verbose=False)["input_ids"]
    cut = [i for i, ids in enumerate(whole) if len(ids) > max_tokens]
    if cut:
        for i, ids in zip(
            cut,
            tokenizer([texts[i] for i in cut], truncation=True, max_length=max_tokens)["input_ids"],
            strict=True,
        ):
            whole[i] = ids
    prompts = [
        Prompt(row, text, torch.tensor(ids, dtype=torch.long))
        for row, text, ids in zip(rows, texts, whole, strict=True)
    ]
    return prompts, len(cut)


def deal_batches(prompts: list[Prompt], batch_size: int, process: int, processes: int) -> list[tuple[int, list[int]]]:
    """The batches of one process: (number of the batch, indices of its prompts), the longest prompts first.

    Batches are made before they are dealt out, so each is the same whatever the number of processes.
    """
    order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i].ids), i))
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    return list(enumerate(batches))[process::processes]


def decode(tokenizer: PreTrainedTokenizerBase, response_ids: list[torch.Tensor]) -> list[str]:
    """The text of each response, byte for byte what `spans.token_offsets` measures."""
    return [
        tokenizer.decode(ids.tolist(), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        for ids in response_ids
    ]


def sample_rollout(generate: Generate, tokenizer: PreTrainedTokenizerBase, prompts: list[Prompt]) -> Rollout:
    """Let the policy answer `prompts` once. `too_short` marks the answers without text."""
    query_ids = [prompt.ids for prompt in prompts]
    response_ids = [ids.cpu() for ids in generate(query_ids)]
    responses = decode(tokenizer, response_ids)
    return Rollout(
        query_ids=query_ids,
        response_ids=response_ids,
        queries=[prompt.text for prompt in prompts],
        responses=responses,
        examples=[prompt.row for prompt in prompts],
        too_short=torch.tensor([not text.strip() for text in responses], dtype=torch.bool),
    )


def resample_empty(rollout: Rollout, generate: Generate, tokenizer: PreTrainedTokenizerBase) -> Rollout:
    """Give the answers without text one more try, together in one batch; the others stay as they are."""
    empty = rollout.too_short.nonzero().flatten().tolist()
    if not empty:
        return rollout
    response_ids, responses = list(rollout.response_ids), list(rollout.responses)
    again = [ids.cpu() for ids in generate([rollout.query_ids[i] for i in empty])]
    for i, ids, text in zip(empty, again, decode(tokenizer, again), strict=True):
        response_ids[i], responses[i] = ids, text
    return replace(
        rollout,
        response_ids=response_ids,
        responses=responses,
        too_short=torch.tensor([not text.strip() for text in responses], dtype=torch.bool),
    )
