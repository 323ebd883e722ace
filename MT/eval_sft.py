"""Measure a translation policy: BLEU and chrF against the references, and how readable its translations are."""

from __future__ import annotations

import argparse

from alarm.common.errors import report_user_errors
from alarm.common.files import check_new_file, write_json
from alarm.common.flags import add_flag, add_policy_flags, parser, positive_int
from alarm.common.launch import check_launch, process_state
from alarm.tasks.mt.data import prompt
from alarm.tasks.mt.spec import TASK
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
    add("--batch_size", type=positive_int, default=64, help="prompts per generation batch")
    add("--dtype", default="bfloat16", choices=("bfloat16", "float32"), help="type of the weights")
    add("--output", help="JSON file to write scores and translations to (default: none is written)")
    add("--overwrite", action="store_true", help="replace the --output file if it exists")
    add_policy_flags(flags)
    for flag in TASK.flags:
        if flag.used_by == "all":
            add_flag(flags, flag)
    return flags.parse_args(argv)


@report_user_errors
def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    check_launch()
    if args.output:
        check_new_file(args.output, "--output", args.overwrite)
    policy = resolve_policy(args.policy_ckpt)

    from alarm.tasks.mt.quality import overlap_scores, readability_scores
    from alarm.training.generate import translate_split

    state = process_state()
    rows, translations = translate_split(TASK, "test", policy, args, args.batch_size)
    references = [TASK.answer(row) for row in rows]
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
                {"query": prompt(row, args.prompt_prefix), "generation": text, "reference": reference}
                for row, text, reference in zip(rows, translations, references, strict=True)
            ]
            write_json(args.output, {"policy": args.policy_ckpt, "scores": scores, "translations": pairs})
            print(f"wrote {args.output}")


if __name__ == "__main__":
    main()
