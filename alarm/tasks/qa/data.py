"""Long-form QA: the data rows."""

from __future__ import annotations

from pathlib import Path

from ...common.errors import UserError
from ...common.files import read_rows, require_fields


def load_examples(path: str | Path) -> list[dict]:
    """Read qa-feedback rows (JSON list or JSON lines).

    `text`: the policy's prompt; `question`: the question in it. `answer` (references) and `passages` stay as they are.
    Raises UserError naming the row where `text` or `question` is missing, empty or no string.
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
