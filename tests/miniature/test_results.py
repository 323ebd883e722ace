"""The table of true quality: paired gains, and files that do not belong together."""

from __future__ import annotations

import json
import math

import pytest

from alarm.common.errors import UserError
from alarm.tasks.find import find_task
from miniature.results import (
    SHOWN,
    answers_before_and_after,
    collapse,
    collapses,
    last_kl,
    read_runs,
    results_table,
    sentence,
    sentences,
    summarise,
)
from miniature.settings import WORLDS


def rows(values, prefix="q"):
    return [
        {"query": f"{prefix}{i}", "generation": "x", "oracle": value, "holistic_reward": 1.0, "response_length": 5}
        for i, value in enumerate(values)
    ]


def test_gains_are_paired():
    start = [0.0, 0.2, 0.4, 0.6, 0.8] * 10
    found = summarise({"start": rows(start), "run": rows([value + 0.1 for value in start])})
    gain = found["run"]["gain"]
    assert [gain[key] for key in ("mean", "low", "high")] == pytest.approx([0.1, 0.1, 0.1])
    quality = found["run"]["oracle"]
    assert quality["low"] < 0.5 < quality["high"]
    assert "grammar_errors" not in found["run"]


def test_other_prompts_are_refused(tmp_path):
    for name, prefix in (("a", "q"), ("b", "p")):
        (tmp_path / f"{name}.json").write_text(json.dumps(rows([0.5] * 3, prefix)))
    with pytest.raises(UserError, match="other prompts"):
        read_runs([str(tmp_path / "a.json"), str(tmp_path / "b.json")])


def test_a_sentence_claims_no_more_than_the_interval():
    assert sentence("a", "b", {"mean": 0.1, "low": 0.01, "high": 0.2}, 30).startswith("a is better than b: +0.100")
    assert sentence("a", "b", {"mean": -0.1, "low": -0.2, "high": -0.01}, 30).startswith("a is worse than b: -0.100")
    assert "no difference" in sentence("a", "b", {"mean": 0.1, "low": -0.01, "high": 0.2}, 30)
    assert "no difference" in sentence("a", "b", {"mean": 0.0, "low": 0.0, "high": 0.0}, 30)


def test_each_run_is_compared_with_the_start_and_the_first_run_with_the_others():
    rows = [{"query": str(i), "generation": "x", "oracle": 0.5} for i in range(30)]
    better = [row | {"oracle": 0.75} for row in rows]
    said = sentences({"start": rows, "one": better, "two": rows})
    assert [line.split(":")[0] for line in said] == [
        "one is better than start",
        "two and start",
        "one is better than two",
    ]
    few = sentences({name: part[:19] for name, part in {"start": rows, "one": better}.items()})
    assert "better" not in few[0] and "19 prompts" in few[0]


def test_answers_that_are_shown_are_the_first_that_differ():
    start = [{"query": f"q{i}", "generation": "same", "oracle": 1.0} for i in range(6)]
    after = [row | ({"generation": "other", "oracle": 0.25} if i % 2 else {}) for i, row in enumerate(start)]
    shown = answers_before_and_after({"start": start, "run": after}, "start", "run", count=2)
    assert "q1" in shown and "q3" in shown and "q5" not in shown and "q0" not in shown
    assert shown.count("[0.25] other") == 2


def test_a_run_that_has_lost_half_of_the_truth_is_named():
    rows = [{"query": str(i), "generation": "x", "oracle": 0.5} for i in range(30)]
    found = summarise(
        {
            "start": rows,
            "fallen": [row | {"oracle": 0.2} for row in rows],
            "mute": [row | {"generation": " "} for row in rows],
        }
    )
    assert [row["collapsed"] is not None for row in found.values()] == [False, True, True]
    names = [row[0] for row in results_table(found, 30).sections[0].rows]
    assert names == ["start", "fallen (collapsed)", "mute (collapsed)"]
    assert len(collapses(found)) == 2


def test_a_collapse_is_measured_by_the_bounds_of_the_diagnostics():
    """10 tokens: 10 nats a response are 1 nat a token, the bound."""
    assert collapse(0.5, 10, 24, 10.0) is None
    assert "empty" in collapse(0.51, 10, 24, 0.0)
    assert "of at most 24" in collapse(0.0, 21.7, 24, 0.0) and collapse(0.0, 21.5, 24, 0.0) is None
    assert "1.1 nats" in collapse(0.0, 10, None, 11.0)
    assert collapse(0.0, 10, None, math.nan) is None


def test_the_last_step_of_a_log_says_how_far_a_run_moved(tmp_path):
    assert math.isnan(last_kl(tmp_path))
    rows = [{"step": i, "train": {"kl": kl}} for i, kl in enumerate((1.0, 2.5))]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert last_kl(tmp_path) == 2.5


def test_the_holistic_reward_is_shown_as_its_change():
    rows = [{"query": str(i), "generation": "x", "oracle": 0.5, "holistic_reward": -0.5} for i in range(30)]
    found = summarise({"start": rows, "run": [row | {"holistic_reward": 0.25} for row in rows]})
    table = results_table(found, 30)
    at = [column.heading for column in table.columns].index("change of holistic")
    assert [row[at] for row in table.sections[0].rows] == ["+0.00", "+0.75"]
    assert found["run"]["holistic"] == 0.25


def test_every_column_that_is_shown_is_one_that_a_world_writes():
    written = {metric.key for world in WORLDS.values() for metric in find_task(world.task).metrics}
    assert SHOWN.keys() <= written | {"holistic_reward", "response_length"}
