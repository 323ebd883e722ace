"""The one reader of generations files: what train_ppo.py --test writes, or any JSON of queries, answers and metrics."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..api import HOLISTIC, Task
from ..common.errors import UserError
from ..common.files import is_finite_number, read_rows
from ..tasks.find import BUILT_IN, find_task


@dataclass(frozen=True)
class Generations:
    """Answers to prompts, and their metrics: row i of every field belongs to one answer."""

    name: str  # of the run: the file's name without its last .json
    queries: list[str]  # N prompts
    generations: list[str | None]  # N answers; None if a row has none
    metrics: dict[str, np.ndarray]  # key in the file -> (N,) float64; NaN if a row has no finite number

    def take(self, rows: Sequence[int]) -> Generations:
        """These rows, counted from 0, in this order."""
        return Generations(
            self.name,
            [self.queries[row] for row in rows],
            [self.generations[row] for row in rows],
            {metric: values[list(rows)] for metric, values in self.metrics.items()},
        )

    def by_query(self) -> dict[str, list[int]]:
        """Query -> its rows, in the order of the file: several if the file has several answers to a prompt."""
        found: dict[str, list[int]] = {}
        for row, query in enumerate(self.queries):
            found.setdefault(query, []).append(row)
        return found


def read_generations(
    path: str | Path, task: Task, *, complete: bool = True, need_text: bool = False, also: Sequence[str] = ()
) -> Generations:
    """Read a JSON list or JSON lines of objects with `query`, `generation` and metrics of `task`, in the file's order.

    complete: the holistic reward and a metric of an aspect must be there, and a metric that one row has must be a
        finite number in every row. A metric that all rows lack is left out: the file is older than the metric.
        Without it, metrics may be missing, null or not finite; they become NaN.
    need_text: every row must have a `generation`.
    also: names of further columns of numbers, which must be there.

    Raises UserError, naming the file and the row, for anything else, and for metrics of another built-in task.
    """
    rows = read_rows(path)
    for number, row in enumerate(rows, start=1):
        if not isinstance(row.get("query"), str):
            raise UserError(f"{path}, row {number} has no 'query' text; train_ppo.py --test writes it in every row")
        answer = row.get("generation", "")
        if not isinstance(answer, str):
            kind = type(answer).__name__
            raise UserError(f"{path}, row {number}: 'generation' is {kind}; expected text, \"\" for an empty answer")
        if need_text and "generation" not in row:
            raise UserError(f"{path}, row {number} has no 'generation' text; train_ppo.py --test writes it")
    there = set().union(*rows)
    _check_task(path, task, there)
    metrics = [metric for metric in task.columns_in_order if metric in there]
    if complete and (HOLISTIC not in metrics or not there & {metric.key for metric in task.metrics}):
        lacking = HOLISTIC if HOLISTIC not in metrics else "metric of an aspect"
        wanted = ", ".join(task.columns_in_order)
        raise UserError(f"{path} has no '{lacking}'; --task_type {task.source or task.name} needs {wanted}")
    if absent := [column for column in also if column not in there]:
        raise UserError(f"{path} has no '{absent[0]}'; its rows have {', '.join(sorted(there))}")
    return Generations(
        Path(path).name.removesuffix(".json"),
        [row["query"] for row in rows],
        [row.get("generation") for row in rows],
        {name: _numbers(rows, name, path, complete) for name in dict.fromkeys([*metrics, *also])},
    )


def _check_task(path: str | Path, task: Task, there: set[str]) -> None:
    """Raise UserError if the columns that are there belong to another built-in task."""
    if there & {metric.key for metric in task.metrics}:
        return
    for name in BUILT_IN:
        if found := there & {metric.key for metric in find_task(name).metrics}:
            raise UserError(
                f"{path} holds metrics of {name} ({', '.join(sorted(found))}) and none of {task.name}; "
                f"give --task_type {name}"
            )


def _numbers(rows: list[dict], name: str, path: str | Path, complete: bool) -> np.ndarray:
    """The values of one column, (N,)."""
    values = []
    for number, row in enumerate(rows, start=1):
        if complete and name not in row:
            raise UserError(f"{path}, row {number} has no '{name}', which other rows have; add it")
        value = row.get(name)
        known = is_finite_number(value)
        if complete and not known:
            raise UserError(
                f"{path}, row {number}: '{name}' is {shorten(value)}, not a finite number; fix or regenerate the row"
            )
        values.append(value if known else np.nan)
    return np.array(values, dtype=np.float64)


def shorten(value: object) -> str:
    """As JSON, 50 characters at most: for messages."""
    text = json.dumps(value)
    return text if len(text) <= 50 else text[:46] + '..."'
