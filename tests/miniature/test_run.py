"""The grid's runner: two runs from tiny models with the real commands, going on, and what it refuses."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from alarm.combiners import COMBINERS
from alarm.common.errors import UserError
from helpers import ROOT
from miniature import run
from miniature.grid import tuning_runs, weighed
from miniature.settings import WORLDS

MT = WORLDS["mt"]


def write_tuning(results: Path) -> None:
    chosen = {name: {"name": name, "flags": weighed(MT, name, 1.0), "quality": 0.5} for name in COMBINERS}
    results.mkdir(parents=True, exist_ok=True)
    (results / "tuning.json").write_text(json.dumps({"start": 0.5, "chosen": chosen, "tried": {}}))


@pytest.fixture
def place(tmp_path):
    """A built world of empty models: enough for what is refused before any command."""
    built = tmp_path / "built" / "mt"
    for name in ("start", "holistic"):
        (built / name).mkdir(parents=True)
        (built / name / "model.safetensors").write_text(name)
    for name in ("calibration.json", "calibration_absolute.json"):
        (built / name).write_text(name)
    (built / "data").mkdir()
    for split in ("dev", "test"):
        rows = [{"text": f"{split} {i}"} for i in range(6)]
        (built / "data" / f"{split}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    write_tuning(tmp_path / "results" / "mt")
    return run.Place(MT, built, tmp_path / "work" / "mt", tmp_path / "results" / "mt")


def flags(place: run.Place) -> list[str]:
    top = place.built.parents[1]
    folders = {"built": top / "built", "work_dir": top / "work", "results": top / "results"}
    return [word for name, folder in folders.items() for word in (f"--{name}", str(folder))]


def refused(argv: list[str], capsys) -> str:
    with pytest.raises(SystemExit) as stop:
        run.main(argv)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error


@pytest.mark.parametrize(("argv", "what"), [
    (["--seeds", "0"], "--seeds"),
    (["--questions", "z"], "--questions"),
    (["--tasks", "fr"], "--tasks"),
    (["--steps", "-1"], "--steps"),
    (["--built", "nowhere"], "nowhere"),
])  # fmt: skip
def test_bad_flags_are_one_line(capsys, argv, what):
    assert what in refused(argv, capsys)


def test_the_grid_wants_tuned_settings(place, capsys):
    (place.results / "tuning.json").unlink()
    assert "--tune" in refused([*flags(place), "--questions", "k"], capsys)


def test_a_missing_model_is_named_before_anything_runs(place, capsys):
    """Of a world that was built without --flips."""
    assert "--flips" in refused([*flags(place), "--questions", "k", "d"], capsys)


def test_too_few_prompts_are_refused(place, capsys):
    assert "--prompts 6" in refused([*flags(place), "--questions", "k", "--prompts", "7"], capsys)


def jobs(place: run.Place, *more: str) -> list[run.Job]:
    return run.jobs_of(place, run.parse_args([*flags(place), "--prompts", "4", *more]))


def test_seeds_come_one_after_the_other_and_within_one_what_matters_most(place):
    names = [job.file for job in jobs(place, "--seeds", "2", "--questions", "a", "k")]
    assert [file.parent.name for file in names] == ["seed0"] * 17 + ["seed1"] * 17
    assert names[0].stem == "start" and {file.stem for file in names[1:12]} == set(COMBINERS)
    assert {file.stem for file in names[15:17]} == {"holistic_only-absolute", "hierarchical-absolute"}


def test_a_record_of_other_settings_is_not_taken(place):
    """Other steps, prompts or another built world."""
    first = jobs(place, "--questions", "k")[0]
    assert not run.is_done(first)
    first.file.parent.mkdir()
    first.file.write_text(json.dumps({"settings": first.settings}))
    assert run.is_done(first)
    run_of = jobs(place, "--questions", "k", "--steps", "3")[1]
    run_of.file.write_text(json.dumps({"settings": run_of.settings}))
    with pytest.raises(UserError, match="flags"):
        run.is_done(jobs(place, "--questions", "k", "--steps", "4")[1])
    (place.built / "start" / "model.safetensors").write_text("another one")
    with pytest.raises(UserError, match="built"):
        run.is_done(jobs(place, "--questions", "k")[0])


def test_no_path_of_this_machine_is_recorded(place):
    for job in jobs(place, "--questions", "a", "k"):
        assert str(place.built.parents[1]) not in json.dumps(job.settings)


def test_a_record_keeps_each_quality_and_means_of_the_rest():
    rows = [{"oracle": 0.12345, "index": 0, "generation": "a b", "length": 2, "rate": None},
            {"oracle": 1.0, "index": 1, "generation": " ", "length": 5, "rate": 0.5}]  # fmt: skip
    means = {"length": 3.5, "rate": 0.5, "empty": 0.5}
    assert run.described(rows) == {"oracle": [0.1235, 1.0], "means": means, "unknown": {"rate": 1}}


def test_an_evaluation_has_the_kl_of_the_step_before_it():
    steps = [{"kl": 0.1, "gate_rate": 0.25}, {"kl": 0.2, "gate_rate": 0.75}, {"kl": None, "gate_rate": 0.5}]
    log = [{"dev": {"oracle": 0.5}}, *({"train": step} for step in steps)]
    log[2]["dev"] = {"oracle": 0.6}
    assert run.curves(log) == {"kl": [0.1, 0.2, None], "gate": 0.5, "dev": [[0, 0.0, 0.5], [2, 0.2, 0.6]]}


def test_the_best_setting_on_dev_prompts_is_chosen(place, capsys):
    folder = place.results / "tuning"
    folder.mkdir()
    (folder / "start.json").write_text(json.dumps({"oracle": [0.5]}))
    for i, (_, one) in enumerate(tuning_runs(MT)):
        quality = 0.9 if one.name == "hierarchical-1" else i / 1000
        (folder / f"{one.name}.json").write_text(json.dumps({"oracle": [quality, quality]}))
    run.choose(place)
    chosen = json.loads((place.results / "tuning.json").read_text())["chosen"]
    assert chosen["hierarchical"]["flags"] == {"w_grammar": MT.ppo["w_grammar"]}
    assert chosen["weighted_sum"]["name"] == "weighted_sum-1"  # the last of three that rise
    assert "hierarchical" in capsys.readouterr().out


# --- the real commands -----------------------------------------------------------------------------------------------


def command(*words: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run([sys.executable, *words], cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A world of untrained models, with its calibrations."""
    top = tmp_path_factory.mktemp("world")
    world = top / "built" / "mt"
    sizes = {"sft": 1, "sft_dev": 1, "train": 300, "dev": 220, "test": 30}
    words = [word for name, size in sizes.items() for word in (f"--{name}", str(size))]
    assert command("-m", "miniature.mt.data", "--save_dir", str(world / "data"), *words).returncode == 0
    small = ["--policy_size", "32", "--reward_size", "32"]
    assert command("-m", "miniature.models", "--world", "mt", "--save_dir", str(top / "base"), *small).returncode == 0
    shutil.copytree(top / "base" / "t5", world / "start")
    rows = [json.loads(line) for line in (world / "data" / "dev.jsonl").read_text().splitlines()[:12]]
    pairs = [{"prompt": row["text"], "chosen": row["answer"], "rejected": row["answer"][5:]} for row in rows]
    for name, some in (("train", pairs[:8]), ("dev", pairs[8:])):
        (top / f"{name}.jsonl").write_text("".join(f"{json.dumps(pair)}\n" for pair in some))
    done = command(
        "-m", "alarm.train_holistic", "--model_path", str(top / "base" / "llama"), "--train_file",
        str(top / "train.jsonl"), "--dev_file", str(top / "dev.jsonl"), "--save_dir", str(world / "holistic"),
        "--batch_size", "4", "--max_steps", "1", "--max_length", "96", "--selection_share", "0", "--report_to", "none",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for name, baseline in (("calibration", "group"), ("calibration_absolute", "none")):
        done = command(
            "-m", "alarm.calibrate", "--task", MT.task, "--policy_ckpt", str(world / "start"), "--dtype", "float32",
            "--holistic_model", str(world / "holistic"), "--prompts", str(world / "data" / "dev.jsonl"), "--rewards",
            "holistic", "--limit", "12", "--samples_per_prompt", "4", "--holistic_baseline", baseline, "--save_path",
            str(world / f"{name}.json"),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    write_tuning(top / "results" / "mt")
    return run.Place(MT, world, top / "work" / "mt", top / "results" / "mt")


@pytest.mark.slow
def test_a_grid_of_one_step_from_nothing_to_tables(built):
    words = ["-m", "miniature.run", *flags(built), "--seeds", "1", "--prompts", "30", "--questions", "i"]
    done = command(*words, "--steps", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    records = {file.stem: json.loads(file.read_text()) for file in (built.results / "seed0").glob("*.json")}
    wanted = {"holistic_only", "hierarchical", "holistic_only-misaligned", "hierarchical-misaligned"}
    assert records.keys() == {"start", *wanted}
    for name, record in records.items():
        assert len(record["oracle"]) == 30
        assert (len(record.get("kl", [])) == 1) == (name != "start")
    assert [steps for steps, _, _ in records["hierarchical"]["dev"]] == [0, 1]
    assert "torch" in records["start"]["versions"]
    assert not list(built.work.rglob("*.safetensors")), "checkpoints of finished runs are removed"

    # the same again makes only what is missing
    kept = (built.results / "seed0" / "hierarchical.json").read_bytes()
    (built.results / "seed0" / "holistic_only.json").unlink()
    done = command(*words, "--steps", "1")
    assert done.returncode == 0 and "5 runs, 4 of them done before" in done.stdout
    assert (
        json.loads((built.results / "seed0" / "holistic_only.json").read_text())["oracle"]
        == (records["holistic_only"]["oracle"])
    )
    assert (built.results / "seed0" / "hierarchical.json").read_bytes() == kept
    done = command(*words, "--steps", "2")
    assert done.returncode == 2 and "flags" in done.stderr

    page = built.work.parent / "page.md"
    page.write_text("<!-- tables of mt -->\n<!-- end -->\n")
    done = command("-m", "miniature.paper", "--results", str(built.results.parent), "--page", str(page))
    assert done.returncode == 0, done.stderr
    assert "holistic_only-misaligned" in page.read_text()


@pytest.mark.whole
@pytest.mark.slow
def test_a_run_that_fails_is_named_and_the_others_go_on(built, tmp_path):
    write_tuning(tmp_path / "mt")
    damaged = tmp_path / "built" / "mt"
    shutil.copytree(built.built, damaged)
    (damaged / "calibration_absolute.json").write_text("{}")
    done = command(
        "-m", "miniature.run", "--built", str(damaged.parent), "--work_dir", str(tmp_path / "work"), "--results",
        str(tmp_path), "--seeds", "1", "--prompts", "10", "--steps", "1", "--questions", "k",
    )  # fmt: skip
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    found = {file.stem for file in (tmp_path / "mt" / "seed0").glob("*.json")}
    assert found == {"start", "holistic_only", "hierarchical"}
    assert "failed" in done.stdout and "2 runs failed" in done.stderr
