"""What a training step says about its rewards: aspect share, correlation with length, drift from a calibration.

Pure functions of plain numbers. Whoever calls them has gathered the union batch of all processes, so that every
process computes the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

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
