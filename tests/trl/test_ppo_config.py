from __future__ import annotations

import subprocess
import sys

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
    ],
)
def test_a_wrong_setting_is_named_in_one_line(wrong, message):
    with pytest.raises(ValueError, match=message) as error:
        PPOConfig(**wrong)
    assert "\n" not in str(error.value)


def test_import_is_light():
    code = (
        "import sys, trl; trl.PPOConfig(); "
        "heavy = {'torch', 'transformers', 'accelerate', 'wandb'} & set(sys.modules); assert not heavy, heavy; "
        "assert 'PPOTrainer' in dir(trl)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
