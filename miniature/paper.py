"""Tables and figures of the grid, a question each, from the records that are there. `python -m miniature.paper`

Writes miniature/results/WORLD/QUESTION.{md,csv,png} and the same tables into docs/miniature.md. Runs that are missing
and runs that collapsed are named. Differences are paired by prompt and seed. Intervals are 95%, of a bootstrap over
prompts and seeds (prompts alone while there is one seed).
"""

from __future__ import annotations

import argparse
import csv
import io
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from alarm.common.bootstrap import interval
from alarm.common.errors import UserError, report_user_errors
from alarm.common.files import read_json, write_text
from alarm.common.flags import parser
from alarm.evaluation.selection import spearman

from .grid import ALONE, ORDER, PAPER, QUESTIONS, alone, runs_of
from .results import collapse, end_of, resampled
from .run import RESULTS
from .settings import WORLDS, World
from .stages import ROOT

PAGE = ROOT / "docs" / "miniature.md"
ASPECTS = {  # columns of the records -> headings
    "mt": {"error_rate": "error rate", "grammar_errors": "grammar errors", "language_confidence": "English"},
    "qa": {"verbosity_rate": "relevance", "factuality_rate": "factuality", "completeness_reward": "completeness"},
}
STUDIES = {"c": "ranks", "g": "selection"}  # what was measured on the start's own answers


@dataclass(frozen=True)
class Estimate:
    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"

    @property
    def clear(self) -> bool:
        """The interval leaves 0 out."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Records:
    """What was run on a world: name -> seed -> record."""

    world: World
    found: dict[str, dict[int, dict]]
    studies: dict[str, dict]  # name of STUDIES -> record

    def has(self, name: str) -> bool:
        return name in self.found

    def quality(self, name: str, seeds: Sequence[int]) -> np.ndarray:
        """(S, N) true quality."""
        return np.array([self.found[name][seed]["oracle"] for seed in seeds])

    def mean(self, name: str, column: str) -> float:
        """A column's mean over seeds; NaN if a run lacks it."""
        values = [record["means"].get(column) for record in self.found[name].values()]
        return statistics.fmean(values) if values and None not in values else math.nan

    def collapsed(self, name: str) -> dict[int, str]:
        """Seed -> what went wrong."""
        found = {}
        for seed, record in self.found[name].items():
            means, kl = record["means"], end_of(record.get("kl", []))
            if what := collapse(means["empty"], means["response_length"], self.world.limit, kl):
                found[seed] = what
        return found


def read_records(results: Path, world: World) -> Records:
    found: dict[str, dict[int, dict]] = {}
    for file in sorted((results / world.name).glob("seed*/*.json")):
        record = read_json(file)
        found.setdefault(record["name"], {})[record["seed"]] = record
    if not found:
        raise UserError(
            f"{results / world.name} has no records; run python -m miniature.run --tasks {world.name} first"
        )
    studies = {file.stem: read_json(file) for file in (results / world.name / "start").glob("*.json")}
    return Records(world, found, studies)


def difference(records: Records, one: str, other: str) -> Estimate | None:
    """True quality of `one` less that of `other`, over the seeds that both have."""
    if not (records.has(one) and records.has(other)):
        return None
    seeds = sorted(records.found[one].keys() & records.found[other].keys())
    if not seeds:
        return None
    gain = records.quality(one, seeds) - records.quality(other, seeds)
    return Estimate(float(gain.mean()), *interval(resampled(gain)))


# --- tables ----------------------------------------------------------------------------------------------------------


def rows_of(records: Records, names: Sequence[str], against: Sequence[str]) -> list[dict[str, str]]:
    """A row a run: heading -> cell."""
    rows = []
    for name in names:
        if not records.has(name):
            continue
        means = [statistics.fmean(record["oracle"]) for record in records.found[name].values()]
        spread = f" ± {statistics.stdev(means):.3f}" if len(means) > 1 else ""
        row = {"run": name, "seeds": str(len(means)), "true quality": f"{statistics.fmean(means):.3f}{spread}"}
        for other in against:
            found = None if name in (other, "start") else difference(records, name, other)
            row[f"less {other}"] = str(found) if found else ""
        row["holistic"] = number(records.mean(name, "holistic_reward"), 2)
        for column, heading in ASPECTS[records.world.name].items():
            row[heading] = number(records.mean(name, column), 3)
        row["tokens"] = number(records.mean(name, "response_length"), 1)
        row["KL"] = number(ends_of(records, name, "kl"), 2)
        row["open gates"] = number(ends_of(records, name, "gate"), 2)
        rows.append(row)
    return rows


