"""What all runs on a small world share: files, lengths, and the settings that dev prompts chose (TUNING.md of each)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .stages import ROOT

COMMON = {
    "no_lora": True,
    "dtype": "float32",
    "advantage": "rloo",
    "samples_per_prompt": 4,
    "batch_size": 128,
    "mini_batch_size": 64,
    "gradient_accumulation_steps": 1,
    "max_grad_norm": 1.0,
    "kl_control": "fixed",
    "holistic_baseline": "group",
    "holistic_level": 0.0,
    "ultra_mean": 0.0,
    "eval_interval": 0,
    "rm_max_batch_size": 64,
    "report_to": "none",
}


@dataclass(frozen=True)
class World:
    """One small world. A *built* world is the folder that `miniature.build` writes; the shipped one is in `shipped`."""

    name: str  # "mt", "qa"
    task: str  # its file, from the root of the repository
    ending: str  # of its data files: data/train.ENDING, dev, test
    steps: int  # of a PPO run
    ppo: Mapping[str, object]  # flags of train_ppo.py that every run on it has
    chosen: Mapping[str, Mapping[str, object]] = field(default_factory=dict)  # reward type -> its own flags

    @property
    def shipped(self) -> Path:
        """The built world of seed 0 that comes with the repository: start, holistic, rm, calibration, agreement."""
        return ROOT / "miniature" / "checkpoints" / self.name

    def flags(self, built: Path, data: Path) -> dict[str, object]:
        """Flags that name the files of a built world and of its data."""
        return {
            "task": self.task,
            "policy_ckpt": built / "start",
            "holistic_model": built / "holistic",
            "train_file": data / f"train.{self.ending}",
            "dev_file": data / f"dev.{self.ending}",
        } | ({"reward_model_dir": built / "rm"} if self.name == "qa" else {})


WORLDS = {
    "mt": World(
        "mt",
        "miniature/mt/task.py",
        "jsonl",
        26,
        COMMON
        | {
            "shaping": "sigmoid",
            "ultra_std": 0.3,
            "holistic_reward_weight": 3.0,
            "w_grammar": 0.3,
            "init_kl_coef": 0.05,
            "n_ppo_epoch_per_rollout": 2,
            "lr": 2e-4,
        },
    ),
    "qa": World(
        "qa",
        "miniature/qa/task.py",
        "json",
        30,
        COMMON
        | {
            "max_input_len": 128,
            "max_generated_len": 64,
            "splitter": "sentencizer",
            "shaping": "centred",
            "ultra_std": 0.23,
            "holistic_reward_weight": 0.3,
            "w_rel": 1.0,
            "w_fact": 1.0,
            "w_comp": 0.0,
            "init_kl_coef": 0.1,
            "n_ppo_epoch_per_rollout": 2,
            "batch_size": 64,
            "mini_batch_size": 32,
            "lr": 3e-4,
        },
    ),
}
