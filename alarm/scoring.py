"""Measure a rollout: the holistic score of each response, and each aspect on the response's tokens."""

from __future__ import annotations

import math
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from numbers import Real
from typing import TYPE_CHECKING

import torch

from .api import HOLISTIC, LENGTH
from .common.console import cut_inputs
from .common.errors import ServiceError, UserError
from .common.launch import is_main_process
from .tasks.spans import Span, last_token_of, token_offsets, tokens_overlapping
from .types import AspectScore, Measured, Payment, Rollout, Score, TokenScore

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from .api import Aspect, Loaded, Settings, Task

Holistic = Callable[[Rollout], torch.Tensor]  # -> (B,) float32 raw scores


@dataclass(frozen=True)
class Scorer:
    """What measures a rollout."""

    holistic: Holistic | None  # None: nobody asks for it
    aspects: dict[str, Loaded]  # by the aspect's name
    task: Task
    tokenizer: PreTrainedTokenizerBase  # the policy's

    def counts(self) -> dict[str, int]:
        """What deserves a line at the end of a run -> how often so far, on this process."""
        found: dict[str, int] = {}
        for part in (*self.aspects.values(), self.holistic):
            found |= part.counts() if hasattr(part, "counts") else {}
        return found

    def close(self) -> None:
        """Let go of what the aspects hold."""
        for loaded in self.aspects.values():
            if hasattr(loaded, "close"):
                loaded.close()


def load_scorer(task: Task, names: Iterable[str], settings: Settings, holistic: Holistic | None) -> Scorer:
    """Load the named aspects. Raises UserError for a name that is no aspect, and if a model cannot be loaded."""
    loaded = {name: task.aspect(name).load(settings) for name in names}
    return Scorer(holistic, loaded, task, settings.tokenizer)


def measure(rollout: Rollout, scorer: Scorer, names: Iterable[str]) -> Measured:
    """The raw holistic score of each response and the named aspects: nothing weighed, nothing shaped.

    Aspects read the text that the response's tokens decode to, so that a span of it lies on tokens. Those with `start`
    begin first and are finished last: what they wait for goes on beside the models. Nothing else depends on it.
    Raises UserError for a score that cannot be placed, and if an aspect raises; of several the error of the first.
    """
    aspects, names = {}, tuple(names)
    if rollout.response_ids is None:
        # a text counts as one token
        decoded, lengths = [(text, [(0, len(text))]) for text in rollout.responses], [1] * len(rollout.responses)
    else:
        lengths = [len(ids) for ids in rollout.response_ids]
        decoded = [token_offsets(scorer.tokenizer, ids) for ids in rollout.response_ids] if names else []
    read = replace(rollout, responses=[text for text, _ in decoded])
    chosen = {name: scorer.task.aspect(name) for name in names}
    calls = {name: _call_of(scorer.aspects[name], read) for name in names}

    def score(name: str) -> None:
        aspect = chosen[name]
        found = checked(aspect, calls[name][0], read, scorer.task.source)
        if rollout.response_ids is None:
            aspect = replace(aspect, pay="last")
        aspects[name] = place(aspect, found, decoded)

    begun, reached = [name for name in names if calls[name][1]], 0
    try:
        for name in names:
            if name not in begun:
                score(name)
            reached += 1
        holistic = None if scorer.holistic is None else scorer.holistic(rollout)
    except Exception:
        for name in names[:reached]:
            if name in begun:
                score(name)
        raise
    for name in begun:
        score(name)
    aspects = {name: aspects[name] for name in names}
    return Measured(lengths, rollout.too_short, holistic, aspects, rollout.baseline)


def _call_of(loaded: Loaded, rollout: Rollout) -> tuple[Callable[[], object], bool]:
    """What computes an aspect's scores of a rollout, and whether it has begun."""
    if not hasattr(loaded, "start"):
        return lambda: loaded(rollout), False
    try:
        return loaded.start(rollout), True
    except Exception as error:
        failed = error

    def fail() -> None:
        raise failed

    return fail, False


