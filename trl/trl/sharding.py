"""Where weights, gradients and optimizer states lie: whole on every process (one process, DDP), or in parts.

DeepSpeed ZeRO-2 splits gradients and optimizer states, ZeRO-3 and FSDP2 the weights too. With the last two the model
that learns is only passed forward and backward, equally often on every process. All else is done with a second model
of the same kind: it is empty, and holds the whole weights inside `whole()`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.checkpointing import (
    load_accelerator_state,
    load_custom_state,
    save_accelerator_state,
    save_custom_state,
)
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from .config import PPOConfig
from .launch import asked_for
from .value_head import current_names
from .weights import some_names

TRAINABLE_FILE = "trainable.safetensors"


class DamagedStateError(ValueError):
    """A folder of `save_state` that is incomplete or cannot be read. An older one may be whole."""


class Replicated:
    """Every process holds all weights: one process, or DDP.

    learner: the model that learns, without the wrapper of processes
    policy: the model that answers, is scored and is saved; the same one, if each process holds all weights
    """

    name = "replicated"

    def __init__(self, accelerator: Accelerator, config: PPOConfig) -> None:
        self.accelerator, self.config = accelerator, config

    def prepare(
        self, model: nn.Module, optimizer: Any, scheduler: Any, reference: nn.Module | None
    ) -> tuple[nn.Module, Any, Any]:
        """What accelerate makes of the first three; the first of them is for passes that learn."""
        self.shapes = {name: list(p.shape) for name, p in model.named_parameters() if p.requires_grad}
        model.to(self.accelerator.device)
        self._before(model, reference)
        prepared = self.accelerator.prepare(model, optimizer, scheduler)
        self.learner = self.accelerator.unwrap_model(prepared[0])
        self.learner.eval()
        self.policy = self.learner
        self.optimizer, self.scheduler = prepared[1:]
        return prepared

    def _before(self, model: nn.Module, reference: nn.Module | None) -> None:
        if self.accelerator.num_processes > 1:
            # DDP waits for the gradient of every weight. To look for those without one takes time in each pass.
            self.accelerator.ddp_handler.find_unused_parameters |= bool(model.unused_weights())
        self.accelerator.register_save_state_pre_hook(self._save_trainable)
        self.accelerator.register_load_state_pre_hook(self._load_trainable)

    @contextmanager
    def whole(self) -> Iterator[None]:
        """`policy` has its weights inside. Every process enters and leaves it; inside, each goes its own way."""
        yield

    # --- gradients ---------------------------------------------------------------------------------------------------

    def backward(self, loss: Tensor, wanted: bool) -> None:
        """Add the gradient of `loss`; if it is not `wanted`, none of this optimizer step's gradients counts."""
        if wanted:
            self.accelerator.backward(loss)

    def clipped_norm(self) -> float:
        """Clip the gradient of all processes; its norm before."""
        limit = self.config.max_grad_norm
        weights = [p for p in self.learner.parameters() if p.requires_grad]
        return float(self.accelerator.clip_grad_norm_(weights, math.inf if limit is None else limit))

    def drop_gradients(self) -> None:
        self.learner.zero_grad()

    # --- what training goes on from ----------------------------------------------------------------------------------

    def state_files(self) -> list[str]:
        """Files of `save_state` that this process needs."""
        return [TRAINABLE_FILE, "optimizer.bin", "scheduler.bin"]

    def save_state(self, folder: Path, own: Any) -> None:
        """Write weights, optimizer, scheduler, random states and `own`, which has a state_dict."""
        self.accelerator.save_state(str(folder))

    def load_state(self, folder: Path, own: Any) -> None:
        self.accelerator.load_state(str(folder))

    def trainable(self) -> dict[str, Tensor]:
        return {name: p for name, p in self.learner.named_parameters() if p.requires_grad}

    def _save_trainable(self, models: list, weights: list, folder: str) -> None:
        weights.clear()  # else accelerate writes the frozen base model too
        if self.accelerator.is_main_process:
            state = {name: p.detach().cpu().contiguous() for name, p in self.trainable().items()}
            save_file(state, str(Path(folder) / TRAINABLE_FILE))

    def _load_trainable(self, models: list, folder: str) -> None:
        models.clear()
        path = Path(folder) / TRAINABLE_FILE
        try:
            state = current_names(load_file(str(path)))
        except (SafetensorError, OSError) as error:
            raise DamagedStateError(f"{path} cannot be read: {error}") from None
        weights = self.trainable()
        if differing := sorted(weights.keys() ^ state.keys()):
            raise ValueError(f"{path} is of another model: {differing[0]} and {len(differing) - 1} more names differ")
        with torch.no_grad():
            for name, parameter in weights.items():
                if parameter.shape != state[name].shape:
                    raise ValueError(f"{path} is of another model: {name} has shape {tuple(state[name].shape)}")
                parameter.copy_(state[name])


