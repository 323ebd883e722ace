"""A task as data: what the policy reads, what is rewarded, and how it is measured. Importing this loads no torch.

A task lives in one file. `--task FILE.py` of every command reads the name TASK from it; `qa` and `mt` are built in.

    from alarm import Aspect, Metric, Task

    def brevity(prompts, answers, rows):             # one number an answer: paid on its last token
        return [-len(answer.split()) / 20 for answer in answers]

    TASK = Task("headlines", prompt=lambda row: row["text"], aspects=[Aspect("brevity", brevity)])

docs/extending.md shows the rest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from .combiners import COMBINERS, Combiner
from .common.errors import UserError
from .common.files import read_rows
from .common.flags import finite_float

if TYPE_CHECKING:
    import argparse

    import torch
    from transformers import PreTrainedTokenizerBase

    from .types import AspectScore, Rollout, Score

PAY = ("last", "tokens")
# metrics of every task
HOLISTIC, LENGTH = "holistic_reward", "response_length"
# parts of a payment beside the aspects: names that no aspect may have
HOLISTIC_PART, RESPONSE_PART = "holistic", "response"
# the score of the holistic model itself: no baseline subtracted, not normalised
RAW_HOLISTIC = "raw_holistic"
# key of the scores of a few fixed texts, by which a holistic model is known
HOLISTIC_PROBE = "holistic_probe"
# other keys of generations files and logs, which no metric may have
RESERVED = ("query", "generation", "index", "total_reward", "reward", "gate_rate", "empty_rate", "aspect_paid")
RESERVED += ("sample", RAW_HOLISTIC, "holistic_baseline", "aspects")
RESERVED += (
    "holistic_paid",
    "response_paid",
    "aspect_share",
    "skipped",
    "kl",
    "kl_coef",
    "entropy",
    "policy_kl",
    "early_stopped",
)


def total(score: Score) -> float:
    """The sum of the values of one answer."""
    return sum(value for _, _, value in score) if isinstance(score, list) else score


def _check_name(name: object, what: str) -> None:
    """Raise UserError for a name that can be no flag, log key and file key."""
    if not isinstance(name, str) or not name.isascii() or not name.isidentifier():
        raise UserError(f"{what} is named {name!r}; give letters, digits and underscores, a letter first")


@dataclass(frozen=True)
class Metric:
    """A column of the generations files and of every comparison."""

    name: str
    lower_wins: bool = False
    title: str = ""  # of its panel in a plot; default: the name with spaces
    ends: tuple[float, float] | None = None  # its least and greatest possible value, if both exist
    published: str = ""  # its key in files, if that is another than its name
    # how two scores of one text can differ: by "rounding" alone, by a whole unit ("units": a share of units, one of
    # which rounding can turn), or by the tokens that the text came from ("tokens")
    differs_by: str = "rounding"
    depends_on: str = ""  # flags to look at if a recorded value comes out otherwise
    no_aspect: str = ""  # why it cannot represent its aspect when one is selected
    value: Callable[[Score], float] | None = None  # of one score; default: the number itself, or how many spans it has

    @property
    def key(self) -> str:
        """Its key in generations files and results."""
        return self.published or self.name


@dataclass(frozen=True)
class Flag:
    """A command-line constant of a task or an aspect. The default stands here and nowhere else."""

    name: str
    default: Any
    help: str
    kind: Callable[[str], Any] = finite_float
    choices: Sequence[str] | None = None
    used_by: str = "all"  # the commands that have it: all; "score", those that compute rewards; "ppo", train_ppo alone
    statistic: str = ""  # `mean` or `std`: the statistic of the aspect's raw scores by which --calibration replaces it


class Loaded(Protocol):
    """An aspect that was loaded: anything that can be called with a rollout. It may also have

    counts() -> dict[str, int]    what deserves a line at the end of a run -> how often so far, on this process
    close() -> None               lets go of what it holds
    start(rollout) -> Callable[[], AspectScore | list[Score]]
        begins what can go on beside the models, such as requests to a server, in a thread of its own
        (common.threads.beside). What it returns waits for that and finishes: the same result as a call with the
        rollout. The thread must share nothing with other aspects and draw no random numbers of torch.
    """

    def __call__(self, rollout: Rollout) -> AspectScore | list[Score]: ...


class Loadable(Protocol):
    """An aspect with models, services or flags of its own (usually a class). It may also have

    check(args) -> None                        raise UserError for what is wrong; loads no model
    models(args) -> dict[str, str | Path]      role -> folder or hub name of each model that it loads
    """

    def load(self, settings: Settings) -> Loaded: ...


@dataclass(frozen=True)
class Settings:
    """What an aspect is loaded with."""

    args: argparse.Namespace  # the parsed flags, its own among them
    tokenizer: PreTrainedTokenizerBase  # the policy's
    device: torch.device
    dtype: torch.dtype


@dataclass(frozen=True)
class Aspect:
    """One narrow reward.

    score: a function (prompts, answers, rows) -> B scores, or something with `load` (see `Loadable`). A score is a
        float, paid on the answer's last token, or a list of (start, end, value) spans of the answer's characters, in
        order and without overlap; None: the aspect does not apply to this answer.
    pay: the tokens that get a span's value. `last`: the last token of the span; values that meet add up. `tokens`: each
        token that the span touches; if two spans touch one token, the later one decides.
    metrics: what is logged and compared. Default: one of the aspect's name, the sum of an answer's values. The first
        that may (see Metric.no_aspect) represents the aspect in a selection.
    flag, weight: name (without --) and default of its weight. A new aspect takes no part unless it is given one.
    flags: constants of its own, for one with `load`.
    calibrated: what a calibration describes, in words.
    best: the value of a unit without fault, for a function; `--shaping centred` pays 0 for it.
    """

    name: str
    score: Callable[[list[str], list[str], list[dict]], list[Score]] | Loadable
    pay: str = "last"
    metrics: Sequence[Metric] = ()
    flag: str = ""
    weight: float = 0.0
    flags: Sequence[Flag] = ()
    calibrated: str = ""
    best: float = 0.0

    def __post_init__(self):
        what = f"aspect {self.name!r}"
        _check_name(self.name, "an aspect")
        if not callable(self.score) and not hasattr(self.score, "load"):
            raise UserError(f"{what}: its score is {type(self.score).__name__}; give a function or a class with `load`")
        if self.pay not in PAY:
            raise UserError(f"{what}: pay is {self.pay!r}; give one of {', '.join(PAY)}")
        object.__setattr__(self, "metrics", tuple(self.metrics) or (Metric(self.name, value=total),))
        object.__setattr__(self, "flags", tuple(self.flags))
        object.__setattr__(self, "flag", self.flag or f"w_{self.name}")
        for name in (self.flag, *(flag.name for flag in self.flags)):
            _check_name(name, f"a flag of {what}")
        for metric in self.metrics:
            _check_name(metric.name, f"a metric of {what}")

    def check(self, args: argparse.Namespace) -> None:
        """Raise UserError for what is wrong and can be seen without loading a model."""
        if hasattr(self.score, "check"):
            self.score.check(args)

    def models(self, args: argparse.Namespace) -> dict[str, str | Path]:
        """Role -> folder or hub name of the models that it loads."""
        return self.score.models(args) if hasattr(self.score, "models") else {}

    def load(self, settings: Settings) -> Loaded:
        """What scores a rollout. Loads the aspect's models."""
        if hasattr(self.score, "load"):
            return self.score.load(settings)
        return lambda rollout: self.score(rollout.queries, rollout.responses, rollout.examples)


