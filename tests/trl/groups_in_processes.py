"""Run by test_ppo_processes.py in one process, in two and in four: groups whose responses are on both."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from trl import AutoModelForSeq2SeqLMWithValueHead, PPOConfig, PPOTrainer

SAMPLES = 8


def main(model: str, out: str) -> None:
    torch.set_num_threads(1)
    for kind in ("rloo", "grpo"):
        policy = AutoModelForSeq2SeqLMWithValueHead.from_pretrained(model, value_head=False)
        optimizer = torch.optim.SGD(policy.parameters(), lr=0.3)
        processes = int(os.environ.get("WORLD_SIZE", 1))
        share = SAMPLES // processes
        config = PPOConfig(
            log_with="none", batch_size=share, mini_batch_size=share, ppo_epochs=2, max_grad_norm=1.0, advantage=kind
        )
        trainer = PPOTrainer(config, policy, optimizer=optimizer)
        rank = trainer.accelerator.process_index
        mine = slice(rank * share, (rank + 1) * share)
        g = torch.Generator().manual_seed(0)
        groups = ["a", "b", "b", "a"] * 2
        queries = [torch.tensor([3, 4 + ord(name)]) for name in groups]
        responses = [torch.randint(3, 500, (length,), generator=g) for length in (1, 2, 3, 2, 9, 7, 8, 6)]
        scores = [torch.randn(len(r), generator=g) for r in responses]
        stats = trainer.step(queries[mine], responses[mine], scores[mine], groups=groups[mine])
        # a group of one, which the last process alone has, is refused by all
        lonely = [*groups[:-1], "c"]
        try:
            trainer.step(queries[mine], responses[mine], scores[mine], groups=lonely[mine])
            refused = False
        except ValueError:
            refused = True
        assert trainer.accelerator.gather(torch.tensor([refused])).all()
        if trainer.accelerator.is_main_process:
            numbers = {n: v for n, v in stats.items() if isinstance(v, float) and not n.startswith("time/")}
            (Path(out) / f"{kind}-{processes}.json").write_text(json.dumps(numbers))
            weights = {name: p.detach().contiguous() for name, p in trainer.policy.named_parameters()}
            save_file(weights, Path(out) / f"{kind}-{processes}.safetensors")


if __name__ == "__main__":
    main(*sys.argv[1:])
