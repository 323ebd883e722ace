"""Compare runs by the metrics of their generations: win rates, and how often a metric contradicts the holistic reward.

Reading, matching and the maths; no model, no judge. Everything pairwise is built on one verdict per prompt
(1: a wins, 0: tie, -1: b wins), whoever gave it.
"""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .errors import UserError
from .files import read_rows

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

HOLISTIC = "holistic_reward"
# the keys that `train_ppo.py --test` writes, in the order of the published results
METRICS = {
    "qa": (HOLISTIC, "factuality_rate", "verbosity_rate", "completeness_reward", "response_length"),
    "mt": (HOLISTIC, "readability", "language_confidence", "grammar_errors", "response_length", "error_rate"),
}
LOWER_WINS = frozenset({"grammar_errors", "error_rate"})
STATISTICS = {"Mean": np.mean, "Min": np.min, "Max": np.max}
SELF, AVERAGE = "*", "Avg."


@dataclass(frozen=True)
class Generations:
    """One run: one row per prompt, sorted by query, so that row i of two runs answers the same prompt."""

    name: str  # file name without its last .json
    queries: list[str]  # N, all different
    metrics: dict[str, np.ndarray]  # name -> (N,) float64, finite


# --- reading -----------------------------------------------------------------------------------------------------


def read_generations(path: Path, task_type: str, drop_duplicates: bool = False) -> Generations:
    """Read one generations file: a JSON list of objects with `query` and every metric of `task_type`.

    drop_duplicates keeps the first row of a repeated query. Raises UserError for a file that is not such a list, a
    missing metric, a value that is not a finite number, and a repeated query.
    """
    name = path.name.removesuffix(".json")
    reserved = {AVERAGE} | {f"{metric}-{statistic}" for metric in METRICS[task_type] for statistic in STATISTICS}
    if not path.name.isprintable() or name in reserved:
        raise UserError(f"{str(path)!a}: the results need a printable name other than '{AVERAGE}'; rename it")
    # read_rows also takes JSON lines, so that a lone object would pass as a row
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            start = file.read(4096).lstrip()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    if start and not start.startswith("["):
        raise UserError(f"{path} is not a JSON list of generations; move it away or write it with train_ppo.py --test")
    rows = read_rows(path)

    for number, row in enumerate(rows, start=1):
        if not isinstance(row.get("query"), str):
            raise UserError(f"{path}, row {number} has no 'query' text, by which runs are matched; add it")
    if drop_duplicates:
        rows = list({row["query"]: row for row in reversed(rows)}.values())  # the first of each query is kept
    rows = sorted(rows, key=lambda row: row["query"])
    queries = [row["query"] for row in rows]
    if len(set(queries)) < len(queries):
        query, count = Counter(queries).most_common(1)[0]
        raise UserError(
            f"{path}: {len(queries) - len(set(queries))} rows repeat a query (most often {_shorten(query)}, {count} "
            "times); remove them or give --drop_duplicates to keep the first of each"
        )
    metrics = {metric: _metric_values(rows, metric, path, task_type) for metric in METRICS[task_type]}
    return Generations(name, queries, metrics)


def _metric_values(rows: list[dict], metric: str, path: Path, task_type: str) -> np.ndarray:
    values = []
    for row in rows:
        if metric not in row:
            hint = f"--task_type {task_type} needs {', '.join(METRICS[task_type])}"
            for other, names in METRICS.items():
                if other != task_type and all(name in row for name in names):
                    hint = f"these look like {other} generations, try --task_type {other}"
            raise UserError(f"{path}, query {_shorten(row['query'])} has no '{metric}'; {hint}")
        value = row[metric]
        try:
            good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        except OverflowError:  # an integer beyond any float
            good = False
        if not good:
            raise UserError(
                f"{path}, query {_shorten(row['query'])}: '{metric}' is {_shorten(value)}, not a finite number; "
                "mend or regenerate the row"
            )
        values.append(value)
    return np.array(values, dtype=np.float64)


