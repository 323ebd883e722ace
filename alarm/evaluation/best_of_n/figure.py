"""The figure: quality of the best of n against n, and against the KL of best-of-n."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# colours of Okabe and Ito; line styles and markers differ besides, so that the lines read in grey
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#E69F00", "#56B4E9", "#CC79A7")
LINES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*", "h")
GREY = "#777777"


def draw(result: dict) -> Figure:
    """result: what the command writes as JSON."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    sign, base = -1 if result["lower_is_better"] else 1, result["compared_with"]
    names = sorted(result["chosen"], key=lambda name: -sign * result["chosen"][name]["quality"][-1])
    end = result["chosen"][base]["quality"][-1]
    for axes, x in ((left, result["n"]), (right, result["kl"])):
        for name in names:
            line, style = result["chosen"][name], _style(name, list(result["chosen"]).index(name), base)
            axes.plot(x, line["quality"], markersize=3.5, linewidth=1.5, label=name, **style)
            if axes is left and name != base:
                low, high = line["difference_intervals"][-1]
                at = x[-1] * 1.06 ** (1 + names.index(name))  # side by side, to the right of the lines
                axes.plot([at, at], [end + low, end + high], linewidth=1.5, **style | {"linestyle": "-", "marker": ""})
                axes.plot(at, line["quality"][-1], markersize=4, **style)
        axes.axhline(result["at_random"]["quality"][0], color=GREY, linewidth=1, linestyle=":", label="at random")
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    low, high = left.get_ylim()
    best = result["best_possible"]["quality"]
    for axes, x in ((left, result["n"]), (right, result["kl"])):
        axes.plot(x, best, color=GREY, linewidth=1, linestyle="--", label="best possible")
    # the best possible may lie far outside
    left.set_ylim((low, max(high, min(best[-1], high + (high - low) / 2))) if sign > 0 else
                  (min(low, max(best[-1], low - (high - low) / 2)), high))  # fmt: skip
    left.set_xscale("log", base=2)
    left.set_xticks([n for n in result["n"] if n & (n - 1) == 0 or n == result["n"][-1]])
    left.xaxis.set_major_formatter(lambda n, _: f"{n:g}")
    left.minorticks_off()
    left.set_xlabel("answers to choose from, n")
    right.set_xlabel("KL of best-of-n from the policy, log n - (n - 1) / n (nats)")
    direction = "lower" if result["lower_is_better"] else "higher"
    left.set_ylabel(f"{result['quality']} ({direction} is better)", parse_math=False)
    title = f"{result['prompts']} prompts; bars: 95% of the difference from {base} at n = {result['n'][-1]}"
    left.set_title(title, loc="left", fontsize=10)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=9, handlelength=3.5)
    return figure


def _style(name: str, number: int, base: str) -> dict:
    if name == base:
        return {"color": "#000000", "linestyle": "-", "marker": "o"}
    return {
        "color": COLOURS[number % len(COLOURS)],
        "linestyle": LINES[number % len(LINES)],
        "marker": MARKERS[number % len(MARKERS)],
    }


def save(figure: Figure, path: Path) -> None:
    """Write a PNG, whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        figure.savefig(temporary, format="png", dpi=130)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
