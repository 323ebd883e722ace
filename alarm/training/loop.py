"""The training loop: sample, measure, pay, train; evaluate; keep the run resumable."""

from __future__ import annotations

import math
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from accelerate.utils import gather_object
from tqdm.auto import tqdm

from trl.config import CACHES
from trl.generation import GREEDY, SAMPLING

from ..combiners import update_multipliers
from ..common.console import say_counts, show
from ..common.errors import ServiceError, UserError
from ..common.files import write_json
from ..diagnostics import Diagnostics, Scale
from ..rewards import RewardRecipe, combine
from ..scoring import Scorer, equal_calls, measure
from ..types import Measured, Payment, Rollout
from .evaluate import evaluate
from .generate import Generate, generator
from .log import gather_samples, means, seen, training_row
from .processes import check_shared, failing_together, gather_rows, on_main
from .rollout import Prompt, resample_empty, sample_rollout
from .rollouts import Plan, Rollouts, rows_of, whole_groups
from .run import MARK, ROLLOUTS, Run

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedTokenizerBase

    from trl import PPOTrainer

MAX_SKIPPED_IN_A_ROW = 3
SHOWN = {"reward": "reward", "holistic": "holistic_reward", "gate": "gate_rate", "kl": "kl"}  # beside the progress bar


@dataclass
class LoopState:
    """Where a run is. It is saved with each checkpoint, as JSON."""

    processes: int
    dev_due: bool  # the dev file is evaluated before the next step
    step: int = 0  # finished PPO steps
    best: dict | None = None  # dev means of the best policy so far, and its step
    skipped_in_a_row: int = 0
    drift: dict = field(default_factory=dict)  # state of Diagnostics
    multipliers: dict = field(default_factory=dict)  # of combiners.update_multipliers


