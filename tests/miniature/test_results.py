"""The table of true quality: paired gains, and files that do not belong together."""

from __future__ import annotations

import json

import pytest

from alarm.common.errors import UserError
from miniature.results import read_runs, summarise


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
    assert found["run"]["grammar_errors"] is None


def test_other_prompts_are_refused(tmp_path):
    for name, prefix in (("a", "q"), ("b", "p")):
        (tmp_path / f"{name}.json").write_text(json.dumps(rows([0.5] * 3, prefix)))
    with pytest.raises(UserError, match="other prompts"):
        read_runs([str(tmp_path / "a.json"), str(tmp_path / "b.json")])
