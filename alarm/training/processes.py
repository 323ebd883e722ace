"""Several processes do one thing: what one of them meets, all of them know."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

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


def check_shared(accelerator: Accelerator, mark: Path) -> None:
    """Raise UserError on every process if the folder of `mark` is not the same for all of them.

    The main process makes the folder, and the file `mark` until the others have read it.
    """
    if accelerator.num_processes == 1:
        return

    def leave() -> str:
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.write_text(token := uuid4().hex)
        return token

    token, seen = on_main(accelerator, leave), None
    with suppress(FileNotFoundError):
        seen = mark.read_text()
    without = gather_object([] if seen == token else [f"rank {accelerator.process_index} on {socket.gethostname()}"])
    if accelerator.is_main_process:
        mark.unlink()
    if without:
        raise UserError(
            f"{mark.parent} is another folder for {', '.join(without)}; put it on a file system that all machines "
            "share, because each process writes its part of a checkpoint"
        )


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
