"""SkyRL: a generator around yours, with token rewards: `reward.skyrl(SkyRLGymGenerator(...), tokenizer)`.

Nothing is lost: SkyRL takes a reward for each token. Algorithms that sum them (GRPO) read the sum alone. What the
environment gave is replaced. Multi-turn trajectories that are split by step are refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ..common.errors import UserError
from .host import Host

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ..hierarchical import HierarchicalReward


class TokenRewards:
    """A `GeneratorInterface`: what the generator gives, with `rewards` B x (T_i,) and each part's mean as a metric.

    The answer is what the loss counts (`loss_masks` 1). A row is the `env_extras` of a prompt. Answers of one
    `instance_id` make a group.
    """

    def __init__(self, reward: HierarchicalReward, generator, tokenizer: PreTrainedTokenizerBase, **settings):
        self.host, self.generator, self.tokenizer = Host(reward, "SkyRL", **settings), generator, tokenizer

    def __getattr__(self, name: str):
        return getattr(self.__dict__["generator"], name)  # what else the trainer asks a generator for

    async def generate(self, input_batch, **how) -> dict:
        output = await self.generator.generate(input_batch, **how)
        prompts, ids = input_batch["prompts"], [torch.tensor(row) for row in output["response_ids"]]
        if len(ids) != len(prompts):
            raise UserError("the generator splits trajectories by step; set generator.step_wise_trajectories=false")
        masks = [torch.tensor(row).bool() for row in output["loss_masks"]]
        answers = [row[mask] for row, mask in zip(ids, masks, strict=True)]
        texts = self.tokenizer.batch_decode(answers, skip_special_tokens=True)
        rows = [dict(row) for row in input_batch.get("env_extras") or [{}] * len(prompts)]
        labels = input_batch.get("trajectory_ids")
        groups = None if labels is None else [label.instance_id for label in labels]
        asked = {"tokenizer": self.tokenizer, "response_ids": answers, "groups": groups}
        parts = self.host.score(prompts, texts, rows, [len(row) for row in answers], **asked)
        self.host.totals(parts)  # each is a number
        output["rewards"] = []
        for mask, values in zip(masks, parts.tokens, strict=True):
            whole = torch.zeros(len(mask))
            whole[mask] = values
            output["rewards"].append(whole.tolist())
        means = {f"alarm/{name}": torch.tensor(of).nanmean().item() for name, of in self.host.columns(parts).items()}
        output["rollout_metrics"] = (output.get("rollout_metrics") or {}) | means
        return output
