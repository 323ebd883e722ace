"""Several real processes that work together, without the start of Python and the imports in each of them.

They are forked from a server that has imported the packages once, and get the environment variables that torchrun
gives: rank, number of processes, where to meet.
"""

from __future__ import annotations

import os
import runpy
import socket
import sys
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from helpers import ROOT

PRELOADED = ["accelerate", "peft", "alarm.training.main", "alarm.training.loop", "alarm.training.policy", "spacy"]
HUNG = 300  # seconds

servers = get_context("forkserver")
servers.set_forkserver_preload(PRELOADED)


@dataclass(frozen=True)
class Ended:
    """One process that has ended."""

    code: int
    output: str  # stdout and stderr


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run_together(processes: int, script: str | Path, *words: str) -> list[Ended]:
    """Run a script of the repository, or a module by name, in so many processes on CPU, one thread each.

    Waits HUNG seconds at most, then kills those that are left: their code is -9.
    """
    import tempfile

    meeting = {"WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes, "MASTER_ADDR": "127.0.0.1"}
    meeting |= {"MASTER_PORT": free_port(), "ACCELERATE_USE_CPU": "true"}
    with tempfile.TemporaryDirectory() as folder:
        outputs = [Path(folder) / str(rank) for rank in range(processes)]
        started = []
        for rank, output in enumerate(outputs):
            variables = {k: str(v) for k, v in meeting.items()} | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            if processes == 1:
                variables = {"ACCELERATE_USE_CPU": "true"}
            started.append(servers.Process(target=run_one, args=(str(script), words, variables, str(output))))
            started[-1].start()
        for process in started:
            process.join(HUNG)
        for process in started:
            if process.is_alive():
                process.kill()
                process.join()
        return [
            Ended(process.exitcode, output.read_text(errors="replace") if output.exists() else "")
            for process, output in zip(started, outputs, strict=True)
        ]


def run_one(script: str, words: tuple[str, ...], variables: dict[str, str], output: str) -> None:
    """In the new process: the script as if started by a launcher."""
    import torch

    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)
    sys.stdout, sys.stderr = (os.fdopen(os.dup(stream), "w", buffering=1) for stream in (1, 2))
    os.environ.update(variables)
    os.chdir(ROOT)
    torch.set_num_threads(1)

    sys.argv = [script, *words]
    if script.endswith(".py"):
        runpy.run_path(script, run_name="__main__")
    else:
        runpy.run_module(script, run_name="__main__", alter_sys=True)
