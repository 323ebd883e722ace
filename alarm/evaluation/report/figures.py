"""The figures of a report as PNG bytes. Values stand in the figures, and every map and mark reads in grey."""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING

import numpy as np

from ..compare import HOLISTIC, Comparison, criterion_title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 150
WIDTH = 10.5  # inches
LABEL_LENGTH = 20  # characters in a line of a run's name in an axis
INK, FILL, LIGHT = "#1a1a1a", "#a9c1dc", "#dddddd"
# loses: pale and warm; even: grey; wins: dark and blue. Lightness falls all the way, so that it also reads in grey
WIN_COLOURS = ("#fff4e0", "#f9cf94", "#c2bdb5", "#6f97c1", "#16407f")


def short_names(names: list[str]) -> list[str]:
    """Names for axes, all different: two lines of at most LABEL_LENGTH characters, of those the font has."""
    from matplotlib import font_manager

    font = font_manager.get_font(font_manager.findfont("DejaVu Sans"))
    result = []
    for name in names:
        text = "".join(letter if font.get_char_index(ord(letter)) else "?" for letter in name)
        if len(text) > LABEL_LENGTH:
            # the first line ends with a word if it can
            cut = max(text.rfind(end, 0, LABEL_LENGTH) for end in "_-. ") + 1
            cut = cut if cut > LABEL_LENGTH // 2 else LABEL_LENGTH
            rest = text[cut:]
            text = f"{text[:cut]}\n{rest if len(rest) <= LABEL_LENGTH else f'…{rest[1 - LABEL_LENGTH :]}'}"
        result.append(text)
    if len(set(result)) < len(names):
        result = [f"#{number} {name}" for number, name in enumerate(result, start=1)]
    return result


def _png(figure: Figure, runs: int = 0) -> bytes:
    """runs: many of them make a figure so tall that fewer dots an inch must do."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=DPI if runs <= 8 else DPI * 2 // 3)
    return file.getvalue()


# --- win rates ---------------------------------------------------------------------------------------------------


def win_rate_figure(found: Comparison) -> bytes:
    """A heat map for each criterion: how often (percent) the row's run wins against the column's, and its average.

    Bold: the 95% interval leaves 50 out. At least two runs.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, Normalize
    from matplotlib.figure import Figure

    names, criteria = found.runs, found.criteria
    labels = short_names(names)
    cells = [_cells(found, criterion) for criterion in criteria]
    rates = [rate for of_criterion in cells for rate, _ in of_criterion.values() if rate is not None]
    # as wide as the rates need, the same on both sides of 50, so that colours are comparable between panels
    reach = min(50, max(10, 5 * math.ceil(max((abs(rate - 50) for rate in rates), default=10) / 5)))
    colours = LinearSegmentedColormap.from_list("wins", WIN_COLOURS)
    scale = ScalarMappable(Normalize(50 - reach, 50 + reach), colours)

    # in inches: a panel, and around it what the labels take at 9 points
    cell, length = 0.52, max(len(line) for label in labels for line in label.split("\n"))
    columns = int((WIDTH - 0.075 * length - 0.15) / (cell * (len(names) + 1.2) + 0.3))
    rows = math.ceil(len(criteria) / max(1, columns))
    columns = math.ceil(len(criteria) / rows)
    height = rows * (cell * len(names) + 0.05 * length + 0.75) + 1.3
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for index, axes in enumerate(panels.flat):
        if index >= len(criteria):
            axes.set_visible(False)
            continue
        _draw_rates(axes, cells[index], scale, len(names))
        axes.set_title(criterion_title(criteria[index], found.task.lower_wins), fontsize=10, weight="bold")
        axes.set_yticks(range(len(names)), labels, parse_math=False, fontsize=9)
        style = {"fontsize": 9, "rotation": 40, "ha": "right", "rotation_mode": "anchor"}
        axes.set_xticks([*range(len(names)), len(names) + 0.2], [*labels, "average"], parse_math=False, **style)
    figure.suptitle("Win rate: % of prompts on which the row wins against the column (ties left out)", fontsize=11)
    bar = figure.colorbar(scale, ax=panels, orientation="horizontal", fraction=0.04, aspect=50, pad=0.02, shrink=0.6)
    bar.set_label("the row loses  ←  50  →  the row wins", fontsize=9)
    bar.ax.tick_params(labelsize=9)
    return _png(figure, len(names))


