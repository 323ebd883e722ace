"""The helper functions of TRL's classic `trl.core`, as names over `ppo_math`, `generation` and torch.

Masks hold 0 and 1 (any number type) or False and True, and have the shape of the values.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import TopKLogitsWarper, TopPLogitsWarper

from . import ppo_math
from .config import flatten_dict
from .generation import SAMPLING, generate, special_tokens
from .trainer import set_seed

WANDB_PADDING = -1  # of ragged statistics in `stack_dicts`

__all__ = [
    "WANDB_PADDING",
    "LengthSampler",
    "add_suffix",
    "average_torch_dicts",
    "build_bert_batch_from_txt",
    "clip_by_value",
    "convert_to_scalar",
    "entropy_from_logits",
    "flatten_dict",
    "listify_batch",
    "logprobs_from_logits",
    "masked_mean",
    "masked_var",
    "masked_whiten",
    "pad_to_size",
    "respond_to_batch",
    "set_seed",
    "stack_dicts",
    "stats_to_np",
    "top_k_top_p_filtering",
    "whiten",
]


# --- statistics under a mask -----------------------------------------------------------------------------------------


def _checked(mask: Tensor) -> Tensor:
    """`mask` as bool. Raises ValueError for weights that are not 0 or 1."""
    if not ((mask == 0) | (mask == 1)).all():
        raise ValueError("a mask must hold 0 and 1 only; multiply the values by their weights instead")
    return mask.bool()


def masked_mean(values: Tensor, mask: Tensor, axis: int | None = None) -> Tensor:
    """Mean over the unmasked values, a scalar, or along `axis`. It is NaN if every value is masked."""
    return ppo_math.masked_mean(values, _checked(mask), dim=axis)


def masked_var(values: Tensor, mask: Tensor, unbiased: bool = True) -> Tensor:
    """Variance over the n unmasked values, a scalar: divided by n - 1, or by n if `unbiased` is False.

    It is 0 if n is 1. Raises ValueError if n is 0.
    """
    mask = _checked(mask)
    n = mask.sum()
    if n == 0:
        raise ValueError("every value is masked, so there is no variance; use larger mini-batches")
    variance = ppo_math.masked_var(values, mask)
    return variance if unbiased else variance * (n - 1) / n


def masked_whiten(values: Tensor, mask: Tensor, shift_mean: bool = True) -> Tensor:
    """Values less their masked mean, divided by their masked standard deviation; False: with the mean added again."""
    return ppo_math.masked_whiten(values, _checked(mask), shift_mean)


def whiten(values: Tensor, shift_mean: bool = True) -> Tensor:
    """`masked_whiten` with nothing masked."""
    return ppo_math.masked_whiten(values, torch.ones_like(values, dtype=torch.bool), shift_mean)


def clip_by_value(x: Tensor, tensor_min: Tensor | float, tensor_max: Tensor | float) -> Tensor:
    """`x`, with what is below `tensor_min` or above `tensor_max` set to that bound."""
    low, high = (torch.as_tensor(bound, dtype=x.dtype, device=x.device) for bound in (tensor_min, tensor_max))
    return x.clamp(low, high)


# --- logits ----------------------------------------------------------------------------------------------------------


def logprobs_from_logits(logits: Tensor, labels: Tensor, gather: bool = True) -> Tensor:
    """Log-probabilities (B, T) float32 of `labels` (B, T); with gather=False of all tokens, (B, T, V) float32."""
    return ppo_math.token_logprobs(logits, labels) if gather else logits.float().log_softmax(-1)


def entropy_from_logits(logits: Tensor) -> Tensor:
    """Entropy in nats, (...) float32, of each distribution in `logits` (..., V). It has a gradient."""
    return ppo_math.token_entropy(logits, differentiable=True)


def top_k_top_p_filtering(
    logits: Tensor, top_k: int = 0, top_p: float = 1.0, filter_value: float = -float("inf"), min_tokens_to_keep: int = 1
) -> Tensor:
    """Logits (B, V) with `filter_value` in all but the `top_k` largest, then all but the nucleus of mass `top_p`.

    top_k=0 and top_p=1 keep everything.
    """
    options = {"filter_value": filter_value, "min_tokens_to_keep": min_tokens_to_keep}
    if top_k > 0:
        logits = TopKLogitsWarper(top_k=top_k, **options)(None, logits)
    if top_p < 1:
        logits = TopPLogitsWarper(top_p=top_p, **options)(None, logits)
    return logits


# --- dictionaries of statistics --------------------------------------------------------------------------------------


def stack_dicts(stats_dicts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Per name the flattened tensors of N dictionaries, (N, longest), padded on the right with WANDB_PADDING."""
    return {
        name: pad_sequence([d[name].flatten() for d in stats_dicts], batch_first=True, padding_value=WANDB_PADDING)
        for name in stats_dicts[0]
    }


