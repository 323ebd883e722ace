"""Training the aspect reward models of long-form QA from human feedback."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..common.errors import UserError
from ..common.launch import process_state
from ..models.classifiers import LABELS, NO_ERR, unit_words
from ..tasks.qa.aspects import UnitAspect, completeness_text, factuality_context, relevance_context
from ..tasks.qa.feedback import (
    IGNORED,
    Feedback,
    completeness_pairs,
    factuality_labels,
    load_feedback,
    relevance_labels,
)
from ..tasks.qa.spec import FACTUALITY, RELEVANCE
from .fit import Losses, fit, leave_out_shared, length_limit, set_aside, token_losses
from .metrics import classification_metrics, pair_metrics, report_metrics, verdict
from .pairs import encode_pairs, encode_training_pairs, fit_pairs, measure_preferences

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from ..tasks.sentences import Splitter
    from ..tasks.spans import Span


# --- data ------------------------------------------------------------------------------------------------------------


def load_feedback_splits(args: argparse.Namespace) -> tuple[list[Feedback], list[Feedback]]:
    """The feedback to train on, without the questions of the dev file, and the held-out feedback.

    `args`: {train,dev}_file and {train,dev}_feedback_file.
    """
    train = load_feedback(args.train_file, args.train_feedback_file)
    dev = load_feedback(args.dev_file, args.dev_feedback_file)
    return leave_out_shared(train, dev, lambda row: row.question), dev


@dataclass(frozen=True)
class LabelledAnswer:
    """One answer as a token classifier reads it."""

    question: str
    context: str
    units: list[str]  # K
    labels: list[int]  # K


@dataclass(frozen=True)
class UnitFeedback:
    """How feedback teaches an aspect that judges units. `scores`: the aspect as it scores, with the same units."""

    scores: UnitAspect
    context: Callable[[Feedback], str]  # what the units are judged in
    labels: Callable[[str, list[Span], tuple[dict, ...]], list[int]]  # answer, units, error spans -> labels


UNITS = {
    "relevance": UnitFeedback(RELEVANCE.score, lambda row: relevance_context(row.question), relevance_labels),
    "factuality": UnitFeedback(FACTUALITY.score, lambda row: factuality_context(row.prompt), factuality_labels),
}


def unit_feedback(aspect: str) -> UnitFeedback:
    """The entry of UNITS. UserError with the names that exist for any other."""
    if aspect not in UNITS:
        raise UserError(f"{aspect!r} is no aspect with labelled units; give one of {', '.join(UNITS)}")
    return UNITS[aspect]


def label_answers(aspect: str, rows: list[Feedback], splitter: Splitter) -> list[LabelledAnswer]:
    """The first answer of each row with its units labelled. Answers without a label are left out.

    Raises UserError for an aspect that judges no units.
    """
    kind, texts = unit_feedback(aspect), [row.answers[0] for row in rows]
    found = []
    for row, text, spans in zip(rows, texts, kind.scores.units(texts, splitter), strict=True):
        labels = kind.labels(text, spans, row.errors)
        if any(label != IGNORED for label in labels):
            units = [text[start:end] for start, end in spans]
            found.append(LabelledAnswer(row.question, kind.context(row), units, labels))
    return found


def encode_answers(
    tokenizer: PreTrainedTokenizerBase, answers: list[LabelledAnswer], max_length: int
) -> tuple[list[dict], int]:
    """-> items {input_ids, labels (IGNORED but at the separators), question}, and how many inputs lost their end.

    Answers of which no labelled unit is left within `max_length` tokens are left out.
    """
    if not answers:
        return [], 0
    inputs = [unit_words(answer.context, answer.units, tokenizer.sep_token) for answer in answers]
    encoded = tokenizer(
        [words for words, _ in inputs], is_split_into_words=True, truncation=True, max_length=max_length
    )
    items, cut = [], 0
    for i, (answer, (_, separators)) in enumerate(zip(answers, inputs, strict=True)):
        label_of_word = dict(zip(separators, answer.labels, strict=True))
        labels, seen = [], set()
        for word in encoded.word_ids(i):
            labels.append(label_of_word.get(word, IGNORED) if word not in seen else IGNORED)
            seen.add(word)
        cut += bool(encoded.encodings[i].overflowing)
        if any(label != IGNORED for label in labels):
            items.append({"input_ids": encoded["input_ids"][i], "labels": labels, "question": answer.question})
    return items, cut


# --- the loss --------------------------------------------------------------------------------------------------------


def balanced_weights(items: list[dict]) -> list[float]:
    """A weight for each of LABELS: units / (classes * units of the class), 0 for a label that does not occur."""
    labels = [label for item in items for label in item["labels"] if label != IGNORED]
    counts = [labels.count(number) for number in range(len(LABELS))]
    classes = sum(count > 0 for count in counts)
    return [len(labels) / (classes * count) if count else 0.0 for count in counts]


def unit_loss(class_weights: list[float] | None) -> Callable[[nn.Module, dict[str, Tensor]], Losses]:
    """Cross-entropy at the labelled separators of a batch; a unit counts as its class weighs, or one."""

    def loss(model: nn.Module, batch: dict[str, Tensor]) -> Losses:
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        return token_losses(logits, batch["labels"], class_weights)

    return loss


# --- training an aspect ----------------------------------------------------------------------------------------------


def train_aspect(
    aspect: str, train: list[Feedback], dev: list[Feedback], splitter: Splitter, args: argparse.Namespace
) -> dict:
    """Train the reward model of `aspect` from `args.model_path`, measure it on `dev`, write `args.save_dir`.

    Returns the metrics that are written to metrics.json there. Raises UserError, before the model loads, for an
    unknown aspect, and if the feedback or the model's kind leaves nothing to learn.
    """
    if aspect == "completeness":
        return _train_completeness(train, dev, splitter, args)
    if aspect not in UNITS:
        raise UserError(f"{aspect!r} is no aspect with a reward model; give one of {', '.join(UNITS)}, completeness")
    return _train_units(aspect, train, dev, splitter, args)


def load_base(name: str, head: str) -> tuple[PretrainedConfig, PreTrainedTokenizerBase]:
    """Configuration and tokenizer of a model that can carry `head` ("TokenClassification", "SequenceClassification").

    Raises UserError for a model of another kind, and for a tokenizer that will not do, before any weight is read.
    """
    import transformers

    from ..models.load import load_config, load_tokenizer

    config = load_config(name, "the model")
    mapping = {
        "TokenClassification": transformers.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
        "SequenceClassification": transformers.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    }[head]
    if type(config) not in mapping:
        raise UserError(f"{name} is a {config.model_type} model, which has no form for {head}; give a Longformer")
    # the units of a token classifier are words, which byte-level tokenizers take only with a space in front of each
    extra = {"add_prefix_space": True} if head == "TokenClassification" else {}
    tokenizer = load_tokenizer(name, "the model", **extra)
    if tokenizer.pad_token is None:
        raise UserError(
            f"{name} is a {config.model_type} model whose tokenizer has no padding token; give a Longformer"
        )
    if head == "TokenClassification" and tokenizer.sep_token is None:
        raise UserError(
            f"{name} is a {config.model_type} model whose tokenizer has no separator token, at which units are judged; "
            "give a Longformer"
        )
    return config, tokenizer


def _train_units(
    aspect: str, train: list[Feedback], dev: list[Feedback], splitter: Splitter, args: argparse.Namespace
) -> dict:
    """A token classifier that judges each unit at the separator in front of it. See `train_aspect`."""
    from transformers import AutoModelForTokenClassification, DataCollatorForTokenClassification, set_seed

    from ..models.load import load_start
    from ..models.longformer import use_packed_attention

    set_seed(args.seed)
    config, tokenizer = load_base(args.model_path, "TokenClassification")
    max_length = length_limit(config, tokenizer, args)
    error = unit_feedback(aspect).scores.error
    items = {}
    for split, rows in (("train", train), ("dev", dev)):
        answers = label_answers(aspect, rows, splitter)
        require_examples(answers, split, aspect)
        items[split], cut = encode_answers(tokenizer, answers, max_length)
        if not items[split]:
            raise UserError(
                f"cut to {max_length} tokens no {split} input holds a labelled unit; give a longer --max_length, "
                "or a model that takes longer inputs"
            )
        _print_inputs(split, f"{len(items[split])} answers, {_label_counts(items[split])}", cut, max_length)
    for label in (error, NO_ERR):
        if not any(label in item["labels"] for item in items["train"]):
            absent = "sentence without an error" if label == NO_ERR else f"{aspect} error"
            raise UserError(f"the training feedback holds no {absent}: there is nothing to tell apart; give more")

    model = use_packed_attention(
        load_start(
            AutoModelForTokenClassification,
            args.model_path,
            new_head=True,
            num_labels=len(LABELS),
            id2label=dict(enumerate(LABELS)),
            label2id={name: number for number, name in enumerate(LABELS)},
        )
    )

    def finish(model: nn.Module, folder: Path) -> dict:
        margins, is_error, questions = unit_margins(model, tokenizer.pad_token_id, items["dev"], error, args.batch_size)
        metrics = classification_metrics(margins, is_error, questions)
        return _report(aspect, metrics, splitter, args)

    pad = DataCollatorForTokenClassification(tokenizer)
    to_train, to_select = set_aside(items["train"], args)
    return fit(
        model,
        tokenizer,
        to_train,
        to_select or items["dev"],
        lambda batch: pad([{"input_ids": item["input_ids"], "labels": item["labels"]} for item in batch]),
        args,
        unit_loss(balanced_weights(to_train) if args.class_weights == "balanced" else None),
        finish,
        keep_last=not to_select,
    )


def _train_completeness(
    train: list[Feedback], dev: list[Feedback], splitter: Splitter, args: argparse.Namespace
) -> dict:
    """A sequence classifier with one score, trained on pairs (`completeness_pairs`). See `train_aspect`."""
    from transformers import AutoModelForSequenceClassification, set_seed

    from ..models.holistic import read_by_mask
    from ..models.load import load_start
    from ..models.longformer import use_packed_attention

    set_seed(args.seed)
    config, tokenizer = load_base(args.model_path, "SequenceClassification")
    max_length = length_limit(config, tokenizer, args)
    cut = 0

    def encode(prompts: list[str], answers: list[str]) -> list[list[int]]:
        nonlocal cut
        texts = [completeness_text(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
        encoded = tokenizer(texts, truncation=True, max_length=max_length)
        cut += sum(bool(encoding.overflowing) for encoding in encoded.encodings)
        return encoded["input_ids"]

    def score(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, 0]

    pairs = {
        split: [pair for row in rows for pair in completeness_pairs(row, splitter)]
        for split, rows in (("train", train), ("dev", dev))
    }
    for split, found in pairs.items():
        require_examples(found, split, "completeness")
    items = encode_training_pairs(encode, pairs["train"], max_length)
    dev_items = encode_pairs(encode, pairs["dev"])
    _print_inputs("train and dev", f"{len(items)} and {len(pairs['dev'])} pairs", cut, max_length)

    model = use_packed_attention(
        load_start(AutoModelForSequenceClassification, args.model_path, new_head=True, num_labels=1)
    )
    read_by_mask(model, tokenizer.pad_token_id)

    def finish(model: nn.Module, folder: Path) -> dict:
        answers = [(row.prompt, answer) for row in dev for answer in row.answers]
        found = measure_preferences(
            model, tokenizer.pad_token_id, score, encode, pairs["dev"], answers, args.batch_size
        )
        process_state().print(
            f"dev answers: --completeness_reward_mean {found.mean:.6g} --completeness_reward_std {found.deviation:.6g}"
        )
        metrics = _report("completeness", pair_metrics(pairs["dev"], found.chosen, found.rejected), splitter, args)
        return metrics | {"score_mean": found.mean, "score_std": found.deviation}

    return fit_pairs(model, tokenizer, items, dev_items, score, args, finish)


def _report(aspect: str, metrics: dict, splitter: Splitter, args: argparse.Namespace) -> dict:
    """Print the held-out metrics of an aspect; -> what metrics.json holds of them."""
    report_metrics(aspect, metrics, f"{aspect} on {args.dev_file}")
    summary = verdict(aspect, metrics["comparisons"])[-1]
    return {"aspect": aspect, "splitter": splitter.name, "dev": metrics, "verdict": summary}


def unit_margins(
    model: nn.Module, pad_id: int, items: list[dict], error: int, batch_size: int
) -> tuple[list[float], list[bool], list[str]]:
    """At each labelled separator: logit of `error` minus that of no error, whether it is `error`, and the question."""
    import torch

    from ..models.load import is_longformer, padded_batches

    margins, is_error, questions = [], [], []
    device, packed = next(model.parameters()).device, is_longformer(model)
    rows = [item["input_ids"] for item in items]
    with torch.inference_mode():
        for indices, ids, mask in padded_batches(rows, pad_id, batch_size, device, packed):
            logits = model(input_ids=ids, attention_mask=mask).logits.float()
            difference = (logits[..., error] - logits[..., NO_ERR]).cpu()
            for row, i in enumerate(indices):
                for position, label in enumerate(items[i]["labels"]):
                    if label != IGNORED:
                        margins.append(difference[row, position].item())
                        is_error.append(label == error)
                        questions.append(items[i]["question"])
    return margins, is_error, questions


def require_examples(found: list, split: str, what: str) -> None:
    """Raise UserError if a split has no example."""
    if not found:
        raise UserError(f"the {split} file yields no example for {what}; give more feedback")


def _label_counts(items: list[dict]) -> str:
    labels = [label for item in items for label in item["labels"] if label != IGNORED]
    return ", ".join(f"{labels.count(number)} {name}" for number, name in enumerate(LABELS) if number in labels)


def _print_inputs(split: str, what: str, cut: int, max_length: int) -> None:
    process_state().print(f"{split}: {what}; {cut} inputs cut to {max_length} tokens")
