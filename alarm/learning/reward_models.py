"""Training the aspect reward models of long-form QA from human feedback, and what every preference model shares."""

from __future__ import annotations

import argparse
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..common.errors import UserError
from ..common.flags import half_share
from ..common.launch import process_state
from ..common.texts import answer_key, question_key
from ..models.classifiers import F_ERR, LABELS, NF_ERR, NO_ERR, unit_words
from ..tasks.qa.aspects import completeness_text, factuality_context, relevance_context
from ..tasks.qa.feedback import (
    IGNORED,
    Feedback,
    Pair,
    completeness_pairs,
    factuality_labels,
    load_feedback,
    relevance_labels,
)
from ..tasks.sentences import subsentence_spans
from .fit import Losses, fit, leave_out_shared, token_losses
from .metrics import classification_metrics, format_metrics, mean_and_deviation, pair_metrics, verdict

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from ..tasks.sentences import Splitter

Encode = Callable[[list[str], list[str]], list[list[int]]]  # prompts, answers -> token ids
Score = Callable[["nn.Module", dict[str, "Tensor"]], "Tensor"]  # model, padded batch -> (B,)


def add_selection_flag(flags: argparse.ArgumentParser) -> None:
    flags.add_argument(
        "--selection_share",
        type=half_share,
        default=0.1,
        help="share of the training questions that only choose the epoch to keep, so that the dev file stays unseen "
        "until it is measured; 0: train on all and keep the last epoch",
    )


# --- data ------------------------------------------------------------------------------------------------------------


def load_splits(args: argparse.Namespace) -> tuple[list[Feedback], list[Feedback]]:
    """The feedback to train on, less what the dev file asks too, and the held-out feedback.

    `args`: {train,dev}_file and {train,dev}_feedback_file.
    """
    train = load_feedback(args.train_file, args.train_feedback_file)
    dev = load_feedback(args.dev_file, args.dev_feedback_file)
    return leave_out_shared(train, dev, lambda row: row.question), dev


