"""From human feedback to training examples of the reward models, and the metrics that judge them.

A feedback row marks errors in its first answer by character spans, lists what that answer leaves out, holds the
annotator's corrected answer, and compares four answers in pairs.
"""

from __future__ import annotations

import argparse
import itertools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import UserError
from .files import read_rows, require_fields
from .spans import subsentence_spans
from .supervised import fit, load_pretrained
from .tasks.long_form_qa import (
    F_ERR,
    LABELS,
    NF_ERR,
    NO_ERR,
    completeness_text,
    factuality_context,
    relevance_context,
    unit_words,
)

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerBase

    from .spans import Span, Splitter

RELEVANCE_ERRORS = frozenset({"Irrelevant", "Redundant", "Incoherent"})
FACTUALITY_ERRORS = frozenset({"Wrong-Grounding", "Unverifiable"})
IGNORED = -100
ANSWERS = ("prediction 1", "prediction 2", "prediction 3", "prediction 4")
# The order of the six comparisons and their coding, 1 = the first is better, 2 = the second, 0 = tie. Both follow from
# the data: of the 720 orders of the pairs this one (and its mirror image) is all but transitive, 30 violations in 300
# rows against 270 for the next; and read this way the better answer has the greater word overlap with the reference
# in 62% of the comparisons, read the other way round in 38%, by the mirror image in 46%.
PAIRS = tuple(itertools.combinations(range(4), 2))
# a sub-sentence has at least this many words, so a shorter span cannot make one irrelevant
_MIN_SPAN_WORDS = 5


@dataclass(frozen=True)
class Feedback:
    """One question with its prompt and the human feedback on its answers."""

    prompt: str
    question: str
    answers: tuple[str, ...]  # the four sampled answers; errors and missing information belong to the first
    corrected: str  # the first, rewritten by the annotator; may be empty
    errors: tuple[dict, ...]  # {"error type", "start", "end"}, characters of answers[0]
    missing: tuple[dict, ...]  # {"error type", "passage_id", "sentence_id"}
    preference: tuple[int, ...]  # six values over PAIRS


def load_feedback(questions_path: str | Path, feedback_path: str | Path) -> list[Feedback]:
    """Join a questions file and its feedback file by question.

    Raises UserError for a malformed row and for feedback on a question that the questions file lacks.
    """
    questions, rows = read_rows(questions_path), read_rows(feedback_path)
    require_fields(questions, {"text": str, "question": str}, questions_path)
    require_fields(
        rows, {"question": str, **dict.fromkeys(ANSWERS, str), "feedback": dict, "preference": list}, feedback_path
    )
    prompts = {row["question"]: row["text"] for row in questions}
    if len(prompts) < len(questions):
        raise UserError(f"{questions_path} asks a question twice; feedback is joined by question, so remove one")
    joined = []
    for number, row in enumerate(rows, start=1):
        where, given = f"{feedback_path}, row {number}", row["feedback"]
        if row["question"] not in prompts:
            raise UserError(f"{where}: {questions_path} has no question {row['question']!r}; give the matching file")
        if len(row["preference"]) != len(PAIRS) or not set(row["preference"]) <= {0, 1, 2}:
            raise UserError(f"{where}: 'preference' must hold six values 0 (tie), 1 (first) or 2 (second)")
        for error in given.get("errors", []):
            start, end = error.get("start"), error.get("end")
            inside = isinstance(start, int) and isinstance(end, int) and 0 <= start <= end <= len(row[ANSWERS[0]])
            if not inside or error.get("error type") not in RELEVANCE_ERRORS | FACTUALITY_ERRORS:
                raise UserError(f"{where}: {error} is no error span of 'prediction 1'; mend or remove it")
        joined.append(
            Feedback(
                prompt=prompts[row["question"]],
                question=row["question"],
                answers=tuple(row[name] for name in ANSWERS),
                corrected=given.get("corrected-prediction", "").strip(),
                errors=tuple(given.get("errors", [])),
                missing=tuple(given.get("missing-info", [])),
                preference=tuple(row["preference"]),
            )
        )
    return joined


