"""What a launch asks for in its environment: DeepSpeed, FSDP. Loads nothing: it can be asked before any model loads."""

from __future__ import annotations

import importlib.util
import os


def asked_for(what: str) -> bool:
    """what: CPU, DEEPSPEED or FSDP."""
    return os.environ.get(f"ACCELERATE_USE_{what}", "false").lower() in ("1", "true", "yes")


def deepspeed_on_cpu() -> bool:
    return asked_for("DEEPSPEED") and os.environ.get("DS_ACCELERATOR") == "cpu" and "LOCAL_RANK" in os.environ


def check_launch_settings() -> None:
    """Raise ValueError for settings of the launch, in the environment, that cannot work. Loads no model."""
    if asked_for("DEEPSPEED"):
        if importlib.util.find_spec("deepspeed") is None:
            raise ValueError("the launch asks for DeepSpeed, which is not installed; run `pip install deepspeed`")
        if asked_for("CPU"):
            raise ValueError(
                "ACCELERATE_USE_CPU makes accelerate leave DeepSpeed out; for DeepSpeed on CPU set use_cpu: false in "
                "the launch file, and DS_ACCELERATOR=cpu in the environment"
            )
    if asked_for("FSDP"):
        if os.environ.get("FSDP_VERSION", "1") != "2":
            raise ValueError("PPOTrainer does not run under FSDP 1; set fsdp_version: 2 in the launch file")
        if os.environ.get("FSDP_CPU_RAM_EFFICIENT_LOADING", "false").lower() in ("1", "true"):
            raise ValueError(
                "fsdp_cpu_ram_efficient_loading leaves the models of all processes but one empty, the reference too; "
                "set it to false in the launch file"
            )
        if int(os.environ.get("WORLD_SIZE", "1")) < 2:
            raise ValueError("FSDP needs at least two processes; start one process without it")
