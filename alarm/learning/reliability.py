"""The reliability curve of a preference model: does it win as often as it predicts?"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..common.console import Column, Section, Table
from ..common.texts import one_spelling
from ..tasks.preferences import Pair
from .metrics import finite, sigmoid, weighted_mean, win_shares, with_intervals


def reliability(pairs: list[Pair], chosen: list[float], rejected: list[float], bins: int = 10) -> dict:
    """The reliability curve: bins of equal count over the probability that the model gives the answer it prefers.

    `predicted`: mean of sigmoid(|chosen - rejected|) in a bin, 0.5 to 1. `observed`: the share of its pairs in which
    the preferred answer is the chosen one (a half for equal scores), with an interval over questions. A pair has no
    first answer. So the curve is not over P(chosen > rejected), whose label is always 1, and no pair counts in both
    directions, which would only add a mirror image.

    `expected_error`: mean of |predicted - observed|, weighted by pairs. `chance_error`: its mean over draws of a model
    that is calibrated perfectly and makes these predictions on independent pairs. There are fewer bins if fewer than 50
    pairs would share one.
    """
    margins = finite(chosen) - finite(rejected)
    predicted, hits = sigmoid(np.abs(margins)), win_shares(margins)
    asked = one_spelling(pair.question for pair in pairs)
    parts = np.array_split(np.argsort(predicted, kind="stable"), max(1, min(bins, len(pairs) // 50)))
    table = []
    for part in parts:
        share = with_intervals(
            lambda weights, hit=hits[part]: {"observed": weighted_mean(hit, weights)},
            [asked[i] for i in part],
        )["observed"]
        table.append(
            {
                "pairs": len(part),
                "predicted": float(predicted[part].mean()),
                "observed": share["value"],
                "interval": share["interval"],
            }
        )

    def error(wins: np.ndarray) -> np.ndarray:
        gaps = [np.abs(wins[:, part].sum(axis=1) - predicted[part].sum()) for part in parts]
        return np.sum(gaps, axis=0) / len(predicted)

    drawn = np.random.default_rng(0).random((500, len(predicted))) < predicted
    return {"bins": table, "expected_error": float(error(hits[None])[0]), "chance_error": float(error(drawn).mean())}


def reliability_table(found: dict) -> Table:
    """The bins, and the expected calibration error below them."""
    rows = [
        (
            str(row["pairs"]),
            f"{row['predicted']:.3f}",
            f"{row['observed']:.3f}",
            "{:.3f} .. {:.3f}".format(*row["interval"]) if row["interval"] else "",
        )
        for row in found["bins"]
    ]
    note = (
        "of the answer that the model prefers\n"
        f"expected calibration error {found['expected_error']:.3f}; "
        f"by chance alone, a perfectly calibrated model would have {found['chance_error']:.3f}"
    )
    columns = (Column("pairs"), Column("predicted"), Column("observed"), Column("95% interval", name=True))
    return Table("Reliability", note, columns, (Section(tuple(rows)),))


def draw_reliability(found: dict, title: str, path: str | Path) -> None:
    """Write the reliability curve as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    x = np.array([row["predicted"] for row in found["bins"]])
    y = np.array([row["observed"] for row in found["bins"]])
    spans = np.array([row["interval"] or [row["observed"]] * 2 for row in found["bins"]])
    figure = Figure(figsize=(5.2, 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.axhline(0.5, color="0.75", linewidth=1, linestyle=":", zorder=0)
    axes.plot([0.5, 1], [0.5, 1], color="0.45", linestyle="--", linewidth=1, label="calibrated perfectly")
    axes.errorbar(
        x,
        y,
        yerr=np.clip([y - spans[:, 0], spans[:, 1] - y], 0, None),
        fmt="o",
        color="black",
        markersize=6,
        elinewidth=1,
        capsize=3,
        label="this model, 95% intervals over questions",
    )
    right = max(0.75, min(1.0, x.max() + 0.05))
    axes.set_xlim(0.49, right + 0.01)
    axes.set_ylim(max(-0.02, min(0.38, spans.min() - 0.03)), min(1.02, max(right, spans.max()) + 0.03))
    axes.set_xlabel("probability of being the better one, given to the preferred answer")
    axes.set_ylabel("share of pairs in which people agree")
    axes.set_title(
        f"{title}: {sum(row['pairs'] for row in found['bins'])} pairs in bins of equal count\n"
        f"expected calibration error {found['expected_error']:.3f} "
        f"(by chance alone {found['chance_error']:.3f})",
        fontsize=10,
    )
    figure.legend(loc="outside lower center", ncols=2, fontsize=9, frameon=False)
    figure.savefig(path, dpi=150)
