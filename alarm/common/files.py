"""Reading what users give, and writing results whole or not at all."""

from __future__ import annotations

import gzip
import json
import math
import os
import re
import shutil
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import UserError

# the first bytes of what people give instead of JSON
_KINDS = {
    b"PK\x03\x04": "a zip archive; unpack it",
    b"BZh": "compressed by bzip2; unpack it",
    b"\xfd7zXZ\x00": "compressed by xz; unpack it",
    b"\x28\xb5\x2f\xfd": "compressed by zstd; unpack it",
    b"PAR1": "a parquet file; write its rows as JSON lines",
    b"version https://git-lfs.github.com/spec/": "a Git LFS pointer and not the file itself; run `git lfs pull`",
}
# names under which a list of rows is often found
_WRAPPERS = ("data", "rows", "examples", "instances", "items", "records")
_HALF_PAIR = re.compile("[\ud800-\udfff]")
_TYPES = {str: "text", int: "a whole number", list: "a list", dict: "an object"}


def is_finite_number(value: object) -> bool:
    """Whether `value` is an int or a float (no bool) that a float can hold, and neither NaN nor infinite."""
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an integer beyond any float
        return False


def is_text(value: object) -> bool:
    """Whether `value` is a string that UTF-8 can hold: one without half a surrogate pair."""
    return isinstance(value, str) and not _HALF_PAIR.search(value)


def read_text(path: str | Path) -> str:
    """The text of a UTF-8 file, also of a gzip-compressed one, without a byte order mark; line breaks become "\\n".

    Raises UserError, naming the file and what to do, for a file that is not there or that holds no such text.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; give the path of a file") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); give the path of a readable file") from None
    if content.startswith(b"\x1f\x8b"):
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise UserError(f"{path} is a damaged gzip file ({error}); copy it again") from None
    for start, kind in _KINDS.items():
        if content.startswith(start):
            raise UserError(f"{path} is {kind}")
    encoding = json.detect_encoding(content)
    if not encoding.startswith("utf-8"):
        raise UserError(f"{path} cannot be read as UTF-8 text, it looks like {encoding.upper()}; save it as UTF-8")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path} cannot be read as UTF-8 text (line {line} holds the byte 0x{content[error.start]:02x}); save it "
            "as UTF-8 (`iconv -f LATIN1 -t UTF-8` if it is Latin-1)"
        ) from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def parse_json(text: str, where: str) -> object:
    """The value of a JSON text. Raises UserError, which starts with `where`, for anything else."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if "\n" in text else ""
        reason = f"{error.msg} at {line}character {error.colno}"
    except RecursionError:
        reason = "brackets are nested too deeply"
    except ValueError:  # Python's own limit
        reason = f"a number of more than {sys.get_int_max_str_digits()} digits"
    raise UserError(f"{where} is not JSON that can be read ({reason}); fix it")


def read_json(path: str | Path) -> object:
    """The value of a JSON file. Raises UserError, naming the file, if it is none."""
    return parse_json(read_text(path), str(path))


def read_rows(path: str | Path) -> list[dict]:
    """Read a JSON list or JSON lines file of objects, with any ending of its name; it may be gzip-compressed.

    Raises UserError, naming the file and the line, for a missing file, malformed JSON, a row that is not an object,
    and a file without rows.
    """
    return parse_rows(read_text(path), path)


def parse_rows(text: str, path: str | Path) -> list[dict]:
    """The rows in the text of a JSON list or JSON lines file. `path` names it in errors, as those of `read_rows`."""
    start = text.lstrip("\ufeff \t\n")
    if start.startswith("<"):
        raise UserError(f"{path} is HTML or XML, such as the web page about a file; download the file itself")
    if re.match(r"(\[\s*)?\{\s*'", start):
        raise UserError(f"{path} holds Python's notation with single quotes; write it with Python's json.dump")
    if start and start[0] not in "{[":
        raise UserError(
            f"{path} holds no JSON objects, it starts with {start[:20]!r}; give a JSON list or JSON lines of objects "
            "(convert a table or plain text)"
        )
    rows = parse_json(text.lstrip("\ufeff"), str(path)) if start.startswith("[") else _parse_lines(text, path)
    if not rows:
        raise UserError(f"{path} holds no rows; give a file with at least one")
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise UserError(f"{path}, row {number} is {type(row).__name__}, not an object; fix it")
    if len(rows) == 1 and (name := _wrapper(rows[0])):
        raise UserError(f"{path} holds its rows inside of an object, under {name!r}; give that list alone")
    return rows


def _parse_lines(text: str, path: str | Path) -> list:
    """JSON lines, or one object over several lines."""
    rows = []
    # split on "\n" alone: str.splitlines also breaks at U+2028, which is legal inside a JSON string
    for number, line in enumerate(text.split("\n"), start=1):
        line = line.strip("\ufeff \t")
        try:
            rows += [parse_json(line, f"{path}, line {number}")] if line else []
        except UserError as error:
            if not rows:
                with suppress(UserError):
                    return [parse_json(text, str(path))]
            raise UserError(f"{error}; every line must hold one whole object") from None
    return rows


