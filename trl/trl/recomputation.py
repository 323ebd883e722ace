"""Gradient checkpointing of a model in eval mode: a layer keeps its inputs, and is computed again for the gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer


@contextmanager
def recomputed_layers(model: nn.Module) -> Iterator[None]:
    """Recompute the layers of which `gradient_checkpointing_enable` was asked, in passes that are made inside.

    transformers does so in train mode alone, in which dropout is active too. The model must still be in the same mode
    when the gradient is computed.
    """
    layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer) and m.gradient_checkpointing]
    own = [vars(layer).get("forward") for layer in layers]  # accelerate sets one for a layer on another device
    for layer in layers:
        layer.forward = partial(_recomputed, layer.forward)
    try:
        yield
    finally:
        for layer, forward in zip(layers, own, strict=True):
            del layer.forward
            if forward is not None:
                layer.forward = forward


def _recomputed(forward: Callable, *args: Any, **kwargs: Any) -> Any:
    # the second pass would find the first one's keys in a cache
    without_cache = dict.fromkeys({"past_key_values", "layer_past"} & kwargs.keys())
    return checkpoint(forward, *args, use_reentrant=False, **kwargs | without_cache)
