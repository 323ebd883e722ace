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
}

__all__ = [
    "AutoModelForCausalLMWithValueHead",
    "AutoModelForSeq2SeqLMWithValueHead",
    "PPOConfig",
    "PPOTrainer",
    "PreTrainedModelWrapper",
    "create_reference_model",
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
