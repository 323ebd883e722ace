"""Train a policy on Spanish-English translation with hierarchical rewards (PPO), or translate and score with --test."""

from __future__ import annotations

import argparse

from alarm.common.errors import report_user_errors
from alarm.common.flags import check_model_name, finite_float, parser, positive_float, positive_int
from alarm.common.launch import check_launch, process_state
from alarm.tasks.mt.aspects import DATASET, prompt
from alarm.tasks.mt.grammar.checker import BACKENDS, make_checker
from alarm.tasks.mt.quality import load_parts
from alarm.training.calibration import use_calibration
from alarm.training.flags import add_ppo_flags, check_ppo_flags, parse_ppo_flags, resolve_policy
from alarm.training.run import Run

DEFAULTS = {
    "policy_ckpt": "halfrot/sft-mt5-base",
    "hierarchical_threshold": 0.5,
    "holistic_reward_weight": 3.0,
    "ultra_mean": -2.34417221913525,
    "ultra_std": 2.946283030347152,
    "length_mean": 36.69312107831745,
    "lr": 5e-4,
    "batch_size": 32,
    "mini_batch_size": 16,
    "gradient_accumulation_steps": 2,
    "n_ppo_epoch_per_rollout": 4,
    "kl_threshold": 0.1,
    "eval_interval": 5,
    "eval_batch_size": 256,
    "rm_max_batch_size": 32,
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    flags = parser(__doc__)
    add_ppo_flags(flags, DEFAULTS)
    add = flags.add_argument
    add("--dataset", default=DATASET, help="hub name, folder or file that gives the splits for which no file is named")
    add("--episodes", type=positive_int, default=50, help="PPO steps, each on --batch_size new prompts per process")
    add("--max_len", type=positive_int, default=128, help="tokens of a prompt (longer ones are cut), and of an answer")
    add("--grammar_backend", default="languagetool", choices=BACKENDS, help="rules: a small offline stand-in")
    add("--grammar_server", help="URL of a running LanguageTool server, in place of one of this run's own")
    add("--w_read", type=finite_float, default=1.0, help="weight of the readability reward")
    add("--w_grammar", type=finite_float, default=1.0, help="weight of the grammar reward")
    add("--w_confidence", type=finite_float, default=1.0, help="weight of the confidence that a text is English")
    add("--readability_mean", type=finite_float, default=11.19907041598879, help="mean of the Flesch-Kincaid grades")
    add("--readability_std", type=positive_float, default=6.04405504045225, help="standard deviation of the grades")
    add("--grammar_correct_reward", type=finite_float, default=0.0, help="of a token outside of every grammar error")
    add("--grammar_incorrect_reward", type=finite_float, default=-1.0, help="of a token inside a grammar error")
    return parse_ppo_flags(flags, argv, "mt")


@report_user_errors
def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)

    # 1. whatever can be wrong without loading a model
    check_ppo_flags(args)
    args.max_steps = args.max_steps or args.episodes
    policy = resolve_policy(args.policy_ckpt, args.resume_anyway)
    check_model_name(args.holistic_model, "--holistic_model")
    check_launch()
    run = Run(args.save_dir, vars(args))
    if not args.test:
        run.check(args.resume, {"policy_ckpt": policy, "holistic_model": args.holistic_model})
    scales = use_calibration(args, "mt", policy, (args.max_len, args.max_len), run.inputs["large_files"])
    checker = make_checker(args.grammar_backend, args.grammar_server)
    files = {"train": args.train_file, "dev": args.dev_file, "test": args.test_file}
    tested = "train" if args.test_on_train else "test"
    wanted = [tested] if args.test else ["train", "dev"]
    examples = load_parts({split: files[split] for split in wanted}, args.dataset)
    if not args.test:
        run.check_splits(args.dataset, {split: rows for split, rows in examples.items() if not files[split]})

    # 2. the prompts as the policy reads them
    from alarm.training.build_scorer import mt_scorer
    from alarm.training.loop import run_test, run_training
    from alarm.training.policy import build_trainer, encode_splits, load_tokenizer

    state = process_state()
    tokenizer = load_tokenizer(policy)
    sources = {split: files[split] or args.dataset for split in examples}
    prompts = encode_splits(tokenizer, examples, prompt, args.max_len, sources)

    # 3. the rewards, then the policy
    scorer = mt_scorer(args, tokenizer, state.device, checker)
    ppo = build_trainer(args, policy, tokenizer, prompts.get("train"))

    # 4. translate and score, or train
    try:
        if args.test:
            run_test(ppo, scorer, tokenizer, prompts[tested], args.max_len, args)
        else:
            run_training(ppo, run, scorer, tokenizer, prompts["dev"], args.max_len, 1, args, scales)
    finally:
        checker.close()


if __name__ == "__main__":
    main()
