"""Reading: the answers of a generations file with several to each prompt, and what says how good each is."""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ...common.errors import UserError
from ...common.files import is_finite_number, parse_rows, read_rows, read_text, require_fields

FIELDS = {"index": int, "sample": int, "query": str, "generation": str, "aspects": dict}
WRITE = "write the file with train_ppo.py --test --test_do_sample --num_samples N"


@dataclass(frozen=True)
class Samples:
    """B answers to P prompts, those of one prompt one after the other, by sample number. null in the file is NaN."""

    path: str
    index: np.ndarray  # (B,) int64: of the prompt in its data file
    sample: np.ndarray  # (B,) int64: number of the answer to its prompt
    queries: list[str]  # B
    answers: list[str]  # B
    raw: np.ndarray  # (B,) float64: raw holistic scores
    baseline: np.ndarray | None  # (B,) float64: what the file was made to subtract from them
    values: dict[str, list[np.ndarray]]  # aspect -> B x (K_i,) float64, not shaped
    best: dict[str, float]  # aspect -> the value of a unit without fault
    columns: dict[str, np.ndarray]  # other numbers of the rows: name -> (B,) float64

    @property
    def sizes(self) -> np.ndarray:
        """(P,) answers to each prompt."""
        return np.unique(self.index, return_counts=True)[1]

    @property
    def prompts(self) -> list[str]:
        """The P queries."""
        return [self.queries[row] for row in np.unique(self.index, return_index=True)[1]]

    def taken(self, keep: np.ndarray) -> Samples:
        """The answers that `keep` (B,) marks."""
        rows = np.flatnonzero(keep)
        return replace(
            self,
            **{name: getattr(self, name)[rows] for name in ("index", "sample", "raw")},
            baseline=None if self.baseline is None else self.baseline[rows],
            queries=[self.queries[row] for row in rows],
            answers=[self.answers[row] for row in rows],
            values={name: [values[row] for row in rows] for name, values in self.values.items()},
            columns={name: values[rows] for name, values in self.columns.items()},
        )


def read_samples(path: str | Path) -> Samples:
    """Read what train_ppo.py --test --num_samples wrote. UserError, with file and row, for anything else."""
    rows = read_rows(path)
    if lacking := [name for name in ("sample", "index", "raw_holistic", "aspects") if name not in rows[0]]:
        raise UserError(f"{path} has no '{lacking[0]}': it holds no samples with the parts of their rewards; {WRITE}")
    require_fields(rows, FIELDS, path)
    rows.sort(key=lambda row: (row["index"], row["sample"]))
    _require_distinct([(row["index"], row["sample"]) for row in rows], path)
    names = list(rows[0]["aspects"])
    taken = {*FIELDS, "raw_holistic", "holistic_baseline"}
    for row in rows:
        if list(row["aspects"]) != names:
            raise UserError(f"{_where(path, row)} has other aspects than the first row; {WRITE}")
    best = {name: _number(rows[0]["aspects"][name], "best", path, rows[0]) for name in names}
    for row in rows:
        for name, part in row["aspects"].items():
            if _number(part, "best", path, row) != best[name]:
                raise UserError(f"{_where(path, row)}: 'best' of {name} is not that of the first row; {WRITE}")
    numbers = [name for name, value in rows[0].items() if name not in taken and not isinstance(value, str)]
    has_baseline = "holistic_baseline" in rows[0]
    return Samples(
        path=str(path),
        index=np.array([row["index"] for row in rows]),
        sample=np.array([row["sample"] for row in rows]),
        queries=[row["query"] for row in rows],
        answers=[row["generation"] for row in rows],
        raw=_column(rows, "raw_holistic", path),
        baseline=_column(rows, "holistic_baseline", path) if has_baseline else None,
        values={name: [_values(row, name, path) for row in rows] for name in names},
        best=best,
        columns={name: _column(rows, name, path) for name in numbers},
    )


def _where(path: str | Path, row: dict) -> str:
    return f"{path}, index {row['index']}, sample {row['sample']}"


def _number(row: dict, name: str, path: str | Path, of: dict) -> float:
    """row[name], NaN for null and for what is not finite. UserError for what is no number."""
    value = row.get(name, "missing") if isinstance(row, dict) else "missing"
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return math.nan
    if not is_finite_number(value):
        raise UserError(f"{_where(path, of)}: '{name}' is {str(value)[:40]!r}, not a number or null; fix it")
    return float(value)


