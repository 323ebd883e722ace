"""A number for each answer, by name: its features, a task's metrics, a holistic reward, any preference model.

`alarm.score` writes them beside answers, `evaluate_judge.py` takes each as a judge. Importing this loads no torch.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..api import HOLISTIC, LENGTH, RESERVED, Metric, Task
from ..common.distinct import distinct
from ..common.errors import UserError
from ..common.flags import (
    add_holistic_flags,
    check_holistic,
    check_model_name,
    finite_float,
    positive_float,
    positive_int,
)
from .features import FEATURES, MEANING, check_features, feature

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Values = list[float | None]  # None: does not apply to the answer
AT_A_TIME = 256  # answers scored between two moves of the progress bar


@dataclass(frozen=True)
class Wanted:
    """What was asked for, by what gives it."""

    features: tuple[str, ...] = ()
    metrics: dict[str, tuple[str, Metric]] = field(default_factory=dict)  # column -> aspect and metric
    models: dict[str, str] = field(default_factory=dict)  # column -> folder or hub name of a preference model
    holistic: bool = False
    length: bool = False

    @property
    def aspects(self) -> list[str]:
        return list(dict.fromkeys(aspect for aspect, _ in self.metrics.values()))

    @property
    def columns(self) -> list[str]:
        """The columns that are made."""
        common = [name for name, asked in {HOLISTIC: self.holistic, LENGTH: self.length}.items() if asked]
        return [*common, *self.metrics, *self.features, *self.models]

    @property
    def needs_tokens(self) -> list[str]:
        """The columns that depend on the tokens of an answer."""
        own = [column for column, (_, metric) in self.metrics.items() if metric.differs_by == "tokens"]
        return [*([LENGTH] if self.length else []), *own]


@dataclass(frozen=True)
class Answers:
    """N answers, one entry of each field for each."""

    queries: list[str]  # by which prompts are known; features read them
    prompts: list[str]  # as the reward models read them
    texts: list[str]
    rows: list[dict]  # data rows, {} where none is known
    ids: list[list[int]] | None = None  # tokens of each text, if they are known


@dataclass(frozen=True)
class Found:
    columns: dict[str, Values]  # N each
    counts: dict[str, int]  # what deserves a line at the end
    seconds: float  # of scoring, without the loading of models


# --- names -----------------------------------------------------------------------------------------------------------


def meanings(task: Task) -> dict[str, str]:
    """Each name that can be asked for -> what it is."""
    found = {HOLISTIC: "the task's holistic reward, normalised", LENGTH: "tokens, the end of sequence among them"}
    for aspect in task.aspects:
        columns = ", ".join(metric.key for metric in aspect.metrics)
        found[aspect.name] = f"the aspect's {columns}"
        found |= {metric.key: f"metric of the aspect {aspect.name}" for metric in aspect.metrics}
    return found | MEANING


def plan(names: Iterable[str], task: Task, flag: str) -> Wanted:
    """What `names`, the value of `flag`, ask for. Raises UserError for a name that is nothing.

    A name is that of a feature, an aspect (all its metrics), a metric, HOLISTIC or LENGTH; NAME=MODEL is a preference
    model (folder or hub name), whose raw scores are called NAME.
    """
    features: dict[str, None] = {}
    metrics: dict[str, tuple[str, Metric]] = {}
    models: dict[str, str] = {}
    common = set()
    of_task = {key: (aspect.name, m) for aspect in task.aspects for m in aspect.metrics for key in (m.key, m.name)}
    known = meanings(task)
    if both := FEATURES.keys() & (of_task.keys() | {aspect.name for aspect in task.aspects}):
        raise UserError(f"task {task.name} and the features both have the name {min(both)}; rename that of the task")
    for name in names:
        column, equals, model = name.partition("=")
        if equals:
            taken = column in known or column in of_task or column in RESERVED
            if not column.isidentifier() or not model or taken or models.get(column, model) != model:
                raise UserError(f"{flag} {name}: give NAME=MODEL with a name of its own: letters, digits, underscores")
            models[column] = model
        elif name in FEATURES:
            features[name] = None
        elif name in (HOLISTIC, LENGTH):
            common.add(name)
        elif name in of_task:
            metrics[of_task[name][1].key] = of_task[name]
        elif name in known:
            metrics |= {metric.key: (name, metric) for metric in task.aspect(name).metrics}
        else:
            hint = "" if task.aspects else "; --task gives the metrics of a task"
            raise UserError(f"{flag} {name!r} is none of {', '.join(known)}, NAME=MODEL{hint}")
    return Wanted(tuple(features), metrics, models, HOLISTIC in common, LENGTH in common)


# --- flags -----------------------------------------------------------------------------------------------------------


def add_score_flags(flags: argparse.ArgumentParser, task: Task) -> None:
    """Add what scores depend on, with the defaults of train_ppo.py and the task's own."""
    from ..training.flags import DEFAULTS, add_reward_flags

    defaults = DEFAULTS | dict(task.defaults)
    add = flags.add_argument
    add(
        "--holistic_model",
        default=defaults["holistic_model"] if task.aspects and task.holistic is None else None,
        help=f"preference reward model of {HOLISTIC}: a folder or a hub name",
    )
    add_holistic_flags(flags)
    add("--ultra_mean", type=finite_float, default=defaults["ultra_mean"], help="mean of its raw scores")
    add("--ultra_std", type=positive_float, default=defaults["ultra_std"], help="standard deviation of them")
    add("--rm_max_batch_size", type=positive_int, default=8, help="texts per forward pass of a reward model")
    add("--dtype", default="bfloat16", choices=("bfloat16", "float32"), help="weights of the reward models")
    add_reward_flags(flags, task)


