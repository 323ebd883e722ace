"""A run that goes wrong says so on its last screen."""

from __future__ import annotations

from alarm import train_ppo
from helpers import FIXTURES, ROOT


def test_a_policy_that_ran_away_is_on_the_last_screen(tmp_path, fresh_accelerate, capfd):
    data = ROOT / "examples" / "data"
    flags = {
        "task": ROOT / "examples" / "headlines.py", "policy_ckpt": FIXTURES / "golden" / "checkpoints" / "tiny-t5",
        "train_file": data / "train.json", "dev_file": data / "dev.json", "dtype": "float32", "report_to": "none",
        "batch_size": 8, "mini_batch_size": 4, "max_steps": 16, "eval_interval": 0, "w_brevity": 1,
        # nothing holds the policy back
        "lr": 0.02, "init_kl_coef": 0, "kl_control": "fixed", "kl_threshold": 1000, "ratio_threshold": 1e9,
        "save_dir": tmp_path / "run",
    }  # fmt: skip
    train_ppo.main([*(word for name, value in flags.items() for word in (f"--{name}", str(value))), "--no_lora"])
    last = capfd.readouterr().out.partition("wrote ")[2]
    assert "collapsed" in last and "nats a token" in last and "Try: " in last
