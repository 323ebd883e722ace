"""The one loop of both tasks: score a rollout, train on it, evaluate, keep the run resumable."""

from __future__ import annotations

import math
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from tqdm.auto import tqdm

from trl.generation import GREEDY, SAMPLING

from ..common.console import say_counts, show
from ..common.errors import ServiceError, UserError
from ..common.files import write_json
from ..rewards import RewardRecipe, combine
from ..scoring import Scorer, measure, metrics_of
from ..types import Measured, Payment, Rollout
from .diagnostics import Scale, aspect_share, pearson, update_drift
from .generate import Generate, generator
from .provenance import sidecar
from .rollout import Prompt, deal_batches, resample_empty, sample_rollout
from .run import Run, finite

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from trl import PPOTrainer
    from trl.models import PreTrainedModelWrapper

MAX_SKIPPED_IN_A_ROW = 3


# --- evaluation: the dev file during training and --test are the same thing ------------------------------------------


def evaluate(
    prompts: list[Prompt],
    generate: Generate,
    tokenizer: PreTrainedTokenizerBase,
    scorer: Scorer,
    recipe: RewardRecipe,
    accelerator: Accelerator,
    batch_size: int,
    title: str,
    sampling_seed: int | None = None,
) -> list[dict]:
    """Answer and score every prompt once. Returns one record a prompt, sorted by query, on every process.

    Each batch is the same, with the same random state where `sampling_seed` is given, whatever the number of
    processes, and so are the records.
    """
    records = []
    with failing_together(accelerator):
        for batch, rollout, measured in answered(
            prompts, generate, tokenizer, scorer, accelerator, batch_size, title, sampling_seed
        ):
            payment = combine(measured, recipe)
            metrics = metrics_of(measured, payment)
            for k, i in enumerate(batch):
                record = {"index": i, "query": prompts[i].query, "generation": rollout.responses[k]}
                record |= {name: values[k] for name, values in metrics.items()}
                record["total_reward"] = payment.rewards[k].sum().item()
                records.append(record)
    records = gather_object(records)
    return sorted(records, key=lambda record: (record["query"], record["index"]))


def answered(
    prompts: list[Prompt],
    generate: Generate,
    tokenizer: PreTrainedTokenizerBase,
    scorer: Scorer,
    accelerator: Accelerator,
    batch_size: int,
    title: str,
    sampling_seed: int | None,
) -> Iterator[tuple[list[int], Rollout, Measured]]:
    """This process's batches of `prompts`, answered and measured by all aspects: their numbers, rollout, scores."""
    mine = deal_batches(prompts, batch_size, accelerator.process_index, accelerator.num_processes)
    for number, batch in tqdm(mine, desc=title, unit="batch", leave=False, disable=not accelerator.is_main_process):
        if sampling_seed is not None:
            torch.manual_seed(sampling_seed + number)
        rollout = sample_rollout(generate, tokenizer, [prompts[i] for i in batch])
        # an empty answer is scored as it stands: the penalty and the second try belong to training
        rollout = replace(rollout, too_short=torch.zeros_like(rollout.too_short))
        yield batch, rollout, measure(rollout, scorer, scorer.aspects)


def means(records: list[dict]) -> dict[str, float | None]:
    """The mean of every number in the records. None is no number: such a record has no part in that mean."""
    names = [name for name, value in records[0].items() if not isinstance(value, str) and name != "index"]
    return {name: mean([record[name] for record in records]) for name in names}


