"""Measure rewards on responses that a policy samples, and write their mean, deviation and quantiles to a file.

The constants of train_ppo.py (--ultra_mean, --ultra_std, --length_mean, ...) and its gate belong to one policy and its
reward models. This measures them for yours; `train_ppo.py --calibration FILE` reads them.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from random import Random

from ..api import HOLISTIC_PROBE, Settings, Task
from ..common.console import Column, Section, Table, print_table, say_counts
from ..common.errors import UserError, report_user_errors
from ..common.files import check_new_file, write_json
from ..common.flags import add_holistic_flags, add_policy_flags, check_holistic, parser, positive_int, seed_value
from ..common.identity import hash_file, model_identity
from ..tasks.find import add_task_flag, task_of
from .baselines import check_baseline_flags
from .calibration import KIND, LEVEL, THRESHOLDS, VERSION, Calibration, calibrated_models, describe, normalised
from .flags import DEFAULTS, add_baseline_flags, add_reward_flags, resolve_policy
from .provenance import versions

FEW = 20  # responses; fewer make numbers that another seed would change


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags of the command, and those of the task that --task names. `args.task` is that Task."""
    task = task_of(argv)
    flags = parser(__doc__.split("\n\n")[0])
    add_task_flag(flags)
    add = flags.add_argument
    add(
        "--policy_ckpt",
        required=True,
        help="policy to sample from, as train_ppo.py takes it: the one that training will start from",
    )
    add("--prompts", required=True, help="file of prompts: the training file, or a part of it")
    add("--save_path", required=True, help="JSON file to write")
    add("--overwrite", action="store_true", help="replace the file at --save_path if it exists")
    add("--rewards", help=f"which to measure, with commas between (default: all): {', '.join(rewards_of(task))}")
    add(
        "--holistic_model",
        default=None if task.holistic else DEFAULTS["holistic_model"],
        help="preference reward model: a folder or a hub name",
    )
    add_holistic_flags(flags, several=True)
    add("--limit", type=positive_int, help="use at most so many prompts, sampled with --seed (default: all)")
    add("--max_input_len", type=positive_int, help="prompt tokens (default: as in training)")
    add("--max_generated_len", type=positive_int, help="response tokens (default: as in training)")
    add("--batch_size", type=positive_int, default=32, help="prompts per generation batch")
    add("--rm_max_batch_size", type=positive_int, default=8, help="most texts per forward pass of a reward model")
    add("--dtype", default="bfloat16", choices=("bfloat16", "float32"), help="weights of policy and reward models")
    add("--seed", type=seed_value, default=42, help="seed of the sampling and of --limit")
    add("--samples_per_prompt", type=positive_int, default=1, help="responses to sample for each prompt")
    add_baseline_flags(lambda name, help, **kwargs: add(f"--{name}", help=help, **kwargs))
    add_policy_flags(flags)
    add_reward_flags(flags, task)
    args = flags.parse_args(argv)
    args.task = task if task.configure is None else task.configure(task, args)
    args.max_input_len = args.max_input_len or task.max_input_len
    args.max_generated_len = args.max_generated_len or task.max_generated_len
    return args


def rewards_of(task: Task) -> dict[str, str]:
    """Each reward that can be measured -> what it is."""
    holistic = "the task's own holistic score" if task.holistic else "raw score of the holistic model"
    own = {"holistic": holistic, "length": "response tokens, the end of sequence among them"}
    return own | {aspect.name: aspect.calibrated or f"what {aspect.name} finds" for aspect in task.aspects}


@report_user_errors
def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    task = args.task

    # 1. what can be wrong without loading a model
    from ..common.launch import check_launch, process_state

    check_launch()
    names = chosen_rewards(args)
    check_new_file(args.save_path, "--save_path", args.overwrite)
    policy = resolve_policy(args.policy_ckpt)
    start = policy
    if args.baseline_policy is not None:
        start = resolve_policy(args.baseline_policy, flag="--baseline_policy")
    check_baseline_flags(args, grouped=True)
    if args.holistic_baseline != "none" and "holistic" not in names:
        raise UserError("--holistic_baseline is one of the holistic reward; add holistic to --rewards, or drop it")
    if "holistic" in names:
        check_holistic(args)
    rows = load_prompts(args)
    aspects = [name for name in names if name not in ("holistic", "length")]
    for name in aspects:
        task.aspect(name).check(args)

    # 2. sampled responses, measured as training measures them
    samples, probe = sample_and_measure(args, policy, start, rows, names, aspects)

    # 3. the numbers
    state = process_state()
    whats = {name: rewards_of(task)[name] for name in names}
    if args.holistic_baseline != "none":
        whats["holistic"] += f", less its baseline ({args.holistic_baseline})"
    if args.holistic_baseline == "group":
        samples = of_groups(samples, args.samples_per_prompt)
        whats[LEVEL] = "raw score of the holistic model, without a baseline"
    rewards = describe_samples(samples, whats, normalised(task))
    if not state.is_main_process:
        return
    models = {"policy": policy} | calibrated_models(task, args, names)
    if args.holistic_baseline == "greedy":
        models["baseline_policy"] = start
    content = {
        "kind": KIND,
        "version": VERSION,
        "task": task.name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "rewards": rewards,
        "prompts": {"file": args.prompts, "sha256": hash_file(args.prompts), "used": len(rows), "limit": args.limit},
        "responses_without_text": sum(not sample["generation"].strip() for sample in samples),
        "settings": settings_of(args, aspects),
        "models": {role: model_identity(name) for role, name in models.items()},
        "versions": versions(),
    }
    if probe is not None:
        content[HOLISTIC_PROBE] = probe
    write_json(args.save_path, content)
    report(args, content)


