"""The hierarchical reward without a trainer: prompts and answers in, rewards out. Importing this loads no torch."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .api import Aspect, Settings, Task
from .combiners import COMBINERS, Combiner
from .common.errors import UserError
from .types import Rollout

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Parts:
    """The reward of B answers, and what it is made of."""

    total: torch.Tensor  # (B,) float64: the sum of an answer's token rewards
    holistic: torch.Tensor  # (B,) float64, z-normalised
    gate: torch.Tensor  # (B,) float64: 1 open, 0 closed
    aspects: dict[str, list[float]]  # name -> B sums of an aspect's shaped values, before weight and gate
    metrics: dict[str, list[float | None]]  # name -> B values
    tokens: list[torch.Tensor] | None  # B x (T_i,) float32; None without response_ids


class HierarchicalReward:
    """One holistic score and several aspects, combined: aspects count once an answer is good overall.

    holistic: folder or hub name of a preference model; or a function (prompts, answers, rows) -> B numbers.
    aspects: of a task (TASK.aspects), or your own. One without a weight takes no part in the reward.
    combine: a name in alarm.combiners.COMBINERS, or such a function. weights: aspect -> weight. holistic_weight: w_h.
    threshold: z-normalised holistic score from which the aspects count. holistic_mean, holistic_std: for that score.
    flags: constants of aspects with models, such as {"reward_model_dir": ...}; the others have their defaults.

    Models load at the first call. Raises UserError for an unknown name, and for what an aspect cannot score.
    """

    def __init__(
        self,
        holistic: str | Callable[[list[str], list[str], list[dict]], list[float]],
        aspects: Sequence[Aspect],
        combine: str | Combiner = "hierarchical",
        weights: Mapping[str, float] | None = None,
        holistic_weight: float = 1.0,
        threshold: float = 0.0,
        holistic_mean: float = 0.0,
        holistic_std: float = 1.0,
        shaping: str = "none",
        placement: str = "spans",
        flags: Mapping[str, Any] | None = None,
        holistic_max_tokens: int = 1024,
        batch_size: int = 8,
        device: str = "cpu",
        dtype: str = "float32",
    ):
        if not callable(combine) and combine not in COMBINERS:
            raise UserError(f"combine is {combine!r}; give one of {', '.join(COMBINERS)}, or a function")
        self.task = Task(
            "reward",
            prompt=str,
            aspects=aspects,
            holistic=holistic if callable(holistic) else None,
            holistic_max_tokens=holistic_max_tokens,
        )
        self.weights = {aspect.name: 0.0 for aspect in self.task.aspects}
        for name, weight in (weights or {}).items():
            self.weights[self.task.aspect(name).name] = weight
        self.combine, self.shaping, self.placement = combine, shaping, placement
        self.holistic_weight, self.threshold = holistic_weight, threshold
        self.holistic_mean, self.holistic_std = holistic_mean, holistic_std
        defaults = {flag.name: flag.default for aspect in self.task.aspects for flag in aspect.flags}
        self.args = Namespace(**defaults | {"rm_max_batch_size": batch_size} | dict(flags or {}))
        self.args.holistic_model = None if callable(holistic) else holistic
        self.device, self.dtype = device, dtype
        self._scorer = None

    def score(
        self,
        prompts: list[str],
        answers: list[str],
        rows: list[dict] | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        response_ids: list[torch.Tensor] | None = None,
    ) -> Parts:
        """The reward of each answer.

        With `tokenizer` and `response_ids` (B x (T_i,), the sampled ids) also of each token. Without them an answer
        counts as one token, and each span of an aspect once, whatever its `pay`.
        """
        import torch

        from .rewards import RewardRecipe, aspect_rewards, combine
        from .scoring import measure, metrics_of

        if (tokenizer is None) != (response_ids is None):
            raise UserError("give tokenizer and response_ids together, or neither")
        if rows is None:
            rows = [{} for _ in answers]
        if not len(prompts) == len(answers) == len(rows):
            raise UserError(f"{len(prompts)} prompts, {len(answers)} answers and {len(rows)} rows; give one each")
        recipe = RewardRecipe(
            self.combine if isinstance(self.combine, str) else self.combine.__name__,
            self.threshold,
            self.holistic_weight,
            self.weights,
            self.holistic_mean,
            self.holistic_std,
            shaping=self.shaping,
            placement=self.placement,
            combiner=self.combine if callable(self.combine) else None,
        )
        too_short = torch.zeros(len(answers), dtype=torch.bool)
        rollout = Rollout([], response_ids, list(prompts), list(answers), list(rows), too_short)
        measured = measure(rollout, self._loaded(tokenizer), self.weights)
        payment = combine(measured, recipe)
        return Parts(
            total=torch.stack([rewards.double().sum() for rewards in payment.rewards]),
            holistic=payment.h,
            gate=payment.gate,
            aspects={
                name: [row.sum().item() for row in aspect_rewards(score, measured.lengths, self.shaping)]
                for name, score in measured.aspects.items()
            },
            metrics=metrics_of(measured, payment),
            tokens=None if response_ids is None else payment.rewards,
        )

    def _loaded(self, tokenizer):
        import torch

        from .scoring import Scorer, holistic_of, load_scorer

        if self._scorer is None:
            settings = Settings(self.args, tokenizer, torch.device(self.device), getattr(torch, self.dtype))
            self._scorer = load_scorer(self.task, self.weights, settings, holistic_of(self.task, self.args, settings))
        found = self._scorer
        return Scorer(found.holistic, found.aspects, found.task, tokenizer)