def checked(aspect: Aspect, call: Callable[[], object], rollout: Rollout, source: str) -> AspectScore:
    """What an aspect says of a rollout, by `call`, with a value of each of its metrics.

    Models (that is: what gives an AspectScore) may find NaN, which stays NaN. A function may not.
    Raises UserError, naming the file and the aspect, for anything that is no score.
    """
    where = f"{source}: aspect {aspect.name!r}" if source else f"aspect {aspect.name!r}"
    try:
        found = call()
    except (UserError, ServiceError):
        raise
    except Exception as error:
        raise UserError(f"{where} raised {type(error).__name__}: {error}; fix its function") from error
    scores = found.scores if isinstance(found, AspectScore) else found
    count = len(rollout.responses)
    if not isinstance(scores, list | tuple) or len(scores) != count:
        got = f"{len(scores)} scores" if isinstance(scores, list | tuple) else type(scores).__name__
        raise UserError(f"{where} returned {got} for {count} answers; return a list with one score for each answer")
    if isinstance(found, AspectScore):
        return found
    scores = [_score(score, text, where) for score, text in zip(scores, rollout.responses, strict=True)]
    metrics = {}
    for metric in aspect.metrics:
        value = metric.value or _number_or_count
        metrics[metric.name] = [None if score is None else value(score) for score in scores]
    return AspectScore(scores, metrics, best=aspect.best)


def _number_or_count(score: Score) -> float:
    return len(score) if isinstance(score, list) else score


def _score(score: object, text: str, where: str) -> Score:
    """`score` as plain numbers. UserError if it is none, or spans that are not in order inside `text`."""

    def number(value: object) -> float:
        if not isinstance(value, Real) or not math.isfinite(value):
            raise UserError(f"{where} returned {value!r} for the answer {text[:60]!r}; return a finite number")
        return float(value)

    if score is None:
        return None
    if not isinstance(score, list | tuple):
        return number(score)
    spans, reached = [], 0
    for span in score:
        if not isinstance(span, list | tuple) or len(span) != 3 or not all(isinstance(at, int) for at in span[:2]):
            raise UserError(f"{where} returned the span {span!r}; return (start, end, value), both ends whole numbers")
        start, end, value = span
        if not 0 <= start < end <= len(text):
            raise UserError(
                f"{where} returned the span {start} to {end} of an answer of {len(text)} characters; fix it"
            )
        if start < reached:
            raise UserError(
                f"{where} returned a span that starts at {start}, before {reached}, where one ended; sort them"
            )
        reached = end
        spans.append((start, end, number(value)))
    return spans


def place(aspect: Aspect, found: AspectScore, decoded: list[tuple[str, list[Span]]]) -> TokenScore:
    """Put scores on tokens. decoded: B texts, each with T_i spans of its tokens (`token_offsets`).

    A number goes on the last token; a span's value on the last token of the span, or on each that it touches
    (Aspect.pay). A response without tokens gets nothing.
    """
    tokens, values = [], []
    for score, (_, offsets) in zip(found.scores, decoded, strict=True):
        at = _places(score, offsets, aspect.pay, found.elsewhere)
        tokens.append(torch.tensor([token for token, _ in at], dtype=torch.long))
        values.append(torch.tensor([value for _, value in at], dtype=torch.float64))
    raw = found.raw if found.raw is not None else found.metrics[aspect.metrics[0].name]
    applies = [score is not None for score in found.scores]
    return TokenScore(tokens, values, found.metrics, raw, found.best, applies)


def _places(score: Score, offsets: list[Span], pay: str, elsewhere: float | None) -> list[tuple[int, float]]:
    """(token, value) pairs of one response."""
    if score is None or not offsets:
        return []
    if not isinstance(score, list):
        return [(len(offsets) - 1, score)]
    if pay == "last":
        return [(last_token_of(offsets, (start, end)), value) for start, end, value in score]
    paid = {} if elsewhere is None else dict.fromkeys(range(len(offsets)), elsewhere)
    for start, end, value in score:
        touched = (t for t in tokens_overlapping(offsets, (start, end)) if offsets[t][0] < offsets[t][1])
        paid |= dict.fromkeys(touched, value)
    return list(paid.items())


def metrics_of(measured: Measured, payment: Payment) -> dict[str, list[float | None]]:
    """Name -> B values: the normalised holistic reward, the length, and the metrics of the measured aspects."""
    found = {HOLISTIC: payment.h.tolist(), LENGTH: measured.lengths}
    for aspect in measured.aspects.values():
        found |= aspect.metrics
    return found


