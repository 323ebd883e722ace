"""ms-swift: a plug-in file with `orms["alarm"] = reward.ms_swift()`; then `--reward_funcs alarm`.

Lost: the tokens, and in ms-swift's log each part but the sum.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..common.errors import UserError
from .host import Host, rows_of

if TYPE_CHECKING:
    from ..hierarchical import HierarchicalReward


def orm(reward: HierarchicalReward, **settings) -> type:
    """A class of ORMs. The prompt is `messages` without the last one; the columns of the data set are the rows.

    Answers with equal prompts make a group. None: no part applies.
    """
    from swift.rewards import ORM

    host = Host(reward, "ms-swift", **settings)

    class AlarmORM(ORM):
        def __call__(self, completions, messages=None, response_token_ids=None, **columns) -> list[float | None]:
            if messages is None:
                raise UserError("ms-swift passed no `messages`, which hold the prompt; use version 4 or later")
            count = len(completions)
            rows = rows_of({name: values for name, values in columns.items() if name not in NOT_COLUMNS}, count)
            tokens = [ids for ids in response_token_ids or [] if ids]
            lengths = [_length(ids) for ids in tokens] if len(tokens) == count else None
            parts = host.score([turns[:-1] for turns in messages], completions, rows, lengths)
            return host.totals(parts, abstain=True)

    return AlarmORM


NOT_COLUMNS = ("prompt_id", "request_id", "finish_reason", "is_truncated", "rollout_infos", "trajectory_inputs")


def _length(ids) -> int:
    """Of the turns of an answer: lists of ids, or one such list."""
    return sum(map(len, ids)) if isinstance(ids[0], list) else len(ids)
