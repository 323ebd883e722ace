from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

PATH = Path(__file__).parent.parent.parent / "benchmarks" / "token_alignment.py"


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("token_alignment", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_simulated_misalignment(benchmark):
    short, full = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 2.0, 3.0, 4.0])
    # one column late, the last reward lost; the longest response of a batch is untouched
    assert [r.tolist() for r in benchmark.right_align([short, full], 4)] == [[0, 1, 2], [1, 2, 3, 4]]
    assert [r.tolist() for r in benchmark.right_align([torch.ones(2)], 4)] == [[0, 0]]


def test_ppo_learns_and_alignment_matters(benchmark):
    """From a chance of 1/64 to 90% of the tokens, and much later with the rewards out of place."""
    aligned = benchmark.train("own token", steps=60, seed=0, stop_at=0.9)
    assert aligned[0] < 0.05
    assert aligned[-1] > 0.9
    shifted = benchmark.train("right-aligned", steps=len(aligned), seed=0)
    assert max(shifted) < 0.5
