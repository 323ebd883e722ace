"""The flags of train_ppo.py for a task, and the checks that need no model."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from trl.config import ADVANTAGES, CACHES, KL_PENALTIES, TRACKERS
from trl.paths import check_base

from ..api import Flag, Task
from ..combiners import ALONE, Options
from ..common.errors import UserError
from ..common.files import check_new_file, check_writable, read_json
from ..common.flags import (
    add_flag,
    add_holistic_flags,
    add_policy_flags,
    check_model_name,
    check_names,
    finite_float,
    named_numbers,
    nonnegative_float,
    open_share,
    positive_float,
    positive_int,
    seed_value,
    unit_share,
)
from ..recipe import BASELINES, PLACEMENTS, SHAPINGS, RewardRecipe
from .baselines import check_baseline_flags
from .run import ROLLOUTS, check_trained_base

# defaults of the flags for which a task can have its own (Task.defaults). The constants of PPO are TRL's, which the
# paper kept; gradient clipping is new
DEFAULTS = {
    "policy_ckpt": None,
    "train_file": None,
    "dev_file": None,
    "test_file": None,
    "holistic_model": "openbmb/UltraRM-13b",
    "hierarchical_threshold": 0.0,
    "holistic_reward_weight": 1.0,
    "ultra_mean": 0.0,
    "ultra_std": 1.0,
    "holistic_level": 0.0,
    "length_mean": 1.0,
    "lr": 2e-4,
    "outer_epoch": 1,
    "batch_size": 16,
    "mini_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "n_ppo_epoch_per_rollout": 4,
    "kl_threshold": 0.1,
    "advantage": "gae",
    "samples_per_prompt": 1,
    "init_kl_coef": 0.2,
    "kl_control": "adaptive",
    "kl_penalty": "kl",
    "kl_target": 6.0,
    "kl_horizon": 10000.0,
    "gamma": 1.0,
    "lam": 0.95,
    "cliprange": 0.2,
    "cliprange_value": 0.2,
    "vf_coef": 0.1,
    "ratio_threshold": 10.0,
    "max_grad_norm": 1.0,
    "lora_r": 16,
    "lora_alpha": 32.0,
    "lora_dropout": 0.05,
    "eval_interval": 10,
    "eval_batch_size": 32,
    "rm_max_batch_size": 8,
}


def add_reward_flags(flags: argparse.ArgumentParser, task: Task, used_by: Sequence[str] = ("all", "score")) -> None:
    """Add a task's own flags that these commands use, and for each aspect its weight and its constants."""
    for flag in task.flags:
        if flag.used_by in used_by:
            add_flag(flags, flag)
    for aspect in task.aspects:
        add_flag(flags, Flag(aspect.flag, aspect.weight, f"weight of the {aspect.name} reward"))
        for flag in aspect.flags:
            add_flag(flags, flag)


