"""From a calibration to a run that uses it, and a run that drifts from it, on tiny real models."""

from __future__ import annotations

import json
import shutil
import subprocess

import numpy as np
import pytest
from e2e.conftest import value_of
from e2e.test_train_ppo import TWO_PROCESSES, log_rows, refused, run_script, untimed

from alarm.training.calibrate import main as calibrate
from alarm.training.plot import main as plot_run
from helpers import CHECKPOINTS, ROOT, forget_accelerate, load_script


def without_constants(flags: list[str]) -> list[str]:
    """The world's flags less those that a calibration takes the place of, and less the threshold."""
    at = flags.index("--ultra_mean")
    assert flags[at::2] == ["--ultra_mean", "--ultra_std", "--hierarchical_threshold"]
    return flags[:at]


def test_a_calibration_measures_what_test_writes(world, train_ppo, sample_flags, calibration, tmp_path, capfd):
    """The same seed, prompts and batches: the raw scores of `train_ppo.py --test --test_do_sample`."""
    out = tmp_path / "answers.json"
    raw = ["--completeness_reward_mean", "0", "--completeness_reward_std", "1", "--completeness_reward_scale", "1"]
    flags = [*world.flags, *raw, "--test", "--test_do_sample", "--batch_size", "8", "--save_dir", str(out)]
    train_ppo([*flags, "--test_file", value_of(sample_flags, "prompts")])
    rows = json.loads(out.read_text())
    found = json.loads(calibration.read_text())
    metrics = {"holistic": "holistic_reward", "length": "response_length", "completeness": "completeness_reward"}
    metrics |= {"factuality": "factuality_rate", "relevance": "verbosity_rate"}
    assert set(found["rewards"]) == set(metrics)
    for name, metric in metrics.items():
        scores = np.array([row[metric] for row in rows if row["generation"].strip()])
        described = found["rewards"][name]
        assert (described["n"], described["mean"]) == (len(scores), pytest.approx(scores.mean(), abs=1e-6)), name
        assert described["std"] == pytest.approx(scores.std(), abs=1e-6)
        assert described["percentiles"]["50"] == pytest.approx(np.median(scores), abs=1e-6)
        z = (scores - scores.mean()) / scores.std() if described["std"] else scores
        assert all(share == pytest.approx((z >= float(t)).mean()) for t, share in described["share_above"].items())
    # which models, which data
    assert set(found["models"]) == {"policy", "holistic", "relevance", "factuality", "completeness"}
    assert all(len(model["files"]["model.safetensors"]) == 64 for model in found["models"].values())
    assert len(found["prompts"]["sha256"]) == 64 and found["prompts"]["used"] == 24
    assert found["settings"]["seed"] == 42 and found["settings"]["sampling"]["do_sample"] is True
    assert found["versions"]["torch"] and found["created"]


def test_only_what_is_asked_for_needs_its_model(sample_flags, tmp_path, fresh_accelerate, capfd):
    path = tmp_path / "c.json"
    flags = [*sample_flags, "--rewards", "length", "--limit", "5", "--save_path", str(path)]
    for gone in ("holistic_model", "reward_model_dir"):
        flags[flags.index(f"--{gone}") + 1] = "./nowhere"
    calibrate(flags)
    found = json.loads(path.read_text())
    assert set(found["rewards"]) == {"length"} and set(found["models"]) == {"policy"}
    assert found["rewards"]["length"]["n"] <= 5 and found["prompts"]["used"] == 5
    out = capfd.readouterr().out
    assert "responses are few" in out and "--length_mean" in out and "--ultra_mean" not in out


def test_a_run_uses_its_calibration(world, train_ppo, calibration, tmp_path, capfd):
    run = tmp_path / "run"
    flags = [*without_constants(world.flags), "--calibration", str(calibration), "--threshold_quantile", "0.5"]
    flags += ["--eval_interval", "0", "--max_steps", "10", "--save_dir", str(run)]
    train_ppo(flags)
    found = json.loads(calibration.read_text())["rewards"]
    args = json.loads((run / "run.json").read_text())
    assert (args["ultra_mean"], args["ultra_std"]) == (found["holistic"]["mean"], found["holistic"]["std"])
    assert args["length_mean"] == found["length"]["mean"]
    assert args["completeness_reward_std"] == found["completeness"]["std"]
    median = found["holistic"]["percentiles"]["50"]
    assert args["hierarchical_threshold"] == pytest.approx((median - args["ultra_mean"]) / args["ultra_std"])
    out = capfd.readouterr().out
    assert "gate at" in out and "about 50%" in out and "warning" not in out
    rows = [row["train"] for row in log_rows(run)]
    # the model's raw scores have mean 0.3 and deviation 0.8: normalised, they are near 0 and 1, and the gate opens
    assert abs(np.mean([row["holistic_reward"] for row in rows])) < 0.6
    assert 0.2 < np.mean([row["gate_rate"] for row in rows]) < 0.8
    # 4 responses a step: with step 10 enough are known to compare, and nothing has drifted
    assert "drift/holistic_reward_std" in rows[-1] and "drift/holistic_reward_std" not in rows[0]
    forget_accelerate()
    again = [*flags, "--resume"]
    again[again.index("0.5")] = "0.6"
    assert "--threshold_quantile is" in refused(train_ppo, again, capfd)


