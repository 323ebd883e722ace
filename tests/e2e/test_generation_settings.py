"""Rollouts, dev evaluation, --test and calibration follow the weights, whatever generation_config.json asks for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from e2e.test_train_ppo import log_rows, policy_weights, untimed

from alarm.training.calibrate import main as calibrate
from trl.config import CACHES

BENT = {
    "do_sample": True,
    "temperature": 0.1,
    "top_p": 0.2,
    "min_p": 0.5,
    "typical_p": 0.3,
    "epsilon_cutoff": 0.2,
    "repetition_penalty": 3.0,
    "no_repeat_ngram_size": 1,
    "suppress_tokens": list(range(20, 200)),
    "num_beams": 3,
    "length_penalty": -2.0,
    "exponential_decay_length_penalty": [2, 5.0],
    "forced_bos_token_id": 9,
    "forced_eos_token_id": 1,
    "decoder_start_token_id": 7,
    "max_time": 1e-9,
}


@pytest.fixture(scope="session")
def bent_policy(world) -> Path:
    """The world's policy, and a file beside its weights that asks for much else."""
    folder = shutil.copytree(world.folder / "policy", world.folder / "bent_policy")
    file = folder / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | BENT))
    return folder


def check_named_once(said: str) -> None:
    (line,) = [line for line in said.splitlines() if "bent_policy are not used" in line]
    assert all(f"{name}=" in line for name in BENT)


def test_training_and_its_dev_evaluation(world, bent_policy, train_ppo, tmp_path, capfd):
    flags = [*world.flags, "--max_steps", "2", "--eval_interval", "1", "--checkpoint_interval", "0"]
    train_ppo([*flags, "--save_dir", str(tmp_path / "plain")])
    assert "are not used" not in capfd.readouterr().out
    train_ppo([*flags, "--save_dir", str(tmp_path / "bent"), "--policy_ckpt", str(bent_policy)])
    check_named_once(capfd.readouterr().out)
    plain, bent = log_rows(tmp_path / "plain"), log_rows(tmp_path / "bent")
    assert sum("dev" in row for row in plain) == 3 and untimed(plain) == untimed(bent)
    before, after = policy_weights(tmp_path / "plain" / "policy"), policy_weights(tmp_path / "bent" / "policy")
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("how", [[], ["--test_do_sample"]], ids=["greedy", "sampled"])
def test_a_test(world, bent_policy, train_ppo, tmp_path, capfd, how):
    answers = []
    for name, flags in {"plain": [], "bent": ["--policy_ckpt", str(bent_policy)]}.items():
        train_ppo([*world.flags, "--test", *how, *flags, "--save_dir", str(tmp_path / f"{name}.json")])
        answers.append(json.loads((tmp_path / f"{name}.json").read_text()))
    assert answers[0] == answers[1] and any(row["response_length"] > 1 for row in answers[0])
    check_named_once(capfd.readouterr().out)


def test_a_calibration(sample_flags, calibration, bent_policy, tmp_path, fresh_accelerate, capfd):
    path = tmp_path / "calibration.json"
    calibrate([*sample_flags, "--policy_ckpt", str(bent_policy), "--save_path", str(path)])
    plain, bent = json.loads(calibration.read_text()), json.loads(path.read_text())
    assert plain["rewards"] == bent["rewards"]
    check_named_once(capfd.readouterr().out)


def test_another_cache(world, train_ppo, tmp_path):
    """Greedy answers stay, and the sampled ones of a T5 come from transformers, which draws otherwise."""
    flags = [*world.flags, "--max_steps", "1", "--eval_interval", "1", "--checkpoint_interval", "0"]
    logs = []
    for cache in ("dynamic", "static"):
        train_ppo([*flags, "--generation_cache", cache, "--save_dir", str(tmp_path / cache)])
        logs.append(untimed(log_rows(tmp_path / cache)))
    (before, drawn, *_), (same, other, *_) = logs
    assert "dev" in before and before == same
    assert "train" in drawn and drawn != other


def test_a_test_with_another_cache(world, train_ppo, tmp_path):
    answers, settings = [], []
    for cache in ("dynamic", "static"):
        file = tmp_path / f"{cache}.json"
        train_ppo([*world.flags, "--test", "--generation_cache", cache, "--save_dir", str(file)])
        answers.append(json.loads(file.read_text()))
        settings.append(json.loads(file.with_suffix(".meta.json").read_text())["settings"]["sampling"])
    assert answers[0] == answers[1] and any(row["response_length"] > 1 for row in answers[0])
    assert settings[1] == settings[0] | CACHES["static"] != settings[0]


def test_no_gpu_compiles_nothing(world, train_ppo, tmp_path, capfd):
    with pytest.raises(SystemExit) as stopped:
        train_ppo([*world.flags, "--generation_cache", "compiled", "--save_dir", str(tmp_path / "run")])
    assert stopped.value.code == 2 and "--generation_cache" in capfd.readouterr().err
