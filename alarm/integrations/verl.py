"""verl: a file with `compute_score = reward.verl(prompt="question")`, or a reward manager.

Lost: the tokens, except with a colocated reward model and GAE: `reward.verl_manager(tokens=True)`.
verl scores one answer a call, so that nothing can compare the answers to one prompt.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..common.errors import UserError
from .host import Host

if TYPE_CHECKING:
    from ..hierarchical import HierarchicalReward


def score_function(reward: HierarchicalReward, prompt: str, **settings) -> Callable[..., dict[str, float]]:
    """`compute_score`. prompt: the key of `extra_info` that holds the prompt, which verl does not pass.

    The row is `extra_info`, with `data_source` and `ground_truth`. NaN: an aspect does not apply.
    """
    host = Host(reward, "verl", alone=True, **settings)

    def compute_score(data_source, solution_str, ground_truth, extra_info=None, **_) -> dict[str, float]:
        row = dict(extra_info or {}) | {"data_source": data_source, "ground_truth": ground_truth}
        if prompt not in row:
            raise UserError(f"extra_info has no {prompt!r}; put the prompt there when you prepare the data")
        parts = host.score([row[prompt]], [solution_str], [row])
        return {"score": host.totals(parts)[0]} | {name: values[0] for name, values in host.columns(parts).items()}

    return compute_score


def manager(reward: HierarchicalReward, tokens: bool = False, **settings) -> type:
    """A class of verl's reward managers, for `reward.reward_manager.source=importlib`.

    tokens: give token rewards, which verl takes on its colocated path alone. The prompt is `raw_prompt`, so the data
    need `data.return_raw_chat=True`.
    """
    import torch
    from verl.experimental.reward_loop.reward_manager.base import RewardManagerBase

    host = Host(reward, "verl", alone=True, **settings)

    class AlarmRewardManager(RewardManagerBase):
        def __init__(self, config, tokenizer, compute_score=None, **_):
            super().__init__(config, tokenizer, compute_score)

        async def run_single(self, data) -> dict:
            item = data[-1]  # the last of several turns is the answer
            row = dict(item.non_tensor_batch)
            if "raw_prompt" not in row:
                raise UserError("the batch has no raw_prompt; set data.return_raw_chat=True")
            width = len(item.batch["responses"])
            ids = item.batch["responses"][item.batch["attention_mask"][-width:].bool()]
            text = self.tokenizer.decode(ids, skip_special_tokens=True)
            how = {"tokenizer": self.tokenizer, "response_ids": [ids]} if tokens else {}
            prompt = list(row["raw_prompt"])
            score = asyncio.to_thread(host.score, [prompt], [text], [row], [len(ids)], **how)
            parts = await score
            (total,) = host.totals(parts)
            extra = {"score": total} | {name: values[0] for name, values in host.columns(parts).items()}
            return {"reward_score": parts.tokens[0].tolist() if tokens else total, "reward_extra_info": extra}

        @classmethod
        def assemble_rm_scores(cls, data, scores) -> torch.Tensor:
            if not tokens:
                return super().assemble_rm_scores(data, scores)
            found = torch.zeros_like(data.batch["responses"], dtype=torch.float32)
            mask = data.batch["attention_mask"][:, -found.shape[1] :].bool()
            for row, kept, values in zip(found, mask, scores, strict=True):
                row[kept] = torch.tensor(values)
            return found

    return AlarmRewardManager