def ends_of(records: Records, name: str, key: str) -> float:
    """The mean over seeds of the KL at the end of training, or of the share of open gates in it. NaN if unknown."""
    values = [record.get(key) for record in records.found[name].values()]
    values = [value[-1] if isinstance(value, list) and value else value for value in values]
    return math.nan if None in values else statistics.fmean(values)


def curve_rows(records: Records, names: Sequence[str]) -> list[dict[str, str]]:
    """Question b: for each run and evaluation of it, mean over seeds of sqrt(KL) and of true quality on dev prompts."""
    return [
        {
            "run": name,
            "steps": f"{steps:.0f}",
            "square root of KL": f"{root:.3f}",
            "true quality, greedy answers to dev prompts": f"{quality:.3f}",
        }
        for name in names
        for steps, root, quality in curve(records, name)
    ]


def curve(records: Records, name: str) -> np.ndarray:
    """(E, 3): steps, sqrt(KL), quality of each evaluation, means over seeds. Empty if the run has no evaluations."""
    seeds = [record["dev"] for record in records.found.get(name, {}).values() if record.get("dev")]
    if not seeds:
        return np.empty((0, 3))

    def root(kl: float | None) -> float:
        return math.nan if kl is None else max(kl, 0.0) ** 0.5  # an estimate of a KL near 0 can be below 0

    return np.mean([[(steps, root(kl), quality) for steps, kl, quality in dev] for dev in seeds], axis=0)


@dataclass(frozen=True)
class Ranked:
    """What a run gains by picking the best of n answers of the start, and by PPO."""

    run: str
    best: Estimate  # quality of the answers that it picks
    gain: float  # over a random answer
    tokens: float
    trained: Estimate  # gain over the start by PPO


def ranked(records: Records) -> list[Ranked]:
    """Of the runs that have both."""
    study = records.studies["ranks"]
    return [
        Ranked(
            name, Estimate(row["quality"], *row["interval"]), row["quality"] - study["at_random"],
            math.nan if row["tokens"] is None else row["tokens"], trained,
        )
        for name, row in study["runs"].items()
        if (trained := difference(records, name, "start"))
    ]  # fmt: skip


def rank_rows(records: Records) -> list[dict[str, str]]:
    """Question c: the best of n answers of the start, beside PPO."""
    return [
        {
            "run": row.run,
            "quality, best of n": f"{row.best.mean:.3f} [{row.best.low:.3f}, {row.best.high:.3f}]",
            "gain, best of n": f"{row.gain:+.3f}",
            "gain, PPO": str(row.trained),
            "tokens, best of n": number(row.tokens, 1),
            "tokens, PPO": number(records.mean(row.run, "response_length"), 1),
        }
        for row in ranked(records)
    ]


def rank_remarks(records: Records) -> list[str]:
    """Rank correlations of the two gains: over combiners, and over all settings."""
    found = ranked(records)
    combiners = [row for row in found if row.run in names_of(records.world, "a")]
    lines = []
    for what, rows in (("the combiners of (a)", combiners), ("all these settings", found)):
        if len(rows) > 2:
            rho = spearman(np.array([row.gain for row in rows]), np.array([row.trained.mean for row in rows]))
            told = "not defined" if rho is None else f"{rho:+.2f}"
            lines.append(f"- Rank correlation of the two gains over {what} ({len(rows)}): {told}.")
    return lines


def selection_rows(records: Records) -> list[dict[str, str]]:
    """Question g: for each aspect how often it contradicts the holistic reward, and what paying it alone gains."""
    rows = []
    for metric, flag in ALONE[records.world.name].items():
        told, name = records.studies["selection"]["metrics"][metric], alone(records.world, flag)
        low, high = told["inconsistency_interval"] or (math.nan, math.nan)
        row = {
            "aspect": ASPECTS[records.world.name].get(metric, metric.replace("_", " ")),
            "contradicts the holistic reward, %": f"{told['inconsistency']:.1f} [{low:.1f}, {high:.1f}]",
            "orders pairs of a prompt rightly": number(math.nan if told["within"] is None else told["within"], 3),
            "run": name,
        }
        for other in ("start", "holistic_only"):
            row[f"less {other}"] = str(difference(records, name, other) or "")
        rows.append(row)
    return rows


def table_of(records: Records, letter: str) -> list[dict[str, str]]:
    """The rows of a question; none if nothing of its own was run."""
    names = names_of(records.world, letter)
    if letter in STUDIES:
        made = {"c": rank_rows, "g": selection_rows}[letter]
        return made(records) if STUDIES[letter] in records.studies else []
    if letter == "b":
        return curve_rows(records, names)
    own = [name for name in names if records.has(name)]
    if not set(own) - {"start", *PAPER} and letter != "a":
        return []
    return rows_of(records, names, AGAINST[letter])


