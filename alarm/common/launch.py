"""Launches that would train something else than was asked for, caught before any model loads."""

from __future__ import annotations

import os
from datetime import timedelta

from .errors import TIMEOUT, UserError
from .launch_settings import asked_for, deepspeed_on_cpu

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
    on_cpu = asked_for("CPU")
    if "WORLD_SIZE" not in env:
        # accelerate's simple launcher sets a master address only when it was asked for several processes
        if on_cpu and "MASTER_ADDR" in env and "RANK" not in env:
            raise UserError(
                "`accelerate launch --cpu` starts one process and ignores --num_processes; "
                f"start several with `{TWO_CPU_PROCESSES}`"
            )
        return
    if on_cpu or deepspeed_on_cpu():
        return
    # srun and its like set no LOCAL_WORLD_SIZE: of this machine's processes, this one knows its own number
    local = int(env["LOCAL_RANK"]) + 1 if "LOCAL_RANK" in env else env["WORLD_SIZE"]
    wanted = int(env.get("LOCAL_WORLD_SIZE", local))
    if wanted > 1:
        import torch

        found = torch.cuda.device_count()
        if found < wanted:
            raise UserError(
                f"{wanted} processes were started on this machine, which has {found} GPUs; drop --multi_gpu or lower "
                f"--num_processes (several processes on CPU: `{TWO_CPU_PROCESSES}`)"
            )


def process_timeout() -> timedelta:
    """How long a process waits for the others, to begin with and at each exchange: 600 s, which is NCCL's default.

    Raises UserError for a value of the environment that is no time.
    """
    try:
        seconds = float(os.environ.get(TIMEOUT, "600"))
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 1e6:
        raise UserError(f"{TIMEOUT}={os.environ[TIMEOUT]} is no number of seconds from 0 to 1e6")
    return timedelta(seconds=seconds)


def process_state():
    """accelerate's PartialState: this process's rank and device.

    Made here and nowhere else: unlike Accelerator, `PartialState()` does not read ACCELERATE_USE_CPU, and whoever makes
    the state first decides for all. Raises UserError if not all processes come in time, and if it sees fewer processes
    than were started.
    """
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    # accelerate chooses a backend by the GPU that it finds
    backend = {"backend": "gloo"} if deepspeed_on_cpu() else {}
    timeout = process_timeout()
    try:
        state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"), timeout=timeout, **backend)
    except RuntimeError as error:
        said = str(error).splitlines()[0].rstrip(".")
        if (fix := _how_to_meet(error, said, timeout)) is None:
            raise
        count, where = os.environ.get("WORLD_SIZE"), f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise UserError(f"the {count} processes of this run did not meet at {where} ({said}); {fix}") from error
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if state.num_processes != started:
        raise UserError(
            f"{started} processes were started but work as {state.num_processes}; on CPU use `{TWO_CPU_PROCESSES}`"
        )
    return state


def _how_to_meet(error: RuntimeError, said: str, timeout: timedelta) -> str | None:
    """What helps if the processes of a run do not meet; None for another error. said: torch's words."""
    from torch.distributed import DistError

    if "EADDRINUSE" in said:
        return "give another port, or end what holds this one"
    if "Gloo" in said:
        return "on each machine, name the network that leads to the others: GLOO_SOCKET_IFNAME=eth0"
    if isinstance(error, DistError):
        return (
            f"start all of them within {timeout.total_seconds():g} s ({TIMEOUT}=SECONDS sets this time), on machines "
            "that reach this address"
        )
    return None
