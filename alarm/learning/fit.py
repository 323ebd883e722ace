"""Supervised training through transformers' Trainer: what the training of policies and of reward models shares.

One run: a loss per epoch on the training and the evaluation data, one epoch kept, the model folder written whole.
"""

from __future__ import annotations

import argparse
import math
import random
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trl.config import TRACKERS

from ..common.console import Column, Section, Table, print_table
from ..common.errors import UserError
from ..common.files import check_new_folder, write_json
from ..common.flags import check_model_name, half_share, parser, positive_float, positive_int, seed_value
from ..common.launch import check_launch, process_state
from ..common.texts import Example, question_key, shared_questions, without_shared

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PretrainedConfig, PreTrainedTokenizerBase


def training_parser(description: str, **defaults) -> argparse.ArgumentParser:
    """The flags that every supervised script takes. `defaults` gives model_path, save_dir, num_epochs, lr, ..."""
    flags = parser(description)
    add = flags.add_argument
    add("--model_path", default=defaults["model_path"], help="model to start from: a folder or a hub name")
    add("--save_dir", required=True, help="new folder for the trained model (refused if it holds something)")
    add("--num_epochs", type=positive_float, default=defaults["num_epochs"], help="passes over the training data")
    add("--batch_size", type=positive_int, default=defaults.get("batch_size", 8), help="examples per process and step")
    add("--lr", type=positive_float, default=defaults["lr"], help="peak learning rate (linear decay to zero)")
    add("--max_steps", type=positive_int, help="stop after this many steps, instead of the full duration")
    add("--seed", type=seed_value, default=42, help="seed of the initial weights, the data order and dropout")
    add("--dtype", default="float32", choices=("float32", "bfloat16"), help="bfloat16: autocast, weights stay float32")
    add(
        "--report_to",
        default="none",
        choices=TRACKERS,
        help="tracker of the training curves (trackio needs a pip install of its own)",
    )
    return flags


def add_selection_flag(flags: argparse.ArgumentParser) -> None:
    """Add --selection_share (see `set_aside`)."""
    flags.add_argument(
        "--selection_share",
        type=half_share,
        default=0.1,
        help="share of the training questions that only choose the epoch to keep, so that the dev file stays unseen "
        "until it is measured; 0: train on all and keep the last epoch",
    )


def check_training(args: argparse.Namespace) -> None:
    """Raise UserError for what is wrong with the flags of `training_parser` before any model loads."""
    check_launch()
    check_new_folder(args.save_dir, "--save_dir")
    check_model_name(args.model_path, "--model_path")


def leave_out_shared(train: list[Example], dev: list[Example], question: Callable[[Example], str]) -> list[Example]:
    """The training examples whose question `dev` does not ask; prints how many questions were left out.

    Raises UserError if none is left.
    """
    kept, shared = without_shared(train, dev, question)
    if shared:
        process_state().print(f"warning: the dev file asks {shared} of the training questions; not trained on")
    return kept


def warn_of_shared(train: Iterable[str], dev: Iterable[str]) -> None:
    """Print how many of the dev prompts are also trained on, if some are."""
    dev = list(dev)
    shared = shared_questions(train, dev)
    count = sum(question_key(text) in shared for text in dev)
    if count:
        process_state().print(
            f"warning: {count} of the {len(dev)} dev prompts are training prompts too; they stay in training, "
            "so dev results are a little too good"
        )


def set_aside(items: list[dict], args: argparse.Namespace) -> tuple[list[dict], list[dict]]:
    """-> items to train on, and items that choose the epoch: all those of `args.selection_share` of the questions.

    With one epoch or one question there is nothing to choose, and none are set aside.
    """
    questions = list(dict.fromkeys(question_key(item["question"]) for item in items))
    steps_an_epoch = math.ceil(len(items) / (args.batch_size * process_state().num_processes))
    epochs = args.max_steps / steps_an_epoch if args.max_steps else args.num_epochs
    if not args.selection_share or epochs <= 1 or len(questions) < 2:
        return items, []
    count = max(1, round(args.selection_share * len(questions)))
    chosen = set(random.Random(args.seed).sample(questions, count))
    process_state().print(f"{count} of the {len(questions)} training questions choose the epoch")
    sides: tuple[list[dict], list[dict]] = ([], [])
    for item in items:
        sides[question_key(item["question"]) in chosen].append(item)
    return sides


