"""The reward of a run that has ended, without a trainer: the numbers of the run's own --test file."""

from __future__ import annotations

import json
import shutil

import pytest

from alarm import HierarchicalReward
from alarm.common.errors import UserError
from alarm.tasks.qa.spec import TASK
from helpers import forget_accelerate, load_script


@pytest.fixture(scope="module")
def ended(world, tmp_path_factory):
    """A run of two steps, and the rows of its --test file."""
    folder = tmp_path_factory.mktemp("ended")
    main = load_script("long-form-QA/train_ppo.py").main
    run, file = folder / "run", folder / "test.json"
    main(
        [
            *world.flags,
            "--reward_type",
            "lagrangian",
            "--max_steps",
            "2",
            "--eval_interval",
            "0",
            "--save_dir",
            str(run),
        ]
    )
    forget_accelerate()
    at = world.flags.index("--policy_ckpt")
    flags = [*world.flags[:at], *world.flags[at + 2 :], "--policy_ckpt", str(run)]
    main([*flags, "--test", "--save_dir", str(file)])
    forget_accelerate()
    return run, json.loads(file.read_text())


def test_a_run_scores_as_its_test_file_does(world, ended):
    run, written = ended
    by_query = {TASK.prompt(row): row for row in world.rows("test")}
    rows = [by_query[row["query"]] for row in written]
    assert len(written) == 10
    reward = HierarchicalReward.from_run(run)
    parts = reward.score([row["query"] for row in written], [row["generation"] for row in written], rows)
    assert parts.holistic.tolist() == pytest.approx([row["holistic_reward"] for row in written], abs=1e-5)
    for metric in TASK.metrics:
        assert parts.metrics[metric.name] == pytest.approx([row[metric.key] for row in written], abs=1e-5), metric.name
    state = json.loads((run / "checkpoints" / "2" / "loop.json").read_text())
    assert reward.recipe.multipliers == state["multipliers"] != {}
    assert reward.recipe.reward_type == "lagrangian" and reward.recipe.weights == TASK.weights(reward.args)


def test_a_run_whose_models_changed_is_refused(ended, tmp_path):
    run, _ = ended
    content = json.loads((run / "run.json").read_text())
    shutil.copytree(content["holistic_model"], tmp_path / "holistic")
    config = tmp_path / "holistic" / "config.json"
    config.write_text(config.read_text() + "\n")

    def refused(named: str, **changes):
        (tmp_path / "run.json").write_text(json.dumps(content | changes))
        with pytest.raises(UserError, match=named):
            HierarchicalReward.from_run(tmp_path)

    refused("holistic_model .* is not what it was.*config.json", holistic_model=str(tmp_path / "holistic"))
    refused("does not name its task", task=None)
    refused("--length_reward", length_reward=True)
    refused("greedy answers", holistic_baseline="greedy")
    del content["shaping"]
    refused("lacks the flag 'shaping'")
