"""PPO with one reward per response token, for encoder-decoder and decoder-only models.

The names below are loaded on first use: `import trl` alone imports neither torch nor transformers.
"""

from __future__ import annotations

import importlib

_HOME = {
    "PPOConfig": "config",
    "PPOTrainer": "trainer",
    "set_seed": "trainer",
    "AutoModelForCausalLMWithValueHead": "models",
    "AutoModelForSeq2SeqLMWithValueHead": "models",
    "PreTrainedModelWrapper": "models",
    "create_reference_model": "reference",
    "BestOfNSampler": "extras",
    "is_diffusers_available": "import_utils",
    "is_peft_available": "import_utils",
    "is_wandb_available": "import_utils",
    "is_xpu_available": "import_utils",
}

__all__ = [
    "AutoModelForCausalLMWithValueHead",
    "AutoModelForSeq2SeqLMWithValueHead",
    "BestOfNSampler",
    "PPOConfig",
    "PPOTrainer",
    "PreTrainedModelWrapper",
    "create_reference_model",
    "is_diffusers_available",
    "is_peft_available",
    "is_wandb_available",
    "is_xpu_available",
    "set_seed",
]
__version__ = "0.1.0"


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'trl' has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