def mean(values: list[float | None]) -> float | None:
    """The mean of the values that are not None; None if there is none."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


# --- training --------------------------------------------------------------------------------------------------------


def train(
    ppo: PPOTrainer,
    run: Run,
    scorer: Scorer,
    recipe: RewardRecipe,
    tokenizer: PreTrainedTokenizerBase,
    dev_prompts: list[Prompt],
    sampling: dict,
    greedy: dict,
    total_steps: int,
    args: Namespace,
    scales: dict[str, Scale],
) -> dict:
    """Train to `total_steps`, from the run's last checkpoint where there is one. Returns the loop's final state.

    `sampling`, `greedy`: generation settings of rollouts and of evaluation. `args`: eval_interval, eval_batch_size,
    checkpoint_interval, keep_checkpoints. `scales`: the sample columns that are watched for drift, as calibrated.
    """
    accelerator, main = ppo.accelerator, ppo.accelerator.is_main_process
    state = {
        "step": 0,
        "dev_due": bool(args.eval_interval),
        "best": None,
        "skipped_in_a_row": 0,
        "processes": accelerator.num_processes,
        "drift": {},
    }
    loaded = load_checkpoint(ppo, run)
    state |= loaded or {}
    # without a checkpoint the run starts anew, and an earlier start of it can have logged step 0 already
    first_step = state["step"] + 1 if loaded else 0
    on_main(accelerator, lambda: run.start(first_step))
    ppo.start_tracker(first_step)

    generate = generator(ppo.policy, tokenizer, **sampling)

    def dev() -> None:
        records = evaluate(
            dev_prompts,
            generator(ppo.policy, tokenizer, **greedy),
            tokenizer,
            scorer,
            recipe,
            accelerator,
            args.eval_batch_size,
            title=f"dev, step {state['step']}",
        )
        found = means(records)
        if main:
            run.log({"step": state["step"], "dev": found})
        ppo.log_stats({f"dev/{name}": value for name, value in found.items()})
        if improves(found, state["best"]):
            state["best"] = {"step": state["step"], **found}
            ppo.save_pretrained(run.dir / "best")

    progress = tqdm(total=total_steps, initial=state["step"], desc="PPO", unit="step", disable=not main)
    batches = batches_from(ppo, state["step"])

    def step() -> None:
        started = time.perf_counter()
        prompts = [prompt for prompt in next(batches) for _ in range(args.samples_per_prompt)]
        rollout = sample_rollout(generate, tokenizer, prompts)
        rollout = resample_empty(rollout, generate, tokenizer)
        generated = time.perf_counter()
        with failing_together(accelerator):
            measured = measure(rollout, scorer, recipe.paid_aspects)
        payment = combine(measured, recipe)
        scored = time.perf_counter()
        stats = ppo.step(rollout.query_ids, rollout.response_ids, payment.rewards)
        samples = gather_samples(rollout, measured, payment, accelerator)
        row = training_row(samples, stats)
        row |= {
            "time/generate": generated - started,
            "time/score": scored - generated,
            "time/ppo": time.perf_counter() - scored,
        }
        state["step"] += 1
        state["skipped_in_a_row"] = state["skipped_in_a_row"] + 1 if row["skipped"] else 0
        state["drift"], drift, warnings = update_drift(state["drift"], scales, with_text(samples))
        row |= drift
        if main:
            run.log({"step": state["step"], "train": row} | ({"warnings": warnings} if warnings else {}))
            for warning in warnings.values():
                progress.write(f"warning: step {state['step']}: {warning}")
        ppo.log_stats(stats | {f"env/{name}": value for name, value in row.items()})
        shown = {"reward": "reward", "holistic": "holistic_reward", "gate": "gate_rate", "kl": "kl"}
        progress.set_postfix({label: f"{row[name]:.3f}" for label, name in shown.items() if name in row})
        progress.update()
        if state["skipped_in_a_row"] >= MAX_SKIPPED_IN_A_ROW:
            stop_on_nonfinite(run, rollout, payment, accelerator)

    def due(interval: int) -> bool:
        return bool(interval) and (state["step"] % interval == 0 or state["step"] == total_steps)

    with progress:
        try:
            while state["dev_due"] or state["step"] < total_steps:
                if state["dev_due"]:
                    dev()
                    state["dev_due"] = False
                else:
                    step()
                    state["dev_due"] = due(args.eval_interval)
                if not state["dev_due"] and (due(args.checkpoint_interval) or state["step"] == total_steps):
                    run.save_checkpoint(ppo, state, args.keep_checkpoints)
        except ServiceError:
            # a step that was begun is begun anew, with other random numbers
            run.save_checkpoint(ppo, state, args.keep_checkpoints)
            raise
    ppo.save_pretrained(run.dir / "policy")
    return state


def load_checkpoint(ppo: PPOTrainer, run: Run) -> dict | None:
    """Load the newest whole checkpoint of the run. -> the loop's state in it, None if the run has no checkpoint yet.

    All processes load the same one. Damaged ones that are newer are printed and renamed. Raises UserError if there are
    only damaged ones, and for a run of another number of processes or of another model.
    """
    from trl.trainer import DamagedStateError

    accelerator = ppo.accelerator
    damaged: list[tuple[Path, str]] = []
    for folder in reversed(on_main(accelerator, run.checkpoints)):
        state, problem = on_main(accelerator, lambda folder=folder: run.read_state(folder))
        if state is not None:
            if state["processes"] != accelerator.num_processes:
                raise UserError(
                    f"the run in {run.dir} was started with {state['processes']} processes, this one has "
                    f"{accelerator.num_processes}; resume with as many"
                )
            try:
                ppo.load_state(folder)
            except DamagedStateError as error:
                problem = str(error)
            except ValueError as error:
                raise UserError(
                    f"{error}; resume with the code and the flags of the run, or give a new --save_dir"
                ) from error
        if problem is None:
            on_main(accelerator, lambda state=state: set_aside(run, damaged, state["step"]))
            return state
        damaged.append((folder, problem))
    if damaged:
        folder, problem = damaged[0]
        raise UserError(
            f"no checkpoint of {run.dir} can be loaded ({problem}); put a copy of {folder} back, or start a new run "
            "with a new --save_dir"
        )
    return None


def set_aside(run: Run, damaged: list[tuple[Path, str]], step: int) -> None:
    """Rename damaged checkpoints and print why, and from which step the run goes on."""
    for folder, problem in damaged:
        kept = run.set_aside(folder)
        print(f"warning: damaged checkpoint: {problem}; it is now {kept}, the run goes on from step {step}", flush=True)


def on_main(accelerator: Accelerator, make: Callable[[], Any]) -> Any:
    """What `make` returns on the main process, on every process. A UserError of it is raised on every process."""
    found: list = [None, None]
    if accelerator.is_main_process:
        try:
            found[0] = make()
        except UserError as error:
            found[1] = error
    found = broadcast_object_list(found)
    if found[1] is not None:
        raise found[1]
    return found[0]


@contextmanager
def failing_together(accelerator: Accelerator) -> Iterator[None]:
    """Where a service fails one process inside the block, all processes leave it with a ServiceError."""
    error = None
    try:
        yield
    except ServiceError as failure:
        error = failure
    messages = gather_object([str(error)] if error else [])
    if messages:
        raise error or ServiceError(messages[0])


def batches_from(ppo: PPOTrainer, step: int) -> Iterator[list[Prompt]]:
    """This process's prompts of PPO step `step` (from 0) and all after: a function of seed and step alone."""
    while True:
        epoch, position = divmod(step, len(ppo.dataloader))
        ppo.dataloader.batch_sampler.set_epoch(epoch, position)
        for batch in ppo.dataloader:
            yield batch
            step += 1


