"""Sampled answers of a policy, scored: what preferences and agreement are made from."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator

from alarm.api import Settings, Task


def settings_for(task: Task, policy: str, flags: list[str] = ()) -> Namespace:
    """The parsed flags of train_ppo.py with this policy, in float32."""
    from alarm.training.main import parse_args

    return parse_args(task, "", ["--save_dir", "unused", "--policy_ckpt", policy, "--dtype", "float32", *flags])


def load_parts(task: Task, args: Namespace, aspects: list[str], holistic: bool):
    """-> the policy, its tokenizer, and what scores its answers."""
    import torch

    from alarm.scoring import holistic_of, load_scorer
    from alarm.training.policy import load_answering_policy, load_tokenizer

    tokenizer = load_tokenizer(args.policy_ckpt, args)
    settings = Settings(args, tokenizer, torch.device("cpu"), torch.float32)
    scorer = load_scorer(task, aspects, settings, holistic_of(task, args, settings) if holistic else None)
    return load_answering_policy(args.policy_ckpt, tokenizer, args), tokenizer, scorer


def sampled(
    task: Task, args: Namespace, policy, tokenizer, rows: list[dict], samples: int, batch: int = 128
) -> Iterator:
    """Rollouts of `samples` answers to each row, side by side. The shortest prompts first."""
    import torch
    from tqdm.auto import tqdm

    from alarm.training.generate import generator
    from alarm.training.rollout import encode_prompts, sample_rollout
    from trl.generation import SAMPLING

    torch.manual_seed(args.seed)
    prompts, _ = encode_prompts(tokenizer, rows, task, args.max_input_len)
    prompts.sort(key=lambda prompt: len(prompt.ids))
    many = [prompt for prompt in prompts for _ in range(samples)]
    generate = generator(policy, tokenizer, **SAMPLING | {"max_new_tokens": args.max_generated_len})
    size = batch // samples * samples
    for start in tqdm(range(0, len(many), size), desc="samples", unit="batch", leave=False):
        yield sample_rollout(generate, tokenizer, many[start : start + size])
