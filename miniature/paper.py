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

from alarm.common.bootstrap import interval, resample
from alarm.common.errors import UserError, report_user_errors
from alarm.common.files import read_json, write_text
from alarm.common.flags import parser

from .grid import ORDER, PAPER, QUESTIONS, runs_of
from .results import collapse
from .run import RESULTS
from .settings import WORLDS, World
from .stages import ROOT

PAGE = ROOT / "docs" / "miniature.md"
# the paper's own numbers, as published: translation and long-form QA at full size, judged by its holistic model
PUBLISHED = {
    "mt": "The paper (mT5, win rate by the holistic reward / by grammar error rate, average over the three others): "
    "holistic 50.00 / 49.19, grammar alone 48.08 / 47.07, weighted sum 49.80 / 45.51, ALaRM 52.12 / 58.24.",
    "qa": "The paper (T5, win rate by the holistic reward, 3 seeds): holistic 51.76 +- 1.66, factuality alone "
    "43.97 +- 3.92, weighted sum 51.05 +- 0.67, ALaRM 53.22 +- 1.76; lengths 87.8, 116.8, 98.5, 97.6 tokens.",
}
ASPECTS = {"mt": ("error_rate", "grammar_errors"), "qa": ("relevance_rate", "factuality_rate")}


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
            means, kl = record["means"], record["kl"][-1] if record.get("kl") else math.nan
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
    return Records(world, found)


def difference(records: Records, one: str, other: str) -> Estimate | None:
    """True quality of `one` less that of `other`, over the seeds that both have."""
    if not (records.has(one) and records.has(other)):
        return None
    seeds = sorted(records.found[one].keys() & records.found[other].keys())
    if not seeds:
        return None
    gain = records.quality(one, seeds) - records.quality(other, seeds)
    drawn = resample(gain.shape[1], len(seeds))
    draws = (drawn.seeds * (drawn.prompts @ gain.T / gain.shape[1])).sum(1)
    return Estimate(float(gain.mean()), *interval(draws))


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
        for column in ASPECTS[records.world.name]:
            row[column.replace("_", " ")] = number(records.mean(name, column), 3)
        row["tokens"] = number(records.mean(name, "response_length"), 1)
        kl = [record["kl"][-1] for record in records.found[name].values() if record.get("kl")]
        row["KL"] = number(statistics.fmean(kl), 2) if kl else ""
        if records.world.name == "mt":
            row["English"] = number(records.mean(name, "language_confidence"), 2)
        rows.append(row)
    return rows


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
    "b": ("start",),
    "d": ("start",),
    "e": ("start",),
    "f": ("start", "hierarchical"),
    "h": ("start", "hierarchical"),
    "i": ("start",),
    "j": ("start",),
    "k": ("start",),
}
PAIRS = {  # comparisons within a question, beside those with the start
    "a": [("hierarchical", "weighted_sum"), ("hierarchical", "holistic_only"), ("hierarchical", "aspect_only")],
    "d": [
        (f"{one}-flips{percent}", f"{other}-flips{percent}")
        for percent in (0, 25)
        for one, other in (("hierarchical", "holistic_only"), ("hierarchical", "weighted_sum"))
    ],
    "e": [
        ("hierarchical-centred-spans", "hierarchical"),
        ("weighted_sum-centred-spans", "weighted_sum"),
        ("weighted_sum-centred-spans", "hierarchical"),
        ("hierarchical-centred-spans", "weighted_sum-centred-spans"),
    ],
    "h": [("hierarchical-exact", "holistic_only-exact"), ("hierarchical-aspect_noise", "holistic_only")],
    "i": [("holistic_only-misaligned", "holistic_only"), ("hierarchical-misaligned", "hierarchical")],
    "k": [("holistic_only-absolute", "holistic_only"), ("hierarchical-absolute", "hierarchical")],
}


def names_of(world: World, letter: str) -> list[str]:
    """Runs of a question, in the order of the grid, behind the start."""
    from alarm.combiners import COMBINERS

    chosen: dict = {name: {} for name in COMBINERS}
    return ["start", *(run.name for run in runs_of(world, chosen) if letter in run.questions)]


def section(records: Records, letter: str) -> str | None:
    """The markdown of a question, None if nothing of its own was run."""
    if letter not in AGAINST:
        return None
    names = names_of(records.world, letter)
    own = [name for name in names if records.has(name)]
    if not set(own) - {"start", *PAPER} and letter not in "ab":
        return None
    rows = rows_of(records, names, AGAINST[letter])
    lines = [f"### ({letter}) {QUESTIONS[letter]}", "", markdown(rows), ""]
    for one, other in PAIRS.get(letter, []):
        found = difference(records, one, other)
        if found:
            word = (
                ("better" if found.mean > 0 else "worse") if found.clear else "no difference that these runs can show"
            )
            lines.append(f"- {one} less {other}: {found}, {word}.")
    if letter == "a":
        lines += ["", PUBLISHED[records.world.name]]
    return "\n".join([*lines, *[""] * bool(remarks(records, names)), *remarks(records, names), ""])


def table_csv(rows: list[dict[str, str]]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


# --- figures ---------------------------------------------------------------------------------------------------------

MARKS = ("o", "s", "^", "D", "v", "P", "X", "*")


def draw_question(records: Records, letter: str, file: Path) -> None:
    """True quality of each run with its interval over prompts and seeds, sorted; (b): quality against sqrt(KL)."""
    from matplotlib.figure import Figure

    names = [name for name in names_of(records.world, letter) if records.has(name)]
    if letter == "b":
        figure = Figure(figsize=(7, 4.5), layout="constrained")
        axes = figure.subplots()
        for mark, name in zip(MARKS, names[1:], strict=False):
            curves = [record["dev"] for record in records.found[name].values() if record.get("dev")]
            if not curves:
                continue
            points = np.mean([[(max(kl, 0) ** 0.5, quality) for _, kl, quality in curve] for curve in curves], axis=0)
            axes.plot(*points.T, marker=mark, color="black", linewidth=1, markerfacecolor="white", label=name)
        axes.set(xlabel="square root of KL from the start (nats an answer)", ylabel="true quality, dev prompts")
        axes.legend(frameon=False)
    else:
        figure = Figure(figsize=(7, 1 + 0.3 * len(names)), layout="constrained")
        axes = figure.subplots()
        for place, name in enumerate(reversed(names)):
            seeds = sorted(records.found[name])
            quality = records.quality(name, seeds)
            drawn = resample(quality.shape[1], len(seeds))
            low, high = interval((drawn.seeds * (drawn.prompts @ quality.T / quality.shape[1])).sum(1))
            axes.plot([low, high], [place, place], color="black", linewidth=1)
            axes.plot(quality.mean(1), [place] * len(seeds), "|", color="grey", markersize=7)
            axes.plot(quality.mean(), place, "o", color="black", markersize=5)
        axes.set_yticks(range(len(names)), list(reversed(names)))
        axes.set(xlabel="true quality of sampled answers, test prompts (bar: 95%, ticks: seeds)")
    figure.savefig(file, dpi=120)


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
            found = section(records, letter)
            if found is None:
                continue
            written.append(found)
            target = results / name / letter
            rows = rows_of(records, names_of(records.world, letter), AGAINST[letter])
            write_text(target.with_suffix(".md"), found)
            write_text(target.with_suffix(".csv"), table_csv(rows))
            draw_question(records, letter, target.with_suffix(".png"))
            print(found)
        text = put_between(text, f"tables of {name}", "\n".join(written))
    write_text(page, text)
    print(f"wrote {page} and the figures in {results}")


if __name__ == "__main__":
    main()
