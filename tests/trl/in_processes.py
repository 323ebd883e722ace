"""Run by test_ppo_processes.py in one process, in two and in four: the same union batch, the same settings."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from trl import AutoModelForSeq2SeqLMWithValueHead, PPOConfig, PPOTrainer
from trl.trainer import DamagedStateError

SAMPLES = 8


def main(model: str, out: str) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    policy = AutoModelForSeq2SeqLMWithValueHead.from_pretrained(model)
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.3)
    processes = int(__import__("os").environ.get("WORLD_SIZE", 1))
    share = SAMPLES // processes
    config = PPOConfig(
        log_with="none", batch_size=share, mini_batch_size=share // 2, gradient_accumulation_steps=2, ppo_epochs=6,
        early_stopping=True, target_kl=0.01, max_grad_norm=1.0, use_score_scaling=True, use_score_norm=True,
        whiten_rewards=True,
    )  # fmt: skip
    trainer = PPOTrainer(config, policy, optimizer=optimizer, dataset=list(range(19)), data_collator=list)
    assert trainer.accelerator.num_processes == processes
    rank = trainer.accelerator.process_index
    mine = slice(rank * share, (rank + 1) * share)
    start = {name: p.detach().clone() for name, p in trainer.policy.named_parameters()}

    results = {"processes": processes, "stats": [], "seen": []}
    for step in range(3):
        g = torch.Generator().manual_seed(step)
        # process 0 gets the short responses, process 1 the long ones: means of means would be wrong
        lengths = [1, 2, 3, 2, 9, 7, 8, 6]
        queries = [torch.randint(3, 500, (length % 5 + 1,), generator=g) for length in lengths]
        responses = [torch.randint(3, 500, (length,), generator=g) for length in lengths]
        scores = [torch.randn(length, generator=g) for length in lengths]
        if step == 2:
            scores[6][0] = math.nan  # on the last process alone: no process may move
            before = {name: p.detach().clone() for name, p in trainer.policy.named_parameters()}
        stats = trainer.step(queries[mine], responses[mine], scores[mine])
        # numbers over all processes; arrays are of this one
        numbers = {name: value for name, value in stats.items() if isinstance(value, float)}
        results["stats"].append({name: value for name, value in numbers.items() if not name.startswith("time/")})
    unmoved = all(torch.equal(before[name], p) for name, p in trainer.policy.named_parameters())
    results["unmoved_by_nan"] = unmoved
    results["moved"] = max(float((start[name] - p).abs().max()) for name, p in trainer.policy.named_parameters())

    for epoch in range(2):
        trainer.dataloader.batch_sampler.set_epoch(epoch)
        batches = trainer.accelerator.gather(torch.tensor(list(trainer.dataloader)))
        results["seen"].append(sorted(batches.flatten().tolist()))

    # what one process sampled, and its random state, come back to that process
    folder = Path(out) / f"state-{processes}"
    trainer.save_state(folder)
    draw = torch.rand(3)
    trainer.load_state(folder)
    restored = torch.equal(torch.rand(3), draw)
    draws = trainer.accelerator.gather(draw).view(processes, 3)
    restored = trainer.accelerator.gather(torch.tensor([int(restored)]))
    results["restored"] = bool(restored.all())
    results["different_draws"] = len({tuple(row.tolist()) for row in draws}) == processes
    trainer.save_pretrained(Path(out) / f"policy-{processes}")
    gathered = trainer.accelerator.gather(torch.cat([p.detach().flatten() for p in trainer.policy.parameters()])[None])
    results["processes_agree"] = bool((gathered == gathered[:1]).all())
    if trainer.accelerator.is_main_process:
        weights = {name: p.detach().contiguous() for name, p in trainer.policy.named_parameters()}
        save_file(weights, Path(out) / f"weights-{processes}.safetensors")
    # damage that the last process alone can see is refused by all: by its hash, and without hashes when it is loaded
    wait = trainer.accelerator.wait_for_everyone
    for hashes in (True, False):
        if rank == 0:
            path = folder / f"random_states_{processes - 1}.pkl"
            path.write_bytes(path.read_bytes()[:-50])
            if not hashes:
                (folder / "trainer_state.json").write_text(json.dumps({"num_processes": processes}))
        wait()
        try:
            trainer.load_state(folder)
            refused = 0
        except DamagedStateError:
            refused = 1
        results[f"refused, hashes: {hashes}"] = int(trainer.accelerator.reduce(torch.tensor(refused)))
    if rank == 0:
        (Path(out) / f"results-{processes}.json").write_text(json.dumps(results))
    trainer.accelerator.end_training()


if __name__ == "__main__":
    main(*sys.argv[1:])
