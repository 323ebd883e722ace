"""Resuming a run whose checkpoints, data or models are not what they were, with long-form-QA/train_ppo.py."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from e2e.test_train_ppo import assert_same_weights, log_rows, refused, untimed

from alarm.training.calibrate import main as calibrate
from helpers import forget_accelerate, load_script


def cut(path: Path) -> None:
    """What a full disk or a copy that broke off leaves."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


@pytest.fixture(scope="module")
def flags(world, tmp_path_factory) -> list[str]:
    """Flags of a run on a copy of the world, whose files can be changed."""
    folder = shutil.copytree(world.folder, tmp_path_factory.mktemp("resume") / "world")
    ours = [word.replace(str(world.folder), str(folder)) for word in world.flags]
    at = ours.index("--report_to")
    ours[at : at + 2] = ["--report_to", "tensorboard"]
    return [*ours, "--eval_interval", "2", "--checkpoint_interval", "1", "--keep_checkpoints", "3", "--sigmoid_shaping"]


@pytest.fixture(scope="module")
def begun(flags, tmp_path_factory) -> Path:
    """A run of 3 steps; each test takes a copy."""
    run = tmp_path_factory.mktemp("begun") / "run"
    load_script("long-form-QA/train_ppo.py").main([*flags, "--max_steps", "3", "--save_dir", str(run)])
    forget_accelerate()
    return run


@pytest.fixture
def run(begun, tmp_path) -> Path:
    return shutil.copytree(begun, tmp_path / "run")


@pytest.fixture
def kept(flags):
    """The folder of the data and models, put back as it was after the test."""
    folder = Path(flags[flags.index("--train_file") + 1]).parent
    shutil.copytree(folder, folder.with_name("kept"))
    yield folder
    shutil.rmtree(folder)
    folder.with_name("kept").rename(folder)


def resume(flags: list[str], run: Path, steps: int) -> list[str]:
    return [*flags, "--max_steps", str(steps), "--save_dir", str(run), "--resume"]


