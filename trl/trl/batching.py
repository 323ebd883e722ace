"""Which responses go through the model together, so that little is computed for padding."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

RESPONSE_COST = 2  # of a response token, in query tokens: it reads the query too, and gets logits
PASS_COST = 512 * 128**2  # of one more pass, in query tokens times the square of the hidden size (measured on a CPU)
MOST_PARTS = 8


def alike(
    rows: Sequence[int], queries: Sequence[Tensor], responses: Sequence[Tensor], hidden_size: int, share: bool
) -> list[list[int]]:
    """`rows` in parts of similar length: the cheapest of up to MOST_PARTS equal parts, by query or by response.

    queries, responses: ids of all rows, of which `rows` are places. share: a pass reads equal queries once.
    """
    lengths = {row: (len(queries[row]), len(responses[row])) for row in rows}
    # equal queries have one name; without sharing each row has its own
    names = {row: tuple(queries[row].tolist()) if share else (row,) for row in rows}
    by_query = sorted(rows, key=lambda row: (lengths[row][0], names[row]))
    by_response = sorted(rows, key=lambda row: lengths[row][::-1])

    def cost(part: Sequence[int]) -> float:
        query, response = (max(lengths[row][k] for row in part) for k in (0, 1))
        read = len({names[row] for row in part}) if share else len(part)
        return PASS_COST / hidden_size**2 + read * query + RESPONSE_COST * len(part) * response

    candidates = [[list(rows)]]
    for count in range(2, min(MOST_PARTS, len(rows)) + 1):
        cuts = [len(rows) * k // count for k in range(count + 1)]
        for order in (by_query, by_response):
            candidates.append([order[start:end] for start, end in itertools.pairwise(cuts)])
    return min(candidates, key=lambda parts: sum(map(cost, parts)))


def different_queries(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """ids (B, Q) and mask (B, Q) -> those of the U different rows, (U, Q) each, and which of them a row has, (B,)."""
    both, row_of = torch.unique(torch.stack([ids, mask.to(ids)]), dim=1, return_inverse=True)
    return both[0], both[1], row_of
