"""Stages: commands with one output each, run in turn or some at once. A second run skips what is done and goes on."""

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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from alarm.common.console import Table, plain_table
from alarm.common.errors import UserError
from alarm.common.files import check_folder, write_json

ROOT = Path(__file__).resolve().parents[1]
MARKER = "stages"  # a folder in the work folder: one file for each finished stage
LOGS = "logs"  # likewise: what stages wrote that ran beside others
LAST_LINES = 20  # of these that are printed if one fails
LOOK = 0.2  # seconds between two looks at what runs
PATIENCE = 5.0  # seconds that a stage is given to end after ^C, and after each signal that it is sent


@dataclass(frozen=True)
class Stage:
    """One command. `words` is called when the stage's turn comes: it may read what earlier stages wrote."""

    name: str
    output: str  # file or folder in the work folder; it appears whole, or holds a run that --resume continues
    words: Callable[[], list[str]]
    resumable: bool = False
    steps: int = 1  # of a training run that writes output/log.jsonl; another command counts as one


@dataclass(frozen=True)
class Together:
    """Stages that do not need each other, `at_once` of them at a time. What they print goes to logs/."""

    name: str
    stages: tuple[Stage, ...]
    at_once: int = 2


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


def words_to_run(stage: Stage, work: Path) -> list[str] | None:
    """The words of a stage that is not done, after what is left of it was removed. None, and a line, if it is done."""
    marker = marker_of(stage, work)
    words = stage.words()
    before = json.loads(marker.read_text()) if marker.exists() else None
    if before and before["words"] == words and (work / stage.output).exists():
        print(f"{stage.name}: done before, in {clock(before['seconds'])}", flush=True)
        return None
    marker.unlink(missing_ok=True)
    if before or not stage.resumable:
        # written with other flags, or by a stage that was stopped between its output and its marker
        remove(work / stage.output)
    python = os.path.relpath(sys.executable, ROOT)
    print(printable([sys.executable if python.startswith("..") else python, *words]), flush=True)
    return words


@dataclass
class Running:
    """A stage whose process has been started."""

    stage: Stage
    words: list[str]
    child: subprocess.Popen
    began: float = field(default_factory=time.time)

    def ended(self, work: Path) -> bool:
        """Whether it ended well; then its marker is written. SystemExit with its exit code if it failed."""
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        code = self.child.poll()
        if code is None:
            return False
        if code:
            again = "run the same command again to go on from here"
            print(f"\n{self.stage.name} ended with exit code {code}; {again}", flush=True)
            sys.exit(code if code > 0 else 128 - code)
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)  # with what `poll` has just reaped, and nothing else
        took = {
            "stage": self.stage.name,
            "words": self.words,
            "began": self.began,
            "seconds": time.time() - self.began,
            "cpu_seconds": usage.ru_utime + usage.ru_stime - used.ru_utime - used.ru_stime,
        }
        write_json(marker_of(self.stage, work), took)
        return True


