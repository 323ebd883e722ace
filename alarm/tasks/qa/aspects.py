"""Long-form QA: the data, and the rewards for relevance, factuality and completeness.

Importing this module loads no torch: what can be checked without a model is checked first.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from ...common.distinct import distinct
from ...common.errors import UserError
from ...common.files import read_json, read_rows, require_fields
from ...types import AspectScore, Rollout
from ..spans import Span, Splitter, last_token_of, make_splitter, subsentence_spans, token_offsets

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

ASPECTS = ("relevance", "factuality", "completeness")
MODEL_FOLDERS = {"relevance": "rel_rm", "factuality": "fact_rm", "completeness": "comp_rm"}

# labels of the token classifiers: an error of the factual kind, one of the other kind, none
F_ERR, NF_ERR, NO_ERR = 0, 1, 2
LABELS = ("F-ERR", "NF-ERR", "O")

RATE_WITHOUT_UNITS = 0.5


# --- data ------------------------------------------------------------------------------------------------------------


def load_examples(path: str | Path) -> list[dict]:
    """Read qa-feedback rows (JSON list or JSON lines).

    `text`: the policy's prompt; `question`: the question in it. `answer` (references) and `passages` stay as they are.
    Raises UserError naming the row where `text` or `question` is missing, empty or no string.
    """
    rows = read_rows(path)
    require_fields(rows, {"text": str, "question": str}, path)
    for number, row in enumerate(rows, start=1):
        for name in ("text", "question"):
            if not row[name].strip():
                raise UserError(f"{path}, row {number}: '{name}' is empty; fill it in or remove the row")
        if not isinstance(row.get("answer", ""), str | list):
            raise UserError(f"{path}, row {number}: 'answer' is {type(row['answer']).__name__}; expected strings")
    return rows


# --- what the reward models read -------------------------------------------------------------------------------------


def relevance_context(question: str) -> str:
    return f"question: {question} answer:"


def factuality_context(prompt: str) -> str:
    return f"{prompt} answer:"


def completeness_text(prompt: str, answer: str) -> str:
    return f"{' '.join(prompt.split())} answer: {answer}"


def unit_words(context: str, units: list[str], separator: str) -> tuple[list[str], list[int]]:
    """Words of "{context} </s> {unit 1} </s> {unit 2} ...", and which of them are the K separators."""
    words, separators = context.split(), []
    for unit in units:
        separators.append(len(words))
        words += [separator, *unit.split()]
    return words, separators


# --- settings and checks ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class QASettings:
    """Rewards of single units, and the constants that normalise completeness."""

    relevance_positive_reward: float = 0.3
    relevance_negative_reward: float = -0.3
    factuality_positive_reward: float = 0.5
    factuality_negative_reward: float = -0.5
    completeness_reward_mean: float = -0.44677690555995353
    completeness_reward_std: float = 8.301160619054132
    completeness_reward_bias: float = 0.0
    completeness_reward_scale: float = 0.3
    sigmoid_shaping: bool = False

    @classmethod
    def from_flags(cls, args) -> QASettings:
        """From parsed flags of the same names."""
        return cls(**{field.name: getattr(args, field.name) for field in fields(cls)})


def _read_config(folder: Path, role: str) -> dict:
    """config.json as a dict, after checking that `folder` holds a checkpoint."""
    if not folder.is_dir():
        raise UserError(f"{role}: the folder {folder} does not exist; put the checkpoint there")
    try:
        config = read_json(folder / "config.json")
    except UserError as error:
        raise UserError(f"{role}: {error}; copy the whole folder") from None
    if not isinstance(config, dict):
        raise UserError(f"{role}: {folder / 'config.json'} is no object; copy the whole folder")
    if not any(folder.glob("*.safetensors")) and not any(folder.glob("pytorch_model*.bin")):
        raise UserError(f"{role}: {folder} has no weights (model.safetensors or pytorch_model.bin)")
    return config


def check_reward_models(reward_model_dir: str | Path, names: Iterable[str] = ASPECTS) -> None:
    """Look at the folders of the aspects' reward models without loading any.

    Raises UserError for a folder that is missing or incomplete, for a model of the wrong kind, for wrong labels.
    """
    for name in names:
        folder = Path(reward_model_dir) / MODEL_FOLDERS[name]
        role = f"the {name} reward model"
        config = _read_config(folder, role)
        kind = "SequenceClassification" if name == "completeness" else "TokenClassification"
        architecture = (config.get("architectures") or [f"For{kind}"])[0]
        if not architecture.endswith(f"For{kind}"):
            raise UserError(f"{role} in {folder} is a {architecture}; it must be a model for {kind}")
        labels = config.get("id2label")
        count = len(labels) if labels else config.get("num_labels", 2)
        wanted = 1 if name == "completeness" else len(LABELS)
        if count != wanted:
            raise UserError(f"{role} in {folder} has {count} labels; it must have {wanted}")
        if labels and name != "completeness":
            found = [labels[key] for key in sorted(labels, key=int)]
            if set(found) & set(LABELS) and found != list(LABELS):
                raise UserError(f"{role} in {folder} has the labels {found}; they must be {list(LABELS)} in this order")


# --- the reward models -----------------------------------------------------------------------------------------------


class _RewardModel:
    """A Longformer (or another encoder) with a head, its tokenizer, and a count of the inputs it had to cut."""

    def __init__(self, name: str, model_class, reward_model_dir: str | Path, device, dtype, batch_size: int, **kwargs):
        from ...models.load import load_config, load_model, load_tokenizer, position_limit
        from ...models.longformer import accelerate_longformer

        role, folder = f"the {name} reward model", Path(reward_model_dir) / MODEL_FOLDERS[name]
        config = load_config(folder, role)
        has_tokenizer = any((folder / file).is_file() for file in ("tokenizer.json", "vocab.json", "vocab.txt"))
        # a folder of weights alone goes with the tokenizer of the model that it was trained from
        source = folder if has_tokenizer or config.model_type != "longformer" else "allenai/longformer-base-4096"
        self.tokenizer = load_tokenizer(source, role, **kwargs)
        self.model = accelerate_longformer(load_model(model_class, folder, role, device, dtype))
        self.max_length = position_limit(config, self.tokenizer)
        self.batch_size = batch_size
        self.truncated = 0

    def encode(self, inputs: list, **kwargs):
        """Tokenise all inputs at once, the longest cut on the right."""
        encoded = self.tokenizer(inputs, truncation=True, max_length=self.max_length, **kwargs)
        self.truncated += sum(bool(encoding.overflowing) for encoding in encoded.encodings)
        return encoded

    def logits(self, rows: list[list[int]], global_first: bool) -> list[Tensor]:
        """ids of each input -> logits of each input, float32 on the CPU, in order; padded positions not removed.

        Equal inputs go through the model once and share their logits. `truncated` counts each of them.
        global_first: the first token attends to all and all to it (Longformer's classification token).
        """
        import torch

        from ...models.load import padded_batches

        different, places = distinct(map(tuple, rows))
        batches = padded_batches(different, self.tokenizer.pad_token_id, self.batch_size, self.model.device)
        found: list = [None] * len(different)
        with torch.inference_mode():
            for indices, ids, mask in batches:
                inputs = {"input_ids": ids, "attention_mask": mask}
                if self.model.config.model_type == "longformer" and global_first:
                    inputs["global_attention_mask"] = torch.zeros_like(mask)
                    inputs["global_attention_mask"][:, 0] = 1
                for i, logits in zip(indices, self.model(**inputs).logits.float().cpu(), strict=True):
                    found[i] = logits
        return [found[place] for place in places]


class UnitClassifier(_RewardModel):
    """Token classifier that judges each unit of an answer at the separator in front of it."""

    def __init__(self, name: str, reward_model_dir: str | Path, device, dtype, batch_size: int):
        from transformers import AutoModelForTokenClassification

        # the input is a list of words, which byte-level tokenizers take only with a space in front of each
        super().__init__(
            name, AutoModelForTokenClassification, reward_model_dir, device, dtype, batch_size, add_prefix_space=True
        )

    def __call__(self, contexts: list[str], units: list[list[str]]) -> list[Tensor]:
        """Judge "{context} </s> {unit 1} </s> {unit 2} ...", split on white space.

        N contexts, N lists of units -> N x (K_i, 3) logits. K_i is smaller than the number of units where the
        separators of the last ones lie beyond what the model takes.
        """
        import torch

        if not contexts:
            return []
        inputs = [unit_words(c, texts, self.tokenizer.sep_token) for c, texts in zip(contexts, units, strict=True)]
        encoded = self.encode([words for words, _ in inputs], is_split_into_words=True)
        found = []
        for i, logits in enumerate(self.logits(encoded["input_ids"], global_first=False)):
            first_token: dict = {}
            for token, word in enumerate(encoded.word_ids(i)):
                first_token.setdefault(word, token)
            at = [first_token[word] for word in inputs[i][1] if word in first_token]
            found.append(logits[torch.tensor(at, dtype=torch.long)])
        return found


class TextScorer(_RewardModel):
    """Sequence classifier with one output."""

    def __init__(self, name: str, reward_model_dir: str | Path, device, dtype, batch_size: int):
        from transformers import AutoModelForSequenceClassification

        from ...models.holistic import read_by_mask

        super().__init__(name, AutoModelForSequenceClassification, reward_model_dir, device, dtype, batch_size)
        read_by_mask(self.model, self.tokenizer.pad_token_id)

    def __call__(self, texts: list[str]) -> list[float]:
        """N texts -> N raw scores."""
        if not texts:
            return []
        return [logits[0].item() for logits in self.logits(self.encode(texts)["input_ids"], global_first=True)]


# --- the aspects -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ParsedAnswer:
    """One answer with its units, read once for relevance and factuality."""

    text: str
    offsets: list[Span]  # T spans of text, one per response token
    sentences: list[Span]
    subsentences: list[Span]

    def last_tokens(self, units: list[Span]) -> list[int]:
        """The response token that each unit ends on. Units are not blank, and the offsets cover the text."""
        return [last_token_of(self.offsets, unit) for unit in units]


def parse_answers(tokenizer: PreTrainedTokenizerBase, response_ids: list[Tensor], splitter: Splitter) -> list:
    """B x (T_i,) sampled ids -> B ParsedAnswer. Each text is parsed once."""
    decoded = [token_offsets(tokenizer, ids) for ids in response_ids]
    sentences = splitter([text for text, _ in decoded])
    return [
        ParsedAnswer(text, offsets, spans, subsentence_spans(text, spans))
        for (text, offsets), spans in zip(decoded, sentences, strict=True)
    ]


def judge_units(logits: Tensor, error: int) -> list[float]:
    """(K, 3) logits at the K separators -> for each unit 1.0 correct, 0.0 wrong, NaN if a logit is not finite.

    A unit is correct if the logit for "no error" is above the one for `error`.
    """
    import torch

    correct = (logits[:, NO_ERR] > logits[:, error]).float()
    return correct.masked_fill(~torch.isfinite(logits).all(dim=1), torch.nan).tolist()


def unit_rewards(last_tokens: list[int], correct: list[float], length: int, values: tuple[float, float]) -> Tensor:
    """Zeros, with the value of (a correct, an incorrect) unit on the token it ends on. -> (length,) float32.

    correct: see `judge_units`; a NaN unit is paid NaN.
    """
    import torch

    rewards = torch.zeros(length)
    for token, good in zip(last_tokens, correct, strict=True):
        rewards[token] += good if math.isnan(good) else values[0] if good else values[1]
    return rewards


def rate(correct: list[float]) -> float:
    """Correct units / all units; 0.5 if there is none, NaN if one is NaN."""
    return sum(correct) / len(correct) if correct else RATE_WITHOUT_UNITS


class QAAspects:
    """Relevance, factuality and completeness of a rollout.

    Args:
        reward_model_dir: folder that holds rel_rm, fact_rm and comp_rm.
        splitter: name of a sentence splitter (see spans.make_splitter), or a Splitter.
        tokenizer: the policy's.
        settings: QASettings.
        device, dtype: of the reward models.
        batch_size: answers per forward pass of a reward model.
        names: the aspects whose models are loaded.

    Raises UserError for a splitter or a model that is absent, incomplete or of the wrong kind.
    """

    def __init__(
        self,
        reward_model_dir: str | Path,
        splitter: str | Splitter,
        tokenizer: PreTrainedTokenizerBase,
        settings: QASettings | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | str = "float32",
        batch_size: int = 8,
        names: Iterable[str] = ASPECTS,
    ):
        names = tuple(names)
        self.splitter = make_splitter(splitter) if isinstance(splitter, str) else splitter
        self.tokenizer = tokenizer
        self.settings = settings or QASettings()
        check_reward_models(reward_model_dir, names)
        self.models = {
            name: (TextScorer if name == "completeness" else UnitClassifier)(
                name, reward_model_dir, device, dtype, batch_size
            )
            for name in names
        }

    @property
    def truncated(self) -> dict[str, int]:
        """Per aspect, how many inputs were longer than its model takes."""
        return {name: model.truncated for name, model in self.models.items()}

    def __call__(self, rollout: Rollout, names: Iterable[str] = ASPECTS) -> dict[str, AspectScore]:
        """Score a rollout. -> the named aspects, rewards B x (T_i,) float32 on the CPU.

        Metrics: relevance_rate, factuality_rate (0.5 where an answer has no unit), completeness_reward (normalised,
        before any shaping, so that runs with and without it compare). A sentence that a model's length limit left
        unread gets no reward and counts in no rate.
        """
        names = tuple(names)
        scores = {}
        if "relevance" in names or "factuality" in names:
            answers = parse_answers(self.tokenizer, rollout.response_ids, self.splitter)
        for name in names:
            if name == "relevance":
                contexts = [relevance_context(example["question"]) for example in rollout.examples]
                units = [answer.subsentences for answer in answers]
                scores[name] = self._judge(name, NF_ERR, contexts, answers, units)
            elif name == "factuality":
                contexts = [factuality_context(query) for query in rollout.queries]
                units = [answer.sentences for answer in answers]
                scores[name] = self._judge(name, F_ERR, contexts, answers, units)
            else:
                scores[name] = self._completeness(rollout)
        return scores

    def _shape(self, value: float) -> float:
        import torch

        from ...rewards import sigmoid_shape

        shaped = torch.tensor(value, dtype=torch.float64)
        return sigmoid_shape(shaped).item() if self.settings.sigmoid_shaping else value

    def _judge(
        self, name: str, error: int, contexts: list[str], answers: list[ParsedAnswer], units: list[list[Span]]
    ) -> AspectScore:
        """The reward of each unit on the token it ends on, and the rate of correct units. error: see `judge_units`."""
        values = tuple(
            self._shape(getattr(self.settings, f"{name}_{sign}_reward")) for sign in ("positive", "negative")
        )
        judged = [i for i, spans in enumerate(units) if spans]
        texts = [[answers[i].text[start:end] for start, end in units[i]] for i in judged]
        logits = dict(zip(judged, self.models[name]([contexts[i] for i in judged], texts), strict=True))
        rewards, rates = [], []
        for i, answer in enumerate(answers):
            correct = judge_units(logits[i], error) if i in logits else []
            last_tokens = answer.last_tokens(units[i][: len(correct)])
            rewards.append(unit_rewards(last_tokens, correct, len(answer.offsets), values))
            rates.append(rate(correct))
        return AspectScore(rewards, {f"{name}_rate": rates})

    def _completeness(self, rollout: Rollout) -> AspectScore:
        """((raw - mean) / std) * scale + bias, on the last token."""
        import torch

        s = self.settings
        pairs = zip(rollout.queries, rollout.responses, strict=True)
        texts = [completeness_text(query, response) for query, response in pairs]
        raw = self.models["completeness"](texts)
        values = [
            (score - s.completeness_reward_mean) / s.completeness_reward_std * s.completeness_reward_scale
            + s.completeness_reward_bias
            for score in raw
        ]
        rewards = []
        for value, ids in zip(values, rollout.response_ids, strict=True):
            rewards.append(torch.zeros(len(ids)))
            rewards[-1][-1:] = self._shape(value)
        return AspectScore(rewards, {"completeness_reward": values})
