"""The policy and its trainer, from the flags that both tasks share."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ..common.errors import UserError
from ..models.load import reported

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedTokenizerBase

    from trl import AutoModelForSeq2SeqLMWithValueHead, PPOConfig, PPOTrainer

    from .rollout import Prompt


def load_tokenizer(policy: str) -> PreTrainedTokenizerBase:
    """The tokenizer beside the policy."""
    from transformers import AutoTokenizer

    with reported("the tokenizer of the policy", policy):
        return AutoTokenizer.from_pretrained(policy)


def load_model(
    policy: str,
    tokenizer: PreTrainedTokenizerBase,
    dtype: str,
    fresh_adapter: PeftConfig | None = None,
    targets: list[str] | None = None,
) -> AutoModelForSeq2SeqLMWithValueHead:
    """The model at `policy`, with `fresh_adapter` on `targets` if it has no adapter of its own.

    targets: ends of module names; None: those of `trl.lora.lora_targets`. They are printed.
    Raises UserError if the model cannot be loaded, if it has no module of such a name, and if the tokenizer has tokens
    for which it has no embedding.
    """
    import torch

    from trl import AutoModelForSeq2SeqLMWithValueHead
    from trl.adapters import is_adapter

    with reported("the policy", policy):
        if is_adapter(policy):
            if targets:
                raise UserError(f"{policy} has an adapter, which stays where it is; drop --lora_targets")
        elif fresh_adapter is not None:
            fresh_adapter.target_modules = _check_targets(policy, targets)
        model = AutoModelForSeq2SeqLMWithValueHead.from_pretrained(
            policy,
            peft_config=None if is_adapter(policy) else fresh_adapter,
            dtype=getattr(torch, dtype),
            v_head_init_strategy="zeros",
        )
    rows = len(model.base_model.get_input_embeddings().weight)
    last = max(tokenizer.get_vocab().values())
    if last >= rows:
        raise UserError(
            f"the tokenizer of {policy} has {last + 1} tokens and the model embeddings for {rows}; "
            "save the adapter with its embeddings, or give the tokenizer of its base model"
        )
    return model


def _check_targets(policy: str, targets: list[str] | None) -> list[str] | None:
    """The modules that get LoRA: `targets` if the model has them, or else those that are found. Loads no weights."""
    import torch
    from transformers import AutoConfig, AutoModelForSeq2SeqLM

    from trl.lora import lora_targets, unknown_targets

    from ..common.launch import process_state

    config = AutoConfig.from_pretrained(policy)
    if not config.is_encoder_decoder:
        return targets  # loading it reports that
    with torch.device("meta"):
        model = AutoModelForSeq2SeqLM.from_config(config)
    if unknown := unknown_targets(model, targets or []):
        raise UserError(
            f"--lora_targets: {policy} has no module {unknown[0]!r}; its attention has {', '.join(lora_targets(model))}"
        )
    targets = targets or lora_targets(model)
    process_state().print(f"LoRA on {', '.join(targets)}")
    return targets


def encode_splits(
    tokenizer: PreTrainedTokenizerBase,
    examples: dict[str, list[dict]],
    prompt_of: Callable[[dict], str],
    max_tokens: int,
    sources: dict[str, str],
) -> dict[str, list[Prompt]]:
    """The prompts of each split as the policy reads them; reports how many, where from, and how many were cut.

    Warns of dev prompts that are trained on.
    """
    from ..common.launch import process_state
    from ..learning.fit import warn_of_shared
    from .rollout import encode_prompts

    if {"train", "dev"} <= set(examples):
        warn_of_shared(map(prompt_of, examples["train"]), map(prompt_of, examples["dev"]))
    prompts = {}
    for split, rows in examples.items():
        prompts[split], cut = encode_prompts(tokenizer, rows, [prompt_of(row) for row in rows], max_tokens)
        process_state().print(
            f"{split}: {len(rows)} prompts from {sources[split]}, {cut} of them cut to {max_tokens} tokens"
        )
    return prompts


def build_trainer(
    args: argparse.Namespace, policy: str, tokenizer: PreTrainedTokenizerBase, train_prompts: list[Prompt] | None
) -> PPOTrainer:
    """The policy at `policy` (with fresh LoRA adapters where it has none) in a PPO trainer.

    LoRA as in the paper: rank 16, alpha 32, dropout 0.05.
    """
    from peft import LoraConfig, TaskType

    from trl import PPOConfig, set_seed

    from ..common.launch import process_state

    set_seed(args.seed)  # of the fresh adapters; the trainer seeds again, each process with its own
    # with --test as well: fresh adapters add zero, and spare the trainer a copy of the model as its reference
    lora = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.05, bias="none", task_type=TaskType.SEQ_2_SEQ_LM)
    config = PPOConfig(
        seed=args.seed,
        learning_rate=args.lr,
        batch_size=args.batch_size,
        mini_batch_size=args.batch_size if args.test else args.mini_batch_size,
        gradient_accumulation_steps=1 if args.test else args.gradient_accumulation_steps,
        ppo_epochs=args.n_ppo_epoch_per_rollout,
        early_stopping=True,
        target_kl=args.kl_threshold,
        log_with="none" if args.test else args.report_to,
        tracker_project_name="alarm",
        run_name=args.run_name,
        logging_dir=str(Path(args.save_dir) / "tracker"),
    )
    processes = process_state().num_processes
    if train_prompts is not None and len(train_prompts) < config.batch_size * processes:
        raise UserError(
            f"the dataset has {len(train_prompts)} examples, fewer than one batch of {config.batch_size} on each of "
            f"{processes} process(es); lower batch_size or give more data"
        )
    targets = [target.strip() for target in args.lora_targets.split(",")] if args.lora_targets else None
    model = load_model(policy, tokenizer, args.dtype, lora, targets)
    return make_trainer(config, model, tokenizer, train_prompts)


def make_trainer(
    config: PPOConfig,
    model: AutoModelForSeq2SeqLMWithValueHead,
    tokenizer: PreTrainedTokenizerBase,
    train_prompts: list[Prompt] | None = None,
) -> PPOTrainer:
    """A PPO trainer whose batches are lists of prompts. Raises UserError if it cannot be made."""
    from trl import PPOTrainer

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "no dataset was given")  # it then answers prompts and does not train
            return PPOTrainer(config, model, tokenizer=tokenizer, dataset=train_prompts, data_collator=list)
    except ValueError as error:
        raise UserError(str(error)) from error
