from __future__ import annotations

import gzip
import json
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alarm.common.errors import UserError, report_user_errors
from alarm.common.files import (
    check_new_folder,
    check_writable,
    read_rows,
    require_fields,
    require_texts,
    whole_folder,
    write_json,
    write_rows,
    write_text,
)


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


ROWS = [{"a": 1, "b": "é"}, {"a": 2, "b": "x"}]
LIST = json.dumps(ROWS, ensure_ascii=False)
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbf" + LIST.encode(),
        b"\xef\xbb\xbf" + LINES.encode(),
        # two such files, one behind the other
        b"".join(b"\xef\xbb\xbf" + json.dumps(row).encode() + b"\n" for row in ROWS),
        gzip.compress(LINES.encode(), mtime=0),
        gzip.compress(b"\xef\xbb\xbf" + LIST.encode(), mtime=0),
        LINES.replace("\n", "\r\n").encode(),
        LINES.replace("\n", "\r").encode(),
    ],
)
def test_byte_order_marks_gzip_and_line_ends_are_read(tmp_path, content):
    file = tmp_path / "rows.whatever"
    file.write_bytes(content)
    assert read_rows(file) == ROWS


def test_one_object_over_several_lines_is_a_row(tmp_path):
    (tmp_path / "row.json").write_text(json.dumps(ROWS[0], indent=1))
    assert read_rows(tmp_path / "row.json") == ROWS[:1]
    # a single row that holds a list of objects is a row all the same
    (tmp_path / "row.json").write_text(json.dumps({"text": "t", "passages": [{"title": "x"}]}))
    assert read_rows(tmp_path / "row.json")[0]["text"] == "t"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (LIST.encode("utf-16"), "UTF-16"),
        (LIST.encode("utf-16-le"), "UTF-16"),
        (LIST.encode("utf-32"), "UTF-32"),
        ('[{"a": "é"}]'.encode("latin-1"), "line 1 .*Latin-1"),
        ('{"a": 1}\n{"a": "é"}\n'.encode("latin-1"), "line 2 .*Latin-1"),
        (gzip.compress(LINES.encode(), mtime=0)[:-9], "gzip"),
        (gzip.compress(LINES.encode(), mtime=0)[:-9] + b"damaged!!", "gzip"),
        (b"PK\x03\x04rest", "zip"),
        (b"PAR1rest", "parquet"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "git lfs pull"),
        (b"\n<!DOCTYPE html>\n<html><body>Not found</body></html>", "HTML"),
        (json.dumps({"data": ROWS}).encode(), "'data'"),
        (json.dumps({"version": "2.0", "data": ROWS}, indent=1).encode(), "'data'"),
        (json.dumps({"anything": ROWS}).encode(), "'anything'"),
        (repr(ROWS).encode(), "json.dump"),
        ("\n".join(map(repr, ROWS)).encode(), "json.dump"),
        (b"es,en\nhola,hello\n", "es,en"),
        (b"null", "null"),
        ("\n".join(json.dumps(row, indent=1) for row in ROWS).encode(), "line 1.*one whole object"),
        (LINES.replace("\n", "").encode(), "line 1.*one whole object"),
        (LINES.replace("}\n", "},\n").encode(), "line 1.*one whole object"),
        (b'[{"a": ' + b"9" * 5000 + b"}]", "4300 digits"),
        (b'{"a": 1}\n{"a": ' + b"9" * 5000 + b"}", "line 2.*4300 digits"),
        (b"[" * 100_000, "deep"),
        (b'{"a": 1}\n{"a": ' + b"[" * 100_000, "line 2.*deep"),
        (LINES.encode() + b"\0" * 64, "line 3"),
    ],
)
def test_files_of_another_kind_are_recognised(tmp_path, content, says):
    file = tmp_path / "rows.json"
    file.write_bytes(content)
    with pytest.raises(UserError, match=says) as error:
        read_rows(file)
    assert str(file) in str(error.value) and "\n" not in str(error.value)