# --- before any model loads ------------------------------------------------------------------------------------------


def chosen_rewards(args: argparse.Namespace) -> list[str]:
    """The rewards to measure, in the task's order. UserError for a name that is none."""
    known = list(rewards_of(args.task))
    wanted = [name.strip() for name in args.rewards.split(",")] if args.rewards is not None else known
    for name in wanted:
        if name not in known:
            raise UserError(f"--rewards: '{name}' is none of {args.task.name}'s {', '.join(known)}")
    return [name for name in known if name in wanted]


def load_prompts(args: argparse.Namespace) -> list[dict]:
    """The chosen rows of the prompts file."""
    if not Path(args.prompts).is_file():
        raise UserError(f"--prompts {args.prompts} is no file; give the file of prompts")
    rows = args.task.load(args.prompts)
    if args.limit is not None and args.limit < len(rows):
        rows = Random(args.seed).sample(rows, args.limit)
    if len(rows) < 2:
        raise UserError(f"{args.prompts} gives 1 prompt, which has no deviation; give {FEW} or more")
    return rows


# --- sampling and scoring --------------------------------------------------------------------------------------------


def sample_and_measure(
    args: argparse.Namespace, policy: str, start: str, rows: list[dict], names: list[str], aspects: list[str]
) -> tuple[list[dict], list[float] | None]:
    """--samples_per_prompt sampled responses to each row. start: whose greedy answers a greedy baseline is.

    -> for each response `index`, `generation`, and the raw score of each named reward (less its measured baseline); the
    probe of the holistic model, if one is measured. The responses to row i have the indices n i to n i + n - 1.
    """
    import torch
    from accelerate import Accelerator
    from accelerate.utils import gather_object

    from trl.generation import SAMPLING

    from ..common.launch import process_state
    from ..common.prompts import uses_chat
    from ..scoring import equal_calls, holistic_of, load_scorer
    from .baselines import with_baselines
    from .evaluate import answered
    from .generate import generator
    from .policy import encode_splits, is_encoder_decoder, load_answering_policy, load_tokenizer
    from .processes import failing_together
    from .rollout import most_batches

    task, state = args.task, process_state()
    tokenizer = load_tokenizer(policy, args)
    chat = uses_chat(tokenizer, not is_encoder_decoder(policy), args.chat_template)
    sources = {"prompts": args.prompts}
    splits = encode_splits(tokenizer, {"prompts": rows}, task, args.max_input_len, sources, chat)
    settings = Settings(args, tokenizer, state.device, getattr(torch, args.dtype))
    scorer = load_scorer(task, aspects, settings, holistic_of(task, args, settings) if "holistic" in names else None)
    try:
        splits = with_baselines(splits, task, args, start, scorer, args.batch_size, args.baseline_file)
        prompts = [prompt for prompt in splits["prompts"] for _ in range(args.samples_per_prompt)]
        accelerator = Accelerator()
        model = load_answering_policy(policy, tokenizer, args)
        generate = generator(model, tokenizer, **SAMPLING, max_new_tokens=args.max_generated_len)
        parts = (tokenizer, scorer, accelerator, args.batch_size, "calibrate", args.seed)
        samples = []
        calls = most_batches(len(prompts), args.batch_size, accelerator.num_processes)
        with failing_together(accelerator), equal_calls(scorer.holistic, calls):
            for batch, rollout, measured in answered(prompts, generate, *parts):
                raw = {"length": measured.lengths} | {name: score.raw for name, score in measured.aspects.items()}
                if measured.holistic is not None:
                    baseline = 0.0 if measured.baseline is None else measured.baseline
                    raw["holistic"] = (measured.holistic.double() - baseline).tolist()
                for k, i in enumerate(batch):
                    sample = {"index": i, "query": prompts[i].query, "generation": rollout.responses[k]}
                    samples.append(sample | {name: values[k] for name, values in raw.items()})
        probe = scorer.holistic.probe() if hasattr(scorer.holistic, "probe") else None
        samples = sorted(gather_object(samples), key=lambda sample: (sample["query"], sample["index"]))
        say_counts(scorer.counts(), accelerator)
    finally:
        scorer.close()
    return samples, probe


# --- the numbers -----------------------------------------------------------------------------------------------------


