"""How rewards are combined, as data. Importing this loads no torch."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING

from .combiners import ALONE, COMBINERS, Combiner, Options

if TYPE_CHECKING:
    from argparse import Namespace

    from .api import Task

SHAPINGS = ("none", "sigmoid", "centred")
PLACEMENTS = ("spans", "mean_over_spans", "last", "uniform")
BASELINES = ("none", "greedy", "reference", "group")


@dataclass(frozen=True)
class RewardRecipe:
    """How aspect and holistic rewards become the one reward that PPO sees."""

    reward_type: str  # a name in COMBINERS, or of the task's own combiner
    threshold: float  # hierarchical: aspects are added where h >= threshold
    holistic_weight: float  # w_h
    weights: dict[str, float] = field(default_factory=dict)  # aspect name -> w
    holistic_mean: float = 0.0  # of raw holistic scores (less their baseline), for the z-normalisation
    holistic_std: float = 1.0
    length_mean: float | None = None  # set: T / length_mean takes the place of the aspect sum (an ablation)
    shaping: str = "none"  # of each value of an aspect; one of SHAPINGS
    placement: str = "spans"  # of an aspect's values on the response's tokens; one of PLACEMENTS
    baseline: str = "none"  # what is subtracted from a raw holistic score; one of BASELINES
    level: float = 0.0  # raw: of an answer outside of a group, instead of the group's mean
    options: Options = field(default_factory=Options)  # constants of the combiners
    multipliers: dict[str, float] = field(default_factory=dict)  # lagrangian: aspect name -> l; 0 if not named
    combiner: Combiner | None = None  # None: the one that `reward_type` names

    @classmethod
    def from_flags(cls, args: Namespace, task: Task) -> RewardRecipe:
        """From the parsed flags of train_ppo.py."""
        return cls(
            reward_type=args.reward_type,
            threshold=args.hierarchical_threshold,
            holistic_weight=args.holistic_reward_weight,
            weights=task.weights(args),
            holistic_mean=args.ultra_mean,
            holistic_std=args.ultra_std,
            length_mean=args.length_mean if args.length_reward else None,
            shaping=args.shaping,
            placement=args.placement,
            baseline=args.holistic_baseline,
            level=args.holistic_level,
            options=Options(**{option.name: getattr(args, option.name) for option in fields(Options)}),
            combiner=task.all_combiners[args.reward_type],
        )

    @property
    def paid(self) -> dict[str, float]:
        """What is added to the holistic reward: name -> weight. An aspect of weight 0 takes no part."""
        if self.length_mean is not None:
            return {"length": 1.0}
        return {name: weight for name, weight in self.weights.items() if weight != 0}

    @property
    def paid_aspects(self) -> tuple[str, ...]:
        """The aspects whose values reach the reward. The others need not be computed to train."""
        return () if self.reward_type == "holistic_only" or self.length_mean is not None else tuple(self.paid)

    @property
    def pays_nothing(self) -> bool:
        """Whether every answer would be paid 0, because of weights of 0."""
        aspects = self.reward_type != "holistic_only" and bool(self.paid)
        holistic = self.reward_type != "aspect_only" and self.holistic_weight != 0
        if self.reward_type == "lagrangian":  # its shares are those of aspects
            holistic = holistic and aspects
        if self.reward_type == "stratified":  # w_h is the weight of all of it
            aspects = False
        return not aspects and not holistic

    @property
    def alone(self) -> RewardRecipe:
        """The same, for answers that are not compared with others to their prompt: a dev file, --test."""
        name = ALONE.get(self.reward_type)
        return self if name is None else replace(self, reward_type=name, combiner=COMBINERS[name])

    def __post_init__(self):
        for what, known in {"shaping": SHAPINGS, "placement": PLACEMENTS, "baseline": BASELINES}.items():
            if getattr(self, what) not in known:
                raise ValueError(f"{what} {getattr(self, what)!r} is none of {', '.join(known)}")
        if self.combiner is None:
            if self.reward_type not in COMBINERS:
                raise ValueError(f"reward_type {self.reward_type!r} is none of {', '.join(COMBINERS)}")
            object.__setattr__(self, "combiner", COMBINERS[self.reward_type])
