"""verifiers: `Rubric(**reward.verifiers())`.

Lost: the tokens. verifiers logs an exception and goes on with a reward of 0: here one ends the process.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ..common.errors import UserError
from .host import Host, stopping

if TYPE_CHECKING:
    from ..hierarchical import HierarchicalReward


def rubric(reward: HierarchicalReward, groups: bool = False, metrics: bool = True, **settings) -> dict[str, list]:
    """`funcs` and `weights` of a Rubric: the reward, and for the log each part with weight 0.

    groups: score all answers to a prompt in one call, which is faster, and needed by what compares them. A row is
    `info` with `answer`. The parts of an answer are in state["alarm"] too; None: an aspect does not apply.
    """
    host = Host(reward, "verifiers", alone=not groups, **settings)

    def score(prompts, completions, answers, states, infos) -> list[float]:
        rows = [dict(info or {}) | {"answer": answer} for info, answer in zip(infos, answers, strict=True)]
        labels = [0] * len(states) if groups else None
        parts = host.score(prompts, completions, rows, groups=labels)
        totals, columns = host.totals(parts), host.columns(parts)
        for i, state in enumerate(states):
            state["alarm"] = {name: None if math.isnan(of[i]) else of[i] for name, of in columns.items()}
        return totals

    @stopping
    def alarm(prompt, completion, answer, state, info):
        return score([prompt], [completion], [answer], [state], [info])[0]

    @stopping
    def alarm_group(prompts, completions, answers, states, infos):
        return score(prompts, completions, answers, states, infos)

    alarm_group.__name__ = "alarm"
    names = ([*("holistic", "gate")] if reward.has_holistic else []) + [aspect.name for aspect in reward.task.aspects]
    funcs = [alarm_group if groups else alarm, *(_part(name) for name in (names if metrics else ()))]
    return {"funcs": funcs, "weights": [1.0] + [0.0] * (len(funcs) - 1)}


def _part(name: str):
    """A metric that reads what `alarm` has found. verifiers calls the functions in their order."""

    @stopping
    def part(state):
        value = state["alarm"][name]
        if value is None:
            raise UserError(f"{name} does not apply to an answer, for which verifiers has no word; give metrics=False")
        return value

    part.__name__ = name
    return part