def check_wanted(wanted: Wanted, task: Task, args: argparse.Namespace) -> None:
    """Raise UserError for what cannot be scored and can be seen without loading a model."""
    check_features(wanted.features)
    for name in wanted.aspects:
        task.aspect(name).check(args)
    if wanted.holistic:
        check_holistic(args)
        if args.holistic_model is None and task.holistic is None:
            raise UserError(f"{HOLISTIC} needs --holistic_model, or a --task with a holistic reward of its own")
    for column, model in wanted.models.items():
        check_model_name(model, column)


def models_of(wanted: Wanted, task: Task, args: argparse.Namespace) -> dict[str, str | Path]:
    """Role -> folder or hub name of each model that the columns depend on, named as --test names them."""
    from ..training.calibration import calibrated_models

    rewards = [*wanted.aspects, *(["holistic"] if wanted.holistic else [])]
    return calibrated_models(task, args, rewards) | wanted.models


def settings_of(wanted: Wanted, task: Task, args: argparse.Namespace) -> dict:
    """The flags on which the columns depend, as --test records them."""
    names = ["dtype"] if wanted.aspects or wanted.holistic or wanted.models else []
    found: dict = {}
    if wanted.holistic:
        names += ["ultra_mean", "ultra_std", "holistic_model", "holistic_server", "holistic_8bit"]
        found |= {"holistic_baseline": "none", "holistic_level": 0.0}
    if wanted.holistic or wanted.models:
        found["holistic_max_tokens"] = task.holistic_max_tokens
    if wanted.aspects:
        names += [flag.name for flag in task.flags if flag.used_by == "score"]
        names += [flag.name for name in wanted.aspects for flag in task.aspect(name).flags]
    return {name: getattr(args, name) for name in names} | found


# --- scoring ---------------------------------------------------------------------------------------------------------


