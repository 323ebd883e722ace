"""Files of model folders and hub repositories, and language models loaded from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn
from transformers import AutoConfig, AutoModelForSeq2SeqLM
from transformers.utils import cached_file

from .paths import is_local_path
from .weights import load_whole

ADAPTER_CONFIG_FILE = "adapter_config.json"
# arguments of `from_pretrained` that say where a file comes from
_SOURCE = ("token", "revision", "cache_dir", "force_download", "local_files_only")


def source_arguments(kwargs: dict) -> dict:
    """Those of `from_pretrained`'s arguments that every file needs."""
    return {name: kwargs[name] for name in _SOURCE if name in kwargs}


def check_folder(name_or_path: str) -> None:
    """Raise ValueError for a local path that is no folder."""
    if is_local_path(name_or_path) and not Path(name_or_path).is_dir():
        raise ValueError(f"there is no folder {name_or_path}; give the folder of a model or a hub name")


def find_file(name_or_path: str, filename: str, **source: Any) -> str | None:
    """Path of a file of a model folder or hub repository; None if it has no such file."""
    if Path(name_or_path).is_dir():
        path = Path(name_or_path) / filename
        return str(path) if path.is_file() else None
    return cached_file(
        name_or_path,
        filename,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        _raise_exceptions_for_gated_repo=False,
        **source,
    )


def load_language_model(auto_class: type, name_or_path: str, kwargs: dict) -> nn.Module:
    """A language model whose every weight comes from its checkpoint; kwargs: to its `from_pretrained`."""
    if Path(name_or_path).is_dir() and not (Path(name_or_path) / "config.json").is_file():
        raise ValueError(f"{name_or_path} has neither config.json nor {ADAPTER_CONFIG_FILE}; give a model folder")
    config = kwargs.get("config")
    if config is None:
        code = {"trust_remote_code": kwargs["trust_remote_code"]} if "trust_remote_code" in kwargs else {}
        config = AutoConfig.from_pretrained(name_or_path, **code, **source_arguments(kwargs))
    own_code = auto_class.__name__ in (getattr(config, "auto_map", None) or ())
    if type(config) not in auto_class._model_mapping and not own_code:
        kind = "an encoder-decoder" if auto_class is AutoModelForSeq2SeqLM else "a decoder-only"
        raise ValueError(f"{name_or_path} holds a {config.model_type} model, which is not {kind} language model")
    return load_whole(auto_class, name_or_path, **kwargs)[0]
