"""How much faster are the Longformer reward models with `alarm.longformer` than as transformers computes them?

Both paths run the same random weights on the same texts in one process, by turns; of the times the least and the
median are shown, the ratio is that of the least. A line of the table is a batch: texts of one length or ragged ones,
a token classifier (relevance, factuality) or a sequence classifier, whose first token has global attention
(completeness), forward alone or a step of training (forward and backward, dropout 0.1). The difference is the largest
of a logit at a real position.

    python benchmarks/longformer_attention.py
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import time
from collections.abc import Callable


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--texts", type=int, default=8, help="of a batch")
    add("--length", type=int, default=1150, help="tokens of the longest text; ragged ones go down to half of it")
    add("--hidden", type=int, default=256, help="hidden size; heads are 64 wide")
    add("--layers", type=int, default=4, help="of the encoder")
    add("--window", type=int, default=512, help="attention window, half of it to each side")
    add("--runs", nargs="+", choices=("forward", "train"), default=["forward", "train"], help="what is timed")
    add("--repeats", type=int, default=5, help="timed runs of each path, after one to warm up")
    add("--threads", type=int, default=1, help="CPU threads")
    add("--device", default="cpu", help="cpu or cuda")
    return parser.parse_args(argv)


def alternate(runs: dict[str, Callable], repeats: int, finish: Callable) -> dict[str, list[float]]:
    """Seconds of `repeats` runs of each function, by turns, after one run that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            finish()
            started = time.perf_counter()
            run()
            finish()
            if repeat:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch
    import transformers
    from transformers import LongformerConfig, LongformerForSequenceClassification, LongformerForTokenClassification

    from alarm.models.longformer import use_packed_attention

    transformers.utils.logging.set_verbosity_error()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    config = LongformerConfig(
        vocab_size=4000, hidden_size=args.hidden, num_hidden_layers=args.layers, num_attention_heads=args.hidden // 64,
        intermediate_size=4 * args.hidden, attention_window=args.window, max_position_embeddings=args.length + 2,
        num_labels=3, pad_token_id=1,
    )  # fmt: skip
    step = args.length // 2 // max(1, args.texts - 1)
    lengths = {
        "equal": torch.full((args.texts,), args.length),
        "ragged": torch.tensor([args.length - step * i for i in range(args.texts)]),
    }
    finish = torch.cuda.synchronize if args.device == "cuda" else lambda: None
    threads = f"{args.threads} thread" + "s" * (args.threads > 1)
    print(f"{args.texts} texts of up to {args.length} tokens (ragged: down to {lengths['ragged'].min()});")
    print(f"hidden {args.hidden}, {args.layers} layers, window {args.window}, float32, {args.device}, {threads};")
    print(f"seconds as least / median of {args.repeats}\n")
    print(f"{'model':<20}{'lengths':<9}{'run':<9}{'transformers':>15}{'alarm':>15}{'ratio':>8}{'difference':>12}")
    for model_class in (LongformerForTokenClassification, LongformerForSequenceClassification):
        plain = model_class(config).to(args.device)
        models = {"transformers": plain, "alarm": use_packed_attention(copy.deepcopy(plain))}
        for shape, length in lengths.items():
            real = (torch.arange(args.length) < length[:, None]).to(args.device)
            ids = torch.randint(3, 4000, real.shape, device=args.device).masked_fill(~real, 1)
            inputs = {"input_ids": ids, "attention_mask": real.long()}
            logits = {}

            def forward(name: str, models=models, inputs=inputs, logits=logits) -> None:
                with torch.inference_mode():
                    logits[name] = models[name].eval()(**inputs).logits

            def train(name: str, models=models, inputs=inputs) -> None:
                models[name].train().zero_grad()
                models[name](**inputs).logits.square().mean().backward()

            for run in [run for run in (forward, train) if run.__name__ in args.runs]:
                seconds = alternate({name: lambda n=name, r=run: r(n) for name in models}, args.repeats, finish)
                least = {name: min(values) for name, values in seconds.items()}
                shown = [f"{least[name]:.2f} / {statistics.median(seconds[name]):.2f}" for name in models]
                apart = ""
                if run is forward:
                    difference = (logits["transformers"] - logits["alarm"]).abs()
                    apart = f"{(difference[real] if difference.ndim == 3 else difference).max():.1e}"
                kind = model_class.__name__.removeprefix("LongformerFor").removesuffix("Classification").lower()
                print(
                    f"{kind + ' classifier':<20}{shape:<9}{run.__name__:<9}{shown[0]:>15}{shown[1]:>15}"
                    f"{least['transformers'] / least['alarm']:>7.1f}x{apart:>12}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
