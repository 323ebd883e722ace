"""Equal inputs are scored once: in a batch of other texts the last bits of a score are others."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import TypeVar

Row = TypeVar("Row", bound=Hashable)


def distinct(rows: Iterable[Row]) -> tuple[list[Row], list[int]]:
    """The different ones of N rows, in the order of their first occurrence, and the index of each of the N among them.

    rows[i] == found[places[i]] for every i.
    """
    index: dict[Row, int] = {}
    places = [index.setdefault(row, len(index)) for row in rows]
    return list(index), places
