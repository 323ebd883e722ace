"""The tidy tables: every number once, and the script that writes them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from alarm.common.errors import UserError
from alarm.evaluation.tidy import run_files, tidy
from helpers import ROOT

GENS = ROOT / "tests" / "fixtures" / "eval" / "qa" / "gens"


def run(*arguments: str | Path) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "eval" / "tidy_table.py"), *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def test_two_runs_by_hand(tmp_path):
    rows = {
        "a": [{"query": "q2", "generation": "x", "m": 1}, {"query": "q1", "generation": "y", "m": 2.5, "n": None}],
        "b": [{"query": "q1", "generation": "x", "sample": 0, "m": 3, "n": 4, "index": 7},
              {"query": "q1", "generation": "z", "sample": 1, "m": None, "n": 5, "index": 7}],
    }  # fmt: skip
    for name, content in rows.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    (tmp_path / "a.meta.json").write_text("{}")
    scores, prompts = tidy(run_files([tmp_path]))
    assert prompts.to_dict("list") == {"prompt": [0, 1], "query": ["q1", "q2"]}
    found = [tuple(row) for row in scores.fillna(-1).itertuples(index=False)]
    assert found == [
        ("", "a", 1, 0, "m", 1.0),
        ("", "a", 0, 0, "m", 2.5),
        ("", "b", 0, 0, "m", 3.0),
        ("", "b", 0, 0, "n", 4.0),
        ("", "b", 0, 1, "m", -1.0),  # null
        ("", "b", 0, 1, "n", 5.0),
    ]


def test_seeds_parquet_and_csv_agree(tmp_path):
    for seed in (1, 2):
        shutil.copytree(GENS, tmp_path / "runs" / f"seed{seed}")
    done = run("--generations", tmp_path / "runs", "--output", tmp_path / "out" / "t.v1")
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "t.v1-prompts.csv", "t.v1-prompts.parquet", "t.v1.csv", "t.v1.parquet",
    ]  # fmt: skip
    scores = pd.read_parquet(tmp_path / "out" / "t.v1.parquet")
    text = pd.read_csv(tmp_path / "out" / "t.v1.csv")
    pd.testing.assert_frame_equal(text, scores.astype(dict.fromkeys(("seed", "run", "metric"), "str")))
    assert len(scores) == 2 * 3 * 40 * 5
    means = scores[scores["seed"] == "seed1"].pivot_table(index="run", columns="metric", values="value", observed=True)
    rows = json.loads((GENS / "beta.json").read_text())
    assert means.loc["beta", "factuality_rate"] == pytest.approx(sum(row["factuality_rate"] for row in rows) / 40)

    again = run("--generations", tmp_path / "runs", "--output", tmp_path / "out" / "t.v1")
    assert (again.returncode, again.stderr.count("\n")) == (2, 1)
    assert run("--generations", tmp_path / "runs", "--output", tmp_path / "out" / "t.v1", "--overwrite").returncode == 0


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[]", "no rows"),
        ('[{"generation": "x", "m": 1}]', "query"),
        ('[{"query": "q", "generation": "x"}]', "no metric"),
        ('[{"query": "q", "m": 1}, {"query": "r", "m": "high"}]', "'m' is a number in some"),
        ('[{"query": "q", "m": 1, "sample": "first"}]', "sample"),
    ],
)
def test_bad_files(tmp_path, content, words):
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(UserError, match=words):
        tidy(run_files([path]))


def test_bad_places(tmp_path):
    for paths, words in (([tmp_path / "no"], "does not exist"), ([tmp_path], "no .*json")):
        with pytest.raises(UserError, match=words):
            run_files(paths)
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.json").write_text("[]")
    with pytest.raises(UserError, match="two files are run a"):
        run_files([tmp_path / "x", tmp_path / "y"])