def improves(found: dict[str, float], best: dict[str, float] | None) -> bool:
    """Whether dev means are the best so far. Those whose total reward is not finite never are."""
    reward = found["total_reward"]
    return math.isfinite(reward) and (best is None or not best["total_reward"] >= reward)


NOT_METRICS = ("response_length", "reward", "gate_rate", "empty_rate", "aspect_paid", "holistic_paid")


def gather_samples(
    rollout: Rollout, measured: Measured, payment: Payment, accelerator: Accelerator
) -> dict[str, list[float | None]]:
    """Name -> a value for each response of the union batch. Metrics of one step, what was paid, and the gate."""
    values = metrics_of(measured, payment)
    values["reward"] = [rewards.sum().item() for rewards in payment.rewards]
    values["gate_rate"] = payment.gate.tolist()
    values["empty_rate"] = rollout.too_short.float().tolist()
    values["aspect_paid"] = [paid.double().abs().sum().item() for paid in payment.aspects]
    values["holistic_paid"] = payment.holistic.abs().tolist()
    rows = gather_object(list(zip(*values.values(), strict=True)))
    return {name: list(column) for name, column in zip(values, zip(*rows, strict=True), strict=True)}


def with_text(samples: dict[str, list[float]]) -> dict[str, list[float]]:
    """The responses that are not empty: the others have a penalty in place of a holistic reward."""
    return {
        name: [value for value, empty in zip(values, samples["empty_rate"], strict=True) if not empty]
        for name, values in samples.items()
    }


def training_row(samples: dict[str, list[float]], stats: dict) -> dict[str, float | None]:
    """The log entry of one step from `gather_samples` and the trainer's statistics.

    Means of the samples; `aspect_share`, the aspects' part of the reward that was paid, by size; `length_correlation/X`
    of the metrics X with the response length, over the responses with text (None where it is not defined).
    """
    row = {name: mean(values) for name, values in samples.items()}
    row["aspect_share"] = aspect_share(samples["aspect_paid"], samples["holistic_paid"])
    texts = with_text(samples)
    for name, values in texts.items():
        if name not in NOT_METRICS:
            known = [pair for pair in zip(values, texts["response_length"], strict=True) if pair[0] is not None]
            row[f"length_correlation/{name}"] = pearson(*map(list, zip(*known, strict=True))) if known else None
    row["skipped"] = int(stats["ppo/updates"] == 0 and stats["ppo/skipped_nonfinite"] > 0)
    # a step that was skipped for its rewards has no KL
    chosen = {"kl": "objective/kl", "kl_coef": "objective/kl_coef", "entropy": "objective/entropy"}
    chosen |= {"policy_kl": "ppo/policy/kl_estimate", "early_stopped": "ppo/early_stopped"}
    return row | {name: stats[key] for name, key in chosen.items() if key in stats}


