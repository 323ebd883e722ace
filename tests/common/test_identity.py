"""Which files a result depends on, and which of them changed. Hub names and adapters: test_calibrate.py, too."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from alarm.common.errors import UserError
from alarm.common.identity import (
    LARGE,
    base_changes,
    changes,
    file_identity,
    hash_file,
    model_identity,
    rows_identity,
)


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def model(folder: Path, **files: bytes) -> Path:
    """A folder with a config, weights and a tokenizer; `files`: other contents, by name without its end."""
    folder.mkdir(parents=True, exist_ok=True)
    names = {"config": "config.json", "model": "model.safetensors", "tokenizer": "tokenizer.json"}
    for name, file in names.items():
        (folder / file).write_bytes(files.get(name, name.encode()))
    return folder


def adapter(folder: Path, base: Path | str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))
    (folder / "adapter_model.safetensors").write_bytes(b"adapter")
    return folder


def test_a_file_is_known_by_its_bytes(tmp_path):
    file = tmp_path / "train.json"
    file.write_bytes(b"[1]")
    first = file_identity(file)
    assert first["files"] == {"train.json": sha(b"[1]")}
    file.write_bytes(b"[2]")
    (change,) = changes(first, file_identity(file))
    assert (change.file, change.before, change.now) == (str(file), sha(b"[1]")[:12], sha(b"[2]")[:12])
    file.write_bytes(b"[1]")
    assert changes(first, file_identity(file)) == []


def test_rows_are_known_by_their_values():
    rows = [{"a": 1, "b": "ä"}, {"a": 2}]
    first = rows_identity("hub/data", rows)
    assert changes(first, rows_identity("hub/data", [{"b": "ä", "a": 1}, {"a": 2}])) == []
    for others in (rows[::-1], rows[:1], [*rows, {"a": 3}], [{"a": 1, "b": "a"}, {"a": 2}]):
        assert len(changes(first, rows_identity("hub/data", others))) == 1


def test_every_file_of_a_model_counts_and_others_do_not(tmp_path):
    folder = model(tmp_path / "m")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    first = model_identity(folder)
    (folder / "README.md").write_text("notes")
    (folder / "metrics.json").write_text("{}")
    assert changes(first, model_identity(folder)) == []
    for file in ("config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"):
        before = (folder / file).read_bytes()
        (folder / file).write_bytes(b"another")
        (change,) = changes(first, model_identity(folder))
        assert change.file == str(folder / file)
        (folder / file).write_bytes(before)
    # a file that appears or goes changes what is loaded
    (folder / "tokenizer_config.json").write_text("{}")
    (change,) = changes(first, model_identity(folder))
    assert (change.file, change.before, change.now) == (str(folder / "tokenizer_config.json"), "none", sha(b"{}")[:12])
    (folder / "tokenizer_config.json").unlink()
    (folder / "tokenizer.json").unlink()
    (change,) = changes(first, model_identity(folder))
    assert change.now == "none"


def test_the_base_of_an_adapter_counts(tmp_path):
    base = model(tmp_path / "base")
    first = model_identity(adapter(tmp_path / "adapter", base))
    model(base, model=b"other weights")
    (change,) = changes(first, model_identity(tmp_path / "adapter"))
    assert change.file == str(base / "model.safetensors")


@pytest.mark.parametrize("started_from", ["base model", "adapter"])
def test_the_base_is_compared_without_tokenizer_and_value_head(tmp_path, started_from):
    base = model(tmp_path / "base")
    policy = adapter(tmp_path / "run" / "policy", base)
    start = base if started_from == "base model" else adapter(tmp_path / "start", base)
    trained_on = model_identity(start)
    model(base, tokenizer=b"other")
    (base / "v_head.safetensors").write_bytes(b"head")
    assert base_changes(trained_on, model_identity(policy)["base"]) == []
    for part, file in {"model": "model.safetensors", "config": "config.json"}.items():
        model(base, **{part: b"other"})
        (change,) = base_changes(trained_on, model_identity(policy)["base"])
        assert change.file == str(base / file)
    # the same base in another folder is the same
    moved = adapter(tmp_path / "run" / "policy", model(tmp_path / "moved"))
    assert base_changes(trained_on, model_identity(moved)["base"]) == []


def hub_identity(commit: str, **files: str) -> dict:
    return {
        "name": "someone/model",
        "commit": commit,
        "files": {name.replace("_", "."): f for name, f in files.items()},
    }


def test_a_hub_model_is_known_by_its_files_not_by_what_was_fetched_of_them():
    first = hub_identity("a" * 40, config_json="1", model_safetensors="2")
    assert changes(first, hub_identity("b" * 40, config_json="1", model_safetensors="2")) == []  # a new model card
    assert changes(first, first | {"files": first["files"] | {"vocab.json": "9"}}) == []  # fetched by another program
    (change,) = changes(first, hub_identity("b" * 40, config_json="1", model_safetensors="3"))
    assert (change.file, change.before, change.now) == ("someone/model/model.safetensors", "2", "3")
    # weights in another format have no file in common with the old ones
    found = changes(first, hub_identity("b" * 40, config_json="1") | {"files": {"pytorch_model.bin": "7"}})
    assert {change.file.rpartition("/")[2] for change in found} == {"model.safetensors", "pytorch_model.bin"}
    assert changes(first, {"name": "someone/model", "commit": None, "files": {}}) == []  # not in the cache: not known


def test_a_large_file_is_read_again_only_if_it_was_touched(tmp_path):
    file = tmp_path / "model.safetensors"
    with open(file, "wb") as content:
        content.truncate(LARGE)
    seen: dict = {}
    first = hash_file(file, seen)
    assert first == sha(bytes(LARGE)) and list(seen) == [str(file.resolve())]
    # what was noted is what is answered, also after a way through JSON
    noted = json.loads(json.dumps(seen))
    noted[str(file.resolve())][-1] = "noted"
    assert hash_file(file, noted) == "noted"
    # other bytes, with the old size and the old modification time
    times = file.stat()
    with open(file, "r+b") as content:
        content.write(b"x")
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert file.stat().st_mtime_ns == times.st_mtime_ns
    assert hash_file(file, noted) == sha(b"x" + bytes(LARGE - 1))
    # small files are always read
    small = tmp_path / "config.json"
    small.write_text("{}")
    hash_file(small, seen)
    assert list(seen) == [str(file.resolve())]


@pytest.mark.parametrize("content", ["{", "[]", '"x"', ""])
def test_a_damaged_adapter_config_is_one_line(tmp_path, content):
    (tmp_path / "adapter_config.json").write_text(content)
    with pytest.raises(UserError, match=r"adapter_config\.json"):
        model_identity(tmp_path)
