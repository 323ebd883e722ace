"""Compare runs by their generations: win rates with intervals, and how often a metric contradicts the holistic reward.

Everything pairwise is built on one verdict per prompt (1: a wins, 0: tie, -1: b wins, NaN: unknown). A metric gives it,
or a judge (alarm.evaluation.judge). Equal answers always tie.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..api import HOLISTIC, LENGTH, Task
from ..common.bootstrap import (
    DRAWS,
    Resamples,
    controlled,
    interval,
    length_controlled,
    resample,
    resampled_shares,
    share,
    share_interval,
)
from ..common.errors import UserError
from .features import LENGTH_CONTROL, feature
from .generations import Generations

if TYPE_CHECKING:
    from .judge.judge import Judgement

JUDGE = "judge"
# the largest difference that rounding can make, as a share of the score (of 1 if the score is smaller). bfloat16 keeps
# 8 bits, and a deep model adds up their errors
ROUNDING = 2**-5
TURNED = 0.1  # of the equal answers may have a unit that rounding turned (Metric.differs_by "units")
SELF, AVERAGE = "*", "Avg."


def criterion_title(criterion: str, lower_wins: frozenset[str], gap: str = " ") -> str:
    """A criterion's name, with a word on those of which the lower value wins."""
    return f"{criterion}{gap}(lower wins)" if criterion in lower_wins else criterion


# --- equal answers -----------------------------------------------------------------------------------------------


def comparable_metrics(runs: list[Generations]) -> dict[str, np.ndarray]:
    """The metrics of runs on the same N prompts, with one value for one answer. -> metric -> (R, N) float64.

    Answers to a prompt are equal if their `generation` strings are, character by character. All runs that gave this
    answer get the first run's values: scores of one text differ in their last bits from batch to batch, and equal
    answers must tie. Rows without a `generation` keep their values.
    """
    first = np.empty((len(runs), len(runs[0].queries)), dtype=np.intp)  # the first run with the same answer
    for row, answers in enumerate(zip(*(run.generations for run in runs), strict=True)):
        seen: dict[str, int] = {}
        first[:, row] = [i if text is None else seen.setdefault(text, i) for i, text in enumerate(answers)]
    return {
        metric: np.take_along_axis(np.stack([run.metrics[metric] for run in runs]), first, axis=0)
        for metric in runs[0].metrics
    }


def describe_conflicts(task: Task, *seeds: list[Generations]) -> list[str]:
    """A line for each metric whose values for equal answers differ by more than rounding can explain.

    seeds: the runs of each seed. Such runs were scored by different models, or with different constants.
    """
    differs_by = {LENGTH: "tokens"} | {metric.key: metric.differs_by for metric in task.metrics}
    lines = []
    # what depends on the tokens differs rightly: one text can come from several sequences of tokens
    for metric in [name for name in seeds[0][0].metrics if differs_by.get(name) != "tokens"]:
        found = [_conflict(a, b, metric) for runs in seeds for a, b in combinations(runs, 2)]
        equal, count = (sum(one[k] for one in found) for k in (0, 1))
        if count > (TURNED * equal if differs_by.get(metric) == "units" else 0):
            _, _, largest, names = max(found, key=lambda one: one[2])
            lines.append(
                f"{metric} differs on {count} of {equal} pairs of equal answers by more than rounding: by "
                f"{largest:.3g} at most ({' and '.join(names)}); were they scored by the same models and settings?"
            )
    return sorted(lines)


def _conflict(a: Generations, b: Generations, metric: str) -> tuple[int, int, float, tuple[str, str]]:
    """Pairs of equal answers, those with clearly different values, the largest difference, the names of the runs."""
    equal = np.array(
        [one is not None and one == other for one, other in zip(a.generations, b.generations, strict=True)]
    )
    x, y = a.metrics[metric][equal], b.metrics[metric][equal]
    differences = np.abs(x - y)
    beyond = differences > ROUNDING * np.maximum(1, np.maximum(np.abs(x), np.abs(y)))
    return int(equal.sum()), int(beyond.sum()), float(differences.max(initial=0)), (a.name, b.name)


# --- the maths ---------------------------------------------------------------------------------------------------