def of_groups(samples: list[dict], size: int) -> list[dict]:
    """The holistic score less its mean over the responses to the prompt that have text; the score itself as LEVEL."""
    import torch

    from ..rewards import less_group_mean

    raw = torch.tensor([sample["holistic"] for sample in samples], dtype=torch.float64)
    groups = torch.tensor([sample["index"] // size for sample in samples])
    counted = torch.tensor([bool(sample["generation"].strip()) for sample in samples])
    less = less_group_mean(raw, groups, counted).tolist()
    return [
        sample | {"holistic": score, LEVEL: sample["holistic"]} for sample, score in zip(samples, less, strict=True)
    ]


def describe_samples(samples: list[dict], rewards: dict[str, str], is_normalised: set[str]) -> dict[str, dict]:
    """reward -> what it is; samples of `sample_and_measure`. -> reward -> describe() and what it is.

    Training replaces the holistic reward of a response without text, so it has no part in the scale. Raises UserError
    if too few responses have text, if a score is not finite, and if one that training normalises is constant.
    """
    with_text = [sample for sample in samples if sample["generation"].strip()]
    if len(with_text) < 2:
        raise UserError(f"{len(with_text)} of {len(samples)} responses have text; look at the policy")
    found = {}
    for name, what in rewards.items():
        try:
            # an aspect has no score for answers to which it does not apply
            described = describe([sample[name] for sample in with_text if sample[name] is not None])
        except UserError as error:
            raise UserError(f"{name}: {error}") from None
        if name in is_normalised and described["std"] == 0:
            raise UserError(
                f"{name}: all {len(with_text)} responses have the score {described['mean']:.6g}, which cannot be "
                "normalised; look at its model, or leave it out of --rewards"
            )
        found[name] = {"what": what, **described}
    return found


def settings_of(args: argparse.Namespace, aspects: Iterable[str]) -> dict:
    from trl.generation import SAMPLING

    task = args.task
    settings = {"seed": args.seed, "dtype": args.dtype, "batch_size": args.batch_size}
    settings |= {"max_input_len": args.max_input_len, "max_generated_len": args.max_generated_len}
    settings |= {name: getattr(args, name) for name in ("chat_template", "source_language", "target_language")}
    settings |= {"holistic_baseline": args.holistic_baseline, "samples_per_prompt": args.samples_per_prompt}
    settings |= {"sampling": SAMPLING, "holistic_max_tokens": task.holistic_max_tokens}
    settings |= {"holistic_server": args.holistic_server, "holistic_8bit": args.holistic_8bit}
    # numbers are of rewards and of normalisation, on which raw scores do not depend
    own = [*task.flags, *(flag for name in aspects for flag in task.aspect(name).flags)]
    return settings | {flag.name: getattr(args, flag.name) for flag in own if flag.kind is str}


def report(args: argparse.Namespace, content: dict) -> None:
    """Print what was found, and what to look at."""
    rewards = content["rewards"]
    count = next(iter(rewards.values()))["n"]
    scale = [
        ("mean", *(f"{r['mean']:.4g}" for r in rewards.values())),
        ("its standard error", *(f"{r['standard_error']['mean']:.2g}" for r in rewards.values())),
        ("std", *(f"{r['std']:.4g}" for r in rewards.values())),
        ("its standard error", *(f"{r['standard_error']['std']:.2g}" for r in rewards.values())),
    ]
    percentiles = [
        (
            {0: "least", 50: "median", 100: "greatest"}.get(percent, f"{percent}%"),
            *(f"{r['percentiles'][str(percent)]:.4g}" for r in rewards.values()),
        )
        for percent in (0, 1, 5, 10, 25, 50, 75, 90, 95, 99, 100)
    ]
    shares = [
        (z, *(f"{r['share_above'][z]:.1%}" if r["std"] else "-" for r in rewards.values()))
        for z in (f"{threshold:g}" for threshold in THRESHOLDS)
    ]
    sections = [Section(tuple(scale), "scale"), Section(tuple(percentiles), "percentiles")]
    sections.append(Section(tuple(shares), "share of responses with z at least"))
    columns = [Column("score", text=True), *(Column(name, name=True) for name in rewards)]
    title = f"{args.policy_ckpt}: {count} sampled responses"
    print_table(Table(title, "z = (score - mean) / std", tuple(columns), tuple(sections)))

    for name, described in rewards.items():
        if described["std"] == 0:
            print(f"warning: {name} is {described['mean']:.6g} for every response: it tells no two of them apart")
    if count < FEW:
        print(f"warning: {count} responses are few: see the standard errors, and give {FEW} or more")
    if empty := content["responses_without_text"]:
        print(f"responses without text, left out: {empty}")
    calibration = Calibration(args.save_path, args.task, rewards, content["models"], content["settings"])
    if constants := calibration.constants:
        print("--calibration gives: " + " ".join(f"--{name} {value:.6g}" for name, value in constants.items()))
    print(f"wrote {args.save_path}")


if __name__ == "__main__":
    main()