def length_limit(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase, args: argparse.Namespace) -> int:
    """--max_length, or what the model takes if that is less."""
    from ..models.load import position_limit

    return min(args.max_length, position_limit(config, tokenizer))


@dataclass(frozen=True)
class Losses:
    """What each of the B items of a batch adds to the loss. An item may hold many tokens or units, or one pair."""

    sums: Tensor  # (B,) float32, over what an item holds: weight * loss
    weights: Tensor  # (B,) float32, the sum of these weights


def token_losses(logits: Tensor, labels: Tensor, class_weights: list[float] | None = None) -> Losses:
    """Cross-entropy at each label that is not -100, weighted by its class, or by one.

    logits (B, T, C), labels (B, T) int64, class_weights: C numbers.
    """
    import torch
    from torch.nn.functional import cross_entropy

    found = cross_entropy(logits.float().transpose(1, 2), labels, reduction="none")  # 0 for ignored labels
    weights = (labels != -100).float()
    if class_weights is not None:
        weights = weights * torch.tensor(class_weights, device=labels.device)[labels.clamp(min=0)]
    return Losses((found * weights).sum(dim=1), weights.sum(dim=1))


def item_length(item: dict) -> int:
    """Tokens of an item, by which batches are grouped: of the longer text of a pair, whichever that is.

    Batches come longest first. Grouped by the chosen texts, the rejected ones beside them would be shorter in the first
    batches and longer in the last: a model that follows this has a low training loss and has learnt nothing.
    """
    return max(len(item["input_ids"]), len(item.get("rejected_ids", ())))


@dataclass(frozen=True)
class Epoch:
    """One line of the table at the end of a run."""

    epoch: float
    step: int
    train_loss: float | None
    eval_loss: float
    seconds: float  # since the start of training
    kept: bool


def epochs_as_table(epochs: list[Epoch]) -> Table:
    """For the terminal."""
    rows = [
        (
            f"{row.epoch:.2f}",
            str(row.step),
            "-" if row.train_loss is None else f"{row.train_loss:.4f}",
            f"{row.eval_loss:.4f}",
            f"{row.seconds:.1f}",
            "kept" if row.kept else "",
        )
        for row in epochs
    ]
    names = ("epoch", "step", "train loss", "eval loss", "seconds", "")
    return Table("Epochs", "", tuple(Column(name, name=True) for name in names), (Section(tuple(rows)),))


