"""Commands with --holistic_server and --holistic_shard: the numbers of the local model, or one line and going on."""

from __future__ import annotations

import functools
import json
import os
import shutil
import threading

import pytest
from e2e.conftest import value_of
from e2e.test_calibration import without_constants
from e2e.test_train_ppo import log_rows, numbers, refused, run_script, untimed
from models.vllm_stub import VllmStub, answer, model_scores

from alarm import HierarchicalReward
from alarm.common.errors import UserError
from alarm.models import holistic_server
from alarm.training.calibrate import main as calibrate
from helpers import CHECKPOINTS, forget_accelerate


@pytest.fixture(scope="module")
def scores():
    return model_scores(CHECKPOINTS / "tiny-ultrarm")


@pytest.fixture(scope="module")
def other_scores(scores):
    return lambda rows: [score + 0.5 for score in scores(rows)]


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    quick = functools.partial(holistic_server.HolisticServer, pause=0.01)
    monkeypatch.setattr(holistic_server, "HolisticServer", quick)


@pytest.fixture(scope="module")
def served(world, tmp_path_factory):
    """The flags of the world, whose holistic model has no weights here."""
    folder = tmp_path_factory.mktemp("served") / "holistic"
    weights = shutil.ignore_patterns("*.safetensors", "*.bin")
    shutil.copytree(CHECKPOINTS / "tiny-ultrarm", folder, ignore=weights)
    assert not list(folder.glob("*.safetensors"))
    flags = list(world.flags)
    flags[flags.index("--holistic_model") + 1] = str(folder)
    return flags


def assert_close(found: list[dict], expected: list[dict]) -> None:
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys() == theirs.keys()
        for part, values in theirs.items():
            there = {name: value for name, value in numbers(values).items() if value is not None}
            assert {name: ours[part][name] for name in there} == pytest.approx(there, rel=1e-3, abs=1e-4), part
            assert {name for name, value in ours[part].items() if value is None} == values.keys() - there.keys()


SHORT = ["--max_steps", "2", "--eval_interval", "2", "--checkpoint_interval", "1"]


def test_a_run_with_a_server_is_a_run_with_the_model(world, served, scores, train_ppo, tmp_path, capfd):
    local, remote = tmp_path / "local", tmp_path / "remote"
    train_ppo([*world.flags, *SHORT, "--save_dir", str(local)])
    forget_accelerate()
    with VllmStub(scores) as stub:
        train_ppo([*served, *SHORT, "--holistic_server", stub.url + "/v1", "--save_dir", str(remote)])
        assert "not compared with the weights" in capfd.readouterr().out
        assert_close(untimed(log_rows(remote)), untimed(log_rows(local)))
        content = json.loads((remote / "run.json").read_text())
        assert content["holistic_server"] == stub.url and len(content["inputs"]["holistic_probe"]) == 8

        # the reward of the run, by the server and by the model
        texts = (["why?", "why?"], ["because", "so it is"], [row | {} for row in world.rows("test")[:2]])
        by_server = HierarchicalReward.from_run(remote).score(*texts)
        by_model = HierarchicalReward.from_run(local).score(*texts)
        assert by_server.total.tolist() == pytest.approx(by_model.total.tolist(), abs=1e-4)
        # the weights at --holistic_model count without a server
        shutil.copy(CHECKPOINTS / "tiny-ultrarm" / "model.safetensors", value_of(served, "holistic_model"))
        content["inputs"]["hashes"].pop("holistic_model")
        (remote / "run.json").write_text(json.dumps(content))
        found = HierarchicalReward.from_run(remote, holistic_server=None).score(*texts)
        assert found.total.tolist() == pytest.approx(by_model.total.tolist(), abs=1e-4)
        os.unlink(os.path.join(value_of(served, "holistic_model"), "model.safetensors"))

        stub.scores = lambda rows: [-score for score in scores(rows)]
        with pytest.raises(UserError, match="scores otherwise than the run in"):
            HierarchicalReward.from_run(remote).score(*texts)


