"""What rewards look like on sampled responses: described, stored, and read back instead of constants.

Written by `python -m alarm.calibrate`, read by `train_ppo.py --calibration`. Loads no torch.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from ..api import HOLISTIC_PROBE, Task
from ..common.errors import UserError
from ..common.files import is_finite_number, is_text, read_json
from ..common.identity import Seen, difference, model_identity
from ..common.languages import differences
from ..common.launch import is_main_process
from ..diagnostics import Scale

KIND, VERSION = "alarm calibration", 1
THRESHOLDS = (-1.0, -0.5, 0.0, 0.3, 0.5, 0.6, 1.0)  # of the z-normalised score
BOOTSTRAP_SAMPLES = 1000

LEVEL = "holistic_level"  # the raw score, where `holistic` is less the mean of a group

# what training watches for drift: column of its samples -> reward
WATCHED = {"holistic_reward": "holistic", "response_length": "length"}


def constants_of(task: Task) -> dict[str, tuple[str, str]]:
    """Flag of train_ppo.py -> the reward and the statistic of it that can take the flag's place."""
    found = {"ultra_mean": ("holistic", "mean"), "ultra_std": ("holistic", "std"), "length_mean": ("length", "mean")}
    found[LEVEL] = (LEVEL, "mean")
    for aspect in task.aspects:
        found |= {flag.name: (aspect.name, flag.statistic) for flag in aspect.flags if flag.statistic}
    return found


def normalised(task: Task) -> set[str]:
    """The rewards that training divides by their standard deviation."""
    return {reward for reward, statistic in constants_of(task).values() if statistic == "std"}


# --- scores -> numbers -----------------------------------------------------------------------------------------------


def describe(scores: Sequence[float], thresholds: Sequence[float] = THRESHOLDS) -> dict:
    """The statistics of N raw scores of any reward, as JSON.

    n; mean; std (population, ddof 0); standard_error of mean, std and median (bootstrap); percentiles, "0" (the least)
    to "100" (the greatest), linearly interpolated between scores; share_above, for each threshold z the share of scores
    with (score - mean) / std >= z, which is the gate's own comparison.
    Scores that differ by no more than float32's rounding have std 0 and an empty share_above.
    Raises UserError for no scores and for scores that are not finite.
    """
    import numpy as np

    x = np.asarray(scores, dtype=np.float64)
    if len(x) == 0:
        raise UserError("there are no scores to describe")
    if bad := int((~np.isfinite(x)).sum()):
        raise UserError(f"{bad} of {len(x)} scores are not finite numbers; look at the reward model")
    mean, std = float(x.mean()), float(x.std())
    if x.max() - x.min() <= 1e-6 * np.abs(x).max():
        std = 0.0
    z = (x - mean) / std if std else None
    return {
        "n": len(x),
        "mean": mean,
        "std": std,
        "ddof": 0,
        "standard_error": _bootstrap(x),
        "percentiles": {str(k): float(value) for k, value in enumerate(np.percentile(x, range(101)))},
        "share_above": {} if z is None else {f"{t:g}": float((z >= t).mean()) for t in thresholds},
    }


