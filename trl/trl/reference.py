"""A frozen copy of a model, as the reference of PPO."""

from __future__ import annotations

import copy
import re

from torch import nn
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled


def create_reference_model(
    model: nn.Module, num_shared_layers: int | None = None, pattern: str | None = None
) -> nn.Module:
    """A copy of `model` in eval mode whose weights do not train.

    model: a language model with or without a value head
    num_shared_layers: so many first layers of the decoder, and all that stands before them among the model's
        parameters (embeddings, an encoder), are shared: the copy has the same tensors, frozen in `model` too
    pattern: the name of a layer, with `{layer}` for its number ("transformer.h.{layer}"); left out, the decoder's

    Raises ValueError if the model has no layer of that number.
    """
    if is_deepspeed_zero3_enabled():
        raise ValueError("DeepSpeed ZeRO-3 has cut the weights to pieces, which cannot be copied; load the reference")
    shared = [] if num_shared_layers is None else _first_parameters(model, num_shared_layers, pattern)
    for parameter in shared:
        parameter.requires_grad_(False)
    reference = copy.deepcopy(model, {id(parameter): parameter for parameter in shared})
    return reference.requires_grad_(False).eval()


def _first_parameters(model: nn.Module, layers: int, pattern: str | None) -> list[nn.Parameter]:
    """The parameters in front of layer number `layers`."""
    first = (pattern or _decoder_layers(model) + ".{layer}").format(layer=layers)
    parameters = dict(model.named_parameters())
    stop = re.compile(re.escape(first) + r"(?!\d)")  # layer 1 is not layer 10
    for number, name in enumerate(parameters):
        if stop.search(name):
            return list(parameters.values())[:number]
    raise ValueError(
        f"the model has no layer {first}, so {layers} layers cannot be shared; correct the pattern or number"
    )


def _decoder_layers(model: nn.Module) -> str:
    """The name of the list of the decoder's layers."""
    modules = dict(model.named_modules())
    base = next(module for module in modules.values() if hasattr(module, "get_decoder"))
    for module in base.get_decoder().modules():
        if isinstance(module, nn.ModuleList):
            return next(name for name, one in modules.items() if one is module)
    raise ValueError("the layers of the model were not found; give a pattern, such as 'transformer.h.{layer}'")
