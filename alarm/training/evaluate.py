"""The policy on prompts that it does not train on: the dev file during training and --test are the same thing."""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from tqdm.auto import tqdm

from trl.config import CACHES
from trl.generation import GREEDY, SAMPLING

from ..api import RAW_HOLISTIC
from ..common.console import say_counts, show
from ..common.files import write_json, write_rows
from ..rewards import RewardRecipe, combine, without_group
from ..scoring import Scorer, equal_calls, measure, metrics_of
from ..types import Measured, Payment, Rollout
from .generate import Generate, generator
from .log import means
from .processes import failing_together
from .provenance import sidecar
from .rollout import Prompt, deal_batches, most_batches, sample_rollout
from .run import finite

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from trl.models import PreTrainedModelWrapper

NOT_PUBLISHED = ("index", "total_reward", RAW_HOLISTIC)
NO_METRICS = ("sample", "holistic_baseline", "aspects")


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
    samples: int = 1,
    each: Callable[[list[int], Rollout, Measured, Payment], None] | None = None,
) -> list[dict]:
    """Answer and score every prompt once. Returns one record a prompt, sorted by query, on every process.

    Each batch is the same, with the same random state if `sampling_seed` is given, whatever the number of processes,
    and so are the records. An answer here has no group: a combiner that compares the answers to a prompt is replaced
    (`recipe.alone`), and a group's mean too (`without_group`).

    samples: answers to each prompt. Several: records of one prompt stand together, each has a `sample` number and the
    parts of its reward (`parts_of`). each: is called for each batch of this process, with the numbers of its prompts.
    """
    records, alone = [], recipe.alone
    prompts = [prompt for prompt in prompts for _ in range(samples)]
    calls = most_batches(len(prompts), batch_size, accelerator.num_processes)
    with failing_together(accelerator), equal_calls(scorer.holistic, calls):
        for batch, rollout, measured in answered(
            prompts, generate, tokenizer, scorer, accelerator, batch_size, title, sampling_seed
        ):
            payment = combine(without_group(measured, recipe), alone)
            metrics = metrics_of(measured, payment)
            for k, i in enumerate(batch):
                record = {"index": i // samples} | ({"sample": i % samples} if samples > 1 else {})
                record |= {"query": prompts[i].query, "generation": rollout.responses[k]}
                record |= {name: values[k] for name, values in metrics.items()}
                record[RAW_HOLISTIC] = measured.holistic[k].item()
                if samples > 1:
                    record |= parts_of(measured, k)
                else:
                    record["total_reward"] = payment.rewards[k].sum().item()
                records.append(record)
            if each is not None:
                each(batch, rollout, measured, payment)
    records = gather_object(records)
    return sorted(records, key=lambda record: (record["query"], record["index"], record.get("sample", 0)))


def parts_of(measured: Measured, k: int) -> dict:
    """All that a reward of answer k is made of, before anything is shaped or weighed, for its record.

    `holistic_baseline`, if one was measured; for each aspect the `values` that are shaped one by one, their `total`,
    and the `best` value of a unit. The raw holistic score is in every record.
    """
    found: dict = {}
    if measured.baseline is not None:
        found["holistic_baseline"] = measured.baseline[k].item()
    found["aspects"] = {
        name: {"total": score.values[k].sum().item(), "values": score.values[k].tolist(), "best": score.best}
        for name, score in measured.aspects.items()
    }
    return found


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

    With --num_samples above 1 the file has a row a line, with the parts of each reward (`evaluate`).
    meta: generation settings -> what the file depends on, for its sidecar.
    """
    settings = {**(SAMPLING if args.test_do_sample else GREEDY), "max_new_tokens": args.max_generated_len}
    settings |= CACHES[args.generation_cache]
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
        samples=args.num_samples,
    )
    if accelerator.is_main_process:
        several = args.num_samples > 1
        keys = {metric.name: metric.key for metric in scorer.task.metrics}
        left_out = () if several else NOT_PUBLISHED
        published = [
            finite({keys.get(name, name): value for name, value in record.items() if name not in left_out})
            for record in records
        ]
        sidecar(args.save_dir).unlink(missing_ok=True)  # of a file that is replaced now
        (write_rows if several else write_json)(args.save_dir, published)
        write_json(sidecar(args.save_dir), meta(settings))
        each = f", {args.num_samples} samples of each" if several else ""
        numbers = [{name: value for name, value in record.items() if name not in NO_METRICS} for record in records]
        show(f"{args.policy_ckpt} on {len(prompts)} prompts{each}", {"mean": means(numbers)})
        empty = sum(not record["generation"].strip() for record in records)
        unscored = sum(None in finite(record).values() for record in records)
        print(f"wrote {args.save_dir} in {time.perf_counter() - started:.0f} s")
        say_counts({"empty answers": empty, "answers with a score that is not finite (null in the file)": unscored})
    say_counts(scorer.counts(), accelerator)
