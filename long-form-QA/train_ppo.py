"""Train a policy on long-form QA with hierarchical rewards (PPO), or generate and score answers with --test."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from alarm.common.errors import report_user_errors
from alarm.common.flags import check_model_name, finite_float, parser, positive_float, positive_int
from alarm.common.launch import check_launch, process_state
from alarm.tasks.spans import find_splitter
from alarm.training.calibration import use_calibration
from alarm.training.flags import add_ppo_flags, check_ppo_flags, parse_ppo_flags, resolve_policy
from alarm.training.run import Run

HERE = Path(os.path.relpath(Path(__file__).parent))

DEFAULTS = {
    "policy_ckpt": str(HERE / "model_ckpts" / "t5-large-1k-train"),
    "train_file": str(HERE / "qa_feedback" / "train.json"),
    "dev_file": str(HERE / "qa_feedback" / "dev.json"),
    "test_file": str(HERE / "qa_feedback" / "test.json"),
    "hierarchical_threshold": 0.6,
    "holistic_reward_weight": 5.0,
    "ultra_mean": -4.896130742253484,
    "ultra_std": 3.0595760500526468,
    "length_mean": 96.78820166320166,
    "lr": 2e-4,
    "batch_size": 8,
    "mini_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "n_ppo_epoch_per_rollout": 4,
    "kl_threshold": 0.1,
    "eval_interval": 10,
    "eval_batch_size": 32,
    "rm_max_batch_size": 8,
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    flags = parser(__doc__)
    add_ppo_flags(flags, DEFAULTS)
    add = flags.add_argument
    add("--outer_epoch", type=positive_int, default=2, help="passes over the train file")
    add("--max_input_len", type=positive_int, default=1024, help="prompt tokens; longer prompts are cut")
    add("--max_generated_len", type=positive_int, default=200, help="answer tokens")
    add(
        "--reward_model_dir",
        default=str(HERE / "model_ckpts"),
        help="folder of the aspect reward models rel_rm, fact_rm and comp_rm",
    )
    add(
        "--splitter", default="en_core_web_sm", help="sentence splitter: a spaCy pipeline's name, pysbd, or sentencizer"
    )
    add("--w_rel", type=finite_float, default=1.0, help="weight of the relevance reward")
    add("--w_fact", type=finite_float, default=1.0, help="weight of the factuality reward")
    add("--w_comp", type=finite_float, default=1.0, help="weight of the completeness reward")
    add(
        "--relevance_positive_reward",
        type=finite_float,
        default=0.3,
        help="of a relevant sub-sentence, on its last token",
    )
    add("--relevance_negative_reward", type=finite_float, default=-0.3, help="of an irrelevant sub-sentence")
    add("--factuality_positive_reward", type=finite_float, default=0.5, help="of a factual sentence, on its last token")
    add("--factuality_negative_reward", type=finite_float, default=-0.5, help="of a sentence with a factual error")
    add(
        "--completeness_reward_mean",
        type=finite_float,
        default=-0.44677690555995353,
        help="mean of the completeness model's raw scores",
    )
    add("--completeness_reward_std", type=positive_float, default=8.301160619054132, help="standard deviation of them")
    add("--completeness_reward_bias", type=finite_float, default=0.0, help="added to the normalised, scaled score")
    add("--completeness_reward_scale", type=finite_float, default=0.3, help="multiplies the normalised score")
    return parse_ppo_flags(flags, argv, "qa")


@report_user_errors
def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)

    # 1. whatever can be wrong without loading a model
    check_ppo_flags(args)
    check_launch()
    from alarm.tasks.qa.aspects import ASPECTS, MODEL_FOLDERS, check_reward_models, load_examples

    test_file = args.train_file if args.test_on_train else args.test_file
    files = {"test": test_file} if args.test else {"train": args.train_file, "dev": args.dev_file}
    examples = {split: load_examples(path) for split, path in files.items()}
    policy = resolve_policy(args.policy_ckpt, args.resume_anyway)
    check_reward_models(args.reward_model_dir, ASPECTS)
    check_model_name(args.holistic_model, "--holistic_model")
    splitter = find_splitter(args.splitter)
    run = Run(args.save_dir, vars(args))
    if not args.test:
        models = {"policy_ckpt": policy, "holistic_model": args.holistic_model}
        models |= {f"reward_model_dir/{name}": Path(args.reward_model_dir) / name for name in MODEL_FOLDERS.values()}
        run.check(args.resume, models)
    limits = (args.max_input_len, args.max_generated_len)
    scales = use_calibration(args, "qa", policy, limits, run.inputs["large_files"])

    # 2. the prompts as the policy reads them
    from alarm.training.build_scorer import qa_scorer
    from alarm.training.loop import run_test, run_training
    from alarm.training.policy import build_trainer, encode_splits, load_tokenizer

    state = process_state()
    tokenizer = load_tokenizer(policy)
    prompts = encode_splits(tokenizer, examples, lambda row: row["text"], args.max_input_len, files)

    # 3. the rewards, then the policy
    state.print(f"sentence splitter: {splitter}")
    scorer = qa_scorer(args, tokenizer, state.device)
    ppo = build_trainer(args, policy, tokenizer, prompts.get("train"))

    # 4. generate and score, or train
    if args.test:
        run_test(ppo, scorer, tokenizer, prompts["test"], args.max_generated_len, args)
    else:
        run_training(
            ppo, run, scorer, tokenizer, prompts["dev"], args.max_generated_len, args.outer_epoch, args, scales
        )


if __name__ == "__main__":
    main()