class _Sharded(Replicated):
    """What ZeRO and FSDP2 share."""

    def _before(self, model: nn.Module, reference: nn.Module | None) -> None:
        # processes exchange gradients in buckets of one layout: a weight that one of them does not use would shift them
        if unused := model.unused_weights():
            raise ValueError(
                f"{self.name} needs a gradient of every weight that trains, and these have none for some inputs: "
                f"{some_names(unused)}; freeze them, or use DDP"
            )

    def backward(self, loss: Tensor, wanted: bool) -> None:
        # a pass that is not followed by its backward pass leaves parts of it behind. NaN is never stepped on.
        self.accelerator.backward(loss if wanted else loss * math.nan)


class Zero2(_Sharded):
    """DeepSpeed: gradients and optimizer states are split. Its `backward` also clips and steps."""

    name = "ZeRO-2"

    def __init__(self, accelerator: Accelerator, config: PPOConfig) -> None:
        super().__init__(accelerator, config)
        unset_hf_deepspeed_config()  # which accelerate sets: transformers would split each further model that it loads
        settings = accelerator.state.deepspeed_plugin.deepspeed_config
        clipping = (
            accelerator.state.deepspeed_plugin.gradient_clipping
        )  # of the launch; another trainer may have set it
        due = config.max_grad_norm or 0.0
        if clipping not in ("auto", due):
            raise ValueError(
                f"DeepSpeed's gradient_clipping is {clipping} and max_grad_norm is {config.max_grad_norm}; "
                "leave gradient_clipping out of the launch settings"
            )
        settings["gradient_clipping"] = due
        settings["train_micro_batch_size_per_gpu"] = config.mini_batch_size
        settings["gradient_accumulation_steps"] = config.gradient_accumulation_steps
        settings["train_batch_size"] = config.backward_batch_size * accelerator.num_processes
        self._bf16 = (settings.get("bf16") or {}).get("enabled") is True
        if self._bf16:
            settings["bf16"]["check_grad_overflow"] = True  # else a gradient that is not finite reaches the weights

    def _before(self, model: nn.Module, reference: nn.Module | None) -> None:
        super()._before(model, reference)
        types = {p.dtype for p in model.parameters() if p.requires_grad} - {torch.float32}
        if types and not self._bf16:
            raise ValueError(
                f"DeepSpeed takes its steps in float32, and these weights train in {some_names(types)}; load the model "
                "in float32, or set mixed_precision: bf16 in the launch file"
            )

    def clipped_norm(self) -> float:
        return float(self.accelerator.deepspeed_engine_wrapped.get_global_grad_norm())

    def state_files(self) -> list[str]:
        return ["scheduler.bin"]

    def save_state(self, folder: Path, own: Any) -> None:
        self.accelerator.save_state(str(folder), exclude_frozen_parameters=True)

    def load_state(self, folder: Path, own: Any) -> None:
        # not strict: frozen weights are not in it. The caller has compared the names of the others.
        self.accelerator.load_state(str(folder), load_module_strict=False)


