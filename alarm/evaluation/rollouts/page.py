"""The page of rollouts: a step slider and curves above, a table of answers with rewards on their tokens below."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ...common.files import is_finite_number
from ...tasks.find import BUILT_IN, find_task
from ...training.plot import DEV_NAMES, SMOOTH, panels_of, running_mean
from ..features import repeated_share
from ..pages.colours import REWARD_CSS, STEPS
from ..pages.page import assemble, read_asset, rounded, table_scripts, table_styles
from ..report.tables import escape_html
from .read import (
    DEV,
    Rollouts,
    against_start,
    changed_share,
    first_answers,
    numbers_of,
    same_elsewhere,
    units,
)

TITLE = "<title>Rollouts: "  # by which a page is known
FOLDER = Path(__file__).parent
MOST_RUNS = 6  # as in a figure of plot_run: more cannot be told apart
REPEATED = 0.2  # share of repeated runs of tokens from which the page calls a text repeated
APART = 0.5  # standard deviations by which the holistic reward and an aspect must go apart


def rollouts_page(runs: Sequence[Rollouts]) -> str:
    """The page of 1 to MOST_RUNS runs."""
    names = " and ".join(run.name for run in runs) if len(runs) < 3 else f"{len(runs)} runs"
    title = f"{TITLE.removeprefix('<title>')}{names}"
    styles = [*table_styles(), REWARD_CSS, read_asset(FOLDER / "rollouts.css")]
    scripts = [*table_scripts(), read_asset(FOLDER / "rollouts.js")]
    body = read_asset(FOLDER / "rollouts.html").replace("{title}", escape_html(title))
    return assemble(title, body, styles, scripts, page_data(runs))


def is_rollouts_page(path: Path) -> bool:
    """Whether a file is such a page, so that a later one may replace it."""
    try:
        with open(path, "rb") as file:
            return TITLE.encode() in file.read(2000)
    except OSError:
        return False


def page_data(runs: Sequence[Rollouts]) -> dict:
    """What rollouts.js reads. Columns have a value for each row, null where a row has none."""
    prompts: dict[tuple[str, str], int] = {}
    columns: dict[str, list] = {
        key: []
        for key in "run step split sample prompt answer lengths rewards first gate reward holistic_raw holistic kl "
        "length changed repeated same holistic_up holistic_down paid_up".split()
    }
    groups = {"aspects": {}, "paid": {}, "metrics": {}}  # group -> name -> column
    for number, run in enumerate(runs):
        start = len(columns["run"])
        first = first_answers(run.rows)
        bags: dict[int, Counter] = {}
        columns["first"] += [None if one is None else start + one for one in first]
        for key, values in against_start(run.rows, first).items():
            columns[key] += map(shown, values)
        columns["same"] += same_elsewhere(run.rows)
        for index, row in enumerate(run.rows):
            tokens = units(row)
            changed = None
            if first[index] is not None:
                bag = bags.setdefault(first[index], Counter(units(run.rows[first[index]])))
                changed = shown(changed_share(Counter(tokens), bag))
            lengths, rewards = token_rewards(row)
            gate = row.get("gate")
            values = {
                "run": number,
                "step": row["step"],
                "split": row["split"],
                "sample": row["sample"],
                "prompt": prompts.setdefault((row["prompt_id"], row["prompt"]), len(prompts)),
                "answer": row["generation"],
                "lengths": lengths,
                "rewards": rewards,
                "gate": gate if isinstance(gate, bool) else shown(gate),
                "changed": changed,
                "repeated": shown(repeated_share(tokens)),
                **{name: shown(row.get(name)) for name in ("reward", "holistic_raw", "holistic", "kl", "length")},
            }
            for key, value in values.items():
                columns[key].append(value)
            for group, named in groups.items():
                for name, value in numbers_of(row, group).items():
                    column = named.setdefault(name, [])
                    column += [None] * (start + index - len(column)) + [shown(value)]
    count = len(columns["run"])
    for named in groups.values():
        for column in named.values():
            column += [None] * (count - len(column))
    return {
        "runs": [{"name": run.name, "rows": len(run.rows), "has_log": run.has_log} for run in runs],
        "prompts": [{"id": key, "text": text} for key, text in prompts],
        "columns": columns,
        "groups": groups,
        "curves": curves(runs),
        "strengths": strengths(columns["rewards"]),
        "limits": {"repeated": REPEATED, "apart": APART},
    }


def shown(value: object) -> object:
    """A number, `rounded`; "nan" and "inf" as text, which JSON has no number for; None for all else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if not is_finite_number(value):
        return str(value) if isinstance(value, float) else f"{float('inf')}"
    if isinstance(value, int) or value == int(value):
        return int(value)
    return rounded(value)


def token_rewards(row: dict) -> tuple[list[int] | None, list | None]:
    """The lengths of the tokens' texts, in the UTF-16 units that JavaScript counts, and their rewards.

    None, None if the row has no tokens, or texts that do not give the answer. Rewards alone are None if it has none.
    """
    tokens, rewards = row.get("tokens"), row.get("token_rewards")
    if not isinstance(tokens, list) or not all(isinstance(one, str) for one in tokens):
        return None, None
    if "".join(tokens) != row["generation"]:
        return None, None
    lengths = [len(one) if one.isascii() else len(one.encode("utf-16-le", "surrogatepass")) // 2 for one in tokens]
    if not isinstance(rewards, list) or len(rewards) != len(tokens):
        return lengths, None
    return lengths, [0 if one == 0 else shown(one) for one in rewards]


def strengths(rewards: list[list | None]) -> list[float]:
    """The rewards at which the colours of tokens get stronger: STEPS, times the power of ten that fits the page.

    A large reward (one in twenty is larger) is then of one of the three strongest colours.
    """
    sizes = [abs(one) for row in rewards if row for one in row if one and is_finite_number(one)]
    large = float(np.quantile(sizes, 0.95)) if sizes else STEPS[-1]
    factor = 10.0 ** math.ceil(math.log10(large / STEPS[-1]) - 1e-9)
    return [rounded(step * factor) for step in STEPS]


def curves(runs: Sequence[Rollouts]) -> list[dict]:
    """A panel for each number that a log has, as plot_run draws them: training, its running mean, the dev file."""
    logs = [run.log for run in runs]
    metrics = [metric for name in BUILT_IN for metric in find_task(name).metrics]
    window = max(1, round(max(len(log.train) for log in logs) / 10))
    panels = []
    for metric, (title, ends) in panels_of(logs, metrics).items():
        lines = []
        for log in logs:
            steps, values = log.series("train", metric)
            mean = values if metric in SMOOTH else running_mean(values, window)
            dev_steps, dev = log.series(DEV, DEV_NAMES.get(metric, metric))
            if not dev_steps:
                dev_steps, dev = log.series(DEV, metric)
            lines.append(
                {
                    "steps": steps,
                    "values": [_point(value) for value in values],
                    "mean": [_point(value) for value in mean],
                    "dev_steps": dev_steps,
                    "dev": [_point(value) for value in dev],
                }
            )
        if any(line["steps"] or line["dev_steps"] for line in lines):
            panels.append({"name": metric, "title": title, "ends": ends, "lines": lines})
    return panels


def _point(value: float) -> float | None:
    """A gap where a curve has no finite number."""
    return shown(value) if is_finite_number(value) else None