def tracked_steps(run: Path, tag: str) -> list[int]:
    """The steps of a curve in TensorBoard's own reader."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tracker" / "alarm"))
    events.Reload()
    return [event.step for event in events.Scalars(tag)]


def test_damaged_checkpoints_fall_back_to_the_newest_whole_one(flags, run, train_ppo, tmp_path, capfd):
    direct = shutil.copytree(run, tmp_path / "direct")
    for step in ("2", "3"):
        shutil.rmtree(direct / "checkpoints" / step)
    (run / "checkpoints" / "3" / "loop.json").unlink()
    cut(run / "checkpoints" / "2" / "optimizer.bin")
    train_ppo(resume(flags, run, 4))
    out = capfd.readouterr().out
    for step, part in {"3": "loop.json", "2": "optimizer.bin"}.items():
        (line,) = [line for line in out.splitlines() if part in line]
        assert str(run / "checkpoints" / f"{step}.damaged") in line and "step 1" in line
    names = {path.name for path in (run / "checkpoints").iterdir()}
    assert names == {"2", "3", "4", "2.damaged", "3.damaged"}
    forget_accelerate()

    train_ppo(resume(flags, direct, 4))
    assert_same_weights(run / "policy", direct / "policy")
    assert untimed(log_rows(run)) == untimed(log_rows(direct))
    assert [row["step"] for row in log_rows(run) if "train" in row] == [1, 2, 3, 4]
    # of both, TensorBoard shows each step once
    for folder in (run, direct):
        assert tracked_steps(folder, "env/reward") == [1, 2, 3, 4]
        assert tracked_steps(folder, "dev/total_reward") == [0, 2, 4]


def test_a_run_without_a_whole_checkpoint_is_refused_and_left_alone(flags, run, train_ppo, capfd):
    for step, part in {"1": "trainable.safetensors", "2": "random_states_0.pkl", "3": "scheduler.bin"}.items():
        cut(run / "checkpoints" / step / part)
    before = sorted(run.rglob("*"))
    line = refused(train_ppo, resume(flags, run, 4), capfd)
    assert "scheduler.bin" in line and "--save_dir" in line
    assert sorted(run.rglob("*")) == before


def test_a_run_that_was_stopped_before_its_first_checkpoint_starts_anew(flags, run, train_ppo):
    shutil.rmtree(run / "checkpoints")
    train_ppo(resume(flags, run, 1))
    assert [(row["step"], "dev" in row) for row in log_rows(run)] == [(0, True), (1, False), (1, True)]
    assert tracked_steps(run, "dev/total_reward") == [0, 1] and tracked_steps(run, "env/reward") == [1]


# --- data and models -------------------------------------------------------------------------------------------------


def swap_weights(folder: Path) -> None:
    """Other weights of the same shape, under the same name."""
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    metadata = {"format": "pt"}
    save_file({name: tensor.flip(0) for name, tensor in weights.items()}, folder / "model.safetensors", metadata)


def test_changed_data_and_models_are_refused_by_name(flags, run, kept, train_ppo, capfd):
    rows = json.loads((kept / "train.json").read_text())
    (kept / "train.json").write_text(json.dumps(rows[::-1]))
    assert "train.json" in (line := refused(train_ppo, resume(flags, run, 4), capfd)) and "--resume_anyway" in line
    (kept / "train.json").write_text(json.dumps(rows))
    shutil.copy(kept.with_name("kept") / "train.json", kept / "train.json")
    for name in ("policy", "holistic", "reward_models/rel_rm", "reward_models/fact_rm", "reward_models/comp_rm"):
        whole = (kept / name / "model.safetensors").read_bytes()
        swap_weights(kept / name)
        assert f"{name}/model.safetensors" in refused(train_ppo, resume(flags, run, 4), capfd)
        (kept / name / "model.safetensors").write_bytes(whole)
    # all is as it was: nothing to refuse
    assert "--lr" in refused(train_ppo, [*resume(flags, run, 4), "--lr", "0.5"], capfd)


def test_a_changed_file_is_accepted_when_asked_and_recorded(flags, run, kept, train_ppo, capfd):
    rows = json.loads((kept / "train.json").read_text())
    (kept / "train.json").write_text(json.dumps(rows[::-1]))
    assert "--resume" in refused(train_ppo, [*flags, "--save_dir", str(run), "--resume_anyway"], capfd)
    train_ppo([*resume(flags, run, 4), "--resume_anyway"])
    assert str(kept / "train.json") in capfd.readouterr().out
    (change,) = json.loads((run / "run.json").read_text())["inputs"]["changes"]
    assert (change["flag"], change["file"], change["from_step"]) == ("train_file", str(kept / "train.json"), 4)


def test_a_policy_is_not_used_on_another_base_than_it_was_trained_on(flags, run, kept, train_ppo, tmp_path, capfd):
    swap_weights(kept / "policy")
    names = {"train_ppo": train_ppo, "calibrate": calibrate, "eval_sft": load_script("MT/eval_sft.py").main}
    names["inspect"] = load_script("eval/inspect_rewards.py").main
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(json.dumps({"translation": {"es": "Hola.", "en": "Hello."}}) + "\n")
    answer = ["--query", "question: a", "--generation", "b", "--question", "a"]
    at = flags.index("--policy_ckpt")
    others = flags[:at] + flags[at + 2 :]
    for policy in (run, run / "best"):
        ours = ["--policy_ckpt", str(policy)]
        calls = {
            "train_ppo": [*others, *ours, "--test", "--save_dir", str(tmp_path / "out.json")],
            "calibrate": ["--task", "qa", *ours, "--prompts", str(pairs), "--save_path", str(tmp_path / "c.json")],
            "eval_sft": [*ours, "--test_file", str(pairs)],
            "inspect": ["--task_type", "qa", *answer, *others, *ours],
        }
        for name, call in calls.items():
            assert "policy/model.safetensors" in refused(names[name], call, capfd), name
    more = [*others, "--policy_ckpt", str(run), "--save_dir", str(tmp_path / "more"), "--max_steps", "1"]
    assert "policy/model.safetensors" in refused(train_ppo, more, capfd)


@pytest.mark.parametrize("part", ["adapter_config.json", "adapter_model.safetensors", "v_head.safetensors"])
def test_a_policy_that_is_cut_short_is_one_line(world, run, train_ppo, tmp_path, capfd, part):
    cut(run / "policy" / part)
    ours = [*world.flags, "--policy_ckpt", str(run)]
    # the value head is for training alone
    ours += ["--max_steps", "1"] if part == "v_head.safetensors" else ["--test"]
    assert str(run / "policy") in refused(train_ppo, [*ours, "--save_dir", str(tmp_path / "out.json")], capfd)
