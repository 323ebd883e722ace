"""PPOTrainer: generate, score with old policy and reference, place rewards, improve policy and value head."""

from __future__ import annotations

import hashlib
import html
import importlib.util
import inspect
import json
import math
import os
import random
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import (
    DistributedType,
    InitProcessGroupKwargs,
    ProjectConfiguration,
    gather_object,
    send_to_device,
)
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, default_collate

from . import ppo_math
from .batching import alike
from .config import PPOConfig
from .generation import describe_unused, generate, special_tokens
from .launch import asked_for, check_launch_settings, deepspeed_on_cpu
from .ppo_math import AdaptiveKLController, FixedKLController, LossSums, RunningMoments
from .recomputation import recomputed_layers
from .reference import create_reference_model
from .sharding import TRAINABLE_FILE, DamagedStateError, Replicated, sharding_of

STATE_FILE = "trainer_state.json"
STATE_PATTERNS = (TRAINABLE_FILE, "*.bin", "*.pkl", "**/*.pt")  # of the files that accelerate and DeepSpeed write

# attributes of TRL's PPOTrainer that have no counterpart, and what to use instead
ABSENT = {
    "train_minibatch": "call step, which makes all updates on a batch",
    "record_step_stats": "step returns the statistics",
    "gather_stats": "what step returns is over all processes already",
    "create_model_card": "write the README.md of a model yourself",
    "prepare_dataloader": "give the constructor a dataset and a data_collator",
    "optional_peft_ctx": "use model.pretrained_model.disable_adapter",
}


