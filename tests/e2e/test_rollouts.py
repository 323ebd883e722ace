"""rollouts.jsonl of real tiny runs: what it holds, after a resume too, and that a run is the same without it."""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from e2e.test_train_ppo import SCRIPT, assert_same_weights, log_rows, refused, run_script, untimed

from helpers import ROOT, forget_accelerate, load_script

FLAGS = ["--reward_type", "hierarchical", "--samples_per_prompt", "2", "--holistic_baseline", "group"]
FLAGS += ["--holistic_level", "0", "--eval_interval", "1", "--checkpoint_interval", "2", "--rollouts_per_step", "3"]


def rollouts(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "rollouts.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(world, tmp_path_factory) -> Path:
    """A run of 4 steps with rollouts, by itself."""
    run = tmp_path_factory.mktemp("rollouts") / "whole"
    words = [*world.flags, *FLAGS, "--max_steps", "4", "--save_dir", str(run)]
    words[words.index("--report_to") + 1] = "tensorboard"
    done = subprocess.run([sys.executable, SCRIPT, *words], capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "at most 4000 rows" in done.stdout
    return run


@pytest.fixture(scope="module")
def begun(world, tmp_path_factory) -> Path:
    """The same run, which ended before a checkpoint of step 3 and in the middle of a line."""
    run = tmp_path_factory.mktemp("rollouts") / "begun"
    load_script("long-form-QA/train_ppo.py").main([*world.flags, *FLAGS, "--max_steps", "3", "--save_dir", str(run)])
    forget_accelerate()
    shutil.rmtree(run / "checkpoints" / "3")
    with open(run / "rollouts.jsonl", "a") as file:
        file.write('{"step": 4, "split": "tr')
    return run


def test_rows_are_of_every_step_and_agree_with_the_log(whole, world):
    rows, log = rollouts(whole), log_rows(whole)
    # of 3 answers a step, one whole group of 2; of 4 dev prompts, the first 3
    assert Counter((row["split"], row["step"]) for row in rows) == {
        **{("train", step): 2 for step in range(1, 5)},
        **{("dev", step): 3 for step in range(5)},
    }
    for row in rows:
        assert "".join(row["tokens"]) == row["generation"]
        assert len(row["tokens"]) == len(row["token_ids"]) == len(row["token_rewards"]) == row["length"]
        assert sum(row["token_rewards"]) == pytest.approx(row["reward"], abs=1e-5)
        assert sum(row["paid"].values()) == pytest.approx(row["reward"], abs=1e-5)
        assert (row["kl"] is None) == (row["split"] == "dev")
    for step in range(1, 5):
        one, two = (row for row in rows if (row["split"], row["step"]) == ("train", step))
        assert one["prompt_id"] == two["prompt_id"] and (one["sample"], two["sample"]) == (0, 1)
    dev = {}
    for row in rows:
        if row["split"] == "dev":
            dev.setdefault(row["step"], []).append((row["prompt_id"], row["prompt"]))
    assert len(set(map(tuple, dev.values()))) == 1
    assert [text for _, text in dev[0]] == [row["text"] for row in world.rows("dev")[:3]]
    # the group's mean makes the normalised score 0 on average; the raw one is not
    for row in (row["train"] for row in log if "train" in row):
        assert row["holistic_reward"] == pytest.approx(0, abs=1e-6) and abs(row["raw_holistic"]) > 1e-3


def test_with_every_answer_kept_the_log_is_their_mean(world, train_ppo, tmp_path):
    run = tmp_path / "run"
    train_ppo([*world.flags, *FLAGS, "--rollouts_per_step", "4", "--max_steps", "1", "--save_dir", str(run)])
    rows, log = rollouts(run), log_rows(run)
    means = {"dev": log[0]["dev"], "train": log[1]["train"]}
    for split, reward in (("dev", "total_reward"), ("train", "reward")):
        found = [row for row in rows if row["split"] == split][:4]
        shown = {
            "holistic_raw": "raw_holistic",
            "holistic": "holistic_reward",
            "reward": reward,
            "length": "response_length",
        }
        shown |= {"kl": "kl"} if split == "train" else {}
        for key, name in shown.items():
            assert statistics.fmean(row[key] for row in found) == pytest.approx(means[split][name], abs=1e-5), (
                split,
                key,
            )
        for name in found[0]["metrics"]:
            known = [row["metrics"][name] for row in found if row["metrics"][name] is not None]
            assert statistics.fmean(known) == pytest.approx(means[split][name], abs=1e-5)


def test_a_run_is_the_same_to_the_bit_without_rollouts(world, whole, train_ppo, tmp_path):
    run = tmp_path / "run"
    train_ppo([*world.flags, *FLAGS, "--rollout_interval", "0", "--max_steps", "4", "--save_dir", str(run)])
    assert not (run / "rollouts.jsonl").exists()
    assert untimed(log_rows(run)) == untimed(log_rows(whole))
    assert_same_weights(run / "policy", whole / "policy")


def test_a_resumed_run_keeps_the_same_rows(world, whole, begun, train_ppo, tmp_path, capfd):
    run = shutil.copytree(begun, tmp_path / "run")
    train_ppo([*world.flags, *FLAGS, "--max_steps", "4", "--save_dir", str(run), "--resume"])
    assert rollouts(run) == rollouts(whole) and untimed(log_rows(run)) == untimed(log_rows(whole))


def test_an_older_run_goes_on_and_keeps_rows_from_there(world, whole, begun, train_ppo, tmp_path):
    run = shutil.copytree(begun, tmp_path / "run")
    (run / "rollouts.jsonl").unlink()
    content = json.loads((run / "run.json").read_text())
    for name in ("rollout_interval", "rollouts_per_step", "max_rollouts"):
        del content[name]
    (run / "run.json").write_text(json.dumps(content))
    train_ppo([*world.flags, *FLAGS, "--max_steps", "4", "--save_dir", str(run), "--resume"])
    assert rollouts(run) == [row for row in rollouts(whole) if row["step"] > 2]


def test_bad_rollouts_end_in_one_line(world, begun, train_ppo, tmp_path, capfd):
    fresh = [*world.flags, *FLAGS, "--save_dir", str(tmp_path / "new")]
    for flag, value in (("rollout_interval", "-1"), ("rollouts_per_step", "0"), ("max_rollouts", "2")):
        capfd.readouterr()
        with pytest.raises(SystemExit) as stopped:
            train_ppo([*fresh, f"--{flag}", value])
        assert stopped.value.code == 2 and f"--{flag}" in capfd.readouterr().err
    assert not (tmp_path / "new").exists()
    run = shutil.copytree(begun, tmp_path / "run")
    lines = (run / "rollouts.jsonl").read_text().splitlines()
    (run / "rollouts.jsonl").write_text("\n".join([lines[0], lines[1][:40], *lines[2:]]) + "\n")
    resumed = [*world.flags, *FLAGS, "--max_steps", "4", "--save_dir", str(run), "--resume"]
    assert "rollouts.jsonl, line 2" in refused(train_ppo, resumed, capfd)


def test_tensorboard_gets_a_table(whole):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(whole / "tracker" / "alarm"))
    events.Reload()
    texts = events.Tensors("rollouts/train/text_summary")
    assert [event.step for event in texts] == [1, 2, 3, 4]
    heading, _, first, _ = texts[0].tensor_proto.string_val[0].decode().splitlines()
    assert "holistic\\_raw" in heading and heading.count(" | ") == first.count(" | ")


@pytest.mark.slow
def test_two_processes_keep_what_one_does(world, train_ppo, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    flags = [*world.flags, "--reward_type", "weighted_sum", "--max_steps", "1", "--eval_interval", "1"]
    train_ppo([*flags, "--save_dir", str(one)])
    done = run_script([*flags, "--batch_size", "2", "--save_dir", str(two)], processes=2)
    assert done.returncode == 0, done.stderr
    a, b = rollouts(one), rollouts(two)
    place = lambda row: (row["step"], row["split"], row["prompt_id"], row["sample"], row["prompt"])  # noqa: E731
    assert list(map(place, a)) == list(map(place, b)) and len(a) == 4 + 4 + 4
    # the first evaluation is of the same policy; later ones saw other samples
    for x, y in zip(a[:4], b[:4], strict=True):
        assert x["token_ids"] == y["token_ids"] and x["token_rewards"] == pytest.approx(y["token_rewards"], abs=1e-5)
        assert x["holistic_raw"] == pytest.approx(y["holistic_raw"], abs=1e-5)
