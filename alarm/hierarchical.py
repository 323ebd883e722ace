"""The hierarchical reward without a trainer: prompts and answers in, rewards out. Importing this loads no torch."""

from __future__ import annotations

import json
import threading
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .api import HOLISTIC_PROBE, Aspect, Settings, Task
from .combiners import ALONE, COMBINERS, READ_HOLISTIC, Combiner, Options
from .common.distinct import distinct
from .common.errors import UserError
from .common.flags import check_holistic, check_names
from .common.identity import changes, file_identity, model_identity
from .common.prompts import text_of
from .integrations import Exits
from .recipe import BASELINES, PLACEMENTS, SHAPINGS, RewardRecipe
from .tasks.find import find_task
from .training.calibration import calibrated_models, compare_models, normalised, read_calibration
from .types import Measured, Rollout

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

Text = str | list[dict]  # a text, or a conversation: messages {"role": ..., "content": ...}
Holistic = Callable[[list[str], list[str], list[dict]], Sequence[float]]
Baseline = Callable[[list[str], list[dict]], Sequence[str]]
CONSTANTS = tuple(option.name for option in fields(Options))
UNSAID: Any = object()  # `holistic` of from_task that was not given
# argument of HierarchicalReward -> the flag of train_ppo.py for which a task can have its own default
_OF_TASK = {
    "holistic_weight": "holistic_reward_weight",
    "threshold": "hierarchical_threshold",
    "holistic_mean": "ultra_mean",
    "holistic_std": "ultra_std",
}


@dataclass(frozen=True)
class Parts:
    """The reward of B answers, and what it is made of. NaN: there is no such part, or a model gave NaN."""

    total: Tensor  # (B,) float64: the reward. The sum of an answer's token rewards
    holistic: Tensor  # (B,) float64, z-normalised; NaN without a holistic reward
    gate: Tensor  # (B,) float64: 1 open, 0 closed; NaN without a holistic reward
    aspects: dict[str, Tensor]  # name -> (B,) float64: sum of the shaped values, before weight and gate
    metrics: dict[str, list[float | None]]  # name -> B values; None: the aspect does not apply
    tokens: list[Tensor] | None  # B x (T_i,) float32; None without response_ids


