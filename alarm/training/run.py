"""A run's folder: what training writes, what it refuses to write over, and what must not have changed on a resume."""

from __future__ import annotations

import json
import math
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..api import HOLISTIC_PROBE
from ..common.errors import UserError
from ..common.files import check_folder, growing_rows, write_json, write_text
from ..common.identity import base_changes, changes, file_identity, model_identity, rows_identity
from ..common.launch import is_main_process
from .baselines import NAME as BASELINES
from .provenance import versions

if TYPE_CHECKING:
    from trl import PPOTrainer

    from ..scoring import HolisticScorer


ROLLOUTS = "rollouts.jsonl"
MARK = ".shared"  # by which all processes of a run find that they have one folder


def finite(value):
    """`value` with null instead of NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {name: finite(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# --- reading ---------------------------------------------------------------------------------------------------------


def read_run_json(folder: Path) -> dict:
    """run.json of a run's folder. UserError if it is damaged."""
    path = folder / "run.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict) or not isinstance(content.get("inputs", {}), dict):
            raise ValueError("no object where one is due")
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path} is damaged ({error}); put a copy of it back, or start a new run with a new --save_dir"
        ) from None
    return content


def read_log(path: Path) -> list[dict]:
    """The rows of a log.jsonl: an integer `step`, and objects under `train`, `dev` or `warnings`. See `read_steps`."""
    return [row for _, row in read_steps(path)]


def read_steps(path: Path) -> Iterator[tuple[str, dict]]:
    """The lines of a log.jsonl or a rollouts.jsonl, without their ends, and their rows (`growing_rows`)."""
    return growing_rows(path, *STEP_FILES[path.name])


def step_row(row: object) -> dict:
    """The row, if it is an object with an integer `step`. Raises KeyError or TypeError."""
    if not isinstance(row, dict):
        raise TypeError("it is no object")
    if isinstance(row["step"], bool) or not isinstance(row["step"], int):
        raise TypeError("'step' must be a whole number")
    return row


def _log_row(row: object) -> dict:
    row = step_row(row)
    for part in ("train", "dev", "warnings"):
        if not isinstance(row.get(part, {}), dict):
            raise TypeError(f"{part!r} must be an object")
    return row


def _rollout_row(row: object) -> dict:
    row = step_row(row)
    if row["split"] not in ("train", "dev"):
        raise TypeError("'split' must be train or dev")
    return row


# files with rows of steps, which a resume cuts back -> what they are, and what checks a row
STEP_FILES = {"log.jsonl": ("a training log", _log_row), ROLLOUTS: ("kept rollouts", _rollout_row)}


def check_trained_base(policy: Path, anyway: bool = False) -> None:
    """Compare the base model that a run's adapter was trained on with the one that it would be put on now.

    policy: a model folder; only one inside a run's folder, whose run.json knows the base, is checked. Raises UserError
    naming the file if they differ; with `anyway` it is a printed warning. The main process checks for all.
    """
    run = policy.parent
    if not is_main_process() or not (run / "run.json").is_file() or not (policy / "adapter_config.json").is_file():
        return
    inputs = read_run_json(run).get("inputs")
    trained_on = inputs and inputs.get("hashes", {}).get("policy_ckpt")
    if not trained_on:
        print(f"note: {run / 'run.json'} has no hash of the base model of {policy}, so it is not checked", flush=True)
        return
    now = model_identity(policy, inputs.get("large_files", {})).get("base")
    if now and (found := base_changes(trained_on, now)):
        what = f"the base model that {policy} was trained on has changed: {found[0]}{_and_more(found)}"
        if not anyway:
            raise UserError(
                f"{what}; put that base model back, or give its folder as base_model_name_or_path in "
                f"{policy / 'adapter_config.json'}"
            )
        print(f"warning: {what}", flush=True)


def _and_more(found: Sequence) -> str:
    return f" (and {len(found) - 1} more files)" if len(found) > 1 else ""


# --- the folder ------------------------------------------------------------------------------------------------------


