"""Train a holistic preference reward model on pairs: the UltraRM layout, or any sequence classifier."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..common.console import print_table
from ..common.errors import UserError, report_user_errors
from ..common.flags import positive_int
from ..common.launch import process_state
from ..tasks.preferences import Pair, load_preferences
from ..tasks.qa.feedback import Feedback, load_feedback, preference_pairs
from .fit import add_selection_flag, check_training, leave_out_shared, length_limit, training_parser

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PretrainedConfig


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    flags = training_parser(__doc__, model_path="openbmb/UltraRM-13b", num_epochs=1.0, batch_size=8, lr=1e-5)
    add = flags.add_argument
    pairs = "rows {prompt, chosen, rejected}; with its feedback file: questions of long-form QA"
    for split, use in (("train", "trained on"), ("dev", "held out, on which the trained model is measured")):
        add(f"--{split}_file", required=True, help=f"{use}: {pairs}")
        add(f"--{split}_feedback_file", help="six preferences between four answers per question of the file above")
    add("--max_length", type=positive_int, default=1230, help="tokens of an input; if it is longer, the prompt is cut")
    add_selection_flag(flags)
    return flags.parse_args(argv)


def load_split(path: str, feedback_path: str | None) -> tuple[list[Pair], list[Feedback]]:
    """The pairs of a split, and its feedback rows if it has some."""
    rows = load_feedback(path, feedback_path) if feedback_path else []
    pairs = [pair for row in rows for pair in preference_pairs(row)] if feedback_path else load_preferences(path)
    if not pairs:
        raise UserError(f"{feedback_path} holds ties only; give feedback with preferences")
    return pairs, rows


@report_user_errors
def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    check_training(args)
    train, _ = load_split(args.train_file, args.train_feedback_file)
    dev, dev_rows = load_split(args.dev_file, args.dev_feedback_file)
    train = leave_out_shared(train, dev, lambda pair: pair.question)
    train_preferences(train, dev, dev_rows, args)


def takes_ultrarm_layout(config: PretrainedConfig, name: str) -> bool:
    """Whether the model gets the UltraRM layout: a Llama that is no sequence classifier yet.

    Raises UserError for what can carry neither that layout nor a classification head.
    """
    from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

    architecture = (config.architectures or [""])[0]
    if config.model_type == "llama" and not architecture.endswith("ForSequenceClassification"):
        return True
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise UserError(
            f"{name} is a {config.model_type} model, which has no form for sequence classification; "
            "give a llama or a model that has one"
        )
    return False


def train_preferences(train: list[Pair], dev: list[Pair], dev_rows: list[Feedback], args: argparse.Namespace) -> dict:
    """Train from a Llama (UltraRM layout) or any sequence classifier; write `args.save_dir`, return the metrics."""
    from transformers import AutoModelForSequenceClassification, set_seed

    from ..models.holistic import HolisticModel, LlamaRewardModel
    from ..models.load import load_config, load_start, load_tokenizer
    from .metrics import pair_metrics, report_metrics, verdict
    from .pairs import encode_pairs, encode_training_pairs, fit_pairs, measure_preferences
    from .reliability import draw_reliability, reliability, reliability_table

    set_seed(args.seed)
    show = process_state().print
    config = load_config(args.model_path, "the model")
    ultra = takes_ultrarm_layout(config, args.model_path)
    tokenizer = load_tokenizer(args.model_path, "the model")
    if ultra:
        model = load_start(LlamaRewardModel, args.model_path, new_head=True)
    else:
        model = load_start(AutoModelForSequenceClassification, args.model_path, new_head=True, num_labels=1)
    reader = HolisticModel(model, tokenizer)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(reader.pad_id)

    def encode(prompts: list[str], answers: list[str]) -> list[list[int]]:
        return reader.encode(prompts, answers, args.max_length)

    def score(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        output = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        return output if ultra else output.logits[:, 0]

    limit = length_limit(config, tokenizer, args)
    items, dev_items = encode_training_pairs(encode, train, limit), encode_pairs(encode, dev)
    show(f"train and dev: {len(items)} and {len(dev)} pairs; {reader.truncated} inputs with a prompt cut to fit")

    answers = [(row.prompt, answer) for row in dev_rows for answer in row.answers]

    def finish(model: nn.Module, folder: Path) -> dict:
        found = measure_preferences(model, reader.pad_id, score, encode, dev, answers, args.batch_size)
        metrics = pair_metrics(dev, found.chosen, found.rejected)
        curve = reliability(dev, found.chosen, found.rejected)
        show(f"dev answers: --ultra_mean {found.mean:.6g} --ultra_std {found.deviation:.6g}")
        if process_state().is_main_process:
            draw_reliability(curve, "holistic reward model", folder / "calibration.png")
            print_table(reliability_table(curve))
        report_metrics("holistic", metrics, f"preferences on {args.dev_file}")
        return {
            "dev": metrics,
            "verdict": verdict("holistic", metrics["comparisons"])[-1],
            "calibration": curve,
            "score_mean": found.mean,
            "score_std": found.deviation,
        }

    return fit_pairs(model, tokenizer, items, dev_items, score, args, finish)
