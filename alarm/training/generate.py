"""The policy answers prompts: one function for rollouts, dev evaluation, --test, calibration and translation."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.utils.rnn import pad_sequence

from trl.generation import generate, special_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from trl.models import PreTrainedModelWrapper

    from ..api import Task
    from .rollout import Prompt

Generate = Callable[[list[torch.Tensor]], list[torch.Tensor]]  # B x (Q_i,) -> B x (T_i,)


def generator(policy: PreTrainedModelWrapper, tokenizer: PreTrainedTokenizerBase, **settings: Any) -> Generate:
    """The policy, answering all prompts of a batch at once with these generation settings and no others.

    A response ends with its first end token, included; see `trl.generation`. Prompts are padded on the side that
    this kind of model needs. An encoder-decoder's responses start after `policy.decoder_prefix`.
    """
    tokens = replace(special_tokens(policy.base_model, tokenizer), prefix=policy.decoder_prefix)

    def answer(queries: list[torch.Tensor]) -> list[torch.Tensor]:
        side = {"padding_side": policy.query_padding, "batch_first": True}
        ids = pad_sequence(queries, padding_value=tokens.pad, **side)
        mask = pad_sequence([torch.ones_like(row) for row in queries], **side)
        policy.eval()
        device = next(policy.parameters()).device
        with torch.no_grad():
            return generate(policy.pretrained_model, ids.to(device), mask.to(device), tokens, **settings)

    return answer


def answer_all(
    policy: PreTrainedModelWrapper,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[Prompt],
    batch_size: int,
    title: str,
    **settings: Any,
) -> list[str]:
    """The text of the answer to each prompt, in their order, on every process. Gathers: every process calls this."""
    from accelerate.utils import gather_object
    from tqdm.auto import tqdm

    from ..common.launch import process_state
    from .rollout import deal_batches, decode

    state, answer = process_state(), generator(policy, tokenizer, **settings)
    mine = deal_batches(prompts, batch_size, state.process_index, state.num_processes)
    found = []
    for _, batch in tqdm(mine, desc=title, unit="batch", leave=False, disable=not state.is_main_process):
        found += zip(batch, decode(tokenizer, answer([prompts[i].ids for i in batch])), strict=True)
    return [text for _, text in sorted(gather_object(found))]


def translate_split(
    task: Task, split: str, policy: str, args: Namespace, batch_size: int
) -> tuple[list[dict], list[str]]:
    """The rows of a split and the policy's greedy answer to each, as training encodes them. Every process calls this.

    args: what `task.rows` and `task.configure` need, dtype, chat_template, source_language and target_language.
    """
    from trl.generation import GREEDY

    from ..common.prompts import uses_chat
    from .policy import encode_splits, is_encoder_decoder, load_answering_policy, load_tokenizer

    task = task if task.configure is None else task.configure(task, args)
    rows = task.rows(args, [split])[split]
    tokenizer = load_tokenizer(policy, args)
    chat = uses_chat(tokenizer, not is_encoder_decoder(policy), args.chat_template)
    source = getattr(args, f"{split}_file") or args.dataset
    prompts = encode_splits(tokenizer, {split: rows}, task, args.max_input_len, {split: source}, chat)[split]
    model = load_answering_policy(policy, tokenizer, args)
    settings = GREEDY | {"max_new_tokens": args.max_generated_len}
    return rows, answer_all(model, tokenizer, prompts, batch_size, "translating", **settings)
