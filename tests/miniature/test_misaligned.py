"""The control of the published misalignment: training gets the rewards that the published code paid."""

from __future__ import annotations

import torch

import trl
from miniature.misaligned import MisalignedTrainer


def test_training_gets_the_rewards_late(monkeypatch):
    monkeypatch.setattr(trl.PPOTrainer, "step", lambda self, queries, responses, scores: scores)
    trainer = object.__new__(MisalignedTrainer)
    rewards = [torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([1.0, 2.0, 3.0])]
    assert [paid.tolist() for paid in trainer.step([], [], rewards)] == [[1, 2, 3, 4], [0, 1, 2]]
