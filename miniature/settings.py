"""What all runs on a small world share: files, lengths, and the settings that dev prompts chose (TUNING.md of each)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
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
    "eval_interval": 0,
    "rm_max_batch_size": 64,
    "report_to": "none",
}


SCORING = (
    "task", "holistic_model", "calibration", "reward_model_dir", "dtype", "max_input_len", "max_generated_len",
    "splitter", "grammar_backend", "rm_max_batch_size", "holistic_baseline", "shaping", "placement",
)  # fmt: skip


@dataclass(frozen=True)
class World:
    """One small world. A *built* world is the folder that `miniature.build` writes; the shipped one is in `shipped`."""

    name: str  # "mt", "qa"
    task: str  # its file, from the root of the repository
    ending: str  # of its data files: data/train.ENDING, dev, test
    steps: int  # of a PPO run
    ppo: Mapping[str, object]  # flags of train_ppo.py that every run on it has
    weights: tuple[str, ...]  # flags of `ppo` that are the weights of the paid aspects
    controls: str | None = None  # task file with aspects that are the truth, noise, length, misplaced
    exact: str | None = None  # task file whose holistic reward is the true quality

    @property
    def shipped(self) -> Path:
        """The built world of seed 0 that comes with the repository: start, holistic, rm, calibration, agreement."""
        return ROOT / "miniature" / "checkpoints" / self.name

    @property
    def limit(self) -> int:
        """Tokens of the longest answer."""
        from alarm.tasks.find import find_task

        return self.ppo.get("max_generated_len") or find_task(str(ROOT / self.task)).max_generated_len

    def files(self, built: Path, data: Path | None = None) -> dict[str, object]:
        """Flags of train_ppo.py that name the files of a built world, and of its data if they lie elsewhere."""
        data = data or built / "data"
        return {
            "task": self.task,
            "policy_ckpt": built / "start",
            "holistic_model": built / "holistic",
            "calibration": built / "calibration.json",
            "train_file": data / f"train.{self.ending}",
            "dev_file": data / f"dev.{self.ending}",
        } | ({"reward_model_dir": built / "rm"} if self.name == "qa" else {})


def scoring(flags: Mapping[str, object]) -> dict[str, object]:
    """Of a run's flags, those that `--test` needs too, so that answers are scored as they were in training."""
    return {name: value for name, value in flags.items() if name in SCORING}


WORLDS = {
    "mt": World(
        "mt",
        "miniature/mt/task.py",
        "jsonl",
        26,
        COMMON
        | {
            "shaping": "sigmoid",
            "grammar_backend": "rules",
            "holistic_reward_weight": 1.0,
            "w_grammar": 1.0,
            "init_kl_coef": 0.1,
            "n_ppo_epoch_per_rollout": 2,
            "lr": 2e-4,
        },
        ("w_grammar",),
        "miniature/mt/task_controls.py",
        "miniature/mt/task_exact.py",
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
        ("w_rel", "w_fact"),
    ),
}
