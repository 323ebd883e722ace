"""Plot a run, or several in one figure, from what training logged: rewards, aspects, KL, length, gate over steps."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..api import HOLISTIC, LENGTH, RAW_HOLISTIC, Metric
from ..common.errors import UserError, report_user_errors
from ..common.files import check_folder
from ..common.flags import parser, positive_int
from ..tasks.find import BUILT_IN, find_task
from .run import read_log

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FILE = "training.png"
SOFTWARE = "alarm.plot_run"  # written into the PNG: files without it are not replaced
COLUMNS = 4

# what every task logs -> title, and the fixed ends of its axis; the panels of a task's own metrics come after them
PANELS = {
    "reward": ("reward paid for a response", None),
    HOLISTIC: ("holistic reward (z-normalised)", None),
    RAW_HOLISTIC: ("holistic score (raw, without baseline)", None),
    "gate_rate": ("share above the gate", (0, 1)),
    "aspect_share": ("aspects' share of the reward", (0, 1)),
    "kl": ("KL from the reference", None),
    "kl_coef": ("KL coefficient", None),
    LENGTH: ("response length (tokens)", None),
}
# logged as well, and not drawn
NOT_DRAWN = {"empty_rate", "aspect_paid", "holistic_paid", "skipped", "entropy", "policy_kl", "early_stopped"}
NOT_DRAWN |= {"total_reward"}
DEV_NAMES = {"reward": "total_reward"}  # if the dev file's name differs
SMOOTH = ("kl_coef",)  # a mean would only lag behind
# drift warnings are marked in the panel of what drifted
WARNED = (HOLISTIC, LENGTH)

# colours of Okabe and Ito that differ in lightness as well; line styles and markers differ besides
STYLES = (
    ("#000000", "-", "o"),
    ("#D55E00", "--", "s"),
    ("#56B4E9", "-.", "^"),
    ("#0072B2", ":", "D"),
    ("#E69F00", (0, (5, 1, 1, 1, 1, 1)), "v"),
    ("#009E73", (0, (8, 3)), "P"),
)


@dataclass(frozen=True)
class RunLog:
    """What one run logged. Steps rise; a value that was not finite or not logged is None."""

    name: str
    train: dict[int, dict[str, float | None]]  # step -> metrics
    dev: dict[int, dict[str, float | None]]
    warnings: dict[int, dict[str, str]]  # step -> kind -> message

    def series(self, part: str, metric: str) -> tuple[list[int], list[float]]:
        """Steps and values of a metric of `train` or `dev`, NaN if a logged step has no number; empty if it has none
        at all."""
        rows = getattr(self, part)
        if not any(row.get(metric) is not None for row in rows.values()):
            return [], []
        values = [math.nan if row.get(metric) is None else float(row[metric]) for row in rows.values()]
        return list(rows), values


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """The mean of the last `window` values at each place, of fewer at the start. NaN takes no part."""
    means = []
    for end in range(1, len(values) + 1):
        part = [value for value in values[max(0, end - window) : end] if not math.isnan(value)]
        means.append(math.fsum(part) / len(part) if part else math.nan)
    return means


# --- reading ---------------------------------------------------------------------------------------------------------


def read_run(folder: str | Path, name: str) -> RunLog:
    """Read log.jsonl of a run's folder. UserError if there is none, and if it is empty or no training log.

    A last line that is still being written, or that a kill cut short, is left out.
    """
    path = Path(folder) / "log.jsonl"
    if Path(folder).is_file():
        raise UserError(f"--run_dir {folder} is a file; give the --save_dir of a train_ppo.py")
    try:
        rows = read_log(path)
    except FileNotFoundError:
        what = "holds no log.jsonl" if Path(folder).is_dir() else "does not exist"
        raise UserError(f"--run_dir {folder} {what}; give the --save_dir of a train_ppo.py") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    log = RunLog(name, {}, {}, {})
    for row in rows:
        for part in ("train", "dev", "warnings"):
            if part in row:
                getattr(log, part)[row["step"]] = row[part]
    if not log.train and not log.dev:
        raise UserError(f"{path} has no finished step yet; plot the run when it has")
    return log


def run_names(folders: Sequence[str]) -> list[str]:
    """A label for each folder: its own name, or the whole path if two have the same name."""
    names = [Path(folder).resolve().name for folder in folders]
    return names if len(set(names)) == len(names) else list(folders)


def check_target(path: Path) -> None:
    """Raise UserError if the file to write exists and is no plot of this script."""
    if not path.exists():
        return
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            ours = image.info.get("Software") == SOFTWARE
    except (OSError, UnidentifiedImageError):
        ours = False
    if not ours:
        raise UserError(f"{path} exists and was not written by {SOFTWARE}; move it away or give another --save_dir")


# --- drawing ---------------------------------------------------------------------------------------------------------


def panels_of(runs: Sequence[RunLog], metrics: Sequence[Metric]) -> dict[str, tuple[str, tuple | None]]:
    """Metric -> title, and the fixed ends of its axis: PANELS, then what the runs logged besides, in its order.

    metrics: those whose titles are known.
    """
    known = {metric.name: (metric.title or metric.name.replace("_", " "), metric.ends) for metric in metrics}
    logged = [name for run in runs for rows in (run.train, run.dev) for row in rows.values() for name in row]
    own = [name for name in dict.fromkeys(logged) if name not in PANELS.keys() | NOT_DRAWN and "/" not in name]
    ordered = [name for name in known if name in own] + [name for name in own if name not in known]
    return PANELS | {name: known.get(name, (name.replace("_", " "), None)) for name in ordered}


def plot(runs: Sequence[RunLog], window: int | None = None, metrics: Sequence[Metric] = ()) -> Figure:
    """A panel for each metric that one of up to 6 runs has.

    `window`: steps of the running mean (None: a tenth of the longest run). metrics: those whose titles are known.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    panels = panels_of(runs, metrics)
    metrics = [
        metric
        for metric in panels
        if any(run.series("train", metric)[0] or run.series("dev", DEV_NAMES.get(metric, metric))[0] for run in runs)
    ]
    rows = -(-len(metrics) // COLUMNS)
    figure = Figure(figsize=(3.5 * COLUMNS, 2.6 * rows + 0.9), layout="constrained")
    grid = figure.subplots(rows, COLUMNS, sharex=True, squeeze=False).flatten()
    window = window or max(1, round(max(len(run.train) for run in runs) / 10))
    for axes, metric in zip(grid, metrics, strict=False):
        for number in range(len(runs)):
            draw(axes, runs, number, metric, window)
        finish(axes, *panels[metric])
    for axes in grid[len(metrics) :]:
        axes.remove()
    for axes in grid[max(0, len(metrics) - COLUMNS) : len(metrics)]:
        axes.tick_params(labelbottom=True)
        axes.set_xlabel("PPO step")

    grey = "#555555"
    handles = []
    if window > 1:
        handles = [
            Line2D([], [], color=grey, linewidth=0.7, alpha=0.6, label="training, each step"),
            Line2D([], [], color=grey, linewidth=1.8, label=f"training, mean of the last {window} steps"),
        ]
    if any(run.dev for run in runs):
        dev = {"marker": "o", "markerfacecolor": "white", "label": "dev file, greedy"}
        handles.append(Line2D([], [], color=grey, linestyle="none", **dev))
    if any(kind.startswith(WARNED) for run in runs for kinds in run.warnings.values() for kind in kinds):
        handles.append(Line2D([], [], color=grey, linestyle="none", marker="x", label="drift warning"))
    if len(runs) > 1:
        for run, (color, line, marker) in zip(runs, STYLES, strict=False):
            handles.append(Line2D([], [], color=color, linestyle=line, marker=marker, linewidth=1.8, label=run.name))
    else:
        figure.suptitle(runs[0].name, fontsize=12)
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    return figure


def draw(axes: Axes, runs: Sequence[RunLog], number: int, metric: str, window: int) -> None:
    """Run `number` of `runs` in one panel."""
    run, (color, line, marker) = runs[number], STYLES[number]
    steps, values = run.series("train", metric)
    if steps:
        if metric not in SMOOTH:
            axes.plot(steps, values, color=color, linewidth=0.7, alpha=0.35 if len(runs) == 1 else 0.2)
            values = running_mean(values, window)
        alone = marker if len(steps) == 1 else None  # a line through one point is not seen
        axes.plot(steps, values, color=color, linestyle=line, linewidth=1.8, marker=alone)
    steps, values = run.series("dev", DEV_NAMES.get(metric, metric))
    hollow = {"linestyle": "none", "marker": marker, "markersize": 5, "markerfacecolor": "white"}
    if steps:  # a line without points and clipping has no extent, on which the layout fails
        axes.plot(steps, values, color=color, zorder=3, clip_on=False, **hollow)
    if metric in WARNED:
        marks = [step for step, kinds in run.warnings.items() if any(kind.startswith(metric) for kind in kinds)]
        height = [0.04 + 0.07 * number] * len(marks)  # of the panel
        axes.plot(marks, height, color=color, linestyle="none", marker="x", transform=axes.get_xaxis_transform())


def finish(axes: Axes, title: str, ends: tuple[float, float] | None) -> None:
    """Title, grid and range of a panel."""
    from matplotlib.ticker import MaxNLocator, ScalarFormatter

    axes.set_title(title, fontsize=10, loc="left")
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.yaxis.set_major_formatter(ScalarFormatter(useOffset=False))  # an offset would stand in the title's place
    low, high = axes.dataLim.intervaly
    if ends:
        axes.set_ylim(ends[0] - 0.03, ends[1] + 0.03)
    elif high - low <= 1e-9 * max(1, abs(low), abs(high)):  # rounding, drawn as large as a curve
        axes.set_ylim(low - 0.5, high + 0.5)


# --- the script ------------------------------------------------------------------------------------------------------


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    flags = parser(__doc__)
    add = flags.add_argument
    add("--run_dir", action="append", required=True, help="a run's folder; give it again to compare up to 6 runs")
    add("--save_dir", help=f"folder in which {FILE} is written (default: the folder of the first run)")
    add("--window", type=positive_int, help="steps of the running mean (default: a tenth of the longest run's)")
    add("--task", help="the .py file of the runs' task, for the titles of its metrics (qa and mt are known)")
    return flags.parse_args(argv)


@report_user_errors
def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    if len(args.run_dir) > len(STYLES):
        raise UserError(f"{len(args.run_dir)} runs cannot be told apart in one figure; give at most {len(STYLES)}")
    runs = [read_run(path, name) for path, name in zip(args.run_dir, run_names(args.run_dir), strict=True)]
    folder = Path(args.save_dir or args.run_dir[0])
    check_folder(folder, "--save_dir")
    target = folder / FILE
    check_target(target)

    tasks = [find_task(args.task)] if args.task else [find_task(name) for name in BUILT_IN]
    figure = plot(runs, args.window, [metric for task in tasks for metric in task.metrics])
    temporary = folder / f".{FILE}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(temporary, format="png", dpi=130, metadata={"Software": SOFTWARE})
        temporary.replace(target)
    except OSError as error:
        raise UserError(f"{target} cannot be written ({error.strerror}); give a writable --save_dir") from None
    finally:
        temporary.unlink(missing_ok=True)
    steps = ", ".join(f"{run.name}: {max([*run.train, *run.dev])} steps" for run in runs)
    print(f"wrote {target} ({steps})")


if __name__ == "__main__":
    main()
