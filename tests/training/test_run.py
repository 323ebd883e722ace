"""A run's folder: what a resume compares, what it repairs, what is refused in one line. With training: tests/e2e."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from alarm.common.errors import UserError
from alarm.training.flags import resolve_policy
from alarm.training.plot import read_run
from alarm.training.run import Run, check_trained_base, read_log, read_steps

ROW = {"step": 1, "train": {"reward": 0.5}}


@pytest.fixture
def world(tmp_path) -> Path:
    """Data, a base model and a reward model, as plain files."""
    for name in ("base", "holistic"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / "model.safetensors").write_text(f"weights of {name}")
    (tmp_path / "train.json").write_text("[1]")
    (tmp_path / "dev.json").write_text("[2]")
    (tmp_path / "calibration.json").write_text("{}")
    return tmp_path


def make_run(world: Path, **changes) -> Run:
    names = ("train_file", "dev_file")
    args = {name: str(world / name.replace("_file", ".json")) for name in names} | {"lr": 0.1, "calibration": None}
    return Run(world / "run", args | {"max_steps": 3, "resume_anyway": False} | changes, ["ultra_mean", "ultra_std"])


def check(run: Run, resume: bool = True) -> Run:
    models = {"policy_ckpt": run.dir.parent / "base", "holistic_model": run.dir.parent / "holistic"}
    run.check(resume, models)
    return run


def started(world: Path, **changes) -> Run:
    run = check(make_run(world, **changes), resume=False)
    run.start(0)
    return run


def inputs(run: Run) -> dict:
    return json.loads((run.dir / "run.json").read_text())["inputs"]


# --- what must not have changed --------------------------------------------------------------------------------------


def test_flags_stay_at_the_top_and_hashes_have_one_key(world):
    run = started(world)
    content = json.loads((run.dir / "run.json").read_text())
    assert content.pop("inputs")["hashes"].keys() == {"train_file", "dev_file", "policy_ckpt", "holistic_model"}
    assert content.pop("generation")["rollouts"]["do_sample"] is True
    assert content.pop("versions").keys() >= {"torch", "transformers", "peft"}
    assert content == run.args


def test_a_run_whose_inputs_are_the_same_goes_on(world, capsys):
    before = inputs(started(world))
    run = check(make_run(world, max_steps=9))
    run.start(0)
    assert inputs(run) == before and before["changes"] == []
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("flag", "file"),
    [
        ("train_file", "train.json"),
        ("dev_file", "dev.json"),
        ("policy_ckpt", "base/model.safetensors"),
        ("holistic_model", "holistic/config.json"),
        ("calibration", "calibration.json"),
    ],
)
def test_a_changed_input_is_refused_by_name_and_the_way_out_is_recorded(world, capsys, flag, file):
    calibration = {"calibration": str(world / "calibration.json")}
    old = started(world, **calibration)
    short = inputs(old)["hashes"][flag]["files"][Path(file).name][:12]
    (world / file).write_text("[3]")
    with pytest.raises(UserError) as refused:
        check(make_run(world, **calibration))
    for part in (f"--{flag}", str(world / file), short, "--resume_anyway"):
        assert part in str(refused.value)
    assert "\n" not in str(refused.value)
    assert inputs(old)["changes"] == []

    capsys.readouterr()
    run = check(make_run(world, resume_anyway=True, **calibration))
    assert str(world / file) in capsys.readouterr().out
    run.start(2)
    (change,) = inputs(run)["changes"]
    assert (change["flag"], change["file"], change["was"], change["from_step"]) == (flag, str(world / file), short, 2)
    assert change["is"] == inputs(run)["hashes"][flag]["files"][Path(file).name][:12] != short
    # it is the run's own input from now on, and the record stays
    run = check(make_run(world, **calibration))
    run.start(3)
    assert inputs(run)["changes"] == [change]
    assert capsys.readouterr().out == ""


def test_numbers_of_a_changed_calibration_are_put_down_to_its_file(world):
    flags = {"calibration": str(world / "calibration.json"), "ultra_mean": 1.0}
    started(world, **flags)
    (world / "calibration.json").write_text("[3]")
    with pytest.raises(UserError, match="--calibration"):
        check(make_run(world, **flags | {"ultra_mean": 2.0}))
    check(make_run(world, **flags | {"ultra_mean": 2.0, "resume_anyway": True}))


def test_a_number_of_a_flag_stays_refused(world):
    started(world, ultra_mean=1.0)
    for anyway in (False, True):
        with pytest.raises(UserError, match="--ultra_mean"):
            check(make_run(world, ultra_mean=2.0, resume_anyway=anyway))


def test_splits_of_a_data_set_are_compared_by_their_rows(world):
    splits = {"train": [{"a": 1}], "dev": [{"a": 2}]}
    run = make_run(world)
    check(run, resume=False).check_splits("hub/data", splits)
    run.start(0)
    check(make_run(world)).check_splits("hub/data", splits)
    with pytest.raises(UserError, match=r"dataset \(dev\)"):
        check(make_run(world)).check_splits("hub/data", splits | {"dev": [{"a": 3}]})


def test_a_run_without_hashes_goes_on_with_a_note(world, capsys):
    run = started(world)
    content = json.loads((run.dir / "run.json").read_text())
    del content["inputs"]
    (run.dir / "run.json").write_text(json.dumps(content))
    (world / "train.json").write_text("[3]")
    run = check(make_run(world))
    assert capsys.readouterr().out.count("run.json") == 1
    run.start(0)
    assert "train_file" in inputs(run)["hashes"]


def test_a_model_that_is_fetched_anew_while_it_loads_is_refused(world):
    started(world)
    run = check(make_run(world))
    (world / "holistic" / "model.safetensors").write_text("another commit")
    with pytest.raises(UserError, match="--holistic_model"):
        run.start(0)


def test_the_main_process_hashes_for_all(world, monkeypatch):
    started(world)
    (world / "train.json").write_text("[3]")
    monkeypatch.setenv("RANK", "1")
    assert check(make_run(world)).inputs["hashes"].keys() >= {"train_file"}


# --- the base model of a run's adapter -------------------------------------------------------------------------------


@pytest.fixture
def adapter(world) -> Path:
    """The run's folder, ended, with an adapter on the base model."""
    run = started(world)
    for name in ("policy", "best"):
        (run.dir / name).mkdir()
        config = {"base_model_name_or_path": str(world / "base")}
        (run.dir / name / "adapter_config.json").write_text(json.dumps(config))
    return run.dir


