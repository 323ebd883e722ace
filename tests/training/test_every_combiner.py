"""PPO with every combiner: it trains, and a run that was stopped goes on as if it had not been."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from alarm import train_ppo
from alarm.combiners import ALONE, COMBINERS
from helpers import FIXTURES, ROOT, forget_accelerate

DATA = ROOT / "examples" / "data"


def train(run, reward_type: str, steps: int) -> list[dict]:
    flags = {
        "task": ROOT / "examples" / "headlines.py", "policy_ckpt": FIXTURES / "golden" / "checkpoints" / "tiny-t5",
        "train_file": DATA / "train.json", "dev_file": DATA / "dev.json", "dtype": "float32", "report_to": "none",
        "batch_size": 4, "mini_batch_size": 2, "samples_per_prompt": 2, "eval_interval": 2, "checkpoint_interval": 1,
        "w_brevity": 1, "w_shouting": 0.5, "reward_type": reward_type, "targets": "brevity=0.5", "max_steps": steps,
        "multiplier_lr": 5, "save_dir": run,
    }  # fmt: skip
    train_ppo.main([*(word for name, value in flags.items() for word in (f"--{name}", str(value))), "--resume"])
    forget_accelerate()
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row["train"].items() if "time/" not in k} for row in rows if "train" in row]


@pytest.mark.parametrize("reward_type", COMBINERS)
def test_trains_and_resumes_bit_for_bit(tmp_path, fresh_accelerate, capfd, reward_type):
    whole = train(tmp_path / "whole", reward_type, 3)
    replaced = ALONE.get(reward_type)
    assert replaced is None or f"paid as {replaced}" in capfd.readouterr().out
    train(tmp_path / "parts", reward_type, 1)
    parts = train(tmp_path / "parts", reward_type, 3)
    assert parts == whole and len(whole) == 3 and all(row["skipped"] == 0 for row in whole)
    for file in ("adapter_model.safetensors", "v_head.safetensors"):
        ours, theirs = (load_file(tmp_path / name / "policy" / file) for name in ("whole", "parts"))
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    if reward_type == "lagrangian":
        moved = [row["multiplier/brevity"] for row in whole]
        assert moved[0] == 0 and len(set(moved)) == 3
        state = json.loads((tmp_path / "whole" / "checkpoints" / "3" / "loop.json").read_text())
        assert state["multipliers"].keys() == {"brevity", "shouting"}
