"""Generations files as tidy tables: a row for each number, for plots of one's own. Loads no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..common.errors import UserError
from ..common.files import is_finite_number, read_rows, whole_file
from .runs import SEED_FOLDER
from .runs import run_files as files_of

if TYPE_CHECKING:
    from pandas import DataFrame

# columns of a generations file that are no metrics
NO_METRICS = ("index", "sample")
SCORES = ("seed", "run", "prompt", "sample", "metric", "value")


def run_files(paths: Sequence[Path]) -> list[tuple[str, str, Path]]:
    """Seed ("" without one), run and file of each generations file that the paths name.

    A path is a file, a folder of files, or a folder of seed folders (seed42/). Raises UserError for one without any.
    """
    found = []
    for path in paths:
        if path.is_file():
            files = [path]
        elif path.is_dir():
            seeds = [folder for folder in path.iterdir() if folder.is_dir() and SEED_FOLDER.fullmatch(folder.name)]
            files = [file for folder in (path, *sorted(seeds)) for file in files_of(folder)]
        else:
            raise UserError(f"{path} does not exist; give generations files, or folders of them")
        if not files:
            raise UserError(f"{path} holds no *.json files; give generations files, or folders of them")
        for file in files:
            folder = file.absolute().parent.name
            seed = folder if SEED_FOLDER.fullmatch(folder) else ""
            found.append((seed, file.name.removesuffix(".json"), file))
    if twice := [key for key, count in Counter((seed, run) for seed, run, _ in found).items() if count > 1]:
        raise UserError(f"two files are run {'/'.join(filter(None, min(twice)))}; rename one of them")
    return found


def tidy(files: Iterable[tuple[str, str, Path]]) -> tuple[DataFrame, DataFrame]:
    """The tables of scores and of prompts.

    Scores: seed, run, prompt (its number), sample (the how-manieth answer of the run to it, from 0), metric, value: a
    row for each number in the files, null where a file has null. Prompts: prompt, query; sorted by query.
    Raises UserError for a row without a query, a column that is no number in some rows, and files without any number.
    """
    import pandas as pd

    runs = [(seed, run, path, _checked(read_rows(path), path)) for seed, run, path in files]
    queries = sorted({row["query"] for *_, rows in runs for row in rows})
    number = {query: i for i, query in enumerate(queries)}
    columns: dict[str, list] = {name: [] for name in SCORES}
    for seed, run, path, rows in runs:
        metrics = _metrics(path, rows)
        answers: Counter[str] = Counter()
        for row in rows:
            query = row["query"]
            sample = row.get("sample", answers[query])
            answers[query] += 1
            for metric in metrics:
                if metric in row:
                    values = (seed, run, number[query], sample, metric, row[metric])
                    for name, value in zip(SCORES, values, strict=True):
                        columns[name].append(value)
    if not columns["value"]:
        raise UserError("the files hold no metric; give what train_ppo.py --test or alarm.score writes")
    scores = pd.DataFrame(columns).astype({"value": "float64", "prompt": "int64", "sample": "int64"})
    for name in ("seed", "run", "metric"):
        scores[name] = scores[name].astype("category")
    return scores, pd.DataFrame({"prompt": range(len(queries)), "query": queries})


def _checked(rows: list[dict], path: Path) -> list[dict]:
    for place, row in enumerate(rows, start=1):
        if not isinstance(row.get("query"), str):
            raise UserError(f"{path}, row {place} has no 'query' text; give generations files")
        if not isinstance(sample := row.get("sample", 0), int) or isinstance(sample, bool):
            raise UserError(f"{path}, row {place}: 'sample' is {sample!r}; give a whole number")
    return rows


def _metrics(path: Path, rows: list[dict]) -> list[str]:
    """The columns of numbers. UserError for one that is a number in some rows and something else in others."""
    found: dict[str, bool] = {}
    for row in rows:
        for name, value in row.items():
            if name in NO_METRICS or value is None:
                continue
            number = isinstance(value, float) or is_finite_number(value)  # also NaN, as some writers put it
            if found.setdefault(name, number) != number:
                raise UserError(f"{path}: '{name}' is a number in some rows and none in others; fix or remove it")
    return [name for name, number in found.items() if number]


def write_tables(scores: DataFrame, prompts: DataFrame, stem: Path) -> list[Path]:
    """STEM.parquet, STEM.csv and the same of STEM-prompts, each whole or not at all. -> their paths."""
    written = []
    for table, name in ((scores, stem.name), (prompts, f"{stem.name}-prompts")):
        for ending, write in ((".parquet", table.to_parquet), (".csv", table.to_csv)):
            path = stem.with_name(name + ending)
            with whole_file(path) as temporary:
                write(temporary, index=False)
            written.append(path)
    return written
