"""Classifiers that judge answers: each unit of an answer at a separator in front of it, or a whole text.

Importing this module loads no torch: what can be checked without a model is checked first.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..common.distinct import distinct
from ..common.errors import UserError
from ..common.files import read_json

if TYPE_CHECKING:
    from torch import Tensor

# labels of the token classifiers: an error of the factual kind, one of the other kind, none
F_ERR, NF_ERR, NO_ERR = 0, 1, 2
LABELS = ("F-ERR", "NF-ERR", "O")


# --- checks without loading ------------------------------------------------------------------------------------------


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


def check_classifier(folder: Path, role: str, kind: str) -> None:
    """Look at a classifier's folder without loading it. kind: TokenClassification, or SequenceClassification.

    Raises UserError for a folder that is missing or incomplete, for a model of the wrong kind, for wrong labels.
    """
    config = _read_config(folder, role)
    architecture = (config.get("architectures") or [f"For{kind}"])[0]
    if not architecture.endswith(f"For{kind}"):
        raise UserError(f"{role} in {folder} is a {architecture}; it must be a model for {kind}")
    labels = config.get("id2label")
    count = len(labels) if labels else config.get("num_labels", 2)
    wanted = len(LABELS) if kind == "TokenClassification" else 1
    if count != wanted:
        raise UserError(f"{role} in {folder} has {count} labels; it must have {wanted}")
    if labels and wanted > 1:
        found = [labels[key] for key in sorted(labels, key=int)]
        if set(found) & set(LABELS) and found != list(LABELS):
            raise UserError(f"{role} in {folder} has the labels {found}; they must be {list(LABELS)} in this order")


# --- the models -------------------------------------------------------------------------------------------------------


def unit_words(context: str, units: list[str], separator: str) -> tuple[list[str], list[int]]:
    """Words of "{context} </s> {unit 1} </s> {unit 2} ...", and which of them are the K separators."""
    words, separators = context.split(), []
    for unit in units:
        separators.append(len(words))
        words += [separator, *unit.split()]
    return words, separators


class _RewardModel:
    """A Longformer (or another encoder) with a head, its tokenizer, and a count of the inputs it had to cut."""

    def __init__(self, folder: Path, role: str, model_class, device, dtype, batch_size: int, **kwargs):
        from .load import load_config, load_model, load_tokenizer, position_limit
        from .longformer import use_packed_attention

        config = load_config(folder, role)
        has_tokenizer = any((folder / file).is_file() for file in ("tokenizer.json", "vocab.json", "vocab.txt"))
        # a folder of weights alone goes with the tokenizer of the model that it was trained from
        source = folder if has_tokenizer or config.model_type != "longformer" else "allenai/longformer-base-4096"
        self.tokenizer = load_tokenizer(source, role, **kwargs)
        self.model = use_packed_attention(load_model(model_class, folder, role, device, dtype))
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

        from .load import is_longformer, padded_batches

        different, places = distinct(map(tuple, rows))
        packed = is_longformer(self.model)
        batches = padded_batches(different, self.tokenizer.pad_token_id, self.batch_size, self.model.device, packed)
        found: list = [None] * len(different)
        with torch.inference_mode():
            for indices, ids, mask in batches:
                inputs = {"input_ids": ids, "attention_mask": mask}
                if packed and global_first:
                    inputs["global_attention_mask"] = torch.zeros_like(mask)
                    inputs["global_attention_mask"][:, 0] = 1
                for i, logits in zip(indices, self.model(**inputs).logits.float().cpu(), strict=True):
                    found[i] = logits
        return [found[place] for place in places]


class UnitClassifier(_RewardModel):
    """Token classifier that judges each unit of an answer at the separator in front of it."""

    def __init__(self, folder: Path, role: str, device, dtype, batch_size: int):
        from transformers import AutoModelForTokenClassification

        # the input is a list of words, which byte-level tokenizers take only with a space in front of each
        super().__init__(
            folder, role, AutoModelForTokenClassification, device, dtype, batch_size, add_prefix_space=True
        )

    def __call__(self, contexts: list[str], units: list[list[str]]) -> list[Tensor]:
        """Judge "{context} </s> {unit 1} </s> {unit 2} ...", split on white space.

        N contexts, N lists of units -> N x (K_i, 3) logits. K_i is smaller than the number of units if the
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

    def __init__(self, folder: Path, role: str, device, dtype, batch_size: int):
        from transformers import AutoModelForSequenceClassification

        from .holistic import read_by_mask

        super().__init__(folder, role, AutoModelForSequenceClassification, device, dtype, batch_size)
        read_by_mask(self.model, self.tokenizer.pad_token_id)

    def __call__(self, texts: list[str]) -> list[float]:
        """N texts -> N raw scores."""
        if not texts:
            return []
        return [logits[0].item() for logits in self.logits(self.encode(texts)["input_ids"], global_first=True)]