def add_ppo_flags(flags: argparse.ArgumentParser, task: Task) -> None:
    """Add all flags of train_ppo.py, with the task's own defaults."""
    defaults = DEFAULTS | dict(task.defaults)
    if task.holistic is not None:
        defaults["holistic_model"] = None
    defaults |= {"max_input_len": task.max_input_len, "max_generated_len": task.max_generated_len}

    def add(name: str, help: str, kind: type = str, **kwargs) -> None:
        if name not in task.replaces:
            flags.add_argument(
                f"--{name}", type=kind, default=kwargs.pop("default", defaults.get(name)), help=help, **kwargs
            )

    def switch(name: str, help: str) -> None:
        flags.add_argument(f"--{name}", action="store_true", help=help)

    switch("test", "generate answers to the test file, score them and write them as JSON to --save_dir")
    switch("test_do_sample", "with --test: sample instead of greedy decoding")
    add(
        "num_samples",
        "with --test --test_do_sample: answers to each prompt, written with all parts of their rewards, for "
        "alarm.best_of_n; --batch_size then counts answers",
        positive_int,
        default=1,
    )
    switch("test_on_train", "with --test: answer the train file instead of the test file")
    switch("overwrite", "with --test: replace the file at --save_dir if it exists")
    add(
        "policy_ckpt",
        "policy to start from: a folder (base model, LoRA adapter, or an earlier --save_dir) or a hub name",
    )
    add("train_file", "prompts to train on (JSON list or JSON lines)")
    add("dev_file", "prompts to evaluate on during training")
    add("test_file", "prompts for --test")
    add("save_dir", "where the run is written (a new folder); with --test, the JSON file to write", required=True)
    add("run_name", "name of the run in the tracker", default="alarm")

    add(
        "reward_type",
        "how the holistic reward and the aspect rewards are combined",
        default="hierarchical",
        choices=tuple(task.all_combiners),
    )
    switch("sigmoid_shaping", "the paper's name of --shaping sigmoid")
    add(
        "shaping",
        "of the values of an aspect. sigmoid: positive, so that crossing the gate never lowers the reward, but length "
        "is paid; centred: the sigmoid less that of a unit without fault (default: none)",
        choices=SHAPINGS,
    )
    add(
        "placement",
        "of the values of an aspect on the tokens. spans: as the aspect says; mean_over_spans: there, divided by their "
        "number; last: their sum on the last token; uniform: their sum, spread over all tokens",
        default=PLACEMENTS[0],
        choices=PLACEMENTS,
    )
    add_baseline_flags(add)
    add(
        "holistic_level",
        "with --holistic_baseline group: the raw score that takes the place of a group's mean on the dev file and in "
        "--test, where answers have no group",
        finite_float,
    )
    add_combiner_flags(add, switch)
    switch("length_reward", "replace the aspect rewards by response length / --length_mean (an ablation)")
    add("hierarchical_threshold", "z-normalised holistic reward from which aspect rewards count", finite_float)
    add("holistic_reward_weight", "weight of the holistic reward", finite_float)
    add("holistic_model", "preference reward model: a folder or a hub name")
    add_holistic_flags(flags, several=True)
    add("ultra_mean", "mean of the holistic model's raw scores", finite_float)
    add("ultra_std", "standard deviation of the holistic model's raw scores", positive_float)
    add("length_mean", "mean response length in tokens, for --length_reward", positive_float)
    add(
        "calibration",
        "file of alarm.calibrate: its numbers take the place of --ultra_mean, --ultra_std, --length_mean and of an "
        "aspect's mean and standard deviation; training warns when rewards drift away from them",
    )
    add(
        "threshold_quantile",
        "with --calibration, instead of --hierarchical_threshold: this quantile of the calibrated holistic rewards "
        "(0.5: half of them reach the gate)",
        open_share,
    )

    add("lr", "learning rate", positive_float)
    add("outer_epoch", "passes over the train file", positive_int)
    add("max_input_len", "prompt tokens; longer prompts are cut", positive_int)
    add("max_generated_len", "answer tokens", positive_int)
    add("batch_size", "prompts per process and PPO step; with --test, per generation batch", positive_int)
    add("mini_batch_size", "responses per forward and backward pass", positive_int)
    add("gradient_accumulation_steps", "mini-batches per optimizer step", positive_int)
    add("lora_r", "rank of fresh LoRA adapters", positive_int)
    add("lora_alpha", "LoRA adapters are multiplied by --lora_alpha / --lora_r", positive_float)
    add("lora_dropout", "share of their inputs that LoRA adapters drop in updates", unit_share)
    switch("no_lora", "train all weights of a policy that has no adapter, instead of fresh LoRA adapters")
    add(
        "lora_targets",
        "layers that get fresh LoRA adapters: ends of module names, separated by commas (default: PEFT's for this type "
        "of model, or all projections of attention)",
    )
    add("n_ppo_epoch_per_rollout", "passes over each batch of rollouts", positive_int)
    add(
        "kl_threshold",
        "the passes over a batch end early when KL from the rollout policy exceeds 1.5 times this",
        positive_float,
    )
    add("advantage", "gae: by a value head; rloo, grpo: against the other answers to a prompt", choices=ADVANTAGES)
    add("samples_per_prompt", "answers to each prompt of a PPO step; --batch_size counts answers", positive_int)
    add("init_kl_coef", "reward per nat of KL from the start policy, at the start", nonnegative_float)
    add("kl_control", "adaptive: move the coefficient until KL meets --kl_target", choices=("adaptive", "fixed"))
    add("kl_target", "with --kl_control adaptive: nats of KL per response to reach", positive_float)
    add("kl_horizon", "with --kl_control adaptive: samples in which the coefficient moves by a fifth", positive_float)
    add("kl_penalty", "how the KL of a token is estimated", choices=KL_PENALTIES)
    add("gamma", "discount per token", unit_share)
    add("lam", "lambda of generalised advantage estimation", unit_share)
    add("cliprange", "clip of the probability ratio around 1", positive_float)
    add("cliprange_value", "clip of the value around its value at rollout", positive_float)
    add("vf_coef", "weight of the value loss", nonnegative_float)
    add("ratio_threshold", "an optimizer step is left out if the mean probability ratio passes this", positive_float)
    add("max_grad_norm", "2-norm to which gradients are clipped (0: no clipping)", nonnegative_float)
    add("eval_interval", "PPO steps between evaluations on the dev file (0: none)", int)
    add("eval_batch_size", "prompts per generation batch on the dev file", positive_int)
    add(
        "rollout_interval",
        f"PPO steps between those whose answers go to {ROLLOUTS}, the first step and the last among them; answers to "
        "dev prompts go there at each evaluation (0: no such file)",
        int,
        default=1,
    )
    add(
        "rollouts_per_step",
        f"answers of a step in {ROLLOUTS}, in whole groups of --samples_per_prompt if one fits; as many of the first "
        "dev prompts",
        positive_int,
        default=8,
    )
    add(
        "max_rollouts",
        f"rows of {ROLLOUTS}: so many of training and so many of the dev file; when they are reached, those of every "
        "second step are removed, and from then on half as many are added",
        positive_int,
        default=4000,
    )
    add("rm_max_batch_size", "most texts per forward pass of a reward model", positive_int)
    add("max_steps", "stop after this many PPO steps, instead of the full duration", positive_int)

    add(
        "dtype",
        "weights of policy and reward models; LoRA adapters and the value head stay float32",
        default="bfloat16",
        choices=("bfloat16", "float32"),
    )
    add(
        "generation_cache",
        "where answers keep what was computed for earlier tokens: dynamic grows; static has its full length from the "
        "start; compiled is static, and the step of a token is compiled (a GPU only). No speed was measured: "
        "`make gpu-check` does",
        default=next(iter(CACHES)),
        choices=tuple(CACHES),
    )
    add("seed", "seed of data order, initialisation and sampling", seed_value, default=42)
    add(
        "report_to",
        "tracker of the training curves; a run that is resumed is one run in tensorboard, a new one in the others",
        default="tensorboard",
        choices=TRACKERS,
    )
    switch("resume", "continue the run in --save_dir from its last checkpoint (starts it if there is none)")
    switch(
        "resume_anyway",
        "with --resume: go on although data or models have changed since the run was started; run.json keeps a record",
    )
    add("checkpoint_interval", "PPO steps between checkpoints (0: only at the end)", int, default=10)
    add("keep_checkpoints", "how many of the newest checkpoints to keep", positive_int, default=2)
    add_policy_flags(flags)
    add_reward_flags(flags, task, ("all", "score", "ppo"))


