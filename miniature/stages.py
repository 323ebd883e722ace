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
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

from alarm.common.console import Table, plain_table
from alarm.common.errors import UserError
from alarm.common.files import check_folder, write_json

ROOT = Path(__file__).resolve().parents[1]
LOGS = "logs"  # a folder in the work folder: what the stages of a group print
AT_ONCE = 2
GRACE = 5.0  # seconds that a command has to end after a signal
MARKER = "stages"  # a folder in the work folder: one file for each finished stage


@dataclass(frozen=True)
class Stage:
    """One command. `words` is called when the stage's turn comes: it may read what earlier stages wrote."""

    name: str
    output: str  # file or folder in the work folder; it appears whole, or holds a run that --resume continues
    words: Callable[[], list[str]]
    resumable: bool = False
    steps: int = 1  # of a PPO run: a bar counts the rows of OUTPUT/log.jsonl


@dataclass(frozen=True)
class Together:
    """Stages that do not need each other: AT_ONCE run at a time, each with its output in a file."""

    name: str
    stages: tuple[Stage, ...]


def flag_words(**values) -> list[str]:
    """Keyword arguments as command-line words. True gives a switch; None, False and an empty dict give nothing."""
    words = []
    for name, value in values.items():
        if value is True:
            words.append(f"--{name}")
        elif isinstance(value, dict):
            words += [f"--{name}", ",".join(f"{key}={number:.6g}" for key, number in value.items())] if value else []
        elif value is not None and value is not False:
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


def prepare(stage: Stage, work: Path, python: str) -> list[str] | None:
    """Print the command of a stage and clear its place. -> its words, or None if it is done."""
    marker, words = marker_of(stage, work), stage.words()
    before = json.loads(marker.read_text()) if marker.exists() else None
    if before and before["words"] == words and (work / stage.output).exists():
        print(f"{stage.name}: done before, in {clock(before['seconds'])}", flush=True)
        return None
    marker.unlink(missing_ok=True)
    if before or not stage.resumable:
        # written with other flags, or by a stage that was stopped between its output and its marker
        remove(work / stage.output)
    print(printable([python, *words]), flush=True)
    return words


class Child:
    """A stage that runs. Its marker is written when it has ended well."""

    def __init__(self, stage: Stage, words: list[str], work: Path, environment: dict, log: Path | None = None):
        self.stage, self.words, self.work, self.log = stage, words, work, log
        self.started = time.perf_counter()
        if log:
            log.parent.mkdir(exist_ok=True)
        with open(log, "w") if log else nullcontext() as out:
            command = [sys.executable, *words]
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=out, stderr=subprocess.STDOUT if log else None
            )

    def ended(self, wait: bool = False) -> int | None:
        """Its exit code, None while it runs."""
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        code = self.process.wait() if wait else self.process.poll()
        if code == 0:
            # a child's usage is added when it is waited for, so the difference is its own
            usage = resource.getrusage(resource.RUSAGE_CHILDREN)
            took = {
                "stage": self.stage.name,
                "words": self.words,
                "seconds": time.perf_counter() - self.started,
                "cpu_seconds": usage.ru_utime + usage.ru_stime - used.ru_utime - used.ru_stime,
            }
            write_json(marker_of(self.stage, self.work), took)
        return code

    def fail(self, code: int) -> None:
        if self.log:
            lines = self.log.read_text(errors="replace").replace("\r", "\n").strip().splitlines()
            print("\n".join(["", *lines[-8:]]), flush=True)
        print(
            f"\n{self.stage.name} ended with exit code {code}; run the same command again to go on from here",
            flush=True,
        )
        sys.exit(code if code > 0 else 128 - code)


def interrupt(children: Sequence[Child], patience: float) -> None:
    """Stop them. patience: seconds to wait first; a terminal's ^C reaches them too, `kill -INT` their parent alone.

    Below a background job of a script they ignore SIGINT: then they get SIGTERM, and at last SIGKILL.
    """
    for sent, seconds in ((None, patience), (signal.SIGINT, GRACE), (signal.SIGTERM, GRACE), (signal.SIGKILL, GRACE)):
        until = time.perf_counter() + seconds
        alive = [child.process for child in children if child.process.poll() is None]
        for process in alive:
            if sent is not None:
                process.send_signal(sent)
        for process in alive:
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=max(0.0, until - time.perf_counter()))


def run_alone(stage: Stage, work: Path, python: str, environment: dict) -> bool:
    """Run a stage unless it is done. -> whether it ran."""
    if (words := prepare(stage, work, python)) is None:
        return False
    child = Child(stage, words, work, environment)
    try:
        code = child.ended(wait=True)
    except KeyboardInterrupt:
        interrupt([child], patience=5)
        raise
    if code:
        child.fail(code)
    return True


