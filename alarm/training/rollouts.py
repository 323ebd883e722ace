"""Answers that training keeps in rollouts.jsonl, so that what a policy learns can be read: which, and what of them.

No random number is drawn and nothing that trains is touched: a run is the same with and without them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tqdm.auto import tqdm

from ..common.texts import prompt_id
from ..diagnostics import GATED
from ..scoring import metrics_of
from ..tasks.spans import token_offsets
from ..types import Measured, Payment, Rollout
from .run import ROLLOUTS, finite

if TYPE_CHECKING:
    from collections.abc import Iterable

    from accelerate import Accelerator
    from transformers import PreTrainedTokenizerBase

    from trl import PPOTrainer

    from ..recipe import RewardRecipe
    from .rollout import Prompt
    from .run import Run

BY_TOKEN = ("token_ids", "tokens", "token_rewards")  # lists, too long for a tracker's table


# --- which -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """Of which steps rows are kept: those of first, first + interval, ..., and of the last step.

    At most `bound` rows of the former. When there would be more, every second of these steps is left out, the kept ones
    too, so that all of training stays in sight. What is kept depends on step numbers alone: a run that was resumed
    keeps the same. Without rows, nothing is kept.
    """

    first: int
    interval: int
    last: int
    rows: int  # of a step; at most `bound`
    bound: int

    def stride(self, now: int) -> int:
        """Of the steps first, first + interval, ... up to `now`, each one in how many is kept: 1, 2, 4, ..."""
        steps, stride = (now - self.first) // self.interval + 1, 1
        while -(-steps // stride) * self.rows > self.bound:
            stride *= 2
        return stride

    def keeps(self, step: int, now: int) -> bool:
        """Whether rows of `step` are in the file after step `now`."""
        on_grid = step >= self.first and (step - self.first) % (self.interval * self.stride(now)) == 0
        return self.rows > 0 and (on_grid or step == self.last)

    def thins(self, step: int) -> bool:
        """Whether at `step`, before its rows are added, rows of earlier steps have to go."""
        return self.rows > 0 and step > self.first and self.stride(step) > self.stride(step - 1)


def whole_groups(most: int, samples: int, there: int) -> int:
    """How many of `there` answers in groups of `samples` are kept: at most `most`, in whole groups if one fits."""
    return min(there, most // samples * samples or most)


# --- what ------------------------------------------------------------------------------------------------------------


def token_texts(tokenizer: PreTrainedTokenizerBase, ids) -> list[str]:
    """The text of each sampled id; joined they are the decoded answer. A special token has none.

    A character whose bytes lie in several tokens is given to the first of them.
    """
    text, offsets = token_offsets(tokenizer, ids)
    found, reached = [], 0
    for start, end in offsets:
        found.append(text[max(start, reached) : end])
        reached = max(reached, end)
    return found


def rows_of(
    prompts: Sequence[Prompt],
    rollout: Rollout,
    measured: Measured,
    payment: Payment,
    recipe: RewardRecipe,
    tokenizer: PreTrainedTokenizerBase,
    places: Iterable[int],
    kl: Sequence[float] | None = None,
) -> list[dict]:
    """One row for each answer at `places` of a batch; docs/runs.md says what each key holds.

    prompts: B, of the answers. recipe: by which they were paid. kl: B nats between policy and reference; None: unknown.
    """
    metrics, gated = metrics_of(measured, payment), recipe.reward_type in GATED
    metrics = {name: metrics[name] for aspect in measured.aspects.values() for name in aspect.metrics}
    rows = []
    for k in places:
        gate = payment.gate[k].item()
        row = {
            "prompt_id": prompt_id(prompts[k].query),
            "prompt": prompts[k].text,
            "generation": rollout.responses[k],
            "token_ids": rollout.response_ids[k].tolist(),
            "tokens": token_texts(tokenizer, rollout.response_ids[k]),
            "token_rewards": payment.rewards[k].tolist(),
            "holistic_raw": None if measured.holistic is None else measured.holistic[k].item(),
            "holistic": payment.h[k].item(),
            "aspects": {
                name: score.values[k].sum().item() if score.applies is None or score.applies[k] else None
                for name, score in measured.aspects.items()
            },
            "paid": {name: part[k].item() for name, part in payment.parts.items()},
            "gate": bool(gate) if gated and gate in (0, 1) else None,
            "reward": payment.rewards[k].sum().item(),
            "kl": None if kl is None else float(kl[k]),
            "length": measured.lengths[k],
            "empty": bool(rollout.too_short[k]),
            "metrics": {name: values[k] for name, values in metrics.items()},
        }
        rows.append(row)
    return rows


def numbered(rows: Sequence[dict], step: int, split: str) -> list[dict]:
    """The rows of one step with `step`, `split` and `sample`: 0 for the first answer to a prompt, 1 for the next."""
    seen: dict[str, int] = {}
    found = []
    for row in rows:
        sample = seen.get(row["prompt_id"], 0)
        seen[row["prompt_id"]] = sample + 1
        found.append({"step": step, "split": split, "prompt_id": row["prompt_id"], "sample": sample} | row)
    return found


def as_table(rows: Sequence[dict]) -> tuple[list[str], list[list]]:
    """Column names, and the rows as texts and numbers: an object has a column for each of its names.

    Without the lists by token, which only the file has. What is not finite is None, as in the file.
    """
    flat = []
    for row in finite(list(rows)):
        found = {}
        for name, value in row.items():
            if isinstance(value, dict):
                found |= {f"{name}/{inner}": number for inner, number in value.items()}
            elif name not in BY_TOKEN:
                found[name] = value
        flat.append(found)
    columns = list(dict.fromkeys(name for row in flat for name in row))
    return columns, [[row.get(name) for name in columns] for row in flat]


# --- written ---------------------------------------------------------------------------------------------------------


class Rollouts:
    """Keeps answers of training steps and of dev evaluations, in a run's rollouts.jsonl and in the tracker.

    plans: split -> Plan. All processes call the same methods; the main one writes.
    """

    def __init__(self, run: Run, ppo: PPOTrainer, tokenizer: PreTrainedTokenizerBase, plans: dict[str, Plan]):
        self.run, self.ppo, self.tokenizer, self.plans = run, ppo, tokenizer, plans

    @property
    def accelerator(self) -> Accelerator:
        return self.ppo.accelerator

    def are_due(self, split: str, step: int) -> bool:
        return self.plans[split].keeps(step, step)

    def count(self, split: str) -> int:
        """Answers of a step."""
        return self.plans[split].rows

    def add(self, split: str, step: int, rows: Sequence[dict]) -> None:
        """Keep the rows of one step. rows: from `rows_of`, of all processes, in their order."""
        if not self.are_due(split, step):
            return
        rows = numbered(rows, step, split)
        if self.accelerator.is_main_process:
            self.run.add(ROLLOUTS, rows)
        self.ppo.log_table(f"rollouts/{split}", *as_table(rows))

    def make_room(self, split: str, step: int) -> None:
        """Remove the rows of every second step where `step` would bring more than the bound, and say so."""
        plan = self.plans[split]
        if not self.accelerator.is_main_process or not plan.thins(step):
            return
        self.run.keep(ROLLOUTS, lambda row: row["split"] != split or plan.keeps(row["step"], step))
        each = plan.interval * plan.stride(step)
        tqdm.write(
            f"{ROLLOUTS} has reached --max_rollouts {plan.bound} for {split}: from now on it has rows of "
            f"one in {each} steps, earlier steps included"
        )

    def say(self) -> None:
        """Say what will be kept, on the main process."""
        train, dev = self.plans["train"], self.plans["dev"]
        if not self.accelerator.is_main_process or not train.rows:
            return
        shown = [
            f"{train.rows} answers of one in {train.interval} steps"
            if train.interval > 1
            else f"{train.rows} answers a step"
        ]
        shown += [f"{dev.rows} at each dev evaluation"] if dev.rows else []
        end = train.interval * train.stride(train.last)
        thinned = f" (for that, of one in {end} steps at the end of this run)" if end > train.interval else ""
        print(f"{ROLLOUTS}: {', '.join(shown)}; at most {train.bound} rows of each{thinned}", flush=True)