def average_torch_dicts(list_of_dicts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Per name the mean over the dictionaries of tensors of one shape."""
    return {name: torch.stack([d[name] for d in list_of_dicts]).mean(0) for name in list_of_dicts[0]}


def add_suffix(input_dict: dict[str, Any], suffix: str) -> dict[str, Any]:
    """The same values under `name + suffix`."""
    return {name + suffix: value for name, value in input_dict.items()}


def convert_to_scalar(stats: dict[str, Any]) -> dict[str, Any]:
    """Tensors and arrays of shape () or (1,) as Python numbers; everything else as it is."""

    def scalar(value: Any) -> Any:
        single = isinstance(value, Tensor | np.ndarray) and tuple(value.shape) in ((), (1,))
        return value.item() if single else value

    return {name: scalar(value) for name, value in stats.items()}


def stats_to_np(stats_dict: dict[str, Any]) -> dict[str, Any]:
    """Tensors as numpy arrays (bfloat16 as float32), single numbers as floats; everything else as it is."""

    def array(value: Any) -> Any:
        if isinstance(value, Tensor):
            value = value.detach().cpu()
            value = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
        return float(value) if isinstance(value, int | float | np.number | np.bool_) else value

    return {name: array(value) for name, value in stats_dict.items()}


# --- batches ---------------------------------------------------------------------------------------------------------


def listify_batch(tensor: Tensor) -> list[Tensor]:
    """The slices along the first dimension."""
    return list(tensor.unbind(0))


def pad_to_size(tensor: Tensor, size: int, dim: int = 1, padding: float = 50256) -> Tensor:
    """`tensor` with `padding` after its end, so that dimension `dim` has `size` entries.

    Raises ValueError if it has more already.
    """
    missing = size - tensor.shape[dim]
    if missing < 0:
        raise ValueError(f"dimension {dim} has {tensor.shape[dim]} entries, more than the size {size}; cut it first")
    shape = list(tensor.shape)
    shape[dim] = missing
    return torch.cat([tensor, tensor.new_full(shape, padding)], dim=dim)


def build_bert_batch_from_txt(
    text_list: Sequence[str], tokenizer: Any, device: str | torch.device
) -> tuple[Tensor, Tensor]:
    """Ids (B, T) of the texts, padded with 0 on the right, and their mask (B, T) float32."""
    ids = [torch.tensor(tokenizer.encode(text), dtype=torch.long) for text in text_list]
    masks = [torch.ones(len(row)) for row in ids]
    return tuple(pad_sequence(rows, batch_first=True).to(device) for rows in (ids, masks))


def respond_to_batch(
    model: nn.Module, queries: Tensor, txt_len: int = 20, top_k: int = 0, top_p: float = 1.0
) -> Tensor:
    """Sample `txt_len` tokens after each query: (B, Q) ids without padding in, (B, txt_len) ids out.

    No token ends a response. Nothing is taken from the model's generation_config.json.
    """
    model = getattr(model, "pretrained_model", model)
    settings = SAMPLING | {"top_k": top_k, "top_p": top_p, "max_new_tokens": txt_len, "eos_token_id": None}
    return torch.stack(generate(model, queries, torch.ones_like(queries), special_tokens(model), **settings))


class LengthSampler:
    """Draws whole numbers from min_value to max_value - 1, all equally likely, with numpy's global random state."""

    def __init__(self, min_value: int, max_value: int) -> None:
        self.values = list(range(min_value, max_value))
        if not self.values:
            raise ValueError(f"max_value ({max_value}) must be above min_value ({min_value})")

    def __call__(self) -> int:
        return int(np.random.choice(self.values))
