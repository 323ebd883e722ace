"""Does it matter on which token a reward lands? PPO on a toy where it can be seen, aligned and misaligned.

Every occurrence of one given token pays 1, on that token; a small T5 starts at chance. Responses are of ragged length
(the environment ends each after 4 to 16 tokens). The same run is made twice: with each reward on its own token, and
with each reward vector pushed to the right end of the padded row, as the published code did: in a batch whose longest
response has M tokens, the rewards of a response of T tokens land M - T tokens late, and the last M - T of them on
padding, where they are lost.

    python benchmarks/token_alignment.py --out benchmarks/token_alignment.png
"""

from __future__ import annotations

import argparse
import os
import time

ALIGNMENTS = ("own token", "right-aligned")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=200, help="PPO steps of each run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds; one pair of runs for each")
    parser.add_argument("--out", default=None, help="file of the picture (PNG); none is drawn without")
    return parser.parse_args(argv)


def right_align(rewards: list, longest: int) -> list:
    """What a (T_i,) vector pays to its own T_i tokens after it was pushed to the end of a row of `longest` columns."""
    import torch

    moved = []
    for reward in rewards:
        row = torch.zeros(longest)
        row[longest - len(reward) :] = reward
        moved.append(row[: len(reward)])
    return moved


def train(alignment: str, steps: int, seed: int, stop_at: float = 1.1, vocabulary: int = 64) -> list[float]:
    """Share of the paid token among the tokens of each step's rollout, `steps` values; ends early above `stop_at`."""
    import tempfile

    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    from trl import AutoModelForSeq2SeqLMWithValueHead, PPOConfig, PPOTrainer, set_seed

    paid, batch, shortest, longest = 7, 32, 4, 16
    set_seed(seed)
    config = T5Config(
        vocab_size=vocabulary, d_model=64, d_ff=128, d_kv=16, num_heads=4, num_layers=2, dropout_rate=0.0,
        decoder_start_token_id=0, pad_token_id=0, eos_token_id=None,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        T5ForConditionalGeneration(config).save_pretrained(folder)
        model = AutoModelForSeq2SeqLMWithValueHead.from_pretrained(folder, v_head_init_strategy="zeros")
    settings = PPOConfig(
        batch_size=batch, mini_batch_size=batch, gradient_accumulation_steps=1, ppo_epochs=2, learning_rate=5e-4,
        adap_kl_ctrl=False, init_kl_coef=0.01, max_grad_norm=1.0, seed=seed, log_with="none",
    )  # fmt: skip
    trainer = PPOTrainer(settings, model)
    shares = []
    for _ in range(steps):
        queries = list(torch.randint(3, vocabulary, (batch, 6)))
        lengths = torch.randint(shortest, longest + 1, (batch,)).tolist()
        responses = trainer.generate(queries, batch_size=None, do_sample=True, max_new_tokens=longest)
        responses = [response[:length] for response, length in zip(responses, lengths, strict=True)]
        rewards = [(response == paid).float() for response in responses]
        shares.append(float(torch.cat(rewards).mean()))
        if shares[-1] > stop_at:
            break
        trainer.step(queries, responses, rewards if alignment == ALIGNMENTS[0] else right_align(rewards, longest))
    return shares


def smoothed(shares: list[float], window: int = 10) -> list[float]:
    """Mean over the last `window` steps."""
    return [sum(shares[max(0, i - window + 1) : i + 1]) / min(i + 1, window) for i in range(len(shares))]


def steps_to(shares: list[float], level: float) -> int | None:
    """First step (from 0) whose smoothed share is above `level`; None: never."""
    return next((step for step, share in enumerate(smoothed(shares)) if share > level), None)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    curves: dict[str, list[list[float]]] = {}
    for alignment in ALIGNMENTS:
        curves[alignment] = []
        for seed in args.seeds:
            started = time.time()
            curves[alignment].append(train(alignment, args.steps, seed))
            run = curves[alignment][-1]
            reached = [
                f"{level:.0%} {'never' if (step := steps_to(run, level)) is None else step}" for level in (0.5, 0.9)
            ]
            print(f"{alignment}, seed {seed}: {time.time() - started:.0f} s; steps to {', '.join(reached)}", flush=True)
    means = {name: [sum(column) / len(runs) for column in zip(*runs, strict=True)] for name, runs in curves.items()}

    from alarm.common.console import plain_table, print_table

    smooth = {name: smoothed(means[name]) for name in ALIGNMENTS}
    steps = sorted({*range(0, args.steps, max(1, args.steps // 20)), args.steps - 1})
    rows = [(str(step), *(f"{smooth[name][step]:.3f}" for name in ALIGNMENTS)) for step in steps]
    note = f"chance: {1 / 64:.3f}; mean of {len(args.seeds)} seeds and of the last 10 steps"
    print_table(plain_table("Share of the paid token", ("step", *ALIGNMENTS), rows, note))

    if args.out:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt

        figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
        for color, name in zip(("tab:blue", "tab:orange"), ALIGNMENTS, strict=True):
            for run in curves[name]:
                axes.plot(smoothed(run), color=color, alpha=0.25, linewidth=1)
            axes.plot(smoothed(means[name]), color=color, label=f"reward on its {name}" if "own" in name else name)
        axes.axhline(0.9, color="grey", linewidth=0.8, linestyle=":")
        axes.set(xlabel="PPO step", ylabel="share of the paid token", ylim=(0, 1))
        axes.legend()
        figure.savefig(args.out, dpi=120)
        print(f"\nwritten: {args.out}")


if __name__ == "__main__":
    main()