class HierarchicalReward(Exits):
    """One holistic score and several aspects, combined: aspects count once an answer is good overall.

    holistic: a preference model, by folder or hub name; a function (prompts, answers, rows) -> B numbers; or None. None
        goes with the combiners that can do without: aspect_only, weighted_sum, log_sigmoid, lagrangian, decoupled. A
        combiner of your own then reads h = 0.
    aspects: of a task (TASK.aspects), or your own. One without a weight is measured and takes no part in the reward.
    combine: a name in alarm.combiners.COMBINERS, or such a function.
    weights: aspect -> weight. holistic_weight: w_h.
    threshold: the z-normalised holistic score from which aspects count. threshold_quantile: instead, with a
        calibration, this quantile of the calibrated scores.
    holistic_mean, holistic_std: of raw holistic scores, for the z-normalisation; 0 and 1 if not given.
    calibration: a file of `python -m alarm.calibrate` that gives these two and the aspects' constants. It must be one
        of the same models.
    shaping, placement: of an aspect's values; see alarm.rewards.
    baseline: what is subtracted from a raw holistic score. "none"; "group", the mean of the prompt's answers; or a
        function (prompts, rows) -> B answers to compare with. One that is not "none" changes the scale, so it needs
        holistic_mean and holistic_std, or a calibration that was made with it.
    multipliers: of `lagrangian`, aspect -> l. They stay as they are: alarm.combiners.update_multipliers moves them.
    flags: constants of aspects, such as {"grammar_backend": "rules"}; the others have their defaults.
    holistic_server: URL of a vLLM that serves the model `holistic`, of which then only config and tokenizer are read.
    holistic_max_tokens: of prompt and answer together. batch_size: texts in one pass of a model.
    constants: of the combiner, as alarm.combiners.Options names them: gate_temperature=0.1.

    Models load at the first call. Calls from several threads wait for each other.
    Raises UserError (one line) for what cannot work, before a model loads where that can be seen.
    """

    def __init__(
        self,
        holistic: str | Path | Holistic | None,
        aspects: Sequence[Aspect],
        combine: str | Combiner = "hierarchical",
        weights: Mapping[str, float] | None = None,
        holistic_weight: float = 1.0,
        threshold: float | None = None,
        holistic_mean: float | None = None,
        holistic_std: float | None = None,
        *,
        threshold_quantile: float | None = None,
        calibration: str | Path | None = None,
        shaping: str = "none",
        placement: str = "spans",
        baseline: str | Baseline = "none",
        multipliers: Mapping[str, float] | None = None,
        flags: Mapping[str, Any] | None = None,
        holistic_max_tokens: int | None = None,
        holistic_server: str | None = None,
        batch_size: int = 8,
        device: str = "cpu",
        dtype: str = "float32",
        task: Task | None = None,
        **constants: Any,
    ):
        # 1. what is measured
        if holistic is not None and not callable(holistic) and not isinstance(holistic, str | Path):
            raise UserError(f"holistic is {type(holistic).__name__}; give a model's name, a function, or None")
        own = task is not None  # the names of a task are its own: a calibration must be one of it
        task = task or Task("reward", prompt=str, aspects=aspects)
        task = replace(
            task,
            aspects=aspects,
            holistic=holistic if callable(holistic) else None,
            holistic_max_tokens=holistic_max_tokens or task.holistic_max_tokens,
        )
        defaults = {flag.name: flag.default for flag in task.flags}
        defaults |= {flag.name: flag.default for aspect in task.aspects for flag in aspect.flags}
        self.args = Namespace(**defaults | {"rm_max_batch_size": batch_size} | dict(flags or {}))
        self.args.holistic_model = None if holistic is None or callable(holistic) else str(holistic)
        self.args.holistic_server, self.args.holistic_check, self.args.holistic_shard = holistic_server, False, False
        self.args.holistic_8bit = bool((flags or {}).get("holistic_8bit", False))
        if holistic_server is not None:
            check_holistic(self.args)
        self._probes: dict[str, list[float]] = {}  # where it stands -> what the holistic model must score
        self.task, self.device, self.dtype = task, device, dtype
        self.has_holistic = holistic is not None
        with self._needs_flags():
            for aspect in task.aspects:
                aspect.check(self.args)

        # 2. how it is paid
        given = {"holistic_mean": holistic_mean, "holistic_std": holistic_std, "threshold": threshold}
        given = {name: value for name, value in given.items() if value is not None}
        if calibration is not None:
            given |= self._calibrated(calibration, given, flags or {}, threshold_quantile, baseline, own)
        elif threshold_quantile is not None:
            raise UserError("threshold_quantile needs a calibration; give one, or a threshold")
        elif baseline != "none" and not {"holistic_mean", "holistic_std"} <= given.keys():
            raise UserError(
                "a baseline changes the scale of the holistic score; give holistic_mean and holistic_std of scores "
                "less their baseline, or a calibration that was made with it"
            )
        self.baseline = baseline
        self.recipe = RewardRecipe(
            combine if isinstance(combine, str) else getattr(combine, "__name__", "combine"),
            float(given.get("threshold", 0.0)),
            float(holistic_weight) if self.has_holistic else 0.0,
            {aspect.name: 0.0 for aspect in task.aspects} | self._named(weights, "weights"),
            float(given.get("holistic_mean", 0.0)),
            float(given.get("holistic_std", 1.0)),
            shaping=_one_of(shaping, SHAPINGS, "shaping"),
            placement=_one_of(placement, PLACEMENTS, "placement"),
            baseline="reference" if callable(baseline) else _one_of(baseline, ("none", "group"), "baseline"),
            options=_options(constants, set(self._names)),
            multipliers=self._named(multipliers, "multipliers"),
            combiner=combine
            if callable(combine)
            else task.all_combiners[_one_of(combine, tuple(task.all_combiners), "combine")],
        )
        self._check_recipe()
        self._lock, self._scorer = threading.RLock(), None

    @classmethod
    def from_task(
        cls, task: Task | str, holistic: str | Path | Holistic | None = UNSAID, **settings
    ) -> HierarchicalReward:
        """The reward of a task, with the task's own weights, constants and holistic reward where none are given.

        task: a Task, `qa`, `mt`, or the path of a task's file. settings: as for HierarchicalReward; `flags` may name
        constants of the task too. Prints the task's numbers that it takes.
        """
        task = find_task(task) if isinstance(task, str) else task
        if not isinstance(task, Task):
            raise UserError(f"task is {type(task).__name__}; give a Task, its name, or its file")
        if holistic is UNSAID:
            holistic = task.holistic or task.defaults.get("holistic_model")
            if holistic is None:
                raise UserError(f"task {task.name} has no holistic reward; give holistic=, a model's name or None")
        known = [*task.flags, *(flag for aspect in task.aspects for flag in aspect.flags)]
        flags = dict(settings.pop("flags", None) or {})
        if unknown := flags.keys() - {flag.name for flag in known}:
            raise UserError(
                f"task {task.name} has no flag {min(unknown)!r}; its flags are {', '.join(flag.name for flag in known)}"
            )
        if task.configure is not None:
            values = {flag.name: flag.default for flag in known if flag.used_by != "ppo"} | flags
            task = task.configure(task, Namespace(**values))
        taken = {}
        for name, flag in _OF_TASK.items():
            measured = name in ("holistic_mean", "holistic_std")
            scaled = "calibration" in settings or settings.get("baseline", "none") != "none" or holistic is None
            placed = name == "threshold" and settings.get("threshold_quantile") is not None
            if flag in task.defaults and name not in settings and not (measured and scaled) and not placed:
                taken[name] = task.defaults[flag]
        if taken:
            print(f"of task {task.name}: {', '.join(f'{name} {value:g}' for name, value in taken.items())}", flush=True)
        settings = taken | settings
        weights = {aspect.name: aspect.weight for aspect in task.aspects} | dict(settings.pop("weights", None) or {})
        return cls(holistic, task.aspects, weights=weights, flags=flags, task=task, **settings)

    @classmethod
    def from_run(
        cls,
        run_dir: str | Path,
        task: Task | str | None = None,
        device: str = "cpu",
        holistic_server: str | None = UNSAID,
    ) -> HierarchicalReward:
        """The reward of a run of train_ppo.py, from its run.json: task, models, constants, combiner.

        task: if run.json does not name it. holistic_server: instead of the run's; None loads the holistic model here.
        Scores as the run's `--test` scores; a combiner that compares answers to one
        prompt, which `--test` replaces, stays what it was in training. The multipliers of `lagrangian` are those of the
        last checkpoint. Raises UserError if a model or the task's file is not what it was when the run was started.
        """
        from .training.run import Run, read_run_json

        folder = Path(run_dir)
        if not (folder / "run.json").is_file():
            raise UserError(f"{folder} holds no run.json; give the folder of a run of train_ppo.py")
        before = read_run_json(folder)
        task = task or before.get("task_file") or before.get("task")
        if task is None:
            raise UserError(f"{folder / 'run.json'} does not name its task; give task=, `qa`, `mt` or a task's file")
        task = find_task(task) if isinstance(task, str) else task
        args = Namespace(**before)
        try:
            if task.configure is not None:
                task = task.configure(task, args)
            recipe = RewardRecipe.from_flags(args, task)
            models = task.reward_models(args)
            dtype, batch_size = args.dtype, args.rm_max_batch_size
        except AttributeError as error:
            raise UserError(
                f"{folder / 'run.json'} lacks the flag {error.name!r} of task {task.name}; it is of another task, or "
                "of a version before that flag"
            ) from error
        if recipe.length_mean is not None:
            raise UserError(f"the run in {folder} paid for length (--length_reward), which is no reward of texts")
        if recipe.baseline not in ("none", "group"):
            raise UserError(
                f"the run in {folder} compared scores with those of {recipe.baseline} answers, which run.json does not "
                "hold; use from_task with baseline=, a function that gives these answers"
            )
        hashes = before.get("inputs", {}).get("hashes", {})
        now = {role: model_identity(name) for role, name in models.items() if role in hashes}
        if task.source and "task_file" in hashes:
            now["task_file"] = file_identity(task.source)
        for role, identity in now.items():
            if found := changes(hashes[role], identity):
                raise UserError(f"{role} of the run in {folder} is not what it was: {found[0]}; put the old one back")
        multipliers = {}
        if recipe.reward_type == "lagrangian":
            run = Run(folder, {})
            states = [run.read_state(checkpoint)[0] for checkpoint in run.checkpoints()]
            multipliers = states[-1]["multipliers"] if states and states[-1] else {}
        found = cls(
            args.holistic_model or task.holistic,
            task.aspects,
            recipe.reward_type,
            recipe.weights,
            recipe.holistic_weight,
            recipe.threshold,
            recipe.holistic_mean,
            recipe.holistic_std,
            shaping=recipe.shaping,
            placement=recipe.placement,
            baseline=recipe.baseline,
            multipliers=multipliers,
            flags=before,
            holistic_server=before.get("holistic_server") if holistic_server is UNSAID else holistic_server,
            batch_size=batch_size,
            device=device,
            dtype=dtype,
            task=task,
            **{name: getattr(recipe.options, name) for name in CONSTANTS},
        )
        if (probe := before.get("inputs", {}).get(HOLISTIC_PROBE)) is not None:
            found._probes[f"the run in {folder}"] = probe
        return found

    def score(
        self,
        prompts: Sequence[Text],
        answers: Sequence[Text],
        rows: Sequence[dict] | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        response_ids: Sequence[Tensor] | Sequence[list[int]] | None = None,
        *,
        groups: Sequence[Hashable] | None = None,
    ) -> Parts:
        """The reward of each of B answers.

        prompts, answers: texts or conversations (see common.prompts.text_of). rows: data rows, for what reads them.
        With `tokenizer` and `response_ids` (B x (T_i,), the sampled ids) also the reward of each token; aspects then
        read what the ids decode to. Without them an answer counts as one token, and each span of an aspect once,
        whatever its `pay`.
        groups: B labels, equal for answers to one prompt, for what compares them. Without it, equal prompts make a
        group, wherever they stand.

        Equal answers to a prompt, with equal rows and ids, are scored once. An answer without text is scored as it
        stands. If an answer has no holistic reward and no aspect with a weight applies to it, its total is NaN.
        Raises UserError for input that does not fit, for a part that cannot be scored (a function that raises is the
        cause of the error), and if no answer has any part.
        """
        import torch

        from .rewards import aspect_totals, combine
        from .scoring import measure, metrics_of

        # 1. texts, one entry each
        prompts, answers, rows = _checked(prompts, answers, rows)
        if (tokenizer is None) != (response_ids is None):
            raise UserError("give tokenizer and response_ids together, or neither")
        ids = None if response_ids is None else _ids(response_ids, len(answers))
        found_groups = self._groups(groups, prompts)

        # 2. measure what is different
        keys = zip(prompts, answers, map(_row_key, rows), [None] * len(rows) if ids is None else ids, strict=True)
        _, places = distinct((*key[:3], None if key[3] is None else tuple(key[3].tolist())) for key in keys)
        first = _first_of(places)
        rollout = Rollout(
            [],
            None if ids is None else [ids[i] for i in first],
            [prompts[i] for i in first],
            [answers[i] for i in first],
            [rows[i] for i in first],
            torch.zeros(len(first), dtype=torch.bool),
        )
        with self._lock:
            scorer = self._loaded(tokenizer)
            measured = measure(rollout, scorer, self._names)
            if callable(self.baseline):
                measured = replace(measured, baseline=self._baseline(scorer, rollout))
        if not self.has_holistic:
            measured = replace(measured, holistic=torch.zeros(len(first)))
        measured = measured.at(places)

        # 3. pay
        payment = combine(measured, self.recipe, found_groups)
        nothing = self._without_parts(measured)
        rewards = [
            torch.full_like(row, torch.nan) if none else row
            for row, none in zip(payment.rewards, nothing.tolist(), strict=True)
        ]
        missing = torch.full_like(payment.h, torch.nan)
        metrics = metrics_of(measured, payment)
        if not self.has_holistic:
            del metrics["holistic_reward"]
        if ids is None:
            del metrics["response_length"]  # in tokens, which are not known
        return Parts(
            total=torch.stack([row.double().sum() for row in rewards]),
            holistic=payment.h if self.has_holistic else missing,
            gate=payment.gate if self.has_holistic else missing,
            aspects={
                name: aspect_totals(score.values, self.recipe.shaping, self.recipe.placement, score.best).where(
                    torch.tensor(score.applies), torch.nan
                )
                for name, score in measured.aspects.items()
            },
            metrics=metrics,
            tokens=None if ids is None else rewards,
        )

    def counts(self) -> dict[str, int]:
        """What deserves a line at the end, such as inputs that were cut -> how often so far."""
        return {} if self._scorer is None else self._scorer.counts()

    def close(self) -> None:
        """Let go of the models and of what the aspects hold. The next call loads them again."""
        with self._lock:
            if self._scorer is not None:
                self._scorer.close()
            self._scorer = None

    # a copy in another process loads its own models
    def __getstate__(self) -> dict:
        return {name: value for name, value in vars(self).items() if name not in ("_lock", "_scorer")}

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state, _lock=threading.RLock(), _scorer=None)

    # --- steps of the constructor ------------------------------------------------------------------------------------

    @property
    def _names(self) -> tuple[str, ...]:
        return tuple(aspect.name for aspect in self.task.aspects)

    def _named(self, values: Mapping[str, float] | None, what: str) -> dict[str, float]:
        """Numbers by aspect. UserError for a name that is no aspect, and for what is no finite number."""
        return {
            self.task.aspect(name).name: _number(value, f"{what}[{name!r}]") for name, value in (values or {}).items()
        }

    @contextmanager
    def _needs_flags(self) -> Iterator[None]:
        """A UserError if an aspect looks for a constant that nobody gave."""
        try:
            yield
        except AttributeError as error:
            if error.obj is not self.args:
                raise
            raise UserError(
                f"an aspect needs the constant {error.name!r}; give flags={{{error.name!r}: ...}}, or use "
                "HierarchicalReward.from_task, which has the task's defaults"
            ) from error

    def _calibrated(self, path, given: dict, flags: Mapping, quantile: float | None, baseline, own: bool) -> dict:
        """The numbers of a calibration, checked against what is given; those of aspects go into `self.args`."""
        calibration = read_calibration(path, self.task, any_task=not own)
        models = calibrated_models(self.task, self.args, normalised(self.task))
        if "holistic" in calibration.models and self.task.holistic is not None:
            raise UserError(
                f"the calibration {path} is of the holistic model {calibration.models['holistic']['name']}, and "
                "holistic is a function; calibrate again, or give holistic_mean and holistic_std"
            )
        for line in compare_models(calibration, models):
            print(line, flush=True)
        calibration.check_8bit(self.args.holistic_8bit)
        self._probes |= calibration.probe_for(self.args.holistic_server)
        made_with, wanted = calibration.baseline, baseline
        if callable(baseline):
            wanted = made_with if made_with in BASELINES[1:] and made_with != "group" else "of a function"
        if made_with != wanted:
            raise UserError(
                f"the calibration {path} was made with the baseline {made_with}, and this reward has the baseline "
                f"{wanted}; calibrate again"
            )
        if self.has_holistic and "holistic" not in calibration.rewards:
            raise UserError(f"the calibration {path} has no holistic reward; calibrate again with it")
        found = {}
        for name, value in calibration.constants.items():
            argument = {"ultra_mean": "holistic_mean", "ultra_std": "holistic_std"}.get(name)
            if argument in given or name in flags:
                raise UserError(f"{argument or name} and the calibration {path} both say what it is; drop one of them")
            if argument is not None:
                found[argument] = value
            elif name != "length_mean":
                setattr(self.args, name, value)
        if quantile is not None:
            if "threshold" in given:
                raise UserError("threshold and threshold_quantile both set the gate; drop one of them")
            if not 0 < quantile < 1:
                raise UserError(f"threshold_quantile is {quantile}; give a number between 0 and 1")
            found["threshold"] = calibration.threshold(quantile)
        return found

    def _check_recipe(self) -> None:
        recipe = self.recipe
        if not recipe.holistic_std > 0:
            raise UserError(f"holistic_std is {recipe.holistic_std}; give a number above 0")
        if not self.has_holistic and recipe.reward_type in READ_HOLISTIC:
            usable = ", ".join(name for name in COMBINERS if name not in READ_HOLISTIC)
            raise UserError(
                f"combine={recipe.reward_type!r} reads the holistic score, and holistic is None; give one of {usable}"
            )
        if not self.has_holistic and recipe.baseline != "none":
            raise UserError("a baseline is subtracted from the holistic score, and holistic is None; drop one of them")
        if recipe.pays_nothing:
            raise UserError(
                f"combine={recipe.reward_type!r} with these weights pays nothing; give an aspect "
                f"({', '.join(self._names) or 'there is none'}) or the holistic reward a weight"
            )

    # --- steps of a call ---------------------------------------------------------------------------------------------

    def _groups(self, groups: Sequence[Hashable] | None, prompts: list[str]) -> Tensor:
        """(B,) int64. UserError if what compares answers meets a group of one."""
        import torch

        labels = prompts if groups is None else groups.tolist() if hasattr(groups, "tolist") else list(groups)
        if len(labels) != len(prompts):
            raise UserError(f"{len(prompts)} prompts and {len(labels)} groups; give a group for each answer")
        _, ids = distinct(labels)
        comparing = self.recipe.reward_type in ALONE or self.recipe.baseline == "group"
        counts = Counter(ids)
        if comparing and (alone := next((i for i, label in enumerate(ids) if counts[label] < 2), None)) is not None:
            what = f"combine={self.recipe.reward_type!r}" if self.recipe.reward_type in ALONE else "baseline='group'"
            raise UserError(
                f"{what} compares answers to one prompt, and {prompts[alone][:60]!r} has one answer; "
                "give two or more answers to each prompt in a call, or another choice"
            )
        return torch.tensor(ids, dtype=torch.long)

    def _loaded(self, tokenizer):
        import torch

        from .scoring import Scorer, holistic_of, load_scorer

        if self._scorer is None:
            settings = Settings(self.args, tokenizer, torch.device(self.device), getattr(torch, self.dtype))
            with self._needs_flags():
                holistic = holistic_of(self.task, self.args, settings) if self.has_holistic else None
                for source, scores in self._probes.items():
                    holistic.compare(source, scores)
                self._scorer = load_scorer(self.task, self._names, settings, holistic)
        found = self._scorer
        return Scorer(found.holistic, found.aspects, found.task, tokenizer)

    def _baseline(self, scorer, rollout: Rollout) -> Tensor:
        """(N,) float64: the raw holistic scores of the answers to compare with."""
        others = self.baseline(rollout.queries, rollout.examples)
        if not isinstance(others, list | tuple) or len(others) != len(rollout.queries):
            raise UserError("the baseline's function must return a list with one answer for each prompt; fix it")
        texts = [text_of(other, "a baseline's answer") for other in others]
        return scorer.holistic(replace(rollout, responses=texts, response_ids=None)).double()

    def _without_parts(self, measured: Measured) -> Tensor:
        """(B,) bool: nothing that is paid applies to the answer. UserError if that holds for all."""
        import torch

        count = len(measured.lengths)
        if self.has_holistic and self.recipe.holistic_weight != 0 and self.recipe.reward_type != "aspect_only":
            return torch.zeros(count, dtype=torch.bool)
        applies = torch.zeros(count, dtype=torch.bool)
        for name in self.recipe.paid_aspects:
            applies |= torch.tensor(measured.aspects[name].applies)
        if not applies.any():
            raise UserError(
                f"no part of the reward applies to any of {count} answers: {', '.join(self.recipe.paid_aspects)} "
                "returned None for all of them; return a number or spans for some"
            )
        return ~applies


