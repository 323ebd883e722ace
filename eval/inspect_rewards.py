"""Show the rewards of generations token by token: each aspect, the gate's decision, and what PPO is given.

python ./eval/inspect_rewards.py --task_type qa --generations runs/hierarchical.json --sigmoid_shaping --html page.html
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from alarm.api import Settings, Task
from alarm.common.errors import UserError, report_user_errors
from alarm.common.files import check_new_file
from alarm.common.flags import check_holistic, parser, positive_int
from alarm.diagnostics import GATED
from alarm.tasks.find import add_task_flag, find_task
from alarm.training import main as training
from alarm.training.flags import resolve_policy

if TYPE_CHECKING:
    from alarm.rewards import RewardRecipe


def parse_args(argv: list[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    """This script's own flags, and those that are left for the task's train_ppo.py."""
    flags = parser(__doc__.split("\n\n")[0])
    flags.epilog = (
        "All flags of the task's train_ppo.py are taken too, with its defaults, so that those of a run can be pasted. "
        "The ones about rewards decide what is shown (--policy_ckpt for its tokenizer, --holistic_model, "
        "--reward_model_dir, --splitter, --grammar_backend, --reward_type, weights, means, deviations, --dtype, "
        "--rm_max_batch_size); the others change nothing. See long-form-QA/train_ppo.py --help, MT/train_ppo.py --help."
    )
    add = flags.add_argument
    add_task_flag(flags, "--task_type")
    add("--generations", help="JSON file of generations, as train_ppo.py --test writes it")
    add("--index", type=positive_int, help="show this generation alone, counted from 1")
    add("--query", help="show the generations whose query contains this; with --generation, the whole prompt of it")
    add("--limit", type=positive_int, default=20, help="show at most this many generations, the first of the file")
    add("--generation", help="instead of a file: one response to the prompt --query")
    add("--question", help="qa, with --generation: the question in the prompt, if --examples has no such row")
    add("--examples", help="data file with the rows that were answered, matched by their prompts (qa: --test_file)")
    add("--html", type=Path, help="write a page as well, here")
    add("--overwrite", action="store_true", help="replace the file at --html if it exists")
    return flags.parse_known_args(argv)


def check_own_flags(args: argparse.Namespace) -> None:
    """Raise UserError for flags that contradict each other. Costs nothing."""
    if (args.generations is None) == (args.generation is None):
        raise UserError("give --generations FILE, or --query TEXT --generation TEXT for a single one")
    if args.generation is not None and args.query is None:
        raise UserError("--generation needs the prompt that it answers: --query TEXT")
    if args.index is not None and (args.query is not None or args.generation is not None):
        raise UserError("--index picks from a file by number; drop it, or --query and --generation")
    if args.question is not None and (args.generation is None or args.task_type != "qa"):
        raise UserError("--question goes with --generation and --task_type qa; drop it")
    if args.examples is not None and args.question is not None:
        raise UserError("--examples and --question both give the data row; drop one of them")
    if args.overwrite and args.html is None:
        raise UserError("--overwrite goes with --html; drop it")
    if args.html is not None:
        check_new_file(args.html, "--html", args.overwrite)


def rows_of(task: Task, queries: list[str], path: str) -> list[dict]:
    """The data row of each query. UserError if there is none."""
    rows = {task.prompt(row): row for row in reversed(task.load(path))}
    missing = [query for query in queries if query not in rows]
    if missing:
        raise UserError(
            f"{path} has no row with the prompt {missing[0][:60]!r} ({len(missing)} of {len(queries)} queries are not "
            "there); give the data that was answered by --examples, or for a single one --question"
        )
    return [rows[query] for query in queries]


def minus(value: float) -> str:
    """What is written behind a number that `value` is subtracted from."""
    return f" {'+' if value < 0 else '-'} {abs(value):g}"


def settings_shown(task: Task, args: argparse.Namespace, recipe: RewardRecipe) -> dict[str, str]:
    """What the rewards were made with, for the head of the report."""
    weights = ", ".join(f"{name} {weight:g}" for name, weight in recipe.weights.items())
    gate = f", threshold {recipe.threshold:g}" if recipe.reward_type in GATED else ""
    holistic = args.holistic_model or f"the function of {task.source}"
    grouped = recipe.baseline == "group"
    less = f"raw{minus(recipe.level)} (for a group's mean, which PPO subtracts)" if grouped else "raw"
    own = [flag.name for flag in (*task.flags, *(flag for aspect in task.aspects for flag in aspect.flags))]
    settings = "; ".join(f"{name} {getattr(args, name)}" for name in own if getattr(args, name) is not None)
    return {
        "reward": f"{recipe.reward_type}{gate}; weight of the holistic reward {recipe.holistic_weight:g}",
        "holistic": f"{holistic}; h = ({less}{minus(recipe.holistic_mean)}) / {recipe.holistic_std:g}",
        "aspects": f"weights: {weights}; shaping {recipe.shaping}, placement {recipe.placement}",
        "settings": settings or "none",
        "tokens": f"tokenizer of {args.policy_ckpt}",
    }


@report_user_errors
def main(argv: list[str] | None = None) -> None:
    args, rest = parse_args(argv)

    # 1. what can be wrong without loading a model
    check_own_flags(args)
    task = find_task(args.task_type)
    recipe_args = training.parse_args(task, __doc__, ["--save_dir", "unused", *rest])
    if task.configure is not None:
        task = task.configure(task, recipe_args)
    from alarm.evaluation.generations import Generations, read_generations
    from alarm.evaluation.inspection.inspect import choose

    if args.generations is not None:
        run = read_generations(args.generations, task, complete=False, need_text=True)
        chosen = choose(run, args.index, args.query, args.limit, args.generations)
        title = f"{args.generations}: {len(chosen)} of {len(run.queries)} generations"
    else:
        run, chosen, title = Generations("", [args.query], [args.generation], {}), [0], "one generation"
    examples: list[dict] = [{}] * len(chosen)
    if args.question is not None:
        examples = [{"question": args.question}]
    elif args.examples or task.name == "qa":
        examples = rows_of(task, [run.queries[row] for row in chosen], args.examples or recipe_args.test_file)
    elif task.source:
        print("--examples is not given: the aspects get empty rows")
    if recipe_args.holistic_baseline not in ("none", "group"):
        raise UserError(
            f"the inspector does not measure --holistic_baseline {recipe_args.holistic_baseline}; leave it out to see "
            "the other parts"
        )
    policy = resolve_policy(recipe_args.policy_ckpt)
    check_holistic(recipe_args)
    for aspect in task.aspects:
        aspect.check(recipe_args)

    # 2. the rewards, as train_ppo.py makes them; score, place, check
    import torch

    from alarm.common.console import screen
    from alarm.common.launch import process_state
    from alarm.evaluation.inspection.inspect import Report, inspect_generations
    from alarm.evaluation.inspection.show import html_report, print_report
    from alarm.rewards import RewardRecipe
    from alarm.scoring import holistic_of, load_scorer
    from alarm.training.policy import load_tokenizer

    tokenizer = load_tokenizer(policy, recipe_args)
    settings = Settings(recipe_args, tokenizer, process_state().device, getattr(torch, recipe_args.dtype))
    recipe = RewardRecipe.from_flags(recipe_args, task)
    scorer = load_scorer(task, recipe.weights, settings, holistic_of(task, recipe_args, settings))
    try:
        batch = recipe_args.rm_max_batch_size
        inspections = inspect_generations(run, chosen, examples, tokenizer, scorer, recipe, batch)
    finally:
        scorer.close()
    report = Report(title, settings_shown(task, recipe_args, recipe), inspections)

    # 3. show it
    if args.html is not None:
        from alarm.common.files import write_text

        try:
            write_text(args.html, html_report(report))
        except OSError as error:
            raise UserError(f"{args.html} cannot be written ({error.strerror}); give a writable --html") from None

    print_report(report, screen())
    if args.html is not None:
        print(f"wrote {args.html}")
    if report.failed:
        print(f"error: rewards are not on their tokens in {len(report.failed)} responses", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
