"""Measure rewards on responses that a policy samples, and write their mean, deviation and quantiles to a file.

The constants of train_ppo.py (--ultra_mean, --ultra_std, --length_mean, ...) and its gate belong to one policy and its
reward models. This measures them for yours; `train_ppo.py --calibration FILE` reads them.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from ..common.errors import UserError, report_user_errors
from ..common.files import check_writable, write_json
from ..common.flags import check_model_name, parser, positive_int, seed_value
from ..common.identity import hash_file, model_identity
from ..tasks.mt.grammar.checker import BACKENDS
from .calibration import KIND, NORMALISED, THRESHOLDS, VERSION, Calibration, describe
from .flags import HOLISTIC_MAX_TOKENS, resolve_policy

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from trl import PPOTrainer


FEW = 20  # responses; fewer make numbers that another seed would change
# reward -> its value for a response among the metrics of a rollout, and what that is
REWARDS = {
    "qa": {
        "holistic": ("holistic_reward", "raw score of the holistic model"),
        "length": ("response_length", "response tokens, the end of sequence among them"),
        "relevance": ("relevance_rate", "relevant sub-sentences / all, 0.5 without any"),
        "factuality": ("factuality_rate", "factual sentences / all, 0.5 without any"),
        "completeness": ("completeness_reward", "raw score of the completeness model"),
    },
    "mt": {
        "holistic": ("holistic_reward", "raw score of the holistic model"),
        "length": ("response_length", "response tokens, the end of sequence among them"),
        "readability": ("readability", "Flesch-Kincaid grade"),
        "grammar": ("error_rate", "grammar errors / response tokens"),
        "confidence": ("language_confidence", "probability that the text is English"),
    },
}
LIMITS = {"qa": (1024, 200), "mt": (128, 128)}  # train_ppo.py's own: tokens of a prompt and of a response
PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "tokenizers",
    "spacy",
    "textstat",
    "lingua-language-detector",
)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    flags = parser(__doc__.split("\n\n")[0])
    add = flags.add_argument
    names = "; ".join(f"{task}: {', '.join(rewards)}" for task, rewards in REWARDS.items())
    add("--task", required=True, choices=tuple(REWARDS), help="qa: long-form QA; mt: Spanish-English translation")
    add(
        "--policy_ckpt",
        required=True,
        help="policy to sample from, as train_ppo.py takes it: where training will start",
    )
    add("--prompts", required=True, help="file of prompts: the training file, or a part of it")
    add("--save_path", required=True, help="JSON file to write")
    add("--overwrite", action="store_true", help="replace the file at --save_path if it exists")
    add("--rewards", help=f"which to measure, with commas between (default: all). {names}")
    add("--holistic_model", default="openbmb/UltraRM-13b", help="preference reward model: a folder or a hub name")
    add("--reward_model_dir", default="long-form-QA/model_ckpts", help="qa: folder of rel_rm, fact_rm and comp_rm")
    add("--splitter", default="en_core_web_sm", help="qa: sentence splitter, as in train_ppo.py")
    add("--grammar_backend", default="languagetool", choices=BACKENDS, help="mt: rules is a small offline stand-in")
    add("--grammar_server", help="mt: URL of a running LanguageTool server, in place of one of this run's own")
    add("--limit", type=positive_int, help="so many prompts, drawn by --seed (default: all)")
    add("--max_input_len", type=positive_int, help="prompt tokens (default: qa 1024, mt 128, as in training)")
    add("--max_generated_len", type=positive_int, help="response tokens (default: qa 200, mt 128)")
    add("--batch_size", type=positive_int, default=32, help="prompts per generation batch")
    add("--rm_max_batch_size", type=positive_int, default=8, help="texts per forward pass of a reward model")
    add("--dtype", default="bfloat16", choices=("bfloat16", "float32"), help="weights of policy and reward models")
    add("--seed", type=seed_value, default=42, help="seed of the sampling and of --limit")
    return flags.parse_args(argv)


@report_user_errors
def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)

    # 1. whatever can be wrong without loading a model
    from ..common.launch import check_launch, process_state

    check_launch()
    names = chosen_rewards(args)
    check_save_path(args)
    policy = resolve_policy(args.policy_ckpt)
    if "holistic" in names:
        check_model_name(args.holistic_model, "--holistic_model")
    rows, prompt_of = load_prompts(args)
    aspects = [name for name in names if name not in ("holistic", "length")]
    checker = check_aspects(args, aspects)

    # 2. one sampled response a prompt, scored as training scores them
    try:
        records, models = sample_and_score(args, policy, rows, prompt_of, aspects, "holistic" in names, checker)
    finally:
        if checker is not None:
            checker.close()

    # 3. the numbers
    state = process_state()
    rewards = describe_records(records, {name: REWARDS[args.task][name] for name in names})
    if not state.is_main_process:
        return
    content = {
        "kind": KIND,
        "version": VERSION,
        "task": args.task,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "rewards": rewards,
        "prompts": {"file": args.prompts, "sha256": hash_file(args.prompts), "used": len(rows), "limit": args.limit},
        "responses_without_text": sum(not record["generation"].strip() for record in records),
        "settings": settings_of(args, aspects),
        "models": {role: model_identity(name) for role, name in models.items()},
        "versions": {name: metadata.version(name) for name in PACKAGES},
    }
    write_json(args.save_path, content)
    report(args, content)


# --- before any model loads ------------------------------------------------------------------------------------------


def chosen_rewards(args: argparse.Namespace) -> list[str]:
    """The rewards to measure, in the task's order. UserError for a name that is none."""
    known = REWARDS[args.task]
    wanted = [name.strip() for name in args.rewards.split(",")] if args.rewards is not None else list(known)
    for name in wanted:
        if name not in known:
            raise UserError(f"--rewards: '{name}' is none of {args.task}'s {', '.join(known)}")
    return [name for name in known if name in wanted]


