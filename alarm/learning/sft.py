"""Supervised fine-tuning of a policy on (prompt, answer) pairs: what every train_sft.py does, for a task."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..api import Task
from ..common.errors import UserError
from ..common.files import is_text
from ..common.flags import add_flag, add_policy_flags, positive_int
from ..common.languages import FLAGS, set_languages
from ..common.launch import process_state
from ..common.prompts import encode_texts, uses_chat
from .fit import Losses, check_training, fit, leave_out_shared, token_losses, training_parser, warn_of_shared

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Encoded:
    """Tokenised pairs, and how many of their sides were longer than the limits."""

    items: list[dict]  # N x {input_ids: list[int] (Q_i,), labels: list[int] (T_i,), EOS last}
    cut_prompts: int
    cut_targets: int


def encode_separate(
    tokenizer: PreTrainedTokenizerBase, pairs: list[tuple[str, str]], max_prompt: int, max_target: int
) -> Encoded:
    """Tokenise pairs for an encoder-decoder; what is too long loses its end, but keeps EOS."""

    def encode(limit: int, **texts: list[str]) -> tuple[list[list[int]], int]:
        whole = tokenizer(**texts, truncation=False, verbose=False)["input_ids"]
        cut = sum(len(ids) > limit for ids in whole)
        return tokenizer(**texts, truncation=True, max_length=limit)["input_ids"] if cut else whole, cut

    prompts, cut_prompts = encode(max_prompt, text=[prompt for prompt, _ in pairs])
    # some tokenizers write targets in another way: Marian's other vocabulary, NLLB's target language
    targets, cut_targets = encode(max_target, text_target=[target for _, target in pairs])
    items = [{"input_ids": ids, "labels": labels} for ids, labels in zip(prompts, targets, strict=True)]
    return Encoded(items, cut_prompts, cut_targets)


def encode_joined(
    tokenizer: PreTrainedTokenizerBase, pairs: list[tuple[str, str]], max_prompt: int, max_target: int, chat: bool
) -> Encoded:
    """Tokenise pairs for a decoder-only model: prompt and target in one sequence, of which the target is learnt.

    The prompt is encoded as in training (`common.prompts`). A target that is too long loses its end, but keeps EOS.
    """
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"the tokenizer of {tokenizer.name_or_path} has no end-of-sequence token, with which an answer ends; "
            "set its eos_token"
        )
    prompts, _, cut_prompts = encode_texts(tokenizer, [prompt for prompt, _ in pairs], max_prompt, chat)
    targets = tokenizer([target for _, target in pairs], add_special_tokens=False, verbose=False)["input_ids"]
    cut_targets = sum(len(ids) >= max_target for ids in targets)
    items = []
    for prompt, target in zip(prompts, targets, strict=True):
        learnt = [*target[: max_target - 1], tokenizer.eos_token_id]
        items.append({"input_ids": prompt + learnt, "labels": [-100] * len(prompt) + learnt})
    return Encoded(items, cut_prompts, cut_targets)


def collate_joined(items: list[dict]) -> dict[str, Tensor]:
    """Items of `encode_joined` -> one batch (B, T), padded on the right: the positions are those of generation."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    def pad(rows: list[list[int]], value: int) -> Tensor:
        return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=value)

    ids = [item["input_ids"] for item in items]
    return {
        "input_ids": pad(ids, 0),  # masked: any id will do
        "attention_mask": pad([[1] * len(row) for row in ids], 0),
        "labels": pad([item["labels"] for item in items], -100),
    }


def target_loss(model: nn.Module, batch: dict[str, Tensor]) -> Losses:
    """Cross-entropy at the target tokens of a batch, EOS included; each token counts one."""
    # given labels the model computes a loss too; some models need them to make the decoder's input
    inputs = {name: value for name, value in batch.items() if name != "labels" or "decoder_input_ids" not in batch}
    return token_losses(model(**inputs).logits, batch["labels"])


def joined_loss(model: nn.Module, batch: dict[str, Tensor]) -> Losses:
    """`target_loss` of a decoder-only model: the logits at one token are of the next."""
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    return token_losses(model(**inputs).logits[:, :-1], batch["labels"][:, 1:])


# --- the command -----------------------------------------------------------------------------------------------------

DEFAULTS = {"model_path": None, "train_file": None, "dev_file": None, "num_epochs": 3, "batch_size": 8, "lr": 2e-4}


def parse_args(
    task: Task,
    description: str,
    argv: list[str] | None = None,
    add_more: Callable[[argparse.ArgumentParser], None] | None = None,
) -> argparse.Namespace:
    """All flags of a task's train_sft.py, and those that `add_more` adds."""
    defaults = DEFAULTS | dict(task.sft)
    files = {name: defaults.pop(name) for name in ("train_file", "dev_file")}
    flags = training_parser(description, **defaults)
    if add_more is not None:
        add_more(flags)
    what = {"train_file": "rows to train on", "dev_file": "held-out rows; the epoch of least loss on them is kept"}
    for name, default in files.items():
        flags.add_argument(f"--{name}", default=default, help=f"{what[name]} (JSON list or JSON lines)")
    lengths = {"max_input_len": "prompt", "max_generated_len": "answer"}
    for name, side in lengths.items():
        if name not in task.replaces:
            text = f"tokens of a {side}; what is longer loses its end"
            flags.add_argument(f"--{name}", type=positive_int, default=getattr(task, name), help=text)
    add_policy_flags(flags)
    for flag in task.flags:
        if flag.used_by == "all":
            add_flag(flags, flag)
    return flags.parse_args(argv)


