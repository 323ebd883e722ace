"""The policy and its trainer, from the flags that both tasks share."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from trl.adapters import is_adapter

from ..api import Task
from ..common.errors import UserError
from ..common.files import read_json
from ..common.languages import differences, set_languages
from ..common.launch import is_main_process
from ..models.load import has_encoder, reported

if TYPE_CHECKING:
    import torch
    from peft import PeftConfig
    from transformers import PreTrainedTokenizerBase

    from trl import PPOConfig, PPOTrainer
    from trl.models import PreTrainedModelWrapper

    from .rollout import Prompt


def load_tokenizer(policy: str, args: argparse.Namespace) -> PreTrainedTokenizerBase:
    """The tokenizer beside the policy, set to the languages of the flags (see `common.languages`).

    Prints a warning if the policy was trained to be asked in another way. Raises UserError.
    """
    from transformers import AutoTokenizer

    with reported("the tokenizer of the policy", policy):
        tokenizer = AutoTokenizer.from_pretrained(policy)
    decoder_prefix(policy, tokenizer, args)
    for trained_with in (Path(policy) / "metrics.json", Path(policy).parent / "run.json"):
        if is_main_process() and trained_with.is_file():
            for difference in differences(read_json(trained_with), args):
                print(f"warning: {policy} was trained with {difference}", flush=True)
    return tokenizer


def decoder_prefix(policy: str, tokenizer: PreTrainedTokenizerBase, args: argparse.Namespace) -> tuple[int, ...]:
    """The ids in front of each response, which the policy does not choose. UserError for an unknown language."""
    try:
        return set_languages(tokenizer, args.source_language, args.target_language)
    except UserError as error:
        raise UserError(f"{policy}: {error}") from None


def is_encoder_decoder(policy: str) -> bool:
    """The kind of the policy: encoder-decoder, or decoder-only. Loads its config alone.

    Raises UserError for a model that is neither.
    """
    from transformers import AutoConfig

    with reported("the policy", policy):
        name = policy
        if is_adapter(policy):
            from peft import PeftConfig

            name = PeftConfig.from_pretrained(policy).base_model_name_or_path
        config = AutoConfig.from_pretrained(name)
    return has_encoder(config, f"the policy {policy}")


def load_policy(
    policy: str,
    tokenizer: PreTrainedTokenizerBase,
    dtype: str,
    fresh_adapter: PeftConfig | None = None,
    targets: list[str] | None = None,
    prefix: tuple[int, ...] = (),
    value_head: bool = False,
) -> PreTrainedModelWrapper:
    """The model at `policy`, with `fresh_adapter` on `targets` if it has no adapter of its own.

    targets: ends of module names; None: those of `trl.lora.lora_targets`. They are printed.
    prefix: ids in front of each response of an encoder-decoder, which the policy does not choose.
    value_head: for a policy that trains with one.
    Raises UserError if the model cannot be loaded, if it has no module of such a name, and if the tokenizer has tokens
    for which it has no embedding.
    """
    import torch
    from peft import TaskType

    from trl import AutoModelForCausalLMWithValueHead, AutoModelForSeq2SeqLMWithValueHead
    from trl.weights import WeightsError

    both = is_encoder_decoder(policy)
    with reported("the policy", policy, WeightsError):
        if is_adapter(policy):
            if targets:
                raise UserError(f"{policy} has an adapter, whose modules cannot be changed; drop --lora_targets")
        elif fresh_adapter is not None:
            fresh_adapter.task_type = TaskType.SEQ_2_SEQ_LM if both else TaskType.CAUSAL_LM
            fresh_adapter.target_modules = _check_targets(policy, targets)
        model_class = AutoModelForSeq2SeqLMWithValueHead if both else AutoModelForCausalLMWithValueHead
        model = model_class.from_pretrained(
            policy,
            peft_config=None if is_adapter(policy) else fresh_adapter,
            dtype=getattr(torch, dtype),
            value_head=value_head,
            v_head_init_strategy="zeros",
        )
    rows = len(model.base_model.get_input_embeddings().weight)
    last = max(tokenizer.get_vocab().values())
    if last >= rows:
        raise UserError(
            f"the tokenizer of {policy} has {last + 1} tokens and the model embeddings for {rows}; "
            "save the adapter with its embeddings, or give the tokenizer of its base model"
        )
    model.decoder_prefix = prefix
    return model


def load_answering_policy(policy: str, tokenizer: PreTrainedTokenizerBase, args: argparse.Namespace):
    """The policy that answers and does not train, on this process's device. Prints what its files ask for in vain.

    args: dtype, source_language, target_language.
    """
    from trl.generation import describe_unused

    from ..common.launch import process_state

    state = process_state()
    prefix = decoder_prefix(policy, tokenizer, args)
    model = load_policy(policy, tokenizer, args.dtype, prefix=prefix).to(state.device)
    if unused := describe_unused(model.base_model):
        state.print(unused)
    return model


def _check_targets(policy: str, targets: list[str] | None) -> list[str] | None:
    """The modules that get LoRA: `targets` if the model has them, or else those that are found. Loads no weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    from trl.lora import lora_targets, unknown_targets

    from ..common.launch import process_state

    config = AutoConfig.from_pretrained(policy)
    auto_class = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    with torch.device("meta"):
        model = auto_class.from_config(config)
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
    task: Task,
    max_tokens: int,
    sources: dict[str, str],
    chat: bool = False,
) -> dict[str, list[Prompt]]:
    """The prompts of each split as the policy reads them; reports their number, their source, and how many were cut.

    Warns of dev prompts that are trained on. chat: through the tokenizer's chat template.
    """
    from ..common.launch import process_state
    from ..learning.fit import warn_of_shared
    from .rollout import encode_prompts

    if {"train", "dev"} <= set(examples):
        warn_of_shared(map(task.prompt, examples["train"]), map(task.prompt, examples["dev"]))
    if chat:
        process_state().print(f"prompts go through the chat template of {tokenizer.name_or_path}")
    prompts = {}
    for split, rows in examples.items():
        prompts[split], cut = encode_prompts(tokenizer, rows, task, max_tokens, chat)
        process_state().print(
            f"{split}: {len(rows)} prompts from {sources[split]}, {cut} of them cut to {max_tokens} tokens"
        )
    return prompts


