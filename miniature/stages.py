"""Stages: commands with one output each, run in turn. A second run skips what is done and goes on with the rest."""

from __future__ import annotations

import json
import os
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from alarm.common.console import Table, plain_table
from alarm.common.errors import UserError
from alarm.common.files import check_folder, write_json

ROOT = Path(__file__).resolve().parents[1]
MARKER = "stages"  # a folder in the work folder: one file for each finished stage


@dataclass(frozen=True)
class Stage:
    """One command. `words` is called when the stage's turn comes: it may read what earlier stages wrote."""

    name: str
    output: str  # file or folder in the work folder; it appears whole, or holds a run that --resume continues
    words: Callable[[], list[str]]
    resumable: bool = False


def flag_words(**values) -> list[str]:
    """Keyword arguments as command-line words; True gives a switch."""
    words = []
    for name, value in values.items():
        if value is True:
            words.append(f"--{name}")
        elif value is not None:
            words += [f"--{name}", f"{value:.6g}" if isinstance(value, float) else str(value)]
    return words


def short(path: Path) -> str:
    """The path as typed from the repository root."""
    path = Path(os.path.abspath(path))
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


# --- running them ----------------------------------------------------------------------------------------------------


def clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def printable(words: list[str], width: int = 110) -> str:
    """A command line that can be pasted, broken at flags."""
    lines, line = [], ""
    for word in words:
        quoted = shlex.quote(word)
        if line and word.startswith("--") and len(line) + len(quoted) > width:
            lines.append(line)
            line = "   "
        line += (" " if line else "") + quoted
    return " \\\n".join([*lines, line])


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def check_work_dir(work: Path) -> None:
    """Raise UserError for a folder that holds something else than stages."""
    check_folder(work, "--work_dir")
    if work.is_dir() and any(work.iterdir()) and not (work / MARKER).is_dir():
        raise UserError(f"--work_dir {work} holds other files; give a new folder or one that this command wrote")
    (work / MARKER).mkdir(parents=True, exist_ok=True)


def marker_of(stage: Stage, work: Path) -> Path:
    """The file that says that a stage is done, and what it took."""
    return work / MARKER / f"{stage.output.replace('/', '-')}.json"


def run_stage(stage: Stage, work: Path, python: str, environment: dict) -> dict | None:
    """Run a stage unless it is done. Returns what it took, or None if it was skipped."""
    marker = marker_of(stage, work)
    words = stage.words()
    before = json.loads(marker.read_text()) if marker.exists() else None
    if before and before["words"] == words and (work / stage.output).exists():
        print(f"done before, in {clock(before['seconds'])}", flush=True)
        return None
    marker.unlink(missing_ok=True)
    if before or not stage.resumable:
        # written with other flags, or by a stage that was stopped between its output and its marker
        remove(work / stage.output)
    print(printable([python, *words]), flush=True)
    start, used = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    child = subprocess.Popen([sys.executable, *words], cwd=ROOT, env=environment)
    try:
        code = child.wait()
    except KeyboardInterrupt:
        # a terminal's ^C reaches the child too, `kill -INT` this process alone
        try:
            child.wait(timeout=5)
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGINT)
            child.wait()
        raise
    if code:
        print(f"\n{stage.name} ended with exit code {code}; run the same command again to go on from here", flush=True)
        sys.exit(code if code > 0 else 128 - code)
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    took = {
        "stage": stage.name,
        "words": words,
        "seconds": time.perf_counter() - start,
        "cpu_seconds": usage.ru_utime + usage.ru_stime - used.ru_utime - used.ru_stime,
    }
    write_json(marker, took)
    return took


def run_stages(stages: list[Stage], work: Path) -> None:
    python = os.path.relpath(sys.executable, ROOT)
    python = sys.executable if python.startswith("..") else python
    quiet = {"PYTHONWARNINGS": "ignore::FutureWarning"}  # of the libraries, about each other
    # one thread: for models of this size several gain little, and beside a busy neighbour they are many times slower
    fixed = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    environment = {**fixed, **quiet, **os.environ}
    start = time.perf_counter()
    for number, stage in enumerate(stages, start=1):
        print(f"\n[{number}/{len(stages)}] {stage.name}   (elapsed {clock(time.perf_counter() - start)})", flush=True)
        took = run_stage(stage, work, python, environment)
        if took:
            print(f"{stage.name}: {took['seconds']:.0f} s, {took['cpu_seconds']:.0f} s of CPU", flush=True)
            # what was made from the older output of this stage is out of date
            for later in stages[number:]:
                marker = marker_of(later, work)
                if not later.resumable or marker.exists():
                    remove(work / later.output)
                marker.unlink(missing_ok=True)


def time_table(work: Path, stages: list[Stage]) -> Table:
    """What each stage took."""
    took = [json.loads(marker_of(stage, work).read_text()) for stage in stages]
    took.append({"stage": "together"} | {name: sum(row[name] for row in took) for name in ("seconds", "cpu_seconds")})
    rows = [(row["stage"], f"{row['seconds']:.0f}", f"{row['cpu_seconds']:.0f}") for row in took]
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    note = f"largest process of this call: {peak:.1f} GiB" if peak else ""
    return plain_table("Time", ("stage", "seconds", "CPU seconds"), rows, note)
