"""Markdown and HTML of a table (`common.console.Table`). Every text is plain: the renderers escape it."""

from __future__ import annotations

import html
import re

from ...common.console import Column, Table


class Footnotes:
    """Numbers the remarks of a table, each different one once."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def mark(self, remark: str) -> str:
        """`(n)`, the place of `remark` among the footnotes."""
        return f"({self._numbers.setdefault(remark, len(self._numbers) + 1)})"

    @property
    def texts(self) -> tuple[str, ...]:
        return tuple(self._numbers)


# --- Markdown ----------------------------------------------------------------------------------------------------


def escape_markdown(text: str) -> str:
    """`text` with everything that Markdown would read as markup escaped; line ends become <br>."""
    text = _encodable(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([\\`*\[\]|~$#])", r"\\\1", text)
    # an underscore between letters, as in every metric's name, is none
    text = re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text)
    return re.sub(r"\r\n|[\r\n]", "<br>", text)


def to_markdown(table: Table) -> str:
    """A heading, the note, the table, its footnotes. Sections begin with a row that holds their heading alone."""

    def line(cells: list[str]) -> str:
        return f"| {' | '.join(cells)} |"

    lines = [f"## {escape_markdown(table.title)}", ""]
    if table.note:
        lines += [escape_markdown(table.note), ""]
    lines.append(line([escape_markdown(column.heading) for column in table.columns]))
    lines.append(line(["---" if column.text else "---:" for column in table.columns]))
    for section in table.sections:
        if section.heading:
            lines.append(line([f"**{escape_markdown(section.heading)}**"] + [""] * (len(table.columns) - 1)))
        lines += [line(list(map(escape_markdown, row))) for row in section.rows]
    for number, remark in enumerate(table.footnotes, start=1):
        lines += ["", f"({number}) {escape_markdown(remark)}"]
    return "\n".join(lines) + "\n"


# --- HTML --------------------------------------------------------------------------------------------------------


def escape_html(text: str) -> str:
    """`text` for an HTML body or attribute; characters that HTML forbids become U+FFFD."""
    return html.escape(re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]", "\ufffd", _encodable(text)))


def to_html(table: Table, label: str) -> str:
    """The note, the table in a box that scrolls sideways, its footnotes. label: id of the heading that names it."""
    head = "".join(f'<th scope="col"{_kind(column)}>{_cell(column.heading)}</th>' for column in table.columns)
    body = []
    for section in table.sections:
        rows = []
        if section.heading:
            heading = breakable(section.heading)
            rows.append(f'<tr class="section"><th scope="rowgroup" colspan="{len(table.columns)}">{heading}</th></tr>')
        for first, *cells in section.rows:
            numbers = "".join(
                f"<td{_kind(column)}>{_cell(cell)}</td>" for column, cell in zip(table.columns[1:], cells, strict=True)
            )
            rows.append(f'<tr><th scope="row"{_kind(table.columns[0])}>{_cell(first)}</th>{numbers}</tr>')
        body.append("<tbody>" + "\n".join(rows) + "</tbody>")
    remarks = "".join(
        f"<p class=note>({number}) {escape_html(text)}</p>\n" for number, text in enumerate(table.footnotes, start=1)
    )
    note = f"<p class=note>{escape_html(table.note)}</p>\n" if table.note else ""
    return (
        f'{note}<div class=scroll role=region aria-labelledby="{label}" tabindex=0>'
        f'<table aria-labelledby="{label}"><thead><tr>{head}</tr></thead>\n'
        + "\n".join(body)
        + f"</table></div>\n{remarks}"
    )


def breakable(text: str) -> str:
    """Escaped, with a chance to break the line after each underscore."""
    return escape_html(text).replace("_", "_<wbr>")


def _kind(column: Column) -> str:
    return " class=text" if column.text else ""


def _cell(text: str) -> str:
    first, *rest = text.split("\n")
    return breakable(first) + "".join(f"<br><small>{breakable(line)}</small>" for line in rest)


def _encodable(text: str) -> str:
    """A lone surrogate, which a JSON file can hold, has no UTF-8."""
    return text.encode("utf-8", "replace").decode("utf-8")