def check_save_path(args: argparse.Namespace) -> None:
    path = Path(args.save_path)
    if path.is_dir():
        raise UserError(f"--save_path {path} is a folder; give the path of a JSON file")
    if path.exists() and not args.overwrite:
        raise UserError(f"--save_path {path} exists; give another one, or --overwrite to replace it")
    check_writable(path, "--save_path")


def load_prompts(args: argparse.Namespace):
    """The chosen rows of the prompts file, and what makes a row's prompt."""
    if not Path(args.prompts).is_file():
        raise UserError(f"--prompts {args.prompts} is no file; give the file of prompts")
    if args.task == "qa":
        from ..tasks.qa.aspects import load_examples

        rows, prompt_of = load_examples(args.prompts), lambda row: row["text"]
    else:
        from ..tasks.mt.aspects import load_rows, prompt

        rows, prompt_of = load_rows(args.prompts), prompt
    if args.limit is not None and args.limit < len(rows):
        rows = Random(args.seed).sample(rows, args.limit)
    if len(rows) < 2:
        raise UserError(f"{args.prompts} gives 1 prompt, which has no deviation; give {FEW} or more")
    return rows, prompt_of


def check_aspects(args: argparse.Namespace, aspects: list[str]):
    """Raise UserError where the aspects' models cannot be used. -> the grammar checker where one is asked for."""
    if args.task == "qa" and aspects:
        from ..tasks.qa.aspects import check_reward_models
        from ..tasks.spans import find_splitter

        check_reward_models(args.reward_model_dir, aspects)
        find_splitter(args.splitter)
    if "grammar" in aspects:
        from ..tasks.mt.grammar.checker import make_checker

        return make_checker(args.grammar_backend, args.grammar_server)
    return None


# --- sampling and scoring --------------------------------------------------------------------------------------------


