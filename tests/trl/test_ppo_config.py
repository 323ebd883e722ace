from __future__ import annotations

import dataclasses
import math
import re
import subprocess
import sys
import warnings

import pytest

from trl import PPOConfig


def test_defaults_are_the_published_ones():
    config = PPOConfig()
    assert (config.adap_kl_ctrl, config.init_kl_coef, config.target, config.horizon) == (True, 0.2, 6, 10000)
    assert (config.gamma, config.lam, config.cliprange, config.cliprange_value) == (1, 0.95, 0.2, 0.2)
    assert (config.vf_coef, config.ratio_threshold, config.kl_penalty, config.ppo_epochs) == (0.1, 10, "kl", 4)
    assert (config.batch_size, config.mini_batch_size, config.gradient_accumulation_steps) == (256, 1, 1)
    assert (config.learning_rate, config.target_kl, config.seed, config.steps) == (1e-5, 1, 0, 20000)
    assert config.log_with is None and config.max_grad_norm is None and config.early_stopping is False


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"batch_size": 12, "mini_batch_size": 4, "gradient_accumulation_steps": 2}, r"batch_size \(12\).*4 \* 2 = 8"),
        ({"batch_size": 0}, "batch_size must be a whole number"),
        ({"ppo_epochs": 2.5}, "ppo_epochs must be a whole number"),
        ({"kl_penalty": "k3"}, "kl_penalty must be one of kl, abs, mse, full"),
        ({"log_with": "mlflow"}, "log_with must be one of"),
        ({"learning_rate": float("nan")}, "learning_rate must be above 0"),
        ({"init_kl_coef": -0.1}, "init_kl_coef must be 0 or more"),
        ({"gamma": 1.5}, "gamma must lie between 0 and 1"),
        ({"init_kl_coef": None}, "init_kl_coef must be 0 or more.*, not None"),
        ({"score_clip": 0}, "score_clip must be above 0"),
        ({"compare_steps": 0}, "compare_steps must be a whole number"),
        ({"adap_kl_ctrl": "fixed"}, "adap_kl_ctrl must be True or False"),
        ({"adap_kl_ctrl": None}, "adap_kl_ctrl must be True or False"),
        ({"samples_per_prompt": 0}, "samples_per_prompt must be a whole number"),
        ({"batch_size": 6, "samples_per_prompt": 4}, r"batch_size \(6\).*samples_per_prompt \(4\)"),
        ({"advantage": None}, "advantage must be one of gae, rloo, grpo, not None"),
        ({"tracker_kwargs": "wandb"}, "tracker_kwargs must be a dict"),
        ({"push_to_hub_if_best_kwargs": {"private": True}}, "add repo_id"),
    ],
)
def test_a_wrong_setting_is_named_in_one_line(wrong, message):
    with pytest.raises(ValueError, match=message) as error:
        PPOConfig(**wrong)
    assert "\n" not in str(error.value)


# constants that scripts have as flags, each with its range
ABOVE_0 = ("target", "horizon", "cliprange", "cliprange_value", "ratio_threshold", "target_kl", "max_grad_norm")
FROM_0 = ("init_kl_coef", "vf_coef")
FROM_0_TO_1 = ("gamma", "lam")


@pytest.mark.parametrize("name", [*ABOVE_0, *FROM_0, *FROM_0_TO_1])
def test_the_range_of_each_constant(name):
    outside = [-0.5, math.nan, math.inf, -math.inf, "0.5", True, None]
    outside += [0] if name in ABOVE_0 else []
    outside += [1.5] if name in FROM_0_TO_1 else []
    for value in outside:
        if name == "max_grad_norm" and value is None:
            continue
        with pytest.raises(ValueError, match=f"^{name} must .*{re.escape(repr(value))}") as error:
            PPOConfig(**{name: value})
        assert "\n" not in str(error.value)
    for value in [0.5, *([] if name in ABOVE_0 else [0]), 1 if name in FROM_0_TO_1 else 7.5]:
        assert getattr(PPOConfig(**{name: value}), name) == value