def steps_done(stage: Stage, work: Path) -> int:
    """Rows of the stage's training log so far."""
    log = work / stage.output / "log.jsonl"
    return min(stage.steps, log.read_bytes().count(b"\n")) if stage.steps > 1 and log.exists() else 0


def run_together(group: Together, work: Path, python: str, environment: dict) -> bool:
    """Run the stages of a group that are not done, AT_ONCE at a time, with one bar. -> whether one ran."""
    from tqdm import tqdm

    waiting = [(stage, words) for stage in group.stages if (words := prepare(stage, work, python)) is not None]
    if not waiting:
        return False
    print(f"{AT_ONCE} at a time; what they print: {short(work / LOGS)}/", flush=True)
    total, ended, running = sum(stage.steps for stage, _ in waiting), 0, []
    before = sum(steps_done(stage, work) for stage, _ in waiting)  # of runs that --resume continues
    try:
        shown = sys.stderr.isatty()
        often = 0.2 if shown else 30
        with tqdm(total=total, initial=before, desc=group.name, unit="step", mininterval=often, smoothing=0) as bar:
            while waiting or running:
                while waiting and len(running) < AT_ONCE:
                    stage, words = waiting.pop(0)
                    log = work / LOGS / f"{stage.output.replace('/', '-')}.txt"
                    running.append(Child(stage, words, work, environment, log))
                for child in list(running):
                    if (code := child.ended()) is None:
                        continue
                    running.remove(child)
                    ended += child.stage.steps
                    if code:
                        bar.close()
                        child.fail(code)
                unfinished = [child.stage for child in running] + [stage for stage, _ in waiting]
                bar.update(ended + sum(steps_done(stage, work) for stage in unfinished) - bar.n)
                if shown:
                    bar.refresh()  # its clock
                time.sleep(0.2)
    except KeyboardInterrupt:
        interrupt(running, patience=5)
        raise
    except BaseException:  # another one failed, or its marker could not be written
        interrupt(running, patience=0)
        raise
    return True


def run_stages(stages: Sequence[Stage | Together], work: Path) -> None:
    python = os.path.relpath(sys.executable, ROOT)
    python = sys.executable if python.startswith("..") else python
    quiet = {"PYTHONWARNINGS": "ignore::FutureWarning"}  # of the libraries, about each other
    # one thread: for models of this size several gain little, and beside a busy neighbour they are many times slower
    fixed = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    environment = {**fixed, **quiet, **os.environ}
    start = time.perf_counter()
    for number, stage in enumerate(stages, start=1):
        print(f"\n[{number}/{len(stages)}] {stage.name}   (elapsed {clock(time.perf_counter() - start)})", flush=True)
        run = run_together if isinstance(stage, Together) else run_alone
        if run(stage, work, python, environment):
            for done in single([stage]):
                took = json.loads(marker_of(done, work).read_text())
                print(f"{done.name}: {took['seconds']:.0f} s, {took['cpu_seconds']:.0f} s of CPU", flush=True)
            # what was made from the older output of this stage is out of date
            for later in single(stages[number:]):
                marker = marker_of(later, work)
                if not later.resumable or marker.exists():
                    remove(work / later.output)
                marker.unlink(missing_ok=True)


def single(stages: Sequence[Stage | Together]) -> list[Stage]:
    """The stages, those of groups one by one."""
    return [one for stage in stages for one in (stage.stages if isinstance(stage, Together) else (stage,))]


def covered(spans: Sequence[tuple[float, float]]) -> float:
    """The length of the union of (start, end): stages that ran at once count once."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def time_table(work: Path, stages: Sequence[Stage | Together]) -> Table:
    """What each stage took."""
    markers = [marker_of(stage, work) for stage in single(stages)]
    took = [json.loads(marker.read_text()) for marker in markers]
    ends = [marker.stat().st_mtime for marker in markers]  # a marker is written when its stage ends
    seconds = covered([(end - row["seconds"], end) for end, row in zip(ends, took, strict=True)])
    took.append({"stage": "together", "seconds": seconds, "cpu_seconds": sum(row["cpu_seconds"] for row in took)})
    rows = [(row["stage"], f"{row['seconds']:.0f}", f"{row['cpu_seconds']:.0f}") for row in took]
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    note = f"largest process of this call: {peak:.1f} GiB" if peak else ""
    return plain_table("Time", ("stage", "seconds", "CPU seconds"), rows, note)