class HolisticScorer:
    """A preference model on the answers of a rollout, in this process, behind a server, or divided among processes.

    server: its address. sharded: divided; then each process makes as many calls as the others (`equal_calls`).
    eight_bit: a model in this process has its weights in 8 bits.
    Raises UserError if the model cannot be loaded, or the server is not what it should be.
    """

    def __init__(
        self,
        name: str,
        max_length: int,
        batch_size: int,
        device,
        dtype,
        server: str | None = None,
        sharded: bool = False,
        eight_bit: bool = False,
    ):
        self.limits = {"max_length": max_length, "batch_size": batch_size}
        self.server, self.sharded, self.eight_bit = server, sharded, eight_bit
        self.calls = 0
        if server is not None:
            from .models.holistic_server import HolisticServer

            self.model = HolisticServer(server, name)
            self.model.connect(max_length)
            return
        if sharded:
            from .models.sharded import ShardedHolisticModel

            self.model = ShardedHolisticModel.load(name, device=device, dtype=dtype)
        else:
            from .models.holistic import HolisticModel

            self.model = HolisticModel.load(name, device=device, dtype=dtype, eight_bit=eight_bit)

    def __call__(self, rollout: Rollout) -> torch.Tensor:
        self.calls += 1
        return self.model.score(rollout.queries, rollout.responses, **self.limits)

    def idle(self, due: int) -> None:
        """Call without texts until there were `due` calls."""
        while self.calls < due:
            self.calls += 1
            self.model.score_rows([], 1)

    def counts(self) -> dict[str, int]:
        found = {cut_inputs("holistic"): self.model.truncated}
        return found if self.server is None else found | {"failures of the holistic server": self.model.failures}

    def probe(self) -> list[float]:
        """Raw scores of a few fixed texts, by which models are told apart."""
        return self.model.probe()

    def compare(self, source: str, scores: Sequence[float]) -> None:
        """Raise UserError if `scores`, which `source` has of the same texts, are of another model."""
        from .models.holistic import probe_difference

        if found := probe_difference(scores, self.probe()):
            where = "the holistic model" if self.server is None else f"the holistic server {self.server}"
            raise UserError(f"{where} scores otherwise than {source}: {found}; give the same model to both")


@contextmanager
def equal_calls(holistic: Holistic | None, calls: int) -> Iterator[None]:
    """Within the block each process measures the holistic reward at most `calls` times; at its end they are even.

    For a model that is divided among the processes, which needs all of them for each call: one that has fewer batches,
    or that a service has failed, makes calls without texts.
    """
    if not getattr(holistic, "sharded", False):
        yield
        return
    due = holistic.calls + calls
    try:
        yield
    except ServiceError:
        holistic.idle(due)
        raise
    holistic.idle(due)


class FunctionHolistic:
    """A task's own function instead of a preference model."""

    def __init__(self, task: Task):
        self.function, self.where = task.holistic, f"{task.source}: `holistic`" if task.source else "`holistic`"

    def __call__(self, rollout: Rollout) -> torch.Tensor:
        """Raises UserError for what is not one number for each answer, and if the function raises. NaN stays NaN."""
        count = len(rollout.responses)
        try:
            found = self.function(rollout.queries, rollout.responses, rollout.examples)
        except (UserError, ServiceError):
            raise
        except Exception as error:
            raise UserError(f"{self.where} raised {type(error).__name__}: {error}; fix its function") from error
        found = found.tolist() if hasattr(found, "tolist") else found
        if not isinstance(found, list | tuple) or len(found) != count:
            got = f"{len(found)} numbers" if isinstance(found, list | tuple) else type(found).__name__
            raise UserError(f"{self.where} returned {got} for {count} answers; return a list with one number for each")
        for score in found:
            if not isinstance(score, Real):
                raise UserError(f"{self.where} returned {score!r} for an answer; return a number")
        return torch.tensor([float(score) for score in found], dtype=torch.float32)


def holistic_of(task: Task, args: Namespace, settings: Settings) -> Holistic:
    """The holistic reward that the flags ask for: the task's function, or the model at --holistic_model.

    With --holistic_server that model runs elsewhere, and --holistic_check compares the two. With --holistic_shard it is
    divided among the processes, with --holistic_8bit its weights have 8 bits. Raises UserError.
    """
    if args.holistic_model is None:
        return FunctionHolistic(task)
    name, limits = args.holistic_model, (task.holistic_max_tokens, args.rm_max_batch_size)
    sharded = getattr(args, "holistic_shard", False)  # a flag of the commands that start as several processes
    where = (args.holistic_server, sharded, args.holistic_8bit)
    scorer = HolisticScorer(name, *limits, settings.device, settings.dtype, *where)
    if sharded and is_main_process():
        here, whole = scorer.model.held()
        print(f"holistic model: {here / 2**20:.4g} of {whole / 2**20:.4g} MiB of weights on this process", flush=True)
    if args.holistic_server is not None and is_main_process():
        said = f"holistic model: {scorer.model.model} at {args.holistic_server}"
        if args.holistic_check:
            scorer.compare(name, HolisticScorer(name, *limits, "cpu", settings.dtype).probe())
            print(f"{said}; it scores as {name} does here", flush=True)
        else:
            print(f"{said}; not compared with the weights of {name} (--holistic_check)", flush=True)
    return scorer
