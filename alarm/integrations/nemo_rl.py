"""NeMo-RL: rewards for the `step` of an environment, by component: `reward/holistic` and `reward/<aspect>`.

Lost: the tokens, and in NeMo-RL's log the components: only their sum is in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ..common.errors import UserError
from .host import Host

if TYPE_CHECKING:
    from torch import Tensor

    from ..hierarchical import HierarchicalReward

SUMS = ("hierarchical", "weighted_sum", "holistic_only", "aspect_only")


class NeMoReward:
    """Called with (message_log_batch, metadata): `reward/<name>` -> (B,), as paid, so that they add up to the reward.

    The last message of a log is the answer, those before it are the prompt. A row is the metadata of an answer.
    A combiner that pays the answer as a whole gives the single component `reward/alarm`.
    """

    def __init__(self, reward: HierarchicalReward, **settings):
        self.host = Host(reward, "NeMo-RL", **settings)
        recipe = reward.recipe
        self.parts = recipe.reward_type in SUMS
        holistic = ("holistic",) if reward.has_holistic and recipe.reward_type != "aspect_only" else ()
        names = (*holistic, *recipe.paid_aspects) if self.parts else ("alarm",)
        self.names = tuple(sorted(names))

    def __call__(self, message_log_batch, metadata) -> dict[str, Tensor]:
        import torch

        prompts = [_messages(log[:-1]) for log in message_log_batch]
        answers = [_messages(log[-1:]) for log in message_log_batch]
        rows = [dict(row) if isinstance(row, Mapping) else {} for row in metadata]
        parts = self.host.score(prompts, answers, rows)
        totals = torch.tensor(self.host.totals(parts))
        if not self.parts:
            return {"reward/alarm": totals}
        recipe, found = self.host.reward.recipe, {}
        for name in self.names:
            if name == "holistic":
                found[name] = recipe.holistic_weight * parts.holistic
            else:
                gate = parts.gate if recipe.reward_type == "hierarchical" else 1.0
                found[name] = (recipe.paid[name] * parts.aspects[name] * gate).nan_to_num(0.0)  # does not apply
        if not torch.allclose(sum(found.values()).float(), totals, atol=1e-4):
            raise UserError("the components do not add up to the reward; give combine='weighted_sum' or 'hierarchical'")
        return {f"reward/{name}": values.float() for name, values in found.items()}

    def weights(self, by_name: Mapping[str, float]) -> list[float]:
        """The weights of GDPO for NeMo-RL's configuration, which takes them in the alphabetical order of the names.

        Raises UserError for a name that is missing or unknown.
        """
        if set(by_name) != set(self.names):
            raise UserError(f"weights are of {', '.join(sorted(by_name))}; give those of {', '.join(self.names)}")
        return [float(by_name[name]) for name in self.names]


def _messages(log) -> list[dict]:
    """The messages without their tensors."""
    return [{"role": turn["role"], "content": turn["content"]} for turn in log]
