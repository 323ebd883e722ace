"""Measure a translation policy: BLEU and chrF against the references, and how readable its translations are."""

from __future__ import annotations

import argparse
from pathlib import Path

from alarm.common.errors import UserError, report_user_errors
from alarm.common.files import check_writable, write_json
from alarm.common.flags import parser, positive_int
from alarm.common.launch import check_launch, process_state
from alarm.tasks.mt.data import DATASET, load_parts, prompt
from alarm.training.flags import resolve_policy


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    flags = parser(__doc__)
    add = flags.add_argument
    add(
        "--policy_ckpt",
        default="halfrot/sft-mt5-base",
        help="policy to measure: a folder (model, LoRA adapter, or --save_dir of a train_ppo.py run) or a hub name",
    )
    add(
        "--test_file",
        help="pairs to translate: JSON list, JSON lines or parquet (default: the test split of --dataset)",
    )
    add("--dataset", default=DATASET, help="hub name, folder or file whose test split is used without --test_file")
    add(
        "--max_len",
        type=positive_int,
        default=128,
        help="tokens of a prompt (longer ones are cut), and of a translation",
    )
    add("--batch_size", type=positive_int, default=64, help="prompts per generation batch")
    add("--dtype", default="bfloat16", choices=("bfloat16", "float32"), help="type of the weights")
    add("--output", help="JSON file to write scores and translations to (default: none is written)")
    add("--overwrite", action="store_true", help="replace the --output file if it exists")
    return flags.parse_args(argv)


def check_output(args: argparse.Namespace) -> None:
    if args.output:
        check_writable(args.output, "--output")
    if args.output and Path(args.output).is_dir():
        raise UserError(f"--output {args.output} is a folder; give the path of a JSON file")
    if args.output and Path(args.output).exists() and not args.overwrite:
        raise UserError(f"--output {args.output} exists; give another path, or --overwrite to replace it")


@report_user_errors
def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    check_launch()
    check_output(args)
    policy = resolve_policy(args.policy_ckpt)
    rows = load_parts({"test": args.test_file}, args.dataset)["test"]

    from alarm.tasks.mt.quality import overlap_scores, readability_scores, translate
    from alarm.training.policy import load_model, load_tokenizer
    from alarm.training.rollout import encode_prompts

    state = process_state()
    tokenizer = load_tokenizer(policy)
    prompts, cut = encode_prompts(tokenizer, rows, [prompt(row) for row in rows], args.max_len)
    state.print(
        f"{len(rows)} prompts from {args.test_file or args.dataset}, {cut} of them cut to {args.max_len} tokens"
    )

    model = load_model(policy, tokenizer, args.dtype).pretrained_model.to(state.device)
    translations = translate(model, tokenizer, prompts, args.max_len, args.batch_size)
    references = [row["translation"]["en"] for row in rows]
    scores = {
        "translations": overlap_scores(translations, references) | readability_scores(translations),
        "references": readability_scores(references),
    }
    if state.is_main_process:
        from alarm.common.console import say_counts, show

        show(f"{args.policy_ckpt} on {len(rows)} pairs", scores)
        say_counts({"empty translations": sum(not text.strip() for text in translations)})
        if args.output:
            pairs = [
                {"query": one.text, "generation": text, "reference": reference}
                for one, text, reference in zip(prompts, translations, references, strict=True)
            ]
            write_json(args.output, {"policy": args.policy_ckpt, "scores": scores, "translations": pairs})
            print(f"wrote {args.output}")


if __name__ == "__main__":
    main()
