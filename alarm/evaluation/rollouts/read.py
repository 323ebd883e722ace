"""Read rollouts.jsonl of a run's folder, and say of every answer how it differs from the first one to its prompt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...common.errors import UserError
from ...common.files import growing_rows, is_finite_number
from ...common.texts import prompt_id
from ...training.plot import RunLog, read_run
from ...training.run import ROLLOUTS, step_row

TRAIN, DEV = "train", "dev"


@dataclass(frozen=True)
class Rollouts:
    """The answers that a run kept, in the order of the file, and its log."""

    name: str
    rows: list[dict]  # as the file has them, with `step`, `split`, `prompt_id`, `sample`, `prompt`, `generation`
    log: RunLog
    has_log: bool  # without a log.jsonl, `log` holds the means of the rows


def read_rollouts(folder: str | Path, name: str) -> Rollouts:
    """Read the rollouts and the log of a run's folder.

    A last line that is still being written, or that a kill cut short, is left out. Raises UserError if there are no
    rollouts, and names any other line that is no row of them.
    """
    folder = Path(folder)
    if folder.is_file():
        raise UserError(f"{folder} is a file; give the --save_dir of a train_ppo.py")
    if not folder.is_dir():
        raise UserError(f"{folder} does not exist; give the --save_dir of a train_ppo.py")
    path = folder / ROLLOUTS
    try:
        rows = [row for _, row in growing_rows(path, "kept rollouts", _filled)]
    except FileNotFoundError:
        raise UserError(
            f"{folder} holds no {ROLLOUTS}: it is no run's folder, or training kept no answers; train again for them"
        ) from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); give a readable one") from None
    if not rows:
        raise UserError(f"{path} has no whole row yet; browse the run when it has one")
    if (folder / "log.jsonl").is_file():
        return Rollouts(name, rows, read_run(folder, name), True)
    return Rollouts(name, rows, _means(name, rows), False)


def _filled(row: object) -> dict:
    """The row with what the page needs of every row. Raises KeyError or TypeError for what is none."""
    row = step_row(row)
    if not isinstance(row["generation"], str):
        raise TypeError("'generation' must be text")
    prompt = row.get("prompt") if isinstance(row.get("prompt"), str) else ""
    known = row.get("prompt_id")
    sample = row.get("sample")
    return row | {
        "split": DEV if row.get("split") == DEV else TRAIN,
        "prompt": prompt,
        "prompt_id": known if isinstance(known, str) and known else prompt_id(prompt),
        "sample": sample if isinstance(sample, int) and not isinstance(sample, bool) else 0,
    }


def numbers_of(row: dict, field: str) -> dict[str, object]:
    """The named values under `field`, such as "aspects"; {} if the row has none."""
    found = row.get(field)
    return found if isinstance(found, dict) else {}


def _means(name: str, rows: list[dict]) -> RunLog:
    """A log made of the rows: the mean of each number over the answers of a step."""
    values: dict[tuple[str, int], dict[str, list[float]]] = {}
    for row in rows:
        here = values.setdefault((row["split"], row["step"]), {})
        named = {"reward": row.get("reward"), "holistic_reward": row.get("holistic"), **numbers_of(row, "aspects")}
        named |= {"kl": row.get("kl"), "response_length": row.get("length")}
        if isinstance(row.get("gate"), bool):
            named["gate_rate"] = float(row["gate"])
        for key, value in named.items():
            if is_finite_number(value):
                here.setdefault(key, []).append(float(value))
    log = RunLog(name, {}, {}, {})
    for (split, step), of_step in sorted(values.items()):
        getattr(log, split)[step] = {key: sum(numbers) / len(numbers) for key, numbers in of_step.items()}
    return log


# --- what a row says beside others ---------------------------------------------------------------------------------


def units(row: dict) -> list[Hashable]:
    """The sampled ids of an answer, or its words if the row has none."""
    ids = row.get("token_ids")
    if isinstance(ids, list) and ids and all(isinstance(one, int) for one in ids):
        return ids
    return row["generation"].split()


def changed_share(a: Counter, b: Counter) -> float:
    """1 - Dice's coefficient of two bags of tokens: 0 the same tokens, 1 none in common. Two empty ones: 0."""
    total = a.total() + b.total()
    return 1 - 2 * (a & b).total() / total if total else 0.0


