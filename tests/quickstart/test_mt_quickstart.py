"""The sample, the preferences made of it, and the stages of `make quickstart TASK=real-mt`."""

from __future__ import annotations

import argparse
import json
import random

import pytest

from helpers import ROOT
from quickstart import make_mt_pairs, mt_stages, run

DATA = ROOT / "quickstart" / "data" / "mt"


@pytest.fixture
def quickstart():
    return argparse.Namespace(pairs=make_mt_pairs, mt=mt_stages, run=run)


def test_the_sample_is_small_and_its_parts_share_no_sentence():
    from alarm.tasks.mt.data import load_rows

    rows = {split: load_rows(DATA / f"{split}.jsonl") for split in ("train", "dev", "test")}
    assert {split: len(part) for split, part in rows.items()} == {"train": 6500, "dev": 200, "test": 200}
    for language in ("es", "en"):
        texts = [row["translation"][language] for part in rows.values() for row in part]
        assert len(set(texts)) == len(texts)
        assert all(3 <= len(text.split()) <= 9 for text in texts)
    assert sum(path.stat().st_size for path in DATA.iterdir()) < 1_000_000
    assert "CC-BY 2.0 FR" in (DATA / "README.md").read_text()


def test_preferences_put_the_reference_before_something_else(quickstart):
    rows = [{"translation": {"es": f"es {i}", "en": f"This is sentence {i}."}} for i in range(20)]
    made = quickstart.pairs.preferences(rows, random.Random(0))
    assert len(made) > 30
    for row in made:
        number = row["prompt"].split()[-1]
        assert row["chosen"] == f"This is sentence {number}." and row["rejected"] != row["chosen"]
    words = ["a", "b", "c"]
    rng = random.Random(0)
    assert sorted(quickstart.pairs.out_of_order(words, rng)) == words != quickstart.pairs.out_of_order(words, rng)
    assert len(quickstart.pairs.left_out(words, rng)) == 2 and len(quickstart.pairs.doubled(words, rng)) == 4
    assert quickstart.pairs.out_of_order(["a", "a"], rng) == ["a", "a"]  # has no other order


def test_the_stand_in_is_said_loudly_where_languagetool_is_missing(quickstart, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LTP_PATH", str(tmp_path))
    assert quickstart.mt.grammar_backend() == "rules"
    assert "GRAMMAR STAND-IN" in capsys.readouterr().out


@pytest.mark.whole
@pytest.mark.slow
def test_the_whole_quickstart_on_a_few_rows(quickstart, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("LTP_PATH", str(tmp_path))  # its speed is not what is tested here
    data = tmp_path / "data"
    data.mkdir()
    for split, size in (("train", 400), ("dev", 12), ("test", 12)):
        lines = (DATA / f"{split}.jsonl").read_text().split("\n")[:size]
        (data / f"{split}.jsonl").write_text("\n".join(lines))
    flags = ["--task", "real-mt", "--data_dir", str(data), "--work_dir", str(tmp_path / "work"), "--steps", "2"]
    quickstart.run.main(flags)
    shown = capfd.readouterr().out
    assert "[14/14] comparison" in shown and "What this shows" in shown and "GRAMMAR STAND-IN" in shown
    assert len(json.loads((tmp_path / "work/generations/hierarchical.json").read_text())) == 12
    results = json.loads((tmp_path / "work/generations_results/eval-results.json").read_text())
    assert "check: every reward is on its token, in all 5 responses" in shown
    assert results.keys() == {"sft", "hierarchical", "holistic_only"}
