"""A world small enough to train in seconds: random tiny models, a few real prompts cut short."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from alarm.training.calibrate import main as calibrate
from helpers import CHECKPOINTS, FIXTURES, ROOT, forget_accelerate, load_script


@dataclass(frozen=True)
class World:
    folder: Path
    flags: list[str]  # every flag that points at the tiny models and data

    def rows(self, name: str) -> list[dict]:
        return json.loads((self.folder / f"{name}.json").read_text())


def value_of(flags: list[str], name: str) -> str:
    return flags[flags.index(f"--{name}") + 1]


def make_world(folder: Path) -> World:
    shutil.copytree(FIXTURES / "golden" / "checkpoints" / "tiny-t5", folder / "policy")
    for name in ("rel_rm", "fact_rm", "comp_rm"):
        shutil.copytree(CHECKPOINTS / f"tiny-{name}", folder / "reward_models" / name)
    shutil.copytree(CHECKPOINTS / "tiny-ultrarm", folder / "holistic")
    rows = json.loads((ROOT / "quickstart" / "data" / "qa" / "test.json").read_text())
    for row in rows:
        row["text"] = row["text"][:160]
    for name, part in {"train": rows[:8], "dev": rows[8:12], "test": rows[12:22]}.items():
        (folder / f"{name}.json").write_text(json.dumps(part))
    values = {
        "policy_ckpt": "policy",
        "reward_model_dir": "reward_models",
        "holistic_model": "holistic",
        "train_file": "train.json",
        "dev_file": "dev.json",
        "test_file": "test.json",
    }
    flags = [word for flag, value in values.items() for word in (f"--{flag}", str(folder / value))]
    flags += ["--splitter", "sentencizer", "--dtype", "float32", "--report_to", "none", "--max_generated_len", "12"]
    flags += ["--batch_size", "4", "--mini_batch_size", "2", "--gradient_accumulation_steps", "1"]
    # the random holistic model's scores, so that some answers pass the gate and some do not
    flags += ["--ultra_mean", "0", "--ultra_std", "1", "--hierarchical_threshold", "0"]
    return World(folder, flags)


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def sample_flags(world) -> list[str]:
    """Flags of alarm.calibrate for the world's models and 24 prompts."""
    rows = json.loads((ROOT / "quickstart" / "data" / "qa" / "train.json").read_text())[:24]
    prompts = world.folder / "prompts.json"
    prompts.write_text(json.dumps([row | {"text": row["text"][:160]} for row in rows]))
    shared = ("policy_ckpt", "holistic_model", "reward_model_dir", "splitter", "dtype", "max_generated_len")
    flags = [word for name in shared for word in (f"--{name}", value_of(world.flags, name))]
    return [*flags, "--task", "qa", "--prompts", str(prompts), "--batch_size", "8"]


@pytest.fixture(scope="session")
def calibration(sample_flags, world) -> Path:
    path = world.folder / "calibration.json"
    calibrate([*sample_flags, "--save_path", str(path)])
    forget_accelerate()
    return path


@pytest.fixture
def train_ppo(fresh_accelerate):
    """main() of long-form-QA/train_ppo.py."""
    return load_script("long-form-QA/train_ppo.py").main