def _shorten(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 50 else text[:46] + '..."'


def read_folder(folder: Path, task_type: str, drop_duplicates: bool = False) -> list[Generations]:
    """Read every `*.json` of `folder`, sorted by name, all on the same prompts.

    Raises UserError for a missing or empty folder, a bad file (`read_generations`), and runs whose queries differ.
    """
    if not folder.exists():
        raise UserError(f"{folder} does not exist; give the folder that holds the generation files")
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; give the folder that holds the generation files")
    paths = sorted(path for path in folder.glob("*.json") if path.is_file() and not path.name.startswith("."))
    if not paths:
        inner = sorted(path.parent for path in folder.glob("*/*.json"))
        hint = f"give one of its sub-folders, such as {inner[0]}" if inner else "write some with train_ppo.py --test"
        raise UserError(f"{folder} holds no *.json files; {hint}")
    runs = [read_generations(path, task_type, drop_duplicates) for path in paths]

    first = runs[0]
    for run in runs[1:]:
        if run.queries != first.queries:
            only_first = len(set(first.queries) - set(run.queries))
            only_run = len(set(run.queries) - set(first.queries))
            raise UserError(
                f"{folder}: {first.name} and {run.name} answer different prompts: {only_first + only_run} queries "
                f"differ ({only_first} only in {first.name}, {only_run} only in {run.name}); "
                "generate both on the same test data"
            )
    return runs


def draw_prompts(runs: list[Generations], max_compare: int | None, seed: int) -> list[Generations]:
    """Keep the same `max_compare` random prompts of every run (all of them where there are no more than that).

    The draw of the published code on files sorted by query: `random.seed(seed); random.sample(range(N), max_compare)`.
    """
    if max_compare is not None and max_compare < 1:
        raise UserError(f"--max_compare is {max_compare}; give at least 1, or leave it out to compare all prompts")
    count = len(runs[0].queries)
    if max_compare is None or max_compare >= count:
        return runs
    rows = sorted(random.Random(seed).sample(range(count), max_compare))
    return [
        Generations(
            run.name,
            [run.queries[row] for row in rows],
            {metric: values[rows] for metric, values in run.metrics.items()},
        )
        for run in runs
    ]


# --- the maths ---------------------------------------------------------------------------------------------------


def metric_verdicts(a: np.ndarray, b: np.ndarray, lower_wins: bool = False) -> np.ndarray:
    """Who wins each prompt by a metric. a, b: (N,) values. Returns (N,) of 1 (a wins), 0 (tie), -1 (b wins)."""
    return np.sign(b - a if lower_wins else a - b).astype(np.int8)


def win_rate(verdicts: np.ndarray) -> float | None:
    """100 * wins / (wins + losses) in percent, ties left out; None where every prompt is a tie. verdicts: (N,)."""
    wins, losses = int(np.sum(verdicts > 0)), int(np.sum(verdicts < 0))
    return 100 * wins / (wins + losses) if wins + losses else None


def inconsistency(verdicts: np.ndarray, holistic: np.ndarray) -> float | None:
    """Share (percent) of the prompts with a holistic winner on which the metric names the other one.

    verdicts, holistic: (N,). A tie of the metric contradicts nothing but stays in the denominator. None where the
    holistic reward ties on every prompt.
    """
    decided = int(np.sum(holistic != 0))
    contradicted = int(np.sum(verdicts * holistic < 0))
    return 100 * contradicted / decided if decided else None


def average(values: list[float | None]) -> float | None:
    """Mean of the values that exist; None where none does."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def compare(runs: list[Generations]) -> dict[str, dict]:
    """Compare every ordered pair of runs on every metric.

    Returns, under each run's name: `<metric>-Mean/-Min/-Max`, `{metric: {win_rate, holistic_reward_inconsistent}}`
    for every other run, "*" for itself, and "Avg.", the mean win rate against the others. Rates are percentages, or
    None where no prompt decides.
    """
    results = {}
    for run in runs:
        result: dict = {}
        for metric, values in run.metrics.items():
            for name, statistic in STATISTICS.items():
                result[f"{metric}-{name}"] = float(statistic(values))
        for other in runs:
            result[other.name] = SELF if other is run else _compare_pair(run, other)
        others = [other.name for other in runs if other is not run]
        result[AVERAGE] = {
            metric: average([result[other][metric]["win_rate"] for other in others]) for metric in run.metrics
        }
        results[run.name] = result
    return results


def _compare_pair(a: Generations, b: Generations) -> dict[str, dict[str, float | None]]:
    verdicts = {
        metric: metric_verdicts(values, b.metrics[metric], metric in LOWER_WINS) for metric, values in a.metrics.items()
    }
    return {
        metric: {
            "win_rate": win_rate(verdict),
            "holistic_reward_inconsistent": inconsistency(verdict, verdicts[HOLISTIC]),
        }
        for metric, verdict in verdicts.items()
    }


def is_results_file(path: Path) -> bool:
    """Whether `path` holds what `compare` returns, so that a later comparison may replace it."""
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return (
        isinstance(results, dict)
        and bool(results)
        and all(isinstance(result, dict) and f"{HOLISTIC}-Mean" in result for result in results.values())
    )


# --- the screen --------------------------------------------------------------------------------------------------

NAME_WIDTH = 28  # columns; longer run names fold


def print_results(results: dict[str, dict], console: Console) -> None:
    """Print what `compare` returns as tables: metrics, win rates, inconsistency, average win rates."""
    metrics = [key.removesuffix("-Mean") for key in next(iter(results.values())) if key.endswith("-Mean")]

    def show(title: str, note: str, table: Table) -> None:
        console.print(title, style="bold")
        console.print(note)
        console.print(table)

    show("Metrics", "mean, and min .. max below it", _metric_table(results, metrics))
    if len(results) < 2:
        console.print("One run only: nothing to compare it with.")
        return
    rates = _win_rate_table(results, metrics, console.width)
    if rates is None:
        console.print(f"Win rates of single pairs: too wide for {console.width} columns; the results file has them.\n")
    else:
        show(
            "Win rates",
            "% of prompts that the row wins against the column, ties left out; '-': every prompt is a tie.\n"
            "response_length: the longer one wins, which says nothing about quality.",
            rates,
        )
    show(
        "Inconsistency with holistic_reward",
        "% of prompts with a holistic winner on which the metric names the other one",
        _inconsistency_table(results, metrics),
    )
    show("Average win rate", "against the others, % as above", _average_table(results, metrics))


def _table(first: str, max_width: int = NAME_WIDTH) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(first, overflow="fold", max_width=max_width)
    return table


def _add_metric_columns(table: Table, metrics: list[str]) -> None:
    for metric in metrics:
        table.add_column(_heading(metric) + _rule(metric, "\n"), justify="right", overflow="fold")


def _heading(metric: str) -> str:
    return metric.replace("_", "\n")


def _rule(metric: str, before: str) -> str:
    return f"{before}(lower wins)" if metric in LOWER_WINS else ""


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _metric_table(results: dict[str, dict], metrics: list[str]) -> Table:
    table = _table("run")
    _add_metric_columns(table, metrics)
    for name, result in results.items():
        means = [f"{result[f'{metric}-Mean']:.3f}" for metric in metrics]
        ranges = [f"{result[f'{metric}-Min']:.3g} .. {result[f'{metric}-Max']:.3g}" for metric in metrics]
        table.add_row(name, *(f"{mean}\n{span}" for mean, span in zip(means, ranges, strict=True)))
    return table


def _win_rate_table(results: dict[str, dict], metrics: list[str], width: int) -> Table | None:
    """One run x run block per metric; columns go by number where names are too long, None where even so too wide."""
    from rich.cells import cell_len

    def fits(rows: list[str], columns: list[str]) -> bool:
        cells = [min(max(map(cell_len, rows)), NAME_WIDTH), *(max(cell_len(name), 5) for name in [*columns, AVERAGE])]
        return max(map(len, metrics)) + sum(cells) + 3 * len(cells) + 2 <= width

    names = list(results)
    rows, columns = names, names
    if not fits(rows, columns):
        columns = [f"#{number}" for number in range(1, len(names) + 1)]
        rows = [f"{number} {name}" for number, name in zip(columns, names, strict=True)]
    if not fits(rows, columns):
        return None

    table = _table("metric")
    table.add_column("run", overflow="fold", max_width=NAME_WIDTH)
    for column in [*columns, AVERAGE]:
        table.add_column(column, justify="right", no_wrap=True, min_width=5)
    for metric in metrics:
        for index, (row, name) in enumerate(zip(rows, names, strict=True)):
            cells = [SELF if other == name else _percent(results[name][other][metric]["win_rate"]) for other in names]
            heading = [metric, _rule(metric, "")][index] if index < 2 else ""
            last = index == len(names) - 1
            table.add_row(heading, row, *cells, _percent(results[name][AVERAGE][metric]), end_section=last)
    return table


def _inconsistency_table(results: dict[str, dict], metrics: list[str]) -> Table:
    aspects = [metric for metric in metrics if metric != HOLISTIC]
    table = _table("pair", 2 * NAME_WIDTH)
    for metric in aspects:
        table.add_column(_heading(metric), justify="right", overflow="fold")
    for a, b in combinations(results, 2):
        cells = [_percent(results[a][b][metric]["holistic_reward_inconsistent"]) for metric in aspects]
        table.add_row(f"{a} / {b}", *cells)
    return table


def _average_table(results: dict[str, dict], metrics: list[str]) -> Table:
    table = _table("run")
    _add_metric_columns(table, metrics)
    for name, result in results.items():
        table.add_row(name, *(_percent(result[AVERAGE][metric]) for metric in metrics))
    return table
