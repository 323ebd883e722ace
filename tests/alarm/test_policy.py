"""The trainer that both tasks build."""

from __future__ import annotations

import argparse

import pytest

from alarm.errors import UserError
from alarm.policy import build_trainer


def test_data_smaller_than_a_batch_is_refused_before_a_model_loads(tmp_path):
    args = argparse.Namespace(
        seed=0, lr=1e-5, batch_size=8, mini_batch_size=4, gradient_accumulation_steps=2, n_ppo_epoch_per_rollout=4,
        kl_threshold=1.0, test=False, report_to="none", run_name="run", save_dir=str(tmp_path), dtype="float32",
    )  # fmt: skip
    with pytest.raises(UserError, match="7 examples, fewer than one batch of 8"):
        build_trainer(args, str(tmp_path / "no such model"), None, [None] * 7)
