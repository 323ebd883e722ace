"""Reading samples and their quality: what is refused, and what stays out and is counted."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from alarm.common.errors import UserError
from alarm.evaluation.best_of_n.samples import greatest_n, quality_of, read_samples, usable


def row(index: int, sample: int, **changes) -> dict:
    found = {"index": index, "sample": sample, "query": f"q{index}", "generation": f"answer {index} {sample}"}
    found |= {"raw_holistic": float(index), "response_length": 3, "oracle": 0.5}
    return found | {"aspects": {"facts": {"total": 1.5, "values": [0.5, 1.0], "best": 1.0}}} | changes


def write(path, rows) -> str:
    path.write_text(json.dumps(rows))
    return str(path)


def test_rows_are_sorted_and_null_is_nan(tmp_path):
    rows = [row(4, 1, raw_holistic=None), row(2, 0), row(4, 0), row(2, 1)]
    rows[1]["aspects"] = {"facts": {"total": None, "values": [None], "best": 1.0}}
    samples = read_samples(write(tmp_path / "s.json", rows))
    assert samples.index.tolist() == [2, 2, 4, 4] and samples.sample.tolist() == [0, 1, 0, 1]
    assert samples.sizes.tolist() == [2, 2] and samples.baseline is None and samples.best == {"facts": 1.0}
    assert math.isnan(samples.raw[3]) and math.isnan(samples.values["facts"][0][0])
    assert set(samples.columns) == {"response_length", "oracle"}
    kept = samples.taken(np.array([False, True, False, True]))
    assert kept.answers == ["answer 2 1", "answer 4 1"] and kept.sizes.tolist() == [1, 1]


@pytest.mark.parametrize(
    "rows, words",
    [
        ([{"query": "q", "generation": "a", "holistic_reward": 1.0}], "--num_samples"),
        ([row(0, 0), row(0, 0)], "index 0, sample 0"),
        ([row(0, 0), row(0, 1, aspects={})], "sample 1"),
        ([row(0, 0, raw_holistic="high")], "raw_holistic"),
        ([row(0, "a")], "sample"),
        ([row(0, 0, aspects={"facts": {"values": "x", "best": 1}})], "facts"),
        ([row(0, 0, aspects={"facts": {"values": [1]}})], "best"),
        ([row(0, 0), row(0, 1, aspects={"facts": {"values": [1.0], "best": 2}})], "best"),
    ],
)
def test_what_is_no_file_of_samples(tmp_path, rows, words):
    with pytest.raises(UserError, match=words):
        read_samples(write(tmp_path / "s.json", rows))


@pytest.fixture
def samples(tmp_path):
    return read_samples(write(tmp_path / "s.json", [row(i, k) for i in (0, 1) for k in (0, 1)]))


def test_quality_beside_the_samples(samples, tmp_path):
    table = tmp_path / "human.txt"  # the content tells the format
    table.write_text("sample,index,score\n1,0,2.5\n0,0,\n1,1,-1\n")
    assert np.array_equal(quality_of(samples, "score", table), [np.nan, 2.5, np.nan, -1], equal_nan=True)
    rows = [{"index": 1, "sample": 0, "score": 3, "generation": "answer 1 0"}]
    found = quality_of(samples, "score", write(tmp_path / "judge.json", rows))
    assert np.array_equal(found, [np.nan, np.nan, 3, np.nan], equal_nan=True)
    assert quality_of(samples, "oracle", None).tolist() == [0.5] * 4


@pytest.mark.parametrize(
    "rows, words",
    [
        ([{"index": 7, "sample": 0, "score": 1}], "index 7"),
        ([{"index": 0, "sample": 0, "score": 1, "generation": "another"}], "another text"),
        ([{"index": 0, "sample": 0, "score": 1}] * 2, "2 rows"),
        ([{"index": 0, "sample": 0, "points": 1}], "score"),
        ([{"index": 0, "sample": 0, "score": "good"}], "good"),
        ([{"index": 0.5, "sample": 0, "score": 1}], "whole numbers"),
    ],
)
def test_a_quality_file_of_something_else(samples, tmp_path, rows, words):
    with pytest.raises(UserError, match=words):
        quality_of(samples, "score", write(tmp_path / "judge.json", rows))


def test_an_unknown_column_is_named_with_those_there_are(samples):
    with pytest.raises(UserError, match="oracle"):
        quality_of(samples, "truth", None)


def test_a_table_with_words(samples, tmp_path):
    (tmp_path / "t.csv").write_text("index,sample,score\n0,0,good\n")
    with pytest.raises(UserError, match="row 1"):
        quality_of(samples, "score", tmp_path / "t.csv")


def test_what_is_not_finite_stays_out_and_is_counted(tmp_path):
    rows = [row(0, k) for k in range(5)]
    rows[0]["raw_holistic"] = None
    rows[1]["oracle"] = None
    rows[2]["aspects"]["facts"]["values"] = [math.nan]
    rows[3]["oracle"] = math.inf
    samples = read_samples(write(tmp_path / "s.json", rows))
    keep, counts = usable(samples, samples.columns["oracle"], ["facts"])
    assert keep.tolist() == [False, False, False, False, True] and list(counts.values()) == [2, 2]
    # an aspect that nobody pays can be anything
    keep, counts = usable(samples, samples.columns["oracle"], [])
    assert keep.tolist() == [False, False, True, False, True] and list(counts.values()) == [1, 2]


def test_a_few_prompts_with_fewer_answers_do_not_shorten_the_curve():
    assert greatest_n(np.array([8] * 19 + [2])) == 8
    assert greatest_n(np.array([8] * 8 + [2] * 2)) == 2
    assert greatest_n(np.array([1])) == 1