def stop_on_nonfinite(run: Run, rollout: Rollout, payment: Payment, accelerator: Accelerator) -> None:
    """Save the batch that could not be trained on, and end the run."""
    rows = gather_object(
        [
            {"query": query, "response": response, "token_rewards": [str(x) for x in rewards.tolist()]}
            for query, response, rewards in zip(rollout.queries, rollout.responses, payment.rewards, strict=True)
        ]
    )
    target = run.dir / "bad_batch.json"
    if accelerator.is_main_process:
        write_json(target, rows)
    raise UserError(
        f"the reward or the loss was not finite in {MAX_SKIPPED_IN_A_ROW} steps in a row; look at the token_rewards of "
        f"the last batch in {target}: NaN there points at a reward model, otherwise lower --lr"
    )


# --- the two ways to use a train_ppo.py ------------------------------------------------------------------------------

NOT_PUBLISHED = ("index", "total_reward")


def run_test(
    policy: PreTrainedModelWrapper,
    scorer: Scorer,
    recipe: RewardRecipe,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[Prompt],
    args: Namespace,
    meta: Callable[[dict], dict],
) -> None:
    """Answer and score `prompts`; write the records to the JSON file at args.save_dir, and show their means.

    meta: generation settings -> what the file depends on, for its sidecar.
    """
    settings = {**(SAMPLING if args.test_do_sample else GREEDY), "max_new_tokens": args.max_generated_len}
    started = time.perf_counter()
    accelerator = Accelerator()
    records = evaluate(
        prompts,
        generator(policy, tokenizer, **settings),
        tokenizer,
        scorer,
        recipe,
        accelerator,
        args.batch_size,
        title="test",
        sampling_seed=args.seed if args.test_do_sample else None,
    )
    if accelerator.is_main_process:
        keys = {metric.name: metric.key for metric in scorer.task.metrics}
        published = [
            {keys.get(name, name): value for name, value in record.items() if name not in NOT_PUBLISHED}
            for record in records
        ]
        sidecar(args.save_dir).unlink(missing_ok=True)  # of a file that is replaced now
        write_json(args.save_dir, [finite(record) for record in published])
        write_json(sidecar(args.save_dir), meta(settings))
        show(f"{args.policy_ckpt} on {len(records)} prompts", {"mean": means(records)})
        empty = sum(not record["generation"].strip() for record in records)
        unscored = sum(None in finite(record).values() for record in records)
        print(f"wrote {args.save_dir} in {time.perf_counter() - started:.0f} s")
        say_counts({"empty answers": empty, "answers with a score that is not finite (null in the file)": unscored})
    say_counts(scorer.counts(), accelerator)


def run_training(
    ppo: PPOTrainer,
    run: Run,
    scorer: Scorer,
    recipe: RewardRecipe,
    tokenizer: PreTrainedTokenizerBase,
    dev_prompts: list[Prompt],
    args: Namespace,
    scales: dict[str, Scale] | None = None,
) -> None:
    """Train for args.outer_epoch passes over the trainer's data set, or args.max_steps; show how the dev means moved.

    `scales`: what a calibration says of holistic_reward and response_length, to warn when they drift from it.
    """
    limit = {"max_new_tokens": args.max_generated_len}
    steps = args.max_steps or args.outer_epoch * len(ppo.dataloader)
    started = time.perf_counter()
    state = train(
        ppo, run, scorer, recipe, tokenizer, dev_prompts, SAMPLING | limit, GREEDY | limit, steps, args, scales or {}
    )
    if ppo.accelerator.is_main_process:
        rows = run.read_log()
        columns = {}
        if dev := [row for row in rows if "dev" in row]:
            best = [row for row in dev if state["best"] and row["step"] == state["best"]["step"]]
            columns = {f"dev, step {row['step']}": row["dev"] for row in (dev[0], *best, dev[-1])}
        if training := [row["train"] for row in rows if "train" in row]:
            columns["train, last step"] = {name: value for name, value in training[-1].items() if "/" not in name}
        show(f"{args.run_name}: {args.reward_type}, {state['step']} steps", columns)
        print(f"wrote {run.dir} in {time.perf_counter() - started:.0f} s")
        skipped = sum(row["skipped"] for row in training)
        say_counts({"steps skipped for a reward or loss that was not finite": skipped})
        if dev and not state["best"]:
            print("no evaluation on the dev file had a finite total reward: there is no best policy")
    say_counts(scorer.counts(), ppo.accelerator)
    ppo.accelerator.end_training()