# --- labels of text units --------------------------------------------------------------------------------------------


def _overlap(unit: Span, error: dict) -> int:
    """Characters that a unit and an error span share."""
    return max(0, min(unit[1], error["end"]) - max(unit[0], error["start"]))


def relevance_labels(text: str, units: list[Span], errors: tuple[dict, ...]) -> list[int]:
    """NF_ERR for each sub-sentence that relevance errors cover by half or more, else NO_ERR.

    Spans of fewer words than a sub-sentence has are dropped.
    """
    kept = [
        error
        for error in errors
        if error["error type"] in RELEVANCE_ERRORS
        and len(text[error["start"] : error["end"]].split()) >= _MIN_SPAN_WORDS
    ]
    covered = {index for error in kept for index in range(error["start"], error["end"])}
    return [
        NF_ERR if 2 * sum(index in covered for index in range(*unit)) >= unit[1] - unit[0] else NO_ERR for unit in units
    ]


def factuality_labels(text: str, units: list[Span], errors: tuple[dict, ...]) -> list[int]:
    """F_ERR for each sentence that a factual error touches, IGNORED where only other errors do, else NO_ERR.

    Annotators did not check the facts of what they had marked as irrelevant.
    """
    labels = []
    for unit in units:
        kinds = {error["error type"] for error in errors if _overlap(unit, error)}
        labels.append(F_ERR if kinds & FACTUALITY_ERRORS else IGNORED if kinds else NO_ERR)
    return labels


# --- pairs of answers ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pair:
    """Two answers to one prompt, the first one better."""

    prompt: str
    chosen: str
    rejected: str
    kind: str  # where the pair comes from


def preference_pairs(row: Feedback) -> list[Pair]:
    """The comparisons of a row that are no ties."""
    pairs = []
    for (first, second), verdict in zip(PAIRS, row.preference, strict=True):
        if verdict:
            better, worse = (first, second) if verdict == 1 else (second, first)
            pairs.append(Pair(row.prompt, row.answers[better], row.answers[worse], "preference"))
    return pairs


def completeness_pairs(row: Feedback, splitter: Splitter) -> list[Pair]:
    """Pairs whose order by covered information is sure.

    `added`: the corrected answer against the first answer, where that one was found to miss information.
    `left out`: the corrected answer against itself less its longest sentence.
    """
    if not row.corrected:
        return []
    pairs = []
    if row.missing:
        pairs.append(Pair(row.prompt, row.corrected, row.answers[0].strip(), "added"))
    sentences = splitter([row.corrected])[0]
    if len(sentences) > 1:
        gone = max(sentences, key=lambda span: span[1] - span[0])
        rest = " ".join(row.corrected[start:end] for start, end in sentences if (start, end) != gone)
        pairs.append(Pair(row.prompt, row.corrected, rest, "left out"))
    return pairs


def load_pairs(path: str | Path) -> list[Pair]:
    """Read {prompt, chosen, rejected} rows."""
    rows = read_rows(path)
    require_fields(rows, dict.fromkeys(("prompt", "chosen", "rejected"), str), path)
    return [Pair(row["prompt"], row["chosen"], row["rejected"], "pair") for row in rows]


# --- losses ----------------------------------------------------------------------------------------------------------


