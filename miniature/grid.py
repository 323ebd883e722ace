"""Which runs the grid has. A run is a name, the questions of PLAN.md that it answers, and its flags of train_ppo.py."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product

from alarm.combiners import COMBINERS

from .settings import World

QUESTIONS = {
    "a": "which combination",
    "b": "quality against KL over training",
    "c": "does re-ranking predict training",
    "d": "flipped preferences",
    "e": "shaping and placement",
    "f": "the threshold",
    "g": "does inconsistency choose the aspect that helps",
    "h": "controls",
    "i": "misaligned rewards",
    "j": "paid for readability",
    "k": "absolute or per-prompt holistic scores",
}
ORDER = "abkdehfijcg"  # of the work, so that a grid that is not finished says something
PAPER = ("holistic_only", "hierarchical", "weighted_sum", "aspect_only")  # the reward types of the paper
ASPECT_WEIGHTS = (0.03, 0.09, 0.3, 1.0)  # tried for each combiner on dev prompts, as multiples of the world's own
HOLISTIC_WEIGHTS = (0.5, 1.0, 2.0, 4.0)  # for holistic_only, which pays no aspect
SHAPINGS, PLACEMENTS = ("none", "sigmoid", "centred"), ("spans", "mean_over_spans")
ALONE = {  # metric of an aspect -> its weight's flag
    "mt": {"error_rate": "w_grammar", "readability": "w_read", "language_confidence": "w_confidence"},
    "qa": {"verbosity_rate": "w_rel", "factuality_rate": "w_fact", "completeness_reward": "w_comp"},
}
THRESHOLDS = (-1.0, -0.5, 0.5, 1.0)  # 0 is the world's own


@dataclass(frozen=True)
class Run:
    name: str
    questions: str  # letters of QUESTIONS
    flags: Mapping[str, object]  # of train_ppo.py, beside those of the world
    holistic: str = "holistic"  # folder of the built world
    calibration: str = "calibration.json"  # file of the built world
    script: tuple[str, ...] = ("-m", "alarm.train_ppo")
    curve: bool = field(default=False)  # evaluate on dev prompts during training


def tuning_runs(world: World) -> Iterator[tuple[str, Run]]:
    """(combiner, run): the same number of settings for each combiner."""
    for combiner in COMBINERS:
        for factor in HOLISTIC_WEIGHTS if combiner == "holistic_only" else ASPECT_WEIGHTS:
            yield (
                combiner,
                Run(f"{combiner}-{factor:g}", "", {"reward_type": combiner} | weighed(world, combiner, factor)),
            )


def weighed(world: World, combiner: str, factor: float) -> dict[str, float]:
    """The weights that a factor stands for."""
    if combiner == "holistic_only":
        return {"holistic_reward_weight": factor * world.ppo["holistic_reward_weight"]}
    return {name: factor * world.ppo[name] for name in world.weights}


def runs_of(world: World, chosen: Mapping[str, Mapping[str, object]]) -> list[Run]:
    """All runs of a seed. chosen: combiner -> the flags that dev prompts chose."""

    def run(name: str, questions: str, combiner: str, flags: Mapping[str, object] | None = None, **rest) -> Run:
        return Run(name, questions, {"reward_type": combiner} | dict(chosen[combiner]) | dict(flags or {}), **rest)

    letters = dict.fromkeys(PAPER, "abc") | {"holistic_only": "abcdghik", "hierarchical": "abcdefghijk"}
    letters["weighted_sum"] = "abcde"
    found = [run(name, letters.get(name, "ac"), name, curve=name in PAPER) for name in (*PAPER, *rest_of())]
    own_weights = {name: world.ppo[name] for name in world.weights}
    for combiner in PAPER[1:]:
        found.append(run(f"{combiner}-untuned", "a", combiner, own_weights))
    for combiner in ("holistic_only", "hierarchical"):
        absolute = {"holistic_baseline": "none"}
        found.append(run(f"{combiner}-absolute", "k", combiner, absolute, calibration="calibration_absolute.json"))
    for percent, combiner in product((0, 25), ("holistic_only", "hierarchical", "weighted_sum")):
        of = {"holistic": f"holistic_{percent}", "calibration": f"calibration_{percent}.json"}
        found.append(run(f"{combiner}-flips{percent}", "d", combiner, **of))
    own = (world.ppo["shaping"], "spans")
    for combiner, shaping, placement in product(("hierarchical", "weighted_sum"), SHAPINGS, PLACEMENTS):
        if (shaping, placement) != own:
            flags = {"shaping": shaping, "placement": placement}
            found.append(run(f"{combiner}-{shaping}-{placement}", "e", combiner, flags))
    for threshold in THRESHOLDS:
        found.append(run(f"hierarchical-at{threshold:g}", "f", "hierarchical", {"hierarchical_threshold": threshold}))
    for combiner in ("holistic_only", "hierarchical"):
        script = ("-m", "miniature.misaligned")
        found.append(run(f"{combiner}-misaligned", "i", combiner, script=script))
    none = dict.fromkeys(world.weights, 0.0)
    for flag in ALONE[world.name].values():
        if (flag,) != world.weights:  # that one is `hierarchical` itself
            weight = none | {flag: world.ppo[flag] if flag in world.weights else 1.0}
            found.append(run(alone(world, flag), "jg" if flag == "w_read" else "g", "hierarchical", weight))
    return found + world_runs(world, run, chosen)


def alone(world: World, flag: str) -> str:
    """The name of the run of `hierarchical` that pays this aspect alone."""
    return "hierarchical" if (flag,) == world.weights else f"hierarchical-{flag.removeprefix('w_')}"


def ranked_runs(runs: Iterable[Run]) -> list[Run]:
    """Those whose rewards differ in how parts are combined alone, so that they can rank the start's answers."""
    return [run for run in runs if set(run.questions) & set("aef")]


def rest_of() -> list[str]:
    return [name for name in COMBINERS if name not in PAPER]


def world_runs(world: World, run, chosen: Mapping[str, Mapping[str, object]]) -> list[Run]:
    """Controls that need a task file of their own, and the failure that others report."""
    if world.controls is None:
        return []
    none = dict.fromkeys(world.weights, 0.0)
    found = []
    for name in ("truth", "noise", "words", "permuted"):
        paid = world.ppo | dict(chosen["hierarchical"])
        weight = paid[world.weights[0]] if name == "permuted" else world.ppo["holistic_reward_weight"]
        flags = {"task": world.controls} | none | {f"w_{name}": weight}
        found.append(run(f"hierarchical-aspect_{name}", "h", "hierarchical", flags))
    exact = {"task": world.exact, "holistic_model": None}
    for combiner in ("holistic_only", "hierarchical"):
        found.append(run(f"{combiner}-exact", "h", combiner, exact, calibration="calibration_exact.json"))
    reads = none | {"w_read": 1.0}
    for combiner in ("aspect_only", "weighted_sum"):
        found.append(run(f"{combiner}-read", "j", combiner, reads))
    return found
