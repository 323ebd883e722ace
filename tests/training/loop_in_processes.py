"""Run by test_loop_processes.py in one process, in two and in four: the same union batches through train_ppo.

    loop_in_processes.py FOLDER REWARD_TYPE ADVANTAGE

Each process samples from random numbers of its own. Here they follow from step, prompt and which answer to it, so that
the answers are the same for any number of processes. They have from 2 to 8 tokens.
"""

from __future__ import annotations

import itertools
import os
import sys

import torch

from alarm import train_ppo
from alarm.training import loop
from helpers import FIXTURES, ROOT

DATA = ROOT / "examples" / "data"
ROWS = 8  # of the union batch: two answers to each of four prompts


def main(folder: str, reward_type: str, advantage: str) -> None:
    processes = int(os.environ.get("WORLD_SIZE", 1))
    share = ROWS // processes
    made = loop.generator

    def seeded(policy, tokenizer, **settings):
        """The policy samples as ever, but each answer from random numbers of its own."""
        answer, calls = made(policy, tokenizer, **settings), itertools.count()
        if not settings["do_sample"]:
            return answer

        def one_by_one(queries):
            answers, call = [], next(calls)
            for row, query in enumerate(queries):
                torch.manual_seed(int(query.sum()) + 100_000 * call + row % 2)
                answers.append(answer([query])[0][: 2 + (len(query) + 3 * (row % 2)) % 7])
            return answers

        return one_by_one

    loop.generator = seeded
    flags = {
        "task": ROOT / "examples" / "headlines.py", "policy_ckpt": FIXTURES / "golden" / "checkpoints" / "tiny-t5",
        "train_file": DATA / "train.json", "dev_file": DATA / "dev.json", "dtype": "float32", "report_to": "none",
        "batch_size": share, "mini_batch_size": share, "gradient_accumulation_steps": 1, "samples_per_prompt": 2,
        "n_ppo_epoch_per_rollout": 2, "max_generated_len": 8, "max_steps": 3, "eval_interval": 3, "lr": 0.003,
        "checkpoint_interval": 0, "lora_dropout": 0, "w_brevity": 1, "w_shouting": 0.5, "targets": "brevity=0.5",
        "multiplier_lr": 5, "reward_type": reward_type, "advantage": advantage,
        "save_dir": folder,
    }  # fmt: skip
    train_ppo.main([word for name, value in flags.items() for word in (f"--{name}", str(value))])


if __name__ == "__main__":
    main(*sys.argv[1:])
