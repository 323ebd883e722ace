"""How a comparison or a selection is shown: tables on the terminal, and a folder with a page, tables, figures."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...api import Task
from ...common.console import Column, Section, Table, fits, print_table
from ...common.errors import UserError
from ...common.files import whole_folder
from ..compare import AVERAGE, HOLISTIC, JUDGE, SELF, Comparison, Judgements, criterion_title
from ..generations import Generations
from .answers import answers_section
from .page import Answers, Picture, html_page, markdown_report
from .tables import Footnotes

if TYPE_CHECKING:
    from rich.console import Console

MOST_PAIRS = 28  # on the terminal: those of 8 runs
COMPARISON, SELECTION = "eval_compare.py", "select_rewards.py"
# all that a report folder holds; anything else there is somebody's
FILES = frozenset(
    "index.html report.md settings.json selection.json win_rates.png distributions.png selection.png".split()
)


@dataclass(frozen=True)
class Setup:
    """How a comparison was made."""

    folder: str
    prompts: int  # compared, of
    total_prompts: int
    draw_seed: int  # of the draw of the prompts
    seeds: tuple[str, ...]  # folder of each training seed; () without seed folders
    draws: int  # of the bootstrap
    judge: dict | None  # what the judge run was and cost; never a key


# --- cells -------------------------------------------------------------------------------------------------------


def _number(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _spread(value: float | None, std: float | None, digits: int = 1) -> str:
    return _number(value, digits) + ("" if value is None or std is None else f" ± {std:.{digits}f}")


def _range(interval: list[float] | None) -> str:
    """A second line of a cell: `48.0–56.0`."""
    return "" if interval is None else f"\n{interval[0]:.1f}–{interval[1]:.1f}"


def _columns(first: str, headings: Iterable[str]) -> tuple[Column, ...]:
    return (Column(first, text=True), *map(Column, headings))


def _criterion_columns(criteria: Iterable[str], task: Task) -> tuple[Column, ...]:
    return _columns("run", (criterion_title(criterion, task.lower_wins, "\n") for criterion in criteria))


def _one_section(rows: Iterable[tuple[str, ...]]) -> tuple[Section, ...]:
    return (Section(tuple(rows)),)


# --- tables of a comparison --------------------------------------------------------------------------------------


def metric_table(found: Comparison) -> Table:
    rows = []
    for run in found.runs:
        cells = [
            f"{_spread(one.mean, one.std, 3)}\n{one.least + 0.0:.3g} .. {one.greatest + 0.0:.3g}"
            for one in found.metrics[run].values()
        ]
        rows.append((run, *cells))
    note = "mean ± standard deviation of the seeds' means" if found.seeds > 1 else "mean"
    columns = _criterion_columns(found.metrics[found.runs[0]], found.task)
    return Table("Metrics", f"{note}, and min .. max below it", columns, _one_section(rows))


def win_rate_table(found: Comparison, numbered: bool = False) -> Table:
    """One run x run block for each criterion. numbered: the columns go by the number of the run."""
    rows, columns = found.runs, found.runs
    if numbered:
        columns = [f"#{number}" for number in range(1, len(found.runs) + 1)]
        rows = [f"{number} {name}" for number, name in zip(columns, found.runs, strict=True)]
    sections = []
    for criterion in found.criteria:
        cells = [
            [SELF if other == run else _number(found.pairs[run, other][criterion].win_rate) for other in found.runs]
            + [_number(found.averages[run][criterion].win_rate)]
            for run in found.runs
        ]
        title = criterion_title(criterion, found.task.lower_wins)
        sections.append(Section(tuple((row, *line) for row, line in zip(rows, cells, strict=True)), title))
    return Table(
        "Win rates",
        "% of prompts that the row wins against the column, ties left out; '-': every prompt is a tie.\n"
        "response_length: the longer one wins, which says nothing about quality.",
        (Column("run", text=True), *(Column(name, name=True) for name in [*columns, AVERAGE])),
        tuple(sections),
    )


def inconsistency_table(found: Comparison) -> Table:
    aspects = [criterion for criterion in found.criteria if criterion != HOLISTIC]
    rows = [
        (pair, *(_number(rates[aspect].holistic_reward_inconsistent) for aspect in aspects))
        for pair, rates in found.each_pair().items()
    ]
    return Table(
        f"Inconsistency with {HOLISTIC}",
        f"% of prompts with a holistic winner on which the {'metric or the judge' if JUDGE in aspects else 'metric'} "
        "names the other one",
        _columns("pair", aspects),
        _one_section(rows),
    )


def outcome_table(found: Comparison, criteria: Iterable[str]) -> Table:
    """Wins, ties, losses and what follows from them, for every pair; one section a criterion."""
    footnotes = Footnotes()

    def controlled(estimate: dict) -> str:
        if "refused" in estimate:
            return f"refused {footnotes.mark(estimate['refused'])}"
        return _number(estimate["win_rate"]) + _range(estimate["interval"])

    first = next(iter(next(iter(found.each_pair().values())).values()))
    features = [] if first.controlled is None else first.controlled["features"]
    sections = []
    for criterion in criteria:
        rows = []
        for pair, all_rates in found.each_pair().items():
            rates = all_rates[criterion]
            rows.append(
                (
                    pair,
                    *(str(count) for count in (rates.wins, rates.ties, rates.losses)),
                    _spread(rates.win_rate, rates.win_rate_std) + _range(rates.win_rate_interval),
                    _number(rates.win_rate_ties_half) + _range(rates.win_rate_ties_half_interval),
                    controlled(rates.length_controlled),
                    *([controlled(rates.controlled)] if features else []),
                )
            )
        sections.append(Section(tuple(rows), criterion_title(criterion, found.task.lower_wins)))
    return Table(
        "Wins, ties, losses",
        "of the first run of the pair against the second. Win rate: 100 W/(W+L). Ties half: 100 (W+T/2)/N. Length "
        "controlled: ties half as expected were both answers equally long. "
        + (f"Controlled: the same at equal {', '.join(features)}. " if features else "")
        + "95% intervals below.",
        _columns(
            "pair",
            ["W", "T", "L", "win rate", "ties half", "length controlled", *(["controlled"] if features else [])],
        ),
        tuple(sections),
        footnotes.texts,
    )


def average_table(found: Comparison) -> Table:
    rows = [
        (run, *(_spread(mean.win_rate, mean.std) + _range(mean.interval) for mean in found.averages[run].values()))
        for run in found.runs
    ]
    note = "mean of the win rates against the others, %"
    if found.seeds > 1:
        note += "; ± standard deviation over the seeds"
    note += "; 95% interval below"
    return Table("Average win rate", note, _criterion_columns(found.criteria, found.task), _one_section(rows))


def judge_table(found: Comparison) -> Table:
    rows = []
    for pair, all_rates in found.each_pair().items():
        rates = all_rates[JUDGE]
        counts = (rates.wins, rates.ties, rates.losses, rates.judge.identical, rates.judge.failures)
        shares = (rates.judge.flip_rate, rates.judge.first_position_rate)
        rows.append((pair, *map(str, counts), *map(_number, shares)))
    return Table(
        "Judge",
        "Identical: equal answers, a tie without asking. Failures: prompts without a readable verdict, left out. "
        "Flipped: % of judged prompts whose verdict turns with the order of the answers, counted as ties. First: % of "
        "verdicts for the answer shown first (50: no bias).",
        _columns("pair", ["W", "T", "L", "identical", "failures", "flipped", "first"]),
        _one_section(rows),
    )


def judge_run_table(judge: dict) -> Table:
    rows = [(key.replace("_", " "), f"{value:,}" if type(value) is int else str(value)) for key, value in judge.items()]
    return Table("Judge run", "", (Column("setting", text=True), Column("value", text=True)), _one_section(rows))


def paper_table(task: Task) -> Table:
    return Table(
        "The paper's numbers (not ours)",
        "average win rate (%) by each criterion, as the paper reports it for its own models (T5-large and mT5-base, "
        "three seeds); other data or models need not agree",
        _columns("run", task.paper["headings"]),
        _one_section(task.paper["rows"]),
    )


def comparison_tables(found: Comparison, setup: Setup) -> dict[str, Table]:
    """Every table of a comparison under a short key, in the order of a report."""
    tables = {"metrics": metric_table(found)}
    if len(found.runs) > 1:
        tables = {"average": average_table(found), **tables, "win-rates": win_rate_table(found)}
        tables["outcomes"] = outcome_table(found, found.criteria)
        tables["inconsistency"] = inconsistency_table(found)
        if JUDGE in found.criteria:
            tables["judge"] = judge_table(found)
    if setup.judge:
        tables["judge-run"] = judge_run_table(setup.judge)
    return {**tables, "paper": paper_table(found.task)} if "rows" in found.task.paper else tables


# --- tables of a selection ---------------------------------------------------------------------------------------


def selection_table(selection: dict, task: Task) -> Table:
    footnotes = Footnotes()

    def verdict(name: str, metric: dict) -> str:
        if name == selection["recommended"]:
            return "recommended"
        return "eligible" if metric["eligible"] else f"no {footnotes.mark(metric['why_not'] or 'not eligible')}"

    rows = [
        (
            criterion_title(name, task.lower_wins, "\n"),
            _number(metric["inconsistency"]) + _range(metric["inconsistency_interval"]),
            _number(metric["inconsistency_without_ties"]),
            _number(metric["decided_share"]),
            _number(metric["win_rate"]) + _range(metric["win_rate_interval"]),
            _number(metric["length_correlation"], 2),
            _number(selection["least_share"].get(name)),
            verdict(name, metric),
        )
        for name, metric in selection["metrics"].items()
    ]
    return Table(
        f"Inconsistency with {HOLISTIC}",
        f"Against it: % of the {selection['decided']} prompts with a holistic winner on which the metric names the "
        "other one, 95% interval below; without ties: of those on which the metric names a winner at all. Decides: % "
        "of all prompts on which it names one. Greedy wins: its win rate of greedy against sampled. Length: its rank "
        f"correlation with response_length. Least: % of {selection['draws']} bootstrap draws in which it is the least "
        "inconsistent one.",
        (
            *_columns("metric", ["against it", "without ties", "decides", "greedy wins", "length", "least"]),
            Column("selected", text=True),
        ),
        _one_section(rows),
        footnotes.texts,
    )


def correlation_table(selection: dict) -> Table:
    names = list(selection["correlations"])
    rows = [(row, *(_number(selection["correlations"][row].get(name), 2) for name in names)) for row in names]
    return Table("Rank correlations", "Spearman, over all generations", _columns("metric", names), _one_section(rows))


def selection_paper_table(paper: dict[str, float]) -> Table:
    return Table(
        "The paper's numbers (not ours)",
        "inconsistency with the holistic reward, %, as the paper reports it for its own data and models",
        _columns("metric", ["inconsistent"]),
        _one_section((label, f"{value:g}") for label, value in paper.items()),
    )


def selection_tables(selection: dict, task: Task) -> dict[str, Table]:
    """Every table of a selection under a short key, in the order of a report."""
    tables = {"selection": selection_table(selection, task), "correlations": correlation_table(selection)}
    if selection.get("paper"):
        tables["paper"] = selection_paper_table(selection["paper"])
    return tables


# --- sentences ---------------------------------------------------------------------------------------------------


def describe_comparison(found: Comparison, setup: Setup) -> list[str]:
    """What was compared; how intervals were made; who leads the average win rate by the holistic reward, the judge."""
    prompts = f"all {setup.total_prompts} prompts"
    if setup.prompts != setup.total_prompts:
        prompts = f"{setup.prompts} of {setup.total_prompts} prompts, drawn with seed {setup.draw_seed}"
    seeds = f", {len(setup.seeds)} seeds ({', '.join(setup.seeds)})" if setup.seeds else ""
    count = len(found.runs)
    lines = [f"{setup.folder}: {count} run{'s' if count > 1 else ''}, {prompts}{seeds}"]
    if count == 1:
        return [*lines, "One run only: nothing to compare it with."]
    over = "the prompts and the seeds" if len(setup.seeds) > 1 else "the prompts"
    lines.append(f"Intervals hold 95% of {setup.draws} bootstrap draws of {over}.")
    for criterion in (HOLISTIC, JUDGE):
        known = {
            run: means[criterion]
            for run, means in found.averages.items()
            if criterion in means and means[criterion].win_rate is not None
        }
        if known:
            best = max(known, key=lambda run: known[run].win_rate)
            interval = known[best].interval
            span = f" (95% interval {_range(interval).strip()})" if interval else ""
            lines.append(f"Highest average win rate by {criterion}: {best}, {known[best].win_rate:.1f}%{span}.")
    judged = [rates[JUDGE] for rates in found.each_pair().values() if JUDGE in rates]
    if failures := sum(rates.judge.failures for rates in judged):
        total = failures + sum(rates.wins + rates.ties + rates.losses for rates in judged)
        lines.append(f"The judge gave no verdict on {failures} of {total} comparisons, which its rates leave out.")
    return lines


def describe_selection(selection: dict) -> list[str]:
    """What was compared, what is recommended, and why."""
    lines = [
        f"{selection['greedy']} against {selection['sampled']}: {selection['prompts']} prompts, {selection['decided']} "
        f"of them with a winner by {HOLISTIC}.",
        f"Recommended: {selection['recommended'] or 'none'}. {selection['reason']}.",
    ]
    if selection.get("flags"):
        lines.append(f"To train on it: train_ppo.py {selection['flags']}")
    return lines


# --- terminal ----------------------------------------------------------------------------------------------------


def print_results(found: Comparison, setup: Setup, console: Console) -> None:
    """Print what was compared and what `compare` found as tables; the averages come last, to be seen."""
    tables = comparison_tables(found, setup)
    compared, *lines = describe_comparison(found, setup)
    _say(compared, console, whole=True)  # a path can be copied
    if len(found.runs) > 1:
        _say(lines.pop(0), console)
    console.print()
    print_table(tables["metrics"], console)
    if len(found.runs) > 1:
        _print_pairs(found, tables, console)
    for key in ("judge-run", "average"):
        if key in tables:
            print_table(tables[key], console)
    for line in lines:
        _say(line, console)


def _print_pairs(found: Comparison, tables: dict[str, Table], console: Console) -> None:
    rates = tables["win-rates"]
    if not fits(rates, console.width):
        rates = win_rate_table(found, numbered=True)
    if fits(rates, console.width):
        print_table(rates, console)
    else:
        _say(f"Win rates of single pairs: too wide for {console.width} columns; the results file has them.\n", console)
    pairs = len(found.each_pair())
    if pairs > MOST_PAIRS:
        _say(f"Tables of {pairs} pairs: too long for a screen; the results file has them.\n", console)
    else:
        print_table(tables["inconsistency"], console)
        shown = [criterion for criterion in found.criteria if criterion in (HOLISTIC, JUDGE)]
        print_table(outcome_table(found, shown), console)
        if "judge" in tables:
            print_table(tables["judge"], console)


def print_selection(selection: dict, task: Task, console: Console) -> None:
    """Print the tables of a selection, then what is recommended."""
    for table in selection_tables(selection, task).values():
        print_table(table, console)
    for line in describe_selection(selection):
        _say(line, console)


def _say(text: str, console: Console, whole: bool = False) -> None:
    from rich.text import Text

    console.print(Text(text, overflow="fold"), soft_wrap=whole)


# --- folders -----------------------------------------------------------------------------------------------------


def check_report_folder(folder: Path) -> None:
    """Raise UserError unless a report may be written to `folder`: nothing, an empty folder, or an earlier report."""
    if not os.path.lexists(folder):
        return
    if not folder.is_dir():
        raise UserError(f"{folder} is a file, but the report is a folder; move it away or give another place")
    try:
        names = {path.name for path in folder.iterdir()}
        written_by = json.loads((folder / "settings.json").read_text(encoding="utf-8")).get("written_by")
    except (OSError, ValueError, AttributeError):
        written_by = None
    if names and written_by not in (COMPARISON, SELECTION):
        raise UserError(f"{folder} holds something other than a report; move it away or give another place")
    if names - FILES:
        foreign = sorted(names - FILES)[0]
        raise UserError(f"{folder} holds {foreign!a} beside a report, which would be lost; move it away")


def write_report(
    folder: Path,
    found: Comparison,
    setup: Setup,
    seeds: dict[str, list[Generations]],
    judgements: list[Judgements] | None = None,
) -> None:
    """Write the report of a comparison: index.html, report.md, its PNGs and settings.json, whole or not at all.

    seeds: the compared runs of each seed, under "" if there are no seed folders. judgements: as `compare` took them.
    Raises UserError as `check_report_folder` does, and if the folder cannot be written.
    """
    from .figures import distribution_figure, win_rate_figure

    check_report_folder(folder)
    runs = next(iter(seeds.values()))
    pooled = {
        metric: {
            run.name: np.concatenate([seed[index].metrics[metric] for seed in seeds.values()])
            for index, run in enumerate(runs)
        }
        for metric in runs[0].metrics
    }
    pictures = {
        "metrics": Picture(
            "distributions.png",
            distribution_figure(pooled, found.task.lower_wins),
            "Histograms of every metric, one for each run, with quartiles and mean.",
            f"Distribution of every metric over the prompts{' of all seeds' if len(seeds) > 1 else ''}. What lies "
            "outside of the middle 99% is counted in the outermost bars.",
        )
    }
    if len(found.runs) > 1:
        pictures["win-rates"] = Picture(
            "win_rates.png",
            win_rate_figure(found),
            "Heat maps of the win rates, one for each criterion. The table below holds the same values.",
            "The darker, the more the row wins; bold: the 95% interval leaves 50 out. Long names are shortened; the "
            "order is that of the tables.",
        )
    _write(
        folder,
        COMPARISON,
        f"{len(found.runs)} run{'s' if len(found.runs) > 1 else ''} compared ({found.task.name})",
        describe_comparison(found, setup),
        comparison_tables(found, setup),
        pictures,
        {"task_type": found.task.name, **asdict(setup)},
        answers=answers_section(seeds, found.task, judgements, setup.draw_seed),
    )


def write_selection_report(folder: Path, selection: dict, task: Task) -> None:
    """Write the report of a selection: index.html, report.md, selection.png, selection.json, settings.json.

    Whole or not at all. Raises UserError as `check_report_folder` does, and if the folder cannot be written.
    """
    from .figures import selection_figure

    check_report_folder(folder)
    picture = Picture(
        "selection.png",
        selection_figure(selection),
        "Bars: how often each metric contradicts the holistic reward. The table below holds the same values.",
        "The recommended metric is hatched. Diamonds are the paper's numbers, for its own data and models."
        if selection.get("paper")
        else "The recommended metric is hatched.",
    )
    _write(
        folder,
        SELECTION,
        f"Selection of an aspect reward ({selection['task_type']})",
        describe_selection(selection),
        selection_tables(selection, task),
        {"selection": picture},
        {key: selection[key] for key in ("task_type", "greedy", "sampled", "prompts", "draws")},
        more={"selection.json": json.dumps(selection, indent=2) + "\n"},
    )


def _write(
    folder: Path,
    written_by: str,
    title: str,
    description: list[str],
    tables: dict[str, Table],
    pictures: dict[str, Picture],
    settings: dict,
    answers: Answers | None = None,
    more: dict[str, str] | None = None,
) -> None:
    """tables and pictures under the same keys: a picture stands above its table."""
    texts = {
        "index.html": html_page(title, description, tables, pictures, answers),
        "report.md": markdown_report(title, description, tables, pictures),
        "settings.json": json.dumps({"written_by": written_by, **settings}, indent=2) + "\n",
        **(more or {}),
    }
    try:
        # resolved, so that "." has a name and a link stays one
        with whole_folder(folder.resolve()) as temporary:
            for name, text in texts.items():
                (temporary / name).write_text(text, encoding="utf-8")
            for picture in pictures.values():
                (temporary / picture.file).write_bytes(picture.png)
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}); give another place") from None