class _Gathered(_Sharded):
    """The weights are split too. `policy` is a second model, empty outside of `whole`."""

    def _before(self, model: nn.Module, reference: nn.Module | None) -> None:
        super()._before(model, reference)
        if odd := [name for name, p in model.named_parameters() if not p.is_floating_point()]:
            raise ValueError(f"{self.name} cannot split quantised weights ({odd[0]}); use DDP or ZeRO-2")
        if reference is not None and set(model.parameters()) & set(reference.parameters()):
            raise ValueError(f"{self.name} splits weights that the reference shares; leave num_shared_layers out")
        empty = {id(p): nn.Parameter(p.new_empty(0), requires_grad=p.requires_grad) for p in model.parameters()}
        self._answering = copy.deepcopy(model, empty)
        self._inside = 0  # of `whole`, as deep as it is nested
        # every process goes through the same modules in the same order, however many of its queries are equal
        model.sharing_types = ()

    def prepare(self, model: nn.Module, *others: Any) -> tuple[nn.Module, Any, Any]:
        prepared = super().prepare(model, *others)
        self.policy = self._answering
        return prepared

    @contextmanager
    def whole(self) -> Iterator[None]:
        self._inside += 1
        try:
            if self._inside == 1:
                own = self.policy.parameters()
                for parameter, weight in zip(own, self._whole_weights(), strict=True):
                    parameter.data = weight
            yield
        finally:
            self._inside -= 1
            if self._inside == 0:
                for parameter in self.policy.parameters():
                    parameter.data = parameter.data.new_empty(0)

    def _whole_weights(self) -> Iterator[Tensor]:
        """The learner's weights, in the order of its parameters. All processes go through them together."""
        raise NotImplementedError


class Zero3(_Gathered, Zero2):
    """DeepSpeed: weights, gradients and optimizer states are split."""

    name = "ZeRO-3"

    def _whole_weights(self) -> Iterator[Tensor]:
        import deepspeed

        for parameter in self.learner.parameters():
            with deepspeed.zero.GatheredParameters([parameter]):
                weight = parameter.detach().clone()
            yield weight


class Fsdp2(_Gathered):
    """torch's fully_shard, by accelerate: weights, gradients and optimizer states are split."""

    name = "FSDP2"

    def prepare(self, model: nn.Module, *others: Any) -> tuple[nn.Module, Any, Any]:
        plugin = self.accelerator.state.fsdp_plugin
        given = plugin.auto_wrap_policy, plugin.transformer_cls_names_to_wrap
        by_layer = plugin.auto_wrap_policy is transformer_auto_wrap_policy
        if by_layer:
            # accelerate looks for their names on the model with the value head, which does not know
            layers = {type(module).__name__ for module in model.modules()}
            names = plugin.transformer_cls_names_to_wrap or layers & set(model.base_model._no_split_modules or ())
            plugin.transformer_cls_names_to_wrap = sorted({*names, *(layers & {"ValueHead"})})
        elif len({p.dtype for p in model.parameters() if p.requires_grad}) > 1:
            raise ValueError(
                "the value head has another type than the weights, which FSDP2 cannot mix in a part; "
                "set fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP"
            )
        prepared = super().prepare(model, *others)
        # of this model; another trainer in this process has its own
        plugin.auto_wrap_policy, plugin.transformer_cls_names_to_wrap = given
        return prepared

    def clipped_norm(self) -> float:
        limit = self.config.max_grad_norm
        weights = [p for p in self.learner.parameters() if p.requires_grad]
        norm = nn.utils.clip_grad_norm_(weights, math.inf if limit is None else limit)
        return float(norm.full_tensor())

    def _whole_weights(self) -> Iterator[Tensor]:
        for parameter in self.learner.parameters():
            yield parameter.detach().full_tensor()

    # accelerate would write the frozen weights too, and of a PEFT model the value head alone
    def _file(self) -> str:
        return f"shard_{self.accelerator.process_index}.bin"

    def state_files(self) -> list[str]:
        return [self._file(), "scheduler.bin"]

    def save_state(self, folder: Path, own: Any) -> None:
        rank = self.accelerator.process_index
        folder.mkdir(parents=True, exist_ok=True)
        save_accelerator_state(str(folder), [], [], [self.scheduler], [], rank, self.accelerator.step)
        if self.accelerator.is_main_process:
            save_custom_state(own, str(folder), 0)
        weights = {name: p.detach().to_local() for name, p in self.trainable().items()}
        optimizer = self.optimizer.state_dict()
        optimizer["state"] = {
            k: {name: x.to_local() if hasattr(x, "to_local") else x for name, x in state.items()}
            for k, state in optimizer["state"].items()
        }
        torch.save({"weights": weights, "optimizer": optimizer}, folder / self._file())

    def load_state(self, folder: Path, own: Any) -> None:
        from torch.distributed.tensor import DTensor

        rank = self.accelerator.process_index
        found = load_accelerator_state(str(folder), [], [], [self.scheduler], [], rank, None, "cpu")
        self.accelerator.step = found["step"]
        load_custom_state(own, str(folder), 0)
        saved = torch.load(folder / self._file(), map_location="cpu", weights_only=True)
        weights = self.trainable()
        with torch.no_grad():
            for name, local in saved["weights"].items():
                weights[name].to_local().copy_(local)
        in_order = [p for group in self.optimizer.param_groups for p in group["params"]]
        for k, state in saved["optimizer"]["state"].items():
            like, p = in_order[k].to_local(), in_order[k]
            for name, x in state.items():
                if x.dim() and x.shape == like.shape:
                    x = x.to(like.device)
                    state[name] = DTensor.from_local(x, p.device_mesh, p.placements, shape=p.shape, stride=p.stride())
        self.optimizer.load_state_dict(saved["optimizer"])