# --- checks of input -------------------------------------------------------------------------------------------------


def _one_of(value: str, known: tuple[str, ...], what: str) -> str:
    if value not in known:
        raise UserError(f"{what} is {value!r}; give one of {', '.join(known)}, or a function where one is taken")
    return value


def _number(value: object, what: str) -> float:
    from math import isfinite
    from numbers import Real

    if not isinstance(value, Real) or not isfinite(value):
        raise UserError(f"{what} is {value!r}; give a finite number")
    return float(value)


def _options(constants: Mapping[str, Any], names: set[str]) -> Options:
    if unknown := constants.keys() - set(CONSTANTS):
        raise UserError(f"there is no constant {min(unknown)!r}; a combiner's constants are {', '.join(CONSTANTS)}")
    check_names(constants.get("references", ()), names | {"holistic"}, "references")
    check_names(constants.get("targets", ()), names, "targets")
    return Options(**constants)


def _checked(prompts, answers, rows) -> tuple[list[str], list[str], list[dict]]:
    """B prompts and answers as texts, and B rows."""
    for what, values in {"prompts": prompts, "answers": answers}.items():
        if isinstance(values, str) or not hasattr(values, "__len__"):
            raise UserError(f"{what} is {type(values).__name__}; give a list with one entry for each answer")
    rows = [{} for _ in answers] if rows is None else list(rows)
    if not len(prompts) == len(answers) == len(rows):
        raise UserError(f"{len(prompts)} prompts, {len(answers)} answers and {len(rows)} rows; give one each")
    if not len(answers):
        raise UserError("there are no answers to score; give one or more")
    return [text_of(one, "a prompt") for one in prompts], [text_of(one, "an answer") for one in answers], rows


def _ids(response_ids, count: int) -> list[Tensor]:
    """B x (T_i,) int64 on the CPU. UserError for another number of them, and for one without tokens."""
    import torch

    ids = [torch.as_tensor(row, dtype=torch.long, device="cpu").flatten() for row in response_ids]
    if len(ids) != count:
        raise UserError(f"{count} answers and {len(ids)} response_ids; give one each")
    if any(len(row) == 0 for row in ids):
        raise UserError("an answer has no token that a reward could lie on; keep its end token in response_ids")
    return ids


def _first_of(places: list[int]) -> list[int]:
    """The first index of each number 0, 1, ... in `places`, where they first appear in this order."""
    found: dict[int, int] = {}
    for i, place in enumerate(places):
        found.setdefault(place, i)
    return list(found.values())


def _row_key(row: dict) -> str:
    """Equal for rows of equal content. What JSON does not have is equal to itself alone."""
    try:
        return json.dumps(row, sort_keys=True, default=lambda part: f"object {id(part)}")
    except (TypeError, ValueError, RecursionError):
        return f"object {id(row)}"
