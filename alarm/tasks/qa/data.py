"""Long-form QA: the data rows."""

from __future__ import annotations

from pathlib import Path

from ...common.errors import UserError
from ...common.files import read_rows, require_fields, require_texts


def load_examples(path: str | Path) -> list[dict]:
    """Read qa-feedback rows (JSON list or JSON lines).

    `text`: the policy's prompt; `question`: the question in it. `answer` (references) and `passages` stay as they are.
    Raises UserError naming the row if `text` or `question` is missing, empty or no string.
    """
    rows = read_rows(path)
    require_fields(rows, {"text": str, "question": str}, path)
    for number, row in enumerate(rows, start=1):
        for name in ("text", "question"):
            if not row[name].strip():
                raise UserError(f"{path}, row {number}: '{name}' is empty; fill it in or remove the row")
        if not isinstance(row.get("answer", ""), str | list):
            raise UserError(f"{path}, row {number}: 'answer' is {type(row['answer']).__name__}; expected strings")
    return rows


def load_answered(path: str | Path) -> list[dict]:
    """Read rows with a prompt under `text` and a list of reference answers under `answer`. Raises UserError."""
    rows = read_rows(path)
    require_fields(rows, {"text": str}, path)
    require_texts(rows, "answer", path)
    return rows


def references(row: dict) -> list[str]:
    """The reference answers of a row, those without text left out."""
    return [answer.strip() for answer in row["answer"] if answer.strip()]
