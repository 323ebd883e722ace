"""A file of results that grows: a JSON line for each judge on each data set, never replaced without being asked."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path

from ..common.errors import UserError
from ..common.files import check_writable, read_text, write_text

KIND = "alarm judge"

Key = tuple[str, str]  # judge, sha256 of the data


def key_of(row: dict) -> Key:
    return row["judge"], row["data"]["sha256"]


def read_board(path: str | Path) -> list[dict]:
    """The rows of a leaderboard; none if there is no file. UserError for a file that holds something else."""
    path = Path(path)
    if not path.exists():
        return []
    rows = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            good = row["kind"] == KIND and all(isinstance(part, str) for part in key_of(row))
            good = good and all(isinstance(rate, dict) for rate in row["rates"].values())
        except (ValueError, KeyError, TypeError, AttributeError):
            good = False
        if not good:
            raise UserError(f"{path}, line {number} is no row of a leaderboard; fix it, or give another --leaderboard")
        rows.append(row)
    return rows


def check_board(path: str | Path, keys: list[Key], replace: bool) -> None:
    """Raise UserError for a file that cannot be added to, and for rows that it has unless they are to be replaced."""
    check_writable(path, "--leaderboard")
    if Path(path).is_dir():
        raise UserError(f"--leaderboard {path} is a folder; give the path of a file")
    there = {key_of(row) for row in read_board(path)}
    if not replace and (had := [judge for judge, data in keys if (judge, data) in there]):
        raise UserError(f"{path} has {', '.join(had)} on these data already; leave it out, or give --replace")


def add_row(path: str | Path, row: dict, replace: bool) -> None:
    """Append one row as one whole line; with `replace`, instead of the row of this judge on these data.

    Other processes may add rows at the same time. Raises UserError like `check_board`.
    """
    path = Path(path).absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path):
        rows = read_board(path)
        if any(key_of(one) == key_of(row) for one in rows):
            check_board(path, [key_of(row)], replace)
            kept = [one for one in rows if key_of(one) != key_of(row)]
            write_text(path, "".join(map(_line, [*kept, row])))
            return
        # a last line without its end was typed by somebody: read_board took it, so it is whole
        start = "\n" if path.exists() and not _ends_in_newline(path) else ""
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            line = (start + _line(row)).encode()
            while line:
                line = line[os.write(descriptor, line) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _line(row: dict) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


def _ends_in_newline(path: Path) -> bool:
    content = path.read_bytes()
    return not content or content.endswith(b"\n")


class _locked:
    """Holds a lock on the folder's file .NAME.lock, because the leaderboard itself may be replaced."""

    def __init__(self, path: Path):
        self.path = path.with_name(f".{path.name}.lock")

    def __enter__(self) -> None:
        self.file = open(self.path, "w")
        fcntl.flock(self.file, fcntl.LOCK_EX)

    def __exit__(self, *_) -> None:
        self.file.close()
