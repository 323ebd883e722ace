"""What commands print on the terminal: tables, and counts at the end of a run."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from accelerate import Accelerator
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


def plain_table(title: str, headings: Sequence[str], rows: Iterable[Sequence[str]], note: str = "") -> Table:
    """A table whose first column is text and whose other columns are numbers."""
    first, *others = headings
    columns = (Column(first, text=True), *map(Column, others))
    return Table(title, note, columns, (Section(tuple(map(tuple, rows))),))


# --- printing --------------------------------------------------------------------------------------------------------


def screen() -> Console:
    """The terminal, or 100 columns if there is none to measure; a name that it cannot show gets question marks."""
    from rich.console import Console

    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")
    # names and answers are text, never markup
    return Console(width=None if sys.stdout.isatty() else 100, markup=False, emoji=False, highlight=False)


def print_table(table: Table, console: Console | None = None) -> None:
    """Print `table` with nothing cut: text folds, and columns of numbers that do not fit go into further blocks."""
    from rich.text import Text

    console = console or screen()
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


# --- the end of a run ------------------------------------------------------------------------------------------------


def say_counts(counts: dict[str, int], accelerator: Accelerator | None = None) -> None:
    """Print the counts that are not zero, one a line; with an accelerator, first summed over all processes."""
    if accelerator is not None:
        import torch

        local = torch.tensor(list(counts.values()), device=accelerator.device)
        counts = dict(zip(counts, accelerator.reduce(local, reduction="sum").tolist(), strict=True))
    if accelerator is None or accelerator.is_main_process:
        for what, count in counts.items():
            if count:
                print(f"{what}: {count}")


def show(title: str, columns: dict[str, dict[str, float]]) -> None:
    """Print a table: a row a metric, a column a key of `columns`."""
    metrics = dict.fromkeys(name for column in columns.values() for name in column)
    rows = [
        (metric, *("" if column.get(metric) is None else f"{column[metric]:.4f}" for column in columns.values()))
        for metric in metrics
    ]
    headings = [Column("metric", text=True), *(Column(name, name=True) for name in columns)]
    print_table(Table(title, "", tuple(headings), (Section(tuple(rows)),)))


def cut_inputs(model: str) -> str:
    """The line that counts inputs which were too long for a reward model."""
    return f"inputs cut to what the {model} reward model takes"
