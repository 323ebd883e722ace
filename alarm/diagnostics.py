"""What training says about its rewards: drift, dominance, ceiling, length, the gate, collapse. Plain numbers, no torch.

`Diagnostics` watches a run step by step, in our trainer and, through alarm.integrations, in others. In our trainer the
responses are those of all processes, so that every process computes the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

# An older response counts half as much as one sampled HALF_LIFE responses later, whatever the batch size.
HALF_LIFE = 64
# Below this weight of responses nothing is said: the standard error of a mean of 32 is 0.18 deviations, so that
# MEAN_BOUND lies 5.7 of them away, and no warning comes from chance.
MIN_WEIGHT = 32
# Training is meant to raise the holistic reward. The paper's runs end at a mean of 0.54 to 0.62 deviations; beyond 1
# most responses lie above the gate, which then no longer tells good ones from others.
MEAN_BOUND = 1.0
# The running deviation over the calibrated one, or the reverse; said only where it is 3 standard errors off as well.
STD_FACTOR = 2.0
# The bounds of the other warnings, of running numbers. By chance, MIN_WEIGHT responses do not reach them.
SHARE_BOUND = 0.95  # of what differs between responses, from one part of the reward
CEILING = 0.1  # deviation of an aspect that has risen, over its deviation at the start
LENGTH_BOUND = 0.8  # correlation of reward and length
GATE_BOUND = 0.03  # share of responses on the rare side of the gate
EMPTY_BOUND = 0.5  # share of responses without text
FULL_BOUND = 0.9  # share of responses of the full length, in a run that started below FULL_START
FULL_START = 0.5
KL_BOUND = 1.0  # nats a token; runs that go well stay below 0.3
COLLAPSE = ("empty", "full_length", "kl")
# the combiners that have a gate, and those that add the parts up, so that the larger one decides
GATED = ("hierarchical", "soft_gate", "stratified")
ADDED = ("hierarchical", "soft_gate", "lagrangian", "weighted_sum", "aspect_only")

TRY = {
    "drift_mean": "read some answers; calibrate anew, or raise the KL coefficient if they got worse",
    "drift_std": "read some answers; calibrate anew, or raise the KL coefficient if they got alike",
    "dominance": "lower its weight, or raise those of the others",
    "ceiling": "lower its weight to 0, or give it a finer scale",
    "length": "pay the mean over spans, centre the shaping, or add an aspect that counts words",
    "gate_closed": "lower the threshold, or calibrate on answers of this policy",
    "gate_open": "raise the threshold, or calibrate on answers of this policy",
    "empty": "start again from an earlier checkpoint with a lower learning rate or a larger KL coefficient",
    "full_length": "see whether answers repeat themselves; start again with less pay for length, or more KL",
    "kl": "start again from an earlier checkpoint with a lower learning rate or a larger KL coefficient",
}


@dataclass(frozen=True)
class Scale:
    """Mean and standard deviation of a quantity when it was calibrated."""

    mean: float
    std: float  # above 0
    # relative standard error of std from N responses, times sqrt(N); here, that of a normal distribution. It is larger
    # where few responses make the deviation, as when most lengths are the limit: a smaller running one may be chance
    std_noise: float = 0.71


def pearson(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Pearson's correlation of two equally long sequences, in [-1, 1].

    None if it is not defined: fewer than 3 pairs, a side that is constant, a value that is not finite.
    """
    if len(x) < 3 or min(x) == max(x) or min(y) == max(y) or not all(map(math.isfinite, [*x, *y])):
        return None
    mean_x, mean_y = math.fsum(x) / len(x), math.fsum(y) / len(y)
    dx, dy = [value - mean_x for value in x], [value - mean_y for value in y]
    norm = math.sqrt(math.fsum(a * a for a in dx)) * math.sqrt(math.fsum(b * b for b in dy))
    if norm == 0:  # differences too small to square
        return None
    return max(-1.0, min(1.0, math.fsum(a * b for a, b in zip(dx, dy, strict=True)) / norm))


def aspect_share(aspect_sizes: Sequence[float], holistic_sizes: Sequence[float]) -> float | None:
    """sum|aspect part| / (sum|aspect part| + sum|holistic part|) of what was paid. None if nothing was."""
    aspects, holistic = sum(aspect_sizes), sum(holistic_sizes)
    return aspects / (aspects + holistic) if aspects + holistic != 0 else None


def add_to_moments(moments: Sequence[float], values: Sequence[float]) -> list[float]:
    """(weight, weighted sum, weighted sum of squares), with a step's values added at weight 1 after the decay of all
    earlier ones. Values that are not finite take no part."""
    values = [value for value in values if math.isfinite(value)]
    decay = 2 ** (-len(values) / HALF_LIFE)
    added = (len(values), math.fsum(values), math.fsum(value * value for value in values))
    return [decay * old + new for old, new in zip(moments, added, strict=True)]


def mean_and_std(moments: Sequence[float]) -> tuple[float, float]:
    """Mean and population standard deviation behind `add_to_moments`; the weight must be above 0."""
    weight, total, squares = moments
    mean = total / weight
    return mean, math.sqrt(max(0.0, squares / weight - mean * mean))


