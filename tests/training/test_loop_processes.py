"""The training loop on one, two and four processes: rewards, statistics, texts and weights are the same."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from processes import run_together


def read(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def without_times(row: dict) -> dict:
    return {name: value for name, value in row.items() if not name.startswith("time/")}


# statistics of the union batch: none, of each group, and multipliers that move with each step
@pytest.mark.slow
@pytest.mark.parametrize(
    ("reward_type", "advantage"), [("hierarchical", "gae"), ("decoupled", "rloo"), ("lagrangian", "grpo")]
)
def test_two_and_four_processes_do_what_one_does(tmp_path, reward_type, advantage):
    for processes in (1, 2, 4):
        words = (str(tmp_path / str(processes)), reward_type, advantage)
        ended = run_together(processes, "tests/training/loop_in_processes.py", *words)
        assert [one.code for one in ended] == [0] * processes, ended
    one = tmp_path / "1"
    answers, rows = read(one / "rollouts.jsonl"), read(one / "log.jsonl")
    lengths = [row["length"] for row in answers if row["split"] == "train"]
    assert len(lengths) == 3 * 8 and len({sum(lengths[i : i + 2]) for i in range(0, 24, 2)}) > 4
    assert sum(abs(row["train"]["policy_kl"]) > 1e-4 for row in rows if "train" in row) == 3
    for other in (tmp_path / "2", tmp_path / "4"):
        for mine, theirs in zip(answers, read(other / "rollouts.jsonl"), strict=True):
            assert mine["token_ids"] == theirs["token_ids"] and mine["generation"] == theirs["generation"]
            assert theirs["token_rewards"] == pytest.approx(mine["token_rewards"], abs=1e-6)
            if mine["kl"] is not None:
                assert theirs["kl"] == pytest.approx(mine["kl"], rel=1e-3, abs=5e-5)
        for mine, theirs in zip(rows, read(other / "log.jsonl"), strict=True):
            assert mine.keys() == theirs.keys() and mine["step"] == theirs["step"]
            for part in {"train", "dev"} & mine.keys():
                assert without_times(theirs[part]) == pytest.approx(without_times(mine[part]), abs=1e-5)
        for file in ("adapter_model.safetensors", "v_head.safetensors"):
            path = one / "policy" / file
            if file.startswith("v_head") and advantage != "gae":
                assert not path.exists()
                continue
            weights = load_file(other / "policy" / file)
            for name, weight in load_file(path).items():
                # six updates of Adam, 0.003 each: it makes a difference of rounding in a tiny gradient larger
                torch.testing.assert_close(weights[name], weight, atol=2e-4, rtol=0)
