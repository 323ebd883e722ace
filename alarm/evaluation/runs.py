"""The runs of a comparison: one generations file each, all on the same prompts; perhaps a folder of them per seed."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from pathlib import Path

from ..api import Task
from ..common.errors import UserError
from .compare import AVERAGE
from .generations import Generations, read_generations, shorten
from .provenance import SIDECAR

SEED_FOLDER = re.compile(r"seed[-_]?\d+")


def read_run(
    path: Path, task: Task, drop_duplicates: bool = False, need_text: bool = False, also: Sequence[str] = ()
) -> Generations:
    """One run: a complete generations file, one row a query, sorted by query, so that row i of two runs is one prompt.

    drop_duplicates keeps the first row of a repeated query. need_text, also: see `read_generations`. Raises UserError
    for a repeated query, and for what `read_generations` refuses.
    """
    name = path.name.removesuffix(".json")
    clashes = name.startswith(AVERAGE) or name.rpartition("-")[0] in (*task.columns_in_order, *also)
    if not path.name.isprintable() or clashes:
        raise UserError(f"{str(path)!a}: the results need a printable name that is no key of theirs; rename it")
    run = read_generations(path, task, need_text=need_text, also=also)
    rows = run.by_query()
    if len(rows) < len(run.queries) and not drop_duplicates:
        query = max(rows, key=lambda query: len(rows[query]))
        raise UserError(
            f"{path}: {len(run.queries) - len(rows)} rows repeat a query (most often {shorten(query)}, "
            f"{len(rows[query])} times), and a comparison takes one answer to each; remove them or give "
            "--drop_duplicates to keep the first of each (of --num_samples: sample 0)"
        )
    return run.take([rows[query][0] for query in sorted(rows)])


def read_folder(
    folder: Path, task: Task, drop_duplicates: bool = False, need_text: bool = False, also: Sequence[str] = ()
) -> list[Generations]:
    """Read every `*.json` of `folder`, sorted by name, all on the same prompts.

    Raises UserError for a missing or empty folder, a bad file (`read_run`), and runs whose queries differ.
    """
    paths = run_files(folder)
    if not paths:
        inner = sorted(path.parent for path in folder.glob("*/*.json"))
        hint = f"give one of its sub-folders, such as {inner[0]}" if inner else "write some with train_ppo.py --test"
        raise UserError(f"{folder} holds no *.json files; {hint}")
    runs = [read_run(path, task, drop_duplicates, need_text, also) for path in paths]
    for run in runs[1:]:
        require_same_queries(folder, runs[0].name, runs[0], run.name, run)
    require_same_metrics(folder, runs)
    return runs


def read_seeds(
    folder: Path, task: Task, drop_duplicates: bool = False, need_text: bool = False, also: Sequence[str] = ()
) -> dict[str, list[Generations]]:
    """Read `folder`: runs, or one folder of runs for each seed (`seed42/`, `seed43/`).

    Returns the runs of each seed, {"": runs} if there are no seed folders. Raises UserError if both are there,
    and if seeds do not hold the same runs on the same prompts.
    """
    paths = run_files(folder)
    inner = sorted(path for path in folder.iterdir() if path.is_dir() and SEED_FOLDER.fullmatch(path.name))
    if paths and inner:
        raise UserError(
            f"{folder} holds both runs ({paths[0].name}) and seed folders ({inner[0].name}); move one of the two away"
        )
    if not inner:
        return {"": read_folder(folder, task, drop_duplicates, need_text, also)}
    seeds = {path.name: read_folder(path, task, drop_duplicates, need_text, also) for path in inner}
    (first, runs), *others = seeds.items()
    for seed, found in others:
        missing = {run.name for run in runs} ^ {run.name for run in found}
        if missing:
            raise UserError(
                f"{folder}: {first} and {seed} must hold the same runs, but only one of them has "
                f"{', '.join(sorted(missing))}; add what is missing, or move it away"
            )
        require_same_queries(folder, first, runs[0], seed, found[0])
        require_same_metrics(folder, [runs[0], found[0]])
    return seeds


def run_files(folder: Path) -> list[Path]:
    """The generations files of a folder, by name; none of its sub-folders. UserError if it is no folder."""
    if not folder.exists():
        raise UserError(f"{folder} does not exist; give the folder that holds the generation files")
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; give the folder that holds the generation files")
    files = [path for path in folder.glob("*.json") if path.is_file() and not path.name.startswith(".")]
    return sorted(path for path in files if not path.name.endswith(SIDECAR))


def require_same_queries(where: Path | str, first_name: str, first: Generations, name: str, run: Generations) -> None:
    """Raise UserError with the number of different queries if two runs do not answer the same prompts."""
    if run.queries != first.queries:
        only_first = len(set(first.queries) - set(run.queries))
        only_run = len(set(run.queries) - set(first.queries))
        raise UserError(
            f"{where}: {first_name} and {name} answer different prompts: {only_first + only_run} queries "
            f"differ ({only_first} only in {first_name}, {only_run} only in {name}); "
            "generate both on the same test data"
        )


def draw_prompts(runs: list[Generations], max_compare: int | None, seed: int) -> list[Generations]:
    """Keep the same `max_compare` random prompts of every run (all of them if there are no more than that).

    The draw of the published code on files sorted by query: `random.seed(seed); random.sample(range(N), max_compare)`.
    """
    if max_compare is not None and max_compare < 1:
        raise UserError(f"--max_compare is {max_compare}; give at least 1, or leave it out to compare all prompts")
    count = len(runs[0].queries)
    if max_compare is None or max_compare >= count:
        return runs
    rows = sorted(random.Random(seed).sample(range(count), max_compare))
    return [run.take(rows) for run in runs]


def require_same_metrics(where: Path | str, runs: list[Generations]) -> None:
    """Raise UserError if one run has a metric that another lacks."""
    for run in runs[1:]:
        if different := sorted(run.metrics.keys() ^ runs[0].metrics.keys()):
            lacking, having = (run, runs[0]) if different[0] in runs[0].metrics else (runs[0], run)
            raise UserError(
                f"{where}: {lacking.name} has no '{different[0]}', which {having.name} has; generate it again, or "
                "remove the metric from the others"
            )


def missing_metrics(task: Task, run: Generations) -> list[str]:
    """The task's metrics that a run does not have."""
    return [metric for metric in task.columns_in_order if metric not in run.metrics]
