"""alarm/evaluation/generations.py: one reader for comparisons, the inspector and re-ranking."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from alarm.common.errors import UserError
from alarm.evaluation.generations import read_generations
from alarm.tasks.find import find_task

QA = find_task("qa")
# in the file's order; the second prompt has two answers
ROWS = [
    {"query": "b", "generation": "one", "holistic_reward": 1, "factuality_rate": 0.5, "human": 3, "note": "x"},
    {"query": "a", "generation": "two", "holistic_reward": 2.5, "factuality_rate": 0.25, "human": 1},
    {"query": "b", "generation": "", "holistic_reward": -1, "factuality_rate": 1, "human": 2},
]


def write(folder: Path, rows: list[dict]) -> Path:
    path = folder / "run.v1.json"
    path.write_text(json.dumps(rows))
    return path


def changed(number: int, **values) -> list[dict]:
    """ROWS with one row changed."""
    rows = [dict(row) for row in ROWS]
    rows[number] |= values
    return rows


def test_every_row_in_the_order_of_the_file(tmp_path):
    run = read_generations(write(tmp_path, ROWS), QA, also=["human"])
    assert (run.name, run.queries, run.generations) == ("run.v1", ["b", "a", "b"], ["one", "two", ""])
    assert {name: values.tolist() for name, values in run.metrics.items()} == {
        "holistic_reward": [1, 2.5, -1],
        "factuality_rate": [0.5, 0.25, 1],
        "human": [3, 1, 2],
    }
    assert run.by_query() == {"b": [0, 2], "a": [1]}
    taken = run.take([2, 1])
    assert (taken.queries, taken.generations) == (["b", "a"], ["", "two"])
    assert taken.metrics["human"].tolist() == [2, 1]


def test_json_lines_are_read_alike(tmp_path):
    lines = tmp_path / "run.v1.json"
    lines.write_text("\n".join(map(json.dumps, ROWS)))
    run = read_generations(lines, QA)
    assert run.queries == ["b", "a", "b"]
    assert run.metrics["holistic_reward"].tolist() == [1, 2.5, -1]


def test_what_is_no_number_becomes_nan_only_if_that_is_asked_for(tmp_path):
    rows = changed(1, holistic_reward=None, factuality_rate=math.inf)
    del rows[2]["holistic_reward"]
    run = read_generations(write(tmp_path, rows), QA, complete=False)
    assert run.metrics["holistic_reward"][0] == 1
    assert [math.isnan(value) for value in run.metrics["holistic_reward"]] == [False, True, True]
    assert [math.isnan(value) for value in run.metrics["factuality_rate"]] == [False, True, False]
    with pytest.raises(UserError, match="row 2: 'holistic_reward' is null"):
        read_generations(write(tmp_path, rows), QA)
    bare = [{"query": "q", "generation": "text"}]
    assert read_generations(write(tmp_path, bare), QA, complete=False, need_text=True).metrics == {}
    with pytest.raises(UserError, match="'holistic_reward'"):
        read_generations(write(tmp_path, bare), QA)


@pytest.mark.parametrize(
    ("rows", "flags", "named"),
    [
        (changed(1, query=None), {}, "row 2 has no 'query'"),
        (changed(1, generation=None), {}, "row 2: 'generation' is NoneType"),
        (
            [{k: v for k, v in row.items() if k != "generation"} for row in ROWS],
            {"need_text": True},
            "row 1 has no 'gen",
        ),
        (ROWS, {"also": ["oracle"]}, "has no 'oracle'"),
        (changed(0, human="good"), {"also": ["human"]}, "row 1: 'human' is \"good\""),
        ([{"query": "q", "generation": "", "grammar_errors": 1}], {"complete": False}, "--task_type mt"),
        ([{"query": "q", "generation": "", "holistic_reward": 1}], {}, "'metric of an aspect'"),
    ],
)
def test_what_is_refused(tmp_path, rows, flags, named):
    with pytest.raises(UserError) as refused:
        read_generations(write(tmp_path, rows), QA, **flags)
    assert named in str(refused.value)
    assert "run.v1.json" in str(refused.value)