def _column(rows: list[dict], name: str, path: str | Path) -> np.ndarray:
    return np.array([_number(row, name, path, row) for row in rows], dtype=np.float64)


def _values(row: dict, name: str, path: str | Path) -> np.ndarray:
    values = row["aspects"][name].get("values")  # a dict: its 'best' was read
    if not isinstance(values, list):
        raise UserError(f"{_where(path, row)}: 'values' of {name} is no list of numbers; {WRITE}")
    return np.array([_number({name: value}, name, path, row) for value in values], dtype=np.float64)


def _require_distinct(keys: list[tuple], path: str | Path) -> None:
    key, count = Counter(keys).most_common(1)[0]
    if count > 1:
        raise UserError(f"{path} has {count} rows of index {key[0]}, sample {key[1]}; remove all but one")


# --- how good each answer is -----------------------------------------------------------------------------------------


def quality_of(samples: Samples, column: str, path: str | Path | None) -> np.ndarray:
    """The quality of each answer: a column of the samples, or of the file at `path`. -> (B,), NaN where unknown.

    That file is JSON, JSON lines or CSV with `index`, `sample` and the column, in any order; answers that it lacks have
    no quality. If it has `generation` too, that must be the answer. UserError for an unknown column, rows of no answer,
    repeated rows, and texts instead of numbers.
    """
    if path is None:
        if column not in samples.columns:
            known = ", ".join(samples.columns)
            raise UserError(f"{samples.path} has no column {column!r}; it has {known} (or give --quality_file)")
        return samples.columns[column]
    rows = _quality_rows(path, column)
    places = {key: row for row, key in enumerate(zip(samples.index.tolist(), samples.sample.tolist(), strict=True))}
    keys = [(row["index"], row["sample"]) for row in rows]
    _require_distinct(keys, path)
    found = np.full(len(samples.answers), np.nan)
    for key, row in zip(keys, rows, strict=True):
        if key not in places:
            raise UserError(f"{_where(path, row)} is no answer of {samples.path}; give the file of these samples")
        if row.get("generation", samples.answers[places[key]]) != samples.answers[places[key]]:
            raise UserError(
                f"{_where(path, row)} is another text than in {samples.path}; give the file of these samples"
            )
        found[places[key]] = _number(row, column, path, row)
    return found


def _quality_rows(path: str | Path, column: str) -> list[dict]:
    """The rows of a quality file, with whole numbers as `index` and `sample`."""
    text = read_text(path)
    table = text.lstrip()[:1] not in ("{", "[")
    rows = list(csv.DictReader(io.StringIO(text))) if table else parse_rows(text, path)
    for line, row in enumerate(rows, start=1):
        for name in ("index", "sample", column):
            if name not in row:
                raise UserError(f"{path}, row {line} has no {name!r}; every row needs index, sample and {column}")
        if table:
            try:
                row |= {name: int(row[name]) for name in ("index", "sample")}
                row[column] = float(row[column]) if (row[column] or "").strip() else None
            except ValueError as error:
                raise UserError(f"{path}, row {line} is not numbers ({error}); fix it") from None
        if not all(type(row[name]) is int for name in ("index", "sample")):
            raise UserError(f"{path}, row {line}: index and sample must be whole numbers; fix it")
    if not rows:
        raise UserError(f"{path} holds no rows; give a file with at least one")
    return rows


# --- what can be ranked ----------------------------------------------------------------------------------------------


def usable(samples: Samples, quality: np.ndarray, paid: Iterable[str]) -> tuple[np.ndarray, dict[str, int]]:
    """Which answers can be ranked: their quality, and all scores that reach a reward, are finite.

    -> (B,) bool, and how many are left out for what.
    """
    scored = np.isfinite(samples.raw)
    if samples.baseline is not None:
        scored &= np.isfinite(samples.baseline)
    for name in paid:
        scored &= [bool(np.isfinite(values).all()) for values in samples.values[name]]
    known = np.isfinite(quality)
    counts = {
        "answers left out, a score is not finite": int((~scored).sum()),
        "answers left out, no finite quality": int((scored & ~known).sum()),
    }
    return scored & known, counts


def greatest_n(sizes: np.ndarray) -> int:
    """The greatest n such that nine of ten prompts have n answers: a few that failed do not shorten the curves."""
    needed = -(-9 * len(sizes) // 10)
    return int(np.sort(sizes)[-needed])