def bradley_terry_loss(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Mean of -log sigmoid(chosen - rejected); scores (B,) -> ()."""
    from torch.nn.functional import logsigmoid

    return -logsigmoid(chosen - rejected).mean()


def collate_pairs(tokenizer):
    """Items {input_ids, rejected_ids} -> one padded batch (2B, T): the chosen texts, then the rejected ones."""

    def collate(items: list[dict]) -> dict[str, Tensor]:
        ids = [item["input_ids"] for item in items] + [item["rejected_ids"] for item in items]
        return dict(tokenizer.pad({"input_ids": ids}, return_tensors="pt", padding_side="right"))

    return collate


def pair_loss(score):
    """The Bradley-Terry loss of a batch from `collate_pairs`; `score(model, batch)` -> (2B,)."""

    def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        chosen, rejected = score(model, batch).float().chunk(2)
        return bradley_terry_loss(chosen, rejected)

    return loss


# --- metrics ---------------------------------------------------------------------------------------------------------


def auroc(scores: list[float], positive: list[bool]) -> float | None:
    """P(score of a positive > score of a negative), ties counting half; None where a class is absent."""
    ranked = sorted(zip(scores, positive, strict=True), key=lambda pair: pair[0])
    n_positive = sum(positive)
    n_negative = len(ranked) - n_positive
    if not n_positive or not n_negative:
        return None
    wins, below = 0.0, 0
    for _, group in itertools.groupby(ranked, key=lambda pair: pair[0]):
        flags = [flag for _, flag in group]
        negatives = len(flags) - sum(flags)
        wins += sum(flags) * (below + negatives / 2)
        below += negatives
    return wins / (n_positive * n_negative)


def f1(predicted: list[bool], actual: list[bool]) -> float:
    """2 tp / (2 tp + fp + fn); 0 where there is nothing to find and nothing found."""
    hits = sum(p and a for p, a in zip(predicted, actual, strict=True))
    total = sum(predicted) + sum(actual)
    return 2 * hits / total if total else 0.0


def classification_metrics(margins: list[float], is_error: list[bool]) -> dict:
    """Metrics of one error class against `no error`. A margin above 0 says error."""
    said = [margin > 0 for margin in margins]
    share = sum(is_error) / len(is_error)
    return {
        "units": len(is_error),
        "error_share": share,
        "accuracy": sum(p == a for p, a in zip(said, is_error, strict=True)) / len(said),
        "baseline_accuracy": max(share, 1 - share),
        "f1_error": f1(said, is_error),
        "f1_no_error": f1([not p for p in said], [not a for a in is_error]),
        "auroc": auroc(margins, is_error),
    }


def pair_metrics(pairs: list[Pair], chosen: list[float], rejected: list[float]) -> dict:
    """Pairwise accuracy (a tie counts half), beside that of guessing and of `the longer answer wins`, per kind too."""

    def accuracy(first: list[float], second: list[float]) -> float:
        return sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in zip(first, second, strict=True)) / len(first)

    def measure(index: list[int]) -> dict:
        return {
            "pairs": len(index),
            "pairwise_accuracy": accuracy([chosen[i] for i in index], [rejected[i] for i in index]),
            "baseline_accuracy": 0.5,
            "longer_wins_accuracy": accuracy(
                [len(words(pairs[i].chosen)) for i in index], [len(words(pairs[i].rejected)) for i in index]
            ),
        }

    metrics = measure(list(range(len(pairs))))
    kinds = sorted({pair.kind for pair in pairs})
    if len(kinds) > 1:
        metrics["kinds"] = {k: measure([i for i, pair in enumerate(pairs) if pair.kind == k]) for k in kinds}
    return metrics


def words(text: str) -> list[str]:
    return re.findall(r"\S+", text)


def mean_and_deviation(values: list[float]) -> tuple[float, float]:
    """Mean and sample deviation (0 for a single value)."""
    mean = sum(values) / len(values)
    deviation = (sum((value - mean) ** 2 for value in values) / max(1, len(values) - 1)) ** 0.5
    return mean, deviation


def format_metrics(metrics: dict, title: str) -> str:
    """A two-column table of the numbers in `metrics`, nested ones indented."""
    lines = [title]

    def add(values: dict, indent: str) -> None:
        for name, value in values.items():
            if isinstance(value, dict):
                lines.append(f"{indent}{name}")
                add(value, indent + "  ")
            else:
                shown = "-" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)
                lines.append(f"{indent}{name:<{30 - len(indent)}}{shown:>12}")

    add(metrics, "  ")
    return "\n".join(lines)


# --- training an aspect ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LabelledAnswer:
    """One answer as a token classifier reads it."""

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
            found.append(LabelledAnswer(context, [text[start:end] for start, end in spans], labels))
    return found


def encode_answers(
    tokenizer: PreTrainedTokenizerBase, answers: list[LabelledAnswer], max_length: int
) -> tuple[list[dict], int]:
    """-> items {input_ids, labels (IGNORED but at the separators)}, and how many inputs lost their end."""
    inputs = [unit_words(answer.context, answer.units, tokenizer.sep_token) for answer in answers]
    encoded = tokenizer(
        [words for words, _ in inputs], is_split_into_words=True, truncation=True, max_length=max_length
    )
    items, cut = [], 0
    for i, (answer, (_, separators)) in enumerate(zip(answers, inputs, strict=True)):
        label_of_word = dict(zip(separators, answer.labels, strict=True))
        word_ids = encoded.word_ids(i)
        labels, seen = [], set()
        for word in word_ids:
            labels.append(label_of_word.get(word, IGNORED) if word not in seen else IGNORED)
            seen.add(word)
        cut += bool(encoded.encodings[i].overflowing)
        if any(label != IGNORED for label in labels):
            items.append({"input_ids": encoded["input_ids"][i], "labels": labels})
    return items, cut


def train_aspect(
    aspect: str, train: list[Feedback], dev: list[Feedback], splitter: Splitter, args: argparse.Namespace
) -> dict:
    """Train the reward model of `aspect` from `args.model_path`, measure it on `dev`, write `args.save_dir`.

    Returns the metrics that are written to metrics.json there. Raises UserError where a split yields no example.
    """
    if aspect == "completeness":
        return _train_completeness(train, dev, splitter, args)
    return _train_units(aspect, train, dev, splitter, args)


def _train_units(aspect, train, dev, splitter, args) -> dict:
    from transformers import (
        AutoModelForTokenClassification,
        AutoTokenizer,
        DataCollatorForTokenClassification,
        set_seed,
    )

    set_seed(args.seed)
    tokenizer = load_pretrained(AutoTokenizer.from_pretrained, args.model_path, add_prefix_space=True)
    model = load_pretrained(
        AutoModelForTokenClassification.from_pretrained,
        args.model_path,
        dtype="float32",
        num_labels=len(LABELS),
        id2label=dict(enumerate(LABELS)),
        label2id={name: number for number, name in enumerate(LABELS)},
    )
    max_length = min(args.max_length, position_limit_of(model, tokenizer))
    items = {}
    for split, rows in (("train", train), ("dev", dev)):
        items[split], cut = encode_answers(tokenizer, label_answers(aspect, rows, splitter), max_length)
        _say(split, f"{len(items[split])} answers, {_label_counts(items[split])}", cut, max_length)
        _require(items[split], split, aspect)
    error = NF_ERR if aspect == "relevance" else F_ERR

    def finish(model) -> dict:
        margins, is_error = unit_margins(model, tokenizer.pad_token_id, items["dev"], error, args.batch_size)
        metrics = {"aspect": aspect, "splitter": splitter.name, "dev": classification_metrics(margins, is_error)}
        _print_once(format_metrics(metrics["dev"], f"{aspect} on {args.dev_file}"))
        return metrics

    collate = DataCollatorForTokenClassification(tokenizer)
    return fit(model, tokenizer, items["train"], items["dev"], collate, args, finish=finish)


def _train_completeness(train, dev, splitter, args) -> dict:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, set_seed

    set_seed(args.seed)
    tokenizer = load_pretrained(AutoTokenizer.from_pretrained, args.model_path)
    model = load_pretrained(
        AutoModelForSequenceClassification.from_pretrained, args.model_path, dtype="float32", num_labels=1
    )
    max_length = min(args.max_length, position_limit_of(model, tokenizer))
    cut = 0

    def encode(prompts: list[str], answers: list[str]) -> list[list[int]]:
        nonlocal cut
        texts = [completeness_text(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
        encoded = tokenizer(texts, truncation=True, max_length=max_length)
        cut += sum(bool(encoding.overflowing) for encoding in encoded.encodings)
        return encoded["input_ids"]

    def score(model, batch) -> Tensor:
        return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, 0]

    pairs = {
        split: [pair for row in rows for pair in completeness_pairs(row, splitter)]
        for split, rows in (("train", train), ("dev", dev))
    }
    _require(pairs["train"], "train", "completeness")
    _require(pairs["dev"], "dev", "completeness")

    def finish(model) -> dict:
        metrics = measure_preferences(model, tokenizer.pad_token_id, score, encode, pairs["dev"], dev, args.batch_size)
        metrics = {"aspect": "completeness", "splitter": splitter.name, **metrics}
        _print_once(format_metrics(metrics["dev"], f"completeness on {args.dev_file}"))
        mean, deviation = metrics["score_mean"], metrics["score_std"]
        _print_once(f"dev answers: --completeness_reward_mean {mean:.6g} --completeness_reward_std {deviation:.6g}")
        return metrics

    items = {split: encode_pairs(encode, pairs[split]) for split in pairs}
    _say("train and dev", f"{len(items['train'])} and {len(items['dev'])} pairs", cut, max_length)
    return fit(model, tokenizer, items["train"], items["dev"], collate_pairs(tokenizer), args, pair_loss(score), finish)


def encode_pairs(encode, pairs: list[Pair]) -> list[dict]:
    """-> items {input_ids: the chosen text, rejected_ids: the other}; `encode(prompts, answers)` -> lists of ids."""
    prompts = [pair.prompt for pair in pairs]
    chosen = encode(prompts, [pair.chosen for pair in pairs])
    rejected = encode(prompts, [pair.rejected for pair in pairs])
    return [{"input_ids": a, "rejected_ids": b} for a, b in zip(chosen, rejected, strict=True)]


def position_limit_of(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> int:
    from .checkpoints import position_limit

    return position_limit(model.config, tokenizer)


def unit_margins(
    model: nn.Module, pad_id: int, items: list[dict], error: int, batch_size: int
) -> tuple[list[float], list[bool]]:
    """At each labelled separator: logit of `error` less that of no error, and whether the label is `error`."""
    import torch

    from .checkpoints import padded_batches

    margins, is_error = [], []
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
    return margins, is_error


def measure_preferences(model, pad_id, score, encode, pairs: list[Pair], rows: list[Feedback], batch_size) -> dict:
    """Pairwise metrics on `pairs`; mean and deviation of the scores of all answers in `rows` (of the pairs if none)."""
    import torch

    from .checkpoints import padded_batches

    device = next(model.parameters()).device

    def scores_of(texts: list[tuple[str, str]]) -> dict[tuple[str, str], float]:
        unique = list(dict.fromkeys(texts))
        ids_of = encode([prompt for prompt, _ in unique], [answer for _, answer in unique])
        found = {}
        with torch.inference_mode():
            for indices, ids, mask in padded_batches(ids_of, pad_id, batch_size, device):
                values = score(model, {"input_ids": ids, "attention_mask": mask}).float().tolist()
                found.update((unique[i], value) for i, value in zip(indices, values, strict=True))
        return found

    answers = [(row.prompt, answer) for row in rows for answer in row.answers]
    sides = [(pair.prompt, text) for pair in pairs for text in (pair.chosen, pair.rejected)]
    scores = scores_of(answers + sides)
    mean, deviation = mean_and_deviation([scores[text] for text in answers or sides])
    return {
        "dev": pair_metrics(
            pairs,
            [scores[pair.prompt, pair.chosen] for pair in pairs],
            [scores[pair.prompt, pair.rejected] for pair in pairs],
        ),
        "score_mean": mean,
        "score_std": deviation,
    }


def _require(found: list, split: str, what: str) -> None:
    if not found:
        raise UserError(f"the {split} file yields no example for {what}; give more feedback")


def _label_counts(items: list[dict]) -> str:
    labels = [label for item in items for label in item["labels"] if label != IGNORED]
    return ", ".join(f"{labels.count(number)} {name}" for number, name in enumerate(LABELS) if number in labels)


def _say(split: str, what: str, cut: int, max_length: int) -> None:
    _print_once(f"{split}: {what}; {cut} inputs cut to {max_length} tokens")


def _print_once(text: str) -> None:
    from .launch import process_state

    process_state().print(text)