PIECES = [b"\xef\xbb\xbf", b"[", b"]", b"{", b"}", b'"a"', b":", b",", b"\n", b"\r", b" ", b"1", b"NaN", b"\\ud83d"]
PIECES += [
    b'"',
    b"9" * 4301,
    b"[" * 2000,
    b"\x1f\x8b",
    b"\xff",
    b"\0",
    b"<",
    b"'",
    b'{"a": 1}',
    b"\xed\xa0\x80",
    b"null",
]


@given(st.one_of(st.binary(max_size=60), st.lists(st.sampled_from(PIECES), max_size=12).map(b"".join)), st.booleans())
@settings(deadline=None, max_examples=500)
def test_any_bytes_are_rows_or_one_line(tmp_path_factory, content, compressed):
    file = tmp_path_factory.getbasetemp() / "any.json"
    file.write_bytes(gzip.compress(content, mtime=0) if compressed else content)
    try:
        rows = read_rows(file)
    except UserError as error:
        assert "\n" not in str(error) and str(file) in str(error)
    else:
        assert rows and all(isinstance(row, dict) for row in rows)


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        read_rows(tmp_path)


def test_half_a_surrogate_pair_is_no_text():
    """It has no UTF-8. A field that nobody asks for may hold one."""
    rows = [{"text": "a", "answer": ["x"], "note": "\ud83d"}, {"text": "b \ude00", "answer": ["y", "\ud83d"]}]
    with pytest.raises(UserError, match="row 2: 'text'"):
        require_fields(rows, {"text": str}, "f.json")
    with pytest.raises(UserError, match="row 2: 'answer'"):
        require_texts(rows, "answer", "f.json")
    require_fields(rows[:1], {"text": str}, "f.json")
    require_fields([{"text": "a whole \U0001f600"}], {"text": str}, "f.json")


@pytest.mark.parametrize("answers", [["x", None], [1965], [["x"]], "x", None])
def test_lists_of_texts_hold_nothing_else(answers):
    require_texts([{"answer": []}, {"answer": ["x", "y"]}], "answer", "f.json")
    with pytest.raises(UserError, match="row 2: 'answer'"):
        require_texts([{"answer": ["x"]}, {"answer": answers}], "answer", "f.json")


def test_places_that_cannot_be_written_are_named(tmp_path):
    (tmp_path / "file").write_text("mine")
    check_writable(tmp_path / "new" / "deep" / "out.json", "--save_dir")
    check_writable(tmp_path, "--save_dir")
    for path in (tmp_path / "file" / "out.json", tmp_path / "file" / "deep" / "out.json"):
        with pytest.raises(UserError, match=r"--save_dir .*file is not a folder"):
            check_writable(path, "--save_dir")
    (tmp_path / "locked").mkdir(mode=0o555)
    if os.access(tmp_path / "locked", os.W_OK):
        pytest.skip("this user may write everywhere")
    for path in (tmp_path / "locked", tmp_path / "locked" / "new" / "out.json"):
        with pytest.raises(UserError, match=r"--save_dir .*locked is read-only"):
            check_writable(path, "--save_dir")


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


def test_a_folder_to_write_is_new_or_empty(tmp_path):
    check_new_folder(tmp_path / "new" / "deep", "--save_dir")
    check_new_folder(tmp_path, "--save_dir")
    (tmp_path / "file").write_text("mine")
    for path, named in ((tmp_path, "already holds something"), (tmp_path / "file", "is a file")):
        with pytest.raises(UserError, match=f"--save_dir .*{named}"):
            check_new_folder(path, "--save_dir")


def test_user_errors_are_one_line_and_exit_code_2(capsys):
    @report_user_errors
    def main():
        raise UserError("the file is gone; bring it back")

    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "error: the file is gone; bring it back\n"


def test_rows_are_written_one_a_line(tmp_path):
    rows = [{"text": "a\nb \u2028 é"}, {"value": None}]
    write_rows(tmp_path / "rows.json", rows)
    text = (tmp_path / "rows.json").read_text(encoding="utf-8")
    assert json.loads(text) == rows and len(text.rstrip("\n").split("\n")) == 4
    assert read_rows(tmp_path / "rows.json") == rows
