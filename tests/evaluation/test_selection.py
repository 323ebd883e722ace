"""alarm/evaluation/selection.py by hand, and eval/select_rewards.py as a user runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alarm.common.errors import UserError
from alarm.evaluation.generations import Generations
from alarm.evaluation.selection import flags_of, no_aspect, select_aspect, spearman
from alarm.tasks.find import find_task

TASKS = {name: find_task(name) for name in ("qa", "mt")}
QA = TASKS["qa"]
ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "fixtures" / "eval"


def make_run(name: str, task: str, **metrics: list[float]) -> Generations:
    count = len(metrics["holistic_reward"])
    values = {metric: np.array(metrics.get(metric, [0.0] * count), float) for metric in TASKS[task].columns_in_order}
    return Generations(name, [f"q{row}" for row in range(count)], [None] * count, values)


def two_answers(task: str, **verdicts: list[int]) -> tuple[Generations, Generations]:
    """Runs in which greedy wins (1), ties (0) or loses (-1) as told; metrics that are not told tie."""
    lower = {"grammar_errors", "error_rate"}
    greedy = {name: [-v if name in lower else v for v in values] for name, values in verdicts.items()}
    zeros = {name: [0.0] * len(values) for name, values in verdicts.items()}
    return make_run("greedy", task, **greedy), make_run("sampled", task, **zeros)


def test_selection_by_hand():
    greedy, sampled = two_answers(
        "qa",
        holistic_reward=[1, 1, 1, 1, -1, -1, -1, -1, 0, 0],
        factuality_rate=[1, 1, 1, 1, -1, -1, -1, 1, 1, 0],  # 1 of 8 against
        verbosity_rate=[1, 1, -1, 0, -1, 0, 0, 1, 0, 0],  # 2 of 8, or of 5
        completeness_reward=[-1, -1, -1, -1, 1, 1, 1, 1, 1, 1],  # 8 of 8
        response_length=[1, 1, 1, 1, -1, -1, -1, -1, 1, 1],  # 0 of 8, but no quality
    )
    found = select_aspect(greedy, sampled, QA)
    assert (found["prompts"], found["decided"]) == (10, 8)
    metrics = found["metrics"]
    assert {name: metrics[name]["inconsistency"] for name in metrics} == {
        "factuality_rate": 12.5,
        "verbosity_rate": 25.0,
        "completeness_reward": 100.0,
        "response_length": 0.0,
    }
    assert metrics["verbosity_rate"]["inconsistency_without_ties"] == 40.0
    assert metrics["verbosity_rate"]["decided_share"] == 50.0
    assert metrics["factuality_rate"]["win_rate"] == pytest.approx(100 * 6 / 9)
    assert metrics["response_length"]["why_not"] == "length is no quality"
    low, high = metrics["verbosity_rate"]["inconsistency_interval"]
    assert 0 <= low < 25 < high <= 75
    assert found["recommended"] == "factuality_rate"
    assert found["flags"] == "--w_rel 0 --w_fact 1 --w_comp 0"
    assert "factuality_rate contradicts the holistic reward on 12.5%" in found["reason"]
    assert "next is verbosity_rate with 25.0%" in found["reason"]
    # ten prompts do not tell 1 of 8 from 2 of 8
    assert not found["separable"]
    assert "more prompts are needed" in found["reason"]
    assert sum(found["least_share"].values()) == pytest.approx(100)

    many = select_aspect(*two_answers("qa", **{k: 100 * v for k, v in VERDICTS.items()}), QA)
    assert many["separable"]
    assert many["metrics"]["verbosity_rate"]["inconsistency"] == 25.0
    assert "more prompts" not in many["reason"]


VERDICTS = {
    "holistic_reward": [1, 1, 1, 1, -1, -1, -1, -1, 0, 0],
    "factuality_rate": [1, 1, 1, 1, -1, -1, -1, 1, 1, 0],
    "verbosity_rate": [1, 1, -1, 0, -1, 0, 0, 1, 0, 0],
    "completeness_reward": [-1, -1, -1, -1, 1, 1, 1, 1, 1, 1],
}


def test_an_aspect_that_never_decides_is_not_recommended():
    """With ties in the denominator it contradicts nothing, which is no reason to choose it."""
    found = select_aspect(*two_answers("qa", **VERDICTS | {"factuality_rate": [0] * 10}), QA)
    assert found["metrics"]["factuality_rate"]["inconsistency"] == 0
    assert found["metrics"]["factuality_rate"]["why_not"] == "names a winner on 0.0% of the prompts only"
    assert found["recommended"] == "verbosity_rate"


def test_no_aspect_will_do():
    against = [-v for v in VERDICTS["holistic_reward"]]
    names = ("factuality_rate", "verbosity_rate", "completeness_reward")
    found = select_aspect(
        *two_answers("qa", holistic_reward=VERDICTS["holistic_reward"], **dict.fromkeys(names, against)), QA
    )
    assert (found["recommended"], found["flags"]) == (None, None)
    assert "no less often than it agrees" in found["reason"]
    silent = select_aspect(*two_answers("qa", holistic_reward=VERDICTS["holistic_reward"]), QA)
    assert silent["recommended"] is None
    assert "no aspect names a winner" in silent["reason"]


def test_ties_that_change_the_choice_are_said():
    found = select_aspect(
        *two_answers(
            "qa",
            holistic_reward=[1] * 20,
            factuality_rate=[-1] * 2 + [1] * 2 + [0] * 16,  # 2 of 20, and 2 of the 4 that it decides
            verbosity_rate=[-1] * 3 + [1] * 17,  # 3 of 20
            completeness_reward=[-1] * 20,
        ),
        QA,
    )
    assert found["recommended"] is None  # half for, half against
    found = select_aspect(
        *two_answers(
            "qa",
            holistic_reward=[1] * 20,
            factuality_rate=[-1] * 2 + [1] * 3 + [0] * 15,
            verbosity_rate=[-1] * 3 + [1] * 17,
            completeness_reward=[-1] * 20,
        ),
        QA,
    )
    assert found["recommended"] == "factuality_rate"
    assert "with ties left out it would be verbosity_rate" in found["reason"]


def test_lower_error_rate_wins_and_stands_for_grammar():
    holistic = [1] * 15 + [-1] * 15
    greedy, sampled = two_answers(
        "mt", holistic_reward=holistic, error_rate=holistic, grammar_errors=holistic, readability=[-v for v in holistic]
    )
    found = select_aspect(greedy, sampled, TASKS["mt"])
    assert found["metrics"]["error_rate"]["inconsistency"] == 0
    assert found["recommended"] == "error_rate"
    assert found["flags"] == "--w_read 0 --w_grammar 1 --w_confidence 0"
    assert not found["metrics"]["grammar_errors"]["eligible"]
    able = {name for name in TASKS["mt"].columns_in_order if no_aspect(TASKS["mt"], name) is None}
    assert able == {"holistic_reward", "readability", "language_confidence", "error_rate"}
    assert flags_of(QA, "verbosity_rate") == "--w_rel 1 --w_fact 0 --w_comp 0"


def test_no_holistic_winner_is_an_error():
    with pytest.raises(UserError, match="same holistic_reward on every prompt"):
        select_aspect(*two_answers("qa", holistic_reward=[0, 0]), QA)


def test_spearman_by_hand():
    assert spearman(np.array([1.0, 2, 3]), np.array([10.0, 100, 1000])) == pytest.approx(1)
    assert spearman(np.array([1.0, 2, 3]), np.array([3.0, 3, 1])) == pytest.approx(-np.sqrt(3) / 2)
    assert spearman(np.array([1.0, 2, 3]), np.array([5.0, 5, 5])) is None


@given(st.lists(st.tuples(st.integers(-4, 4), st.integers(-4, 4)), min_size=2, max_size=30))
@settings(max_examples=100, deadline=None)
def test_spearman_properties(rows):
    a, b = np.array(rows, float).T
    rho = spearman(a, b)
    assert (rho is None) == (np.ptp(a) == 0 or np.ptp(b) == 0)
    if rho is not None:
        assert -1 - 1e-9 <= rho <= 1 + 1e-9
        assert spearman(b, a) == pytest.approx(rho)
        assert spearman(np.exp(a), b**3) == pytest.approx(rho)
        assert spearman(-a, b) == pytest.approx(-rho)


# --- the script ------------------------------------------------------------------------------------------------------


def run_script(*arguments: str | Path, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    environment = {key: value for key, value in os.environ.items() if key not in ("FORCE_COLOR", "RANK")}
    command = [sys.executable, str(ROOT / "eval" / "select_rewards.py"), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_script_writes_numbers_figure_and_page(tmp_path):
    greedy, sampled = GOLDEN / "mt" / "gens" / "alpha.json", GOLDEN / "mt" / "gens" / "beta.json"
    arguments = ["--greedy", greedy, "--sampled", sampled, "--task_type", "mt", "--output_dir", tmp_path / "s.1"]
    done = run_script(*arguments)
    assert (done.returncode, done.stderr) == (0, "")
    written = json.loads((tmp_path / "s.1" / "selection.json").read_text())
    assert written["metrics"]["grammar_errors"]["inconsistency"] == pytest.approx(40)
    assert written["reason"] in " ".join(done.stdout.split())
    assert {path.name for path in (tmp_path / "s.1").iterdir()} >= {"index.html", "report.md", "selection.png"}
    assert "The paper's numbers (not ours)" in done.stdout
    assert max(map(len, done.stdout.splitlines()[:-1])) <= 100
    assert run_script(*arguments).returncode == 0  # its own output is replaced


def test_equal_answers_tie_for_every_metric_and_rank_alike():
    """The same selection, whether equal answers have equal values or differ in their last bits."""
    rng = np.random.default_rng(5)
    texts = {
        "greedy": [f"g{i % 20}" for i in range(60)],
        "sampled": [f"g{i % 20}" if i % 3 else f"s{i}" for i in range(60)],
    }

    def runs(noise: float) -> list[Generations]:
        made = []
        for name, answers in texts.items():
            values = {metric: of_text[metric] for metric in QA.columns_in_order}
            values = {metric: np.array([values[metric][text] for text in answers]) for metric in values}
            if name == "sampled":
                values = {metric: v + noise * rng.normal(size=60) for metric, v in values.items()}
            made.append(Generations(name, [f"q{i:02}" for i in range(60)], answers, values))
        return made

    every = sorted({text for answers in texts.values() for text in answers})
    of_text = {metric: dict(zip(every, rng.normal(size=len(every)), strict=True)) for metric in QA.columns_in_order}
    exact, noisy = (select_aspect(*runs(noise), QA, draws=200) for noise in (0.0, 1e-9))
    assert exact["decided"] == 20
    decided = {name: metric["decided_share"] for name, metric in noisy["metrics"].items()}
    assert decided == dict.fromkeys(decided, pytest.approx(100 / 3))
    assert noisy["metrics"].keys() == exact["metrics"].keys()
    for name, metric in exact["metrics"].items():
        assert noisy["metrics"][name] | {"length_correlation": None} == metric | {"length_correlation": None}
    assert noisy["least_share"] == exact["least_share"]


def test_script_defaults_beside_the_generations(tmp_path):
    (tmp_path / "gens").mkdir()
    for name in ("alpha", "beta"):
        (tmp_path / "gens" / f"{name}.json").write_bytes((GOLDEN / "qa" / "gens" / f"{name}.json").read_bytes())
    arguments = ["--greedy", "gens/alpha.json", "--sampled", "gens/beta.json", "--task_type", "qa"]
    done = run_script(*arguments, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "gens_results" / "selection" / "selection.json").is_file()


def test_bad_input(tmp_path):
    alpha, beta = (GOLDEN / "qa" / "gens" / f"{name}.json" for name in ("alpha", "beta"))
    rows = json.loads(beta.read_text())
    (tmp_path / "short.json").write_text(json.dumps(rows[1:]))
    (tmp_path / "nan.json").write_text(json.dumps([{**rows[0], "holistic_reward": float("nan")}, *rows[1:]]))
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("mine")
    for arguments, message in (
        ([alpha, alpha], "are both"),
        ([alpha, tmp_path / "none.json"], "none.json does not exist"),
        ([alpha, tmp_path / "short.json"], "1 queries differ (1 only in alpha, 0 only in short)"),
        ([alpha, tmp_path / "nan.json"], "not a finite number"),
        ([alpha, beta, "--output_dir", tmp_path / "notes"], "notes"),
        ([alpha, beta, "--task_type", "mt"], "--task_type qa"),
    ):
        greedy, sampled, *more = arguments
        done = run_script(
            "--greedy", greedy, "--sampled", sampled, "--task_type", "qa", "--output_dir", tmp_path / "out", *more
        )
        assert done.returncode == 2, done.stderr
        assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
        assert message in done.stderr
        assert not (tmp_path / "out").exists()
    assert [path.name for path in (tmp_path / "notes").iterdir()] == ["mine.txt"]
