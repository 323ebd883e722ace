"""Which optional packages are installed, under the names of TRL's classic `trl.import_utils`. Imports none of them."""

from __future__ import annotations

import importlib.metadata
import importlib.util

from packaging.version import Version


def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def is_peft_available() -> bool:
    return _is_installed("peft")


def is_wandb_available() -> bool:
    return _is_installed("wandb")


def is_diffusers_available() -> bool:
    return _is_installed("diffusers")


def is_bitsandbytes_available() -> bool:
    return _is_installed("bitsandbytes")


def is_torchvision_available() -> bool:
    return _is_installed("torchvision")


def is_rich_available() -> bool:
    return _is_installed("rich")


def is_unsloth_available() -> bool:
    return _is_installed("unsloth")


def is_xpu_available() -> bool:
    """Whether torch can use an Intel GPU. Loads torch."""
    import torch

    return torch.xpu.is_available()


def is_npu_available() -> bool:
    """Whether torch can use an Ascend NPU. Loads accelerate."""
    from accelerate.utils import is_npu_available as available

    return available()


def is_transformers_greater_than(current_version: str) -> bool:
    """Whether a later version of transformers than this one is installed."""
    return Version(importlib.metadata.version("transformers")) > Version(current_version)


def is_accelerate_greater_20_0() -> bool:
    return Version(importlib.metadata.version("accelerate")) >= Version("0.20.0")


def is_torch_greater_2_0() -> bool:
    return Version(importlib.metadata.version("torch")) >= Version("2.0")
