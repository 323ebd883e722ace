"""Run by test_sharding.py in two processes of each kind of launch: the same training, whatever holds the weights."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import torch
from peft import LoraConfig
from safetensors.torch import save_file
from transformers import AutoConfig

from trl import AutoModelForCausalLMWithValueHead, AutoModelForSeq2SeqLMWithValueHead, PPOConfig, PPOTrainer
from trl.generation import GREEDY

SAMPLES = 8


def batch(step: int, share: slice) -> tuple[list, list, list]:
    g = torch.Generator().manual_seed(step)
    # process 0 gets the short responses, process 1 the long ones
    lengths = [1, 2, 3, 2, 9, 7, 8, 6]
    queries = [torch.randint(3, 48, (length % 5 + 1,), generator=g) for length in lengths]
    queries[5] = queries[4].clone()  # of process 1 alone
    responses = [torch.randint(3, 48, (length,), generator=g) for length in lengths]
    scores = [torch.randn(length, generator=g) for length in lengths]
    return queries[share], responses[share], scores[share]


def numbers(stats: dict) -> dict[str, float]:
    """Those over all processes."""
    return {name: x for name, x in stats.items() if isinstance(x, float) and not name.startswith("time/")}


def train(model: str, adapter: str, dtype: str, out: Path) -> None:
    """adapter: none (all weights train), fresh, or the folder of a trained one."""
    torch.manual_seed(0)
    both = AutoConfig.from_pretrained(model).is_encoder_decoder
    kind = AutoModelForSeq2SeqLMWithValueHead if both else AutoModelForCausalLMWithValueHead
    lora = LoraConfig(r=4, lora_alpha=8, task_type="SEQ_2_SEQ_LM" if both else "CAUSAL_LM")
    trained = adapter not in ("none", "fresh")
    fresh = {"peft_config": lora if adapter == "fresh" else None, "dtype": getattr(torch, dtype)}
    policy = kind.from_pretrained(adapter if trained else model, **fresh)
    optimizer = torch.optim.SGD([p for p in policy.parameters() if p.requires_grad], lr=0.3, momentum=0.9)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.8**step)
    config = PPOConfig(
        log_with="none", batch_size=SAMPLES // 2, mini_batch_size=2, gradient_accumulation_steps=2, ppo_epochs=4,
        early_stopping=True, target_kl=0.002, max_grad_norm=0.5,
    )  # fmt: skip
    trainer = PPOTrainer(config, policy, optimizer=optimizer, lr_scheduler=schedule)
    accelerator, main_process = trainer.accelerator, trainer.accelerator.is_main_process
    rank = accelerator.process_index
    mine = slice(rank * SAMPLES // 2, (rank + 1) * SAMPLES // 2)
    results = {"stats": [], "texts": []}

    def answer() -> None:
        queries = batch(0, mine)[0]
        found = []
        with trainer.whole_weights():
            # lengths and numbers of calls differ between processes
            for query in queries[: 2 + rank]:
                limits = {"max_new_tokens": 4 + 5 * rank, "synced_gpus": False}
                found += trainer.generate([query], **GREEDY, **limits)
                found += trainer.generate([query], do_sample=True, top_k=0, **limits)
        own, reference = trainer.generate(
            queries, generate_ref_response=True, max_new_tokens=6, synced_gpus=False, **GREEDY
        )
        results["texts"].append([ids.tolist() for ids in (*found, *own, *reference)])

    def learn(step: int, **changes) -> dict[str, float]:
        queries, responses, scores = batch(step, mine)
        for name, value in changes.items():
            setattr(trainer.config, name, value)
        return numbers(trainer.step(queries, responses, scores))

    start = weights_of(trainer)
    answer()
    results["stats"].append(learn(0))
    results["stats"].append(learn(1, early_stopping=False, ppo_epochs=1))
    # 1. no update, at different places, leaves nothing behind
    results["stats"].append(learn(2, ratio_threshold=1e-6))
    results["stats"].append(learn(3, ratio_threshold=10.0))
    answer()

    # 2. what each process holds
    whole = weights_of(trainer)
    results["size"] = sum(x.numel() for x in whole.values())
    results["trainable"] = sum(whole[name].numel() for name, p in trainer.policy.named_parameters() if p.requires_grad)
    results["held"] = sum(own(p).numel() for p in trainer.model.parameters())
    state = trainer.optimizer.state
    results["momentum"] = sum(own(x).numel() for kept in state.values() for x in kept.values() if hasattr(x, "numel"))

    # 3. what is saved
    trainer.save_pretrained(out / "policy")
    trainer.save_state(out / "state")
    after = [learn(4), learn(5)]
    weights = weights_of(trainer)
    trainer.load_state(out / "state")
    again = [learn(4), learn(5)]
    results["stats"] += after
    results["resumed_alike"] = after == again
    other = weights_of(trainer)
    results["resumed_weights"] = max(float((weights[name] - other[name]).abs().max()) for name in weights)
    results["moved"] = max(float((weights[name] - start[name]).abs().max()) for name in weights)
    answer()

    # 4. what is refused
    changed = out / "changed"
    if main_process:
        shutil.copytree(out / "state", changed)
    refused = []
    written = json.loads((out / "state" / "trainer_state.json").read_text())
    results["sharding"] = written["sharding"]
    for change in ({"sharding": "other"}, {"weights": {"v_head.summary.bias": [7]}}, {}):
        if main_process:
            (changed / "trainer_state.json").write_text(json.dumps(written | change))
            if not change:
                large = max((changed / name for name in written["sha256"]), key=lambda path: path.stat().st_size)
                large.write_bytes(large.read_bytes()[:-1])
        accelerator.wait_for_everyone()
        try:
            trainer.load_state(changed)
        except ValueError as error:
            refused.append(f"{type(error).__name__}: {error}")
        accelerator.wait_for_everyone()
    results["refused"] = refused
    everyone = [None, None]
    torch.distributed.all_gather_object(everyone, results["texts"])
    results["texts"] = everyone
    if main_process:
        save_file(weights, out / "weights.safetensors")
        (out / "results.json").write_text(json.dumps(results))
    accelerator.wait_for_everyone()


def own(x: torch.Tensor) -> torch.Tensor:
    """The part of a tensor that lies on this process."""
    return x.to_local() if hasattr(x, "to_local") else x


def weights_of(trainer: PPOTrainer) -> dict[str, torch.Tensor]:
    with trainer.whole_weights():
        return {name: p.detach().clone().contiguous() for name, p in trainer.policy.named_parameters()}


def main(out: str, *cases: str) -> None:
    """cases: a name, a model folder, an adapter and a type each."""
    torch.set_num_threads(1)
    for k in range(0, len(cases), 4):
        name, model, adapter, dtype = cases[k : k + 4]
        (Path(out) / name).mkdir(parents=True, exist_ok=True)
        train(model, adapter, dtype, Path(out) / name)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