Terms = tuple[np.ndarray, np.ndarray]  # numerator and denominator of a share, one number a prompt


def metric_verdicts(a: np.ndarray, b: np.ndarray, lower_wins: bool = False) -> np.ndarray:
    """Who wins each prompt by a metric. a, b: (..., N) values. Returns as many of 1 (a wins), 0 (tie), -1 (b wins)."""
    return np.sign(b - a if lower_wins else a - b)


def win_terms(verdicts: np.ndarray) -> Terms:
    """Wins over wins and losses; ties and unknown verdicts left out."""
    return verdicts > 0, np.abs(verdicts) > 0


def ties_half_terms(verdicts: np.ndarray) -> Terms:
    """(W + T/2) over all known verdicts."""
    known = np.isfinite(verdicts)
    return np.where(known, (verdicts + 1) / 2, 0.0), known


def inconsistency_terms(verdicts: np.ndarray, holistic: np.ndarray) -> Terms:
    """Verdicts that name the other one, over the prompts with a holistic winner.

    A tie of the metric contradicts nothing but stays in the denominator (the published definition).
    """
    return verdicts * holistic < 0, (holistic != 0) & np.isfinite(verdicts)


def win_rate(verdicts: np.ndarray) -> float | None:
    """100 * wins / (wins + losses) in percent, ties left out; None if no prompt decides. verdicts: (N,)."""
    return share(*win_terms(verdicts))


def inconsistency(verdicts: np.ndarray, holistic: np.ndarray) -> float | None:
    """Share (percent) of the prompts with a holistic winner on which the metric names the other one; (N,) each.

    None if the holistic reward ties on every prompt.
    """
    return share(*inconsistency_terms(verdicts, holistic))


