"""Spanish-English translation as a task: the paper's aspects, flags, constants and numbers."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from ...api import Aspect, Flag, Metric, Task
from ...common.flags import positive_float, positive_int
from .aspects import Confidence, Grammar, Readability
from .data import DATASET, PREFIX, load_parts, load_rows, prompt
from .grammar import BACKENDS

READABILITY = Aspect(
    "readability",
    Readability,
    metrics=[
        Metric(
            "readability",
            title="readability (normalised grade)",
            depends_on="--readability_mean, --readability_std",
        )
    ],
    flag="w_read",
    weight=1.0,
    flags=[
        Flag("readability_mean", 11.19907041598879, "mean of the Flesch-Kincaid grades", statistic="mean"),
        Flag(
            "readability_std",
            6.04405504045225,
            "standard deviation of the Flesch-Kincaid grades",
            positive_float,
            statistic="std",
        ),
    ],
    calibrated="Flesch-Kincaid grade",
)

GRAMMAR = Aspect(
    "grammar",
    Grammar,
    pay="tokens",
    metrics=[
        Metric(
            "grammar_errors",
            lower_wins=True,
            title="grammar errors",
            depends_on="--grammar_backend, --grammar_server",
            no_aspect="grows with length; error_rate represents grammar",
        ),
        Metric(
            "error_rate",
            lower_wins=True,
            title="grammar errors per token",
            differs_by="tokens",
            depends_on="--grammar_backend, --grammar_server",
        ),
    ],
    flag="w_grammar",
    weight=1.0,
    flags=[
        Flag("grammar_correct_reward", 0.0, "reward of a token outside of every grammar error"),
        Flag("grammar_incorrect_reward", -1.0, "reward of a token inside a grammar error"),
        Flag("grammar_backend", "languagetool", "rules: a small offline stand-in", str, choices=BACKENDS),
        Flag("grammar_server", None, "URL of a running LanguageTool server, instead of one of this run's own", str),
    ],
    calibrated="grammar errors / response tokens",
)

CONFIDENCE = Aspect(
    "confidence",
    Confidence,
    metrics=[
        Metric(
            "language_confidence",
            title="confidence that it is English",
            ends=(0, 1),
            depends_on="the version of lingua",
        )
    ],
    flag="w_confidence",
    weight=1.0,
    calibrated="probability that the text is English",
)


def splits(args: Namespace, names: Sequence[str]) -> dict[str, list[dict]]:
    """The rows of the named splits: of their files, or those of --dataset if no file is given."""
    return load_parts({name: getattr(args, f"{name}_file") for name in names}, args.dataset)


def configure(task: Task, args: Namespace) -> Task:
    """One length for prompts and answers, a duration in steps, and the text in front of each source."""
    for name in ("max_input_len", "max_generated_len"):
        setattr(args, name, getattr(args, name, None) or args.max_len)
    if hasattr(args, "episodes"):
        args.outer_epoch, args.max_steps = 1, args.max_steps or args.episodes
    return replace(task, prompt=partial(prompt, prefix=args.prompt_prefix))


TASK = Task(
    name="mt",
    prompt=prompt,
    aspects=[READABILITY, GRAMMAR, CONFIDENCE],
    load=load_rows,
    splits=splits,
    answer=lambda row: row["translation"]["en"],
    sft={"model_path": "google/mt5-base", "num_epochs": 3, "batch_size": 32, "lr": 5e-4},
    repeats=True,  # else nobody would translate the formulas of Europarl
    flags=[
        Flag("dataset", DATASET, "hub name, folder or file that gives the splits for which no file is named", str),
        Flag("episodes", 50, "PPO steps, each on --batch_size new prompts per process", positive_int, used_by="ppo"),
        Flag("max_len", 128, "tokens of a prompt (longer ones are cut), and of an answer", positive_int),
        Flag("prompt_prefix", PREFIX, "text in front of each source, as the policy learnt it (NLLB, Marian: '')", str),
    ],
    replaces=("outer_epoch", "max_input_len", "max_generated_len"),
    configure=configure,
    defaults={
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
        "eval_interval": 5,
        "eval_batch_size": 256,
        "rm_max_batch_size": 32,
        "max_grad_norm": None,
    },
    holistic_max_tokens=300,
    columns=(
        "holistic_reward",
        "readability",
        "language_confidence",
        "grammar_errors",
        "response_length",
        "error_rate",
    ),
    # arXiv 2403.06754: inconsistency in percent, read off the figure; win rates are averages over the three other runs
    paper={
        "inconsistency": {
            "error_rate": 17.0,
            "language_confidence": 31.0,
            "readability": 43.0,
            "response_length": 44.0,
        },
        "headings": ["holistic reward", "grammar error rate", "gpt-3.5-turbo"],
        "rows": [
            ("Holistic reward", "50.00", "49.19", "50.43"),
            ("Grammar", "48.08", "47.07", "48.60"),
            ("Weighted sum", "49.80", "45.51", "49.24"),
            ("ALaRM", "52.12", "58.24", "51.73"),
        ],
    },
)
