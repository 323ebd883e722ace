"""Long-form QA: the rewards for relevance, factuality and completeness.

Importing this module loads no torch: what can be checked without a model is checked first.
"""

from __future__ import annotations

import math
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ...common.console import cut_inputs
from ...common.threads import beside
from ...models.classifiers import NO_ERR, TextScorer, UnitClassifier, check_classifier
from ...types import AspectScore, Rollout
from ..sentences import Splitter, find_splitter, make_splitter, subsentence_spans
from ..spans import Span

if TYPE_CHECKING:
    from torch import Tensor

    from ...api import Settings

MODEL_FOLDERS = {"relevance": "rel_rm", "factuality": "fact_rm", "completeness": "comp_rm"}
RATE_WITHOUT_UNITS = 0.5


# --- what the reward models read -------------------------------------------------------------------------------------


def relevance_context(question: str) -> str:
    return f"question: {question} answer:"


def factuality_context(prompt: str) -> str:
    return f"{prompt} answer:"


def completeness_text(prompt: str, answer: str) -> str:
    return f"{' '.join(prompt.split())} answer: {answer}"


# --- units of an answer ----------------------------------------------------------------------------------------------


def judge_units(logits: Tensor, error: int) -> list[float]:
    """(K, 3) logits at the K separators -> for each unit 1.0 correct, 0.0 wrong, NaN if a logit is not finite.

    A unit is correct if the logit for "no error" is above the one for `error`.
    """
    import torch

    correct = (logits[:, NO_ERR] > logits[:, error]).float()
    return correct.masked_fill(~torch.isfinite(logits).all(dim=1), torch.nan).tolist()


def rate(correct: list[float]) -> float:
    """Correct units / all units; 0.5 if there is none, NaN if one is NaN."""
    return sum(correct) / len(correct) if correct else RATE_WITHOUT_UNITS


def sentences(texts: list[str], splitter: Splitter) -> list[list[Span]]:
    return splitter(texts)


def subsentences(texts: list[str], splitter: Splitter) -> list[list[Span]]:
    return [subsentence_spans(text, spans) for text, spans in zip(texts, splitter(texts), strict=True)]


# --- the aspects -----------------------------------------------------------------------------------------------------


class _ModelAspect:
    """An aspect with a reward model in the folder `MODEL_FOLDERS[name]` of --reward_model_dir."""

    name: str
    kind: str  # of its classifier

    @property
    def role(self) -> str:
        return f"the {self.name} reward model"

    def folder(self, args: Namespace) -> Path:
        return Path(args.reward_model_dir) / MODEL_FOLDERS[self.name]

    def models(self, args: Namespace) -> dict[str, Path]:
        return {f"reward_model_dir/{MODEL_FOLDERS[self.name]}": self.folder(args)}

    def check(self, args: Namespace) -> None:
        """Raise UserError for a folder that cannot be the model's, and for a sentence splitter that is absent."""
        check_classifier(self.folder(args), self.role, self.kind)


@dataclass(frozen=True)
class UnitAspect(_ModelAspect):
    """Each unit of an answer is correct or not: it is paid --{name}_positive_reward or --{name}_negative_reward."""

    name: str
    error: int  # the label of a wrong unit
    context: Callable[[Rollout], list[str]]  # -> B texts that the units are judged in
    units: Callable[[list[str], Splitter], list[list[Span]]]  # B answers -> the units of each
    kind = "TokenClassification"

    def check(self, args: Namespace) -> None:
        super().check(args)
        find_splitter(args.splitter)

    def load(self, settings: Settings) -> LoadedUnits:
        args = settings.args
        model = UnitClassifier(self.folder(args), self.role, settings.device, settings.dtype, args.rm_max_batch_size)
        values = tuple(getattr(args, f"{self.name}_{sign}_reward") for sign in ("positive", "negative"))
        return LoadedUnits(self, model, make_splitter(args.splitter), values)


@dataclass(frozen=True)
class LoadedUnits:
    """A UnitAspect with its model. values: of a correct and of an incorrect unit."""

    aspect: UnitAspect
    model: UnitClassifier
    splitter: Splitter
    values: tuple[float, float]

    def start(self, rollout: Rollout) -> Callable[[], AspectScore]:
        units = beside(self.aspect.units, rollout.responses, self.splitter)
        return lambda: self.judged(rollout, units())

    def __call__(self, rollout: Rollout) -> AspectScore:
        return self.judged(rollout, self.aspect.units(rollout.responses, self.splitter))

    def judged(self, rollout: Rollout, units: list[list[Span]]) -> AspectScore:
        """A span with its value for each unit, and the rate of correct units (0.5 if there is none).

        A unit that the model's length limit left unread gets no value and counts in no rate.
        """
        texts, contexts = rollout.responses, self.aspect.context(rollout)
        judged = [i for i, spans in enumerate(units) if spans]
        read = [[texts[i][start:end] for start, end in units[i]] for i in judged]
        logits = dict(zip(judged, self.model([contexts[i] for i in judged], read), strict=True))
        correct = [judge_units(logits[i], self.aspect.error) if i in logits else [] for i in range(len(texts))]
        scores = [
            [(start, end, self.value(good)) for (start, end), good in zip(spans, found, strict=False)]
            for spans, found in zip(units, correct, strict=True)
        ]
        metrics = {f"{self.aspect.name}_rate": [rate(found) for found in correct]}
        return AspectScore(scores, metrics, best=self.values[0])

    def value(self, good: float) -> float:
        return good if math.isnan(good) else self.values[0] if good else self.values[1]

    def counts(self) -> dict[str, int]:
        return {cut_inputs(self.aspect.name): self.model.truncated}


@dataclass(frozen=True)
class Completeness(_ModelAspect):
    """The score of one model for the whole answer, normalised, scaled, and paid on the last token."""

    name: str = "completeness"
    kind = "SequenceClassification"

    def load(self, settings: Settings) -> LoadedCompleteness:
        args = settings.args
        model = TextScorer(self.folder(args), self.role, settings.device, settings.dtype, args.rm_max_batch_size)
        constants = (getattr(args, f"completeness_reward_{part}") for part in ("mean", "std", "scale", "bias"))
        return LoadedCompleteness(model, *constants)


@dataclass(frozen=True)
class LoadedCompleteness:
    """Completeness with its model and the constants of ((raw - mean) / std) * scale + bias."""

    model: TextScorer
    mean: float
    std: float
    scale: float
    bias: float

    def __call__(self, rollout: Rollout) -> AspectScore:
        pairs = zip(rollout.queries, rollout.responses, strict=True)
        raw = self.model([completeness_text(query, response) for query, response in pairs])
        values = [(score - self.mean) / self.std * self.scale + self.bias for score in raw]
        return AspectScore(values, {"completeness_reward": values}, raw)

    def counts(self) -> dict[str, int]:
        return {cut_inputs("completeness"): self.model.truncated}