def set_aside(items: list[dict], args: argparse.Namespace) -> tuple[list[dict], list[dict]]:
    """-> items to train on, and those that choose the epoch: all items of `args.selection_share` of the questions.

    None are set aside where there is one epoch, or one question, and so nothing to choose.
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


@dataclass(frozen=True)
class LabelledAnswer:
    """One answer as a token classifier reads it."""

    question: str
    context: str
    units: list[str]  # K
    labels: list[int]  # K


def label_answers(aspect: str, rows: list[Feedback], splitter: Splitter) -> list[LabelledAnswer]:
    """The first answer of each row, its sub-sentences or sentences labelled; answers without a label are left out."""
    found = []
    for row, sentences in zip(rows, splitter([row.answers[0] for row in rows]), strict=True):
        text = row.answers[0]
        if aspect == "relevance":
            context, spans = relevance_context(row.question), subsentence_spans(text, sentences)
            labels = relevance_labels(text, spans, row.errors)
        else:
            context, spans = factuality_context(row.prompt), sentences
            labels = factuality_labels(text, spans, row.errors)
        if any(label != IGNORED for label in labels):
            found.append(LabelledAnswer(row.question, context, [text[start:end] for start, end in spans], labels))
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


def encode_pairs(encode: Encode, pairs: list[Pair]) -> list[dict]:
    """-> items {input_ids: the chosen text, rejected_ids: the other, question}."""
    prompts = [pair.prompt for pair in pairs]
    chosen = encode(prompts, [pair.chosen for pair in pairs])
    rejected = encode(prompts, [pair.rejected for pair in pairs])
    return [
        {"input_ids": a, "rejected_ids": b, "question": pair.question}
        for a, b, pair in zip(chosen, rejected, pairs, strict=True)
    ]


def encode_training_pairs(encode: Encode, pairs: list[Pair], max_length: int) -> list[dict]:
    """`encode_pairs` less the pairs of which both sides read the same, which are counted and said.

    Raises UserError where none is left.
    """
    items = encode_pairs(encode, pairs)
    told_apart = [
        item
        for item, pair in zip(items, pairs, strict=True)
        if item["input_ids"] != item["rejected_ids"] and answer_key(pair.chosen) != answer_key(pair.rejected)
    ]
    if not told_apart:
        raise UserError(
            f"cut to {max_length} tokens both answers of each of the {len(items)} training pairs read the same; "
            "give a longer --max_length, or a model that takes longer inputs"
        )
    if len(told_apart) < len(items):
        process_state().print(f"{len(items) - len(told_apart)} training pairs left out: both answers read the same")
    return told_apart


# --- batches and losses ----------------------------------------------------------------------------------------------


def bradley_terry_loss(chosen: Tensor, rejected: Tensor) -> Tensor:
    """-log sigmoid(chosen - rejected) of each pair; scores (B,) -> (B,)."""
    from torch.nn.functional import logsigmoid

    return -logsigmoid(chosen - rejected)


def collate_pairs(tokenizer):
    """Items {input_ids, rejected_ids} -> one padded batch (2B, T): the chosen texts, then the rejected ones."""

    def collate(items: list[dict]) -> dict[str, Tensor]:
        ids = [item["input_ids"] for item in items] + [item["rejected_ids"] for item in items]
        return dict(tokenizer.pad({"input_ids": ids}, return_tensors="pt", padding_side="right"))

    return collate


def pair_loss(score: Score):
    """The Bradley-Terry losses of a batch from `collate_pairs`, a pair counting one; `score(model, batch)` -> (2B,)."""

    def loss(model: nn.Module, batch: dict[str, Tensor]) -> Losses:
        chosen, rejected = score(model, batch).float().chunk(2)
        sums = bradley_terry_loss(chosen, rejected)
        return Losses(sums, sums.new_ones(len(sums)))

    return loss


def balanced_weights(items: list[dict]) -> list[float]:
    """A weight for each of LABELS: units / (classes * units of the class), 0 for a label that does not occur."""
    labels = [label for item in items for label in item["labels"] if label != IGNORED]
    counts = [labels.count(number) for number in range(len(LABELS))]
    classes = sum(count > 0 for count in counts)
    return [len(labels) / (classes * count) if count else 0.0 for count in counts]


def unit_loss(class_weights: list[float] | None):
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

    Returns the metrics that are written to metrics.json there. Raises UserError, before the model loads, where the
    feedback or the model's kind leaves nothing to learn.
    """
    if aspect == "completeness":
        return _train_completeness(train, dev, splitter, args)
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


def length_limit(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase, args: argparse.Namespace) -> int:
    """--max_length, or what the model takes where that is less."""
    from ..models.load import position_limit

    return min(args.max_length, position_limit(config, tokenizer))


def _train_units(aspect, train, dev, splitter, args) -> dict:
    from transformers import AutoModelForTokenClassification, DataCollatorForTokenClassification, set_seed

    from ..models.load import load_start
    from ..models.longformer import use_packed_attention

    set_seed(args.seed)
    config, tokenizer = load_base(args.model_path, "TokenClassification")
    max_length = length_limit(config, tokenizer, args)
    error = NF_ERR if aspect == "relevance" else F_ERR
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
        _say(split, f"{len(items[split])} answers, {_label_counts(items[split])}", cut, max_length)
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


def _train_completeness(train, dev, splitter, args) -> dict:
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
    _say("train and dev", f"{len(items)} and {len(pairs['dev'])} pairs", cut, max_length)

    model = use_packed_attention(
        load_start(AutoModelForSequenceClassification, args.model_path, new_head=True, num_labels=1)
    )
    read_by_mask(model, tokenizer.pad_token_id)

    def finish(model: nn.Module, folder: Path) -> dict:
        found = measure_preferences(model, tokenizer.pad_token_id, score, encode, pairs["dev"], dev, args.batch_size)
        process_state().print(
            f"dev answers: --completeness_reward_mean {found.mean:.6g} --completeness_reward_std {found.deviation:.6g}"
        )
        metrics = _report("completeness", pair_metrics(pairs["dev"], found.chosen, found.rejected), splitter, args)
        return metrics | {"score_mean": found.mean, "score_std": found.deviation}

    return fit_pairs(model, tokenizer, items, dev_items, score, args, finish)


