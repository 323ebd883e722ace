from __future__ import annotations

import importlib
import json
import subprocess
import sys

import pytest

from alarm.common.errors import UserError
from alarm.common.flags import check_model_name
from alarm.training.flags import resolve_policy
from helpers import ROOT, load_script

# spec: the flags and defaults that users of the published scripts know
QA_DEFAULTS = {
    "hierarchical_threshold": 0.6,
    "holistic_reward_weight": 5,
    "w_rel": 1,
    "w_fact": 1,
    "w_comp": 1,
    "lr": 2e-4,
    "max_input_len": 1024,
    "max_generated_len": 200,
    "outer_epoch": 2,
    "batch_size": 8,
    "mini_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "kl_threshold": 0.1,
    "n_ppo_epoch_per_rollout": 4,
    "eval_interval": 10,
    "ultra_mean": -4.896130742253484,
    "ultra_std": 3.0595760500526468,
    "length_mean": 96.78820166320166,
    "relevance_positive_reward": 0.3,
    "relevance_negative_reward": -0.3,
    "factuality_positive_reward": 0.5,
    "factuality_negative_reward": -0.5,
    "completeness_reward_mean": -0.44677690555995353,
    "completeness_reward_std": 8.301160619054132,
    "completeness_reward_bias": 0.0,
    "completeness_reward_scale": 0.3,
    "holistic_model": "openbmb/UltraRM-13b",
    "splitter": "en_core_web_sm",
    "reward_type": "hierarchical",
}


def test_defaults_are_the_published_ones(monkeypatch):
    monkeypatch.chdir(ROOT)
    args = vars(load_script("long-form-QA/train_ppo.py").parse_args(["--save_dir", "x"]))
    assert {name: args[name] for name in QA_DEFAULTS} == QA_DEFAULTS
    assert args["policy_ckpt"] == "long-form-QA/model_ckpts/t5-large-1k-train"
    assert args["train_file"] == "long-form-QA/qa_feedback/train.json"
    assert args["reward_model_dir"] == "long-form-QA/model_ckpts"


PAPER_RUN = (
    "--save_dir ./long-form-QA/model_ckpts/seed42/hierarchical --sigmoid_shaping --reward_type hierarchical "
    "--w_rel 0 --w_fact 1 --w_comp 0 --seed 42 --run_name hierarchical"
).split()


def test_the_papers_command_parses_and_ends_in_one_line_without_its_data(tmp_path):
    parsed = load_script("long-form-QA/train_ppo.py").parse_args(PAPER_RUN)
    assert (parsed.sigmoid_shaping, parsed.w_fact, parsed.run_name) == (True, 1, "hierarchical")
    done = subprocess.run(
        [sys.executable, str(ROOT / "long-form-QA" / "train_ppo.py"), *PAPER_RUN],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=120,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and "train.json" in done.stderr


@pytest.mark.parametrize(
    "flags", [["--reward_type", "best"], ["--dtype", "float16"], ["--lr", "-1"], ["--ultra_std", "nan"], ["--sigmoid"]]
)
def test_unknown_values_are_refused_by_argparse(flags, capsys):
    with pytest.raises(SystemExit) as stopped:
        load_script("long-form-QA/train_ppo.py").parse_args(["--save_dir", "x", *flags])
    assert stopped.value.code == 2
    assert flags[0] in capsys.readouterr().err


SEEDED = {
    "long-form-QA/train_ppo.py": "--save_dir x",
    "long-form-QA/train_sft.py": "--save_dir x",
    "long-form-QA/train_rm.py": "--save_dir x --aspect relevance",
    "MT/train_ppo.py": "--save_dir x",
    "MT/train_sft.py": "--save_dir x",
    "alarm/learning/holistic.py": "--save_dir x --train_file a --dev_file b",
    "alarm/training/calibrate.py": "--task qa --policy_ckpt p --prompts f --save_path s",
    "eval/eval_compare.py": "--generations_dir x --task_type qa",
    "quickstart/run.py": "",
    "quickstart/make_base_models.py": "--save_dir x",
    "quickstart/make_mt_pairs.py": "--save_dir x",
}


@pytest.mark.parametrize("script", SEEDED)
def test_seeds_are_those_that_python_numpy_and_torch_take(script, capsys):
    """Refused where flags are parsed: before any model loads."""
    name = script.removesuffix(".py").replace("/", ".")
    module = importlib.import_module(name) if name.startswith("alarm.") else load_script(script)
    words = SEEDED[script].split()
    for seed in (0, 42, 2**32 - 1):
        assert module.parse_args([*words, "--seed", str(seed)]).seed == seed
    for seed in ("-1", str(2**32), str(2**70), "9" * 5000, "1.5", "seed"):
        with pytest.raises(SystemExit) as stopped:
            module.parse_args([*words, "--seed", seed])
        assert stopped.value.code == 2
        assert "--seed" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["openbmb/UltraRM-13b", "t5-large"])
def test_hub_names_pass(name):
    check_model_name(name, "--holistic_model")


@pytest.mark.parametrize("name", ["./gone", "/gone", "a/b/gone", "tests/gone"])
def test_local_paths_that_are_not_there_are_refused(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError, match="there is no folder"):
        check_model_name(name, "--holistic_model")


def test_a_run_stands_for_its_last_policy(tmp_path):
    (tmp_path / "run.json").write_text(json.dumps({}))
    with pytest.raises(UserError, match="--resume"):
        resolve_policy(str(tmp_path))
    (tmp_path / "policy").mkdir()
    with pytest.raises(UserError, match="holds no config"):
        resolve_policy(str(tmp_path))
    (tmp_path / "policy" / "adapter_config.json").write_text("{}")
    assert resolve_policy(str(tmp_path)) == str((tmp_path / "policy").resolve())
    assert resolve_policy("t5-large") == "t5-large"


def test_an_adapter_whose_base_model_has_moved_is_named_before_anything_loads(tmp_path):
    adapter, base = tmp_path / "adapter", tmp_path / "base"
    adapter.mkdir()
    config = adapter / "adapter_config.json"
    config.write_text(json.dumps({"base_model_name_or_path": str(base)}))
    with pytest.raises(UserError, match="base_model_name_or_path") as error:
        resolve_policy(str(adapter))
    assert all(str(part) in str(error.value) for part in (adapter, base, config)) and "\n" not in str(error.value)
    base.mkdir()
    assert resolve_policy(str(adapter)) == str(adapter.resolve())
    config.write_text(json.dumps({"base_model_name_or_path": "google/mt5-base"}))
    assert resolve_policy(str(adapter)) == str(adapter.resolve())
    config.write_text("{")
    with pytest.raises(UserError, match=r"adapter_config\.json is not JSON"):
        resolve_policy(str(adapter))
