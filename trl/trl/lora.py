"""Where LoRA goes if nobody says it: the projections of attention."""

from __future__ import annotations

from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import nn
from transformers.pytorch_utils import Conv1D

# Mamba's kernels read these weights past their layers, so that LoRA on them would train but compute nothing
READ_DIRECTLY = {"out_proj", "dt_proj"}


def lora_targets(model: nn.Module) -> list[str]:
    """Ends of module names for LoraConfig's `target_modules`: PEFT's default for the model's type, or what is found.

    Found are the linear layers (Conv1D too) that attention modules hold, or the mixers of a state-space model. A name
    that other layers have too is given with its parent's (`attn.c_proj`). `model` needs no weights: the meta device
    will do. Raises ValueError if there are none.
    """
    if default := TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(model.config.model_type):
        return list(default)
    return find_projections(model)


def find_projections(model: nn.Module) -> list[str]:
    """See `lora_targets`; without PEFT's defaults."""
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)]

    def inside(kind: str) -> list[str]:
        return [name for name in linear if kind in type(model.get_submodule(name.rpartition(".")[0])).__name__]

    # LED uses its global projections only for inputs with a global attention mask
    found = [name for name in inside("Attention") if not name.endswith("_global")]
    found = found or [name for name in inside("Mixer") if _last(name) not in READ_DIRECTLY]
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no attention projections that LoRA can be put on; name target_modules"
        )
    elsewhere = {_last(name) for name in set(linear) - set(found)}
    return sorted({_last(name, 2 if _last(name) in elsewhere else 1) for name in found})


def unknown_targets(model: nn.Module, targets: list[str]) -> list[str]:
    """Those `targets` by which no module of the model goes. PEFT is silent about them if another one is found."""
    names = [f".{name}" for name, _ in model.named_modules() if name]
    return [target for target in targets if not any(name.endswith(f".{target}") for name in names)]


def _last(name: str, parts: int = 1) -> str:
    return ".".join(name.split(".")[-parts:])