def run_sft(task: Task, args: argparse.Namespace) -> None:
    """Fine-tune `args.model_path` to write `task.answer(row)` after `task.prompt(row)`. Writes args.save_dir."""
    if task.configure is not None:
        task = task.configure(task, args)
    if args.model_path is None:
        raise UserError("--model_path is not given; name the folder or the hub name of the model to start from")
    check_training(args)
    rows = task.rows(args, ("train", "dev"), task.load_answered)
    train, dev = (demonstrations(task, rows[split], getattr(args, f"{split}_file") or split) for split in rows)
    if task.repeats:
        warn_of_shared([prompt for prompt, _ in train], [prompt for prompt, _ in dev])
    else:
        train = leave_out_shared(train, dev, lambda pair: pair[0])
    train_policy(train, dev, args)


def demonstrations(task: Task, rows: list[dict], source: str) -> list[tuple[str, str]]:
    """(prompt, answer) for each answer of each row. source: their file, or their split if they have none, for errors.

    UserError names the source and the row that has no answer.
    """
    pairs = []
    for number, row in enumerate(rows, start=1):
        where = f"{source}, row {number}"
        prompt, answers = _call(task, "prompt", row, where), _call(task, "answer", row, where)
        for answer in answers if isinstance(answers, list | tuple) else [answers]:
            _check_text(prompt, "prompt", where)
            _check_text(answer, "answer", where)
            pairs.append((prompt, answer))
    if not pairs:
        raise UserError(f"{source} holds no reference answer; every row needs at least one")
    return pairs


def _call(task: Task, part: str, row: dict, where: str) -> object:
    """What `task.prompt` or `task.answer` gives for a row. UserError, which names the row, if it raises."""
    try:
        return getattr(task, part)(row)
    except Exception as error:  # of the task's own function
        reason = f"no {error}" if isinstance(error, KeyError) else f"{type(error).__name__}: {error}"
        raise UserError(f"{where}: {reason}; fix the row or the task's `{part}`") from error


def _check_text(text: object, part: str, where: str) -> None:
    """Raise UserError, which names the row, for what is no text that can be learnt."""
    if not isinstance(text, str):
        raise UserError(f"{where}: the {part} is {type(text).__name__}; expected text")
    if not is_text(text):
        raise UserError(f"{where}: the {part} holds half a surrogate pair, which is no character; fix the row")
    if part == "answer" and not text.strip():
        raise UserError(f"{where}: the answer is empty; fill it in or remove the row")


def train_policy(train: list[tuple[str, str]], dev: list[tuple[str, str]], args: argparse.Namespace) -> dict:
    """Fine-tune `args.model_path` on `train`, keep the epoch of least loss on `dev`, write `args.save_dir`.

    args: the flags of `parse_args`; lengths count tokens, EOS included. Returns the metrics that are written beside the
    model.
    """
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForSeq2SeqLM,
        AutoTokenizer,
        DataCollatorForSeq2Seq,
        set_seed,
    )

    from trl.generation import describe_unused, keep_special_tokens

    from ..models.load import has_encoder, load_config, load_start, reported

    set_seed(args.seed)
    with reported("the tokenizer of the model", args.model_path):
        tokenizer = AutoTokenizer.from_pretrained(args.model_path)
    try:
        prefix = set_languages(tokenizer, args.source_language, args.target_language)
    except UserError as error:
        raise UserError(f"{args.model_path}: {error}") from None
    both = has_encoder(load_config(args.model_path, "the model"), f"the model {args.model_path}")
    chat = uses_chat(tokenizer, not both, args.chat_template)
    model = load_start(AutoModelForSeq2SeqLM if both else AutoModelForCausalLM, args.model_path)
    if unused := describe_unused(model):
        process_state().print(unused)
    if chat:
        process_state().print(f"prompts go through the chat template of {args.model_path}")
    keep_special_tokens(model)

    limits = (args.max_input_len, args.max_generated_len)
    encoded = {}
    for name, pairs in (("train", train), ("dev", dev)):
        if both:  # labels hold the target language too, which is no token of the answer
            one = encode_separate(tokenizer, pairs, limits[0], limits[1] + len(prefix))
        else:
            one = encode_joined(tokenizer, pairs, *limits, chat)
        encoded[name] = one
        process_state().print(
            f"{name}: {len(pairs)} pairs; {one.cut_prompts} prompts cut to {limits[0]} tokens, "
            f"{one.cut_targets} targets to {limits[1]}"
        )
    return fit(
        model,
        tokenizer,
        encoded["train"].items,
        encoded["dev"].items,
        DataCollatorForSeq2Seq(tokenizer, model=model) if both else collate_joined,
        args,
        target_loss if both else joined_loss,
        # how the policy is to be asked
        finish=lambda model, folder: {name: getattr(args, name) for name in FLAGS if hasattr(args, name)},
    )
