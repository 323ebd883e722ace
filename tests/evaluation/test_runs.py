"""alarm/evaluation/runs.py: the files of a comparison, matched by their prompts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from alarm.common.errors import UserError
from alarm.evaluation.runs import draw_prompts, read_folder, read_run, read_seeds
from alarm.tasks.find import find_task

QA = find_task("qa")
GOLDEN = Path(__file__).parents[1] / "fixtures" / "eval"


def write_runs(folder: Path, rows_by_name: dict[str, list[dict]]) -> Path:
    folder.mkdir(parents=True)
    for name, rows in rows_by_name.items():
        (folder / f"{name}.json").write_text(json.dumps(rows))
    return folder


def test_draw_is_the_same_for_every_run_and_depends_on_the_seed():
    runs = read_folder(GOLDEN / "qa" / "gens", QA)
    drawn = draw_prompts(runs, 15, seed=1)
    assert len(drawn[0].queries) == len(set(drawn[0].queries)) == 15
    assert all(run.queries == drawn[0].queries for run in drawn)
    index = [runs[1].queries.index(query) for query in drawn[1].queries]
    assert drawn[1].metrics["verbosity_rate"].tolist() == runs[1].metrics["verbosity_rate"][index].tolist()
    assert draw_prompts(runs, 15, seed=2)[0].queries != drawn[0].queries
    assert draw_prompts(runs, 40, seed=1) is runs


def test_drop_duplicates_keeps_the_first_row(tmp_path):
    row = dict.fromkeys(QA.columns_in_order, 0)
    rows = [{**row, "query": "b", "holistic_reward": 1}, {**row, "query": "a"}, {**row, "query": "b"}]
    write_runs(tmp_path / "gens", {"run": rows})
    run = read_run(tmp_path / "gens" / "run.json", QA, drop_duplicates=True)
    assert run.queries == ["a", "b"]
    assert run.metrics["holistic_reward"].tolist() == [0.0, 1.0]


def test_seed_folders(tmp_path):
    rows = json.loads((GOLDEN / "qa" / "gens" / "alpha.json").read_text())
    folder = tmp_path / "gens"
    for seed in ("seed42", "seed43"):
        write_runs(folder / seed, {"a": rows, "b": rows})
    (folder / "seed42_results").mkdir()
    (folder / "logs").mkdir()
    assert {seed: [run.name for run in runs] for seed, runs in read_seeds(folder, QA).items()} == {
        "seed42": ["a", "b"],
        "seed43": ["a", "b"],
    }
    assert list(read_seeds(folder / "seed42", QA)) == [""]

    (folder / "seed43" / "c.json").write_text(json.dumps(rows))
    with pytest.raises(UserError, match="seed42 and seed43 must hold the same runs, but only one of them has c"):
        read_seeds(folder, QA)
    (folder / "seed43" / "c.json").unlink()
    for name in ("a", "b"):
        (folder / "seed43" / f"{name}.json").write_text(json.dumps(rows[2:]))
    with pytest.raises(UserError, match=r"seed42 and seed43 answer different prompts: 2 queries differ"):
        read_seeds(folder, QA)
    (folder / "a.json").write_text(json.dumps(rows))
    with pytest.raises(UserError, match=r"both runs \(a.json\) and seed folders \(seed42\)"):
        read_seeds(folder, QA)