def sample_and_score(args, policy: str, rows: list[dict], prompt_of, aspects: list[str], with_holistic: bool, checker):
    """One sampled response to each row. -> records of `loop.evaluate` with raw scores, models by role."""
    import functools

    import torch

    from trl.generation import SAMPLING

    from ..common.console import say_counts
    from ..common.launch import process_state
    from ..models.holistic import HolisticModel
    from ..rewards import RewardRecipe
    from .loop import Scorer, cut_inputs, evaluate
    from .policy import encode_splits, load_tokenizer
    from .rollout import generator

    state = process_state()
    max_input, max_generated = limits_of(args)
    tokenizer = load_tokenizer(policy)
    prompts = encode_splits(tokenizer, {"prompts": rows}, prompt_of, max_input, {"prompts": args.prompts})["prompts"]
    models: dict[str, str | Path] = {"policy": policy}
    placed = {"device": state.device, "dtype": getattr(torch, args.dtype)}
    scored, truncated = load_aspects(args, aspects, tokenizer, checker, models, placed)
    if with_holistic:
        model = HolisticModel.load(args.holistic_model, **placed)
        limit = HOLISTIC_MAX_TOKENS[args.task]
        holistic = functools.partial(model.score, max_length=limit, batch_size=args.rm_max_batch_size)
        models["holistic"] = args.holistic_model
    else:
        model, holistic = None, lambda queries, responses: torch.zeros(len(responses))
    scorer = Scorer(
        aspects=scored,
        aspect_names=tuple(aspects),
        holistic=holistic,
        # mean 0 and deviation 1 leave the scores as they are; the rewards of the recipe are not used
        recipe=RewardRecipe("holistic_only", threshold=0.0, holistic_weight=1.0, weights=dict.fromkeys(aspects, 0.0)),
        truncated=lambda: truncated() | ({"holistic": model.truncated} if model else {}),
    )
    ppo = build_sampler(args, policy, tokenizer)
    records = evaluate(
        prompts,
        generator(ppo, **SAMPLING, max_new_tokens=max_generated),
        tokenizer,
        scorer,
        ppo.accelerator,
        args.batch_size,
        title="calibrate",
        sampling_seed=args.seed,
    )
    say_counts(cut_inputs(scorer), ppo.accelerator)
    return records, models


def limits_of(args: argparse.Namespace) -> tuple[int, int]:
    """Tokens of a prompt and of a response."""
    max_input, max_generated = LIMITS[args.task]
    return args.max_input_len or max_input, args.max_generated_len or max_generated


def load_aspects(args, aspects: list[str], tokenizer: PreTrainedTokenizerBase, checker, models: dict, placed: dict):
    """-> the task's aspects, set to leave scores raw, and how many inputs their models cut; adds to `models`."""
    if args.task == "mt":
        from ..tasks.mt.aspects import MTAspects, MTSettings

        return MTAspects(checker, tokenizer, MTSettings(readability_mean=0.0, readability_std=1.0)), dict
    if not aspects:
        return (lambda rollout, names: {}), dict
    from ..tasks.qa.aspects import MODEL_FOLDERS, QAAspects, QASettings

    raw = QASettings(
        completeness_reward_mean=0.0,
        completeness_reward_std=1.0,
        completeness_reward_scale=1.0,
        completeness_reward_bias=0.0,
    )
    batch = args.rm_max_batch_size
    found = QAAspects(args.reward_model_dir, args.splitter, tokenizer, raw, batch_size=batch, names=aspects, **placed)
    models |= {name: Path(args.reward_model_dir) / MODEL_FOLDERS[name] for name in aspects}
    return found, lambda: found.truncated


def build_sampler(args: argparse.Namespace, policy: str, tokenizer: PreTrainedTokenizerBase) -> PPOTrainer:
    """The policy, to generate as training does."""
    from peft import LoraConfig, TaskType

    from trl import PPOConfig

    from .policy import load_model, make_trainer

    # fresh adapters add zero, and spare the trainer a copy of the model as its reference
    model = load_model(policy, tokenizer, args.dtype, LoraConfig(r=1, task_type=TaskType.SEQ_2_SEQ_LM))
    return make_trainer(PPOConfig(seed=args.seed, log_with="none"), model, tokenizer)


