"""A run's folder: what training writes, and what it refuses to write over."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import UserError
from .files import write_json, write_text

if TYPE_CHECKING:
    from trl import PPOTrainer


def finite(value):
    """`value` with null in place of NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {name: finite(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Run:
    """A run's folder: arguments, log, checkpoints, policies. Only the main process writes, checkpoints excepted.

    save_dir/run.json            the arguments
    save_dir/log.jsonl           a line a step
    save_dir/checkpoints/N/      all that is needed to go on after step N
    save_dir/best/, policy/      the policy with the best dev reward so far; the policy at the end
    """

    # what may differ when a run is continued: none of it changes what is computed
    FREE = ("resume", "max_steps", "report_to", "run_name", "keep_checkpoints", "checkpoint_interval", "save_dir")

    def __init__(self, save_dir: str | Path, args: dict):
        self.dir = Path(save_dir)
        self.args = {name: value for name, value in args.items() if name not in ("test", "overwrite")}

    def check(self, resume: bool) -> None:
        """Raise UserError where the folder holds something that this run would overwrite, or another run to resume."""
        if self.dir.exists() and not self.dir.is_dir():
            raise UserError(f"{self.dir} is a file; --save_dir is the folder of the run")
        # a start that failed while models were loading leaves the tracker's folder at most
        if not self.dir.is_dir() or {path.name for path in self.dir.iterdir()} <= {"tracker"}:
            return
        if not (self.dir / "run.json").is_file():
            raise UserError(f"{self.dir} holds other files; give a new --save_dir")
        if not resume:
            raise UserError(f"{self.dir} already holds a run; continue it with --resume, or give a new --save_dir")
        before = json.loads((self.dir / "run.json").read_text())
        for name, value in self.args.items():
            if name not in self.FREE and name in before and before[name] != value:
                raise UserError(
                    f"--{name} is {value}, but the run in {self.dir} was started with {before[name]}; "
                    "resume with the same flags, or give a new --save_dir"
                )

    def checkpoints(self) -> list[Path]:
        """Whole checkpoints, oldest first."""
        folder = self.dir / "checkpoints"
        found = [path for path in folder.glob("*") if path.name.isdigit()] if folder.is_dir() else []
        return sorted(found, key=lambda path: int(path.name))

    def start(self, last_step: int) -> None:
        """Write the arguments; forget log lines after `last_step`, which will be computed again."""
        write_json(self.dir / "run.json", self.args)
        for leftover in (self.dir / "checkpoints").glob(".*"):
            shutil.rmtree(leftover, ignore_errors=True)
        log = self.dir / "log.jsonl"
        if log.exists():
            lines = [line for line in log.read_text().splitlines(keepends=True) if line.endswith("\n")]
            write_text(log, "".join(line for line in lines if json.loads(line)["step"] <= last_step))

    def log(self, row: dict) -> None:
        with open(self.dir / "log.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(finite(row)) + "\n")

    def read_log(self) -> list[dict]:
        return [json.loads(line) for line in (self.dir / "log.jsonl").read_text().splitlines()]

    def save_checkpoint(self, ppo: PPOTrainer, state: dict, keep: int) -> None:
        """Every process calls this. The folder appears under its name when all of it is on disk."""
        main, wait = ppo.accelerator.is_main_process, ppo.accelerator.wait_for_everyone
        folder = self.dir / "checkpoints" / str(state["step"])
        half = folder.with_name(f".{folder.name}")
        if main:
            shutil.rmtree(half, ignore_errors=True)
            half.mkdir(parents=True)
        wait()
        ppo.save_state(half)
        wait()
        if main:
            write_json(half / "loop.json", state)
            shutil.rmtree(folder, ignore_errors=True)
            half.rename(folder)
            for old in self.checkpoints()[:-keep]:
                # renamed first, so that what a kill leaves half-deleted is not taken for whole
                shutil.rmtree(old.rename(old.with_name(f".old-{old.name}")), ignore_errors=True)
        wait()
