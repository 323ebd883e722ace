"""The one loop of both tasks: score a rollout, train on it, evaluate, keep the run resumable."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import broadcast_object_list, gather_object
from tqdm.auto import tqdm

from trl.generation import GREEDY, SAMPLING

from ..common.console import say_counts, show
from ..common.errors import ServiceError, UserError
from ..common.files import write_json
from ..rewards import RewardRecipe, combine_rewards, length_rewards, normalise_holistic, weigh_aspects
from ..types import AspectScore, RewardScores, Rollout
from .diagnostics import Scale, aspect_share, pearson, update_drift
from .rollout import Prompt, deal_batches, generator, resample_empty, sample_rollout
from .run import Run, finite

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedTokenizerBase

    from trl import PPOTrainer

Aspects = Callable[[Rollout, Iterable[str]], dict[str, AspectScore]]  # the named aspects on one rollout
Holistic = Callable[[list[str], list[str]], torch.Tensor]  # prompts, answers -> (B,) raw scores

MAX_SKIPPED_IN_A_ROW = 3


@dataclass(frozen=True)
class Scorer:
    """What turns a rollout into rewards."""

    aspects: Aspects
    aspect_names: tuple[str, ...]
    holistic: Holistic
    recipe: RewardRecipe
    truncated: Callable[[], dict[str, int]]  # reward model -> inputs that it had to cut so far, on this process
    counts: Callable[[], dict[str, int]] = dict  # what else deserves a line at the end -> how often, on this process

    def names_that_count(self) -> tuple[str, ...]:
        """The aspects whose values reach the reward; the others need not be computed to train."""
        if self.recipe.reward_type == "holistic_only" or self.recipe.length_mean is not None:
            return ()
        return tuple(name for name in self.aspect_names if self.recipe.weights[name] != 0)


def score(rollout: Rollout, scorer: Scorer, names: Iterable[str]) -> RewardScores:
    """Aspects -> holistic -> combine. `names`: the aspects to compute, whether or not they weigh anything."""
    recipe = scorer.recipe
    lengths = [len(ids) for ids in rollout.response_ids]
    aspects = scorer.aspects(rollout, names)
    raw = scorer.holistic(rollout.queries, rollout.responses)
    holistic = normalise_holistic(raw, recipe.holistic_mean, recipe.holistic_std, rollout.too_short)
    if recipe.length_mean is not None:
        aspect_rewards = length_rewards(lengths, recipe.length_mean)
    elif aspects:
        aspect_rewards = weigh_aspects(aspects, recipe.weights)
    else:
        aspect_rewards = [torch.zeros(length) for length in lengths]
    metrics = {"holistic_reward": holistic.tolist(), "response_length": lengths}
    for aspect in aspects.values():
        metrics |= aspect.metrics
    payment = combine_rewards(aspect_rewards, holistic, rollout.too_short, recipe)
    return RewardScores(payment, holistic, metrics, raw, aspects)


# --- evaluation: the dev file during training and --test are the same thing ------------------------------------------


def evaluate(
    prompts: list[Prompt],
    generate: Callable[[list[torch.Tensor]], list[torch.Tensor]],
    tokenizer: PreTrainedTokenizerBase,
    scorer: Scorer,
    accelerator: Accelerator,
    batch_size: int,
    title: str,
    sampling_seed: int | None = None,
) -> list[dict]:
    """Answer and score every prompt once. Returns one record a prompt, sorted by query, on every process.

    Each batch is the same, with the same random state where `sampling_seed` is given, whatever the number of
    processes, and so are the records.
    """
    mine = deal_batches(prompts, batch_size, accelerator.process_index, accelerator.num_processes)
    records = []
    with failing_together(accelerator):
        for number, batch in tqdm(mine, desc=title, unit="batch", leave=False, disable=not accelerator.is_main_process):
            if sampling_seed is not None:
                torch.manual_seed(sampling_seed + number)
            rollout = sample_rollout(generate, tokenizer, [prompts[i] for i in batch])
            # an empty answer is scored as it stands: the penalty and the second try belong to training
            rollout = replace(rollout, too_short=torch.zeros_like(rollout.too_short))
            scores = score(rollout, scorer, scorer.aspect_names)
            for k, i in enumerate(batch):
                record = {"index": i, "query": rollout.queries[k], "generation": rollout.responses[k]}
                record |= {name: values[k] for name, values in scores.metrics.items()}
                record["total_reward"] = scores.payment.rewards[k].sum().item()
                records.append(record)
    records = gather_object(records)
    return sorted(records, key=lambda record: (record["query"], record["index"]))


def means(records: list[dict]) -> dict[str, float]:
    """The mean of every number in the records."""
    names = [name for name, value in records[0].items() if isinstance(value, int | float) and name != "index"]
    return {name: sum(record[name] for record in records) / len(records) for name in names}


# --- training --------------------------------------------------------------------------------------------------------


def train(
    ppo: PPOTrainer,
    run: Run,
    scorer: Scorer,
    tokenizer: PreTrainedTokenizerBase,
    dev_prompts: list[Prompt],
    sampling: dict,
    greedy: dict,
    total_steps: int,
    args,
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

    generate = generator(ppo, **sampling)

    def dev() -> None:
        records = evaluate(
            dev_prompts,
            generator(ppo, **greedy),
            tokenizer,
            scorer,
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
        rollout = sample_rollout(generate, tokenizer, next(batches))
        rollout = resample_empty(rollout, generate, tokenizer)
        generated = time.perf_counter()
        with failing_together(accelerator):
            scores = score(rollout, scorer, scorer.names_that_count())
        scored = time.perf_counter()
        stats = ppo.step(rollout.query_ids, rollout.response_ids, scores.payment.rewards)
        samples = gather_samples(rollout, scores, accelerator)
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
            stop_on_nonfinite(run, rollout, scores, accelerator)

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


def gather_samples(rollout: Rollout, scores: RewardScores, accelerator: Accelerator) -> dict[str, list[float]]:
    """Name -> a value for each response of the union batch. Metrics of one step, what was paid, and the gate."""
    values = dict(scores.metrics)
    payment = scores.payment
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
    row = {name: sum(values) / len(values) for name, values in samples.items()}
    row["aspect_share"] = aspect_share(samples["aspect_paid"], samples["holistic_paid"])
    texts = with_text(samples)
    for name, values in texts.items():
        if name not in NOT_METRICS:
            row[f"length_correlation/{name}"] = pearson(values, texts["response_length"])
    row["skipped"] = int(stats["ppo/updates"] == 0 and stats["ppo/skipped_nonfinite"] > 0)
    # a step that was skipped for its rewards has no KL
    chosen = {"kl": "objective/kl", "kl_coef": "objective/kl_coef", "entropy": "objective/entropy"}
    chosen |= {"policy_kl": "ppo/policy/kl_estimate", "early_stopped": "ppo/early_stopped"}
    return row | {name: stats[key] for name, key in chosen.items() if key in stats}


def stop_on_nonfinite(run: Run, rollout: Rollout, scores: RewardScores, accelerator: Accelerator) -> None:
    """Save the batch that could not be trained on, and end the run."""
    rows = gather_object(
        [
            {"query": query, "response": response, "token_rewards": [str(x) for x in rewards.tolist()]}
            for query, response, rewards in zip(rollout.queries, rollout.responses, scores.payment.rewards, strict=True)
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

# names in the published generation files, where they differ from ours
PUBLISHED_NAMES = {"relevance_rate": "verbosity_rate"}
NOT_PUBLISHED = ("index", "total_reward")


def run_test(
    ppo: PPOTrainer,
    scorer: Scorer,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[Prompt],
    max_new_tokens: int,
    args,
) -> None:
    """Answer and score `prompts`; write the records to the JSON file at args.save_dir, and show their means."""
    settings = {**(SAMPLING if args.test_do_sample else GREEDY), "max_new_tokens": max_new_tokens}
    started = time.perf_counter()
    records = evaluate(
        prompts,
        generator(ppo, **settings),
        tokenizer,
        scorer,
        ppo.accelerator,
        args.batch_size,
        title="test",
        sampling_seed=args.seed if args.test_do_sample else None,
    )
    if ppo.accelerator.is_main_process:
        published = [
            {PUBLISHED_NAMES.get(name, name): value for name, value in record.items() if name not in NOT_PUBLISHED}
            for record in records
        ]
        write_json(args.save_dir, [finite(record) for record in published])
        show(f"{args.policy_ckpt} on {len(records)} prompts", {"mean": means(records)})
        empty = sum(not record["generation"].strip() for record in records)
        unscored = sum(None in finite(record).values() for record in records)
        print(f"wrote {args.save_dir} in {time.perf_counter() - started:.0f} s")
        say_counts({"empty answers": empty, "answers with a score that is not finite (null in the file)": unscored})
    say_counts(cut_inputs(scorer) | scorer.counts(), ppo.accelerator)


def run_training(
    ppo: PPOTrainer,
    run: Run,
    scorer: Scorer,
    tokenizer: PreTrainedTokenizerBase,
    dev_prompts: list[Prompt],
    max_new_tokens: int,
    epochs: int,
    args,
    scales: dict[str, Scale] | None = None,
) -> None:
    """Train for `epochs` passes over the trainer's data set, or args.max_steps; show how the dev means moved.

    `scales`: what a calibration says of holistic_reward and response_length, to warn when they drift from it.
    """
    limit = {"max_new_tokens": max_new_tokens}
    steps = args.max_steps or epochs * len(ppo.dataloader)
    started = time.perf_counter()
    state = train(ppo, run, scorer, tokenizer, dev_prompts, SAMPLING | limit, GREEDY | limit, steps, args, scales or {})
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
    say_counts(cut_inputs(scorer) | scorer.counts(), ppo.accelerator)
    ppo.accelerator.end_training()


def cut_inputs(scorer: Scorer) -> dict[str, int]:
    return {f"inputs cut to what the {name} reward model takes": n for name, n in scorer.truncated().items()}
