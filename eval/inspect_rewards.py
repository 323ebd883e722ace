"""Show the rewards of generations token by token: each aspect, the gate's decision, and what PPO is given.

python ./eval/inspect_rewards.py --task_type qa --generations runs/hierarchical.json --sigmoid_shaping --html page.html
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from alarm.common.errors import UserError, report_user_errors
from alarm.common.files import check_writable
from alarm.common.flags import check_model_name, parser, positive_int
from alarm.tasks.mt.grammar.checker import make_checker
from alarm.tasks.qa.aspects import check_reward_models
from alarm.tasks.qa.data import load_examples
from alarm.tasks.spans import find_splitter
from alarm.training.flags import resolve_policy

if TYPE_CHECKING:
    from alarm.rewards import RewardRecipe

ROOT = Path(__file__).resolve().parents[1]
TRAINING = {"qa": "long-form-QA/train_ppo.py", "mt": "MT/train_ppo.py"}


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
    add("--task_type", choices=tuple(TRAINING), required=True, help="which task's aspects: qa or mt")
    add("--generations", help="JSON file of generations, as train_ppo.py --test writes it")
    add("--index", type=positive_int, help="show this generation alone, counted from 1")
    add("--query", help="show the generations whose query contains this; with --generation, the whole prompt of it")
    add("--limit", type=positive_int, default=20, help="show at most this many generations, the first of the file")
    add("--generation", help="in place of a file: one response to the prompt --query")
    add("--question", help="qa, with --generation: the question in the prompt, where --examples has no such row")
    add("--examples", help="qa: data file with the questions, rows matched by text = query (default: --test_file)")
    add("--html", type=Path, help="write a page as well, here")
    add("--overwrite", action="store_true", help="replace the file at --html if it exists")
    return flags.parse_known_args(argv)


def training_script(task: str) -> ModuleType:
    """The task's train_ppo.py, imported from its hyphened folder; it defines flags, defaults and limits."""
    path = ROOT / TRAINING[task]
    spec = importlib.util.spec_from_file_location(f"train_ppo_{task}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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
    if args.examples is not None and (args.question is not None or args.task_type != "qa"):
        raise UserError("--examples goes with --task_type qa, without --question; drop it")
    if args.overwrite and args.html is None:
        raise UserError("--overwrite goes with --html; drop it")
    if args.html is not None:
        check_writable(args.html, "--html")
        if args.html.is_dir():
            raise UserError(f"--html {args.html} is a folder; give the file to write")
        if args.html.exists() and not args.overwrite:
            raise UserError(f"{args.html} exists; give another --html, or --overwrite to replace it")


def questions_of(queries: list[str], path: str) -> list[dict]:
    """The data row of each query. UserError where there is none."""
    rows = {row["text"]: row for row in reversed(load_examples(path))}
    missing = [query for query in queries if query not in rows]
    if missing:
        raise UserError(
            f"{path} has no row with the text {missing[0][:60]!r} ({len(missing)} of {len(queries)} queries are not "
            "there); give the data that was answered by --examples, or for a single one --question"
        )
    return [rows[query] for query in queries]


def settings_shown(task: str, args: argparse.Namespace, recipe: RewardRecipe) -> dict[str, str]:
    """What the rewards were made with, for the head of the report."""
    weights = ", ".join(f"{name} {weight:g}" for name, weight in recipe.weights.items())
    shaping = "with" if args.sigmoid_shaping else "without"
    if task == "qa":
        models = f"{args.reward_model_dir}; sentence splitter {args.splitter}"
    else:
        models = f"grammar by {args.grammar_server or args.grammar_backend}"
    gate = f", threshold {recipe.threshold:g}" if recipe.reward_type == "hierarchical" else ""
    return {
        "reward": f"{recipe.reward_type}{gate}; weight of the holistic reward {recipe.holistic_weight:g}",
        "holistic": f"{args.holistic_model}; h = (raw - {recipe.holistic_mean:g}) / {recipe.holistic_std:g}",
        "aspects": f"weights: {weights}; {shaping} sigmoid shaping; {models}",
        "tokens": f"tokenizer of {args.policy_ckpt}",
    }


@report_user_errors
def main(argv: list[str] | None = None) -> None:
    args, rest = parse_args(argv)

    # 1. whatever can be wrong without loading a model
    check_own_flags(args)
    recipe_args = training_script(args.task_type).parse_args(["--save_dir", "unused", *rest])
    from alarm.evaluation.inspection.inspect import Generation, choose, read_generations_to_inspect

    if args.generations is not None:
        every = read_generations_to_inspect(args.generations, args.task_type)
        chosen = choose(every, args.index, args.query, args.limit, args.generations)
        title = f"{args.generations}: {len(chosen)} of {len(every)} generations"
    else:
        chosen, title = [Generation(1, args.query, args.generation, {})], "one generation"
    examples: list[dict] = [{}] * len(chosen)
    if args.question is not None:
        examples = [{"question": args.question}]
    elif args.task_type == "qa":
        examples = questions_of([one.query for one in chosen], args.examples or recipe_args.test_file)
    policy = resolve_policy(recipe_args.policy_ckpt)
    check_model_name(recipe_args.holistic_model, "--holistic_model")

    if args.task_type == "qa":
        check_reward_models(recipe_args.reward_model_dir)
        find_splitter(recipe_args.splitter)
        checker = None
    else:
        checker = make_checker(recipe_args.grammar_backend, recipe_args.grammar_server)

    # 2. the rewards, as train_ppo.py makes them; score, place, check
    from alarm.common.launch import process_state
    from alarm.evaluation.inspection.inspect import Report, inspect_generations
    from alarm.evaluation.inspection.show import html_report, print_report
    from alarm.evaluation.report.report import screen
    from alarm.training.build_scorer import mt_scorer, qa_scorer
    from alarm.training.policy import load_tokenizer

    tokenizer = load_tokenizer(policy)
    try:
        if args.task_type == "qa":
            scorer = qa_scorer(recipe_args, tokenizer, process_state().device)
        else:
            scorer = mt_scorer(recipe_args, tokenizer, process_state().device, checker)
        inspections = inspect_generations(chosen, examples, tokenizer, scorer, recipe_args.rm_max_batch_size)
    finally:
        if checker is not None:
            checker.close()
    report = Report(title, settings_shown(args.task_type, recipe_args, scorer.recipe), inspections)

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
