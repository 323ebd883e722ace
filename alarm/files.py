"""Reading what users give, and writing results whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import contextmanager
from pathlib import Path

from .errors import UserError


def read_rows(path: str | Path) -> list[dict]:
    """Read a JSON list or JSON lines file of objects.

    Raises UserError, naming the file and the line, for a missing file, malformed JSON, a row that is not an object,
    and a file without rows.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; give the path of a JSON list or JSON lines file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as UTF-8 text: {error}") from None
    try:
        if text.lstrip().startswith("["):
            rows = json.loads(text)
        else:
            # split on "\n" alone: str.splitlines also breaks at U+2028, which is legal inside a JSON string
            rows = []
            for number, line in enumerate(text.split("\n"), start=1):
                if line.strip():
                    try:
                        rows.append(json.loads(line))
                    except json.JSONDecodeError as error:
                        raise UserError(f"{path}, line {number} is not JSON ({error.msg}); mend or remove it") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not JSON ({error.msg} at line {error.lineno}); mend it") from None
    if not rows:
        raise UserError(f"{path} holds no rows; give a file with at least one")
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise UserError(f"{path}, row {number} is {type(row).__name__}, not an object; mend it")
    return rows


def require_fields(rows: list[dict], fields: dict[str, type | tuple[type, ...]], path: str | Path) -> None:
    """Raise UserError naming the first row of `path` that lacks one of `fields` or holds another type there."""
    for number, row in enumerate(rows, start=1):
        for field, kind in fields.items():
            if field not in row:
                raise UserError(f"{path}, row {number} has no '{field}'; every row needs {', '.join(fields)}")
            if not isinstance(row[field], kind):
                raise UserError(f"{path}, row {number}: '{field}' is {type(row[field]).__name__}; expected {kind}")


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def write_text(path: str | Path, text: str) -> None:
    """Write `text` to `path` whole or not at all (temporary file, fsync, rename)."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: str | Path, value: object) -> None:
    """Write `value` as indented JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


@contextmanager
def whole_folder(path: str | Path):
    """Yield a temporary folder that becomes `path` when the block ends well, replacing an older `path`.

    A reader sees the old folder, the new one, or for an instant none; never half of one.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        old = path.with_name(f".{path.name}.{os.getpid()}.old")
        if path.exists():
            os.replace(path, old)
        os.replace(temporary, path)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
