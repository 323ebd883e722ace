"""What several test modules use."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FIXTURES = Path(__file__).parent / "fixtures"
CHECKPOINTS = FIXTURES / "golden" / "checkpoints"
_FULL = ROOT.parent / "shared" / "golden"
# the folders of golden numbers: the part in the repository, and the whole set where it lies beside it
GOLDEN = [
    pytest.param(FIXTURES / "golden", id="fixture"),
    pytest.param(
        _FULL, id="full", marks=pytest.mark.skipif(not _FULL.is_dir(), reason="the full golden set is not here")
    ),
]


def load_script(path: str):
    """Import a script of a folder whose name is no package, without running its main()."""
    file = ROOT / path
    spec = importlib.util.spec_from_file_location(file.stem + "_script", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def forget_accelerate() -> None:
    """accelerate keeps its state in class attributes: a second run in one process starts from none."""
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