def _bootstrap(x) -> dict[str, float]:
    """Standard errors by resampling x (N,) with replacement, the same random numbers every time."""
    import numpy as np

    rng = np.random.default_rng(0)
    found = []
    rows = max(1, 2_000_000 // len(x))  # samples at a time: 16 MB
    for start in range(0, BOOTSTRAP_SAMPLES, rows):
        drawn = x[rng.integers(len(x), size=(min(rows, BOOTSTRAP_SAMPLES - start), len(x)))]
        found.append([drawn.mean(axis=1), drawn.std(axis=1), np.median(drawn, axis=1)])
    errors = np.concatenate(found, axis=1).std(axis=1, ddof=1)
    return dict(zip(("mean", "std", "median"), errors.tolist(), strict=True))


def quantile(percentiles: dict[str, float], q: float) -> float:
    """The q-quantile, 0 <= q <= 1: linear between the two percentiles around it."""
    below = min(int(100 * q), 99)
    low, high = percentiles[str(below)], percentiles[str(below + 1)]
    return low + (100 * q - below) * (high - low)


# --- the file --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Calibration:
    """A calibration file that was read and checked."""

    path: str
    task: Task
    rewards: dict[str, dict]  # name -> describe()
    models: dict[str, dict]  # policy and reward models -> model_identity()
    settings: dict  # how the responses were sampled
    probe: list[float] | None = None  # scores by which the holistic model is known

    @property
    def constants(self) -> dict[str, float]:
        """Flag of train_ppo.py -> the number that takes its place."""
        wanted = constants_of(self.task).items()
        return {flag: self.rewards[name][statistic] for flag, (name, statistic) in wanted if name in self.rewards}

    @property
    def baseline(self) -> str:
        """What was subtracted from the holistic scores: one of alarm.recipe.BASELINES."""
        return self.settings.get("holistic_baseline", "none")

    def probe_for(self, server: str | None) -> dict[str, list[float]]:
        """What a holistic model must score on the fixed texts, by where that stands, if a server runs one of the two.

        server: of the model that is to be compared. Others are compared by their files (`compare_models`).
        """
        needed = self.probe is not None and (server or self.settings.get("holistic_server"))
        return {f"the calibration {self.path}": self.probe} if needed else {}

    def check_8bit(self, eight_bit: bool) -> None:
        """Raise UserError if the holistic model was calibrated with weights of another size: its scores differ."""
        made = self.settings.get("holistic_8bit", False)
        if "holistic" in self.models and made != eight_bit:
            raise UserError(
                f"--calibration {self.path} was made {'with' if made else 'without'} --holistic_8bit; do the same "
                "here, or calibrate again"
            )

    def threshold(self, q: float) -> float:
        """The q-quantile of the z-normalised holistic reward. UserError if the file has none."""
        if "holistic" not in self.rewards:
            raise UserError(f"{self.path} has no holistic reward; --threshold_quantile needs one: calibrate again")
        holistic = self.rewards["holistic"]
        return (quantile(holistic["percentiles"], q) - holistic["mean"]) / holistic["std"]

    def scales(self) -> dict[str, Scale]:
        """What training watches for drift. The holistic reward is normalised by the constants of this very file."""
        found = {}
        for column, name in WATCHED.items():
            if name in self.rewards and self.rewards[name]["std"] > 0:
                described = self.rewards[name]
                noise = described["standard_error"]["std"] / described["std"] * math.sqrt(described["n"])
                mean, std = (0.0, 1.0) if name == "holistic" else (described["mean"], described["std"])
                found[column] = Scale(mean, std, noise)
        return found


def read_calibration(path: str | Path, task: Task, any_task: bool = False) -> Calibration:
    """Read a file of alarm.calibrate. UserError if it is none, is of another task, or holds unusable numbers.

    any_task: one of a task of another name will do, for aspects that were taken out of it.
    """
    mend = "write one with `python -m alarm.calibrate`"
    try:
        content = read_json(path)
    except UserError as error:
        raise UserError(f"--calibration {error}; {mend}") from None
    if not isinstance(content, dict) or content.get("kind") != KIND:
        raise UserError(f"--calibration {path} is not a calibration; {mend}")
    if content.get("version") != VERSION:
        raise UserError(f"--calibration {path} has version {content.get('version')}, not {VERSION}; {mend} again")
    if content.get("task") != task.name and not any_task:
        raise UserError(
            f"--calibration {path} is one of task {content.get('task')}, not of {task.name}; {mend} for {task.name}"
        )
    try:
        for part in ("rewards", "models", "settings"):
            _require(isinstance(content[part], dict), part)
        for name, described in content["rewards"].items():
            _check_form(name, described)
        for identity in content["models"].values():
            _check_identity(identity)
        probe = content.get(HOLISTIC_PROBE)
        _require(probe is None or (isinstance(probe, list) and all(map(is_finite_number, probe))), HOLISTIC_PROBE)
    except (KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f"--calibration {path} lacks a part or holds another type there ({error}); {mend} again"
        ) from None
    found = Calibration(str(path), task, content["rewards"], content["models"], content["settings"], probe)
    for name, described in found.rewards.items():
        if problem := _contradiction(described, name in normalised(task)):
            raise UserError(f"--calibration {path}: the numbers of {name} cannot be used ({problem}); {mend} again")
    if found.constants.get("length_mean", 1) <= 0:
        raise UserError(
            f"--calibration {path}: the numbers of length cannot be used (its mean is not above 0); {mend} again"
        )
    return found


def _require(right: bool, what: str) -> None:
    """Raise TypeError, naming the part of a calibration that is not `right`."""
    if not right:
        raise TypeError(what)


def _check_form(name: str, described: dict) -> None:
    """Raise KeyError or TypeError, naming the part, if one of `describe` is missing or is no number."""
    _require(isinstance(described, dict), name)
    for part in ("standard_error", "percentiles"):
        _require(isinstance(described[part], dict), f"{name}/{part}")
    numbers = {part: described[part] for part in ("n", "mean", "std")}
    numbers |= {f"standard_error/{part}": described["standard_error"][part] for part in ("mean", "std", "median")}
    numbers |= {f"percentiles/{k}": described["percentiles"][str(k)] for k in range(101)}
    for part, number in numbers.items():
        _require(isinstance(number, int | float) and not isinstance(number, bool), f"{name}/{part}")
    _require(isinstance(described["n"], int), f"{name}/n")


def _check_identity(identity: dict) -> None:
    """Raise KeyError or TypeError if `identity` is not of the form of `model_identity`."""
    _require(isinstance(identity, dict) and is_text(identity["name"]), "models/name")
    files = identity["files"]
    _require(isinstance(files, dict) and all(is_text(text) for item in files.items() for text in item), "models/files")
    if "base" in identity:
        _check_identity(identity["base"])


def _contradiction(described: dict, is_normalised: bool) -> str | None:
    """What is wrong with numbers that no N scores can have together; None if nothing is.

    Of any N scores within a range R: the least <= mean <= the greatest, and R / sqrt(2 N) <= std <= R / 2.
    """
    n, mean, std = (described[part] for part in ("n", "mean", "std"))
    percentiles = [described["percentiles"][str(k)] for k in range(101)]
    errors = list(described["standard_error"].values())
    if not all(map(is_finite_number, (n, mean, std, *percentiles, *errors))):
        return "one is not finite"
    if n < 1:
        return f"n is {n}"
    if std < 0 or min(errors) < 0:
        return "a deviation is negative"
    if is_normalised and std == 0:
        return "std is 0"
    least, greatest = percentiles[0], percentiles[100]
    rounding = 1e-5 * max(abs(least), abs(greatest))  # scores are float32, and a std within their rounding is 0
    if any(high < low - rounding for low, high in pairwise(percentiles)):
        return "percentiles fall"
    if not least - rounding <= mean <= greatest + rounding:
        return "the mean lies outside of the percentiles"
    if not (greatest - least) / math.sqrt(2 * n) - rounding <= std <= (greatest - least) / 2 + rounding:
        return "std does not belong to the percentiles"
    return None


def calibrated_models(task: Task, args: argparse.Namespace, rewards: Iterable[str]) -> dict[str, str | Path]:
    """The model of each of these rewards that has one: its folder or hub name."""
    models = {}
    if "holistic" in rewards and args.holistic_model is not None:
        models["holistic"] = args.holistic_model
    for aspect in task.aspects:
        own = list(aspect.models(args).values()) if aspect.name in rewards else []
        models |= {aspect.name if len(own) == 1 else f"{aspect.name} {i + 1}": model for i, model in enumerate(own)}
    return models


def compare_models(calibration: Calibration, models: dict[str, str | Path], seen: Seen | None = None) -> list[str]:
    """Notes on models that may be others than the calibrated ones. Hashes them, which takes a minute for a large one.

    models: `policy` and rewards -> folder or hub name. Raises UserError if a reward model is another one.
    """
    lines = []
    for role, name in models.items():
        if role != "policy" and role not in calibration.rewards:
            continue
        now = model_identity(name, seen)
        if role not in calibration.models:
            raise UserError(
                f"--calibration {calibration.path} does not say which {role} model it is of; calibrate again"
            )
        if differs := difference(calibration.models[role], now):
            if role != "policy":
                raise UserError(
                    f"--calibration {calibration.path} is of another {role} reward model than {name} ({differs}); "
                    "calibrate this one, or give that one"
                )
            lines.append(f"note: it is of another policy, {calibration.models[role]['name']} ({differs})")
        elif not now["files"] or not calibration.models[role]["files"]:
            lines.append(f"note: whether the {role} model is the calibrated one is known by its name {name} alone")
    return lines


def use_calibration(
    args, task: Task, policy: str, limits: tuple[int, int], seen: Seen | None = None
) -> dict[str, Scale]:
    """Check that --calibration is one of the models of this run, and say what it replaces. -> what to watch for drift.

    policy: its folder or hub name. limits: tokens of a prompt and of a response. seen: of `identity.hash_file`. Without
    --calibration nothing is watched. Another policy or other limits are printed as notes. Raises UserError if a reward
    model whose scores are normalised is another one than the calibrated one.
    """
    if args.calibration is None:
        return {}
    calibration = read_calibration(args.calibration, task)
    if calibration.baseline != args.holistic_baseline:
        raise UserError(
            f"--calibration {args.calibration} was made with --holistic_baseline {calibration.baseline}, this run has "
            f"{args.holistic_baseline}; give the same one to both"
        )
    calibration.check_8bit(args.holistic_8bit)
    models = {"policy": policy} | calibrated_models(task, args, normalised(task))
    # the main process speaks for all: hashing a large model takes a minute
    lines = compare_models(calibration, models, seen) if is_main_process() else []
    calibrated = (calibration.settings.get("max_input_len"), calibration.settings.get("max_generated_len"))
    if calibrated != limits:
        lines.append(f"note: it is of at most {calibrated} tokens of prompt and response, this run of {limits}")
    lines += [f"note: it is of a policy with {changed}" for changed in differences(calibration.settings, args)]
    group = calibration.settings.get("samples_per_prompt", 1)
    if args.holistic_baseline == "group" and not args.test and group != args.samples_per_prompt:
        lines.append(f"note: its groups are of {group} answers, those of this run of {args.samples_per_prompt}")
    taken = [f"{name} {value:.6g}" for name, value in calibration.constants.items()]
    lines.insert(0, f"calibration {args.calibration}: {', '.join(taken) or 'nothing that replaces a constant'}")
    if kept := [
        f"{name} {getattr(args, name):.6g}"
        for name in constants_of(task)
        if name not in calibration.constants and (name != LEVEL or args.holistic_baseline == "group")
    ]:
        lines.append(f"not in the calibration, so as before: {', '.join(kept)}")
    if args.threshold_quantile is not None:
        gate, share = args.hierarchical_threshold, 1 - args.threshold_quantile
        lines.append(f"gate at {gate:.4f}, which about {share:.0%} of the calibrated holistic rewards reach")
    scales = calibration.scales()
    if not args.test and (unwatched := [column for column in WATCHED if column not in scales]):
        lines.append(f"not watched for drift, as the calibration lacks it or has it constant: {', '.join(unwatched)}")
    if is_main_process():
        print("\n".join(lines), flush=True)
    return scales
