"""The figure: quality of the best of n against n, and against the KL of best-of-n."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# colours of Okabe and Ito; line styles and markers differ besides, so that the lines read in grey
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#E69F00", "#56B4E9", "#CC79A7", "#000000")
LINES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*", "h")
GREY = "#777777"


def draw(result: dict) -> Figure:
    """result: what the command writes as JSON."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    sign = -1 if result["lower_is_better"] else 1
    # the legend in the order of the ends of the lines
    ordered = sorted(result["chosen"].items(), key=lambda item: -sign * item[1]["quality"][-1])
    for axes, x in ((left, result["n"]), (right, result["kl"])):
        for name, line in ordered:
            _line(axes, x, name, line, list(result["chosen"]).index(name), result["compared_with"])
        axes.axhline(result["at_random"]["quality"][0], color=GREY, linewidth=1, linestyle=":", label="at random")
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    ends = [line["quality"] for line in (*result["chosen"].values(), result["at_random"])]
    low, high = min(map(min, ends)), max(map(max, ends))
    margin = 0.08 * (high - low) or 0.5
    left.set_ylim(low - margin, high + margin)
    best = result["best_possible"]["quality"]
    if low - margin < best[-1] < high + margin:
        for axes, x in ((left, result["n"]), (right, result["kl"])):
            axes.plot(x, best, color=GREY, linewidth=1, linestyle="--", label="best possible")
    left.set_xscale("log", base=2)
    left.set_xticks([n for n in result["n"] if n & (n - 1) == 0 or n == result["n"][-1]])
    left.xaxis.set_major_formatter(lambda n, _: f"{n:g}")
    left.minorticks_off()
    left.set_xlabel("answers to choose from, n")
    right.set_xlabel("KL of best-of-n from the policy, log n - (n - 1) / n (nats)")
    direction = "lower" if result["lower_is_better"] else "higher"
    left.set_ylabel(f"{result['quality']} ({direction} is better)", parse_math=False)
    left.set_title(f"{result['prompts']} prompts; band: 95% of {result['compared_with']}", loc="left", fontsize=10)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=9)
    return figure


def _line(axes: Axes, x: list[float], name: str, line: dict, number: int, compared_with: str) -> None:
    style = {
        "color": COLOURS[number % len(COLOURS)],
        "linestyle": LINES[number % len(LINES)],
        "marker": MARKERS[number % len(MARKERS)],
    }
    if name == compared_with:
        style = {"color": "#000000", "linestyle": "-", "marker": "o"}
        low, high = zip(*line["intervals"], strict=True)
        axes.fill_between(x, low, high, color=GREY, alpha=0.2, linewidth=0)
    axes.plot(x, line["quality"], markersize=3.5, linewidth=1.5, label=name, **style)


def save(figure: Figure, path: Path) -> None:
    """Write a PNG, whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        figure.savefig(temporary, format="png", dpi=130)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
