"""A holistic model that is divided among the processes: each holds one N-th of the weights, and all score together.

For each layer of a batch the weights come together on every process, and go again (FSDP2, `torch.distributed.fsdp`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from ..common.launch import process_state
from .holistic import HolisticModel
from .load import padded_batches


class ShardedHolisticModel(HolisticModel):
    """A holistic model of which this process holds a part. Every process calls `score_rows` equally often."""

    @classmethod
    def load(
        cls,
        name_or_path: str | Path,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | str = torch.float32,
    ) -> ShardedHolisticModel:
        """As `HolisticModel.load`. The processes load one after the other, so that one whole copy exists at a time.

        That copy is in the memory of the host; `device` gets the parts.
        """
        state = process_state()
        for rank in range(state.num_processes):
            if rank == state.process_index:
                found = super().load(name_or_path, "cpu", dtype)
                divide(found.model, torch.device(device))
            state.wait_for_everyone()
        return found

    @torch.inference_mode()
    def score_rows(self, rows: Sequence[Sequence[int]], batch_size: int) -> Tensor:
        scores = torch.zeros(len(rows))
        device = self.model.device
        batches = list(padded_batches(rows, self.pad_id, batch_size, device))
        most = torch.tensor(len(batches), device=device)
        dist.all_reduce(most, dist.ReduceOp.MAX)
        # a pass that another process needs, and this one has nothing for
        filler = torch.full((1, 1), self.pad_id, dtype=torch.long, device=device)
        for number in range(int(most)):
            if number < len(batches):
                indices, ids, mask = batches[number]
                scores[indices] = self.score_batch(ids, mask)
            else:
                self.score_batch(filler, torch.ones_like(filler))
        return scores

    def held(self) -> tuple[int, int]:
        """Bytes of weights on this process, and of the whole model."""
        parts = [(weight.to_local(), weight) for weight in self.model.parameters()]
        here, all_ = (sum(part.numel() * part.element_size() for part in side) for side in zip(*parts, strict=True))
        return here, all_


def divide(model: nn.Module, device: torch.device) -> None:
    """Leave this process its part of each weight of a model, on `device`. Every process has the same model, or will."""
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for layer in layers_of(model):
        fully_shard(layer, mesh=mesh)
    # what no layer holds goes again too: embeddings are large
    fully_shard(model, mesh=mesh, reshard_after_forward=True)


def layers_of(model: nn.Module) -> Iterator[nn.Module]:
    """The parts of a model's outermost lists of modules: its layers."""
    for child in model.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        else:
            yield from layers_of(child)
