"""Sidecars: which runs were scored differently."""

from __future__ import annotations

import copy
import json

import pytest

from alarm.common.errors import UserError
from alarm.common.identity import hash_file
from alarm.evaluation.provenance import read_sidecar, scoring_differences
from alarm.evaluation.runs import read_folder
from alarm.tasks.find import find_task
from helpers import load_script

QA = find_task("qa")


def identity(name: str, weights: str) -> dict:
    return {"name": name, "commit": None, "files": {"model.safetensors": weights}}


META = {
    "kind": "alarm generations",
    "models": {"policy": identity("p", "1"), "holistic": identity("h", "2"), "factuality": identity("f", "3")},
    "settings": {"ultra_mean": -4.9, "ultra_std": 3.0, "dtype": "float32", "splitter": "pysbd", "lr": 1e-4},
}


def changed(**parts) -> dict:
    meta = copy.deepcopy(META)
    for name, value in parts.items():
        part, key = name.split("__")
        meta[part][key] = value
    return meta


def test_runs_that_were_scored_alike_may_differ_in_policy_and_training():
    other = changed(models__policy=identity("q", "9"), settings__lr=1e-3)
    assert scoring_differences(QA, {"a": META, "b": other}) == []


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (changed(models__holistic=identity("h", "7")), ("holistic", "model.safetensors")),
        (changed(settings__ultra_mean=-4.8), ("ultra_mean", "-4.9", "-4.8")),
        (changed(settings__splitter="sentencizer"), ("splitter", "pysbd", "sentencizer")),
        (changed(settings__dtype="bfloat16"), ("dtype",)),
    ],
)
def test_each_difference_is_a_line(other, named):
    (line,) = scoring_differences(QA, {"a": META, "same": META, "b": other})
    assert all(word in line for word in ("warning", "a ", "b", *named))


def test_a_model_that_one_run_alone_has():
    lacking = copy.deepcopy(META)
    del lacking["models"]["factuality"]
    (line,) = scoring_differences(QA, {"a": META, "b": lacking})
    assert "factuality" in line and "only a" in line


def test_a_run_without_a_sidecar_is_a_note():
    assert scoring_differences(QA, {"a": None, "b": None}) == []
    (line,) = scoring_differences(QA, {"a": META, "b": None})
    assert line.startswith("note") and "b" in line


def write_run(folder, name: str, meta: dict | None, score: float = 1.0) -> None:
    row = dict.fromkeys(QA.columns_in_order, score) | {"query": "q", "generation": name}
    (folder / f"{name}.json").write_text(json.dumps([row]))
    if meta is not None:
        content = meta | {"generations": hash_file(folder / f"{name}.json")}
        (folder / f"{name}.meta.json").write_text(json.dumps(content))


def test_a_sidecar_is_no_run_and_belongs_to_its_file(tmp_path):
    write_run(tmp_path, "a.v2", META)
    assert [run.name for run in read_folder(tmp_path, QA)] == ["a.v2"]
    assert read_sidecar(tmp_path / "a.v2.json")["settings"] == META["settings"]
    (tmp_path / "a.v2.json").write_text((tmp_path / "a.v2.json").read_text().replace("a.v2", "other"))
    with pytest.raises(UserError, match=r"a\.v2\.meta\.json is of other generations"):
        read_sidecar(tmp_path / "a.v2.json")
    (tmp_path / "a.v2.meta.json").write_text("[1]")
    with pytest.raises(UserError, match=r"a\.v2\.meta\.json"):
        read_sidecar(tmp_path / "a.v2.json")


def test_the_script_reports_them(tmp_path, capsys):
    gens = tmp_path / "gens"
    gens.mkdir()
    write_run(gens, "a", META)
    write_run(gens, "b", changed(settings__ultra_std=9.0), score=2.0)
    load_script("eval/eval_compare.py").main(["--task_type", "qa", "--generations_dir", str(gens)])
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "scored" in line]
    assert "ultra_std" in line