def add_baseline_flags(add: Callable) -> None:
    """Add what a raw holistic score is compared with; `baselines` measures it."""
    add(
        "holistic_baseline",
        "subtracted from a raw holistic score before it is normalised: the score of the start policy's greedy answer "
        "to the prompt, of the reference answer, or the mean of the prompt's group",
        default=BASELINES[0],
        choices=BASELINES,
    )
    add("baseline_policy", "with --holistic_baseline greedy: the policy that answers (default: --policy_ckpt)")
    add(
        "baseline_file",
        "with --holistic_baseline greedy or reference: file that keeps the measured scores, for several runs "
        "(default: baselines.json in the folder of a training run; without training none is kept)",
    )


def add_combiner_flags(add: Callable, switch: Callable) -> None:
    """Add the constants of the combiners, with the defaults of `combiners.Options`."""
    own = Options()
    for name, kind, help in (
        ("gate_temperature", positive_float, "soft_gate: tau, the width of the gate"),
        ("references", named_numbers, "log_sigmoid: scores of half a reward, as holistic=1,ASPECT=0 (default: 0 each)"),
        ("variance_cost", nonnegative_float, "uncertainty: what the variance of the parts costs"),
        ("failed_range", unit_share, "stratified: rewards before the gate lie within this of 0"),
        ("passed_range", unit_share, "stratified: rewards behind the gate lie within this of 1"),
        ("targets", named_numbers, "lagrangian: what each aspect is to reach, as ASPECT=0.5,... (default: 0 each)"),
        ("multiplier_lr", positive_float, "lagrangian: learning rate of the multipliers"),
        ("decoupled_conflict", unit_share, "decoupled: leave out answers whose parts agree less than this (GD2PO)"),
    ):
        add(name, help, kind, default=getattr(own, name))
    switch("decoupled_raw", "decoupled: do not whiten the advantages over the batch (MO-GRPO instead of GDPO)")
    switch("decoupled_cv", "decoupled: weights times the parts' coefficients of variation (SAW)")