def _cells(found: Comparison, criterion: str) -> dict[tuple[int, int], tuple[float | None, bool]]:
    """{(row, column): (win rate, whether its interval leaves 50 out)}; the average is the last column."""

    def clear(interval: list[float] | None) -> bool:
        return interval is not None and not interval[0] <= 50 <= interval[1]

    cells = {}
    for row, run in enumerate(found.runs):
        for column, other in enumerate(found.runs):
            if other != run:
                pair = found.pairs[run, other][criterion]
                cells[row, column] = pair.win_rate, clear(pair.win_rate_interval)
        mean = found.averages[run][criterion]
        cells[row, len(found.runs)] = mean.win_rate, clear(mean.interval)
    return cells


def _draw_rates(axes: Axes, cells: dict, scale, count: int) -> None:
    from matplotlib.patches import Rectangle

    for (row, column), (rate, clear) in cells.items():
        x = column + (0.2 if column == count else 0)
        colour = "white" if rate is None else scale.to_rgba(rate)
        axes.add_patch(Rectangle((x - 0.5, row - 0.5), 1, 1, facecolor=colour, edgecolor="white", linewidth=1.5))
        text = "-" if rate is None else f"{rate:.1f}"
        weight = "bold" if clear else "normal"
        axes.text(x, row, text, ha="center", va="center", fontsize=9, weight=weight, color=ink_on(colour))
    for row in range(count):
        axes.add_patch(
            Rectangle((row - 0.5, row - 0.5), 1, 1, facecolor="white", edgecolor=LIGHT, hatch="////", linewidth=0)
        )
    axes.set(xlim=(-0.5, count + 0.7), ylim=(count - 0.5, -0.5), aspect="equal")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def luminance(colour) -> float:
    """Relative luminance (WCAG 2) of a colour, 0 black .. 1 white."""
    from matplotlib.colors import to_rgb

    channels = np.array(to_rgb(colour))
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def ink_on(colour) -> str:
    """Black or white, whichever contrasts more. The ratios (L + 0.05)/0.05 and 1.05/(L + 0.05) meet at L = 0.179."""
    return "black" if luminance(colour) > 0.179 else "white"


# --- distributions -----------------------------------------------------------------------------------------------


def distribution_figure(values: dict[str, dict[str, np.ndarray]], lower_wins: frozenset[str]) -> bytes:
    """A panel for each metric with a histogram for each run, its quartiles and its mean.

    values: metric -> run -> (N,) finite values, the same runs in the same order for every metric.
    """
    from matplotlib.figure import Figure

    labels = short_names(list(next(iter(values.values()))))
    columns = 2 if len(values) > 1 else 1
    rows = math.ceil(len(values) / columns)
    height = rows * (0.42 * len(labels) + 0.75) + 0.6
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False)
    for index, axes in enumerate(panels.flat):
        if index >= len(values):
            axes.set_visible(False)
            continue
        metric = list(values)[index]
        _draw_distributions(axes, list(values[metric].values()))
        axes.set_title(criterion_title(metric, lower_wins), fontsize=10, weight="bold")
        names = labels if index % columns == 0 else [""] * len(labels)
        axes.set_yticks(range(len(names)), names, parse_math=False, fontsize=9)
    figure.suptitle(
        "Histogram, quartiles (bar), median (gap in the bar) and mean (diamond, value at the right)", fontsize=11
    )
    return _png(figure, len(labels))


def bin_edges(values: np.ndarray, bins: int = 40) -> np.ndarray:
    """Edges over the middle 99% of values; one bin a number if they are few whole numbers."""
    low, high = np.percentile(values, [0.5, 99.5])
    if np.all(values == np.round(values)) and high - low <= bins:
        return np.arange(math.floor(low), math.ceil(high) + 2) - 0.5
    size = max(abs(low), abs(high))
    if high - low <= 1e-9 * size or size < 1e-300:  # too close together for edges between them
        half = size / 10 if size >= 1e-300 else 0.5
        return np.linspace(low - half, high + half, bins + 2)  # an odd number of bins: the value is within one
    return np.linspace(low, high, bins + 1)


