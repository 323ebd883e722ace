"""What a run prints at its end: counts, and a table of metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from accelerate import Accelerator


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


def show(title: str, columns: dict[str, dict[str, float | str | None]], rows: str = "metric") -> None:
    """Print a table: a row a metric (or what `rows` says), a column a key of `columns`. Texts stay as they are."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    table.add_column(rows, no_wrap=True)
    for name in columns:
        table.add_column(name, justify="right")
    metrics = dict.fromkeys(name for column in columns.values() for name in column)
    for metric in metrics:
        table.add_row(metric, *(_cell(column.get(metric)) for column in columns.values()))
    Console().print(table)


def _cell(value: float | str | None) -> str:
    return "" if value is None else value if isinstance(value, str) else f"{value:.4f}"


def cut_inputs(model: str) -> str:
    """The line that counts inputs which were too long for a reward model."""
    return f"inputs cut to what the {model} reward model takes"