# --- which of them ---------------------------------------------------------------------------------------------------


def sharding_of(accelerator: Accelerator, config: PPOConfig) -> Replicated:
    """How this launch lays out what trains. Raises ValueError, in one line, for what is not supported."""
    state = accelerator.state
    if asked_for("FSDP") and accelerator.distributed_type == DistributedType.MULTI_CPU:
        # accelerate 1.15 forgets FSDP on CPU, and would train with DDP
        state.fsdp_plugin = config.accelerator_kwargs.get("fsdp_plugin") or FullyShardedDataParallelPlugin()
        state.distributed_type = DistributedType.FSDP
    if accelerator.distributed_type == DistributedType.FSDP:
        _check_fsdp(state.fsdp_plugin, config)
        return Fsdp2(accelerator, config)
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        stage = _checked_stage(state.deepspeed_plugin, config)
        return {2: Zero2, 3: Zero3}[stage](accelerator, config)
    return Replicated(accelerator, config)


def _check_fsdp(plugin: Any, config: PPOConfig) -> None:
    if plugin.fsdp_version != 2:
        raise ValueError("PPOTrainer does not run under FSDP 1; set fsdp_version: 2 in the launch file")
    problems = {
        "fsdp_cpu_ram_efficient_loading": plugin.cpu_ram_efficient_loading,
        "fsdp_activation_checkpointing": plugin.activation_checkpointing,  # acts in train mode, where dropout is on
        "fsdp_offload_params": type(plugin.cpu_offload).__name__ == "CPUOffloadPolicy",
    }
    for flag, on in problems.items():
        if on:
            raise ValueError(f"PPOTrainer does not support {flag}; set it to false in the launch file")
    if config.gradient_checkpointing:
        raise ValueError("gradient_checkpointing was not tried with FSDP2; turn it off, or use ZeRO-2")


def _checked_stage(plugin: Any, config: PPOConfig) -> int:
    """DeepSpeed's ZeRO stage."""
    settings = plugin.deepspeed_config
    zero = settings.get("zero_optimization", {})
    stage = zero.get("stage")
    if stage not in (2, 3):
        raise ValueError(f"PPOTrainer runs under DeepSpeed's ZeRO stages 2 and 3, not {stage}; set zero_stage")
    for part in ("offload_optimizer", "offload_param"):
        # accelerate puts DeepSpeed's own Adam in the optimizer's place, which the learning rate schedule does not reach
        if (device := (zero.get(part) or {}).get("device", "none")) not in (None, "none"):
            raise ValueError(f"PPOTrainer does not support DeepSpeed's {part} ({device}); set {part}_device: none")
    if stage == 3 and plugin.zero3_init_flag:
        raise ValueError("PPOTrainer takes whole models and splits them itself; set zero3_init_flag: false")
    if (settings.get("fp16") or {}).get("enabled") in (True, "true"):
        raise ValueError("PPOTrainer does not scale losses, which fp16 needs; choose bf16 or no")
    if stage == 3 and config.gradient_checkpointing:
        raise ValueError("gradient_checkpointing does not work with ZeRO-3; turn it off, or use ZeRO-2")
    return stage