def test_a_replaced_base_is_refused_wherever_the_policy_is_named(world, adapter, capsys):
    names = [adapter, adapter / "policy", adapter / "best"]
    assert [resolve_policy(str(name)) for name in names] == [str(adapter / "policy"), *map(str, names[1:])]
    (world / "base" / "model.safetensors").write_text("others")
    for name in names:
        with pytest.raises(UserError, match=r"base/model\.safetensors"):
            resolve_policy(str(name))
    assert resolve_policy(str(adapter), anyway=True) == str(adapter / "policy")
    assert str(world / "base" / "model.safetensors") in capsys.readouterr().out
    # a folder that was moved is the same base, once the adapter names it
    (world / "base" / "model.safetensors").write_text("weights of base")
    (world / "base").rename(world / "moved")
    config = {"base_model_name_or_path": str(world / "moved")}
    (adapter / "policy" / "adapter_config.json").write_text(json.dumps(config))
    assert resolve_policy(str(adapter)) == str(adapter / "policy")


def test_the_base_of_an_older_run_is_noted_as_not_known(adapter, capsys):
    (adapter / "run.json").write_text("{}")
    check_trained_base(adapter / "policy")
    assert "run.json" in capsys.readouterr().out


# --- damage ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", ["", '{"lr": ', "[]", "{}x", '{"inputs": 3}', "\0\0\0"])
def test_a_damaged_run_json_is_one_line(world, adapter, content):
    (adapter / "run.json").write_text(content)
    for use in (lambda: check(make_run(world)), lambda: resolve_policy(str(adapter))):
        with pytest.raises(UserError, match=r"run\.json") as refused:
            use()
        assert "\n" not in str(refused.value)


def write_log(run: Run, text: str) -> Path:
    (run.dir / "log.jsonl").write_text(text)
    return run.dir / "log.jsonl"


@pytest.mark.parametrize("half", ['{"step": 2, "tra', "\0\0\0", "[", '{"step": 2}, "x'])
def test_half_a_last_line_is_dropped(world, half):
    run = started(world)
    log = write_log(run, json.dumps(ROW) + "\n" + half)
    assert read_log(log) == [ROW] and list(read_run(run.dir, "x").train) == [1]
    check(make_run(world)).start(2)
    assert log.read_text() == json.dumps(ROW) + "\n"


