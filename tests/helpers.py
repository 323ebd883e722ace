"""What several test modules use."""

from __future__ import annotations

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parents[1]
FIXTURES = Path(__file__).parent / "fixtures"
CHECKPOINTS = FIXTURES / "golden" / "checkpoints"


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