@dataclass
class Training:
    """One run of PPO. `train` does all of it."""

    ppo: PPOTrainer
    run: Run
    scorer: Scorer
    recipe: RewardRecipe
    tokenizer: PreTrainedTokenizerBase
    sample: Generate  # of the policy, as PPO takes samples to come from
    greedy: Generate  # of the policy, for the dev file
    dev_prompts: list[Prompt]
    total_steps: int
    args: Namespace  # those of train_ppo.py
    scales: dict[str, Scale]  # sample columns that are watched for drift, as calibrated

    def train(self) -> LoopState:
        """Train to `total_steps`, from the run's last checkpoint if there is one. Returns the loop's final state."""
        ppo, run, args = self.ppo, self.run, self.args
        self.state = LoopState(ppo.accelerator.num_processes, dev_due=bool(args.eval_interval))
        check_shared(ppo.accelerator, run.dir / MARK)
        loaded = load_checkpoint(ppo, run)
        if loaded is not None:
            self.state = LoopState(**loaded)
            self.recipe = replace(self.recipe, multipliers=self.state.multipliers)
        # without a checkpoint the run starts anew, and an earlier start of it can have logged step 0 already
        first_step = self.state.step + 1 if loaded else 0
        on_main(ppo.accelerator, lambda: run.start(first_step))
        ppo.start_tracker(first_step)

        self.rollouts = Rollouts(run, ppo, self.tokenizer, self.plans())
        self.rollouts.say()

        state, main = self.state, ppo.accelerator.is_main_process
        self.diagnostics = Diagnostics(self.scales, args.max_generated_len, self.recipe.reward_type, state.drift)
        self.batches = batches_from(ppo, state.step)
        with tqdm(total=self.total_steps, initial=state.step, desc="PPO", unit="step", disable=not main) as progress:
            try:
                while state.dev_due or state.step < self.total_steps:
                    if state.dev_due:
                        self.evaluate_dev()
                        state.dev_due = False
                    else:
                        self.one_step(progress)
                        state.dev_due = self.is_due(args.eval_interval)
                    ended = state.step == self.total_steps
                    if not state.dev_due and (self.is_due(args.checkpoint_interval) or ended):
                        self.save_checkpoint()
            except ServiceError:
                # a step that was begun is begun anew, with other random numbers
                self.save_checkpoint()
                raise
        ppo.save_pretrained(run.dir / "policy")
        return state

    def groups(self, responses: int) -> torch.Tensor | None:
        """The group of each response of this process: the answers to one prompt lie side by side."""
        size, first = self.args.samples_per_prompt, self.ppo.accelerator.process_index * responses
        return None if size == 1 else (first + torch.arange(responses)) // size

    def plans(self) -> dict[str, Plan]:
        """Of which steps answers are kept, for training and the dev file."""
        args, last = self.args, self.total_steps
        most = args.rollouts_per_step if args.rollout_interval else 0
        there = args.batch_size * self.ppo.accelerator.num_processes
        train = whole_groups(most, args.samples_per_prompt, there)
        dev = whole_groups(most if args.eval_interval else 0, 1, len(self.dev_prompts))
        bound = args.max_rollouts
        return {
            "train": Plan(1, max(args.rollout_interval, 1), last, train, bound),
            "dev": Plan(0, max(args.eval_interval, 1), last, dev, bound),
        }

    def is_due(self, interval: int) -> bool:
        return bool(interval) and (self.state.step % interval == 0 or self.state.step == self.total_steps)

    def save_checkpoint(self) -> None:
        self.run.save_checkpoint(self.ppo, asdict(self.state), self.args.keep_checkpoints)

    def evaluate_dev(self) -> None:
        """Answer and score the dev file; keep the policy if it is the best so far."""
        state, shown, rollouts = self.state, [], self.rollouts
        due = rollouts.are_due("dev", state.step)

        def keep(batch: list[int], rollout: Rollout, measured: Measured, payment: Payment) -> None:
            places = [k for k, number in enumerate(batch) if number < rollouts.count("dev")]
            prompts = [self.dev_prompts[number] for number in batch]
            rows = rows_of(prompts, rollout, measured, payment, self.recipe.alone, self.tokenizer, places)
            shown.extend((batch[k], row) for k, row in zip(places, rows, strict=True))

        with self.ppo.whole_weights():
            records = evaluate(
                self.dev_prompts,
                self.greedy,
                self.tokenizer,
                self.scorer,
                self.recipe,
                self.ppo.accelerator,
                self.args.eval_batch_size,
                title=f"dev, step {state.step}",
                each=keep if due else None,
            )
        rollouts.make_room("dev", state.step)
        if due:
            shown = sorted(gather_object(shown), key=lambda numbered: numbered[0])
            rollouts.add("dev", state.step, [row for _, row in shown])
        found = means(records)
        if self.ppo.accelerator.is_main_process:
            self.run.log({"step": state.step, "dev": found})
        self.ppo.log_stats({f"dev/{name}": value for name, value in found.items()})
        if improves(found, state.best):
            state.best = {"step": state.step, **found}
            self.ppo.save_pretrained(self.run.dir / "best")

    def one_step(self, progress: tqdm) -> None:
        """One PPO step and its row of the log. Ends the run after MAX_SKIPPED_IN_A_ROW steps that taught nothing."""
        state, accelerator = self.state, self.ppo.accelerator
        # 1. sample
        started = time.perf_counter()
        prompts = [prompt for prompt in next(self.batches) for _ in range(self.args.samples_per_prompt)]
        with self.ppo.whole_weights():
            rollout = sample_rollout(self.sample, self.tokenizer, prompts)
            rollout = resample_empty(rollout, self.sample, self.tokenizer)
        generated = time.perf_counter()
        # 2. measure, then pay
        with failing_together(accelerator), equal_calls(self.scorer.holistic, 1):
            measured = measure(rollout, self.scorer, self.recipe.paid_aspects)
        recipe = self.recipe
        payment = combine(measured, recipe, self.groups(len(prompts)), gather_rows(accelerator))
        scored = time.perf_counter()
        # 3. train
        stats = self.ppo.step(rollout.query_ids, rollout.response_ids, payment.rewards)
        # 4. log
        samples = gather_samples(rollout, measured, payment, accelerator)
        row = training_row(samples, stats)
        if self.recipe.reward_type == "lagrangian":
            row |= {f"multiplier/{name}": self.recipe.multipliers.get(name, 0.0) for name in self.recipe.paid}
            state.multipliers = update_multipliers(payment.totals, self.recipe)
            self.recipe = replace(self.recipe, multipliers=state.multipliers)
        row |= {
            "time/generate": generated - started,
            "time/score": scored - generated,
            "time/ppo": time.perf_counter() - scored,
        }
        state.step += 1
        state.skipped_in_a_row = state.skipped_in_a_row + 1 if row["skipped"] else 0
        watched, warnings = self.diagnostics.update(seen(samples, payment, recipe, stats))
        state.drift = self.diagnostics.state
        row |= watched
        self.keep_rollouts(prompts, rollout, measured, payment, recipe, stats.get("objective/kl_dist"))
        if accelerator.is_main_process:
            self.run.log({"step": state.step, "train": row} | ({"warnings": warnings} if warnings else {}))
            for warning in warnings.values():
                progress.write(f"warning: step {state.step}: {warning}")
        self.ppo.log_stats(stats | {f"env/{name}": value for name, value in row.items()})
        progress.set_postfix({label: f"{row[name]:.3f}" for label, name in SHOWN.items() if name in row})
        progress.update()
        if state.skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
            stop_on_nonfinite(self.run, rollout, payment, accelerator)

    def keep_rollouts(
        self,
        prompts: list[Prompt],
        rollout: Rollout,
        measured: Measured,
        payment: Payment,
        recipe: RewardRecipe,
        kl: Sequence[float] | None,
    ) -> None:
        """Keep the first answers of the step that just ended, of the union batch of all processes, if they are due."""
        rollouts, step = self.rollouts, self.state.step
        rollouts.make_room("train", step)
        if rollouts.are_due("train", step):
            first = self.ppo.accelerator.process_index * len(prompts)
            places = range(min(max(rollouts.count("train") - first, 0), len(prompts)))
            rows = rows_of(prompts, rollout, measured, payment, recipe, self.tokenizer, places, kl)
            rollouts.add("train", step, gather_object(rows))


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
    limit = {"max_new_tokens": args.max_generated_len, **CACHES[args.generation_cache]}
    steps = args.max_steps or args.outer_epoch * len(ppo.dataloader)
    started = time.perf_counter()
    training = Training(
        ppo,
        run,
        scorer,
        recipe,
        tokenizer,
        generator(ppo.policy, tokenizer, **SAMPLING | limit),
        generator(ppo.policy, tokenizer, **GREEDY | limit),
        dev_prompts,
        steps,
        args,
        scales or {},
    )
    state = training.train()
    if ppo.accelerator.is_main_process:
        rows = run.read_log()
        columns = {}
        if dev := [row for row in rows if "dev" in row]:
            best = [row for row in dev if state.best and row["step"] == state.best["step"]]
            columns = {f"dev, step {row['step']}": row["dev"] for row in (dev[0], *best, dev[-1])}
        if steps_logged := [row["train"] for row in rows if "train" in row]:
            columns["train, last step"] = {name: value for name, value in steps_logged[-1].items() if "/" not in name}
        show(f"{args.run_name}: {args.reward_type}, {state.step} steps", columns)
        if (kept := run.dir / ROLLOUTS).exists():
            print(f"{kept}: {kept.stat().st_size / 1e6:.1f} MB")
        print(f"wrote {run.dir} in {time.perf_counter() - started:.0f} s")
        skipped = sum(row["skipped"] for row in steps_logged)
        say_counts({"steps skipped for a reward or loss that was not finite": skipped})
        for line in training.diagnostics.collapsed():
            print(f"warning: {line}")
        if dev and not state.best:
            print("no evaluation on the dev file had a finite total reward: there is no best policy")
    say_counts(scorer.counts(), ppo.accelerator)
    ppo.accelerator.end_training()
