"""What every train_ppo.py does, for a task: train a policy with PPO, or answer prompts and score them with --test."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable

from ..api import Settings, Task
from ..common.errors import UserError
from ..common.flags import check_holistic, parser
from ..common.launch import check_launch, process_state
from ..common.launch_settings import check_launch_settings
from ..common.prompts import uses_chat
from .calibration import calibrated_models, constants_of, read_calibration, use_calibration
from .flags import add_ppo_flags, check_ppo_flags, parse_ppo_flags, resolve_policy
from .provenance import generations_meta
from .run import Run


def parse_args(
    task: Task,
    description: str,
    argv: list[str] | None = None,
    add_more: Callable[[argparse.ArgumentParser], None] | None = None,
) -> argparse.Namespace:
    """All flags of a task's train_ppo.py, and those that `add_more` adds."""
    flags = parser(description)
    if add_more is not None:
        add_more(flags)
    add_ppo_flags(flags, task)
    return parse_ppo_flags(flags, argv, task)


def run_task(task: Task, args: argparse.Namespace) -> None:
    """Train or test. Raises UserError for what a user can fix, as early as possible."""
    # 1. what can be wrong without loading a model
    if task.configure is not None:
        task = task.configure(task, args)
    check_ppo_flags(args, task)
    check_launch()
    check_sharding()
    rows = load_splits(task, args)
    policy = resolve_policy(args.policy_ckpt, args.resume_anyway)
    start = policy
    if args.baseline_policy is not None:
        start = resolve_policy(args.baseline_policy, args.resume_anyway, "--baseline_policy")
    for aspect in task.aspects:
        aspect.check(args)
    check_holistic(args)
    if task.source:
        args.task_file = task.source
    run = Run(args.save_dir, {"task": task.name} | vars(args), constants_of(task))
    if not args.test:
        models = {"policy_ckpt": policy, **task.reward_models(args)}
        if args.baseline_policy is not None:
            models["baseline_policy"] = start
        run.check(args.resume, models)
        if task.splits is not None:
            unnamed = {split: part for split, part in rows.items() if not getattr(args, f"{split}_file")}
            run.check_splits(source_of(task, args), unnamed)
    limits = (args.max_input_len, args.max_generated_len)
    scales = use_calibration(args, task, policy, limits, run.inputs["large_files"])

    # 2. the prompts as the policy reads them
    import torch

    from ..rewards import RewardRecipe
    from ..scoring import holistic_of, load_scorer
    from .baselines import NAME, with_baselines
    from .evaluate import run_test
    from .loop import run_training
    from .policy import (
        build_trainer,
        check_adapter_flags,
        check_cache,
        encode_splits,
        is_encoder_decoder,
        load_answering_policy,
        load_tokenizer,
    )
    from .processes import on_main

    state = process_state()
    check_adapter_flags(args, policy)
    check_cache(args, state.device)
    tokenizer = load_tokenizer(policy, args)
    chat = uses_chat(tokenizer, not is_encoder_decoder(policy), args.chat_template)
    sources = {split: getattr(args, f"{file_of(split, args)}_file") or source_of(task, args) for split in rows}
    prompts = encode_splits(tokenizer, rows, task, args.max_input_len, sources, chat)

    # 3. the rewards, then the policy
    settings = Settings(args, tokenizer, state.device, getattr(torch, args.dtype))
    recipe = RewardRecipe.from_flags(args, task)
    if recipe.alone is not recipe:
        state.print(f"the dev file and --test have one answer a prompt: paid as {recipe.alone.reward_type} there")
    if recipe.baseline == "group":
        state.print(f"the dev file and --test have no groups: --holistic_level {recipe.level:.6g} is subtracted there")
    scorer = load_scorer(task, [aspect.name for aspect in task.aspects], settings, holistic_of(task, args, settings))
    try:
        if args.holistic_server is not None and not args.test:
            on_main(state, lambda: run.take_probe(scorer.holistic))
        if args.calibration is not None and args.holistic_model is not None:
            for source, scores in read_calibration(args.calibration, task).probe_for(args.holistic_server).items():
                scorer.holistic.compare(source, scores)
        file = args.baseline_file or (None if args.test else run.dir / NAME)
        prompts = with_baselines(prompts, task, args, start, scorer, args.eval_batch_size, file)

        # 4. answer and score, or train
        if args.test:
            model = load_answering_policy(policy, tokenizer, args)
            models = {"policy": policy} | calibrated_models(task, args, ["holistic", *task.weights(args)])
            if args.holistic_baseline == "greedy":
                models["baseline_policy"] = start
            meta = functools.partial(generations_meta, task, args, models, sources["test"])
            run_test(model, scorer, recipe, tokenizer, prompts["test"], args, meta)
        else:
            ppo = build_trainer(args, policy, tokenizer, prompts["train"])
            run_training(ppo, run, scorer, recipe, tokenizer, prompts["dev"], args, scales)
    finally:
        scorer.close()


def check_sharding() -> None:
    """Raise UserError for a launch whose DeepSpeed or FSDP settings cannot work. Loads no model."""
    try:
        check_launch_settings()
    except ValueError as error:
        raise UserError(str(error)) from None


def load_splits(task: Task, args: argparse.Namespace) -> dict[str, list[dict]]:
    """The rows of train and dev, or with --test of test. UserError for a file that is not named or cannot be read."""
    files = {split: file_of(split, args) for split in (["test"] if args.test else ["train", "dev"])}
    rows = task.rows(args, list(files.values()))
    return {split: rows[file] for split, file in files.items()}


def file_of(split: str, args: argparse.Namespace) -> str:
    """The split whose file is read for `split`: with --test_on_train, train for test."""
    return "train" if args.test and args.test_on_train else split


def source_of(task: Task, args: argparse.Namespace) -> str:
    """Where rows come from for which no file is given."""
    return getattr(args, "dataset", None) or task.source or task.name