def test_constants_of_gae_have_no_effect_without_a_value_head():
    of_gae = {"gamma": 0.5, "lam": 0.5, "cliprange_value": 0.5, "vf_coef": 0.5, "whiten_rewards": True}
    for advantage in ("rloo", "grpo"):
        with pytest.warns(UserWarning) as caught:
            PPOConfig(advantage=advantage, cliprange=0.5, **of_gae)
        named = str(caught[0].message).partition(": ")[2].split(", ")
        assert len(caught) == 1 and sorted(named) == sorted(of_gae)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PPOConfig(advantage="gae", **of_gae)
        PPOConfig(advantage="rloo")


def test_every_field_of_trl_is_accepted():
    """In the order of TRL 0.7, with its defaults; a field that follows from others is ignored if it is given."""
    defaults = {
        "seed": 0,
        "log_with": None,
        "task_name": None,
        "model_name": None,
        "query_dataset": None,
        "reward_model": None,
        "remove_unused_columns": True,
        "tracker_kwargs": {},
        "accelerator_kwargs": {},
        "project_kwargs": {},
        "tracker_project_name": "trl",
        "push_to_hub_if_best_kwargs": {},
        "steps": 20000,
        "learning_rate": 1e-5,
        "adap_kl_ctrl": True,
        "init_kl_coef": 0.2,
        "kl_penalty": "kl",
        "target": 6,
        "horizon": 10000,
        "gamma": 1,
        "lam": 0.95,
        "cliprange": 0.2,
        "cliprange_value": 0.2,
        "vf_coef": 0.1,
        "batch_size": 256,
        "forward_batch_size": None,
        "mini_batch_size": 1,
        "gradient_accumulation_steps": 1,
        "world_size": None,
        "ppo_epochs": 4,
        "max_grad_norm": None,
        "optimize_cuda_cache": False,
        "optimize_device_cache": False,
        "early_stopping": False,
        "target_kl": 1,
        "compare_steps": 1,
        "ratio_threshold": 10.0,
        "use_score_scaling": False,
        "use_score_norm": False,
        "score_clip": None,
        "whiten_rewards": False,
        "is_encoder_decoder": None,
        "is_peft_model": None,
        "backward_batch_size": 1,
        "global_backward_batch_size": None,
        "global_batch_size": None,
    }
    config = PPOConfig()
    assert {name: getattr(config, name) for name in defaults} == defaults
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert PPOConfig(**defaults) == config
    assert isinstance(config.exp_name, str)
    with pytest.raises(TypeError):
        PPOConfig(batchsize=8)


def test_what_follows_from_other_fields():
    config = PPOConfig(steps=1000, batch_size=64, forward_batch_size=8, gradient_accumulation_steps=2)
    assert (config.mini_batch_size, config.backward_batch_size, config.total_ppo_epochs) == (8, 16, 16)
    config.mini_batch_size = 4
    assert config.backward_batch_size == 8 and config.global_batch_size is None
    config.world_size = 3
    assert (config.global_batch_size, config.global_backward_batch_size) == (192, 24)
    assert dataclasses.replace(config, mini_batch_size=1).backward_batch_size == 2
    config = PPOConfig(log_with="none", tracker_kwargs={"wandb": {"name": "mine"}})
    flat = config.to_dict()
    assert config.log_with is None and flat["tracker_kwargs/wandb/name"] == "mine"
    assert (flat["backward_batch_size"], flat["total_ppo_epochs"]) == (1, 79)


def test_settings_without_effect_are_named_once():
    with pytest.warns(UserWarning) as caught:
        PPOConfig(optimize_cuda_cache=True, use_score_norm=True, compare_steps=5, dataset_num_proc=2, task_name="a")
    (warning,) = caught
    named = str(warning.message).partition(": ")[2].split(", ")
    assert sorted(named) == ["compare_steps", "dataset_num_proc", "optimize_cuda_cache", "use_score_norm"]
    assert warning.filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PPOConfig(use_score_norm=True, use_score_scaling=True, optimize_cuda_cache=None)
        PPOConfig(compare_steps=5, push_to_hub_if_best_kwargs={"repo_id": "me/model"})


def test_import_is_light():
    code = (
        "import sys, trl; trl.PPOConfig(); "
        "heavy = {'torch', 'transformers', 'accelerate', 'wandb'} & set(sys.modules); assert not heavy, heavy; "
        "assert 'PPOTrainer' in dir(trl)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
