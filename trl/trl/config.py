"""Settings of PPO, with the field names that TRL's classic PPOTrainer made familiar."""

from __future__ import annotations

import math
from dataclasses import dataclass

KL_PENALTIES = ("kl", "abs", "mse", "full")
TRACKERS = ("none", "tensorboard", "wandb", "trackio")


@dataclass
class PPOConfig:
    """Settings of PPOTrainer. Batch sizes count samples (prompt and response) per process.

    Raises ValueError, in one line, for values that cannot work together.
    """

    # data and steps
    batch_size: int = 8  # samples per `step` and per batch of the dataloader, on each process
    mini_batch_size: int = 4  # samples per forward and backward pass, on each process
    gradient_accumulation_steps: int = 2  # mini-batches per optimizer step
    ppo_epochs: int = 4  # passes over the samples of one `step`
    learning_rate: float = 1e-5  # of Adam, where no optimizer is given
    max_grad_norm: float | None = None  # 2-norm to which the gradient is clipped; None: no clipping
    seed: int = 0  # of the data order, sampling, dropout and shuffling

    # KL penalty against the reference model
    kl_penalty: str = "kl"  # per token: kl (log-ratio), abs, mse (half its square), full (over the vocabulary)
    adap_kl_ctrl: bool = True  # adapt the coefficient to reach `target`; False: keep `init_kl_coef`
    init_kl_coef: float = 0.2  # reward per nat, at the start
    target: float = 6.0  # nats per response (summed over its tokens), of the adaptive coefficient
    horizon: float = 10000.0  # samples, over all processes, after which the coefficient has moved by up to a fifth

    # advantages and losses
    gamma: float = 1.0  # discount per token
    lam: float = 0.95  # lambda of generalised advantage estimation
    cliprange: float = 0.2  # of the probability ratio around 1
    cliprange_value: float = 0.2  # of the value around its value at rollout, in reward units
    vf_coef: float = 0.1  # weight of the value loss in the total loss
    ratio_threshold: float = 10.0  # mean probability ratio above which an optimizer step is left out

    # early stop
    early_stopping: bool = False  # end the epochs of a `step` once KL(old policy || policy) passes 1.5 * target_kl
    target_kl: float = 1.0  # nats per token

    # tracking
    log_with: str | None = "tensorboard"  # none, tensorboard, wandb or trackio
    tracker_project_name: str = "trl"  # project (wandb, trackio)
    run_name: str = "ppo"  # run (wandb, trackio), or folder inside `logging_dir` (tensorboard)
    logging_dir: str = "runs"  # folder of the tensorboard files

    def __post_init__(self) -> None:
        for name in ("batch_size", "mini_batch_size", "gradient_accumulation_steps", "ppo_epochs"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, not {value!r}")
        if self.batch_size % self.backward_batch_size:
            raise ValueError(
                f"batch_size ({self.batch_size}) must be a multiple of mini_batch_size * gradient_accumulation_steps "
                f"({self.mini_batch_size} * {self.gradient_accumulation_steps} = {self.backward_batch_size})"
            )
        if self.kl_penalty not in KL_PENALTIES:
            raise ValueError(f"kl_penalty must be one of {', '.join(KL_PENALTIES)}, not {self.kl_penalty!r}")
        self.log_with = self.log_with or "none"
        if self.log_with not in TRACKERS:
            raise ValueError(f"log_with must be one of {', '.join(TRACKERS)}, not {self.log_with!r}")
        positive = [
            "learning_rate",
            "target",
            "horizon",
            "cliprange",
            "cliprange_value",
            "ratio_threshold",
            "target_kl",
        ]
        positive += ["max_grad_norm"] if self.max_grad_norm is not None else []
        for name in positive:
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ValueError(f"{name} must be above 0, not {getattr(self, name)!r}")
        for name in ("init_kl_coef", "vf_coef"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ValueError(f"{name} must be 0 or more, not {getattr(self, name)!r}")
        for name in ("gamma", "lam"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie between 0 and 1, not {getattr(self, name)!r}")

    @property
    def backward_batch_size(self) -> int:
        """Samples per optimizer step, on each process."""
        return self.mini_batch_size * self.gradient_accumulation_steps