def fit_pairs(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    items: list[dict],
    dev_items: list[dict],
    score: Score,
    args: argparse.Namespace,
    finish: Callable[[nn.Module, Path], dict],
) -> dict:
    """Train on encoded pairs by the Bradley-Terry loss; a part of `items` chooses the epoch (`set_aside`).

    dev_items: only their loss is shown, where nothing is set aside. score: see `pair_loss`; finish: see `fit`.
    """
    to_train, to_select = set_aside(items, args)
    return fit(
        model,
        tokenizer,
        to_train,
        to_select or dev_items,
        collate_pairs(tokenizer),
        args,
        pair_loss(score),
        finish,
        keep_last=not to_select,
    )


def _report(aspect: str, metrics: dict, splitter: Splitter, args: argparse.Namespace) -> dict:
    """Print the held-out metrics of an aspect; -> what metrics.json says of them."""
    process_state().print(format_metrics(aspect, metrics, f"{aspect} on {args.dev_file}"))
    summary = verdict(aspect, metrics["comparisons"])[-1]
    return {"aspect": aspect, "splitter": splitter.name, "dev": metrics, "verdict": summary}


# --- measuring -------------------------------------------------------------------------------------------------------


def unit_margins(
    model: nn.Module, pad_id: int, items: list[dict], error: int, batch_size: int
) -> tuple[list[float], list[bool], list[str]]:
    """At each labelled separator: logit of `error` less that of no error, whether it is `error`, and the question."""
    import torch

    from ..models.load import padded_batches

    margins, is_error, questions = [], [], []
    device = next(model.parameters()).device
    with torch.inference_mode():
        for indices, ids, mask in padded_batches([item["input_ids"] for item in items], pad_id, batch_size, device):
            logits = model(input_ids=ids, attention_mask=mask).logits.float()
            difference = (logits[..., error] - logits[..., NO_ERR]).cpu()
            for row, i in enumerate(indices):
                for position, label in enumerate(items[i]["labels"]):
                    if label != IGNORED:
                        margins.append(difference[row, position].item())
                        is_error.append(label == error)
                        questions.append(items[i]["question"])
    return margins, is_error, questions


@dataclass(frozen=True)
class PairScores:
    """Raw scores of N pairs, and the mean and deviation of all answers that were scored."""

    chosen: list[float]  # N
    rejected: list[float]  # N
    mean: float
    deviation: float


def measure_preferences(
    model: nn.Module,
    pad_id: int,
    score: Score,
    encode: Encode,
    pairs: list[Pair],
    rows: list[Feedback],
    batch_size: int,
) -> PairScores:
    """Score both sides of `pairs`; mean and deviation are of all answers in `rows` (of the pairs where there are none).

    Each text is scored once.
    """
    import torch

    from ..models.load import padded_batches

    answers = [(row.prompt, answer) for row in rows for answer in row.answers]
    sides = [(pair.prompt, text) for pair in pairs for text in (pair.chosen, pair.rejected)]
    unique = list(dict.fromkeys(answers + sides))
    ids_of = encode([prompt for prompt, _ in unique], [answer for _, answer in unique])
    scores = {}
    device = next(model.parameters()).device
    with torch.inference_mode():
        for indices, ids, mask in padded_batches(ids_of, pad_id, batch_size, device):
            values = score(model, {"input_ids": ids, "attention_mask": mask}).float().tolist()
            scores.update((unique[i], value) for i, value in zip(indices, values, strict=True))
    mean, deviation = mean_and_deviation([scores[text] for text in answers or sides])
    return PairScores(
        [scores[pair.prompt, pair.chosen] for pair in pairs],
        [scores[pair.prompt, pair.rejected] for pair in pairs],
        mean,
        deviation,
    )


def require_examples(found: list, split: str, what: str) -> None:
    if not found:
        raise UserError(f"the {split} file yields no example for {what}; give more feedback")


def _label_counts(items: list[dict]) -> str:
    labels = [label for item in items for label in item["labels"] if label != IGNORED]
    return ", ".join(f"{labels.count(number)} {name}" for number, name in enumerate(LABELS) if number in labels)


def _say(split: str, what: str, cut: int, max_length: int) -> None:
    process_state().print(f"{split}: {what}; {cut} inputs cut to {max_length} tokens")