def growing_rows(path: Path, what: str, checked: Callable[[object], dict]) -> Iterator[tuple[str, dict]]:
    """The lines of a JSON lines file to which a process adds, without their ends, and what `checked` makes of each.

    A last line that is still being written, or that a kill cut short, is left out. UserError names any other line that
    is no row: that is no JSON, or for which `checked` raises KeyError, TypeError or ValueError with the reason.
    Raises OSError if the file cannot be read.
    """
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                text = line.removesuffix(b"\n").decode("utf-8")
                row = checked(json.loads(text))
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                if not line.endswith(b"\n"):
                    return
                raise UserError(
                    f"{path}, line {number} is not a row of {what} ({_reason(error)}); fix or remove that line"
                ) from None
            yield text, row


def _reason(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"it has no {error.args[0]!r}"
    if isinstance(error, TypeError):
        return str(error)
    return "brackets are nested too deeply" if isinstance(error, RecursionError) else "it is no JSON"


def _wrapper(row: dict) -> str | None:
    """The name under which an object holds a list of objects and little else: {"data": [{...}, ...]}."""
    for name, value in row.items():
        rows = isinstance(value, list) and value and all(isinstance(one, dict) for one in value)
        if rows and (len(row) == 1 or name in _WRAPPERS):
            return name
    return None


def require_fields(rows: list[dict], fields: dict[str, type], path: str | Path) -> None:
    """Raise UserError naming the first row of `path` that lacks one of `fields` or holds another type there.

    Text with half a surrogate pair is refused too: tokenizers and UTF-8 files cannot take it.
    """
    for number, row in enumerate(rows, start=1):
        for field, kind in fields.items():
            if field not in row:
                raise UserError(f"{path}, row {number} has no '{field}'; every row needs {', '.join(fields)}")
            value = row[field]
            if not isinstance(value, kind):
                raise UserError(f"{path}, row {number}: '{field}' is {type(value).__name__}; expected {_TYPES[kind]}")
            if kind is str and not is_text(value):
                raise UserError(_half_pair(path, number, field))


def require_texts(rows: list[dict], field: str, path: str | Path) -> None:
    """Raise UserError naming the first row of `path` whose `field` is no list of texts."""
    require_fields(rows, {field: list}, path)
    for number, row in enumerate(rows, start=1):
        for value in row[field]:
            if not isinstance(value, str):
                raise UserError(f"{path}, row {number}: '{field}' holds {type(value).__name__}; expected texts alone")
            if not is_text(value):
                raise UserError(_half_pair(path, number, field))


def _half_pair(path: str | Path, number: int, field: str) -> str:
    return (
        f"{path}, row {number}: '{field}' holds half a surrogate pair (\\ud800 to \\udfff), which is no character; "
        "fix or remove the row"
    )


def check_writable(path: str | Path, flag: str) -> None:
    """Raise UserError if `path`, the value of `flag`, cannot be written: its folder is a file, or not for this user."""
    path = Path(path).absolute()
    parent = next(folder for folder in path.parents if os.path.lexists(folder))
    if not parent.is_dir():
        raise UserError(f"{flag} {path} cannot be written: {parent} is not a folder; give another one")
    place = path if path.is_dir() else parent
    if not os.access(place, os.W_OK | os.X_OK):
        raise UserError(f"{flag} {path} cannot be written: {place} is read-only; give another one")


def check_new_file(path: str | Path, flag: str, overwrite: bool | None = None) -> None:
    """Raise UserError unless the file that `flag` names may be written: it is new, or --overwrite was given.

    overwrite: None if the command has no such flag.
    """
    path = Path(path)
    check_writable(path, flag)
    if path.is_dir():
        raise UserError(f"{flag} {path} is a folder; give the path of a file")
    if path.exists() and not overwrite:
        instead = "" if overwrite is None else ", or --overwrite to replace it"
        raise UserError(f"{flag} {path} exists; give another one{instead}")


def check_folder(path: str | Path, flag: str) -> None:
    """Raise UserError if the folder that `flag` names cannot be written, or is a file."""
    path = Path(path)
    check_writable(path, flag)
    if path.exists() and not path.is_dir():
        raise UserError(f"{flag} {path} is a file; give the path of a folder")


def check_new_folder(path: str | Path, flag: str) -> None:
    """Raise UserError unless the folder that `flag` names can be written and is new or empty."""
    path = Path(path)
    check_folder(path, flag)
    if path.is_dir() and any(path.iterdir()):
        raise UserError(f"{flag} {path} already holds something; give a new folder or remove it")


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Yield the path of a temporary file that becomes `path` when the block ends well, replacing an older one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write `text` to `path` whole or not at all (temporary file, fsync, rename)."""
    with whole_file(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def write_json(path: str | Path, value: object) -> None:
    """Write `value` as indented JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_rows(path: str | Path, rows: list[dict]) -> None:
    """Write `rows` as a JSON list with one row a line, whole or not at all."""
    write_text(path, "[\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n]\n")


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