def ppo_config(args: argparse.Namespace) -> PPOConfig:
    """The trainer's settings, from the flags of train_ppo.py."""
    from trl import PPOConfig

    try:
        return PPOConfig(
            seed=args.seed,
            learning_rate=args.lr,
            batch_size=args.batch_size,
            mini_batch_size=args.mini_batch_size,
            gradient_accumulation_steps=args.gradient_accumulation_steps,
            ppo_epochs=args.n_ppo_epoch_per_rollout,
            early_stopping=True,
            target_kl=args.kl_threshold,
            advantage=args.advantage,
            samples_per_prompt=args.samples_per_prompt,
            init_kl_coef=args.init_kl_coef,
            adap_kl_ctrl=args.kl_control == "adaptive",
            target=args.kl_target,
            horizon=args.kl_horizon,
            kl_penalty=args.kl_penalty,
            gamma=args.gamma,
            lam=args.lam,
            cliprange=args.cliprange,
            cliprange_value=args.cliprange_value,
            vf_coef=args.vf_coef,
            ratio_threshold=args.ratio_threshold,
            max_grad_norm=args.max_grad_norm or None,
            log_with=args.report_to,
            tracker_project_name="alarm",
            run_name=args.run_name,
            logging_dir=str(Path(args.save_dir) / "tracker"),
        )
    except ValueError as error:
        raise UserError(str(error)) from error


def build_trainer(
    args: argparse.Namespace, policy: str, tokenizer: PreTrainedTokenizerBase, train_prompts: list[Prompt]
) -> PPOTrainer:
    """The policy at `policy` in a PPO trainer, with fresh LoRA adapters if it has none (unless --no_lora)."""
    from peft import LoraConfig

    from trl import PPOTrainer, set_seed

    from ..common.launch import process_state

    set_seed(args.seed)  # of the fresh adapters; the trainer seeds again, each process with its own
    lora = LoraConfig(r=args.lora_r, lora_alpha=args.lora_alpha, lora_dropout=args.lora_dropout, bias="none")
    config = ppo_config(args)
    processes = process_state().num_processes
    batch = config.batch_size // config.samples_per_prompt
    if len(train_prompts) < batch * processes:
        raise UserError(
            f"the dataset has {len(train_prompts)} examples, fewer than one batch of {batch} on each of "
            f"{processes} process(es); lower batch_size or give more data"
        )
    targets = [target.strip() for target in args.lora_targets.split(",")] if args.lora_targets else None
    prefix = decoder_prefix(policy, tokenizer, args)
    with_head = args.advantage == "gae"
    model = load_policy(policy, tokenizer, args.dtype, None if args.no_lora else lora, targets, prefix, with_head)
    try:
        return PPOTrainer(config, model, tokenizer=tokenizer, dataset=train_prompts, data_collator=list)
    except ValueError as error:
        raise UserError(str(error)) from error


def check_adapter_flags(args: argparse.Namespace, policy: str) -> None:
    """Raise UserError for flags of LoRA that contradict each other or the policy. Loads no model."""
    if not args.no_lora:
        return
    if args.lora_targets:
        raise UserError("--lora_targets goes with LoRA; drop it or --no_lora")
    if is_adapter(policy):
        raise UserError(f"--no_lora: {policy} is an adapter, and its base stays as it is; drop --no_lora")


def check_cache(args: argparse.Namespace, device: torch.device) -> None:
    """Raise UserError for a --generation_cache that this device does not have."""
    if args.generation_cache == "compiled" and device.type == "cpu":
        raise UserError("--generation_cache compiled: this process has no GPU, where alone it compiles; drop it")
