"""A task as data: what the policy reads, what is rewarded, and how it is measured. Importing this loads no torch.

A task lives in one file. `--task FILE.py` of every command reads the name TASK from it; `qa` and `mt` are built in.

    from alarm import Aspect, Metric, Task

    def brevity(prompts, answers, rows):             # one number an answer: paid on its last token
        return [-len(answer.split()) / 20 for answer in answers]

    TASK = Task("headlines", prompt=lambda row: row["text"], aspects=[Aspect("brevity", brevity)])

docs/extending.md shows the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from .common.files import read_rows
from .common.flags import finite_float

if TYPE_CHECKING:
    import argparse

    import torch
    from transformers import PreTrainedTokenizerBase

    from .types import AspectScore, Rollout

    Score = float | list[tuple[int, int, float]] | None  # of one answer: a number, spans of its text, or nothing

PAY = ("last", "tokens")


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
    no_aspect: str = ""  # why it cannot stand for its aspect when one is selected

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
    statistic: str = ""  # `mean` or `std`: the statistic of the aspect's raw scores by which --calibration replaces it


class Loaded(Protocol):
    """An aspect that was loaded: anything that can be called with a rollout. It may also have

    counts() -> dict[str, int]    what deserves a line at the end of a run -> how often so far, on this process
    close() -> None               lets go of what it holds
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
    pay: where a span's value goes. `last`: on the last token of the span; values that meet add up. `tokens`: on each
        token that the span touches; where two spans touch one token, the later one decides.
    metrics: what is logged and compared. One whose values the scores do not bring along, and that is alone, is the
        sum of the values of an answer. Default: one metric of the aspect's name.
    flag, weight: name (without --) and default of its weight. A new aspect takes no part unless it is given one.
    calibrated: what a calibration describes, in words; a mean and deviation of it can stand for `flags`.
    """

    name: str
    score: Callable[[list[str], list[str], list[dict]], list[Score]] | Loadable
    pay: str = "last"
    metrics: Sequence[Metric] = ()
    flag: str = ""
    weight: float = 0.0
    flags: Sequence[Flag] = ()
    calibrated: str = ""

    def __post_init__(self):
        if self.pay not in PAY:
            raise ValueError(f"aspect {self.name}: pay is {self.pay!r}; it must be one of {', '.join(PAY)}")
        object.__setattr__(self, "metrics", tuple(self.metrics) or (Metric(self.name),))
        object.__setattr__(self, "flag", self.flag or f"w_{self.name}")

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
    answer: data row -> the text that `alarm.train_sft` teaches. Default: its field `answer`.
    defaults: flag (without --) -> the task's own default of it; see `training.flags.DEFAULTS` for the others.
    flags: the task's own. `finish(args)` may then set what follows from them.
    splits: (args, names of splits) -> their rows; default: `load` of --train_file, --dev_file, --test_file.
    holistic_max_tokens: of prompt and answer together, as the holistic model reads them.
    columns: order of the metrics (their keys in files) in results; default: holistic, length, then the aspects'.
    paper: what the paper reports of the task, to stand beside results; see evaluation.report.
    """

    name: str
    prompt: Callable[[dict], str]
    aspects: Sequence[Aspect]
    max_input_len: int = 512
    max_generated_len: int = 128
    load: Callable[[str | Path], list[dict]] = read_rows
    answer: Callable[[dict], str] = field(default=lambda row: row["answer"])
    defaults: Mapping[str, Any] = field(default_factory=dict)
    flags: Sequence[Flag] = ()
    finish: Callable[[argparse.Namespace], None] | None = None
    splits: Callable[[argparse.Namespace, Sequence[str]], dict[str, list[dict]]] | None = None
    holistic_max_tokens: int = 1024
    columns: Sequence[str] = ()
    paper: Mapping[str, Any] = field(default_factory=dict)
