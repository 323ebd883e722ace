"""Run by test_ppo_processes.py in one process and in two: all weights of models that do not use each of them."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from trl import AutoModelForSeq2SeqLMWithValueHead, PPOConfig, PPOTrainer

SAMPLES = 4


def main(out: str, *names: str) -> None:
    """The models are the folders `names` of `out`."""
    processes = int(os.environ.get("WORLD_SIZE", 1))
    share = SAMPLES // processes
    for name in names:
        torch.manual_seed(0)
        policy = AutoModelForSeq2SeqLMWithValueHead.from_pretrained(Path(out) / name)
        before = {weight: p.detach().clone() for weight, p in policy.named_parameters()}
        config = PPOConfig(
            batch_size=share, mini_batch_size=share // 2 or 1, gradient_accumulation_steps=min(share, 2), ppo_epochs=2
        )
        trainer = PPOTrainer(config, policy, optimizer=torch.optim.SGD(policy.parameters(), lr=0.1))
        assert trainer.accelerator.num_processes == processes
        mine = slice(trainer.accelerator.process_index * share, (trainer.accelerator.process_index + 1) * share)
        g = torch.Generator().manual_seed(0)
        for _ in range(2):
            queries = [torch.randint(3, 40, (length,), generator=g) for length in (6, 2, 4, 1)]
            responses = [torch.randint(3, 40, (length,), generator=g) for length in (1, 2, 5, 4)]
            scores = [torch.randn(len(ids), generator=g) for ids in responses]
            stats = trainer.step(queries[mine], responses[mine], scores[mine])
        weights = {weight: p.detach().contiguous() for weight, p in trainer.policy.named_parameters()}
        if trainer.accelerator.is_main_process:
            save_file(weights, Path(out) / f"{name}-{processes}.safetensors")
            numbers = {key: v for key, v in stats.items() if isinstance(v, float) and not key.startswith("time/")}
            moved = [weight for weight, tensor in weights.items() if not torch.equal(tensor, before[weight])]
            results = {"stats": numbers, "moved": moved, "still": sorted(weights.keys() - set(moved))}
            (Path(out) / f"{name}-{processes}.json").write_text(json.dumps(results))
    trainer.accelerator.end_training()


if __name__ == "__main__":
    main(*sys.argv[1:])
