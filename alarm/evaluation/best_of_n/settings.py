"""Settings: ways to combine the parts of a reward, as recipes of training, and what each pays for every answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from ...api import Task
from ...combiners import Options
from ...common.errors import UserError
from ...common.flags import check_names
from ...recipe import RewardRecipe
from .samples import Samples

if TYPE_CHECKING:
    from argparse import Namespace

    import torch

    from ...types import Scores

MOST = 20_000  # settings: more would fill the memory and say nothing
# what a ranking by each built-in combiner depends on, besides the options of COMBINERS; a task's own: on all
ASPECTS = ("weights", "shaping", "placement")
PARTS = (*ASPECTS, "holistic_weight", "baseline")
READS = {
    "hierarchical": (*PARTS, "threshold"),
    "holistic_only": (),
    "aspect_only": ASPECTS,
    "weighted_sum": PARTS,
    "soft_gate": (*PARTS, "threshold", "gate_temperature"),
    "lagrangian": (*PARTS, "multipliers"),
    "log_sigmoid": (*PARTS, "references"),
    "worst_case": PARTS,
    "uncertainty": (*PARTS, "variance_cost"),
    "stratified": (*ASPECTS, "baseline", "threshold", "failed_range", "passed_range"),
    "decoupled": (*PARTS, "decoupled_cv", "decoupled_conflict"),
}
OPTIONS = tuple(option.name for option in fields(Options))
# options that move the multipliers of a run, or the scale of all rewards: no ranking depends on them
NO_RANKING = ("targets", "multiplier_lr", "decoupled_raw")
FLAGS = {"threshold": "hierarchical_threshold", "holistic_weight": "holistic_reward_weight"}
FLAGS |= {"baseline": "holistic_baseline"}


@dataclass(frozen=True)
class Scale:
    """The mean and the standard deviation that normalise the holistic scores of one baseline."""

    mean: float
    std: float
    source: str  # where they come from, in words
    level: float = 0.0  # mean raw score: what training subtracts from an answer without a group


@dataclass(frozen=True)
class Setting:
    """One way to combine, and its flags of train_ppo.py."""

    recipe: RewardRecipe
    flags: dict[str, Any]

    @property
    def command(self) -> str:
        """Its flags as they are typed."""
        words = []
        for name, value in self.flags.items():
            if value is True:
                words.append(f"--{name}")
            elif isinstance(value, dict):
                words += [f"--{name} {','.join(f'{key}={number}' for key, number in value.items())}"] if value else []
            elif value is not False:
                words.append(f"--{name} {value}")
        return " ".join(words)


def grid(
    task: Task,
    names: Sequence[str],
    lists: dict[str, Sequence],
    weights: dict[str, Sequence[float]],
    scales: dict[str, Scale],
    thresholds: dict[str, Sequence[float]],
) -> list[Setting]:
    """All settings of the named combiners.

    lists: field of the recipe, or option -> its values. weights: aspect -> its values. scales, thresholds: of each
    baseline. Only what a combiner reads is varied; of the rest the first value is taken. Weights that are all 0 are
    left out where aspects are paid. Raises UserError if no weights are left, and for more than MOST settings.
    """
    rows = [dict(zip(weights, row, strict=True)) for row in product(*weights.values())]
    found = []
    for name in names:
        reads = READS.get(name, (*PARTS, "threshold", "multipliers", *OPTIONS))
        varied = {key: list(values) if key in reads else list(values)[:1] for key, values in lists.items()}
        some = [row for row in rows if any(row.values())] if "weights" in reads else rows[:1]
        if not some:
            raise UserError(f"--combine {name} with weights of 0 has nothing to combine; give an aspect a weight")
        count = len(some) * max(map(len, thresholds.values()))
        for values in varied.values():
            count *= len(values)
        if len(found) + count > MOST:
            raise UserError(f"the lists give more than {MOST} settings at {name}; shorten one of them")
        for row, *values in product(some, *varied.values()):
            chosen = dict(zip(varied, values, strict=True))
            scale = scales[chosen["baseline"]]
            of_recipe = {key: value for key, value in chosen.items() if key not in OPTIONS}
            options = Options(**{key: value for key, value in chosen.items() if key in OPTIONS})
            ends = thresholds[chosen["baseline"]]
            for threshold in ends if "threshold" in reads else ends[:1]:
                recipe = RewardRecipe(
                    name, threshold, weights=row, holistic_mean=scale.mean, holistic_std=scale.std, level=scale.level,
                    options=options, combiner=task.all_combiners[name], **of_recipe,
                )  # fmt: skip
                found.append(Setting(recipe, _flags(task, recipe, reads)))
    return found


def _flags(task: Task, recipe: RewardRecipe, reads: Sequence[str]) -> dict[str, Any]:
    """What train_ppo.py is given to train with this recipe: what its combiner reads."""
    found: dict[str, Any] = {"reward_type": recipe.reward_type}
    for name in reads:
        if name == "weights":
            found |= {aspect.flag: recipe.weights[aspect.name] for aspect in task.aspects}
        elif name in OPTIONS:
            found[name] = getattr(recipe.options, name)
        elif name != "multipliers":
            found[FLAGS.get(name, name)] = getattr(recipe, name)
    if recipe.baseline != "none" and "baseline" in reads:
        found |= {"ultra_mean": recipe.holistic_mean, "ultra_std": recipe.holistic_std}
        if recipe.baseline == "group":
            found["holistic_level"] = recipe.level
    return found


class Payer:
    """What settings pay for the answers. Each part is shaped and normalised once, for all settings that share it."""

    def __init__(self, samples: Samples):
        import torch

        self.samples = samples
        self.groups = torch.from_numpy(np.unique(samples.index, return_inverse=True)[1])
        self.too_short = torch.tensor([not answer.strip() for answer in samples.answers])
        self.values = {name: [torch.from_numpy(row) for row in rows] for name, rows in samples.values.items()}
        self._levels: dict[str, torch.Tensor] = {}
        self._totals: dict[tuple, torch.Tensor] = {}

    def level(self, recipe: RewardRecipe) -> torch.Tensor:
        """Raw holistic scores less the recipe's baseline. -> (B,) float64."""
        import torch

        from ...rewards import less_baseline
        from ...types import Measured

        if recipe.baseline not in self._levels:
            baseline = None
            if recipe.baseline in ("greedy", "reference"):
                baseline = torch.from_numpy(self.samples.baseline)
            raw = torch.from_numpy(self.samples.raw)
            measured = Measured([1] * len(raw), self.too_short, raw, {}, baseline)
            self._levels[recipe.baseline] = less_baseline(measured, recipe, self.groups)
        return self._levels[recipe.baseline]

    def scores(self, recipe: RewardRecipe) -> Scores:
        """What the recipe's combiner reads."""
        import torch

        from ...rewards import aspect_totals, normalise_holistic, open_gate
        from ...types import Scores

        h = normalise_holistic(self.level(recipe), recipe.holistic_mean, recipe.holistic_std, self.too_short)
        names = tuple(recipe.paid)
        columns = []
        for name in names:
            key = (name, recipe.shaping, recipe.placement == "mean_over_spans")
            if key not in self._totals:
                best = self.samples.best[name]
                self._totals[key] = aspect_totals(self.values[name], recipe.shaping, recipe.placement, best)
            columns.append(self._totals[key])
        return Scores(
            h=h,
            gate=open_gate(h, self.too_short, recipe.threshold),
            aspects=torch.stack(columns, dim=1) if columns else h.new_zeros(len(h), 0),
            weights=h.new_tensor([recipe.paid[name] for name in names]),
            names=names,
            counted=~self.too_short,
            groups=self.groups,
        )

    def pay(self, recipe: RewardRecipe) -> np.ndarray:
        """What each answer is paid in all. -> (B,) float64."""
        from ...rewards import total_rewards

        return total_rewards(self.scores(recipe), recipe).numpy()


