"""Hugging Face's TRL: GRPOTrainer and RLOOTrainer take `reward_funcs=[reward.trl()]`.

Lost: the tokens. TRL takes one number an answer, so that a span's value counts as part of the sum, wherever it stands.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ..common.errors import UserError
from .host import Host, rows_of

if TYPE_CHECKING:
    from ..hierarchical import HierarchicalReward

NOT_COLUMNS = ("environments",)


class TRLReward:
    """A reward function. Logs the mean of each part (`holistic`, `gate_rate`, each aspect), and each part by answer.

    num_generations: as in GRPOConfig; needed by what compares the answers to one prompt. They must all be scored on
    one process. name: of the reward in TRL's log.
    """

    def __init__(self, reward: HierarchicalReward, num_generations: int | None = None, name: str = "alarm", **settings):
        self.host, self.num_generations, self.__name__ = Host(reward, "TRL", **settings), num_generations, name
        if self.host.compares and (num_generations or 0) < 2:
            raise UserError("this reward compares the answers to one prompt; give num_generations, as in GRPOConfig")

    def __call__(
        self,
        prompts,
        completions,
        completion_ids=None,
        log_metric=None,
        log_extra=None,
        trainer_state=None,
        **columns,
    ) -> list[float | None]:
        """B rewards; None for an answer that no part applies to. The columns of the data set are the rows."""
        count, size = len(completions), self.num_generations
        groups = None
        if self.host.compares:
            groups = [i // size for i in range(count)]
            if count % size or any(prompts[i] != prompts[i - i % size] for i in range(count)):
                raise UserError(
                    f"{count} answers are no whole groups of {size} to one prompt: give num_generations as in "
                    "GRPOConfig, and a per_device_train_batch_size that it divides"
                )
        logged = [row["kl"] for row in getattr(trainer_state, "log_history", []) if "kl" in row]
        lengths = None if completion_ids is None else [len(ids) for ids in completion_ids]
        rows = rows_of({name: values for name, values in columns.items() if name not in NOT_COLUMNS}, count)
        parts = self.host.score(prompts, completions, rows, lengths, logged[-1] if logged else None, groups=groups)
        totals = self.host.totals(parts, abstain=True)
        for name, values in self.host.columns(parts).items():
            known = [value for value in values if not math.isnan(value)]
            if log_metric is not None and known:
                log_metric("gate_rate" if name == "gate" else name, sum(known) / len(known))
            if log_extra is not None:
                log_extra(name, [None if math.isnan(value) else value for value in values])
        return totals
