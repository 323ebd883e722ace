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


# --- aspects on a rollout, as training measures and shapes them ------------------------------------------------------


class Aspects:
    """The aspects of a task, loaded with the defaults of its train_ppo.py and these flags.

    Called with a rollout and names: name -> `.rewards` (B x (T_i,) float32, shaped and not weighed) and `.metrics`.
    """

    def __init__(self, task, tokenizer, names=None, **flags):
        from alarm.api import Settings
        from alarm.scoring import load_scorer
        from alarm.training import main

        words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
        args = main.parse_args(task, "", ["--save_dir", "unused", *words])
        self.names = tuple(aspect.name for aspect in task.aspects) if names is None else tuple(names)
        settings = Settings(args, tokenizer, "cpu", "float32")
        self.args, self.tokenizer = args, tokenizer
        self.scorer = load_scorer(task, self.names, settings, None)

    def __call__(self, rollout, names=None, shaped: bool = False) -> dict:
        from types import SimpleNamespace

        from alarm.rewards import aspect_rewards
        from alarm.scoring import measure

        measured = measure(rollout, self.scorer, self.names if names is None else names)
        return {
            name: SimpleNamespace(
                rewards=aspect_rewards(score, measured.lengths, "sigmoid" if shaped else "none"),
                metrics=score.metrics,
                raw=score.raw,
            )
            for name, score in measured.aspects.items()
        }
