"""The leaderboard grows by whole lines, and replaces nothing unasked."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from alarm.common.errors import UserError
from alarm.evaluation.leaderboard import KIND, add_row, check_board, read_board
from helpers import ROOT


def row(judge: str, data: str = "d", value: float = 1.0) -> dict:
    return {"kind": KIND, "judge": judge, "data": {"name": "n", "sha256": data}, "rates": {"people": {"value": value}}}


def test_grows_and_replaces_only_if_asked(tmp_path):
    path = tmp_path / "sub" / "board.jsonl"
    for one in (row("a"), row("b"), row("a", "other")):
        add_row(path, one, replace=False)
    before = path.read_text()
    assert [json.loads(line) for line in before.splitlines()] == [row("a"), row("b"), row("a", "other")]
    with pytest.raises(UserError, match="--replace"):
        add_row(path, row("a", value=2.0), replace=False)
    with pytest.raises(UserError, match="a on these data"):
        check_board(path, [("new", "d"), ("a", "d")], replace=False)
    assert path.read_text() == before
    add_row(path, row("a", value=2.0), replace=True)
    assert read_board(path) == [row("b"), row("a", "other"), row("a", value=2.0)]
    check_board(path, [("new", "d")], replace=False)


def test_a_line_without_its_end_is_kept_whole(tmp_path):
    path = tmp_path / "board.jsonl"
    path.write_text(json.dumps(row("a")))
    add_row(path, row("b"), replace=False)
    assert read_board(path) == [row("a"), row("b")]


@pytest.mark.parametrize(
    "content", ['{"kind": "alarm ju', "a,b\n1,2\n", json.dumps(row("a")) + "\n[1]\n", '{"judge": 1}']
)
def test_other_files_stay_as_they_are(tmp_path, content):
    path = tmp_path / "board.jsonl"
    path.write_text(content)
    with pytest.raises(UserError, match=r"line [12] is no row"):
        add_row(path, row("b"), replace=True)
    assert path.read_text() == content


def test_two_processes_lose_nothing(tmp_path):
    path = tmp_path / "board.jsonl"
    code = (
        "import sys; from alarm.evaluation.leaderboard import KIND, add_row\n"
        "for i in range(30): add_row(sys.argv[1], {'kind': KIND, 'judge': sys.argv[2] + str(i), "
        "'data': {'name': 'n', 'sha256': 'd'}, 'rates': {}}, replace=i % 7 == 0)"
    )
    runs = [subprocess.Popen([sys.executable, "-c", code, str(path), name], cwd=ROOT) for name in "ab"]
    assert [run.wait(60) for run in runs] == [0, 0]
    assert {one["judge"] for one in read_board(path)} == {f"{name}{i}" for name in "ab" for i in range(30)}