def parse_ppo_flags(flags: argparse.ArgumentParser, argv: list[str] | None, task: Task) -> argparse.Namespace:
    """Parse, with the numbers of --calibration and --threshold_quantile instead of the defaults.

    Raises UserError for a file that cannot be used, and if a number of it is also given by its flag.
    """
    args = _parse(flags, argv, task)
    if args.sigmoid_shaping and args.shaping not in (None, "sigmoid"):
        raise UserError(f"--sigmoid_shaping is --shaping sigmoid; drop it or --shaping {args.shaping}")
    args.shaping = "sigmoid" if args.sigmoid_shaping else args.shaping or "none"
    # parsed again over blanks, which argparse does not fill with defaults: what is no blank now was given
    blanks = argparse.Namespace(**dict.fromkeys(vars(args)))
    given = {name for name, value in vars(flags.parse_args(argv, blanks)).items() if value is not None}
    if args.calibration is None:
        if args.threshold_quantile is not None:
            raise UserError("--threshold_quantile needs --calibration; write a file with `python -m alarm.calibrate`")
        needed = {"ultra_mean", "ultra_std"} | ({"holistic_level"} if args.holistic_baseline == "group" else set())
        if args.holistic_baseline != "none" and not needed <= given:
            raise UserError(
                f"--holistic_baseline {args.holistic_baseline} changes the scale of the holistic score; give a "
                "--calibration made with the same --holistic_baseline, or "
                + ", ".join(f"--{name}" for name in sorted(needed))
            )
        return args
    from .calibration import read_calibration

    calibration = read_calibration(args.calibration, task)
    for name, value in calibration.constants.items():
        if name in given:
            raise UserError(f"--{name} and --calibration {args.calibration} both say what {name} is; drop one of them")
        setattr(args, name, value)
    if args.threshold_quantile is not None:
        if "hierarchical_threshold" in given:
            raise UserError("--threshold_quantile and --hierarchical_threshold both set the gate; drop one of them")
        args.hierarchical_threshold = calibration.threshold(args.threshold_quantile)
    return args


def _parse(flags: argparse.ArgumentParser, argv: list[str] | None, task: Task) -> argparse.Namespace:
    """`parse_args`, with a line of its own for the weight of an aspect that the task does not have."""
    args, unknown = flags.parse_known_args(argv)
    for word in unknown:
        if word.startswith("--w_"):
            known = ", ".join(f"--{aspect.flag}" for aspect in task.aspects)
            raise UserError(
                f"{word.split('=')[0]}: {task.source or task.name} has no such aspect; its weights are {known}"
            )
    if unknown:
        flags.error(f"unrecognized arguments: {' '.join(unknown)}")
    return args


def check_weights(args: argparse.Namespace, task: Task) -> None:
    """Raise UserError if a combiner has nothing to combine, or if a constant names no aspect."""
    names = {aspect.name for aspect in task.aspects}
    for flag, known in {"references": names | {"holistic"}, "targets": names}.items():
        check_names(getattr(args, flag), known, f"--{flag}")
    if RewardRecipe.from_flags(args, task).pays_nothing:
        raise UserError(f"--reward_type {args.reward_type} with weights of 0 pays nothing; give an aspect a weight")