def fit(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    train: list[dict],
    evaluation: list[dict],
    collate: Callable[[list[dict]], dict[str, Tensor]],
    args: argparse.Namespace,
    loss: Callable[[nn.Module, dict[str, Tensor]], Losses],
    finish: Callable[[nn.Module, Path], dict] | None = None,
    keep_last: bool = False,
) -> dict:
    """Train `model` in place and write `args.save_dir` whole, with the epoch of least loss on `evaluation`.

    Items are dicts with at least `input_ids` (a list); batches are grouped by `item_length`. `loss(model, batch)` gives
    what each item adds. A training step takes the mean over the batches of all processes. The losses shown are means
    over the whole data, so they do not depend on the batches; they choose the epoch. keep_last: write the last epoch
    instead. `finish(model, folder)` measures the kept weights and may add files to the folder that becomes
    `args.save_dir` (main process only); what it returns is written to metrics.json beside the epochs and given back.
    Raises UserError for a loss that is not finite.
    """
    import torch
    from transformers import Trainer, TrainerCallback, TrainingArguments
    from transformers.trainer_pt_utils import LengthGroupedSampler

    save_dir = Path(args.save_dir)
    work = save_dir.with_name(f".{save_dir.name}.training")
    state = process_state()
    if state.is_main_process:
        shutil.rmtree(work, ignore_errors=True)
    state.wait_for_everyone()

    class SupervisedTrainer(Trainer):
        trained: Tensor | float = 0.0  # (2,) float64: sum and weight of this process's losses since the last log

        def _get_train_sampler(self, train_dataset=None):
            return LengthGroupedSampler(self.args.train_batch_size, lengths=[item_length(item) for item in train])

        def compute_loss(self, model, inputs, **_):
            """The mean over the union of all processes' batches, once DDP has averaged the gradients."""
            found = loss(model, inputs)
            total = torch.stack([found.sums.sum(), found.weights.sum()])
            self.trained = self.trained + total.detach().double()
            return total[0] / self.accelerator.reduce(total[1], "mean")

        def log(self, logs, *args, **kwargs):
            logs.pop("train_loss", None)  # of the whole run, as a mean of the steps' means
            if "loss" in logs:  # transformers gives the same mean of an epoch
                sums, weights = self.accelerator.reduce(self.trained, "sum")
                logs["loss"] = (sums / weights).item()
                self.trained = 0.0
            super().log(logs, *args, **kwargs)

        def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
            """Each item's part of the loss, which transformers gathers without the items it repeats to fill batches."""
            inputs = self._prepare_inputs(inputs)
            with torch.no_grad(), self.compute_loss_context_manager():
                found = loss(model, inputs)
            return None, found.sums, found.weights

    class Watch(TrainerCallback):
        """Seconds at each evaluation; stop at a loss that is not finite."""

        def __init__(self):
            self.start, self.seconds = time.perf_counter(), []

        def on_train_begin(self, args, state, control, **kwargs):
            self.start = time.perf_counter()

        def on_evaluate(self, args, state, control, metrics, **kwargs):
            self.seconds.append(time.perf_counter() - self.start)
            if not math.isfinite(metrics["eval_loss"]):
                raise UserError(f"the loss is {metrics['eval_loss']} after step {state.global_step}; lower --lr")

    on_gpu = torch.cuda.is_available()
    watch = Watch()
    trainer = SupervisedTrainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(work),
            num_train_epochs=args.num_epochs,
            max_steps=args.max_steps or -1,
            per_device_train_batch_size=args.batch_size,
            per_device_eval_batch_size=args.batch_size,
            learning_rate=args.lr,
            weight_decay=0.01,
            warmup_steps=0.1,  # a share of all steps
            bf16=args.dtype == "bfloat16",
            seed=args.seed,
            eval_strategy="epoch",
            save_strategy="epoch",
            logging_strategy="epoch",
            save_total_limit=1,
            save_only_model=True,
            load_best_model_at_end=not keep_last,
            metric_for_best_model="eval_loss",
            greater_is_better=False,
            train_sampling_strategy="group_by_length",
            remove_unused_columns=False,
            dataloader_pin_memory=on_gpu,
            report_to=args.report_to,
            use_cpu=not on_gpu,
        ),
        data_collator=collate,
        train_dataset=train,
        eval_dataset=evaluation,
        processing_class=tokenizer,
        callbacks=[watch],
        compute_metrics=lambda found: {
            "loss": float(found.predictions.sum(dtype="float64") / found.label_ids.sum(dtype="float64"))
        },
    )
    try:
        trainer.train()
    except BaseException:
        if state.is_main_process:
            shutil.rmtree(work, ignore_errors=True)
        raise
    epochs = epoch_table(trainer.state.log_history, watch.seconds, keep_last)
    if state.is_main_process:
        print_table(epochs_as_table(epochs))

    model.eval()
    final = work / "final"
    trainer.save_model(str(final))
    metrics = finish(model, final) if finish else {}
    state.wait_for_everyone()
    if state.is_main_process:
        (final / "training_args.bin").unlink(missing_ok=True)
        metrics = {**metrics, "epochs": [asdict(row) for row in epochs]}
        write_json(final / "metrics.json", metrics)
        save_dir.parent.mkdir(parents=True, exist_ok=True)
        if save_dir.is_dir():
            save_dir.rmdir()  # empty: checked at the start
        final.rename(save_dir)
        shutil.rmtree(work, ignore_errors=True)
    state.wait_for_everyone()
    return metrics


def epoch_table(log_history: list[dict], seconds: list[float], keep_last: bool) -> list[Epoch]:
    """Pair the trainer's training and evaluation losses by step. Kept: the last epoch, or the first of least loss."""
    train_loss = {row["step"]: row["loss"] for row in log_history if "loss" in row}
    evaluations = [row for row in log_history if "eval_loss" in row]
    kept = evaluations[-1] if keep_last else min(evaluations, key=lambda row: row["eval_loss"])
    return [
        Epoch(row["epoch"], row["step"], train_loss.get(row["step"]), row["eval_loss"], elapsed, row is kept)
        for row, elapsed in zip(evaluations, seconds, strict=True)
    ]