def excess(mean: float, std: float, weight: float, scale: Scale) -> dict[str, float]:
    """How far running statistics are off, as a multiple of what is tolerated: above 1 deserves a warning.

    mean, std: in calibrated units, so 0 and 1 if nothing has changed; weight: responses behind them.
    """
    factor = max(std, 1 / max(std, 1e-6))
    by_chance = abs(std - 1) < 3 * scale.std_noise / math.sqrt(weight)
    return {"mean": abs(mean) / MEAN_BOUND, "std": 0.0 if by_chance else factor / STD_FACTOR}


def update_drift(
    state: dict, scales: dict[str, Scale], values: dict[str, Sequence[float]]
) -> tuple[dict, dict[str, float], dict[str, str]]:
    """Take one step's values into the running statistics. -> new state (JSON), log entries, warnings by kind.

    state: {} at the start of a run. scales, values: name of a quantity -> calibrated scale, values of the union batch.
    Log entries, once MIN_WEIGHT is reached: `drift/NAME_mean`, the running mean in calibrated deviations from the
    calibrated mean; `drift/NAME_std`, the running deviation over the calibrated one. A kind (NAME_mean, NAME_std) is
    warned of when its `excess` is above 1, and again only when it has doubled since.
    """
    moments, warned = dict(state.get("moments", {})), dict(state.get("warned", {}))
    row, warnings = {}, {}
    for name, scale in scales.items():
        # in calibrated units: squares of large lengths would lose the digits of a small deviation
        normalised = [(value - scale.mean) / scale.std for value in values[name]]
        moments[name] = add_to_moments(moments.get(name, (0.0, 0.0, 0.0)), normalised)
        weight = moments[name][0]
        if weight < MIN_WEIGHT:
            continue
        mean, std = mean_and_std(moments[name])
        row |= {f"drift/{name}_mean": mean, f"drift/{name}_std": std}
        said = {
            "mean": f"mean of {name} is {scale.mean + mean * scale.std:.4g}, calibrated {scale.mean:.4g}: {mean:+.2f} "
            f"calibrated deviations, tolerated {MEAN_BOUND:g}",
            "std": f"deviation of {name} is {std * scale.std:.4g}, calibrated {scale.std:.4g}: a factor of {std:.2f}, "
            f"tolerated {1 / STD_FACTOR:g} to {STD_FACTOR:g}",
        }
        for statistic, size in excess(mean, std, weight, scale).items():
            kind = f"{name}_{statistic}"
            if size > 2 * warned.get(kind, 0.5):
                warned[kind] = size
                warnings[kind] = f"the running {said[statistic]}"
    return {"moments": moments, "warned": warned}, row, warnings


@dataclass(frozen=True)
class Seen:
    """What the responses of one step got. N of the B responses have text; the others count in `empty` alone."""

    empty: Sequence[float]  # B: 1 without text, else 0
    length: Sequence[float]  # N tokens
    reward: Sequence[float]  # N: as paid
    gate: Sequence[float]  # N: 1 open, 0 closed
    parts: Mapping[str, Sequence[float]]  # holistic and each aspect: its score times its weight, before the gate
    kl: float | None = None  # nats a token, the mean of the step; None if it is not known
    drifting: Mapping[str, Sequence[float]] = field(default_factory=dict)  # what `scales` name


