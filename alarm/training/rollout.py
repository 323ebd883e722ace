"""Generation: prompts in, what the policy answered out."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from ..api import Task
from ..common.prompts import encode_texts
from ..types import Rollout

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from .generate import Generate


@dataclass(frozen=True)
class Prompt:
    """One data row as the policy reads it. For most tasks the three texts are one."""

    row: dict
    query: str  # by which runs are matched
    prompt: str  # as the reward models read it
    text: str  # as the policy reads it: whole without a chat template, cut as the ids are with one
    ids: torch.Tensor  # (Q,) int64, at most the input limit
    baseline: float | None = None  # raw holistic score that an answer is compared with


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase, rows: list[dict], task: Task, max_tokens: int, chat: bool = False
) -> tuple[list[Prompt], int]:
    """Tokenise the prompts of a data set once. Returns them and how many were cut to `max_tokens`.

    chat: through the tokenizer's chat template; see `common.prompts`.
    """
    queries = [task.prompt(row) for row in rows]
    ids, texts, cut = encode_texts(tokenizer, queries, max_tokens, chat)
    read = queries if task.reward_prompt is None else [task.reward_prompt(row) for row in rows]
    parts = zip(rows, queries, read, texts, ids, strict=True)
    return [Prompt(*texts, torch.tensor(row, dtype=torch.long)) for *texts, row in parts], cut


def deal_batches(prompts: list[Prompt], batch_size: int, process: int, processes: int) -> list[tuple[int, list[int]]]:
    """The batches of one process: (number of the batch, indices of its prompts), the longest prompts first.

    Batches are made before they are dealt out, so each is the same for any number of processes.
    """
    order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i].ids), i))
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    return list(enumerate(batches))[process::processes]


def most_batches(prompts: int, batch_size: int, processes: int) -> int:
    """The number of batches of the process that `deal_batches` gives the most."""
    return math.ceil(math.ceil(prompts / batch_size) / processes)


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
    baselines = [prompt.baseline for prompt in prompts]
    return Rollout(
        query_ids=query_ids,
        response_ids=response_ids,
        queries=[prompt.prompt for prompt in prompts],
        responses=responses,
        examples=[prompt.row for prompt in prompts],
        too_short=torch.tensor([not text.strip() for text in responses], dtype=torch.bool),
        baseline=None if None in baselines else torch.tensor(baselines, dtype=torch.float64),
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