def test_the_gate_of_a_calibration_holds_in_test_too(world, train_ppo, calibration, tmp_path):
    files = [tmp_path / "plain.json", tmp_path / "calibrated.json"]
    flags = without_constants(world.flags)
    train_ppo([*flags, "--ultra_mean", "0", "--ultra_std", "1", "--test", "--save_dir", str(files[0])])
    forget_accelerate()
    train_ppo([*flags, "--calibration", str(calibration), "--test", "--save_dir", str(files[1])])
    raw, normalised = ([row["holistic_reward"] for row in json.loads(file.read_text())] for file in files)
    found = json.loads(calibration.read_text())["rewards"]["holistic"]
    assert normalised == pytest.approx([(score - found["mean"]) / found["std"] for score in raw], abs=1e-5)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--ultra_std", "1"], "--ultra_std and --calibration"),
        (["--threshold_quantile", "0.5", "--hierarchical_threshold", "0"], "both set the gate"),
        (["--holistic_model", "other"], "another holistic reward model"),
        (["--reward_model_dir", "others"], "another completeness reward model"),
    ],
)
def test_what_does_not_fit_a_calibration_is_refused(
    world, train_ppo, calibration, tmp_path, capfd, monkeypatch, flags, says
):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(CHECKPOINTS / "tiny-comp_rm", tmp_path / "other")
    shutil.copytree(world.folder / "reward_models", tmp_path / "others")
    config = tmp_path / "others" / "comp_rm" / "config.json"
    config.write_text(config.read_text() + "\n")
    flags = [*without_constants(world.flags), "--calibration", str(calibration), "--save_dir", "run", *flags]
    assert says in refused(train_ppo, flags, capfd)
    assert not (tmp_path / "run").exists()


def test_a_calibration_of_the_other_task_is_refused(world, calibration, tmp_path, capfd):
    flags = ["--calibration", str(calibration), "--save_dir", str(tmp_path / "run")]
    assert "of task qa, not of mt" in refused(load_script("MT/train_ppo.py").main, flags, capfd)


def drifting(world, calibration, folder) -> list[str]:
    """Answers may be twice as long as when they were calibrated, and the random policy seldom ends them."""
    found = json.loads(calibration.read_text())
    lengths = np.array([11.0] + [12.0] * 23)  # whether one of 24 really ended early is chance
    found["rewards"]["length"] |= {
        "mean": lengths.mean(),
        "std": lengths.std(),
        "percentiles": {str(p): np.percentile(lengths, p) for p in range(101)},
    }
    own = folder / "drifting.json"
    own.write_text(json.dumps(found))
    flags = [*without_constants(world.flags), "--calibration", str(own), "--eval_interval", "0"]
    return [*flags, "--max_generated_len", "24", "--batch_size", "8", "--checkpoint_interval", "1", "--resume"]


def test_a_run_that_drifts_warns_once(world, train_ppo, calibration, tmp_path, capfd):
    run = tmp_path / "run"
    train_ppo([*drifting(world, calibration, tmp_path), "--max_steps", "7", "--save_dir", str(run)])
    out = capfd.readouterr().out
    assert "note" in out and "(1024, 12)" in out
    said = [line for line in out.splitlines() if line.startswith("warning: ") and "mean of response_length" in line]
    # with 8 responses a step, step 5 is the first that knows enough
    assert len(said) == 1 and said[0].startswith("warning: step 5: the running mean of response_length is 2")
    rows = log_rows(run)
    assert warned_steps(rows) == [5] and rows[4]["train"]["drift/response_length_mean"] > 1
    plot_run(["--run_dir", str(run), "--save_dir", str(tmp_path / "plots")])
    assert (tmp_path / "plots" / "training.png").stat().st_size > 20_000


def warned_steps(rows: list[dict]) -> list[int]:
    return [row["step"] for row in rows if "response_length_mean" in row.get("warnings", {})]


@pytest.mark.slow
def test_what_drift_knows_survives_a_resume(world, train_ppo, calibration, tmp_path, capfd):
    flags = drifting(world, calibration, tmp_path)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    said = []
    for folder, steps in ((whole, 7), (parts, 3), (parts, 6), (parts, 7)):
        train_ppo([*flags, "--max_steps", str(steps), "--save_dir", str(folder)])
        forget_accelerate()
        said.append(capfd.readouterr().out.count("mean of response_length"))
    assert said == [1, 0, 1, 0]
    assert warned_steps(log_rows(whole)) == [5]
    assert untimed(log_rows(whole)) == untimed(log_rows(parts))


