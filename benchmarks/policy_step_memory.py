"""Peak memory and time of one PPO step over a vocabulary as large as mT5's.

Measures `PPOTrainer.step` of a T5 that is tiny but for its vocabulary, each variant in a process of its own:
    chunked   log-probabilities and entropy in float32 a bounded chunk of rows at a time, as in trl/trl/ppo_math.py
    naive     log_softmax of the whole (B, T, V) logits in float32
Peak: ru_maxrss of the process (with a GPU: torch's peak of allocated memory), less what stood there before the step.

python benchmarks/policy_step_memory.py
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time

VARIANTS = ("chunked", "naive")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    flags = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = flags.add_argument
    add("--vocabulary", type=int, default=250_112, help="V (250112 is mT5's)")
    add("--batch_size", type=int, default=4, help="responses per step")
    add("--mini_batch_size", type=int, default=4, help="B: responses per forward and backward pass")
    add("--tokens", type=int, default=64, help="T: tokens of each response")
    add("--shortest", type=int, help="tokens of the shortest response; default: --tokens, so that none is padded")
    add("--width", type=int, default=64, help="hidden size")
    add(
        "--epochs",
        type=int,
        default=2,
        help="PPO passes over the batch (from the second on the loss tells of the update)",
    )
    add(
        "--dtypes", nargs="+", default=["float32", "bfloat16"], help="types of the frozen weights, and so of the logits"
    )
    add("--variant", choices=VARIANTS, help="measure this one alone, in this process, and print it as JSON")
    return flags.parse_args(argv)


def naive_statistics(logits, labels, chunk_rows=None):
    logprobs = logits.float().log_softmax(-1)
    entropy = -(logprobs.detach().exp() * logprobs.detach()).sum(-1)
    return logprobs.gather(-1, labels[..., None]).squeeze(-1), entropy


def measure(args: argparse.Namespace) -> dict:
    """One step of one variant."""
    import torch
    from peft import LoraConfig, TaskType, get_peft_model
    from transformers import T5Config, T5ForConditionalGeneration

    from trl import AutoModelForSeq2SeqLMWithValueHead, PPOConfig, PPOTrainer, ppo_math

    if args.variant == "naive":
        ppo_math.token_statistics = naive_statistics
    torch.manual_seed(0)
    heads = args.width // 32
    config = T5Config(
        vocab_size=args.vocabulary, d_model=args.width, d_kv=32, num_heads=heads, d_ff=2 * args.width, num_layers=1,
        num_decoder_layers=1, decoder_start_token_id=0, pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    model = T5ForConditionalGeneration(config).to(getattr(torch, args.dtypes[0]))
    lora = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.05, bias="none", task_type=TaskType.SEQ_2_SEQ_LM)
    ppo = PPOTrainer(
        PPOConfig(
            batch_size=args.batch_size, mini_batch_size=args.mini_batch_size, gradient_accumulation_steps=1,
            ppo_epochs=args.epochs, log_with="none",
        ),
        AutoModelForSeq2SeqLMWithValueHead(get_peft_model(model, lora), v_head_init_strategy="zeros"),
    )  # fmt: skip
    queries = [torch.randint(2, args.vocabulary, (16,)) for _ in range(args.batch_size)]
    lengths = torch.linspace(args.shortest or args.tokens, args.tokens, args.batch_size).long().tolist()
    responses = [torch.randint(2, args.vocabulary, (length,)) for length in lengths]
    rewards = [torch.randn(length) for length in lengths]

    on_gpu = torch.cuda.is_available()

    def standing() -> float:
        """MiB: on the GPU what is allocated, on the CPU the highest so far."""
        if on_gpu:
            return torch.cuda.memory_allocated() / 2**20
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10

    before, start = standing(), time.perf_counter()
    stats = ppo.step(queries, responses, rewards)
    seconds = time.perf_counter() - start
    peak = torch.cuda.max_memory_allocated() / 2**20 if on_gpu else standing()
    # equal between the variants: they compute the same
    return {"before": before, "peak": peak, "seconds": seconds, "loss": float(stats["ppo/loss/total"])}


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    if args.variant:
        print(json.dumps(measure(args)))
        return
    words = [f"--{name}={getattr(args, name)}" for name in ("vocabulary", "batch_size", "mini_batch_size", "tokens")]
    words += [f"--width={args.width}", f"--epochs={args.epochs}", f"--shortest={args.shortest or args.tokens}"]
    whole = args.mini_batch_size * args.tokens * args.vocabulary * 4 / 2**20
    print(f"B {args.mini_batch_size}, T {args.tokens}, V {args.vocabulary}: (B, T, V) in float32 is {whole:.0f} MiB")
    print(f"{'weights':<10}{'variant':<10}{'before MiB':>12}{'peak MiB':>10}{'step MiB':>10}{'seconds':>9}{'loss':>12}")
    for dtype in args.dtypes:
        for variant in VARIANTS:
            command = [sys.executable, __file__, "--variant", variant, "--dtypes", dtype, *words]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                print(f"{dtype:<10}{variant:<10}  ended with code {done.returncode}: {done.stderr[-300:]}")
                continue
            row = json.loads(done.stdout.splitlines()[-1])
            step = row["peak"] - row["before"]
            print(
                f"{dtype:<10}{variant:<10}{row['before']:>12.0f}{row['peak']:>10.0f}{step:>10.0f}"
                f"{row['seconds']:>9.1f}{row['loss']:>12.6f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
