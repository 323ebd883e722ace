"""A table as data, and its three renderings: terminal, Markdown, HTML. Every text is plain: the renderers escape it."""

from __future__ import annotations

import html
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

TEXT_WIDTH = 28  # terminal columns that a text is given before a table counts as too wide
MOST_TEXT_WIDTH, LEAST_TEXT_WIDTH = 56, 14  # where there is room, and before numbers go into a second block
GAP = 3  # between two terminal columns


@dataclass(frozen=True)
class Column:
    heading: str
    text: bool = False  # left-aligned, may fold; a column of numbers is right-aligned and stays whole
    name: bool = False  # the heading is the name of a run: the terminal does not break it into lines

    @property
    def lines(self) -> list[str]:
        """The heading as the terminal shows it: a metric's name takes a line for each of its words."""
        return [self.heading] if self.name or self.text else re.split(r"[_\s]", self.heading)


@dataclass(frozen=True)
class Section:
    """Rows of one text per column. A cell may hold several lines; those after the first say less."""

    rows: tuple[tuple[str, ...], ...]
    heading: str = ""


@dataclass(frozen=True)
class Table:
    title: str
    note: str  # what each number is
    columns: tuple[Column, ...]  # the first names the row
    sections: tuple[Section, ...]
    footnotes: tuple[str, ...] = ()  # footnote i is marked (i + 1) in the cells


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


# --- terminal ----------------------------------------------------------------------------------------------------


def print_table(table: Table, console: Console) -> None:
    """Print `table` with nothing cut: text folds, and columns of numbers that do not fit go into further blocks."""
    from rich.text import Text

    console.print(Text(table.title, style="bold"))
    if table.note:
        console.print(Text(table.note))
    for block in _blocks(table, console.width):
        console.print(_rich_table(block))
    for number, remark in enumerate(table.footnotes, start=1):
        console.print(Text(f"({number}) {remark}"))
    if table.footnotes:
        console.print()


def fits(table: Table, width: int) -> bool:
    """Whether the terminal shows `table` in one block without narrowing a text below TEXT_WIDTH."""
    return _total(_widths(table)) <= width


def _widths(table: Table) -> list[int]:
    """Terminal columns that each column takes."""
    from rich.cells import cell_len

    widths = []
    for index, column in enumerate(table.columns):
        texts = [line for section in table.sections for row in section.rows for line in row[index].split("\n")]
        widest = max(map(cell_len, texts), default=0)
        if index == 0 and any(section.heading for section in table.sections):
            # rows are indented below their heading, which may fold between words
            words = [word for section in table.sections for word in section.heading.split()]
            widest = max(widest + 2, *map(cell_len, words))
        widths.append(max(min(widest, TEXT_WIDTH) if column.text else widest, *map(cell_len, column.lines)))
    return widths


def _total(widths: list[int]) -> int:
    return sum(widths) + GAP * (len(widths) - 1) + 2


def _blocks(table: Table, width: int) -> list[Table]:
    """The table, or several with the same first column, so that none is wider than `width`."""
    least = [
        min(wide, LEAST_TEXT_WIDTH) if column.text else wide
        for wide, column in zip(_widths(table), table.columns, strict=True)
    ]
    blocks = [[0]]
    for index in range(1, len(least)):
        if len(blocks[-1]) > 1 and _total([least[i] for i in [*blocks[-1], index]]) > width:
            blocks.append([0])
        blocks[-1].append(index)
    return [_pick(table, block) for block in blocks] if len(blocks) > 1 else [table]


def _pick(table: Table, indices: list[int]) -> Table:
    sections = tuple(
        replace(section, rows=tuple(tuple(row[index] for index in indices) for row in section.rows))
        for section in table.sections
    )
    return replace(table, columns=tuple(table.columns[index] for index in indices), sections=sections)


def _rich_table(table: Table):
    from rich import box
    from rich.padding import Padding
    from rich.table import Table as RichTable
    from rich.text import Text

    result = RichTable(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in table.columns:
        result.add_column(
            Text("\n".join(column.lines)),
            justify="left" if column.text else "right",
            overflow="fold",
            no_wrap=not column.text,
            max_width=MOST_TEXT_WIDTH if column.text else None,
        )
    for section in table.sections:
        if section.heading:
            result.add_row(Text(section.heading, style="bold"))
        for first, *cells in section.rows:
            result.add_row(Padding(Text(first), (0, 0, 0, 2 if section.heading else 0)), *map(Text, cells))
    return result


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