class Run:
    """A run's folder: arguments, log, checkpoints, policies. Only the main process writes, checkpoints excepted.

    save_dir/run.json            the arguments; under `inputs` the hashes of the files that the numbers depend on
    save_dir/log.jsonl           a line a step
    save_dir/rollouts.jsonl      answers of some steps, one a line (`rollouts`)
    save_dir/checkpoints/N/      all that is needed to go on after step N
    save_dir/best/, policy/      the policy with the best dev reward so far; the policy at the end
    """

    # what may differ when a run is continued: none of it changes what is computed
    FREE = ("resume", "resume_anyway", "max_steps", "report_to", "run_name")
    FREE += ("keep_checkpoints", "checkpoint_interval", "save_dir", "baseline_file")
    FREE += ("holistic_check", "holistic_shard")
    # flags that name a file which is read as it is
    FILES = ("train_file", "dev_file", "calibration", "task_file")

    def __init__(self, save_dir: str | Path, args: dict, constants: Iterable[str] = ()):
        """constants: the flags that a calibration can replace."""
        self.dir = Path(save_dir)
        self.constants = tuple(constants)
        self.args = {name: value for name, value in args.items() if name not in ("test", "overwrite")}
        self.models: dict[str, str | Path] = {}  # flag -> folder or hub name
        self.inputs: dict = {
            "hashes": {},  # flag -> identity
            "large_files": {},  # identity.Seen
            "changes": [],  # what --resume_anyway accepted, and the first step with it
        }

    def check(self, resume: bool, models: dict[str, str | Path]) -> None:
        """Raise UserError if the folder holds something that this run would overwrite, or another run to resume.

        models: flag -> the folder or hub name of each model that the run's numbers depend on.
        A file that changed since the run was started is an error, and with --resume_anyway a warning.
        """
        self.models = models
        check_folder(self.dir, "--save_dir")
        # a start that failed while models were loading leaves these at most
        if not self.dir.is_dir() or {path.name for path in self.dir.iterdir()} <= {"tracker", BASELINES, MARK}:
            self._hash_files()
            return
        if not (self.dir / "run.json").is_file():
            raise UserError(f"{self.dir} holds other files; give a new --save_dir")
        if not resume:
            raise UserError(f"{self.dir} already holds a run; continue it with --resume, or give a new --save_dir")
        before = read_run_json(self.dir)
        for name in STEP_FILES if is_main_process() else ():
            if (self.dir / name).exists():
                deque(read_steps(self.dir / name), maxlen=0)
        if "inputs" in before:
            self.inputs |= before["inputs"]
        elif is_main_process():
            print(
                f"note: {self.dir / 'run.json'} has no hashes of data and models, so they are not compared", flush=True
            )
        free = {*self.FREE, *self._calibrated()}
        if before.get("holistic_server") and self.args.get("holistic_server"):
            free.add("holistic_server")  # an address: `take_probe` compares the model behind it
        for name, value in self.args.items():
            if name not in free and name in before and before[name] != value:
                raise UserError(
                    f"--{name} is {value}, but the run in {self.dir} was started with {before[name]}; "
                    "resume with the same flags, or give a new --save_dir"
                )
        self._hash_files()
        self._hash_models()

    def _calibrated(self) -> set[str]:
        """The flags whose values come from the calibration file, if that is compared itself."""
        if self.args.get("calibration") is None or "calibration" not in self.inputs["hashes"]:
            return set()
        return {"hierarchical_threshold", *self.constants}

    def check_splits(self, dataset: str, splits: dict[str, Sequence[dict]]) -> None:
        """Compare the rows of the splits that come from --dataset, by their names, as `check` compares files."""
        for split, rows in splits.items() if is_main_process() else ():
            self._take(f"dataset ({split})", rows_identity(dataset, rows))

    def take_probe(self, holistic: HolisticScorer) -> None:
        """Note the scores by which the model behind --holistic_server is known; after `check`, on the main process.

        Raises UserError if they are not those with which the run was started; with --resume_anyway that is a warning.
        """
        before, now = self.inputs.get(HOLISTIC_PROBE), holistic.probe()
        if before is not None:
            try:
                holistic.compare(f"at the start of the run in {self.dir}", before)
            except UserError as error:
                if not self.args.get("resume_anyway"):
                    raise UserError(f"{error}, or go on with --resume_anyway") from None
                print(f"warning: {error} (--resume_anyway)", flush=True)
                was, found = ([float(f"{score:.6g}") for score in scores] for scores in (before, now))
                change = {"flag": "holistic_server", "file": HOLISTIC_PROBE, "was": str(was), "is": str(found)}
                self.inputs["changes"].append(change)
                before = None
        self.inputs[HOLISTIC_PROBE] = now if before is None else before

    def _hash_files(self) -> None:
        for flag in self.FILES if is_main_process() else ():
            path = self.args.get(flag)
            if path is not None and not Path(path).is_file():
                raise UserError(
                    f"--{flag} {path} {'is a folder' if Path(path).is_dir() else 'does not exist'}; name a file"
                )
            if path is not None:
                self._take(flag, file_identity(path))

    def _hash_models(self) -> None:
        for flag, name in self.models.items() if is_main_process() else ():
            self._take(flag, model_identity(name, self.inputs["large_files"]))

    def _take(self, flag: str, now: dict) -> None:
        """Note what an input is now. Raises UserError if that is not what it was when the run was started."""
        hashes = self.inputs["hashes"]
        found = changes(hashes[flag], now) if flag in hashes else []
        if found and not self.args.get("resume_anyway"):
            raise UserError(
                f"--{flag}: {found[0]}{_and_more(found)}; the run in {self.dir} was started with the old one: put that "
                "back, give a new --save_dir, or go on with --resume_anyway"
            )
        for change in found:
            print(f"warning: --{flag}: {change}; the run goes on with it (--resume_anyway)", flush=True)
            self.inputs["changes"].append({"flag": flag, "file": change.file, "was": change.before, "is": change.now})
        # a hub name is not known before it is in the cache
        if now["files"] or flag not in hashes:
            hashes[flag] = now

    def checkpoints(self) -> list[Path]:
        """The folders of checkpoints, oldest first; one that was damaged later is among them."""
        folder = self.dir / "checkpoints"
        found = [path for path in folder.glob("*") if path.name.isdigit()] if folder.is_dir() else []
        return sorted(found, key=lambda path: int(path.name))

    def set_aside(self, checkpoint: Path) -> Path:
        """Give a damaged checkpoint another name, under which nothing takes it for one. -> its new path."""
        names = [f"{checkpoint.name}.damaged", *(f"{checkpoint.name}.damaged-{k}" for k in range(2, 1000))]
        target = next(path for path in map(checkpoint.with_name, names) if not path.exists())
        return checkpoint.rename(target)

    def start(self, first_step: int) -> None:
        """Write the arguments and hashes; forget what is logged from `first_step` on, which will be computed again.

        Models are compared once more: a hub name can have been fetched anew while it was loaded. Raises UserError.
        """
        self._hash_models()
        for change in self.inputs["changes"]:
            change.setdefault("from_step", first_step)
        from trl.generation import GREEDY, SAMPLING

        made_by = {"versions": versions(), "generation": {"rollouts": SAMPLING, "dev": GREEDY}}
        write_json(self.dir / "run.json", self.args | {"inputs": self.inputs} | made_by)
        for leftover in (self.dir / "checkpoints").glob(".*"):
            shutil.rmtree(leftover, ignore_errors=True)
        for name in ("best", "policy"):
            self._finish_replacing(name)
        for name in STEP_FILES:
            self.keep(name, lambda row: row["step"] < first_step)

    def _finish_replacing(self, name: str) -> None:
        """Clean up after a kill while a policy was replaced: the old one comes back if the new one is not there."""
        for old in self.dir.glob(f".{name}.*.old"):
            if not (self.dir / name).exists():
                old.rename(self.dir / name)
        for leftover in [*self.dir.glob(f".{name}.*.old"), *self.dir.glob(f".{name}.*.tmp")]:
            shutil.rmtree(leftover, ignore_errors=True)

    def keep(self, name: str, wanted: Callable[[dict], bool]) -> None:
        """Leave the rows that are wanted in one of STEP_FILES, if it exists."""
        path = self.dir / name
        if path.exists():
            write_text(path, "".join(line + "\n" for line, row in read_steps(path) if wanted(row)))

    def add(self, name: str, rows: Sequence[dict]) -> None:
        """Put rows at the end of one of STEP_FILES."""
        with open(self.dir / name, "a", encoding="utf-8") as file:
            file.write("".join(json.dumps(finite(row)) + "\n" for row in rows))

    def log(self, row: dict) -> None:
        self.add("log.jsonl", [row])

    def read_log(self) -> list[dict]:
        return read_log(self.dir / "log.jsonl")

    def read_state(self, checkpoint: Path) -> tuple[dict | None, str | None]:
        """The loop's state in a checkpoint and None; or None and what is wrong with it."""
        path = checkpoint / "loop.json"
        try:
            state = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            return None, f"{path} cannot be read: {error}"
        if not isinstance(state, dict) or state.get("step") != int(checkpoint.name) or "processes" not in state:
            return None, f"{path} is not the state of step {checkpoint.name}"
        return state, None

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