def check_ppo_flags(args: argparse.Namespace, task: Task) -> None:
    """Raise UserError for flags that contradict each other. Costs nothing."""
    step = args.mini_batch_size * args.gradient_accumulation_steps
    if not args.test and args.batch_size % step:
        raise UserError(
            f"--batch_size {args.batch_size} is not a multiple of --mini_batch_size x --gradient_accumulation_steps "
            f"= {step}; change one of the three"
        )
    if args.advantage != "gae" and args.samples_per_prompt < 2:
        raise UserError(
            f"--advantage {args.advantage} compares answers to one prompt; give --samples_per_prompt 2 or more"
        )
    if not args.test and args.samples_per_prompt < 2 and args.reward_type in ALONE:
        raise UserError(
            f"--reward_type {args.reward_type} compares answers to one prompt; give --samples_per_prompt 2 or more"
        )
    check_baseline_flags(args, grouped=not args.test)
    if args.test and args.holistic_baseline == "greedy" and args.baseline_policy is None:
        raise UserError(
            "--holistic_baseline greedy with --test needs --baseline_policy: the policy that training started from"
        )
    if args.reward_type == "decoupled" and args.advantage == "grpo":
        raise UserError(
            "--reward_type decoupled divides by the deviation of each group, and --advantage grpo would do so again; "
            "give --advantage rloo"
        )
    check_weights(args, task)
    if not args.test and args.batch_size % args.samples_per_prompt:
        raise UserError(
            f"--batch_size {args.batch_size} is not a multiple of --samples_per_prompt {args.samples_per_prompt}; "
            "change one of the two"
        )
    for name in ("eval_interval", "checkpoint_interval", "rollout_interval"):
        if getattr(args, name) < 0:
            raise UserError(f"--{name} is negative; give 0 or a number of steps")
    if args.max_rollouts < args.rollouts_per_step:
        raise UserError(
            f"--max_rollouts {args.max_rollouts} is less than --rollouts_per_step {args.rollouts_per_step}; change one "
            "of the two"
        )
    for name in ("test_do_sample", "test_on_train", "overwrite"):
        if getattr(args, name) and not args.test:
            raise UserError(f"--{name} goes with --test; add --test or drop it")
    if args.num_samples > 1 and not args.test:
        raise UserError(
            "--num_samples goes with --test (in training it is --samples_per_prompt); add --test or drop it"
        )
    if args.num_samples > 1 and not args.test_do_sample:
        raise UserError(
            f"--num_samples {args.num_samples} without --test_do_sample would write one greedy answer "
            f"{args.num_samples} times; add --test_do_sample"
        )
    if args.resume_anyway and not args.resume:
        raise UserError("--resume_anyway goes with --resume; add --resume or drop it")
    check_writable(args.save_dir, "--save_dir")
    if args.test:
        if args.resume:
            raise UserError("--resume goes with training; drop it or --test")
        target = Path(args.save_dir)
        if target.suffix != ".json":
            raise UserError(f"with --test, --save_dir is the JSON file to write; {target} does not end in .json")
        if target.name.endswith(".meta.json"):
            raise UserError(f"--save_dir {target} would be a sidecar; give a name that does not end in .meta.json")
        check_new_file(target, "--save_dir", args.overwrite)


def resolve_policy(name: str, anyway: bool = False, flag: str = "--policy_ckpt") -> str:
    """The folder or hub name to load: an earlier run's --save_dir stands for the policy that it ended with.

    Raises UserError for a local path that is neither a model, an adapter nor a run, and for a run whose base model has
    changed since (with `anyway` that is a printed warning).
    """
    path = Path(name)
    if (path / "run.json").is_file():
        if not (path / "policy").is_dir():
            best = f", or give {path / 'best'}" if (path / "best").is_dir() else ""
            raise UserError(f"{path} holds a run that has not ended; finish it with --resume{best}")
        name = str(path / "policy")
    check_model_name(name, flag, ("config.json", "adapter_config.json"))
    if not Path(name).is_dir():
        return name
    _check_adapter(Path(name), flag)
    # adapters remember the path of their base model: a relative one would mean another folder elsewhere
    policy = Path(name).resolve()
    check_trained_base(policy, anyway)
    return str(policy)


def _check_adapter(folder: Path, flag: str) -> None:
    """Raise UserError if `folder` holds an adapter whose base model cannot be found."""
    path = folder / "adapter_config.json"
    if not path.is_file():
        return
    config = read_json(path)
    base = config.get("base_model_name_or_path") if isinstance(config, dict) else None
    try:
        check_base(folder, base if isinstance(base, str) else "")
    except ValueError as error:
        raise UserError(f"{flag}: {error}") from error