def test_a_test_file_is_that_of_the_model(world, served, scores, train_ppo, tmp_path):
    files = [tmp_path / "local.json", tmp_path / "remote.json"]
    train_ppo([*world.flags, "--test", "--save_dir", str(files[0])])
    forget_accelerate()
    with VllmStub(scores) as stub:
        train_ppo([*served, "--holistic_server", stub.url, "--test", "--save_dir", str(files[1])])
    local, remote = (json.loads(file.read_text()) for file in files)
    assert [row["generation"] for row in local] == [row["generation"] for row in remote]
    found, expected = ([row["holistic_reward"] for row in rows] for rows in (remote, local))
    assert found == pytest.approx(expected, abs=1e-5)


def test_a_server_lost_on_the_way_is_one_line_and_the_run_goes_on(
    served, scores, other_scores, train_ppo, tmp_path, capfd
):
    run = tmp_path / "run"
    flags = [*served, "--max_steps", "3", "--eval_interval", "0", "--checkpoint_interval", "0", "--save_dir", str(run)]

    def dies(path, request, number):
        return "drop" if number >= 6 else None  # 3 to look at it, then 2 a step

    with VllmStub(scores, respond=dies) as stub:
        line = refused(train_ppo, [*flags, "--rm_max_batch_size", "2", "--holistic_server", stub.url], capfd)
        assert "failed 6 times in a row" in line and "--resume" in line
    forget_accelerate()
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["1"]
    again = [*flags, "--rm_max_batch_size", "2", "--resume"]

    with VllmStub(other_scores) as stub:
        line = refused(train_ppo, [*again, "--holistic_server", stub.url], capfd)
        assert "scores otherwise than at the start of the run" in line and "--resume_anyway" in line
    forget_accelerate()
    assert "--holistic_server is None" in refused(train_ppo, again, capfd)
    forget_accelerate()
    with VllmStub(scores) as stub:  # at another port
        train_ppo([*again, "--holistic_server", stub.url])
    assert [row["step"] for row in log_rows(run)] == [1, 2, 3]
    assert json.loads((run / "run.json").read_text())["inputs"]["changes"] == []


def test_another_model_is_taken_only_if_asked_for(served, scores, other_scores, train_ppo, tmp_path, capfd):
    run = tmp_path / "run"
    flags = [*served, "--eval_interval", "0", "--checkpoint_interval", "1", "--save_dir", str(run)]
    with VllmStub(scores) as stub:
        train_ppo([*flags, "--max_steps", "1", "--holistic_server", stub.url])
        forget_accelerate()
        stub.scores = other_scores
        train_ppo([*flags, "--max_steps", "2", "--holistic_server", stub.url, "--resume", "--resume_anyway"])
    assert "warning: the holistic server" in capfd.readouterr().out
    inputs = json.loads((run / "run.json").read_text())["inputs"]
    (change,) = inputs["changes"]
    assert change["flag"] == "holistic_server" and change["from_step"] == 2
    assert inputs["holistic_probe"][0] == pytest.approx(json.loads(change["was"])[0] + 0.5, abs=1e-4)


def test_a_calibration_belongs_to_the_model_behind_the_server(
    world, served, calibration, sample_flags, scores, other_scores, train_ppo, tmp_path, capfd
):
    flags = [*without_constants(world.flags), "--calibration", str(calibration), "--test"]
    out = ["--save_dir", str(tmp_path / "out.json")]
    with VllmStub(other_scores) as stub:
        line = refused(train_ppo, [*flags, *out, "--holistic_server", stub.url], capfd)
        assert f"scores otherwise than the calibration {calibration}" in line
        forget_accelerate()
        stub.scores = scores
        train_ppo([*flags, *out, "--holistic_server", stub.url])
        forget_accelerate()

        # one that was measured by the server: the same numbers, and the same check for a local model
        file = tmp_path / "calibration.json"
        calibrate([*sample_flags, "--holistic_server", stub.url, "--save_path", str(file)])
        forget_accelerate()
    expected, found = (json.loads(path.read_text()) for path in (calibration, file))
    for part in ("mean", "std"):
        assert found["rewards"]["holistic"][part] == pytest.approx(expected["rewards"]["holistic"][part], abs=1e-5)
    at = flags.index("--calibration") + 1
    flags[at] = str(file)
    train_ppo([*flags, *out, "--overwrite"])
    forget_accelerate()
    found["holistic_probe"] = [score + 0.5 for score in found["holistic_probe"]]
    file.write_text(json.dumps(found))
    line = refused(train_ppo, [*flags, *out, "--overwrite"], capfd)
    assert f"the holistic model scores otherwise than the calibration {file}" in line
    found["holistic_probe"] = ["1"]
    file.write_text(json.dumps(found))
    assert "holistic_probe" in refused(train_ppo, [*flags, *out, "--overwrite"], capfd)


