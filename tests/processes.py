"""Several real processes that work together, without the start of Python and the imports in each of them.

They are forked from a server that has imported the packages once, and get the environment variables that torchrun
gives: rank, number of processes, where to meet.
"""

from __future__ import annotations

import os
import runpy
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.context import ForkServerProcess
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


def run_together(
    processes: int, script: str | Path, *words: str, ranks: Sequence[int] | None = None, **variables: str
) -> list[Ended]:
    """Run a script of the repository, or a module by name, in so many processes on CPU, one thread each.

    ranks: of those that are started; the others never come. variables: more of the environment.
    Waits HUNG seconds at most, then kills those that are left: their code is -9.
    """
    shared = {"ACCELERATE_USE_CPU": "true"} | variables
    if processes > 1:
        shared |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
        shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    with tempfile.TemporaryDirectory() as folder:
        started: list[tuple[ForkServerProcess, Path]] = []
        for rank in range(processes) if ranks is None else ranks:
            output = Path(folder) / str(rank)
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {}
            process = servers.Process(target=run_one, args=(str(script), words, shared | own, str(output)))
            process.start()
            started.append((process, output))
        hung = time.monotonic() + HUNG
        ended = []
        for process, output in started:
            process.join(max(hung - time.monotonic(), 0))
            if process.is_alive():
                process.kill()
                process.join()
            ended.append(Ended(process.exitcode, output.read_text(errors="replace") if output.exists() else ""))
        return ended


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
