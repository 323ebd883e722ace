"""Loading reward models so that nothing is silently random, and batching what they read."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
)
from transformers.utils import is_accelerate_available, is_protobuf_available, is_sentencepiece_available
from transformers.utils import logging as transformers_logging

from ..common.errors import UserError
from ..common.launch import process_state
from .weights import WeightsError, load_whole, some_names

CPU_TOKENS = 1024  # of one pass; see `padded_batches`

# position ids start after the padding index in these
_OFFSET_POSITIONS = ("roberta", "longformer", "camembert", "xlm-roberta", "xlm-roberta-xl", "data2vec-text", "mpnet")


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Progress bars stay (13 billion weights take minutes); reports and notes about the libraries' own future go."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)


@contextlib.contextmanager
def reported(role: str, path: str | Path, refusal: type[ValueError] = WeightsError) -> Iterator[None]:
    """Whatever transformers raises on a broken or absent checkpoint becomes a UserError of one line.

    refusal: what is raised for weights that do not fit; our trainer has a class of its own, `trl.weights.WeightsError`.
    """
    try:
        with _quiet_transformers():
            yield
    except UserError:
        raise
    except refusal as error:
        raise UserError(f"{role} {error}") from None
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"{role} {path} cannot be loaded ({reason[:300]}); give a local folder, or a hub name while online"
        ) from error


def load_config(path: str | Path, role: str) -> PretrainedConfig:
    """The configuration beside a checkpoint. UserError if there is none."""
    with reported(role, path):
        return AutoConfig.from_pretrained(str(path))


def has_encoder(config: PretrainedConfig, role: str) -> bool:
    """Whether a language model reads prompts by an encoder (T5), or in the sequence that it writes (Llama).

    Raises UserError, in which `role` names the model, for one that writes no text.
    """
    kind = type(config)
    if config.is_encoder_decoder or kind in MODEL_FOR_CAUSAL_LM_MAPPING:
        return config.is_encoder_decoder
    if kind in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING:
        return True  # the encoder alone was saved: loading names the weights that are missing
    raise UserError(
        f"{role} is a {config.model_type}, which writes no text; give an encoder-decoder such as T5, "
        "or a decoder-only language model such as Llama"
    )


def load_model(
    model_class, path: str | Path, role: str, device: torch.device | str, dtype: torch.dtype | str, **kwargs
) -> PreTrainedModel:
    """`model_class.from_pretrained`, in eval mode on `device`.

    Raises UserError if it cannot be read, and by name if its weights do not fit (`weights.check_weights`).
    `role`: what the message calls it. kwargs: to `from_pretrained`.
    """
    dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    device = torch.device(device)
    # straight to the device: a 13B model in the memory of the host, once per process, would be too much. transformers
    # needs accelerate for that
    straight = device.type != "cpu" and is_accelerate_available()
    placed = {"device_map": {"": device}} if straight else {}
    with reported(role, path):
        model, _ = load_whole(model_class, str(path), dtype=dtype, **placed, **kwargs)
    return model.to(device).eval().requires_grad_(False)


def load_start(model_class, path: str | Path, new_head: bool = False, **kwargs) -> PreTrainedModel:
    """The float32 model that supervised training starts from; prints which weights are new and which are left unused.

    new_head: a base model may get a new head. kwargs: to `from_pretrained`. Raises UserError like `load_model`.
    """
    with reported("the model", path):
        model, heads = load_whole(model_class, str(path), new_head=new_head, dtype=torch.float32, **kwargs)
    if heads.new or heads.unused:
        new = f"start at random: {some_names(heads.new)}" if heads.new else "all come from the checkpoint"
        unused = f"; the checkpoint's {some_names(heads.unused)} are not used" if heads.unused else ""
        process_state().print(f"weights of {type(model).__name__}: {new}{unused}")
    return model


def load_tokenizer(path: str | Path, role: str, **kwargs) -> PreTrainedTokenizerBase:
    """The tokenizer beside a checkpoint. UserError if there is none, or only a slow one (no character offsets)."""
    try:
        with reported(f"the tokenizer of {role}", path):
            tokenizer = AutoTokenizer.from_pretrained(str(path), **kwargs)
    except UserError as error:
        if is_sentencepiece_available() and is_protobuf_available():
            raise
        hint = "if it is a tokenizer.model, `pip install sentencepiece protobuf`"
        raise UserError(f"the tokenizer of {role} {path} cannot be loaded; {hint}") from error
    if not tokenizer.is_fast:
        raise UserError(f"the tokenizer of {role} {path} is a slow one; save it as tokenizer.json")
    return tokenizer


def position_limit(config, tokenizer: PreTrainedTokenizerBase) -> int:
    """The longest input in tokens, special ones included, that a model and its tokenizer take."""
    limit = getattr(config, "max_position_embeddings", None) or tokenizer.model_max_length
    if config.model_type in _OFFSET_POSITIONS:
        limit -= (config.pad_token_id or 0) + 1
    return min(limit, tokenizer.model_max_length)


def is_longformer(model: PreTrainedModel) -> bool:
    """Whether it computes nothing for padding (`models.longformer`)."""
    return model.config.model_type == "longformer"


def padded_batches(
    rows: Sequence[Sequence[int]], pad_id: int, batch_size: int, device: torch.device | str, packed: bool = False
) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """Batches of rows of similar length, longest first, padded on the right.

    On a CPU a batch has at most CPU_TOKENS tokens, padding included, or one row: more are no faster there, and what is
    computed for padding is lost. packed: the model computes nothing for padding; batches are as large as they may be.
    Yields the indices of the rows, ids (b, T) and attention mask (b, T), int64 on `device`.
    """
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    limited = torch.device(device).type == "cpu" and not packed
    start = 0
    while start < len(order):
        fitting = CPU_TOKENS // max(len(rows[order[start]]), 1) if limited else batch_size
        indices = order[start : start + max(1, min(batch_size, fitting))]
        start += len(indices)
        ids = torch.full((len(indices), len(rows[indices[0]])), pad_id, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for k, i in enumerate(indices):
            ids[k, : len(rows[i])] = torch.tensor(rows[i])
            mask[k, : len(rows[i])] = 1
        yield indices, ids.to(device), mask.to(device)