def test_baselines_belong_to_the_model_behind_the_server(served, scores, other_scores, train_ppo, tmp_path, capfd):
    constants = ["--ultra_mean", "0", "--ultra_std", "1"]
    flags = [*served, *constants, "--holistic_baseline", "greedy", "--baseline_file", str(tmp_path / "baselines.json")]
    flags += ["--max_steps", "1", "--eval_interval", "0", "--max_generated_len", "4"]
    with VllmStub(scores) as stub:
        train_ppo([*flags, "--holistic_server", stub.url, "--save_dir", str(tmp_path / "run")])
        forget_accelerate()
        stub.scores = other_scores
        line = refused(train_ppo, [*flags, "--holistic_server", stub.url, "--save_dir", str(tmp_path / "next")], capfd)
    assert "another model behind the holistic server" in line and "baselines.json" in line


def test_the_local_copy_is_compared_on_demand(world, scores, other_scores, train_ppo, tmp_path, capfd):
    flags = [*world.flags, "--holistic_check", "--test", "--save_dir", str(tmp_path / "out.json")]
    with VllmStub(other_scores) as stub:
        line = refused(train_ppo, [*flags, "--holistic_server", stub.url], capfd)
        assert f"scores otherwise than {value_of(world.flags, 'holistic_model')}" in line
        forget_accelerate()
        stub.scores = scores
        train_ppo([*flags, "--holistic_server", stub.url])
    assert "it scores as" in capfd.readouterr().out
    assert "goes with --holistic_server" in refused(train_ppo, [*flags, "--overwrite"], capfd)


@pytest.mark.whole
def test_a_divided_model_scores_as_a_whole_one(world, train_ppo, tmp_path):
    """Three batches on two processes: one of them has nothing to score in the last."""
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    flags = [*world.flags, "--test", "--test_do_sample", "--batch_size", "4"]
    train_ppo([*flags, "--save_dir", str(one)])
    done = run_script([*flags, "--holistic_shard", "--save_dir", str(two)], processes=2)
    assert done.returncode == 0, done.stderr
    assert "MiB of weights on this process" in done.stdout
    rows, others = json.loads(one.read_text()), json.loads(two.read_text())
    assert [pytest.approx(row, abs=1e-6) for row in map(numbers, rows)] == [*map(numbers, others)]
    assert len(rows) == 10 and len({row["holistic_reward"] for row in others}) > 5


@pytest.mark.whole
def test_two_processes_stop_together(served, scores, tmp_path):
    """One of them meets a refusal: nobody waits for it, and there is a checkpoint."""
    met = threading.Event()

    def respond(path, request, number):
        if number >= 12 and path == "/classify" and not met.is_set():  # 3 each to look at it, then 4 or less a step
            met.set()
            return answer({"error": "Unauthorized"}, 401)
        return None

    run = tmp_path / "run"
    flags = [*served, "--max_steps", "9", "--eval_interval", "0", "--checkpoint_interval", "0", "--save_dir", str(run)]
    with VllmStub(scores, respond=respond) as stub:
        done = run_script([*flags, "--rm_max_batch_size", "2", "--holistic_server", stub.url], processes=2)
    assert done.returncode != 0
    # torchrun ends the process that is slower to say it
    lines = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert lines and all("refuses the key" in line for line in lines)
    (checkpoint,) = (run / "checkpoints").iterdir()
    assert 1 <= int(checkpoint.name) <= 3
