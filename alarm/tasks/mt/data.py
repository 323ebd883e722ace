"""Machine translation: the sentence pairs, their splits, and the prompt.

Importing this module loads no torch: what can be checked without a model is checked first.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from ...common.errors import UserError
from ...common.files import is_text, read_rows
from ...common.paths import is_local_path

logger = logging.getLogger(__name__)

FILE_ENDINGS = (".json", ".jsonl", ".ndjson", ".gz", ".parquet", ".csv", ".tsv", ".txt")
PREFIX = "translate Spanish to English: "
DATASET, CONFIG = "Helsinki-NLP/europarl", "en-es"
MAX_ROWS, MAX_DEV_ROWS = 100_000, 2_000
TEST_SHARE, DEV_SHARE, SPLIT_SEED = 0.3, 0.1, 42


@dataclass(frozen=True)
class Splits:
    """Rows of the form {"translation": {"es": ..., "en": ...}}."""

    train: list[dict]
    dev: list[dict]
    test: list[dict]


def load_rows(source: str | Path, limit: int | None = None) -> list[dict]:
    """The first `limit` rows of a JSON list, JSON lines or parquet file, of a data set's folder, or of a hub id.

    The content of a file tells its format, and not its name. JSON may be gzip-compressed.
    Rows without a text under `es` or `en` are left out, counted and named in the log.
    Raises UserError if the source cannot be read, and if no row is left.
    """
    return _usable(_read(source, limit), source)


def split_source(source: str | Path = DATASET) -> Splits:
    """Train, dev and test rows of one source: of its first 100,000 rows 30% are test, of the others 10% dev.

    Both splits with seed 42, dev cut to 2,000 rows, as the published data were split.
    """
    import datasets

    rows = _read(source, MAX_ROWS)
    if len(rows) < 4:
        raise UserError(f"{source} has {len(rows)} rows, too few to split; give --train_file, --dev_file, --test_file")
    # the permutation depends on the number of rows and the seed alone, so row numbers are enough
    first = datasets.Dataset.from_dict({"row": range(len(rows))}).train_test_split(TEST_SHARE, seed=SPLIT_SEED)
    second = first["train"].train_test_split(DEV_SHARE, seed=SPLIT_SEED)
    parts = {"train": second["train"], "dev": second["test"], "test": first["test"]}
    chosen = {name: [rows[i] for i in part["row"]] for name, part in parts.items()}
    chosen["dev"] = chosen["dev"][:MAX_DEV_ROWS]
    return Splits(**{name: _usable(part, f"{source} ({name})") for name, part in chosen.items()})


def prompt(row: dict, prefix: str = PREFIX) -> str:
    """What the policy reads."""
    return prefix + row["translation"]["es"]


def _read(source: str | Path, limit: int | None) -> list[dict]:
    path = Path(source)
    parquet = path.is_file() and _is_parquet(path)
    if (path.is_file() and not parquet) or _is_absent_file(source):
        return read_rows(path)[:limit]
    import datasets

    rows = "train" if limit is None else f"train[:{limit}]"
    try:
        if parquet:
            return datasets.load_dataset("parquet", data_files=str(path), split=rows).to_list()
        return datasets.load_dataset(str(source), CONFIG, split=rows).to_list()
    except Exception as error:  # datasets raises its own, pyarrow's, the hub client's and OSErrors
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"the data set {source} cannot be loaded ({type(error).__name__}: {reason}); "
            "give local files by --train_file, --dev_file and --test_file"
        ) from error


def _is_parquet(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(4) == b"PAR1" or path.suffix.lower() == ".parquet"
    except OSError:
        return False  # the reader of JSON reports it


def _is_absent_file(source: str | Path) -> bool:
    """Whether a source that is not there was meant as a file: by its ending, or as it can be no hub id."""
    path = Path(source)
    return not path.exists() and (path.suffix.lower() in FILE_ENDINGS or is_local_path(source))


def _is_usable(row: dict) -> bool:
    pair = row.get("translation")
    return isinstance(pair, dict) and all(is_text(pair.get(k)) and pair[k].strip() for k in ("es", "en"))


def _usable(rows: list[dict], source: str | Path) -> list[dict]:
    bad = [number for number, row in enumerate(rows, start=1) if not _is_usable(row)]
    if bad:
        form = '{"translation": {"es": ..., "en": ...}}'
        what = f"rows without text under 'es' or 'en' (first: row {bad[0]}; expected {form}, which UTF-8 can hold)"
        if len(bad) == len(rows):
            raise UserError(f"{source}: all {len(rows)} are {what}; fix the file")
        logger.warning("%s: left out %d of %d: %s", source, len(bad), len(rows), what)
    return [row for row in rows if _is_usable(row)]


def load_parts(files: dict[str, str | None], source: str = DATASET) -> dict[str, list[dict]]:
    """The rows of each named split (train, dev, test): of its file, or if that is None, the split of `source`.

    Raises UserError if something cannot be read.
    """
    splits = None if all(files.values()) else split_source(source)
    return {split: load_rows(path) if path else getattr(splits, split) for split, path in files.items()}