def number(value: float, places: int) -> str:
    return "" if math.isnan(value) else f"{value:.{places}f}"


def markdown(rows: list[dict[str, str]]) -> str:
    heads = list(rows[0])
    lines = ["| " + " | ".join(heads) + " |", "| " + " | ".join("---" for _ in heads) + " |"]
    return "\n".join([*lines, *("| " + " | ".join(row[head] for head in heads) + " |" for row in rows)])


def remarks(records: Records, names: Sequence[str]) -> list[str]:
    """Lines on runs that are missing and runs that collapsed."""
    missing = [name for name in names if not records.has(name)]
    most = max(len(seeds) for seeds in records.found.values())
    few = [
        f"{name} ({len(records.found[name])})"
        for name in names
        if records.has(name) and len(records.found[name]) < most
    ]
    fallen = [
        f"{name} seed {seed}: {what}"
        for name in names
        if records.has(name)
        for seed, what in records.collapsed(name).items()
    ]
    lines = []
    if missing:
        lines.append(f"Not run yet: {', '.join(missing)}.")
    if few:
        lines.append(f"Fewer seeds than others, which have {most}: {', '.join(few)}.")
    if fallen:
        lines.append(f"Collapsed, and in every mean: {'; '.join(fallen)}.")
    return lines


# --- questions -------------------------------------------------------------------------------------------------------

AGAINST = {
    "a": ("start", "holistic_only", "weighted_sum"),
    "d": ("start",),
    "e": ("start",),
    "f": ("start", "hierarchical"),
    "h": ("start", "hierarchical"),
    "i": ("start",),
    "j": ("start",),
    "k": ("start",),
}
OWN_SCALES = "dhk"  # questions whose runs differ in the holistic score itself
PAIRS = {  # comparisons within a question, beside those with the start
    "a": [
        ("hierarchical", "weighted_sum"),
        ("hierarchical", "holistic_only"),
        ("hierarchical", "aspect_only"),
        ("hierarchical-untuned", "weighted_sum-untuned"),
        ("hierarchical-untuned", "aspect_only-untuned"),
    ],
    "d": [
        (f"{one}{flips}", f"{other}{flips}")
        for flips in ("-flips0", "", "-flips25")
        for one, other in (("hierarchical", "holistic_only"), ("hierarchical", "weighted_sum"))
    ],
    "e": [
        ("hierarchical-centred-spans", "hierarchical"),
        ("weighted_sum-centred-spans", "weighted_sum"),
        ("weighted_sum-centred-spans", "hierarchical"),
        ("hierarchical-centred-spans", "weighted_sum-centred-spans"),
    ],
    "h": [
        ("hierarchical-exact", "holistic_only-exact"),
        *((f"hierarchical-aspect_{name}", "holistic_only") for name in ("truth", "noise", "words", "permuted")),
    ],
    "i": [("holistic_only-misaligned", "holistic_only"), ("hierarchical-misaligned", "hierarchical")],
    "k": [("holistic_only-absolute", "holistic_only"), ("hierarchical-absolute", "hierarchical")],
}


def names_of(world: World, letter: str) -> list[str]:
    """Runs of a question, in the order of the grid, behind the start."""
    from alarm.combiners import COMBINERS

    chosen: dict = {name: {} for name in COMBINERS}
    return ["start", *(run.name for run in runs_of(world, chosen) if letter in run.questions)]


def verdict(one: str, other: str, found: Estimate) -> str:
    word = "no difference that these runs can show"
    if found.clear:
        word = "better" if found.mean > 0 else "worse"
    return f"- {one} less {other}: {found}, {word}."


def published(world: World) -> str:
    """The paper's own numbers: other models, other data, and win rates, not a true quality."""
    from alarm.tasks.find import find_task

    paper = find_task(world.name).paper
    rows = [dict(zip(("run", *paper["headings"]), row, strict=True)) for row in paper["rows"]]
    return f"The paper's numbers, at full size on real data (win rates in percent by each judge):\n\n{markdown(rows)}"


def section(records: Records, letter: str, rows: list[dict[str, str]]) -> str:
    """The markdown of a question."""
    lines = [f"### ({letter}) {QUESTIONS[letter]}", "", markdown(rows), ""]
    for one, other in PAIRS.get(letter, []):
        found = difference(records, one, other)
        if found:
            lines.append(verdict(one, other, found))
    if letter == "c":
        lines += rank_remarks(records)
    if letter == "g":
        lines.append(f"- {records.studies['selection']['reason']}.")
    if letter in OWN_SCALES:
        lines += ["", "`holistic` is each run's own holistic score: other models and baselines have other scales."]
    if letter == "a":
        lines += ["", published(records.world)]
    told = remarks(records, names_of(records.world, letter))
    return "\n".join([*lines, *[""] * bool(told), *told, ""])


