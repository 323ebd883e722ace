"""Launches that would train something else than was asked for, caught before any model loads."""

from __future__ import annotations

import os

from .errors import UserError

TWO_CPU_PROCESSES = "ACCELERATE_USE_CPU=true torchrun --nproc_per_node 2 SCRIPT ..."


def is_main_process() -> bool:
    """Whether this is the process that speaks for all. Loads nothing, so it can be asked before any model loads."""
    return os.environ.get("RANK", "0") == "0"


def check_launch() -> None:
    """Raise UserError if the processes that were started are not the processes that will work together.

    Two launches of accelerate 1.15 go wrong in silence: `--multi_gpu` on a machine without enough GPUs starts runs
    that each believe to be alone and overwrite each other, and `--cpu --num_processes 2` starts one process.
    """
    env = os.environ
    on_cpu = env.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    if "WORLD_SIZE" not in env:
        # accelerate's simple launcher sets a master address only when it was asked for several processes
        if on_cpu and "MASTER_ADDR" in env and "RANK" not in env:
            raise UserError(
                "`accelerate launch --cpu` starts one process and ignores --num_processes; "
                f"start several with `{TWO_CPU_PROCESSES}`"
            )
        return
    if on_cpu or _deepspeed_on_cpu():
        return
    wanted = int(env.get("LOCAL_WORLD_SIZE", env["WORLD_SIZE"]))
    if wanted > 1:
        import torch

        found = torch.cuda.device_count()
        if found < wanted:
            raise UserError(
                f"{wanted} processes were started on this machine, which has {found} GPUs; drop --multi_gpu or lower "
                f"--num_processes (several processes on CPU: `{TWO_CPU_PROCESSES}`)"
            )


def _deepspeed_on_cpu() -> bool:
    """Whether this process was launched for DeepSpeed without GPUs. `trl.launch` asks the same for its trainer."""
    asked = os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true" and "LOCAL_RANK" in os.environ
    return asked and os.environ.get("DS_ACCELERATOR") == "cpu"


def process_state():
    """accelerate's PartialState: this process's rank and device.

    Made here and nowhere else: unlike Accelerator, `PartialState()` does not read ACCELERATE_USE_CPU, and whoever makes
    the state first decides for all. Raises UserError if it sees fewer processes than were started.
    """
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    # accelerate chooses a backend by the GPU that it finds
    backend = {"backend": "gloo"} if _deepspeed_on_cpu() else {}
    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"), **backend)
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if state.num_processes != started:
        raise UserError(
            f"{started} processes were started but work as {state.num_processes}; on CPU use `{TWO_CPU_PROCESSES}`"
        )
    return state
