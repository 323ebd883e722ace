"""The value head: one number per token, and the files that hold its weights."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .loading import find_file

VALUE_HEAD_FILE = "v_head.safetensors"
_PREFIX = "v_head."
_WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")  # of the whole model; `.index.json` behind it: in shards
_OLD_NAMES = {"weight": "summary.weight", "bias": "summary.bias"}  # the head was a bare linear layer once


class ValueHead(nn.Module):
    """Hidden states (..., H) of a language model to values (..., 1), in float32 whatever the model's type.

    config: of the language model; it gives H, the width of the decoder's output
    summary_dropout_prob: dropout on the hidden states in train mode; left out, the config's, or 0.1
    v_head_init_strategy: None: at random as any linear layer; "normal": weights of standard deviation
        `v_head_initializer_range` and no bias; "zeros": an untrained head adds no noise to the first advantages
    """

    def __init__(
        self,
        config: Any,
        summary_dropout_prob: float | None = None,
        v_head_initializer_range: float = 0.2,
        v_head_init_strategy: str | None = None,
    ) -> None:
        super().__init__()
        if summary_dropout_prob is None:
            summary_dropout_prob = getattr(config, "summary_dropout_prob", 0.1)
        self.dropout = nn.Dropout(summary_dropout_prob) if summary_dropout_prob else nn.Identity()
        text = config.get_text_config(decoder=True)
        width = getattr(text, "word_embed_proj_dim", None) or text.hidden_size  # OPT projects its last hidden state
        self.summary = nn.Linear(width, 1, dtype=torch.float32)
        if v_head_init_strategy == "normal":
            nn.init.normal_(self.summary.weight, std=v_head_initializer_range)
            nn.init.zeros_(self.summary.bias)
        elif v_head_init_strategy == "zeros":
            nn.init.zeros_(self.summary.weight)
            nn.init.zeros_(self.summary.bias)
        elif v_head_init_strategy is not None:
            raise ValueError(f"v_head_init_strategy is {v_head_init_strategy!r}; give None, 'normal' or 'zeros'")

    def forward(self, hidden_states: Tensor) -> Tensor:
        hidden = self.dropout(hidden_states)
        return self.summary(hidden.to(self.summary.weight))

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any) -> None:
        for old, new in _OLD_NAMES.items():
            if prefix + old in state_dict:
                state_dict[prefix + new] = state_dict.pop(prefix + old)
        super()._load_from_state_dict(state_dict, prefix, *args)


def current_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a model with value head, under today's names; older versions had v_head.weight and v_head.bias."""
    renamed = {_PREFIX + old: _PREFIX + new for old, new in _OLD_NAMES.items()}
    return {renamed.get(name, name): tensor for name, tensor in weights.items()}


def save_value_head(state: dict[str, Tensor], folder: str | Path) -> None:
    """Write the state of a ValueHead beside the files of its model."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    save_file(state, str(Path(folder) / VALUE_HEAD_FILE))


def load_value_head(head: ValueHead, name_or_path: str, **source: Any) -> bool:
    """Restore a value head from a folder or hub repository; False if there is none.

    It is in a file of its own, or among the weights of the model, as TRL writes it.
    """
    for paths in _places(name_or_path, source):
        try:
            state = {name: tensor for path in paths for name, tensor in _read(path).items()}
            if state:
                head.load_state_dict(state)
                return True
        except (RuntimeError, SafetensorError, OSError, ValueError, UnpicklingError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"{', '.join(paths)} does not hold this model's value head: {reason}") from None
    return False


def _places(name_or_path: str, source: dict) -> Iterator[list[str]]:
    """Files that may hold a value head together, the likeliest first."""
    if path := find_file(name_or_path, VALUE_HEAD_FILE, **source):
        yield [path]
    for filename in _WEIGHT_FILES:
        if path := find_file(name_or_path, filename, **source):
            yield [path]
        elif index := find_file(name_or_path, f"{filename}.index.json", **source):
            places = json.loads(Path(index).read_text())["weight_map"]
            shards = sorted({shard for name, shard in places.items() if name.startswith(_PREFIX)})
            yield [path for shard in shards if (path := find_file(name_or_path, shard, **source))]


def _read(path: str) -> dict[str, Tensor]:
    """The value head's weights in a file; empty if it has none."""
    if Path(path).name == VALUE_HEAD_FILE:
        return load_file(path)
    if path.endswith(".safetensors"):
        with safe_open(path, "pt") as file:
            names = [name for name in file.keys() if name.startswith(_PREFIX)]  # noqa: SIM118
            return {name.removeprefix(_PREFIX): file.get_tensor(name) for name in names}
    weights = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    return {name.removeprefix(_PREFIX): tensor for name, tensor in weights.items() if name.startswith(_PREFIX)}