def _draw_distributions(axes: Axes, runs: list[np.ndarray]) -> None:
    edges = bin_edges(np.concatenate(runs))
    # what lies beyond is counted in the outermost bins
    shares = [np.histogram(np.clip(run, edges[0], edges[-1]), edges)[0] / len(run) for run in runs]
    tallest = max(share.max() for share in shares)
    digits = max(0, 2 - math.floor(math.log10(edges[-1] - edges[0])))  # three or four that can differ
    for row, (run, share) in enumerate(zip(runs, shares, strict=True)):
        base = row + 0.32
        axes.stairs(base - 0.74 * share / tallest, edges, baseline=base, fill=True, color=FILL)
        axes.stairs(base - 0.74 * share / tallest, edges, baseline=base, color="#4a6a8f", linewidth=0.7)
        low, median, high = np.clip(np.percentile(run, [25, 50, 75]), edges[0], edges[-1])
        mean = float(np.mean(run))
        axes.plot([low, high], [base, base], color=INK, linewidth=3.5, solid_capstyle="butt")
        axes.plot([median, median], [base - 0.09, base + 0.09], color="white", linewidth=1.6, zorder=3)
        axes.plot(
            np.clip(mean, edges[0], edges[-1]),
            base,
            "D",
            color="white",
            markeredgecolor=INK,
            markersize=5,
            zorder=4,
            clip_on=False,
        )
        axes.text(1.01, row + 0.1, f"{mean:.{digits}f}", transform=axes.get_yaxis_transform(), va="center", fontsize=9)
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(len(runs) - 0.4, -0.55)
    axes.margins(x=0.01)
    axes.tick_params(axis="x", labelsize=9)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color=LIGHT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["left", "right", "top"]].set_visible(False)


# --- selection ---------------------------------------------------------------------------------------------------


def selection_figure(selection: dict) -> bytes:
    """A bar for each metric: how often (percent) it contradicts the holistic reward, with its 95% interval.

    The recommended metric is hatched and named; the paper's numbers are open diamonds, labelled as the paper's.
    """
    from matplotlib.figure import Figure

    metrics = {name: metric for name, metric in selection["metrics"].items() if metric["inconsistency"] is not None}
    paper = selection.get("paper") or {}
    labels = sorted(metrics, key=lambda name: metrics[name]["inconsistency"])
    labels += [label for label in paper if label not in metrics]
    highest = max(
        [0.0, *paper.values()]
        + [max([metric["inconsistency"], *(metric["inconsistency_interval"] or [])]) for metric in metrics.values()]
    )

    figure = Figure(figsize=(8.5, 0.72 * max(len(labels), 1) + 1.6), layout="constrained")
    axes = figure.subplots()
    for row, label in enumerate(labels):
        end = 0.0
        if label in metrics:
            metric = metrics[label]
            value, recommended = metric["inconsistency"], label == selection["recommended"]
            low, high = metric["inconsistency_interval"] or (value, value)
            axes.barh(
                row,
                value,
                0.62,
                color="#6f97c1" if recommended else "#d5d5d5",
                edgecolor=INK,
                linewidth=1.8 if recommended else 0.6,
                hatch="//" if recommended else None,
            )
            axes.errorbar(
                value,
                row,
                xerr=[[max(0.0, value - low)], [max(0.0, high - value)]],
                color=INK,
                capsize=4,
                linewidth=1.4,
            )
            end = max(value, high)
            remark = "  recommended" if recommended else "" if metric["eligible"] else "  not eligible"
            axes.text(
                end + 0.015 * highest,
                row - 0.12 if label in paper else row,
                f"{value:.1f}{remark}",
                va="center",
                fontsize=10,
                weight="bold" if recommended else "normal",
            )
        if label in paper:
            axes.plot(paper[label], row + 0.2, "D", color="white", markeredgecolor=INK, markersize=7, zorder=5)
            axes.text(
                max(end, paper[label] + 0.01 * highest) + 0.015 * highest,
                row + 0.2,
                f"◇ the paper's: {paper[label]:g}",
                va="center",
                fontsize=9,
                style="italic",
            )
    axes.set_yticks(range(len(labels)), labels, parse_math=False, fontsize=10)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.set_xlim(0, 1.32 * highest or 1)
    axes.set_xlabel(f"% of prompts on which the metric contradicts {HOLISTIC}; whiskers: 95% interval", fontsize=10)
    axes.set_title("Inconsistency with the holistic reward (less is better)", fontsize=11, weight="bold")
    axes.grid(axis="x", color=LIGHT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["right", "top"]].set_visible(False)
    return _png(figure)
