"""What a stage costs: seconds, memory, the operations and bytes of its matrix products; and what a device can do."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, flop_registry, sdpa_flop_count, shape_wrapper


def seconds(device: str) -> float:
    """CPU seconds of this process; on a GPU seconds by the clock once all that was asked for is done."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


class Peak:
    """MiB of the process at its highest since `start`; on a GPU of what torch allocated. None if it is not known."""

    def __init__(self, on_gpu: bool) -> None:
        self.on_gpu = on_gpu

    def _kib(self, key: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(key))

    def start(self) -> None:
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated() / 2**20
            return
        try:
            Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
            self.before = self._kib("VmRSS") / 2**10
        except OSError:
            self.before = None

    def highest(self) -> float | None:
        if self.before is None:
            return None
        return torch.cuda.max_memory_allocated() / 2**20 if self.on_gpu else self._kib("VmHWM") / 2**10

    def added(self) -> float | None:
        highest = self.highest()
        return None if highest is None else highest - self.before


def summary(runs: list[dict]) -> dict:
    """Runs {"seconds", "MiB"} -> the median, least and most of their seconds, and the most memory."""
    times = sorted(run["seconds"] for run in runs)
    memory = [run["MiB"] for run in runs]
    return {
        "seconds": statistics.median(times),
        "least": times[0],
        "most": times[-1],
        "MiB": None if None in memory else max(memory),
    }


def best_of(action: Callable[[], Any], device: str, tries: int = 5) -> float:
    """The fewest seconds that `action` took."""
    best = float("inf")
    for _ in range(tries):
        started = seconds(device)
        action()
        best = min(best, seconds(device) - started)
    return best


def matrix_rate(device: str, dtype: torch.dtype, size: int) -> float:
    """Operations a second of the product of two matrices (size, size), the best of five."""
    x = torch.randn(size, size, device=device, dtype=dtype)

    def multiply() -> None:
        for _ in range(4):
            x @ x

    return 4 * 2 * size**3 / best_of(multiply, device)


def bandwidth(device: str, size: int) -> float:
    """Bytes a second that a copy of `size` bytes reads and writes, the best of five."""
    x = torch.zeros(size, dtype=torch.uint8, device=device)
    y = torch.empty_like(x)
    return 2 * size / best_of(lambda: y.copy_(x), device)


def tensor_bytes(tree: Any) -> int:
    """Bytes of the tensors in a tree of tuples, lists and dicts; what an expanded one repeats counts once."""
    found = (x for x in torch.utils._pytree.tree_leaves(tree) if isinstance(x, torch.Tensor))
    return sum(min(x.numel() * x.element_size(), x.untyped_storage().nbytes()) for x in found)


def fused_attention() -> dict:
    """Formulas for torch's fused attention on a CPU, for which it has none: those of its attention on a GPU."""

    @shape_wrapper
    def forward(query, key, value, *_, out_shape=None, **__) -> int:
        return sdpa_flop_count(query, key, value)

    @shape_wrapper
    def backward(gradient, query, key, value, *_, out_shape=None, **__) -> int:
        return sdpa_flop_count(query, key, value) * 5 // 2  # the scores again, and four products more

    aten = torch.ops.aten
    return {
        aten._scaled_dot_product_flash_attention_for_cpu: forward,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: backward,
    }


def count_products(action: Callable[[], Any]) -> tuple[int, int, Any]:
    """Operations of the matrix products and fused attentions of `action`, bytes that they read and write, its result.

    A backward pass inside counts too.
    """
    moved = 0

    def counted(formula: Callable) -> Callable:
        def operations(*args: Any, out_val: Any = None, **kwargs: Any) -> int:
            nonlocal moved
            moved += tensor_bytes((args, kwargs, out_val))
            return formula(*args, out_val=out_val, **kwargs)

        operations._get_raw = True  # of tensors, not of shapes
        return operations

    formulas = flop_registry | fused_attention()
    counter = FlopCounterMode(
        display=False, custom_mapping={product: counted(formula) for product, formula in formulas.items()}
    )
    with counter:
        result = action()
    return counter.get_total_flops(), moved, result