def average(values: list[float | None]) -> float | None:
    """Mean of the values that exist; None if none does."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def deviation(values: list[float | None]) -> float | None:
    """Sample standard deviation (over n - 1) of the values that exist; None below two."""
    known = [value for value in values if value is not None]
    return float(np.std(known, ddof=1)) if len(known) > 1 else None


# --- all pairs ---------------------------------------------------------------------------------------------------

Judgements = dict[tuple[str, str], "list[Judgement]"]  # (run a, run b), in file order -> one judgement a prompt


@dataclass(frozen=True)
class JudgeRates:
    """How far a judge can be trusted on one pair of runs. Percentages are None if there is nothing to count."""

    failures: int  # prompts without a readable verdict
    identical: int  # equal answers, which were not sent to it
    flip_rate: float | None  # of the prompts judged in both orders, on which the order changed the verdict
    first_position_rate: float | None  # of its answers that prefer the answer shown first; 50: no bias


@dataclass(frozen=True)
class Rates:
    """Run a against run b by one criterion. Rates are percentages, None if nothing decides; see `compare`."""

    win_rate: float | None  # W / (W + L)
    win_rate_interval: list[float] | None
    holistic_reward_inconsistent: float | None
    wins: int
    ties: int
    losses: int
    win_rate_ties_half: float | None  # (W + T/2) / N
    win_rate_ties_half_interval: list[float] | None
    length_controlled: dict  # win_rate and interval, or `refused`: why
    controlled: dict | None = None  # the same at equal `features`, if others than the length were asked for
    win_rate_seeds: list[float | None] | None = None  # of each seed, if there are several
    win_rate_std: float | None = None  # their sample deviation
    judge: JudgeRates | None = None  # if the criterion is the judge

    def mirrored(self) -> Rates:
        """Run b against run a."""

        def other(rate: float | None) -> float | None:
            return None if rate is None else 100 - rate

        def turned(interval: list[float] | None) -> list[float] | None:
            return None if interval is None else [100 - interval[1], 100 - interval[0]]

        def turned_estimate(estimate: dict | None) -> dict | None:
            if estimate is None or "refused" in estimate:
                return estimate
            return estimate | {"win_rate": other(estimate["win_rate"]), "interval": turned(estimate["interval"])}

        return replace(
            self,
            win_rate=other(self.win_rate),
            win_rate_interval=turned(self.win_rate_interval),
            wins=self.losses,
            losses=self.wins,
            win_rate_ties_half=other(self.win_rate_ties_half),
            win_rate_ties_half_interval=turned(self.win_rate_ties_half_interval),
            length_controlled=turned_estimate(self.length_controlled),
            controlled=turned_estimate(self.controlled),
            win_rate_seeds=None if self.win_rate_seeds is None else [other(rate) for rate in self.win_rate_seeds],
        )

    def published(self) -> dict:
        """As JSON, with the keys of eval-results.json."""
        found = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "judge"}
        if self.win_rate_seeds is None:
            del found["win_rate_seeds"], found["win_rate_std"]
        if self.controlled is None:
            del found["controlled"]
        return found | ({} if self.judge is None else asdict(self.judge))


@dataclass(frozen=True)
class Summary:
    """One metric of one run, over the prompts (of all seeds)."""

    mean: float
    least: float
    greatest: float
    std: float | None  # sample deviation of the seeds' means; None for one seed


@dataclass(frozen=True)
class Average:
    """One run against all others by one criterion."""

    win_rate: float | None
    interval: list[float] | None
    seeds: list[float | None] | None = None  # of each seed, if there are several
    std: float | None = None


@dataclass(frozen=True)
class Comparison:
    """What `compare` found."""

    task: Task
    runs: list[str]
    metrics: dict[str, dict[str, Summary]]  # run -> metric -> numbers
    pairs: dict[tuple[str, str], dict[str, Rates]]  # (a, b), both ways -> criterion -> a against b
    averages: dict[str, dict[str, Average]]  # run -> criterion -> mean over the others
    seeds: int

    @property
    def criteria(self) -> list[str]:
        """The metrics, and the judge if there was one."""
        return list(self.averages[self.runs[0]])

    def each_pair(self) -> dict[str, dict[str, Rates]]:
        """ "a / b" -> criterion -> rates, each pair once."""
        return {f"{a} / {b}": self.pairs[a, b] for a, b in combinations(self.runs, 2)}

    def published(self) -> dict:
        """The content of eval-results.json: the published keys, and ours beside them."""
        results = {}
        for run in self.runs:
            result: dict = {}
            for metric, found in self.metrics[run].items():
                numbers = {"Mean": found.mean, "Min": found.least, "Max": found.greatest}
                numbers |= {} if self.seeds == 1 else {"Std": found.std}
                result |= {f"{metric}-{name}": value for name, value in numbers.items()}
            for other in self.runs:
                against = {} if other == run else self.pairs[run, other]
                result[other] = SELF if other == run else {name: rates.published() for name, rates in against.items()}
            for criterion, mean in self.averages[run].items():
                entries = {AVERAGE: mean.win_rate, f"{AVERAGE}-Interval": mean.interval}
                entries |= {} if self.seeds == 1 else {f"{AVERAGE}-Seeds": mean.seeds, f"{AVERAGE}-Std": mean.std}
                for key, value in entries.items():
                    result.setdefault(key, {})[criterion] = value
            results[run] = result
        return results


def compare(
    *seeds: list[Generations],
    task: Task,
    judgements: list[Judgements] | None = None,
    draws: int = DRAWS,
    control: Sequence[str] = (LENGTH_CONTROL,),
) -> Comparison:
    """Compare every ordered pair of runs on every metric, and by the judge if there are `judgements`, one a seed.

    seeds: the runs of each seed, the same names on the same prompts. Equal answers to a prompt tie by every metric
    (`comparable_metrics`); means, minima and maxima are those of the values in the files.

    Rates are percentages. Intervals hold 95% of `draws` resamples of the prompts (and seeds), which all rates share.
    With several seeds rates are means over seeds, counts are sums, and deviations are the sample deviations of the
    rates of the seeds.

    control: names of features.CONTROLS; others than the length give each pair a rate at equal features, `controlled`.
    """
    runs = seeds[0]
    features = [[control_features(run, control) for run in of_seed] for of_seed in seeds]
    resamples = resample(len(runs[0].queries), len(seeds), draws)
    pairs: dict[tuple[str, str], dict[str, Rates]] = {}
    drawn: dict[tuple[str, str], dict[str, np.ndarray]] = {}
    for i, j in combinations(range(len(runs)), 2):
        names = (runs[i].name, runs[j].name)
        values = [comparable_metrics([s[i], s[j]]) for s in seeds]
        judged = [one_seed[names] for one_seed in judgements or []]
        verdicts = _verdicts(values, list(runs[0].metrics), task, judged)
        lengths = [np.subtract(*of_seed[LENGTH]) for of_seed in values if LENGTH in of_seed]
        differences = {
            name: np.stack([of_seed[i][name] - of_seed[j][name] for of_seed in features]) for name in features[0][0]
        }
        pairs[names], drawn[names] = _compare_pair(
            verdicts, np.stack(lengths) if lengths else None, differences, resamples
        )
        if judged:
            trust = judge_rates([one for row in judged for one in row])
            pairs[names][JUDGE] = replace(pairs[names][JUDGE], judge=trust)
        pairs[names[::-1]] = {criterion: rates.mirrored() for criterion, rates in pairs[names].items()}
        drawn[names[::-1]] = {criterion: 100 - values for criterion, values in drawn[names].items()}

    metrics, averages = {}, {}
    for index, run in enumerate(runs):
        metrics[run.name] = {metric: _summary([s[index].metrics[metric] for s in seeds]) for metric in run.metrics}
        others = [other.name for other in runs if other is not run]
        criteria = [*run.metrics, *([JUDGE] if judgements and others else [])]
        averages[run.name] = {
            criterion: _average(
                [pairs[run.name, other][criterion] for other in others],
                [drawn[run.name, other][criterion] for other in others],
                len(seeds),
            )
            for criterion in criteria
        }
    return Comparison(task, [run.name for run in runs], metrics, pairs, averages, len(seeds))


def pair_verdicts(
    seeds: Sequence[list[Generations]], i: int, j: int, task: Task, judgements: list[Judgements] | None = None
) -> dict[str, np.ndarray]:
    """Who wins each prompt between runs i and j, by each metric and, with `judgements`, by the judge. -> (S, N) each.

    1: run i wins, 0: tie, -1: run j wins, NaN: unknown.
    """
    runs = seeds[0]
    judged = [one_seed[runs[i].name, runs[j].name] for one_seed in judgements or []]
    values = [comparable_metrics([s[i], s[j]]) for s in seeds]
    return _verdicts(values, list(runs[0].metrics), task, judged)


def _verdicts(
    values: list[dict[str, np.ndarray]], metrics: Sequence[str], task: Task, judged: list[list[Judgement]]
) -> dict[str, np.ndarray]:
    """`pair_verdicts` of the comparable metrics, (2, N) each, and the judgements of a pair, one entry a seed."""
    verdicts = {
        metric: np.stack([metric_verdicts(*of_seed[metric], metric in task.lower_wins) for of_seed in values])
        for metric in metrics
    }
    if judged:
        verdicts[JUDGE] = np.array([[_known(one.verdict) for one in row] for row in judged])
    return verdicts


def _summary(values: list[np.ndarray]) -> Summary:
    """values: S x (N,)."""
    std = deviation([float(np.mean(of_seed)) for of_seed in values]) if len(values) > 1 else None
    return Summary(float(np.mean(values)), float(np.min(values)), float(np.max(values)), std)


def _known(verdict: int | None) -> float:
    return math.nan if verdict is None else float(verdict)


def control_features(run: Generations, control: Sequence[str]) -> dict[str, np.ndarray]:
    """Feature -> (N,) of a run's answers, if `control` asks for more than the length alone; else nothing.

    Equal answers to a prompt have equal features. Raises UserError for a run without lengths, if they are asked for.
    """
    if tuple(control) == (LENGTH_CONTROL,):
        return {}
    found = {}
    for name in control:
        if name != LENGTH_CONTROL:
            found[name] = np.array(feature(name, run.queries, run.generations))
        elif LENGTH in run.metrics:
            found[name] = run.metrics[LENGTH]
        else:
            raise UserError(f"{run.name} has no '{LENGTH}', which --control {LENGTH_CONTROL} reads; take words instead")
    return found


def _compare_pair(
    verdicts: dict[str, np.ndarray],
    lengths: np.ndarray | None,
    differences: dict[str, np.ndarray],
    resamples: Resamples,
) -> tuple[dict[str, Rates], dict[str, np.ndarray]]:
    """{criterion: (S, N) verdicts}, (S, N) length differences and differences of each feature that is controlled.

    -> rates a criterion, and (D,) drawn win rates.
    """
    stacked = np.stack(list(verdicts.values()), axis=1)  # (S, C, N)
    drawn = resampled_shares(*win_terms(stacked), resamples)  # (D, C)
    drawn_half = resampled_shares(*ties_half_terms(stacked), resamples)
    rates = {}
    for c, (criterion, values) in enumerate(verdicts.items()):
        of_seeds = [win_rate(of_seed) for of_seed in values]
        several = len(values) > 1
        rates[criterion] = Rates(
            win_rate=average(of_seeds),
            win_rate_interval=share_interval(*win_terms(values), drawn[:, c]),
            holistic_reward_inconsistent=average(
                [inconsistency(v, h) for v, h in zip(values, verdicts[HOLISTIC], strict=True)]
            ),
            wins=int(np.sum(values > 0)),
            ties=int(np.sum(values == 0)),
            losses=int(np.sum(values < 0)),
            win_rate_ties_half=average([share(*ties_half_terms(of_seed)) for of_seed in values]),
            win_rate_ties_half_interval=share_interval(*ties_half_terms(values), drawn_half[:, c]),
            length_controlled=_length_controlled(criterion, values, lengths, resamples),
            controlled=_controlled(criterion, values, differences, resamples),
            win_rate_seeds=of_seeds if several else None,
            win_rate_std=deviation(of_seeds) if several else None,
        )
    return rates, {criterion: drawn[:, c] for c, criterion in enumerate(verdicts)}


def _length_controlled(criterion: str, values: np.ndarray, lengths: np.ndarray | None, resamples: Resamples) -> dict:
    if lengths is None or criterion == LENGTH:
        return {"refused": "no lengths" if lengths is None else "it is the length"}
    return length_controlled(values, lengths, resamples)


def _controlled(
    criterion: str, values: np.ndarray, differences: dict[str, np.ndarray], resamples: Resamples
) -> dict | None:
    if not differences:
        return None
    if criterion == LENGTH and LENGTH_CONTROL in differences:
        found = {"refused": "it is the length"}
    else:
        found = controlled(values, differences, resamples)
    return {"features": list(differences)} | found


def _average(rates: list[Rates], drawn: list[np.ndarray], seeds: int) -> Average:
    """The mean of one criterion over the pairs against the other runs, and their (D,) drawn win rates."""
    bounds = [pair.win_rate_interval for pair in rates if pair.win_rate_interval is not None]
    spread = None
    if bounds:
        stacked = np.stack(drawn)
        known = np.isfinite(stacked)
        spread = interval(
            np.where(known, stacked, 0).sum(axis=0)[known.any(axis=0)] / known.sum(axis=0)[known.any(axis=0)]
        )
        if spread[0] == spread[1]:  # every pair is one-sided: see share_interval
            spread = [float(bound) for bound in np.mean(bounds, axis=0)]
    rate = average([pair.win_rate for pair in rates])
    if seeds == 1:
        return Average(rate, spread)
    of_seeds = [average([pair.win_rate_seeds[seed] for pair in rates]) for seed in range(seeds)]
    return Average(rate, spread, of_seeds, deviation(of_seeds))


def judge_rates(judgements: list[Judgement]) -> JudgeRates:
    """From the judgements of one pair of runs. Identical answers count in `identical` alone."""
    asked = [one for one in judgements if not one.identical]
    both = [one for one in asked if one.verdict is not None]
    first = [one.a_first == 1 for one in asked if one.a_first is not None]
    first += [one.b_first == -1 for one in asked if one.b_first is not None]
    return JudgeRates(
        failures=len(asked) - len(both),
        identical=len(judgements) - len(asked),
        flip_rate=share(np.array([one.flipped for one in both]), np.ones(len(both))),
        first_position_rate=share(np.array(first), np.ones(len(first))),
    )


def is_results_file(path: Path) -> bool:
    """Whether `path` holds what `Comparison.published` gives, so that a later comparison may replace it."""
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return (
        isinstance(results, dict)
        and bool(results)
        and all(isinstance(result, dict) and f"{HOLISTIC}-Mean" in result for result in results.values())
    )
