"""Several processes do one thing: what one of them meets, all of them know."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor

from ..common.errors import ServiceError, UserError

if TYPE_CHECKING:
    from accelerate import Accelerator, PartialState


def on_main(accelerator: Accelerator | PartialState, make: Callable[[], Any]) -> Any:
    """What `make` returns on the main process, on every process. A UserError of it is raised on every process."""
    found: list = [None, None]
    if accelerator.is_main_process:
        try:
            found[0] = make()
        except UserError as error:
            found[1] = error
    found = broadcast_object_list(found)
    if found[1] is not None:
        raise found[1]
    return found[0]


def gather_rows(accelerator: Accelerator) -> Callable[[Tensor], tuple[Tensor, int]]:
    """A function: rows of this process -> rows of all processes in their order, and this one's first index."""

    def gather(rows: Tensor) -> tuple[Tensor, int]:
        if accelerator.num_processes == 1:
            return rows, 0
        tables = gather_object([rows.cpu()])
        return torch.cat(tables), sum(len(table) for table in tables[: accelerator.process_index])

    return gather


@contextmanager
def failing_together(accelerator: Accelerator | PartialState) -> Iterator[None]:
    """Where a service fails one process inside the block, all processes leave it with a ServiceError."""
    error = None
    try:
        yield
    except ServiceError as failure:
        error = failure
    messages = gather_object([str(error)] if error else [])
    if messages:
        raise error or ServiceError(messages[0])
