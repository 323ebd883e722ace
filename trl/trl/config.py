"""Settings of PPO, with the field names and defaults of TRL's classic PPOConfig (trl 0.7 to 0.11)."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from numbers import Real
from pathlib import Path
from typing import Any

KL_PENALTIES = ("kl", "abs", "mse", "full")
ADVANTAGES = ("gae", "rloo", "grpo")
TRACKERS = ("none", "tensorboard", "wandb", "trackio")
# fields of GenerationConfig by how the keys and values of earlier tokens are kept. With a static cache transformers
# compiles the step of a token on a GPU unless that is forbidden
CACHES = {
    "dynamic": {},
    "static": {"cache_implementation": "static", "disable_compile": True},
    "compiled": {"cache_implementation": "static"},
}

# Fields that an old script may set and that change nothing here. The others without a use are notes for the tracker.
WITHOUT_EFFECT = ("optimize_cuda_cache", "optimize_device_cache", "dataset_num_proc")
OF_GAE = ("gamma", "lam", "cliprange_value", "vf_coef", "whiten_rewards")  # no effect with rloo and grpo


class _Derived:
    """A field that follows from the others at any time. A value that is given for it is ignored, as in TRL."""

    def __init__(self, value_of: Callable[[PPOConfig], int | None]) -> None:
        self.value_of = value_of

    def __get__(self, config: PPOConfig | None, owner: type) -> int | None:
        return None if config is None else self.value_of(config)

    def __set__(self, config: PPOConfig, value: Any) -> None:
        pass


def _over_processes(size: int, config: PPOConfig) -> int | None:
    return None if config.world_size is None else size * config.world_size


@dataclass
class PPOConfig:
    """Settings of PPOTrainer. Batch sizes count samples (prompt and response) per process.

    Raises ValueError, in one line, for values that cannot work together. Warns once, in one line, of fields that are
    set and have no effect.
    """

    # notes for the tracker, and the tracker itself
    exp_name: str = field(default_factory=lambda: Path(sys.argv[0]).stem)  # a note
    seed: int = 0  # of the data order, sampling, dropout and shuffling
    log_with: str | None = None  # tensorboard, wandb or trackio; None or "none": no tracker
    task_name: str | None = None  # a note
    model_name: str | None = None  # a note
    query_dataset: str | None = None  # a note
    reward_model: str | None = None  # a note
    remove_unused_columns: bool = True  # of a `datasets.Dataset`: those that the model does not take
    tracker_kwargs: dict = field(default_factory=dict)  # tracker -> arguments, such as {"wandb": {"entity": "me"}}
    accelerator_kwargs: dict = field(default_factory=dict)  # to accelerate's Accelerator
    project_kwargs: dict = field(default_factory=dict)  # to accelerate's ProjectConfiguration, such as logging_dir
    tracker_project_name: str = "trl"  # project (wandb, trackio)
    push_to_hub_if_best_kwargs: dict = field(default_factory=dict)  # to `push_to_hub`, such as {"repo_id": "me/model"}

    # data and steps
    steps: int = 20000  # samples of the whole run, for `total_ppo_epochs` alone
    learning_rate: float = 1e-5  # of Adam, where no optimizer is given

    # KL penalty against the reference model
    adap_kl_ctrl: bool = True  # adapt the coefficient to reach `target`; False: keep `init_kl_coef`
    init_kl_coef: float = 0.2  # reward per nat, at the start
    kl_penalty: str = "kl"  # per token: kl (log-ratio), abs, mse (half its square), full (over the vocabulary)
    target: float = 6.0  # nats per response (summed over its tokens), of the adaptive coefficient
    horizon: float = 10000.0  # samples, over all processes, after which the coefficient has moved by up to a fifth

    # advantages and losses
    advantage: str = "gae"  # gae; rloo or grpo: against the other responses to the prompt, without a value head (new)
    samples_per_prompt: int = 1  # responses to each prompt of the dataset, one after the other in `step` (new)
    gamma: float = 1.0  # gae: discount per token
    lam: float = 0.95  # gae: its lambda
    cliprange: float = 0.2  # of the probability ratio around 1
    cliprange_value: float = 0.2  # gae: of the value around its value at rollout, in reward units
    vf_coef: float = 0.1  # gae: weight of the value loss in the total loss

    # batches
    batch_size: int = 256  # samples per `step` and per batch of the dataloader, on each process
    forward_batch_size: int | None = None  # the old name of `mini_batch_size`, which it sets
    mini_batch_size: int = 1  # samples per forward and backward pass, on each process
    gradient_accumulation_steps: int = 1  # mini-batches per optimizer step
    world_size: int | None = None  # processes; PPOTrainer fills it in
    ppo_epochs: int = 4  # passes over the samples of one `step`
    max_grad_norm: float | None = None  # 2-norm to which the gradient is clipped; None: no clipping
    optimize_cuda_cache: bool | None = False  # no effect
    optimize_device_cache: bool = False  # no effect

    # early stop, the best model so far, and the guard
    early_stopping: bool = False  # end the epochs of a `step` once KL(old policy || policy) passes 1.5 * target_kl
    target_kl: float = 1.0  # nats per token
    compare_steps: int = 1  # steps between two looks at the mean score, for `push_to_hub_if_best_kwargs`
    ratio_threshold: float = 10.0  # mean probability ratio above which an optimizer step is left out

    # scores and rewards
    use_score_scaling: bool = False  # divide scores by their standard deviation so far
    use_score_norm: bool = False  # with use_score_scaling: also take off their mean so far
    score_clip: float | None = None  # size of a (scaled) score at which it is clipped; None: no clipping
    whiten_rewards: bool = False  # gae: give the token rewards variance 1 before it, and keep their mean
    gradient_checkpointing: bool = False  # compute layers again for the gradient, which takes time and saves memory

    # PPOTrainer fills these in
    is_encoder_decoder: bool | None = None
    is_peft_model: bool | None = None
    backward_batch_size: int | None = _Derived(lambda c: c.mini_batch_size * c.gradient_accumulation_steps)
    global_backward_batch_size: int | None = _Derived(lambda c: _over_processes(c.backward_batch_size, c))
    global_batch_size: int | None = _Derived(lambda c: _over_processes(c.batch_size, c))
    dataset_num_proc: int | None = None  # no effect

    # not in TRL
    run_name: str = "ppo"  # run (wandb, trackio), or folder inside `logging_dir` (tensorboard)
    logging_dir: str = "runs"  # folder of the tensorboard files

    def __post_init__(self) -> None:
        if self.forward_batch_size is not None:
            self.mini_batch_size, self.forward_batch_size = self.forward_batch_size, None
        self.log_with = None if self.log_with == "none" else self.log_with
        self.check()
        if unused := self._without_effect():
            warnings.warn(f"these settings of PPOConfig have no effect: {', '.join(unused)}", stacklevel=3)

    def check(self) -> None:
        """Raise ValueError for values that cannot work together, such as after a field was changed."""
        whole = ["batch_size", "mini_batch_size", "gradient_accumulation_steps", "ppo_epochs", "compare_steps"]
        for name in [*whole, "samples_per_prompt"]:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, not {value!r}")
        if self.batch_size % self.backward_batch_size:
            raise ValueError(
                f"batch_size ({self.batch_size}) must be a multiple of mini_batch_size * gradient_accumulation_steps "
                f"({self.mini_batch_size} * {self.gradient_accumulation_steps} = {self.backward_batch_size})"
            )
        if self.batch_size % self.samples_per_prompt:
            raise ValueError(
                f"batch_size ({self.batch_size}) must be a multiple of samples_per_prompt ({self.samples_per_prompt})"
            )
        if self.advantage not in ADVANTAGES:
            raise ValueError(f"advantage must be one of {', '.join(ADVANTAGES)}, not {self.advantage!r}")
        if self.kl_penalty not in KL_PENALTIES:
            raise ValueError(f"kl_penalty must be one of {', '.join(KL_PENALTIES)}, not {self.kl_penalty!r}")
        if self.adap_kl_ctrl not in (True, False):
            raise ValueError(f"adap_kl_ctrl must be True or False, not {self.adap_kl_ctrl!r}")
        if self.log_with is not None and self.log_with not in TRACKERS:
            raise ValueError(f"log_with must be one of {', '.join(TRACKERS)}, not {self.log_with!r}")
        positive = [
            "learning_rate",
            "target",
            "horizon",
            "cliprange",
            "cliprange_value",
            "ratio_threshold",
            "target_kl",
            "steps",
        ]
        positive += [name for name in ("max_grad_norm", "score_clip") if getattr(self, name) is not None]
        for name in positive:
            if not (_is_finite(getattr(self, name)) and getattr(self, name) > 0):
                raise ValueError(f"{name} must be above 0 and finite, not {getattr(self, name)!r}")
        for name in ("init_kl_coef", "vf_coef"):
            if not (_is_finite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ValueError(f"{name} must be 0 or more and finite, not {getattr(self, name)!r}")
        for name in ("gamma", "lam"):
            if not (_is_finite(getattr(self, name)) and 0 <= getattr(self, name) <= 1):
                raise ValueError(f"{name} must lie between 0 and 1, not {getattr(self, name)!r}")
        for name in ("tracker_kwargs", "accelerator_kwargs", "project_kwargs", "push_to_hub_if_best_kwargs"):
            if not isinstance(getattr(self, name), dict):
                raise ValueError(f"{name} must be a dict, not {getattr(self, name)!r}")
        if self.push_to_hub_if_best_kwargs and "repo_id" not in self.push_to_hub_if_best_kwargs:
            raise ValueError("push_to_hub_if_best_kwargs must name the repository: add repo_id")

    def _without_effect(self) -> list[str]:
        """The settings that differ from their default and change nothing."""
        names = list(WITHOUT_EFFECT)
        names += [] if self.use_score_scaling else ["use_score_norm"]
        names += [] if self.push_to_hub_if_best_kwargs else ["compare_steps"]
        names += [] if self.advantage == "gae" else OF_GAE
        defaults = {f.name: f.default for f in fields(self)}
        return [name for name in names if getattr(self, name) not in (defaults[name], None)]

    @property
    def total_ppo_epochs(self) -> int:
        """Calls of `step` that `steps` samples make."""
        return math.ceil(self.steps / self.batch_size)

    def to_dict(self) -> dict[str, Any]:
        """All settings, flat: the entries of a dict have the names `field/key`."""
        settings = {f.name: getattr(self, f.name) for f in fields(self)} | {"total_ppo_epochs": self.total_ppo_epochs}
        return flatten_dict(settings)


def flatten_dict(nested: Mapping, sep: str = "/") -> dict:
    """One dictionary out of nested ones, with their keys joined by `sep`. A key that holds `sep` is a ValueError."""
    flat = {}
    for key, value in nested.items():
        if sep in key:
            raise ValueError(f"the key {key!r} holds the separator {sep!r}; choose another separator")
        if isinstance(value, Mapping):
            flat |= {f"{key}{sep}{inner}": leaf for inner, leaf in flatten_dict(value, sep).items()}
        else:
            flat[key] = value
    return flat


def _is_finite(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
