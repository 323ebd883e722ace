"""PPOTrainer: generate, score with old policy and reference, place rewards, improve policy and value head."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import DistributedType, gather_object
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader

from . import ppo_math
from .config import PPOConfig
from .generation import describe_unused, generate, special_tokens
from .ppo_math import LossSums

TRAINABLE_FILE = "trainable.safetensors"
STATE_FILE = "trainer_state.json"
STATE_PATTERNS = (TRAINABLE_FILE, "*.bin", "*.pkl", "**/*.pt")  # of the files that accelerate and DeepSpeed write


class DamagedStateError(ValueError):
    """A folder of `save_state` that is incomplete or cannot be read. An older one may be whole."""


def set_seed(seed: int) -> None:
    """Seed the random numbers of Python, numpy and torch (all devices) of this process."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


class EpochBatchSampler:
    """Batches of indices as a function of (seed, epoch): each process takes its slice of every global batch.

    Every process computes the same permutation; an incomplete last global batch is left out. `set_epoch` chooses the
    epoch and, to resume inside of it, the first batch of the next iteration.
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
            raise ValueError(
                f"the dataset has {size} examples, fewer than one batch of {batch_size} on each of "
                f"{num_processes} process(es); lower batch_size or give more data"
            )

    def set_epoch(self, epoch: int, start_batch: int = 0) -> None:
        """Iterate over `epoch` from batch `start_batch` on."""
        self.epoch = epoch
        self.start_batch = start_batch

    def __len__(self) -> int:
        """Batches in one whole epoch."""
        return self.size // (self.batch_size * self.num_processes)

    def __iter__(self) -> Iterator[list[int]]:
        seed = int(np.random.SeedSequence([self.seed, self.epoch]).generate_state(1)[0])
        order = torch.randperm(self.size, generator=torch.Generator().manual_seed(seed)).tolist()
        for batch in range(self.start_batch, len(self)):
            start = (batch * self.num_processes + self.process_index) * self.batch_size
            yield order[start : start + self.batch_size]


def _as_is(examples: list) -> list:
    return examples


@dataclass(frozen=True)
class _Experience:
    """What one `step` learns from, on this process."""

    queries: list[Tensor]  # B x (Q_i,)
    responses: list[Tensor]  # B x (T_i,)
    mask: Tensor  # (B, T) bool, True on response tokens
    logprobs: Tensor  # (B, T) of the sampled tokens, under the policy at rollout
    values: Tensor  # (B, T) at rollout
    advantages: Tensor  # (B, T), whitened over all processes
    returns: Tensor  # (B, T)


def _pad(sequences: Sequence[Tensor], value: int, side: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """Stack B x (L_i,) ids to (B, L), and the mask (B, L), int64, of what is no padding."""
    length = max(len(s) for s in sequences)
    ids = torch.full((len(sequences), length), value, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        span = slice(0, len(sequence)) if side == "right" else slice(length - len(sequence), length)
        ids[row, span] = sequence.to("cpu")
        mask[row, span] = 1
    return ids.to(device), mask.to(device)


class PPOTrainer:
    """Proximal policy optimisation of a language model with a value head.

    config: PPOConfig; its batch sizes count samples per process
    model: AutoModelForSeq2SeqLMWithValueHead or AutoModelForCausalLMWithValueHead. Its reference is itself as given
        here: with the adapters off if they are fresh LoRA, otherwise with a copy of the weights that train. So
        `load_state` does not change the reference. The model stays in eval mode, because dropout would make the
        probability ratio differ from 1 before the first update; during updates `lora_dropout` alone is active: it acts
        on a branch that is zero in a fresh adapter, so that the first ratio is exactly 1 and the adapter is still
        regularised.
    ref_model: another reference, only for a model without PEFT
    tokenizer: gives pad and end tokens, before those of the model's config and generation config
    dataset: sequence of examples, for `dataloader`
    data_collator: list of examples -> batch; left out, the list itself
    optimizer, lr_scheduler: over the trainable parameters; left out, Adam at a constant rate. The scheduler moves once
        per `step`.

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
        data_collator: Callable[[list], Any] | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        lr_scheduler: Any = None,
    ) -> None:
        self.config = config
        self.tokenizer = tokenizer
        use_tracker = config.log_with != "none"
        if use_tracker and importlib.util.find_spec(config.log_with) is None:
            raise ValueError(f"log_with is {config.log_with!r}, which is not installed; install it, or choose 'none'")
        deepspeed = os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true"
        self.accelerator = Accelerator(
            gradient_accumulation_steps=config.gradient_accumulation_steps,
            mixed_precision=None if deepspeed else "no",
            log_with=config.log_with if use_tracker else None,
            project_dir=config.logging_dir if use_tracker else None,
            step_scheduler_with_optimizer=False,
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
        )
        if self.accelerator.distributed_type == DistributedType.FSDP:
            raise ValueError("PPOTrainer does not run under FSDP; use several GPUs (DDP) or DeepSpeed ZeRO-2")
        if self.accelerator.distributed_type == DistributedType.DEEPSPEED:
            settings = self.accelerator.state.deepspeed_plugin.deepspeed_config
            settings["train_micro_batch_size_per_gpu"] = config.mini_batch_size
            settings["gradient_accumulation_steps"] = config.gradient_accumulation_steps
        set_seed(config.seed + self.accelerator.process_index)

        self._tokens = special_tokens(model.base_model, tokenizer)
        self._pad_id = self._tokens.pad
        if unused := describe_unused(model.base_model):
            self.accelerator.print(unused)

        self._ref_model = None
        if ref_model is not None:
            if model.is_peft:
                raise ValueError("a PEFT model as given is its own reference; leave ref_model out")
            ref_model = ref_model if isinstance(ref_model, type(model)) else type(model)(ref_model)
            self._ref_model = ref_model.eval().requires_grad_(False).to(self.accelerator.device)

        model.eval()
        trainable = [p for p in model.parameters() if p.requires_grad]
        if optimizer is None:
            optimizer = torch.optim.Adam(trainable, lr=config.learning_rate)
        if lr_scheduler is None:
            lr_scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0, total_iters=1)
        self.model, self.optimizer, self.lr_scheduler = self.accelerator.prepare(model, optimizer, lr_scheduler)
        self.policy = self.accelerator.unwrap_model(self.model)  # the same weights, without the wrapper of processes
        self.policy.eval()
        # each weight that trains, and a copy as it is now; None if another model or adapters off are the reference
        self._start_weights: list[tuple[nn.Parameter, Tensor]] | None = None
        if self._ref_model is None and not self.policy.adapter_adds_zero():
            self._start_weights = [(p, p.detach().clone()) for p in self._trainable_weights().values()]

        self.dataset = dataset
        self.dataloader = None
        if dataset is not None:
            sampler = EpochBatchSampler(
                len(dataset),
                config.batch_size,
                self.accelerator.num_processes,
                self.accelerator.process_index,
                config.seed,
            )
            # a generator of its own: starting an iteration draws a number, which must not move the global state
            self.dataloader = DataLoader(
                dataset, batch_sampler=sampler, collate_fn=data_collator or _as_is, generator=torch.Generator()
            )

        if config.adap_kl_ctrl:
            self.kl_controller = ppo_math.AdaptiveKLController(config.init_kl_coef, config.target, config.horizon)
        else:
            self.kl_controller = ppo_math.FixedKLController(config.init_kl_coef)
        self.steps_done = 0  # calls of `step`, skipped ones included: the x axis of the tracker
        self.accelerator.register_for_checkpointing(self)
        self.accelerator.register_save_state_pre_hook(self._save_trainable)
        self.accelerator.register_load_state_pre_hook(self._load_trainable)
        self._tracking = False
        self._first_step: int | None = None  # of what the tracker will get, if it may hold later steps already

    # --- generation --------------------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    @torch.no_grad()
    def generate(
        self, queries: Sequence[Tensor], batch_size: int | None = None, **generation_kwargs: Any
    ) -> list[Tensor]:
        """Sample one response per query: B x (Q_i,) ids in, B x (T_i,) ids out, in order, on the trainer's device.

        A response ends with its first end token, included, and holds no padding; end tokens are those of the tokenizer,
        the config and the generation config. `batch_size` queries are generated at a time (None: all).
        `generation_kwargs` go to transformers' `generate`. What they leave open changes nothing, whatever the
        checkpoint's generation_config.json asks for: do_sample=True samples from the policy itself, which PPO takes
        samples to come from. What they set (temperature, top_p, a `generation_config`...) is used. Without a limit
        (max_new_tokens) a response has 20 tokens at most.
        """
        responses: list[Tensor] = []
        for start in range(0, len(queries), batch_size or max(len(queries), 1)):
            chunk = queries[start : start + batch_size] if batch_size else queries
            ids, mask = _pad(chunk, self._pad_id, self.policy.query_padding, self.device)
            tokens = replace(self._tokens, prefix=self.policy.decoder_prefix)
            responses += generate(self.policy.pretrained_model, ids, mask, tokens, **generation_kwargs)
        return responses

    # --- one PPO step ------------------------------------------------------------------------------------------------

    def step(self, queries: Sequence[Tensor], responses: Sequence[Tensor], scores: Sequence[Any]) -> dict[str, float]:
        """Improve the policy on one batch, together with all other processes.

        queries: batch_size x (Q_i,) ids; responses: batch_size x (T_i,) ids, every one of them an action, the end
        token included; scores: batch_size scalars (paid to the last token), or (T_i,) vectors (score t paid to
        response token t).

        Returns statistics over all processes, Python floats. Where a score is NaN or infinite on any process, nothing
        is learnt: `ppo/skipped_nonfinite` is 1 and statistics of the update are absent. Raises ValueError for inputs
        that do not fit together.
        """
        started = time.perf_counter()
        # another trainer in this process may have changed accelerate's shared setting
        self.accelerator.gradient_accumulation_steps = self.config.gradient_accumulation_steps
        queries, responses, mask = self._check_inputs(queries, responses, scores)
        placed = ppo_math.place_scores(scores, mask)
        self.steps_done += 1
        if not self._finite_everywhere(placed):
            return self._skipped()

        # 1. the old policy, its values, the reference
        logprobs, values, kl, entropy = self._score_rollout(queries, responses, mask)
        if not self._finite_everywhere(logprobs, values, kl):
            return self._skipped()
        scored = time.perf_counter()

        # 2. rewards and advantages
        rewards = ppo_math.token_rewards(placed, kl, self.kl_controller.value, mask)
        advantages, returns = ppo_math.gae(values, rewards, mask, self.config.gamma, self.config.lam)
        advantages = ppo_math.masked_whiten(advantages, mask, total=self._total)
        experience = _Experience(queries, responses, mask, logprobs, values, advantages, returns)
        stats = self._rollout_statistics(placed, kl, entropy, experience)
        rewarded = time.perf_counter()

        # 3. epochs of updates
        stats |= self._update(experience)
        if stats.get("ppo/returns/var", 0) > 0 and "ppo/val/error" in stats:
            stats["ppo/val/var_explained"] = 1 - stats["ppo/val/error"] / stats["ppo/returns/var"]

        # 4. the KL coefficient, the learning rate
        self.kl_controller.update(stats["objective/kl"], len(queries) * self.accelerator.num_processes)
        self.lr_scheduler.step()
        now = time.perf_counter()
        stats["time/ppo/forward_pass"] = scored - started
        stats["time/ppo/compute_advantages"] = rewarded - scored
        stats["time/ppo/optimize_step"] = now - rewarded
        stats["time/ppo/total"] = now - started
        return stats

    def _check_inputs(
        self, queries: Sequence[Tensor], responses: Sequence[Tensor], scores: Sequence[Any]
    ) -> tuple[list[Tensor], list[Tensor], Tensor]:
        size = self.config.batch_size
        for name, values in (("queries", queries), ("responses", responses), ("scores", scores)):
            if len(values) != size:
                raise ValueError(f"step got {len(values)} {name}; batch_size is {size}")
        for name, sequences in (("query", queries), ("response", responses)):
            for row, ids in enumerate(sequences):
                if not isinstance(ids, Tensor) or ids.dim() != 1 or ids.numel() == 0:
                    raise ValueError(f"{name} {row} must be a 1-D tensor of at least one id, not {ids!r:.80}")
        lengths = torch.tensor([len(r) for r in responses], device=self.device)
        mask = torch.arange(int(lengths.max()), device=self.device) < lengths[:, None]
        return list(queries), list(responses), mask

    def _model_inputs(self, queries: Sequence[Tensor], responses: Sequence[Tensor]) -> tuple[dict, Tensor]:
        """Arguments of the model's forward, and the labels (b, t), of one mini-batch."""
        query_ids, query_mask = _pad(queries, self._pad_id, self.policy.query_padding, self.device)
        response_ids, mask = _pad(responses, self._pad_id, "right", self.device)
        return self.policy.response_inputs(query_ids, query_mask, response_ids, mask), response_ids

    def _reference_logits(self, inputs: dict) -> Tensor:
        if self._ref_model is not None:
            return self._ref_model(**inputs)[0]
        off = self._start_weights is None
        with self.policy.pretrained_model.disable_adapter() if off else self._start_weights_in_place():
            return self.policy(**inputs)[0]

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
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Log-probabilities, values, KL penalty and entropy of every response token, (B, T) float32, 0 on padding."""
        logprobs, values, kl, entropy = (torch.zeros(mask.shape, device=self.device) for _ in range(4))
        size = self.config.mini_batch_size
        for start in range(0, len(queries), size):
            rows = slice(start, start + size)
            inputs, labels = self._model_inputs(queries[rows], responses[rows])
            columns = slice(0, labels.shape[1])
            logits, values[rows, columns] = self.policy(**inputs)
            logprobs[rows, columns] = ppo_math.token_logprobs(logits, labels)
            entropy[rows, columns] = ppo_math.token_entropy(logits)
            if self.config.kl_penalty == "full":
                kl[rows, columns] = ppo_math.full_kl(logits, self._reference_logits(inputs))
            else:
                del logits  # before the reference makes as many
                ref_logprobs = ppo_math.token_logprobs(self._reference_logits(inputs), labels)
                kl[rows, columns] = ppo_math.kl_penalty(logprobs[rows, columns], ref_logprobs, self.config.kl_penalty)
        return tuple(torch.where(mask, x, 0) for x in (logprobs, values, kl, entropy))

    def _rollout_statistics(
        self, placed: Tensor, kl: Tensor, entropy: Tensor, experience: _Experience
    ) -> dict[str, float]:
        mask = experience.mask
        ones = torch.ones(len(mask), dtype=torch.bool, device=self.device)

        def over_samples(x: Tensor) -> float:
            return float(ppo_math.masked_mean(x, ones, self._total))

        def over_tokens(x: Tensor, statistic: Callable = ppo_math.masked_mean) -> float:
            return float(statistic(x, mask, total=self._total))

        coefficient = self.kl_controller.value
        query_lengths = torch.tensor([float(len(q)) for q in experience.queries], device=self.device)
        return {
            "objective/kl": over_samples(kl.sum(1)),
            "objective/kl_coef": coefficient,
            "objective/entropy": over_tokens(entropy),
            "ppo/mean_non_score_reward": over_tokens(-coefficient * kl),
            "ppo/mean_scores": over_samples(placed.sum(1)),
            "ppo/returns/mean": over_tokens(experience.returns),
            "ppo/returns/var": over_tokens(experience.returns, ppo_math.masked_var),
            "ppo/val/mean": over_tokens(experience.values),
            "ppo/val/var": over_tokens(experience.values, ppo_math.masked_var),
            "tokens/queries_len_mean": over_samples(query_lengths),
            "tokens/responses_len_mean": over_samples(mask.sum(1).float()),
            "ppo/learning_rate": self.lr_scheduler.get_last_lr()[0],
        }

    def _update(self, experience: _Experience) -> dict[str, float]:
        """All PPO epochs on one batch; statistics are token means over the backward batches that were evaluated."""
        config = self.config
        seen: list[Tensor] = []
        norms: list[float] = []
        counts = {"updates": 0, "early_stopped": 0, "skipped_ratio": 0, "skipped_nonfinite": 0}
        for _ in range(config.ppo_epochs):
            order = torch.randperm(config.batch_size).tolist()
            for start in range(0, config.batch_size, config.backward_batch_size):
                rows = order[start : start + config.backward_batch_size]
                sums, verdict, norm = self._backward_batch(experience, rows)
                counts[verdict] += 1
                if torch.isfinite(sums).all():
                    seen.append(sums)
                if norm is not None and math.isfinite(norm):
                    norms.append(norm)
                if verdict == "early_stopped":
                    break
            if counts["early_stopped"]:
                break
        stats = {f"ppo/{name}": float(count) for name, count in counts.items()}
        if seen:
            means = ppo_math.loss_statistics(LossSums(*torch.stack(seen).sum(0)), config.vf_coef)
            stats |= {f"ppo/{name}": value for name, value in means.items()}
        if norms:
            stats["ppo/grad_norm"] = sum(norms) / len(norms)
        return stats

    def _backward_batch(self, experience: _Experience, rows: list[int]) -> tuple[Tensor, str, float | None]:
        """One optimizer step, or the reason why there was none.

        The loss is the token mean over the whole backward batch on all processes, however it is cut into mini-batches.
        The verdict falls after the last forward pass and before the last backward pass (which is where DeepSpeed also
        takes the optimizer step), from sums that all processes share: they all decide the same.
        Returns the sums (len(LossSums),), the verdict (a key of the counts) and the gradient norm.
        """
        config, accelerator = self.config, self.accelerator
        tokens = self._total(experience.mask[rows].sum())
        # accelerate divides by the accumulation steps, and the processes' gradients are averaged: undo both
        scale = config.gradient_accumulation_steps * accelerator.num_processes / tokens
        sums = torch.zeros(len(LossSums._fields), device=self.device)
        verdict, norm = "updates", None
        for start in range(0, len(rows), config.mini_batch_size):
            with accelerator.accumulate(self.model):
                mini = self._mini_batch_sums(experience, rows[start : start + config.mini_batch_size])
                sums += torch.stack([s.detach() for s in mini])
                last = start + config.mini_batch_size == len(rows)
                if last:
                    sums = self._total(sums).cpu()
                    verdict = self._verdict(LossSums(*sums))
                if verdict == "updates":
                    accelerator.backward(scale * (mini.policy_loss + config.vf_coef * mini.value_loss))
                if last:
                    if verdict == "updates":
                        norm = self._clipped_norm()
                        if norm is None or math.isfinite(norm):
                            self.optimizer.step()
                        else:
                            verdict = "skipped_nonfinite"
                    self._drop_gradients()
        return sums, verdict, norm

    def _mini_batch_sums(self, experience: _Experience, rows: list[int]) -> LossSums:
        inputs, labels = self._model_inputs(
            [experience.queries[row] for row in rows], [experience.responses[row] for row in rows]
        )
        with self._only_lora_dropout():
            logits, values = self.model(**inputs)
        columns = labels.shape[1]
        return ppo_math.loss_sums(
            ppo_math.token_logprobs(logits, labels),
            values,
            experience.mask[rows, :columns],
            old_logprobs=experience.logprobs[rows, :columns],
            old_values=experience.values[rows, :columns],
            advantages=experience.advantages[rows, :columns],
            returns=experience.returns[rows, :columns],
            cliprange=self.config.cliprange,
            cliprange_value=self.config.cliprange_value,
        )

    def _verdict(self, sums: LossSums) -> str:
        """What becomes of a backward batch, from its sums over all processes."""
        means = ppo_math.loss_statistics(sums, self.config.vf_coef)
        if any(math.isnan(mean) for mean in means.values()):
            return "skipped_nonfinite"
        if self.config.early_stopping and means["policy/kl_estimate"] > 1.5 * self.config.target_kl:
            return "early_stopped"
        if ppo_math.ratio_guard(means["policy/ratio"], self.config.ratio_threshold):
            return "skipped_ratio"
        return "updates" if math.isfinite(means["loss/total"]) else "skipped_nonfinite"

    def _clipped_norm(self) -> float | None:
        """Clip the gradient; its norm before. None under DeepSpeed, which clips and steps by its own settings."""
        if self.accelerator.distributed_type == DistributedType.DEEPSPEED:
            return None
        trainable = [p for p in self.policy.parameters() if p.requires_grad]
        limit = self.config.max_grad_norm
        return float(self.accelerator.clip_grad_norm_(trainable, math.inf if limit is None else limit))

    def _drop_gradients(self) -> None:
        self.optimizer.zero_grad()
        if self.accelerator.distributed_type == DistributedType.DEEPSPEED:
            # accelerate's zero_grad does nothing there, and ZeRO keeps what earlier mini-batches accumulated
            engine = self.accelerator.deepspeed_engine_wrapped.engine
            engine.optimizer.zero_grad()
            if hasattr(engine.optimizer, "averaged_gradients"):
                engine.optimizer.averaged_gradients = {}

    @contextmanager
    def _only_lora_dropout(self):
        """Dropout of the adapters on, everything else in eval mode (see the class)."""
        modules = [m for name, m in self.policy.named_modules() if name.rsplit(".", 1)[-1] == "lora_dropout"]
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
        if self._tracking or config.log_with == "none":
            return
        self._tracking = True
        first_step = self._first_step if first_step is None else first_step
        tensorboard = config.log_with == "tensorboard"
        project = config.run_name if tensorboard else config.tracker_project_name
        options = {"purge_step": first_step} if tensorboard else {"name": config.run_name}
        settings = {f.name: getattr(config, f.name) for f in fields(config)}
        settings = {name: value for name, value in settings.items() if value is not None}
        self.accelerator.init_trackers(project, init_kwargs={config.log_with: options})
        for tracker in self.accelerator.trackers:
            if tracker.name != "tensorboard":  # there, it would open a second run
                tracker.store_init_configuration(settings)

    def log_stats(
        self, stats: dict[str, Any], batch: dict[str, Sequence] | None = None, rewards: Sequence[Any] | None = None
    ) -> None:
        """Send scalars to the tracker; call it on every process, with the same keys.

        stats: from `step`; what is no finite number is left out
        batch: name -> per-sample values of this process; numbers are logged as `env/{name}_mean` over all processes
        rewards: scores of this process as given to `step`, logged as `env/reward_mean` and `env/reward_std`
        """
        if self.config.log_with == "none":
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
        self.accelerator.log(scalars, step=self.steps_done)

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
        if self.accelerator.is_main_process:
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
        self.accelerator.wait_for_everyone()

    def save_state(self, folder: str | Path) -> None:
        """Write into `folder` all that training goes on from; call it on every process.

        Trainable weights (adapters and value head; without PEFT all weights), optimizer, scheduler, KL coefficient, and
        the random states of every process. The data position is the caller's: `dataloader.batch_sampler.set_epoch`.
        """
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(str(folder))
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            folder = Path(folder)
            files = {path for pattern in STATE_PATTERNS for path in folder.glob(pattern)}
            hashes = {path.relative_to(folder).as_posix(): _sha256(path) for path in sorted(files)}
            state = {"num_processes": self.accelerator.num_processes, "sha256": hashes}
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
        self._raise_together(self._damage(folder, hashes))
        random_file = self._random_file()
        problem = None
        try:
            self.accelerator.load_state(str(folder))
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
        needed = [self._random_file(), "custom_checkpoint_0.pkl"]
        if self.accelerator.distributed_type != DistributedType.DEEPSPEED:
            needed += [TRAINABLE_FILE, "optimizer.bin", "scheduler.bin"]
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
        return {"kl_controller": self.kl_controller.state_dict(), "steps_done": self.steps_done}

    def load_state_dict(self, state: dict) -> None:
        self.kl_controller.load_state_dict(state["kl_controller"])
        self.steps_done = state["steps_done"]

    def _trainable_weights(self) -> dict[str, Tensor]:
        return {name: p for name, p in self.policy.named_parameters() if p.requires_grad}

    def _save_trainable(self, models: list, weights: list, folder: str) -> None:
        weights.clear()  # else accelerate writes the frozen base model too
        if not self.accelerator.is_main_process:
            return
        if self.accelerator.distributed_type != DistributedType.DEEPSPEED:
            state = {name: p.detach().cpu().contiguous() for name, p in self._trainable_weights().items()}
            save_file(state, str(Path(folder) / TRAINABLE_FILE))

    def _load_trainable(self, models: list, folder: str) -> None:
        if self.accelerator.distributed_type == DistributedType.DEEPSPEED:
            return
        models.clear()
        path = Path(folder) / TRAINABLE_FILE
        try:
            state = load_file(str(path))
        except (SafetensorError, OSError) as error:
            raise DamagedStateError(f"{path} cannot be read: {error}") from None
        weights = self._trainable_weights()
        if differing := sorted(weights.keys() ^ state.keys()):
            raise ValueError(f"{path} is of another model: {differing[0]} and {len(differing) - 1} more names differ")
        with torch.no_grad():
            for name, parameter in weights.items():
                if parameter.shape != state[name].shape:
                    raise ValueError(f"{path} is of another model: {name} has shape {tuple(state[name].shape)}")
                parameter.copy_(state[name])


def _missing(folder: Path, name: str) -> str:
    return f"{folder} is not a whole training state: {name} is missing"


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_number(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.numel() == 1
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
