"""What the exits share: score a batch for a trainer, watch it, and refuse what a trainer would misread."""

from __future__ import annotations

import atexit
import functools
import math
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from ..combiners import ALONE
from ..common.errors import UserError
from ..diagnostics import Diagnostics, Scale, Seen

if TYPE_CHECKING:
    from ..hierarchical import HierarchicalReward, Parts

TAKEN = ("holistic", "gate", "gate_rate", "score", "total", "reward")  # other keys of logs


class Host:
    """A reward, as a trainer calls it.

    alone: the trainer scores one answer a call, so that nothing can be compared. diagnostics: print warnings, and at
    the end of the process whether the policy has collapsed. max_length: of a response, in tokens.
    """

    def __init__(
        self,
        reward: HierarchicalReward,
        trainer: str,
        alone: bool = False,
        diagnostics: bool = False,
        max_length: int | None = None,
    ):
        self.reward, self.trainer = reward, trainer
        self.weighted = [aspect for aspect in reward.task.aspects if reward.recipe.weights[aspect.name] != 0]
        self.compares = reward.recipe.reward_type in ALONE or reward.recipe.baseline == "group"
        if taken := {aspect.name for aspect in reward.task.aspects} & set(TAKEN):
            raise UserError(f"an aspect is named {min(taken)!r}, which {trainer}'s log needs; give it another name")
        if alone and self.compares:
            what = "baseline='group'" if reward.recipe.baseline == "group" else f"combine={reward.recipe.reward_type!r}"
            instead = ALONE.get(reward.recipe.reward_type, "none")
            raise UserError(
                f"{what} compares the answers to one prompt, and {trainer} scores one answer a call; "
                f"give {instead!r}, or use a trainer that scores groups, such as TRL"
            )
        self.diagnostics = None
        if diagnostics:
            known = reward.has_holistic and (reward.recipe.holistic_mean, reward.recipe.holistic_std) != (0.0, 1.0)
            scales = {"holistic_reward": Scale(0.0, 1.0)} if known else {}
            self.diagnostics = Diagnostics(scales, max_length, reward.recipe.reward_type)
            atexit.register(self.last_words)
        self._lock = threading.Lock()

    def score(self, prompts, answers, rows, lengths: Sequence[int] | None = None, kl=None, **how) -> Parts:
        """reward.score(...). lengths: in tokens, kl: nats a token, for the diagnostics alone."""
        parts = self.reward.score(prompts, answers, rows, **how)
        if self.diagnostics is not None:
            with self._lock:
                self._watch(parts, answers, lengths, kl)
        return parts

    def totals(self, parts: Parts, abstain: bool = False) -> list[float | None]:
        """B rewards. abstain: None for an answer that no part applies to. Raises UserError for what is no number."""
        totals = parts.total.tolist()
        for i, total in enumerate(totals):
            if not math.isfinite(total):
                applies = self.reward.has_holistic or any(
                    parts.metrics[metric.name][i] is not None for aspect in self.weighted for metric in aspect.metrics
                )
                if applies:
                    raise UserError(f"the reward of an answer is {total}: a reward model gave no number; look at it")
                if not abstain:
                    raise UserError(
                        f"no aspect applies to an answer, and {self.trainer} needs a number for each; give a "
                        "holistic reward, or an aspect that applies to all answers"
                    )
                totals[i] = None
        return totals

    def columns(self, parts: Parts) -> dict[str, list[float]]:
        """holistic, gate and each aspect -> B numbers; NaN where an aspect does not apply."""
        found = {"holistic": parts.holistic.tolist(), "gate": parts.gate.tolist()} if self.reward.has_holistic else {}
        return found | {name: values.tolist() for name, values in parts.aspects.items()}

    def _watch(self, parts: Parts, answers, lengths, kl) -> None:
        from ..common.prompts import text_of

        texts = [text_of(answer, "an answer").strip() for answer in answers]
        kept = [i for i, text in enumerate(texts) if text and math.isfinite(parts.total[i])]
        lengths = [len(text.split()) for text in texts] if lengths is None else lengths
        recipe = self.reward.recipe
        weights = recipe.paid | ({"holistic": recipe.holistic_weight} if recipe.reward_type != "aspect_only" else {})
        columns = self.columns(parts)
        at = {name: [values[i] for i in kept] for name, values in columns.items()}
        seen = Seen(
            empty=[float(not text) for text in texts],
            length=[lengths[i] for i in kept],
            reward=[parts.total[i].item() for i in kept],
            gate=at.get("gate", []),
            parts={name: [weights[name] * x for x in at[name]] for name in at if name in weights},
            kl=kl,
            drifting={"holistic_reward": at.get("holistic", [])},
        )
        _, warnings = self.diagnostics.update(seen)
        for line in warnings.values():
            self._say(line)

    def last_words(self) -> None:
        """Print whether the policy has collapsed."""
        for line in self.diagnostics.collapsed():
            self._say(line)

    def _say(self, line: str) -> None:
        if os.environ.get("RANK", "0") == "0":
            print(f"warning: {line}", file=sys.stderr, flush=True)


def rows_of(columns: Mapping[str, object], count: int) -> list[dict]:
    """B data rows, from the columns among keyword arguments: lists with an entry for each answer."""
    kept = {name: values for name, values in columns.items() if isinstance(values, list) and len(values) == count}
    return [{name: values[i] for name, values in kept.items()} for i in range(count)]


def stopping(function: Callable) -> Callable:
    """For a trainer that goes on after an exception, with a reward of 0 or none: an exception ends the process instead.

    It is a SystemExit with code 2, which `except Exception` does not catch, after one line on stderr.
    """

    @functools.wraps(function)
    def wrapped(*args, **kwargs):
        try:
            return function(*args, **kwargs)
        except Exception as error:
            line = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            print(
                f"error: the reward failed, and training stops: {' '.join(line.split())}", file=sys.stderr, flush=True
            )
            raise SystemExit(2) from error

    return wrapped
