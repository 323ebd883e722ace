from __future__ import annotations

import json

import pytest

from alarm.errors import UserError, report_user_errors
from alarm.files import read_rows, require_fields, whole_folder, write_json, write_text


@pytest.mark.parametrize("text", ['[{"a": 1}, {"a": "x\u2028y"}]', '{"a": 1}\n\n{"a": "x\u2028y"}\n'])
def test_lists_and_lines_read_the_same(tmp_path, text):
    (tmp_path / "rows").write_text(text, encoding="utf-8")
    assert read_rows(tmp_path / "rows") == [{"a": 1}, {"a": "x\u2028y"}]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "no rows"),
        (b"  \n", "no rows"),
        (b'{"a": 1}\n{"a"', "line 2"),
        (b'[{"a": 1},]', "not JSON"),
        (b"[1]", "row 1 is int"),
        (b"\xff\xfe", "UTF-8"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, content, says):
    file = tmp_path / "rows.json"
    file.write_bytes(content)
    with pytest.raises(UserError, match=says) as error:
        read_rows(file)
    assert str(file) in str(error.value) and "\n" not in str(error.value)


def test_missing_and_mistyped_fields_are_named_with_their_row():
    rows = [{"text": "a"}, {"text": 3}, {}]
    with pytest.raises(UserError, match="row 2: 'text' is int"):
        require_fields(rows, {"text": str}, "f.json")
    with pytest.raises(UserError, match="row 3 has no 'text'"):
        require_fields([rows[0], rows[0], rows[2]], {"text": str}, "f.json")


def test_a_failed_write_leaves_what_was_there(tmp_path):
    target = tmp_path / "deep" / "results.json"
    write_json(target, {"run": 1})
    with pytest.raises(TypeError):
        write_json(target, {"run": object()})
    with pytest.raises(UnicodeEncodeError):
        write_text(target, "whole until \ud800")
    assert json.loads(target.read_text()) == {"run": 1}
    assert [path.name for path in target.parent.iterdir()] == ["results.json"]


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "model"
    with pytest.raises(RuntimeError), whole_folder(target) as half:
        (half / "weights").write_text("half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    for text in ("first", "second"):
        with whole_folder(target) as half:
            (half / "weights").write_text(text)
            assert not target.exists() or (target / "weights").read_text() == "first"
    assert (target / "weights").read_text() == "second"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_user_errors_are_one_line_and_exit_code_2(capsys):
    @report_user_errors
    def main():
        raise UserError("the file is gone; bring it back")

    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "error: the file is gone; bring it back\n"