@dataclass(frozen=True)
class Task:
    """What a policy is trained for.

    prompt: data row -> the text that the policy reads.
    load: path -> data rows, checked. Default: any JSON list or JSON lines of objects.
    answer: data row -> the text that `alarm.train_sft` teaches, or several. Default: its field `answer`.
    defaults: flag (without --) of train_ppo -> the task's own default; see `training.flags.DEFAULTS` for the others.
    load_answered: `load` of train_sft, which may need less or more of a row; default: `load`.
    sft: the same for train_sft; see `learning.sft.DEFAULTS`.
    repeats: questions that train and dev share stay in training, because the data repeat their formulas.
    flags: the task's own. configure(task, args) then gives the task as these flags make it, and sets the flags of
        `replaces`: flags of every task (such as max_input_len) that this one does not have.
    splits: (args, names of splits) -> their rows; default: `load` of --train_file, --dev_file, --test_file.
    holistic_max_tokens: of prompt and answer together, as the holistic model reads them.
    columns: order of the metrics (their keys in files) in results; default: holistic, length, then the aspects'.
    paper: what the paper reports of the task, to stand beside results; see evaluation.report.
    combiners: name -> the task's own ways to combine, for --reward_type; see alarm.combiners.
    reward_prompt: data row -> the prompt as the reward models read it; default: `prompt`.
    holistic: (prompts, answers, rows) -> B numbers, instead of a preference model; --holistic_model overrides it.
    """

    name: str
    prompt: Callable[[dict], str]
    aspects: Sequence[Aspect]
    load_answered: Callable[[str | Path], list[dict]] | None = None
    sft: Mapping[str, Any] = field(default_factory=dict)
    repeats: bool = False
    max_input_len: int = 512
    max_generated_len: int = 128
    load: Callable[[str | Path], list[dict]] = read_rows
    answer: Callable[[dict], str | list[str]] = field(default=lambda row: row["answer"])
    defaults: Mapping[str, Any] = field(default_factory=dict)
    flags: Sequence[Flag] = ()
    replaces: Sequence[str] = ()
    configure: Callable[[Task, argparse.Namespace], Task] | None = None
    splits: Callable[[argparse.Namespace, Sequence[str]], dict[str, list[dict]]] | None = None
    holistic_max_tokens: int = 1024
    columns: Sequence[str] = ()
    paper: Mapping[str, Any] = field(default_factory=dict)
    combiners: Mapping[str, Combiner] = field(default_factory=dict)
    reward_prompt: Callable[[dict], str] | None = None
    holistic: Callable[[list[str], list[str], list[dict]], list[float]] | None = None
    source: str = ""  # the file that it comes from, for messages

    def __post_init__(self):
        _check_name(self.name, "a task")
        object.__setattr__(self, "aspects", tuple(self.aspects))
        names = [HOLISTIC, LENGTH]
        for what, found in {
            "aspects": [aspect.name for aspect in self.aspects],
            "metrics": names + [name for metric in self.metrics for name in {metric.name, metric.key}],
            "flags": [flag for aspect in self.aspects for flag in (aspect.flag, *(own.name for own in aspect.flags))]
            + [flag.name for flag in self.flags],
        }.items():
            twice = [name for name, count in Counter(found).items() if count > 1]
            if twice:
                raise UserError(f"task {self.name}: two {what} are named {twice[0]}; give each a name of its own")
        for aspect in self.aspects:
            if aspect.name in (HOLISTIC_PART, RESPONSE_PART):
                raise UserError(f"task {self.name}: an aspect cannot be named {aspect.name}, which logs use; rename it")
        for metric in self.metrics:
            if {metric.name, metric.key} & set(RESERVED):
                raise UserError(f"task {self.name}: a metric cannot be named {metric.name}, which logs use; rename it")
        if taken := self.combiners.keys() & COMBINERS.keys():
            raise UserError(f"task {self.name}: the combiner {min(taken)} is built in; give yours another name")
        unknown = set(self.columns) - {HOLISTIC, LENGTH, *(metric.key for metric in self.metrics)}
        if unknown:
            raise UserError(f"task {self.name}: columns name {min(unknown)}, which is no metric; remove it")

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The metrics of all aspects."""
        return tuple(metric for aspect in self.aspects for metric in aspect.metrics)

    @property
    def all_combiners(self) -> dict[str, Combiner]:
        """The built-in combiners and the task's own."""
        return COMBINERS | dict(self.combiners)

    @property
    def lower_wins(self) -> frozenset[str]:
        """The keys in files of the metrics of which the lower value wins."""
        return frozenset(metric.key for metric in self.metrics if metric.lower_wins)

    @property
    def columns_in_order(self) -> tuple[str, ...]:
        """The keys in files of all metrics, in the order of results."""
        rest = (HOLISTIC, LENGTH, *(metric.key for metric in self.metrics))
        return (*self.columns, *(key for key in rest if key not in self.columns))

    def rows(
        self,
        args: argparse.Namespace,
        names: Sequence[str],
        load: Callable[[str | Path], list[dict]] | None = None,
    ) -> dict[str, list[dict]]:
        """The rows of the named splits: of `splits`, or of the files --train_file, --dev_file, --test_file.

        load: reads a file, instead of the task's `load`. UserError for a file that is not named or cannot be read.
        """
        if self.splits is not None:
            return self.splits(args, names)
        found = {}
        for name in names:
            path = getattr(args, f"{name}_file")
            if path is None:
                raise UserError(f"--{name}_file is not given; name the file of the {name} prompts")
            found[name] = (load or self.load)(path)
        return found

    def aspect(self, name: str) -> Aspect:
        """The aspect of this name. UserError with the names that exist if there is none."""
        for aspect in self.aspects:
            if aspect.name == name:
                return aspect
        known = ", ".join(aspect.name for aspect in self.aspects)
        raise UserError(f"{name!r} is no aspect of task {self.name}; its aspects are {known}")

    def reward_models(self, args: argparse.Namespace) -> dict[str, str | Path]:
        """Flag -> folder or hub name of each reward model that the numbers of a run depend on."""
        models = {} if args.holistic_model is None else {"holistic_model": args.holistic_model}
        for aspect in self.aspects:
            models |= aspect.models(args)
        return models

    def weights(self, args: argparse.Namespace) -> dict[str, float]:
        """Aspect -> weight, from parsed flags."""
        return {aspect.name: getattr(args, aspect.flag) for aspect in self.aspects}