def set_seed(seed: int) -> None:
    """Seed the random numbers of Python, numpy and torch (all devices) of this process."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


class EpochBatchSampler:
    """Batches of indices as a function of (seed, epoch): each process takes its slice of every global batch.

    Every process computes the same permutation; an incomplete last global batch is left out. Each iteration is one
    epoch, and the next has another order. `set_epoch` chooses the epoch and, to resume inside of it, the first batch of
    the next iteration.
    """

    def __init__(self, size: int, batch_size: int, num_processes: int, process_index: int, seed: int) -> None:
        self.size = size
        self.batch_size = batch_size  # samples per process
        self.num_processes = num_processes
        self.process_index = process_index
        self.seed = seed
        self.epoch = 0
        self.start_batch = 0
        if len(self) == 0:
            warnings.warn(
                f"the dataset has {size} examples, fewer than one batch of {batch_size} on each of "
                f"{num_processes} process(es), so there are no batches; lower batch_size or give more data",
                stacklevel=3,
            )

    def set_epoch(self, epoch: int, start_batch: int = 0) -> None:
        """Iterate next over `epoch`, from batch `start_batch` on."""
        self.epoch = epoch
        self.start_batch = start_batch

    def __len__(self) -> int:
        """Batches in one whole epoch."""
        return self.size // (self.batch_size * self.num_processes)

    def __iter__(self) -> Iterator[list[int]]:
        seed = int(np.random.SeedSequence([self.seed, self.epoch]).generate_state(1)[0])
        order = torch.randperm(self.size, generator=torch.Generator().manual_seed(seed)).tolist()
        batches = range(self.start_batch, len(self))
        self.set_epoch(self.epoch + 1)
        for batch in batches:
            start = (batch * self.num_processes + self.process_index) * self.batch_size
            yield order[start : start + self.batch_size]


@dataclass(frozen=True)
class _Experience:
    """What one `step` learns from, on this process."""

    queries: list[Tensor]  # B x (Q_i,)
    responses: list[Tensor]  # B x (T_i,)
    mask: Tensor  # (B, T) bool, True on the response tokens that are actions
    logprobs: Tensor  # (B, T) of the sampled tokens, under the policy at rollout
    values: Tensor  # (B, T) at rollout
    advantages: Tensor  # (B, T); gae: whitened over all processes; rloo, grpo: of the response, on each of its tokens
    returns: Tensor  # (B, T); rloo, grpo: of the response, on each of its tokens


@dataclass
class _Seen:
    """What the backward batches of one `step` showed, in order."""

    sums: list[Tensor] = field(default_factory=list)  # (len(LossSums),) each, over all processes
    ratios: list[Tensor] = field(default_factory=list)  # probability ratios of a mini-batch's actions, this process's
    norms: list[float] = field(default_factory=list)  # of the gradients


def _pad(sequences: Sequence[Tensor], value: int, side: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """Stack B x (L_i,) ids to (B, L), and the mask (B, L), int64, of what is no padding."""
    rows = [row.to("cpu", torch.long) for row in sequences]
    ids = pad_sequence(rows, batch_first=True, padding_value=value, padding_side=side)
    lengths = torch.tensor([len(row) for row in rows])[:, None]
    places = torch.arange(ids.shape[1])
    mask = (places < lengths if side == "right" else places >= ids.shape[1] - lengths).long()
    return ids.to(device), mask.to(device)


def _statistics(logits: Tensor, labels: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
    """`token_statistics` (B, T) each, from logits (B, T, V) or of the N True places of `actions` alone, (N, V)."""
    if logits.dim() == 3:
        return ppo_math.token_statistics(logits, labels)
    logprobs, entropy = ppo_math.token_statistics(logits, labels[actions])
    return _on_actions(logprobs, actions), _on_actions(entropy, actions)


def _on_actions(x: Tensor, actions: Tensor) -> Tensor:
    """x (N,) at the N True places of `actions` (B, T), 0 elsewhere. What has a number for each place stays."""
    return x if x.shape == actions.shape else x.new_zeros(actions.shape).masked_scatter(actions, x)


class PPOTrainer:
    """Proximal policy optimisation of a language model, with a value head or against the other responses to a prompt.

    config: PPOConfig; its batch sizes count samples per process. The trainer fills in its run-time fields.
    model: AutoModelForSeq2SeqLMWithValueHead or AutoModelForCausalLMWithValueHead, loaded with value_head=False if
        `config.advantage` is rloo or grpo. The model stays in eval mode, because dropout would make the probability
        ratio differ from 1 before the first update; during updates `lora_dropout` alone is active: it acts on a branch
        that is zero in a fresh adapter, so that the first ratio is exactly 1 and the adapter is still regularised.
    ref_model: the reference of the KL penalty: a model with a value head, or a transformers model. It is frozen. Left
        out, the reference is the model as given here, so `load_state` does not change it. The attribute `ref_model`
        is then a frozen copy, or None for a PEFT model: its reference is the model with the adapters off if they are
        fresh LoRA, otherwise with a copy of the weights that train.
    tokenizer: gives pad and end tokens, before those of the model's config and generation config
    dataset: sequence of examples, for `dataloader`. A `datasets.Dataset` loses the columns that the model does not
        take, but for label, query and response (see `remove_unused_columns`).
    optimizer, lr_scheduler: over the trainable parameters; left out, Adam at a constant rate. The scheduler moves once
        per `step`.
    data_collator: list of examples -> batch; left out, torch's `default_collate`, which stacks tensors of one shape.
        The tensors of a batch are moved to the trainer's device.
    num_shared_layers: layers that model and reference share, and that do not train. Only without `ref_model` and PEFT.
    training_data_collator: no effect, as the trainer pads its batches itself

    The constructor seeds all random numbers with seed + process index, so that processes sample different responses.
    The type of the weights decides the precision: accelerate's autocast is off, it would turn the logits to float32.
    """

    def __init__(
        self,
        config: PPOConfig,
        model: nn.Module,
        ref_model: nn.Module | None = None,
        tokenizer: Any = None,
        dataset: Sequence | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        data_collator: Callable[[list], Any] | None = None,
        num_shared_layers: int | None = None,
        lr_scheduler: Any = None,
        training_data_collator: Any = None,
    ) -> None:
        if training_data_collator is not None:
            warnings.warn("training_data_collator has no effect: the trainer pads its batches itself", stacklevel=2)
        if not isinstance(config, PPOConfig):
            raise ValueError(f"config must be a PPOConfig, not {type(config).__name__}")
        config.check()
        _check_model(model)
        _check_head(model, config)
        for name, value in (("dataset", dataset), ("data_collator", data_collator)):
            kind, needed = ("a function", "__call__") if name == "data_collator" else ("a sequence", "__len__")
            if value is not None and not hasattr(value, needed):
                raise ValueError(f"{name} must be {kind}, not {type(value).__name__}")
        if dataset is None:
            warnings.warn(
                f"no dataset was given, so there is no dataloader; step takes batch_size ({config.batch_size}) samples",
                stacklevel=2,
            )
        self.config = config
        self.tokenizer = tokenizer
        self.accelerator = _make_accelerator(config)
        self._sharding: Replicated = sharding_of(self.accelerator, config)
        self.is_encoder_decoder = bool(model.config.is_encoder_decoder)
        self.is_peft_model = model.is_peft_model
        config.world_size = self.accelerator.num_processes
        config.is_encoder_decoder, config.is_peft_model = self.is_encoder_decoder, self.is_peft_model
        set_seed(config.seed + self.accelerator.process_index)

        self._tokens = special_tokens(model.base_model, tokenizer)
        self._pad_id = self._tokens.pad
        if unused := describe_unused(model.base_model):
            self.accelerator.print(unused)

        model.eval()
        if config.gradient_checkpointing:
            model.gradient_checkpointing_enable()
        self.ref_model = self._choose_reference(model, ref_model, num_shared_layers)
        trainable = [p for p in model.parameters() if p.requires_grad]
        if optimizer is None:
            # on a CPU the fused one takes a third of the time; elsewhere torch chooses
            fused = True if self.accelerator.device.type == "cpu" else None
            optimizer = torch.optim.Adam(trainable, lr=config.learning_rate, fused=fused)
        if lr_scheduler is None:
            lr_scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0, total_iters=1)
        self._hidden_size = model.base_model.get_input_embeddings().weight.shape[1]
        prepared = self._sharding.prepare(model, optimizer, lr_scheduler, self.ref_model)
        self.model, self.optimizer, self.lr_scheduler = prepared
        # the same weights, without the wrapper of processes; under ZeRO-3 and FSDP2 inside `whole_weights` alone
        self.policy = self._sharding.policy
        if self.ref_model is not None:
            self.ref_model.eval().requires_grad_(False).to(self.accelerator.device)
        if ref_model is None and self.ref_model is not None:
            # DeepSpeed can have changed the type of the policy's weights
            for copied, parameter in zip(self.ref_model.parameters(), self._sharding.learner.parameters(), strict=True):
                copied.data = copied.data.to(parameter.dtype)
        # each weight that trains, and a copy as it is now; None if another model or adapters off are the reference
        self._start_weights: list[tuple[nn.Parameter, Tensor]] | None = None
        with self.whole_weights():
            if self.ref_model is None and not self.policy.adapter_adds_zero():
                trained = [p for p in self.policy.parameters() if p.requires_grad]
                self._start_weights = [(p, p.detach().clone()) for p in trained]

        self.dataset = dataset if dataset is None else self._used_columns(dataset)
        self.dataloader = None if dataset is None else self._make_dataloader(data_collator or default_collate)

        if config.adap_kl_ctrl:
            self.kl_controller = AdaptiveKLController(config.init_kl_coef, config.target, config.horizon)
        else:
            self.kl_controller = FixedKLController(config.init_kl_coef)
        self.running = RunningMoments()  # of the scores, for `use_score_scaling`
        self._best_score = -math.inf  # highest mean score of a step, for `push_to_hub_if_best_kwargs`
        self.steps_done = 0  # calls of `step`, skipped ones included: the x axis of the tracker
        self.accelerator.register_for_checkpointing(self)
        self._tracking = False
        self._first_step: int | None = None  # of what the tracker will get, if it may hold later steps already
        self._warned_of_start = False

    def __getattr__(self, name: str) -> Any:
        instead = f" in this version; {ABSENT[name]}" if name in ABSENT else ""
        raise AttributeError(f"PPOTrainer has no {name}{instead}", name=name, obj=self)

    def _choose_reference(
        self, model: nn.Module, given: nn.Module | None, num_shared_layers: int | None
    ) -> nn.Module | None:
        """The reference as a model of its own; None if `model` is its own reference, which a PEFT model is."""
        if num_shared_layers is not None and (given is not None or self.is_peft_model):
            reason = "a reference model was given" if given is not None else "a PEFT model is its own reference"
            warnings.warn(f"num_shared_layers has no effect: {reason}", stacklevel=3)
        if given is not None:
            if not isinstance(given, nn.Module):
                raise ValueError(f"ref_model must be a model, not {type(given).__name__}")
            if given is model:
                raise ValueError("ref_model is the model that trains; leave it out, or give a copy of the model")
            if self.is_peft_model:
                self.accelerator.print("the reference is ref_model as given, not the PEFT model itself")
            return given if isinstance(given, type(model)) else type(model)(given)
        if self.is_peft_model:
            return None
        return create_reference_model(model, num_shared_layers)

    def _used_columns(self, dataset: Sequence) -> Sequence:
        """A `datasets.Dataset` with the columns that the model takes and those for logs; another kind as it is."""
        if not (self.config.remove_unused_columns and hasattr(dataset, "remove_columns")):
            return dataset
        taken = {*inspect.signature(self.policy.base_model.forward).parameters, "label", "query", "response"}
        return dataset.remove_columns([name for name in dataset.column_names if name not in taken])

    def _make_dataloader(self, collate: Callable[[list], Any]) -> DataLoader:
        sampler = EpochBatchSampler(
            len(self.dataset),
            self.config.batch_size // self.config.samples_per_prompt,
            self.accelerator.num_processes,
            self.accelerator.process_index,
            self.config.seed,
        )
        return DataLoader(
            self.dataset,
            batch_sampler=sampler,
            collate_fn=lambda examples: send_to_device(collate(examples), self.device),
            # of its own: starting an iteration draws a number, which must not move the global state
            generator=torch.Generator(),
        )

    # --- names of TRL's PPOTrainer -----------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    @property
    def current_device(self) -> torch.device:
        return self.device

    @property
    def current_step(self) -> int:
        return self.steps_done

    @property
    def is_distributed(self) -> bool:
        return self.accelerator.num_processes > 1

    @property
    def kl_ctl(self) -> FixedKLController:
        return self.kl_controller

    @kl_ctl.setter
    def kl_ctl(self, controller: FixedKLController) -> None:
        self.kl_controller = controller

    def whole_weights(self) -> AbstractContextManager[None]:
        """`policy` has its weights inside, also under ZeRO-3 and FSDP2, which split them at other times.

        Every process enters and leaves it. Inside, `generate` and `reference_logits` may be called by any process, any
        number of times; outside, by every process together, because each call brings the weights together once.
        """
        return self._sharding.whole()

    def prepare_model_inputs(self, queries: Sequence[Tensor], responses: Sequence[Tensor]) -> dict:
        """Arguments of the model's forward whose outputs score the response tokens: B x (Q_i,) and B x (T_i,) ids."""
        return self._model_inputs(queries, responses)[0]

    def reference_logits(self, inputs: dict) -> Tensor:
        """Logits (B, T, V) of the reference, in its type, for the arguments that `prepare_model_inputs` gives.

        T counts response tokens alone. With `rows_to_keep` among them, what the model's `forward` says of it. The
        policy's weights are afterwards as they were.
        """
        with self.whole_weights(), self._reference() as reference:
            return reference(**inputs)[0]

    def batched_forward_pass(
        self,
        model: nn.Module,
        queries: Sequence[Tensor],
        responses: Sequence[Tensor],
        model_inputs: dict | None = None,
        return_logits: bool = False,
        response_masks: Sequence[Tensor] | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor]:
        """Log-probabilities (B, T), logits (B, T, V) if asked for, values (B, T), and mask (B, T), int64, of actions.

        T counts response tokens alone, padded on the right. Without a value head the values are None.
        `mini_batch_size` samples go through `model` at a time. `model_inputs` is not needed: the inputs follow from
        `queries` and `responses`.
        """
        actions, mask = self._masks(responses, response_masks)
        columns = mask.shape[1]
        parts: list[tuple[Tensor, Tensor, Tensor]] = []
        for start in range(0, len(queries), self.config.mini_batch_size):
            rows = slice(start, start + self.config.mini_batch_size)
            inputs, labels = self._model_inputs(queries[rows], responses[rows])
            outputs = model(**inputs)
            logits, values = outputs[0], outputs[-1]
            has_values = values is not None
            values = values if has_values else logits[..., 0]
            kept = logits if return_logits else logits[..., :0]
            missing = columns - labels.shape[1]
            padded = [nn.functional.pad(x, (0, missing)) for x in (ppo_math.token_logprobs(logits, labels), values)]
            parts.append((*padded, nn.functional.pad(kept, (0, 0, 0, missing))))
        logprobs, values, logits = (torch.cat(part) for part in zip(*parts, strict=True))
        return logprobs, logits if return_logits else None, values if has_values else None, actions.long()

    def compute_rewards(
        self, scores: Tensor, logprobs: Tensor, ref_logprobs: Tensor, masks: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Token rewards (B, T) and their part from the KL penalty (B, T).

        scores: (B,), each paid to the last token of `masks` (B, T)
        logprobs, ref_logprobs: (B, T); with kl_penalty="full" those of the whole vocabulary (B, T, V)
        """
        mask = masks.bool()
        kind = self.config.kl_penalty
        full = kind == "full"
        kl = ppo_math.full_kl(logprobs, ref_logprobs) if full else ppo_math.kl_penalty(logprobs, ref_logprobs, kind)
        placed = ppo_math.place_scores(scores, torch.ones_like(mask), mask)
        coefficient = self.kl_controller.value
        penalty = ppo_math.token_rewards(torch.zeros_like(placed), kl, coefficient, mask)
        return ppo_math.token_rewards(placed, kl, coefficient, mask), penalty

    def compute_advantages(self, values: Tensor, rewards: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Values, whitened advantages and returns of the actions in `mask`; all tensors (B, T). For gae alone."""
        if self.config.advantage != "gae":
            raise ValueError(
                f"compute_advantages estimates advantages from values; for {self.config.advantage} call "
                "trl.ppo_math.group_advantages"
            )
        mask = mask.bool()
        if self.config.whiten_rewards:
            rewards = ppo_math.masked_whiten(rewards, mask, shift_mean=False, total=self._total)
        advantages, returns = ppo_math.gae(values, rewards, mask, self.config.gamma, self.config.lam)
        advantages = ppo_math.masked_whiten(advantages, mask, total=self._total)
        return torch.where(mask, values, 0), advantages, returns

    def loss(
        self,
        old_logprobs: Tensor,
        values: Tensor,
        logits: Tensor,
        vpreds: Tensor | None,
        logprobs: Tensor,
        mask: Tensor,
        advantages: Tensor,
        returns: Tensor,
    ) -> tuple[Tensor, Tensor, dict[str, float]]:
        """Policy loss, weighted value loss and statistics of one mini-batch; (B, T) tensors, `logits` (B, T, V).

        `values` are those at rollout, `vpreds` those of now, None without a value head. Losses are token means over
        `mask`. What `step` does with a mean ratio above `ratio_threshold` it does later.
        """
        sums = ppo_math.loss_sums(
            logprobs,
            vpreds,
            mask.bool(),
            old_logprobs=old_logprobs,
            old_values=values,
            advantages=advantages,
            returns=returns,
            entropy=ppo_math.token_entropy(logits),
            cliprange=self.config.cliprange,
            cliprange_value=self.config.cliprange_value,
        )
        statistics = self._loss_statistics(sums)
        return sums.policy_loss / sums.tokens, self.config.vf_coef * sums.value_loss / sums.tokens, statistics

    # --- generation --------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def generate(
        self,
        query_tensor: Tensor | Sequence[Tensor],
        length_sampler: Callable[[], int] | None = None,
        batch_size: int | None = 4,
        return_prompt: bool = True,
        generate_ref_response: bool = False,
        **generation_kwargs: Any,
    ) -> Any:
        """Sample one response per query, on the trainer's device.

        query_tensor: (Q,) ids give a (1, L) tensor; a list of B x (Q_i,) ids gives a list of B x (L_i,) ids, in order
        length_sampler: gives max_new_tokens, drawn anew for each batch
        batch_size: queries that are generated at a time; None: all
        return_prompt: a decoder-only model's responses stand behind their queries
        generate_ref_response: also answer with the reference; the result is then (responses, reference responses)

        A response ends with its first end token, included, and holds no padding; end tokens are those of the tokenizer,
        the config and the generation config. An encoder-decoder's response is without the decoder's start token.
        `generation_kwargs` go to transformers' `generate`. What they leave open changes nothing, whatever the
        checkpoint's generation_config.json asks for: do_sample=True samples from the policy itself, which PPO takes
        samples to come from. What they set (temperature, top_p, a `generation_config`...) is used. Without a limit
        (max_new_tokens) a response has 20 tokens at most.
        """
        single = isinstance(query_tensor, Tensor) and query_tensor.dim() == 1
        queries = [query_tensor] if single else query_tensor
        if isinstance(queries, Tensor):
            raise ValueError(f"give generate one query of shape (Q,) or a list of them, not {tuple(queries.shape)}")
        _check_ids("query", queries)
        self.policy.eval()
        self._sharding.drop_gradients()  # those of the last `step` take memory
        found: tuple[list[Tensor], list[Tensor]] = ([], [])
        with self.whole_weights():
            for start in range(0, len(queries), batch_size or max(len(queries), 1)):
                chunk = queries[start : start + batch_size] if batch_size else queries
                if length_sampler is not None:
                    generation_kwargs["max_new_tokens"] = int(length_sampler())
                found[0].extend(self._respond(self.policy, chunk, return_prompt, generation_kwargs))
                if generate_ref_response:
                    with self._reference() as reference:
                        found[1].extend(self._respond(reference, chunk, return_prompt, generation_kwargs))
        responses, ref_responses = (
            (_pad(rows, self._pad_id, "right", self.device)[0] if single and rows else rows) for rows in found
        )
        return (responses, ref_responses) if generate_ref_response else responses

    def _respond(
        self, model: nn.Module, queries: Sequence[Tensor], return_prompt: bool, generation_kwargs: dict
    ) -> list[Tensor]:
        ids, mask = _pad(queries, self._pad_id, self.policy.query_padding, self.device)
        tokens = replace(self._tokens, prefix=self.policy.decoder_prefix)
        responses = generate(model.pretrained_model, ids, mask, tokens, **generation_kwargs)
        if self.is_encoder_decoder or not return_prompt:
            return responses
        each = len(responses) // len(queries)  # num_return_sequences
        return [torch.cat([queries[row // each].to(ids), r]) for row, r in enumerate(responses)]

    @contextmanager
    def _reference(self) -> Iterator[nn.Module]:
        """The model to which the KL penalty compares."""
        if self.ref_model is not None:
            yield self.ref_model
        else:
            off = self._start_weights is None
            with self.policy.pretrained_model.disable_adapter() if off else self._start_weights_in_place():
                yield self.policy

    # --- one PPO step ------------------------------------------------------------------------------------------------

    def step(
        self,
        queries: Sequence[Tensor],
        responses: Sequence[Tensor],
        scores: Sequence[Any],
        response_masks: Sequence[Tensor] | None = None,
        groups: Sequence[Hashable] | None = None,
    ) -> dict[str, Any]:
        """Improve the policy on one batch, together with all other processes.

        queries: batch_size x (Q_i,) ids
        responses: batch_size x (T_i,) ids, without padding; every one of them is an action, the end token included. If
            all responses of an encoder-decoder start with its decoder start token, as transformers' `generate` gives
            them, that token is no action: it is left out, with the first element of a longer score vector or mask.
        scores: batch_size scalars or tensors of shape (1,), paid to the last action, or (T_i,) vectors (score t paid to
            response token t)
        response_masks: batch_size x (T_i,) of 0 and 1. A token with 0 is read by the model and is no action: it has no
            loss, no KL penalty and no advantage, may not have a score, and is no step in time.
        groups: for the advantages rloo and grpo, batch_size names (numbers or texts). Responses of one name answer the
            same query, also if they are on several processes; there are two or more of each name. Left out, each
            `samples_per_prompt` responses in a row are one group. For gae there are none.

        With `use_score_scaling` a score, or the sum of a score vector, is divided by the standard deviation of all
        scores of the run so far, these included, over all processes; every element of a vector is divided alike.
        `use_score_norm` first takes off their mean, at the last action. `score_clip` then shrinks a score whose sum is
        larger, every element of a vector alike.

        Returns statistics: Python floats are over all processes; numpy arrays are of this process: objective/kl_dist
        and tokens/*_dist (B,), objective/logprobs and objective/ref_logprobs (B, T) with 0 where no action is,
        ppo/policy/advantages (actions,), ppo/policy/ratio (actions of all mini-batches of all epochs,). If a score is
        NaN or infinite on any process, nothing is learnt: `ppo/skipped_nonfinite` is 1 and statistics of the update
        are absent. The gradients of the last update stay in the weights' `grad` until the next `generate` or `step`.
        Raises ValueError for inputs that do not fit together.
        """
        started = time.perf_counter()
        self.config.check()
        _check_head(self.policy, self.config)
        # another trainer in this process may have changed accelerate's shared setting
        self.accelerator.gradient_accumulation_steps = self.config.gradient_accumulation_steps
        self.policy.eval()
        self._sharding.drop_gradients()
        self._check_inputs(queries, responses, scores, response_masks)
        names = self._group_names(queries, groups)
        responses, scores, response_masks = self._without_start(responses, scores, response_masks)
        mask, tokens = self._masks(responses, response_masks)
        placed = ppo_math.place_scores(scores, tokens, mask)
        self.steps_done += 1
        if not self._finite_everywhere(placed):
            return self._skipped()
        self._push_if_best(placed)

        # 1. the old policy, its values, the reference
        with self.whole_weights():
            logprobs, values, kl, entropy, ref_logprobs = self._score_rollout(queries, responses, mask)
        if not self._finite_everywhere(logprobs, values, kl):
            return self._skipped()
        scored = time.perf_counter()

        # 2. rewards and advantages
        placed = self._shape_scores(placed, mask)
        rewards = ppo_math.token_rewards(placed, kl, self.kl_controller.value, mask)
        rewarded = time.perf_counter()
        if self.config.advantage == "gae":
            values, advantages, returns = self.compute_advantages(values, rewards, mask)
            spread = {}
        else:
            advantages, returns, spread = self._group_advantages(rewards, placed, mask, names)
        experience = _Experience(list(queries), list(responses), mask, logprobs, values, advantages, returns)
        stats = self._rollout_statistics(placed, kl, entropy, ref_logprobs, experience) | spread
        advanced = time.perf_counter()

        # 3. epochs of updates
        stats |= self._update(experience)
        updated = time.perf_counter()
        if "ppo/val/error" in stats:
            variance = stats["ppo/returns/var"]
            stats["ppo/val/var_explained"] = 1 - stats["ppo/val/error"] / variance if variance > 0 else math.nan

        # 4. the KL coefficient, the learning rate
        self.kl_controller.update(stats["objective/kl"], len(queries) * self.accelerator.num_processes)
        self.lr_scheduler.step()
        now = time.perf_counter()
        stats["time/ppo/forward_pass"] = scored - started
        stats["time/ppo/compute_rewards"] = rewarded - scored
        stats["time/ppo/compute_advantages"] = advanced - rewarded
        stats["time/ppo/optimize_step"] = updated - advanced
        stats["time/ppo/calc_stats"] = now - updated
        stats["time/ppo/total"] = now - started
        return stats

    def _group_names(self, queries: Sequence[Tensor], groups: Sequence[Hashable] | None) -> list[Hashable] | None:
        """The group of each response of all processes, in the order of the processes. None for gae."""
        config = self.config
        if config.advantage == "gae":
            if groups is not None:
                raise ValueError(
                    "groups are for the advantages rloo and grpo; gae compares no responses: leave them out"
                )
            return None
        hint = "the responses of a group answer one query"
        if groups is None:
            if config.samples_per_prompt < 2:
                raise ValueError(
                    f"advantage={config.advantage!r} compares responses to one prompt; set samples_per_prompt to 2 or "
                    "more, or give groups"
                )
            hint = f"answer each query samples_per_prompt ({config.samples_per_prompt}) times in a row, or give groups"
            first = self.accelerator.process_index * config.batch_size
            groups = [(first + row) // config.samples_per_prompt for row in range(config.batch_size)]
        if len(groups) != config.batch_size:
            raise ValueError(f"{len(groups)} groups were given for a batch of {config.batch_size} responses")
        names = [name.tolist() if isinstance(name, Tensor) else name for name in groups]  # a tensor is hashed by its id
        try:
            set(names)
        except TypeError:
            raise ValueError("a group must be named by one number or one text") from None
        # the hash of a tuple of numbers is the same in all processes
        hashes = [hash(tuple(query.tolist())) for query in queries]
        everywhere = gather_object(list(zip(names, hashes, strict=True)))
        names = [name for name, _ in everywhere]
        ppo_math.group_rows(names)  # raises for a group of one
        query_of: dict[Hashable, int] = {}
        for name, query in everywhere:
            if query_of.setdefault(name, query) != query:
                raise ValueError(f"group {name!r} has responses to different queries; {hint}")
        return names

    def _group_advantages(
        self, rewards: Tensor, placed: Tensor, mask: Tensor, names: Sequence[Hashable]
    ) -> tuple[Tensor, Tensor, dict[str, float]]:
        """Each response's advantage on all of its tokens, its return likewise, both (B, T); and how groups spread.

        rewards, placed: token rewards and the scores in them (B, T)
        names: of the groups, of all processes
        """
        both = torch.stack([ppo_math.sequence_returns(x.cpu(), mask.cpu()) for x in (rewards, placed)], dim=1)
        returns, scores = torch.tensor(gather_object(both.tolist()), dtype=torch.float64).unbind(1)
        advantages = ppo_math.group_advantages(returns, names, self.config.advantage)
        groups = ppo_math.group_rows(names)
        spread = {
            "ppo/groups/std": sum(float(returns[rows].std()) for rows in groups) / len(groups),
            "ppo/groups/equal": sum(float(scores[rows].min() == scores[rows].max()) for rows in groups) / len(groups),
        }
        first = self.accelerator.process_index * len(mask)
        own = slice(first, first + len(mask))
        on_tokens = [torch.where(mask, x[own, None].to(rewards), 0) for x in (advantages, returns)]
        return *on_tokens, spread

    def _check_inputs(
        self,
        queries: Sequence[Tensor],
        responses: Sequence[Tensor],
        scores: Sequence[Any],
        response_masks: Sequence[Tensor] | None,
    ) -> None:
        size = self.config.batch_size
        given = {"queries": queries, "responses": responses, "scores": scores, "response_masks": response_masks}
        for name, values in given.items():
            if values is not None and len(values) != size:
                raise ValueError(f"step got {len(values)} {name}; batch_size is {size}")
        _check_ids("query", queries)
        _check_ids("response", responses)
        for row, mask in enumerate(response_masks if response_masks is not None else ()):
            mask = torch.as_tensor(mask)
            if mask.dim() != 1 or not ((mask == 0) | (mask == 1)).all():
                raise ValueError(f"response mask {row} must be a 1-D tensor of 0 and 1, not {mask!r:.80}")
            if not mask.any():
                raise ValueError(f"response mask {row} masks every token; leave at least one action")

    def _without_start(
        self, responses: Sequence[Tensor], scores: Sequence[Any], response_masks: Sequence[Tensor] | None
    ) -> tuple[Sequence[Tensor], Sequence[Any], Sequence[Tensor] | None]:
        """The arguments of `step` without the decoder's start token, if every response of all processes has it."""
        if not self.is_encoder_decoder or self._tokens.start is None:
            return responses, scores, response_masks
        other = sum(len(r) == 1 or int(r[0]) != self._tokens.start for r in responses)
        if int(self._total(torch.tensor(other, device=self.device))):
            return responses, scores, response_masks
        if not self._warned_of_start:
            self._warned_of_start = True
            warnings.warn(
                f"all responses start with the decoder's start token ({self._tokens.start}), which the policy did not "
                "choose: it is left out",
                stacklevel=3,
            )

        def shortened(values: Sequence[Any]) -> list[Any]:
            tensors = [torch.as_tensor(value) for value in values]
            whole = [x.dim() == 1 and len(x) == len(r) for x, r in zip(tensors, responses, strict=True)]
            return [x[1:] if cut else x for x, cut in zip(tensors, whole, strict=True)]

        masks = None if response_masks is None else shortened(response_masks)
        return [r[1:] for r in responses], shortened(scores), masks

    def _masks(self, responses: Sequence[Tensor], response_masks: Sequence[Tensor] | None) -> tuple[Tensor, Tensor]:
        """Two (B, T) bool: the actions, and all response tokens."""
        lengths = torch.tensor([len(r) for r in responses], device=self.device)
        tokens = torch.arange(int(lengths.max()), device=self.device) < lengths[:, None]
        if response_masks is None:
            return tokens, tokens
        actions = torch.zeros_like(tokens)
        for row, (mask, response) in enumerate(zip(response_masks, responses, strict=True)):
            if len(mask) != len(response):
                raise ValueError(f"response mask {row} has {len(mask)} elements; its response has {len(response)}")
            actions[row, : len(mask)] = torch.as_tensor(mask, device=self.device).bool()
        return actions, tokens

    def _shape_scores(self, placed: Tensor, mask: Tensor) -> Tensor:
        """Placed scores (B, T), scaled and clipped as the config asks (see `step`)."""
        config = self.config
        if config.use_score_scaling:
            self.running.update(placed.sum(1), self._total)
            mean = self.running.mean if config.use_score_norm else 0.0
            placed = ppo_math.scale_scores(placed, mask, self.running.std, mean)
        return placed if config.score_clip is None else ppo_math.clip_scores(placed, config.score_clip)

    def _push_if_best(self, placed: Tensor) -> None:
        """Push the policy to the hub if no step that was compared had a higher mean score."""
        config = self.config
        if config.push_to_hub_if_best_kwargs and (self.steps_done - 1) % config.compare_steps == 0:
            sums = placed.sum(1)
            mean = float(ppo_math.masked_mean(sums, torch.ones_like(sums), self._total))
            if mean > self._best_score:
                self._best_score = mean
                self.push_to_hub(**config.push_to_hub_if_best_kwargs)

    def _parts(self, rows: Sequence[int], queries: Sequence[Tensor], responses: Sequence[Tensor]) -> list[list[int]]:
        """`rows` as they go through the model: on a CPU in parts that need little padding.

        A GPU is faster with one pass, and DDP and DeepSpeed expect one.
        """
        if self.device.type != "cpu" or self.is_distributed or self.accelerator.distributed_type != DistributedType.NO:
            return [list(rows)]
        return alike(rows, queries, responses, self._hidden_size, self.policy.shares_queries())

    def _model_inputs(self, queries: Sequence[Tensor], responses: Sequence[Tensor]) -> tuple[dict, Tensor]:
        """Arguments of the model's forward, and the labels (b, t), of one mini-batch."""
        query_ids, query_mask = _pad(queries, self._pad_id, self.policy.query_padding, self.device)
        response_ids, mask = _pad(responses, self._pad_id, "right", self.device)
        return self.policy.response_inputs(query_ids, query_mask, response_ids, mask), response_ids

    @contextmanager
    def _start_weights_in_place(self):
        # not torch.func.functional_call: it does not restore the weights of a module that is in the model twice
        trained = [parameter.data for parameter, _ in self._start_weights]
        try:
            for parameter, start in self._start_weights:
                parameter.data = start
            yield
        finally:
            for (parameter, _), data in zip(self._start_weights, trained, strict=True):
                parameter.data = data

    @torch.no_grad()
    def _score_rollout(
        self, queries: list[Tensor], responses: list[Tensor], mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Log-probabilities, values, KL penalty, entropy and the reference's log-probabilities of every action.

        All (B, T) float32, 0 where `mask` is False.
        """
        logprobs, values, kl, entropy, ref_logprobs = (torch.zeros(mask.shape, device=self.device) for _ in range(5))
        size = self.config.mini_batch_size
        chunks = [range(start, min(start + size, len(queries))) for start in range(0, len(queries), size)]
        for rows in [part for chunk in chunks for part in self._parts(chunk, queries, responses)]:
            inputs, labels = self._model_inputs([queries[row] for row in rows], [responses[row] for row in rows])
            columns = slice(0, labels.shape[1])
            actions = inputs["rows_to_keep"] = mask[rows, columns]
            logits, _, found = self.policy(**inputs)
            if found is not None:
                values[rows, columns] = found
            logprobs[rows, columns], entropy[rows, columns] = _statistics(logits, labels, actions)
            kind = self.config.kl_penalty
            if kind != "full":
                del logits  # before the reference makes as many
            ref_logits = self.reference_logits(inputs)
            ref_logprobs[rows, columns] = _statistics(ref_logits, labels, actions)[0]
            if kind == "full":
                kl[rows, columns] = _on_actions(ppo_math.full_kl(logits, ref_logits), actions)
            else:
                kl[rows, columns] = ppo_math.kl_penalty(logprobs[rows, columns], ref_logprobs[rows, columns], kind)
            del ref_logits  # before the policy makes as many
        return tuple(torch.where(mask, x, 0) for x in (logprobs, values, kl, entropy, ref_logprobs))

    def _rollout_statistics(
        self, placed: Tensor, kl: Tensor, entropy: Tensor, ref_logprobs: Tensor, experience: _Experience
    ) -> dict[str, Any]:
        mask = experience.mask
        ones = torch.ones(len(mask), dtype=torch.bool, device=self.device)

        def over_samples(x: Tensor) -> float:
            return float(ppo_math.masked_mean(x, ones, self._total))

        def spread(x: Tensor) -> float:
            return float(ppo_math.masked_var(x, ones, self._total).sqrt())

        def over_tokens(x: Tensor, statistic: Callable = ppo_math.masked_mean, mask: Tensor = mask) -> float:
            return float(statistic(x, mask, total=self._total))

        coefficient = self.kl_controller.value
        # gae: each token has a return; rloo, grpo: each response has one, and its first action stands for it
        returned = mask if self.config.advantage == "gae" else mask & (mask.cumsum(1) == 1)
        query_lengths, response_lengths = (
            torch.tensor([float(len(ids)) for ids in rows], device=self.device)
            for rows in (experience.queries, experience.responses)
        )
        return {
            "objective/kl": over_samples(kl.sum(1)),
            "objective/kl_dist": _array(kl.sum(1)),
            "objective/logprobs": _array(experience.logprobs),
            "objective/ref_logprobs": _array(ref_logprobs),
            "objective/kl_coef": coefficient,
            "objective/entropy": over_tokens(entropy),
            "ppo/mean_non_score_reward": over_tokens(-coefficient * kl),
            "ppo/mean_scores": over_samples(placed.sum(1)),
            "ppo/std_scores": spread(placed.sum(1)),
            "ppo/policy/advantages": _array(experience.advantages[mask]),
            "ppo/policy/advantages_mean": over_tokens(experience.advantages),
            "ppo/returns/mean": over_tokens(experience.returns, mask=returned),
            "ppo/returns/var": over_tokens(experience.returns, ppo_math.masked_var, returned),
            "tokens/queries_len_mean": over_samples(query_lengths),
            "tokens/queries_len_std": spread(query_lengths),
            "tokens/queries_dist": _array(query_lengths),
            "tokens/responses_len_mean": over_samples(response_lengths),
            "tokens/responses_len_std": spread(response_lengths),
            "tokens/responses_dist": _array(response_lengths),
            "ppo/learning_rate": self.lr_scheduler.get_last_lr()[0],
        } | (
            {
                "ppo/val/mean": over_tokens(experience.values),
                "ppo/val/var": over_tokens(experience.values, ppo_math.masked_var),
            }
            if self.policy.v_head is not None
            else {}
        )

    def _update(self, experience: _Experience) -> dict[str, Any]:
        """All PPO epochs on one batch; statistics are token means over the backward batches that were evaluated."""
        config = self.config
        seen = _Seen()
        counts = {"updates": 0, "early_stopped": 0, "skipped_ratio": 0, "skipped_nonfinite": 0}
        for _ in range(config.ppo_epochs):
            order = torch.randperm(config.batch_size).tolist()
            for start in range(0, config.batch_size, config.backward_batch_size):
                rows = order[start : start + config.backward_batch_size]
                verdict = self._backward_batch(experience, rows, seen)
                counts[verdict] += 1
                if verdict == "early_stopped":
                    break
            if counts["early_stopped"]:
                break
        stats = {f"ppo/{name}": float(count) for name, count in counts.items()}
        finite = [sums for sums in seen.sums if torch.isfinite(sums).all()]
        if finite:
            means = self._loss_statistics(LossSums(*torch.stack(finite).sum(0)))
            stats |= {f"ppo/{name}": value for name, value in means.items()}
            stats["ppo/policy/ratio"] = _array(torch.cat(seen.ratios))
        if norms := [norm for norm in seen.norms if math.isfinite(norm)]:
            stats["ppo/grad_norm"] = sum(norms) / len(norms)
        return stats

    def _backward_batch(self, experience: _Experience, rows: list[int], seen: _Seen) -> str:
        """One optimizer step, or the reason why there was none.

        The loss is the token mean over the whole backward batch on all processes, however it is cut into mini-batches.
        The verdict falls after the last forward pass and before the last backward pass (which is where DeepSpeed also
        takes the optimizer step), from sums that all processes share: they all decide the same.
        Returns the verdict (a key of the counts) and adds to `seen`.
        """
        config, accelerator = self.config, self.accelerator
        self._sharding.drop_gradients()
        tokens = self._total(experience.mask[rows].sum())
        # accelerate divides by the accumulation steps, and the processes' gradients are averaged: undo both
        scale = config.gradient_accumulation_steps * accelerator.num_processes / tokens
        sums = torch.zeros(len(LossSums._fields), device=self.device)
        verdict = "updates"
        for start in range(0, len(rows), config.mini_batch_size):
            # until the gradient is there: checkpointed layers are computed again for it
            with accelerator.accumulate(self.model), self._only_lora_dropout():
                mini, ratios = self._mini_batch_sums(experience, rows[start : start + config.mini_batch_size])
                seen.ratios.append(ratios)
                sums += torch.stack([s.detach() for s in mini])
                last = start + config.mini_batch_size == len(rows)
                if last:
                    sums = self._total(sums).cpu()
                    seen.sums.append(sums)
                    verdict = self._verdict(LossSums(*sums))
                loss = scale * (mini.policy_loss + config.vf_coef * mini.value_loss)
                self._sharding.backward(loss, verdict == "updates")
                if last:
                    if verdict == "updates":
                        norm = self._sharding.clipped_norm()
                        seen.norms.append(norm)
                        if math.isfinite(norm):
                            self.optimizer.step()
                        else:
                            verdict = "skipped_nonfinite"
                    if verdict != "updates":
                        self._sharding.drop_gradients()
        return verdict

    def _mini_batch_sums(self, experience: _Experience, rows: list[int]) -> tuple[LossSums, Tensor]:
        """The sums of one mini-batch, and the probability ratios of its actions, 1-D."""
        parts = self._parts(rows, experience.queries, experience.responses)
        sums, ratios = zip(*[self._sums_of_part(experience, part) for part in parts], strict=True)
        return LossSums(*map(sum, zip(*sums, strict=True))), torch.cat(ratios)

    def _sums_of_part(self, experience: _Experience, rows: list[int]) -> tuple[LossSums, Tensor]:
        inputs, labels = self._model_inputs(
            [experience.queries[row] for row in rows], [experience.responses[row] for row in rows]
        )
        columns = labels.shape[1]
        mask, old_logprobs = experience.mask[rows, :columns], experience.logprobs[rows, :columns]
        with recomputed_layers(self._sharding.learner):
            logits, _, values = self.model(**inputs, rows_to_keep=mask)
        logprobs, entropy = _statistics(logits, labels, mask)
        sums = ppo_math.loss_sums(
            logprobs,
            values,
            mask,
            old_logprobs=old_logprobs,
            old_values=experience.values[rows, :columns],
            advantages=experience.advantages[rows, :columns],
            returns=experience.returns[rows, :columns],
            entropy=entropy,
            cliprange=self.config.cliprange,
            cliprange_value=self.config.cliprange_value,
        )
        return sums, (logprobs.detach() - old_logprobs)[mask].exp()

    def _loss_statistics(self, sums: LossSums) -> dict[str, float]:
        """Token means; without those of values if there is no value head."""
        means = ppo_math.loss_statistics(sums, self.config.vf_coef)
        if self.policy.v_head is None:
            means = {name: mean for name, mean in means.items() if not name.startswith(("val/", "loss/value"))}
        return means

    def _verdict(self, sums: LossSums) -> str:
        """What becomes of a backward batch, from its sums over all processes."""
        means = self._loss_statistics(sums)
        if any(math.isnan(mean) for mean in means.values()):
            return "skipped_nonfinite"
        if self.config.early_stopping and means["policy/kl_estimate"] > 1.5 * self.config.target_kl:
            return "early_stopped"
        if ppo_math.ratio_guard(means["policy/ratio"], self.config.ratio_threshold):
            return "skipped_ratio"
        return "updates" if math.isfinite(means["loss/total"]) else "skipped_nonfinite"

    @contextmanager
    def _only_lora_dropout(self):
        """Dropout of the adapters on, everything else in eval mode (see the class)."""
        named = self._sharding.learner.named_modules()
        modules = [m for name, m in named if name.rsplit(".", 1)[-1] == "lora_dropout"]
        for module in modules:
            module.train()
        try:
            yield
        finally:
            for module in modules:
                module.eval()

    # --- over processes ----------------------------------------------------------------------------------------------

    def _total(self, x: Tensor) -> Tensor:
        """Sum over processes."""
        return self.accelerator.reduce(x, reduction="sum") if self.accelerator.num_processes > 1 else x

    def _finite_everywhere(self, *tensors: Tensor) -> bool:
        bad = torch.stack([(~torch.isfinite(x)).sum() for x in tensors]).sum()
        return int(self._total(bad)) == 0

    def _skipped(self) -> dict[str, float]:
        return {
            "ppo/skipped_nonfinite": 1.0,
            "ppo/updates": 0.0,
            "objective/kl_coef": self.kl_controller.value,
            "ppo/learning_rate": self.lr_scheduler.get_last_lr()[0],
        }

    # --- tracking ----------------------------------------------------------------------------------------------------

    def start_tracker(self, first_step: int | None = None) -> None:
        """Open the tracker, once; `log_stats` does it otherwise. Call it after `load_state`, on every process.

        first_step: the first step that is still to be logged, the one after that of the state after `load_state`.
        TensorBoard then leaves out what an earlier part of the same run logged from that step on. In wandb and trackio
        every start is a new run.
        """
        config = self.config
        if self._tracking or config.log_with is None:
            return
        self._tracking = True
        first_step = self._first_step if first_step is None else first_step
        tensorboard = config.log_with == "tensorboard"
        project = config.run_name if tensorboard else config.tracker_project_name
        options = {"purge_step": first_step} if tensorboard else {"name": config.run_name}
        options |= config.tracker_kwargs.get(config.log_with, {})
        settings = {name: value for name, value in config.to_dict().items() if value is not None}
        self.accelerator.init_trackers(project, init_kwargs={config.log_with: options})
        for tracker in self.accelerator.trackers:
            if tracker.name != "tensorboard":  # there, it would open a second run
                tracker.store_init_configuration(settings)

    def log_stats(
        self,
        stats: dict[str, Any],
        batch: dict[str, Sequence] | None = None,
        rewards: Sequence[Any] | None = None,
        columns_to_log: Sequence[str] = ("query", "response"),
    ) -> None:
        """Send scalars to the tracker; call it on every process, with the same keys.

        stats: from `step`; what is no finite number is left out
        batch: name -> per-sample values of this process; numbers are logged as `env/{name}_mean` over all processes
        rewards: scores of this process as given to `step`, logged as `env/reward_mean` and `env/reward_std`
        columns_to_log: names in `batch` that wandb gets as a table `game_log`, with the column `reward`, a row a sample

        Raises ValueError if wandb is the tracker and `batch` has some of `columns_to_log` and lacks others.
        """
        if self.config.log_with is None:
            return
        self.start_tracker()
        scalars = {name: float(value) for name, value in stats.items() if _is_number(value)}
        for name in sorted(batch or {}):
            values = batch[name]
            if len(values) and all(_is_number(v) for v in values):
                scalars[f"env/{name}_mean"], _ = self._mean_std(values)
        if rewards is not None:
            sums = [float(torch.as_tensor(r, dtype=torch.float32).sum()) for r in rewards]
            scalars["env/reward_mean"], scalars["env/reward_std"] = self._mean_std(sums)
        scalars = {name: value for name, value in scalars.items() if math.isfinite(value)}
        table = {}
        if self.config.log_with == "wandb" and batch is not None and rewards is not None:
            table = self._table(batch, sums, columns_to_log)
        self.accelerator.log(scalars | table, step=self.steps_done)

    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Send a table to the tracker; call it on every process. Only the rows of the main process are logged.

        columns: C names. rows: lists of C texts, numbers and None. TensorBoard gets it as Markdown, under Text. wandb
        and trackio get a table of theirs. It stands at the step of `log_stats`.
        """
        if self.config.log_with is None:
            return
        self.start_tracker()
        if not self.accelerator.is_main_process:
            return
        tracker = self.accelerator.get_tracker(self.config.log_with)
        if tracker.name == "tensorboard":
            tracker.writer.add_text(name, _as_markdown(columns, rows), self.steps_done)
        else:
            tracker.log({name: self._tracker_table(columns, rows)}, step=self.steps_done)

    def _tracker_table(self, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Any:
        """A table as wandb or trackio has it."""
        if self.config.log_with == "wandb":
            import wandb

            return wandb.Table(columns=list(columns), data=[list(row) for row in rows])
        import trackio

        return trackio.Table(columns=list(columns), data=[list(row) for row in rows])

    def _table(self, batch: dict[str, Sequence], rewards: list[float], columns: Sequence[str]) -> dict[str, Any]:
        """{"game_log": wandb's table}, with the samples of all processes; empty if `batch` has none of the columns."""
        missing = [name for name in columns if name not in batch]
        if len(missing) == len(columns):
            warnings.warn(f"no table is logged: the batch has no {' and no '.join(columns)}", stacklevel=3)
            return {}
        if missing:
            raise ValueError(f"columns_to_log names {', '.join(missing)}; the batch has {', '.join(batch)}")
        rows = gather_object(list(zip(*(batch[name] for name in columns), rewards, strict=True)))
        if not self.accelerator.is_main_process:
            return {}
        return {"game_log": self._tracker_table([*columns, "reward"], rows)}

    def _mean_std(self, values: Sequence[float]) -> tuple[float, float]:
        x = torch.tensor([float(v) for v in values], device=self.device)
        mask = torch.ones_like(x, dtype=torch.bool)
        mean = ppo_math.masked_mean(x, mask, self._total)
        return float(mean), float(ppo_math.masked_var(x, mask, self._total).sqrt())

    # --- saving ------------------------------------------------------------------------------------------------------

    def save_pretrained(self, folder: str | Path) -> None:
        """Write adapter or model, value head and tokenizer into `folder`, whole or not at all; call on every process.

        `folder` may be new, empty, or a model folder, which is replaced; anything else raises ValueError.
        """
        folder = Path(folder)
        known = any((folder / name).exists() for name in ("config.json", "adapter_config.json"))
        if folder.exists() and not known and (not folder.is_dir() or any(folder.iterdir())):
            raise ValueError(f"{folder} holds something other than a model; choose another folder")
        self.accelerator.wait_for_everyone()
        with self.whole_weights():
            if self.accelerator.is_main_process:
                self._write_policy(folder)
            self.accelerator.wait_for_everyone()

    def _write_policy(self, folder: Path) -> None:
        temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
        old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
        try:
            temporary.mkdir(parents=True)
            self.policy.save_pretrained(temporary)
            if self.tokenizer is not None:
                self.tokenizer.save_pretrained(str(temporary))
            if folder.exists():
                os.replace(folder, old)
            os.replace(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)

    def push_to_hub(self, repo_id: str, *, private: bool | None = None, token: Any = None, **kwargs: Any) -> str:
        """Upload what `save_pretrained` writes to a repository of the hub, made if it is not there. -> its address.

        Call it on every process. kwargs: to `upload_folder` of huggingface_hub, such as commit_message.
        """
        from huggingface_hub import HfApi

        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(Path(folder) / "model")
            url = ""
            if self.accelerator.is_main_process:
                hub = HfApi(token=token)
                url = str(hub.create_repo(repo_id, private=private, exist_ok=True))
                hub.upload_folder(repo_id=repo_id, folder_path=Path(folder) / "model", **kwargs)
        return url

    def save_state(self, folder: str | Path) -> None:
        """Write into `folder` all that training goes on from; call it on every process.

        Trainable weights (adapters and value head; without PEFT all weights), optimizer, scheduler, KL coefficient, and
        the random states of every process. The data position is the caller's: `dataloader.batch_sampler.set_epoch`.
        """
        self.accelerator.wait_for_everyone()
        folder = Path(folder)
        self._sharding.save_state(folder, self)
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            files = {path for pattern in STATE_PATTERNS for path in folder.glob(pattern)}
            hashes = {path.relative_to(folder).as_posix(): _sha256(path) for path in sorted(files)}
            state = {"num_processes": self.accelerator.num_processes, "sharding": self._sharding.name}
            state |= {"weights": self._sharding.shapes, "sha256": hashes}
            (folder / STATE_FILE).write_text(json.dumps(state, indent=2) + "\n")
        self.accelerator.wait_for_everyone()

    def load_state(self, folder: str | Path) -> None:
        """Go on from a folder of `save_state`, with as many processes; on CPU, bit for bit.

        Raises, on every process and in one line, DamagedStateError for a folder that is incomplete or was changed, and
        another ValueError for one of another model or number of processes. A damaged folder is found by its hashes
        before anything is loaded. One without hashes, of an older version, can leave the trainer half loaded; load a
        whole one then.
        """
        folder = Path(folder)
        self._raise_together(None if (folder / STATE_FILE).is_file() else _missing(folder, STATE_FILE))
        try:
            state = json.loads((folder / STATE_FILE).read_text())
            written_by, hashes = state["num_processes"], dict(state.get("sha256", {}))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise DamagedStateError(f"{folder}/{STATE_FILE} cannot be read") from None
        if written_by != self.accelerator.num_processes:
            raise ValueError(
                f"{folder} was written by {written_by} process(es) and cannot go on with "
                f"{self.accelerator.num_processes}; launch as many"
            )
        # an older version wrote neither of these
        if (kind := state.get("sharding", self._sharding.name)) != self._sharding.name:
            raise ValueError(
                f"{folder} was written by a {kind} run and this one is {self._sharding.name}; launch alike"
            )
        shapes, own = state.get("weights", self._sharding.shapes), self._sharding.shapes
        if differing := [name for name in {**own, **shapes} if own.get(name) != shapes.get(name)]:
            raise ValueError(
                f"{folder} is of another model: {differing[0]} and {len(differing) - 1} more weights differ"
            )
        self._raise_together(self._damage(folder, hashes))
        random_file = self._random_file()
        problem = None
        try:
            self._sharding.load_state(folder, self)
            states = torch.load(folder / random_file, weights_only=False)
            # accelerate goes on in silence where random states cannot be set
            if not torch.equal(torch.get_rng_state(), states["torch_manual_seed"]):
                problem = f"the random states of {folder} could not be restored"
        except DamagedStateError as error:
            problem = str(error)
        except ValueError:
            raise
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            problem = f"{folder} cannot be loaded: {type(error).__name__}: {reason}"
        self._raise_together(problem)
        self._first_step = self.steps_done + 1

    def _random_file(self) -> str:
        return f"random_states_{self.accelerator.process_index}.pkl"

    def _damage(self, folder: Path, hashes: dict[str, str]) -> str | None:
        """What is wrong with the files, None if nothing is. The main process compares the hashes for all."""
        needed = [self._random_file(), "custom_checkpoint_0.pkl", *self._sharding.state_files()]
        for name in {**dict.fromkeys(needed), **hashes}:
            if not (folder / name).is_file():
                return _missing(folder, name)
        for name, sha256 in hashes.items() if self.accelerator.is_main_process else ():
            if _sha256(folder / name) != sha256:
                return f"{folder / name} is not what was saved: it was cut short or changed"
        return None

    def _raise_together(self, problem: str | None) -> None:
        """Raise DamagedStateError on every process if one of them has a problem."""
        if problems := gather_object([problem] if problem else []):
            raise DamagedStateError(problems[0])

    def state_dict(self) -> dict:
        """The trainer's own part of `save_state`."""
        return {
            "kl_controller": self.kl_controller.state_dict(),
            "steps_done": self.steps_done,
            "running": self.running.state_dict(),
            "best_score": self._best_score,
        }

    def load_state_dict(self, state: dict) -> None:
        self.kl_controller.load_state_dict(state["kl_controller"])
        self.steps_done = state["steps_done"]
        if "running" in state:  # an older version saved none of these
            self.running.load_state_dict(state["running"])
            self._best_score = state["best_score"]


def _check_model(model: Any) -> None:
    from .models import AutoModelForCausalLMWithValueHead, AutoModelForSeq2SeqLMWithValueHead

    if not isinstance(model, (AutoModelForCausalLMWithValueHead, AutoModelForSeq2SeqLMWithValueHead)):
        raise ValueError(
            f"model must be an AutoModelForCausalLMWithValueHead or AutoModelForSeq2SeqLMWithValueHead, "
            f"not {type(model).__name__}"
        )


def _check_head(model: nn.Module, config: PPOConfig) -> None:
    """A head that gets no gradient would stop DDP, and would be saved untrained."""
    needed = config.advantage == "gae"
    if (model.v_head is not None) != needed:
        what = "needs a value head" if needed else "uses no value head"
        raise ValueError(f"advantage={config.advantage!r} {what}; load the model with value_head={needed}")


def _make_accelerator(config: PPOConfig) -> Accelerator:
    if config.log_with is not None and importlib.util.find_spec(config.log_with) is None:
        raise ValueError(f"log_with is {config.log_with!r}, which is not installed; install it, or choose 'none'")
    check_launch_settings()
    if config.project_kwargs.get("automatic_checkpoint_naming"):
        raise ValueError("project_kwargs: automatic_checkpoint_naming is not possible; name folders to save_state")
    project = {"project_dir": config.logging_dir} if config.log_with is not None else {}
    given = dict(config.accelerator_kwargs)
    own = {
        "gradient_accumulation_steps": config.gradient_accumulation_steps,
        "log_with": config.log_with,
        "step_scheduler_with_optimizer": False,
    }
    if taken := sorted({*own, "project_dir", "project_config"} & given.keys()):
        raise ValueError(f"accelerator_kwargs cannot set {', '.join(taken)}; PPOConfig's other fields and step do")
    if given.get("mixed_precision") == "fp16":
        raise ValueError("accelerator_kwargs: PPOTrainer does not scale losses, which fp16 needs; choose bf16 or no")
    given.setdefault("mixed_precision", None if asked_for("DEEPSPEED") else "no")
    handlers = list(given.pop("kwargs_handlers", None) or [])
    if not any(isinstance(handler, DistributedDataParallelKwargs) for handler in handlers):
        handlers.append(DistributedDataParallelKwargs(broadcast_buffers=False))
    if deepspeed_on_cpu():
        handlers.append(InitProcessGroupKwargs(backend="gloo"))
    try:
        own["project_config"] = ProjectConfiguration(**project | config.project_kwargs)
    except TypeError as error:
        raise ValueError(f"project_kwargs: {error}") from None
    try:
        return Accelerator(**own, kwargs_handlers=handlers, **given)
    except TypeError as error:
        raise ValueError(f"accelerator_kwargs: {error}") from None


def _check_ids(name: str, sequences: Sequence[Tensor]) -> None:
    for row, ids in enumerate(sequences):
        if not isinstance(ids, Tensor) or ids.dim() != 1 or ids.numel() == 0 or ids.is_floating_point():
            raise ValueError(f"{name} {row} must be a 1-D tensor of at least one id, not {ids!r:.80}")


def _array(x: Tensor) -> np.ndarray:
    return x.detach().float().cpu().numpy()


def _missing(folder: Path, name: str) -> str:
    return f"{folder} is not a whole training state: {name} is missing"


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _as_markdown(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table in Markdown; what a cell holds is shown as it is."""

    def cell(value: Any) -> str:
        if value is None:
            return ""
        if isinstance(value, float):
            return f"{value:.6g}"
        # a TensorBoard page shows HTML, and Markdown ends a cell at | and a row at a line's end
        text = html.escape(str(value).encode("utf-8", "replace").decode("utf-8"), quote=False)
        for sign in "\\`*_[]|":
            text = text.replace(sign, "\\" + sign)
        return "<br>".join(text.splitlines())

    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(map(cell, line))} |" for line in lines)


def _is_number(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.numel() == 1
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