class Diagnostics:
    """Watches the rewards of a run, and warns when they go wrong. A warning says what to try.

    scales: name -> calibrated scale, for drift. max_length: of a response, in tokens; None: not known. reward_type: a
    name in COMBINERS: not all of them have a gate, or add parts up. state: of an earlier object, to go on; it is JSON.

    All numbers are running ones: a response counts half as much HALF_LIFE responses later. Nothing is said of fewer
    than MIN_WEIGHT responses. A kind of warning comes once, and again when it is twice as bad.
    """

    def __init__(
        self,
        scales: Mapping[str, Scale] | None = None,
        max_length: int | None = None,
        reward_type: str = "hierarchical",
        state: dict | None = None,
    ):
        self.scales, self.max_length = dict(scales or {}), max_length
        self.gated, self.added = reward_type in GATED, reward_type in ADDED
        self.state = dict(state or {})

    def update(self, seen: Seen) -> tuple[dict[str, float], dict[str, str]]:
        """Take one step in. -> log entries (`drift/..`, `running/..`), warnings by kind."""
        drift, row, warnings = update_drift(self.state, self.scales, seen.drifting)
        warnings = {kind: f"{text}. Try: {TRY['drift_' + kind.rpartition('_')[2]]}" for kind, text in warnings.items()}
        self.state |= drift
        self._add(seen)
        running = self._running()
        for kind, (size, text) in self._findings(running).items():
            if size > 1 and size > 2 * self.state["warned"].get(kind, 0.5):
                self.state["warned"][kind] = size
                warnings[kind] = f"{text}. Try: {TRY[kind.partition('/')[0]]}"
        return row | {f"running/{name}": value for name, value in running.items()}, warnings

    def collapsed(self) -> list[str]:
        """What is wrong with the latest responses, if the policy has collapsed: for the last screen of a run."""
        found = self._findings(self._running())
        return [
            f"the policy has collapsed: {text}. Try: {TRY[kind]}"
            for kind, (size, text) in found.items()
            if kind in COLLAPSE and size > 1
        ]

    def _add(self, seen: Seen) -> None:
        """Running moments of all that is watched, and what they were when MIN_WEIGHT responses had been seen."""
        full = [] if self.max_length is None else [float(length >= self.max_length) for length in seen.length]
        reward, length = _finite_pairs(seen.reward, seen.length)
        values = {"empty": seen.empty, "gate": seen.gate if self.gated else [], "full_length": full}
        values |= {"reward": reward, "length": length, "product": [x * y for x, y in zip(reward, length, strict=True)]}
        values["kl"] = [] if seen.kl is None else [seen.kl] * len(seen.empty)
        values |= {f"part/{name}": list(numbers) for name, numbers in seen.parts.items()}
        watched, start = dict(self.state.get("watched", {})), dict(self.state.get("start", {}))
        for name, numbers in values.items():
            watched[name] = add_to_moments(watched.get(name, (0.0, 0.0, 0.0)), numbers)
            if watched[name][0] >= MIN_WEIGHT:
                start.setdefault(name, watched[name])
        self.state |= {"watched": watched, "start": start}

    def _running(self) -> dict[str, float]:
        """The running numbers that are known."""
        known = {name: m for name, m in self.state.get("watched", {}).items() if m[0] >= MIN_WEIGHT}
        names = {"empty": "empty_rate", "gate": "gate_rate", "full_length": "full_length_rate", "kl": "kl_per_token"}
        row = {shown: mean_and_std(known[name])[0] for name, shown in names.items() if name in known}
        parts = {name[5:]: mean_and_std(m)[1] for name, m in known.items() if name.startswith("part/")}
        if self.added and len(parts) > 1 and sum(parts.values()) > 0:
            row |= {f"share/{name}": std / sum(parts.values()) for name, std in parts.items()}
        if "product" in known:
            (x, dx), (y, dy), (xy, _) = (mean_and_std(known[name]) for name in ("reward", "length", "product"))
            if dx > 1e-6 * (1 + abs(x)) and dy > 1e-6 * (1 + abs(y)):
                row["length_correlation"] = max(-1.0, min(1.0, (xy - x * y) / (dx * dy)))
        return row

    def _findings(self, running: Mapping[str, float]) -> dict[str, tuple[float, str]]:
        """Kind -> how bad it is, as a multiple of what is tolerated, and its words."""
        start, watched = self.state.get("start", {}), self.state.get("watched", {})
        found = {}
        for name in (name for name in running if name.startswith("share/")):
            part, value = name[6:], running[name]
            text = f"{value:.0%} of what differs between answers comes from {part}: the other parts hardly count"
            found[f"dominance/{part}"] = (value / SHARE_BOUND, text)
        for name in (name for name in start if name.startswith("part/") and name != "part/holistic"):
            (mean, std), (first, spread) = mean_and_std(watched[name]), mean_and_std(start[name])
            if spread > 1e-6 * (1 + abs(first)) and mean > first:
                said = f"it differs by {std:.3g} between answers, {spread:.3g} at the start"
                found[f"ceiling/{name[5:]}"] = (at_most(CEILING * spread, std), f"{name[5:]} is at its ceiling: {said}")
        if (value := running.get("length_correlation")) is not None:
            text = f"reward and length have a correlation of {value:+.2f}: the reward pays for length"
            found["length"] = (value / LENGTH_BOUND, text)
        if (value := running.get("gate_rate")) is not None:
            said = f"the gate is open for {value:.1%} of the answers"
            found["gate_closed"] = (at_most(GATE_BOUND, value), f"{said}: aspects hardly count")
            found["gate_open"] = (at_most(GATE_BOUND, 1 - value), f"{said}: it tells nothing apart")
        if (value := running.get("empty_rate")) is not None:
            found["empty"] = (value / EMPTY_BOUND, f"{value:.0%} of the answers have no text")
        if (value := running.get("full_length_rate")) is not None:
            first = mean_and_std(start["full_length"])[0]
            if first < FULL_START:
                text = (
                    f"{value:.0%} of the answers are {self.max_length} tokens long, the limit; {first:.0%} at the start"
                )
                found["full_length"] = (value / FULL_BOUND, text)
        if (value := running.get("kl_per_token")) is not None:
            text = f"the policy is {value:.2f} nats a token away from its start, tolerated {KL_BOUND:g}"
            found["kl"] = (value / KL_BOUND, text)
        return found


def at_most(bound: float, value: float) -> float:
    """How far a value is below its bound: bound / value, and no more than 2, so that a value near 0 warns once."""
    return min(2.0, bound / value) if value > 0 else 2.0


def _finite_pairs(x: Sequence[float], y: Sequence[float]) -> tuple[list[float], list[float]]:
    """The pairs of which both are finite."""
    pairs = [(a, b) for a, b in zip(x, y, strict=True) if math.isfinite(a) and math.isfinite(b)]
    return [a for a, _ in pairs], [b for _, b in pairs]
