"""Stages: commands with one output each. A second run skips what is done and goes on with the rest.

Stages run in turn, with their output on the screen. Those of a list do not need each other: several run at once, with
their output in logs/ and one progress bar on the screen.
"""

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
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from alarm.common.console import Table, plain_table
from alarm.common.errors import UserError
from alarm.common.files import check_folder, write_json

ROOT = Path(__file__).resolve().parents[1]
MARKER = "stages"  # a folder in the work folder: one file for each finished stage
LOGS = "logs"  # likewise: what stages that run at once print
LAST_LINES = 15  # of the output of a stage that failed


@dataclass(frozen=True)
class Stage:
    """One command. `words` is called when the stage's turn comes: it may read what earlier stages wrote."""

    name: str
    output: str  # file or folder in the work folder; it appears whole, or holds a run that --resume continues
    words: Callable[[], list[str]]
    resumable: bool = False
    steps: int = 1  # of its progress bar
    steps_done: Callable[[], int] = lambda: 0  # so far; once it has ended, all of them are


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


def name_of_files(stage: Stage) -> str:
    return stage.output.replace("/", "-")


def marker_of(stage: Stage, work: Path) -> Path:
    """The file that says that a stage is done, and what it took."""
    return work / MARKER / f"{name_of_files(stage)}.json"


class Child:
    """A stage that is running. `log`: the file that takes its output; None: the screen."""

    def __init__(self, stage: Stage, words: list[str], environment: dict, log: Path | None):
        self.stage, self.words, self.log = stage, words, log
        self.start = time.perf_counter()
        out = open(log, "w") if log else None  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, *words], cwd=ROOT, env=environment, stdout=out, stderr=subprocess.STDOUT if out else None
        )
        if out:
            out.close()

    def ended(self) -> dict | None:
        """What it took, once it has ended. Raises SystemExit with its code if it failed."""
        # Popen.wait does not tell the CPU seconds of one child from those of another
        pid, status, usage = os.wait4(self.process.pid, os.WNOHANG)
        if not pid:
            return None
        self.process.returncode = code = os.waitstatus_to_exitcode(status)
        if code:
            if self.log:
                lines = self.log.read_text(errors="replace").replace("\r", "\n").rstrip().splitlines()
                print("\n" + "\n".join(lines[-LAST_LINES:]) + f"\n(from {short(self.log)})")
            print(f"\n{self.stage.name} ended with exit code {code}; run the same command again to go on from here")
            sys.stdout.flush()
            sys.exit(code if code > 0 else 128 - code)
        return {
            "stage": self.stage.name,
            "output": self.stage.output,
            "words": self.words,
            "seconds": time.perf_counter() - self.start,
            "cpu_seconds": usage.ru_utime + usage.ru_stime,
        }


def stop(children: list[Child], patience: float) -> None:
    """Wait for children that may have got a terminal's ^C too; then interrupt those that have not, and wait again."""
    until = time.perf_counter() + patience
    for child in children:
        try:
            child.process.wait(timeout=max(0.0, until - time.perf_counter()))
        except subprocess.TimeoutExpired:
            child.process.send_signal(signal.SIGINT)
    for child in children:
        child.process.wait()


def to_run(stage: Stage, work: Path, python: str) -> list[str] | None:
    """The words of a stage, printed, with what is out of date removed; None if it is done."""
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
    return words


def remove_later(work: Path, stages: list[Stage]) -> None:
    """What was made after these stages by earlier calls: it is out of date."""
    known = {marker_of(stage, work) for stage in stages}
    for marker in set((work / MARKER).glob("*.json")) - known:
        if "output" in (took := json.loads(marker.read_text())):
            remove(work / took["output"])
        marker.unlink()


def run_group(group: list[tuple[Stage, list[str]]], work: Path, environment: dict, workers: int | None) -> None:
    """Run stages at once, `workers` at a time. None: a single one, whose output goes to the screen."""
    from tqdm import tqdm

    waiting, running, finished = list(group), [], 0
    if workers:
        (work / LOGS).mkdir(exist_ok=True)
        print(f"their output: {short(work / LOGS)}/", flush=True)
    try:
        with tqdm(total=sum(stage.steps for stage, _ in group), unit="step", disable=not workers) as bar:
            while waiting or running:
                while waiting and len(running) < (workers or 1):
                    stage, words = waiting.pop(0)
                    log = work / LOGS / f"{name_of_files(stage)}.txt" if workers else None
                    running.append(Child(stage, words, environment, log))
                time.sleep(0.1)
                for child in list(running):
                    if took := child.ended():
                        running.remove(child)
                        finished += child.stage.steps
                        write_json(marker_of(child.stage, work), took)
                        bar.write(f"{child.stage.name}: {took['seconds']:.0f} s, {took['cpu_seconds']:.0f} s of CPU")
                now = finished + sum(min(child.stage.steps, child.stage.steps_done()) for child in running)
                bar.update(now - bar.n)
    except BaseException as error:
        alive = [child for child in running if child.process.returncode is None]
        stop(alive, 5 if isinstance(error, KeyboardInterrupt) else 0)
        raise


def run_stages(stages: Iterable[Stage | list[Stage]], work: Path, total: int, workers: int = 2) -> list[Stage]:
    """Run them, and return them. `total`: how many they are. They may be an iterator that reads earlier outputs."""
    python = os.path.relpath(sys.executable, ROOT)
    python = sys.executable if python.startswith("..") else python
    quiet = {"PYTHONWARNINGS": "ignore::FutureWarning"}  # of the libraries, about each other
    # one thread: for models of this size several gain little, and beside a busy neighbour they are many times slower
    fixed = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    environment = {**fixed, **quiet, **os.environ}
    start, seen = time.perf_counter(), []
    for item in stages:
        group, left = item if isinstance(item, list) else [item], []
        for stage in group:
            seen.append(stage)
            elapsed = clock(time.perf_counter() - start)
            print(f"\n[{len(seen)}/{total}] {stage.name}   (elapsed {elapsed})", flush=True)
            if words := to_run(stage, work, python):
                left.append((stage, words))
        if left:
            remove_later(work, seen)
            run_group(left, work, environment, workers if isinstance(item, list) else None)
    return seen


def time_table(work: Path, stages: list[Stage]) -> Table:
    """What each stage took."""
    markers = [marker_of(stage, work) for stage in stages]
    took = [json.loads(marker.read_text()) for marker in markers]
    # a stage has ended when its marker was written; those that ran at once overlap
    ends = [marker.stat().st_mtime for marker in markers]
    spans = sorted((end - row["seconds"], end) for end, row in zip(ends, took, strict=True))
    together, last = 0.0, 0.0
    for first, end in spans:
        together += max(0.0, end - max(first, last))
        last = max(last, end)
    took.append({"stage": "together", "seconds": together, "cpu_seconds": sum(row["cpu_seconds"] for row in took)})
    rows = [(row["stage"], f"{row['seconds']:.0f}", f"{row['cpu_seconds']:.0f}") for row in took]
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    note = f"largest process of this call: {peak:.1f} GiB" if peak else ""
    return plain_table("Time", ("stage", "seconds", "CPU seconds"), rows, note)