def score_answers(
    wanted: Wanted,
    task: Task,
    args: argparse.Namespace,
    answers: Answers,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Found:
    """Every wanted column of N answers. Shows progress. tokenizer: of `answers.ids`.

    Equal answers to a prompt, of equal rows, are scored once. Without ids an answer counts as one token (see
    scoring.measure), and columns that depend on tokens are refused. NaN of a model stays NaN.
    """
    if wanted.needs_tokens and answers.ids is None:
        raise UserError(f"{wanted.needs_tokens[0]} depends on tokens, which are not known here")
    ids = [()] * len(answers.texts) if answers.ids is None else map(tuple, answers.ids)
    _, places = distinct(zip(answers.prompts, answers.texts, map(row_key, answers.rows), ids, strict=True))
    first: dict[int, int] = {}
    for i, place in enumerate(places):
        first.setdefault(place, i)
    rows = list(first.values())
    for name in wanted.features:
        feature(name, [""], [""])  # loads what it needs
    started = time.perf_counter()
    columns: dict[str, Values] = {name: list(feature(name, answers.queries, answers.texts)) for name in wanted.features}
    seconds = time.perf_counter() - started
    if wanted.length:
        columns[LENGTH] = [len(ids) for ids in answers.ids]
    counts: dict[str, int] = {}
    if wanted.aspects or wanted.holistic or wanted.models:
        scored, counts, taken = _by_models(wanted, task, args, answers, rows, tokenizer)
        seconds += taken
        columns |= {name: [values[place] for place in places] for name, values in scored.items()}
    return Found({name: columns[name] for name in wanted.columns}, counts, seconds)


def row_key(row: dict) -> str:
    return json.dumps(row, sort_keys=True, default=repr)


def _by_models(
    wanted: Wanted,
    task: Task,
    args: argparse.Namespace,
    answers: Answers,
    rows: Sequence[int],
    tokenizer: PreTrainedTokenizerBase | None,
) -> tuple[dict[str, Values], dict[str, int], float]:
    """The columns of aspects, of the holistic reward and of preference models for the answers `rows`; counts; seconds.

    The models are loaded before the clock starts.
    """
    import torch
    from tqdm.auto import tqdm

    from ..api import Settings
    from ..common.launch import process_state
    from ..rewards import normalise_holistic
    from ..scoring import HolisticScorer, holistic_of, load_scorer, measure
    from ..types import Rollout

    settings = Settings(args, tokenizer, process_state().device, getattr(torch, args.dtype))
    holistic = holistic_of(task, args, settings) if wanted.holistic else None
    limits = (task.holistic_max_tokens, args.rm_max_batch_size, settings.device, settings.dtype)
    models = {column: HolisticScorer(name, *limits) for column, name in wanted.models.items()}
    scorer = load_scorer(task, wanted.aspects, settings, holistic)
    # batches of equal length: chunks of long answers, then of short ones
    order = sorted(range(len(rows)), key=lambda k: -len(answers.prompts[rows[k]]) - len(answers.texts[rows[k]]))
    found: dict[str, Values] = {name: [None] * len(rows) for name in wanted.columns if name not in wanted.features}
    found.pop(LENGTH, None)
    started = time.perf_counter()
    try:
        with tqdm(total=len(rows), desc="scoring", unit="answer", leave=False, delay=3, disable=None) as progress:
            for start in range(0, len(order), AT_A_TIME):
                part = order[start : start + AT_A_TIME]
                chosen = [rows[k] for k in part]
                rollout = Rollout(
                    query_ids=[],  # nothing that measures reads them
                    response_ids=None if answers.ids is None else [torch.tensor(answers.ids[i]) for i in chosen],
                    queries=[answers.prompts[i] for i in chosen],
                    responses=[answers.texts[i] for i in chosen],
                    examples=[answers.rows[i] for i in chosen],
                    too_short=torch.zeros(len(chosen), dtype=torch.bool),  # scored as they stand, as by --test
                )
                measured = measure(rollout, scorer, wanted.aspects)
                values = {
                    column: measured.aspects[aspect].metrics[metric.name]
                    for column, (aspect, metric) in wanted.metrics.items()
                }
                if measured.holistic is not None:
                    scales = (args.ultra_mean, args.ultra_std, rollout.too_short)
                    values[HOLISTIC] = normalise_holistic(measured.holistic, *scales).tolist()
                values |= {column: model(rollout).tolist() for column, model in models.items()}
                for column, numbers in values.items():
                    for k, value in zip(part, numbers, strict=True):
                        found[column][k] = value
                progress.update(len(part))
    finally:
        scorer.close()
    seconds = time.perf_counter() - started
    counts = scorer.counts()
    for column, model in models.items():
        counts |= {f"{line} ({column})": count for line, count in model.counts().items()}
    return found, counts, seconds


def configured(task: Task, args: argparse.Namespace) -> Task:
    """The task as its flags make it."""
    return task if task.configure is None else task.configure(task, args)


def matched_rows(task: Task, queries: Sequence[str], path: str | Path | None) -> tuple[list[str], list[dict]]:
    """The prompt of each query as the reward models read it, and its data row, from the data file at `path`.

    Without a file the prompt is the query, and rows are empty. Raises UserError for a query without a row.
    """
    if path is None:
        return list(queries), [{} for _ in queries]
    rows = {task.prompt(row): row for row in reversed(task.load(path))}
    if missing := [query for query in queries if query not in rows]:
        raise UserError(
            f"{path} has no row with the prompt {missing[0][:60]!r} ({len(missing)} of {len(queries)} queries are not "
            "there); give the data that was answered by --examples"
        )
    found = [rows[query] for query in queries]
    return [(task.reward_prompt or task.prompt)(row) for row in found], found


def with_ids(answers: Answers, tokenizer: PreTrainedTokenizerBase, lengths: Sequence[float | None]) -> Answers:
    """The same with the tokens that the policy's tokenizer gives each text, which need not be the sampled ones.

    lengths: the recorded response lengths, which say whether an end of sequence was there; None: not recorded.
    """
    from .inspection.inspect import response_ids

    ids = [response_ids(tokenizer, text, length) for text, length in zip(answers.texts, lengths, strict=True)]
    return replace(answers, ids=ids)