def table_csv(rows: list[dict[str, str]]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


# --- figures ---------------------------------------------------------------------------------------------------------

MARKS = ("o", "s", "^", "D", "v", "P", "X", "*")


def draw_question(records: Records, letter: str, file: Path) -> None:
    """A picture that can be read in grey."""
    from matplotlib.figure import Figure

    draw = {"b": draw_curves, "c": draw_ranks}.get(letter, draw_bars)
    names = [name for name in names_of(records.world, letter) if records.has(name)]
    figure = Figure(figsize=(7, 1 + 0.3 * len(names) if draw is draw_bars else 4.5), layout="constrained")
    draw(records, names, figure.subplots())
    figure.savefig(file, dpi=120)


def draw_curves(records: Records, names: Sequence[str], axes) -> None:
    for mark, name in zip(MARKS, names[1:], strict=False):
        points = curve(records, name)
        if len(points):
            axes.plot(*points[:, 1:].T, marker=mark, color="black", linewidth=1, markerfacecolor="white", label=name)
    axes.set(xlabel="square root of KL from the start (nats an answer)", ylabel="true quality, greedy, dev prompts")
    axes.legend(frameon=False)


def draw_ranks(records: Records, names: Sequence[str], axes) -> None:
    combiners, rows = names_of(records.world, "a"), list(ranked(records))
    points = {row.run: np.array((row.gain, row.trained.mean)) for row in rows}
    for row in rows:
        point, of_a = points[row.run], row.run in combiners
        axes.plot(*point, "o" if of_a else "x", color="black" if of_a else "grey")
        crowded = any((abs(point - other) < 0.04).all() for name, other in points.items() if name != row.run)
        if of_a and not crowded:
            axes.annotate(row.run, point, xytext=(4, 3), textcoords="offset points", fontsize=7)
    axes.axhline(0, color="grey", linewidth=0.5)
    axes.set(
        xlabel="gain by best of n (crosses: other settings; without a name: see the table)",
        ylabel="gain by PPO, test prompts",
    )


def draw_bars(records: Records, names: Sequence[str], axes) -> None:
    """True quality of each run, its interval over prompts and seeds, and each seed."""
    for place, name in enumerate(reversed(names)):
        seeds = sorted(records.found[name])
        quality = records.quality(name, seeds)
        low, high = interval(resampled(quality))
        axes.plot([low, high], [place, place], color="black", linewidth=1)
        axes.plot(quality.mean(1), [place] * len(seeds), "|", color="grey", markersize=7)
        axes.plot(quality.mean(), place, "o", color="black", markersize=5)
    axes.set_yticks(range(len(names)), list(reversed(names)))
    axes.set(xlabel="true quality of sampled answers, test prompts (bar: 95%, ticks: seeds)")


# --- the command -----------------------------------------------------------------------------------------------------


def put_between(page: str, mark: str, text: str) -> str:
    """The page with what stands between <!-- mark --> and <!-- end --> replaced."""
    begin, end = f"<!-- {mark} -->", "<!-- end -->"
    if begin not in page:
        raise UserError(f"{PAGE.name} has no line {begin}; put it where the tables belong, with {end} behind it")
    before, _, rest = page.partition(begin)
    _, _, after = rest.partition(end)
    return f"{before}{begin}\n\n{text.strip()}\n\n{end}{after}"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    flags = parser(__doc__.split("\n\n")[0])
    flags.add_argument("--tasks", nargs="+", choices=tuple(WORLDS), help="which worlds (default: those with records)")
    flags.add_argument("--results", default=str(RESULTS), help="folder of the records")
    flags.add_argument("--page", default=str(PAGE), help="page that gets the tables")
    return flags.parse_args(argv)


@report_user_errors
def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    results, page = Path(args.results), Path(args.page)
    names = args.tasks or [name for name in WORLDS if any((results / name).glob("seed*/*.json"))]
    if not names:
        raise UserError(f"{results} has no records; run python -m miniature.run first")
    text = page.read_text(encoding="utf-8")
    for name in names:
        records = read_records(results, WORLDS[name])
        written = []
        for letter in sorted(ORDER):
            rows = table_of(records, letter)
            if not rows:
                continue
            found = section(records, letter, rows)
            written.append(found)
            target = results / name / letter
            write_text(target.with_suffix(".md"), found)
            write_text(target.with_suffix(".csv"), table_csv(rows))
            draw_question(records, letter, target.with_suffix(".png"))
            print(found)
        text = put_between(text, f"tables of {name}", "\n".join(written))
    write_text(page, text)
    print(f"wrote {page} and the figures in {results}")


if __name__ == "__main__":
    main()
