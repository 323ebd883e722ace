"""Names of models: folders on this machine or repositories on the hub. Loads no torch."""

from __future__ import annotations

from pathlib import Path


def is_local_path(name: str | Path) -> bool:
    """Whether `name` can only mean a file or folder on this machine, whether or not it is there.

    False for what may be a hub name: one word, or two with a slash between them if the first is no folder here.
    """
    path, name = Path(name), str(name)
    if path.exists() or path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        return True
    return name.count("/") == 1 and path.parent.is_dir()


def check_base(adapter: str | Path, base: str) -> None:
    """Raise ValueError if the base model that the adapter in folder `adapter` names is a local path that is gone."""
    if base and is_local_path(base) and not Path(base).is_dir():
        raise ValueError(
            f"the adapter in {adapter} names the base model {base}, which is not there; move that folder back, or "
            f"correct base_model_name_or_path in {Path(adapter) / 'adapter_config.json'}"
        )