def test_rollouts_are_cut_back_as_the_log_is(world):
    run = started(world)
    rows = [{"step": step, "split": split} for step in range(4) for split in ("dev", "train")]
    run.add("rollouts.jsonl", rows)
    with open(run.dir / "rollouts.jsonl", "a") as file:
        file.write('{"step": 4, "spl')
    check(make_run(world)).start(2)
    assert [row for _, row in read_steps(run.dir / "rollouts.jsonl")] == rows[:4]
    assert not (run.dir / "log.jsonl").exists()  # which no step wrote


@pytest.mark.parametrize("line", ['{"step": 1}', '{"step": 1, "split": "test"}', "[]", '{"split": "dev"}'])
def test_a_line_that_is_no_rollout_is_named_by_its_number(world, line):
    run = started(world)
    (run.dir / "rollouts.jsonl").write_text(f'{{"step": 1, "split": "dev"}}\n{line}\n')
    with pytest.raises(UserError, match=r"rollouts\.jsonl, line 2"):
        check(make_run(world))


def test_a_last_line_that_lacks_its_end_alone_is_kept(world):
    run = started(world)
    log = write_log(run, json.dumps(ROW))
    check(make_run(world)).start(2)
    assert log.read_text() == json.dumps(ROW) + "\n"


@pytest.mark.parametrize("line", ['{"step": 2, "tra', "\0\0\0", "", "3", '{"step": "2"}', '{"step": 2, "dev": 1}'])
def test_a_damaged_line_in_the_middle_is_named_by_its_number(world, line):
    run = started(world)
    write_log(run, f"{json.dumps(ROW)}\n{line}\n{json.dumps(ROW)}\n")
    for use in (lambda: check(make_run(world)), lambda: read_run(run.dir, "x")):
        with pytest.raises(UserError, match=r"log\.jsonl, line 2") as refused:
            use()
        assert "\n" not in str(refused.value)


def test_the_log_is_cut_back_to_the_step_that_is_resumed(world):
    run = started(world)
    rows = [{"step": 0, "dev": {}}, *({"step": k, "train": {"x": k / 3}} for k in range(1, 5)), {"step": 4, "dev": {}}]
    log = write_log(run, "".join(json.dumps(row) + "\n" for row in rows))
    text = log.read_text()
    check(make_run(world)).start(5)
    assert log.read_text() == text
    check(make_run(world)).start(3)
    assert log.read_text() == "".join(json.dumps(row) + "\n" for row in rows[:3])
    check(make_run(world)).start(0)  # there was no checkpoint
    assert log.read_text() == ""


@pytest.mark.parametrize("content", [None, "", '{"step": 4, "proc', "[]", '{"step": 3, "processes": 1}', '{"step": 4}'])
def test_a_damaged_loop_state_is_found(world, content):
    run = started(world)
    folder = run.dir / "checkpoints" / "4"
    folder.mkdir(parents=True)
    if content is not None:
        (folder / "loop.json").write_text(content)
    state, problem = run.read_state(folder)
    assert state is None and "loop.json" in problem and "\n" not in problem
    (folder / "loop.json").write_text('{"step": 4, "processes": 1}')
    assert run.read_state(folder) == ({"step": 4, "processes": 1}, None)


def test_a_checkpoint_that_is_set_aside_is_kept_and_no_longer_counts(world):
    run = started(world)
    kept = []
    for content in ("first", "second", "third"):
        folder = run.dir / "checkpoints" / "4"
        folder.mkdir(parents=True)
        (folder / "x").write_text(content)
        kept.append(run.set_aside(folder))
        assert run.checkpoints() == []
    check(make_run(world)).start(0)  # which cleans up
    assert [(path / "x").read_text() for path in kept] == ["first", "second", "third"]


def test_a_kill_while_a_policy_was_replaced_leaves_a_whole_one(world):
    run = started(world)
    whole = run.dir / "best"
    whole.mkdir()
    (whole / "config.json").write_text("old")
    # between the two renames: the old one is away, the new one not yet there
    shutil.copytree(whole, run.dir / ".best.77.tmp")
    whole.rename(run.dir / ".best.77.old")
    check(make_run(world)).start(0)
    assert (whole / "config.json").read_text() == "old"
    # after them: the new one is there
    shutil.copytree(whole, run.dir / ".best.78.old")
    (whole / "config.json").write_text("new")
    check(make_run(world)).start(0)
    assert (whole / "config.json").read_text() == "new"
    assert {path.name for path in run.dir.iterdir()} == {"run.json", "best"}