def stop(running: Sequence[Running], interrupted: bool = True) -> None:
    """End what still runs. A terminal's ^C has reached it already, `kill -INT` of this process alone has not."""
    for send in ((0,) if interrupted else ()) + (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        alive = [one.child for one in running if one.child.poll() is None]
        for child in alive:
            child.send_signal(send)  # 0 sends nothing
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until and any(child.poll() is None for child in alive):
            time.sleep(LOOK)


def environment() -> dict[str, str]:
    quiet = {"PYTHONWARNINGS": "ignore::FutureWarning"}  # of the libraries, about each other
    # one thread: for models of this size several gain little, and beside a busy neighbour they are many times slower
    fixed = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    return {**fixed, **quiet, **os.environ}


def start(stage: Stage, words: list[str], out: int | None = None) -> Running:
    """`out`: file descriptor of its output; None: the screen."""
    error = None if out is None else subprocess.STDOUT
    child = subprocess.Popen([sys.executable, *words], cwd=ROOT, env=environment(), stdout=out, stderr=error)
    return Running(stage, words, child)


def run_stage(stage: Stage, work: Path) -> bool:
    """Run a stage unless it is done. Returns whether it was run."""
    words = words_to_run(stage, work)
    if words is None:
        return False
    running = start(stage, words)
    try:
        while not running.ended(work):
            time.sleep(LOOK)
    except KeyboardInterrupt:
        stop([running])
        raise
    return True


def steps_done(run: Path) -> int:
    """Training steps in a run's log."""
    log = run / "log.jsonl"
    return log.read_text(errors="replace").count('"train": ') if log.is_file() else 0


def run_together(group: Together, work: Path) -> bool:
    """Run the stages of a group that are not done. Returns whether one was run. If one fails, the others stop too."""
    from tqdm import tqdm

    words = [(stage, words_to_run(stage, work)) for stage in group.stages]
    waiting = [(stage, line) for stage, line in words if line is not None]
    if not waiting:
        return False
    (work / LOGS).mkdir(exist_ok=True)
    ours = [stage for stage, _ in waiting]
    running: list[Running] = []

    def log_of(stage: Stage) -> Path:
        return work / LOGS / f"{stage.output.replace('/', '-')}.txt"

    def done() -> int:
        """Steps of all that are to run; of a command without steps, whether it has ended."""
        left = {one.stage for one in running} | {stage for stage, _ in waiting}
        logged = {stage: min(stage.steps, steps_done(work / stage.output)) for stage in left}
        return sum(logged.get(stage, stage.steps) for stage in ours)

    print(f"{min(group.at_once, len(ours))} at once; what they print is in {short(work / LOGS)}/", flush=True)
    total = sum(stage.steps for stage in ours)
    at_start = done()  # of runs that --resume continues: the time left is reckoned from what is still to do
    try:
        unit, often = ("step" if total > len(ours) else "command"), (0.5 if sys.stderr.isatty() else 30)
        with tqdm(total=total, initial=at_start, unit=unit, mininterval=often, smoothing=0) as bar:
            while waiting or running:
                while waiting and len(running) < group.at_once:
                    stage, line = waiting.pop(0)
                    with log_of(stage).open("wb") as log:
                        running.append(start(stage, line, log.fileno()))
                for one in list(running):
                    if one.ended(work):
                        running.remove(one)
                bar.update(done() - bar.n)
                time.sleep(LOOK)
    except KeyboardInterrupt:
        stop(running)
        raise
    except SystemExit:
        failed = next(one for one in running if one.child.poll())
        stop(running, interrupted=False)
        lines = log_of(failed.stage).read_text(errors="replace").replace("\r", "\n").strip().split("\n")
        print(f"the end of {short(log_of(failed.stage))}:", *lines[-LAST_LINES:], sep="\n    ", flush=True)
        raise
    return True


def flat(stages: Sequence[Stage | Together]) -> Iterator[Stage]:
    for stage in stages:
        yield from (stage.stages if isinstance(stage, Together) else (stage,))


def run_stages(stages: Sequence[Stage | Together], work: Path) -> None:
    began = time.perf_counter()
    for number, stage in enumerate(stages, start=1):
        print(f"\n[{number}/{len(stages)}] {stage.name}   (elapsed {clock(time.perf_counter() - began)})", flush=True)
        if run_together(stage, work) if isinstance(stage, Together) else run_stage(stage, work):
            for one in flat([stage]):
                took = json.loads(marker_of(one, work).read_text())
                print(f"{one.name}: {took['seconds']:.0f} s, {took['cpu_seconds']:.0f} s of CPU", flush=True)
            # what was made from the older output of this stage is out of date
            for later in flat(stages[number:]):
                marker = marker_of(later, work)
                if not later.resumable or marker.exists():
                    remove(work / later.output)
                marker.unlink(missing_ok=True)


def elapsed(took: Sequence[dict]) -> float:
    """Seconds in which at least one of these stages ran."""
    total, end = 0.0, 0.0
    for row in sorted(took, key=lambda row: row["began"]):
        total += max(0.0, row["began"] + row["seconds"] - max(end, row["began"]))
        end = max(end, row["began"] + row["seconds"])
    return total


def time_table(work: Path, stages: Sequence[Stage | Together]) -> Table:
    """What each stage took. Of stages that ran at once the time together is less than the sum."""
    took = [json.loads(marker_of(stage, work).read_text()) for stage in flat(stages)]
    together = {"stage": "together", "seconds": elapsed(took), "cpu_seconds": sum(row["cpu_seconds"] for row in took)}
    rows = [(row["stage"], f"{row['seconds']:.0f}", f"{row['cpu_seconds']:.0f}") for row in [*took, together]]
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    note = f"largest process of this call: {peak:.1f} GiB" if peak else ""
    return plain_table("Time", ("stage", "seconds", "CPU seconds"), rows, note)