def first_answers(rows: list[dict]) -> list[int | None]:
    """For each row, the row with the answer of the first step to the same prompt; None if it is of that step itself.

    The same sample if that step has it, otherwise the lowest.
    """
    first: dict[tuple, dict[int, int]] = {}  # prompt -> sample -> row, of its first step
    for index, row in enumerate(rows):
        key = row["split"], row["prompt_id"]
        known = first.get(key)
        step = rows[next(iter(known.values()))]["step"] if known else None
        if step is None or row["step"] < step:
            first[key] = {row["sample"]: index}
        elif row["step"] == step:
            first[key].setdefault(row["sample"], index)
    found: list[int | None] = []
    for row in rows:
        samples = first[row["split"], row["prompt_id"]]
        index = samples.get(row["sample"], samples[min(samples)])
        found.append(index if rows[index]["step"] < row["step"] else None)
    return found


def against_start(rows: list[dict], first: list[int | None]) -> dict[str, list[float | None]]:
    """How far the holistic score went apart from the aspects and from what is paid, in standard deviations of the run.

    `holistic_up`: the largest over aspects of min(rise of the score, fall of the aspect); `holistic_down`: of min(fall
    of the score, rise of the aspect); `paid_up`: min(fall of the score, rise of the reward). The score is the raw one,
    because h can be relative to the answers of its own step; h if there is no raw one. All against the first answer to
    the same prompt, or, for a prompt that was answered at one step alone, against the mean of the first step. None if
    they did not go apart, or a number is missing.
    """
    names = list(dict.fromkeys(name for row in rows for name in numbers_of(row, "aspects")))
    raw = any(is_finite_number(row.get("holistic_raw")) for row in rows)
    holistic = [row.get("holistic_raw" if raw else "holistic") for row in rows]
    reward = [row.get("reward") for row in rows]
    columns = [holistic, reward, *([numbers_of(row, "aspects").get(name) for row in rows] for name in names)]
    # (2 + A, N)
    values = np.array([[float(one) if is_finite_number(one) else np.nan for one in column] for column in columns])
    known = np.isfinite(values)
    count = known.sum(axis=1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(known, values, 0).sum(axis=1, keepdims=True) / count
        std = np.sqrt(np.where(known, (values - mean) ** 2, 0).sum(axis=1, keepdims=True) / count)
        start = np.empty_like(values)
        for split in (TRAIN, DEV):
            of_split = np.array([row["split"] == split for row in rows])
            if of_split.any():
                steps = np.array([row["step"] for row in rows])
                of_first = of_split & (steps == steps[of_split].min())
                sums = np.where(known & of_first, values, 0).sum(axis=1)
                start[:, of_split] = (sums / (known & of_first).sum(axis=1))[:, None]
                start[:, of_first] = np.nan  # nothing came before
        own = [index for index, one in enumerate(first) if one is not None]
        start[:, own] = values[:, [first[index] for index in own]]
        moved = np.where(std > 0, (values - start) / std, np.nan)
        score, paid, aspects = moved[:1], moved[1:2], moved[2:]
        apart = {
            "holistic_up": np.minimum(score, -aspects),
            "holistic_down": np.minimum(-score, aspects),
            "paid_up": np.minimum(-score, paid),
        }
    largest = {key: np.max(np.where(np.isfinite(one), one, 0), axis=0, initial=0) for key, one in apart.items()}
    return {key: [float(value) if value > 0 else None for value in one] for key, one in largest.items()}


def same_elsewhere(rows: list[dict]) -> list[int]:
    """For each row, how many other prompts of its step got the same answer. Empty answers count as none."""
    prompts: dict[tuple, set[str]] = {}
    for row in rows:
        prompts.setdefault((row["split"], row["step"], row["generation"]), set()).add(row["prompt_id"])
    return [
        len(prompts[row["split"], row["step"], row["generation"]]) - 1 if row["generation"].strip() else 0
        for row in rows
    ]