# --- the numbers -----------------------------------------------------------------------------------------------------


def describe_records(records: list[dict], rewards: dict[str, tuple[str, str]]) -> dict[str, dict]:
    """reward -> (metric, what it is), over the records with text -> reward -> describe() and what it is.

    Training replaces the holistic reward of a response without text, so it has no part in the scale. Raises UserError
    where too few responses have text, where a score is not finite, and where one that training normalises is constant.
    """
    with_text = [record for record in records if record["generation"].strip()]
    if len(with_text) < 2:
        raise UserError(f"{len(with_text)} of {len(records)} responses have text; look at the policy")
    found = {}
    for name, (metric, what) in rewards.items():
        try:
            described = describe([record[metric] for record in with_text])
        except UserError as error:
            raise UserError(f"{name}: {error}") from None
        if name in NORMALISED and described["std"] == 0:
            raise UserError(
                f"{name}: all {len(with_text)} responses have the score {described['mean']:.6g}, which cannot be "
                "normalised; look at its model, or leave it out of --rewards"
            )
        found[name] = {"what": what, **described}
    return found


def settings_of(args: argparse.Namespace, aspects: Iterable[str]) -> dict:
    from trl.generation import SAMPLING

    max_input, max_generated = limits_of(args)
    settings = {"seed": args.seed, "dtype": args.dtype, "batch_size": args.batch_size}
    settings |= {"max_input_len": max_input, "max_generated_len": max_generated, "sampling": SAMPLING}
    settings["holistic_max_tokens"] = HOLISTIC_MAX_TOKENS[args.task]
    if {"relevance", "factuality"} & set(aspects):
        settings["splitter"] = args.splitter
    if "grammar" in aspects:
        settings["grammar_backend"] = args.grammar_backend
    return settings


def report(args: argparse.Namespace, content: dict) -> None:
    """Print what was found, and what to look at."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    rewards = content["rewards"]
    count = next(iter(rewards.values()))["n"]
    table = Table(box=SIMPLE_HEAD, title=f"{args.policy_ckpt}: {count} sampled responses", title_justify="left")
    table.add_column("", no_wrap=True)
    for name in rewards:
        table.add_column(name, justify="right", no_wrap=True)
    lines = {
        "mean": [f"{r['mean']:.4g}" for r in rewards.values()],
        "  standard error": [f"{r['standard_error']['mean']:.2g}" for r in rewards.values()],
        "std": [f"{r['std']:.4g}" for r in rewards.values()],
        "  standard error ": [f"{r['standard_error']['std']:.2g}" for r in rewards.values()],
    }
    for percent in (0, 1, 5, 10, 25, 50, 75, 90, 95, 99, 100):
        label = {0: "least", 50: "median", 100: "greatest"}.get(percent, f"{percent}%")
        lines[label] = [f"{r['percentiles'][str(percent)]:.4g}" for r in rewards.values()]
    for z in (f"{threshold:g}" for threshold in THRESHOLDS):
        lines[f"share, z >= {z}"] = [f"{r['share_above'][z]:.1%}" if r["std"] else "-" for r in rewards.values()]
    for label, cells in lines.items():
        table.add_row(label, *cells, end_section=label in ("  standard error ", "greatest"))
    Console().print(table)

    for name, described in rewards.items():
        if described["std"] == 0:
            print(f"warning: {name} is {described['mean']:.6g} for every response: it tells no two of them apart")
    if count < FEW:
        print(f"warning: {count} responses are few: see the standard errors, and give {FEW} or more")
    if empty := content["responses_without_text"]:
        print(f"responses without text, left out: {empty}")
    calibration = Calibration(args.save_path, args.task, rewards, content["models"], content["settings"])
    if constants := calibration.constants:
        print("--calibration stands for: " + " ".join(f"--{name} {value:.6g}" for name, value in constants.items()))
    print(f"wrote {args.save_path}")


if __name__ == "__main__":
    main()