@pytest.mark.whole
@pytest.mark.slow
def test_two_processes_watch_the_union_of_their_responses(world, calibration, tmp_path):
    flags = drifting(world, calibration, tmp_path)
    flags += ["--batch_size", "4"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder, steps in ((whole, 6), (parts, 3), (parts, 6)):
        done = run_script([*flags, "--max_steps", str(steps), "--save_dir", str(folder)], processes=2)
        assert done.returncode == 0, done.stderr
    rows = log_rows(whole)
    # 8 responses a step, 4 of each process
    assert warned_steps(rows) == [5]
    assert untimed(rows) == untimed(log_rows(parts))


@pytest.mark.slow
def test_two_processes_calibrate_as_one(sample_flags, calibration, tmp_path):
    words = [*TWO_PROCESSES, "--module", "alarm.calibrate", *sample_flags, "--save_path", str(tmp_path / "two.json")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    one, two = json.loads(calibration.read_text()), json.loads((tmp_path / "two.json").read_text())
    assert one["models"] == two["models"] and one["settings"] == two["settings"]
    for name, described in one["rewards"].items():
        for statistic in ("n", "mean", "std"):
            assert two["rewards"][name][statistic] == pytest.approx(described[statistic], abs=1e-5), name
        assert two["rewards"][name]["percentiles"] == pytest.approx(described["percentiles"], abs=1e-5)
    assert done.stdout.count("wrote ") == 1


# --- the diagnostics of every run ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reward_type", "share"), [("holistic_only", 0.0), ("aspect_only", 1.0), ("weighted_sum", None)]
)
def test_the_log_says_what_part_the_aspects_have(world, train_ppo, tmp_path, reward_type, share):
    run = tmp_path / "run"
    flags = ["--reward_type", reward_type, "--sigmoid_shaping", "--eval_interval", "0", "--max_steps", "2"]
    train_ppo([*world.flags, *flags, "--save_dir", str(run)])
    for row in (line["train"] for line in log_rows(run)):
        assert row["aspect_share"] == share if share is not None else 0 < row["aspect_share"] < 1
        assert {"kl", "response_length", "gate_rate", "length_correlation/holistic_reward"} <= row.keys()
        correlations = {name for name in row if name.startswith("length_correlation/")}
        assert ("length_correlation/factuality_rate" in correlations) == (reward_type != "holistic_only")
        assert all(row[name] is None or -1 <= row[name] <= 1 for name in correlations)
        assert not any(name.startswith("drift/") for name in row)  # nothing to compare with


# --- translation -----------------------------------------------------------------------------------------------------

WORDS = [("cielo", "sky"), ("libro", "book"), ("mar", "sea"), ("perro", "dog"), ("sol", "sun"), ("tren", "train")]


def test_translation_is_calibrated_and_trained_the_same_way(tmp_path, fresh_accelerate, capfd):
    rows = [
        {"translation": {"es": f"El {es} es {k}.", "en": f"The {en} is {k}."}} for k in range(4) for es, en in WORDS
    ]
    pairs, path, run = tmp_path / "pairs.jsonl", tmp_path / "c.json", tmp_path / "run"
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    shared = ["--policy_ckpt", str(CHECKPOINTS / "tiny-mt5"), "--holistic_model", str(CHECKPOINTS / "tiny-ultrarm")]
    shared += ["--grammar_backend", "rules", "--dtype", "float32"]
    limits = ["--max_input_len", "16", "--max_generated_len", "16"]
    calibrate([*shared, *limits, "--task", "mt", "--prompts", str(pairs), "--save_path", str(path)])
    forget_accelerate()
    found = json.loads(path.read_text())["rewards"]
    assert list(found) == ["holistic", "length", "readability", "grammar", "confidence"]
    assert -16 < found["readability"]["mean"] < 40 and 0 <= found["confidence"]["mean"] <= 1  # grades, probabilities

    flags = [*shared, "--train_file", str(pairs), "--dev_file", str(pairs), "--max_len", "16", "--report_to", "none"]
    flags += ["--batch_size", "8", "--mini_batch_size", "4", "--gradient_accumulation_steps", "1", "--max_steps", "2"]
    flags += ["--calibration", str(path), "--threshold_quantile", "0.5", "--eval_interval", "0", "--save_dir", str(run)]
    load_script("MT/train_ppo.py").main(flags)
    args = json.loads((run / "run.json").read_text())
    assert args["readability_mean"] == found["readability"]["mean"]
    assert (args["ultra_mean"], args["ultra_std"]) == (found["holistic"]["mean"], found["holistic"]["std"])
    # normalised by its own numbers
    assert all(abs(row["train"]["readability"]) < 1.5 for row in log_rows(run))
    assert "note" not in capfd.readouterr().out