def scale_of(payer: Payer, baseline: str) -> Scale:
    """Measured on the answers with text, as a calibration measures. UserError if they are all equal."""
    level = payer.level(replace(PLAIN, baseline=baseline))[~payer.too_short].numpy()
    mean, std = (float(level.mean()), float(level.std())) if len(level) else (0.0, 0.0)
    if std <= 1e-6 * np.abs(level).max(initial=0.0):
        raise UserError(f"the holistic scores of {payer.samples.path} are all equal; look at the holistic model")
    mean = 0.0 if abs(mean) < 1e-12 * std else mean  # less the mean of each prompt
    return Scale(mean, std, "measured on these answers", level_of(payer))


def level_of(payer: Payer) -> float:
    """The mean raw holistic score of the answers with text."""
    return payer.level(PLAIN)[~payer.too_short].mean().item()


PLAIN = RewardRecipe("holistic_only", 0.0, 1.0)


def listed(args: Namespace, task: Task) -> dict[str, Sequence]:
    """Field of the recipe, or option -> the values that the flags list."""
    found = {"holistic_weight": args.holistic_reward_weight, "shaping": args.shaping, "placement": args.placement}
    found |= {"baseline": args.holistic_baseline, "multipliers": [args.multipliers]}
    found |= {name: getattr(args, name) for name in OPTIONS if name not in NO_RANKING}
    names = {aspect.name for aspect in task.aspects}
    for flag, known in {"references": names | {"holistic"}, "multipliers": names}.items():
        check_names((name for numbers in found[flag] for name in numbers), known, f"--{flag}")
    return found
