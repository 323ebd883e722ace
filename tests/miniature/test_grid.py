"""The runs of the grid: their names, the questions they answer, and flags that training takes."""

from __future__ import annotations

from collections import Counter

import pytest

from alarm.combiners import COMBINERS
from alarm.tasks.find import find_task
from alarm.training.flags import check_ppo_flags, check_weights
from alarm.training.main import parse_args
from helpers import ROOT
from miniature.grid import ALONE, ORDER, PAPER, QUESTIONS, Run, alone, ranked_runs, runs_of, tuning_runs, weighed
from miniature.settings import WORLDS
from miniature.stages import flag_words

SCALE = {"ultra_mean": 0.0, "ultra_std": 1.0, "holistic_level": 0.0}  # instead of a calibration


def runs(name: str) -> list[Run]:
    world = WORLDS[name]
    return runs_of(world, {combiner: weighed(world, combiner, 0.5) for combiner in COMBINERS})


@pytest.mark.parametrize("name", WORLDS)
def test_every_run_has_a_name_and_a_question_of_its_own(name):
    found = runs(name)
    assert max(Counter(run.name for run in found).values()) == 1
    assert all(run.questions and set(run.questions) <= set(QUESTIONS) for run in found)
    assert sorted(ORDER) == sorted(QUESTIONS)
    settings = [tuple(sorted((key, str(value)) for key, value in vars(run).items() if key not in ("name", "questions")))
                for run in found]  # fmt: skip
    assert len(set(settings)) == len(settings), "two runs would be the same"


@pytest.mark.parametrize("name", WORLDS)
def test_training_takes_the_flags_of_every_run(name, tmp_path):
    world = WORLDS[name]
    for run in [*runs(name), *(run for _, run in tuning_runs(world))]:
        flags = world.files(tmp_path) | {"calibration": None} | SCALE | dict(world.ppo) | dict(run.flags)
        task = find_task(str(ROOT / flags.pop("task")))
        if run.holistic != "holistic":
            assert run.calibration != "calibration.json"
        args = parse_args(task, "", flag_words(**flags, save_dir=tmp_path / "run"))
        check_ppo_flags(args, task)
        check_weights(args, task)


def test_what_each_question_compares():
    names = {letter: {run.name for run in runs("mt") if letter in run.questions} for letter in QUESTIONS}
    assert names["a"] == set(COMBINERS) | {f"{name}-untuned" for name in PAPER[1:]}
    assert names["b"] == set(PAPER) == {run.name for run in runs("mt") if run.curve}
    assert len(names["d"]) == 9
    assert len(names["e"]) == 12
    assert len(names["f"]) == 5
    assert {"hierarchical", "hierarchical-read", "hierarchical-confidence"} <= names["g"]
    assert {alone(WORLDS["mt"], flag) for flag in ALONE["mt"].values()} <= names["g"]
    assert len(names["h"]) == 8
    assert {"aspect_only-read", "weighted_sum-read", "hierarchical-read"} <= names["j"]
    assert names["k"] == {"holistic_only", "hierarchical", "holistic_only-absolute", "hierarchical-absolute"}


def test_only_what_can_be_ranked_is_ranked():
    """best_of_n has one holistic model, one baseline and one task: those of the samples."""
    found = ranked_runs(runs("mt"))
    assert {run.name for run in found} >= set(COMBINERS)
    for run in found:
        assert (run.holistic, run.calibration, run.script) == (
            "holistic",
            "calibration.json",
            ("-m", "alarm.train_ppo"),
        )
        assert not run.flags.keys() & {"task", "holistic_model", "holistic_baseline"}


@pytest.mark.parametrize("name", WORLDS)
def test_each_combiner_has_the_same_budget(name):
    tried = Counter(combiner for combiner, _ in tuning_runs(WORLDS[name]))
    assert set(tried) == set(COMBINERS)
    assert len(set(tried.values())) == 1
