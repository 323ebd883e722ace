"""Which files a result depends on: the sha256 of data and models, and which of them changed since. Loads no torch."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from .errors import UserError
from .files import read_json

_WEIGHTS = ("*.safetensors", "pytorch_model*.bin", "adapter_model.bin")
_SETTINGS = ("config.json", "adapter_config.json", "generation_config.json")
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_TOKENIZER += ("tokenizer.model", "spiece.model", "vocab.json", "merges.txt", "vocab.txt", "chat_template.jinja")

LARGE = 2**24  # bytes; the hashes of smaller files are not worth remembering

Seen = dict[str, list]  # path of a large file -> its size, times and inode when it was hashed, then the hash


# --- one file, one data set, one model -------------------------------------------------------------------------------


def hash_file(path: str | Path, seen: Seen | None = None) -> str:
    """sha256 of a file's bytes, in hex.

    The hub's cache names large files by it, which spares reading them. `seen` spares reading a large file again while
    its size, times and inode stay the same; it is added to. The change time is one of them: unlike the modification
    time it cannot be set back, so a file that was replaced is always read.
    """
    real = Path(path).resolve()
    if real.parent.name == "blobs" and re.fullmatch("[0-9a-f]{64}", real.name):
        return real.name
    stat = real.stat()
    state = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
    remember = seen is not None and stat.st_size >= LARGE
    if remember and seen.get(str(real), [])[:-1] == state:
        return seen[str(real)][-1]
    with open(real, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if remember:
        seen[str(real)] = [*state, found]
    return found


def file_identity(path: str | Path) -> dict:
    """Which data file this is, in the form of `model_identity`."""
    return {"name": str(path), "commit": None, "files": {Path(path).name: hash_file(path)}}


def rows_identity(name: str, rows: Sequence[dict]) -> dict:
    """Which rows these are (JSON objects), in the form of `model_identity`: for data that is no single file."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True, default=str).encode() + b"\n")
    return {"name": name, "commit": None, "files": {"rows": digest.hexdigest()}}


def model_identity(name: str | Path, seen: Seen | None = None) -> dict:
    """The model of a folder or a hub name: sha256 of its weights, settings and tokenizer, by file name.

    A hub name adds the commit in the local cache; `files` is empty for one that is not there. An adapter adds `base`.
    `seen` is that of `hash_file`. Raises UserError for an adapter_config.json that is not JSON.
    """
    identity: dict = {"name": str(name), "commit": None, "files": {}}
    folder = Path(name)
    if not folder.is_dir():
        folder = _cached_snapshot(str(name))
        if folder is None:
            return identity
        identity["commit"] = folder.name
    patterns = (*_WEIGHTS, *_SETTINGS, *_TOKENIZER)
    paths = {path.name: path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    identity["files"] = {file: hash_file(paths[file], seen) for file in sorted(paths)}
    if "adapter_config.json" in paths and (base := _base_of(paths["adapter_config.json"])):
        identity["base"] = model_identity(base, seen)
    return identity


def _base_of(adapter_config: Path) -> str | None:
    config = read_json(adapter_config)
    if not isinstance(config, dict):
        raise UserError(f"{adapter_config} holds no JSON object; copy the adapter's folder again")
    return config.get("base_model_name_or_path")


def _cached_snapshot(name: str) -> Path | None:
    """The folder snapshots/COMMIT of a hub name in the local cache."""
    from huggingface_hub import try_to_load_from_cache

    for file in ("config.json", "adapter_config.json"):
        try:
            found = try_to_load_from_cache(name, file)
        except ValueError:  # the path of a folder that is gone, such as an adapter's base model
            return None
        if isinstance(found, str):
            return Path(found).parent
    return None


# --- comparing -------------------------------------------------------------------------------------------------------


def _weights(identity: dict) -> set[str]:
    return {file for file in identity["files"] if any(fnmatch(file, kind) for kind in _WEIGHTS)}


def difference(one: dict, other: dict) -> str | None:
    """What tells two models apart that may be copies of each other, in words; None if nothing does or nothing is known.

    Files of the same name are compared, and the name if neither side has files to compare.
    """
    for file in sorted(one["files"].keys() & other["files"].keys()):
        if one["files"][file] != other["files"][file]:
            return f"{file} is another one"
    if one["files"] and other["files"]:
        # a folder without weights is of a model that a server runs: there is nothing to compare
        if _weights(one) and _weights(other) and not _weights(one) & _weights(other):
            return f"the weights are in {', '.join(sorted(_weights(other))) or 'no file'}"
        return difference(one["base"], other["base"]) if "base" in one and "base" in other else None
    # a hub name that is not in the cache yet
    return None if one["name"] == other["name"] else f"that was {one['name']}"


@dataclass(frozen=True)
class Change:
    """A file that is not what it was. Hashes are cut to 12 digits; `none`: the file is not there."""

    file: str
    before: str
    now: str

    def __str__(self) -> str:
        return f"{self.file} had the sha256 {self.before} and has {self.now} now"


def changes(before: dict, now: dict) -> list[Change]:
    """The files of one input that changed between two identities of it, those of an adapter's base model included.

    A file that appeared or went counts for a folder. The hub's cache fetches files when they are needed, so there the
    files of both sides count, and all weights if no file of weights is on both. Empty if one side is not known.
    """
    found = []
    if before["files"] and now["files"]:
        names = before["files"].keys() | now["files"].keys()
        if before["commit"] or now["commit"]:
            weights = _weights(before) & _weights(now) or _weights(before) | _weights(now)
            names = before["files"].keys() & now["files"].keys() | weights
        for file in sorted(names):
            hashes = [side["files"].get(file, "none")[:12] for side in (before, now)]
            if hashes[0] != hashes[1]:
                path = Path(now["name"])
                found.append(Change(str(path if path.name == file else path / file), *hashes))
    if "base" in before and "base" in now:
        found += changes(before["base"], now["base"])
    return found


def base_changes(trained_on: dict, now: dict) -> list[Change]:
    """The files of an adapter's base model that are not those that it was trained on, tokenizers left out.

    trained_on: the identity of the policy that training started from, a base model or an adapter. now: of the base.
    """

    # an adapter's folder has its own tokenizer and value head
    own = (*_TOKENIZER, "v_head.safetensors")

    def parts(identity: dict) -> dict:
        return identity | {"files": {file: value for file, value in identity["files"].items() if file not in own}}

    return changes(parts(trained_on.get("base", trained_on)), parts(now))
