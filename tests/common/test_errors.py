"""What a script prints when it fails, on each rank: one line for the user's mistakes and for a full disk."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from alarm.common.errors import UserError, report_user_errors
from alarm.models.load import reported
from helpers import ROOT


def run(error: BaseException | None, capsys) -> tuple[int, str]:
    """Exit code and stderr of a script that raises `error`."""

    @report_user_errors
    def main():
        raise error

    with pytest.raises(SystemExit) as stopped:
        main()
    return stopped.value.code, capsys.readouterr().err


@pytest.mark.parametrize(("rank", "start"), [(None, "error: "), ("0", "error: "), ("3", "error (rank 3): ")])
def test_every_rank_reports_what_it_meets(rank, start, capsys, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", "4")
    # also where the words are those of a connection that another process closed
    assert run(UserError("reset by peer"), capsys) == (2, f"{start}reset by peer\n")
    assert run(UserError("the file is gone"), capsys) == (2, f"{start}the file is gone\n")
    code, said = run(KeyboardInterrupt(), capsys)
    assert code == 130 and said == {None: "interrupted\n", "0": "interrupted\n", "3": "interrupted (rank 3)\n"}[rank]


def test_a_rank_above_0_of_a_real_script_is_not_silent(tmp_path):
    """The script ends before the processes meet, so that one of two can be started alone."""
    ranks = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "true"}
    words = [sys.executable, str(ROOT / "long-form-QA" / "train_ppo.py"), "--save_dir", str(tmp_path / "run")]
    words += ["--train_file", str(tmp_path / "nowhere.json")]
    done = subprocess.run(words, capture_output=True, text=True, env=os.environ | ranks)
    assert done.returncode == 2
    assert done.stderr.startswith("error (rank 1): ") and "nowhere.json" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_message_of_several_lines_is_printed_as_one(capsys):
    assert run(UserError("a\nname\r\nof lines"), capsys)[1].count("\n") == 1


@pytest.mark.parametrize("processes", ["1", "4"])
def test_a_bug_keeps_its_traceback(processes, monkeypatch):
    @report_user_errors
    def main():
        raise IndexError("a bug")

    monkeypatch.setenv("WORLD_SIZE", processes)
    with pytest.raises(IndexError):
        main()


GLOO = "[gloo/transport/tcp/unbound_buffer.cc:129] "


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("[pair.cc:547] Connection closed by peer [10.0.0.2]:4711", "has ended"),
        ("[pair.cc:547] Read error [10.0.0.2]:4711: Connection reset by peer", "has ended"),
        (GLOO + "Timed out waiting 1500ms for recv operation to complete", "1.5 s"),
        (GLOO + "Timed out waiting 600000ms for send operation to complete", "600 s"),
    ],
)
def test_a_process_that_loses_another_says_so_in_one_line(words, says, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    code, said = run(RuntimeError(words), capsys)
    assert code == 1 and said.startswith("error (rank 1): another process") and says in said and said.count("\n") == 1


@pytest.mark.parametrize(
    ("processes", "error"),
    [("1", RuntimeError("Connection closed by peer")), ("2", ConnectionResetError("Connection reset by peer"))],
)
def test_a_server_that_hangs_up_is_no_lost_process(processes, error, monkeypatch):
    @report_user_errors
    def main():
        raise error

    monkeypatch.setenv("WORLD_SIZE", processes)
    with pytest.raises(type(error)):
        main()


ONE_RANK = """
from alarm.common.errors import UserError, report_user_errors

@report_user_errors
def main():
    from alarm.common.launch import process_state
    state = process_state()
    if state.process_index == 1:
        raise UserError("this node lacks the file")
    state.wait_for_everyone()

main()
"""


@pytest.mark.slow
def test_an_error_of_one_process_is_one_line_of_each(tmp_path):
    """Rank 1 reports it; rank 0, which waits for rank 1, shows no traceback."""
    (tmp_path / "script.py").write_text(ONE_RANK)
    words = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", str(tmp_path / "script.py")]
    paths = os.pathsep.join((str(ROOT), str(ROOT / "trl")))
    env = os.environ | {"ACCELERATE_USE_CPU": "true", "PYTHONPATH": paths}
    done = subprocess.run(words, capture_output=True, text=True, env=env, timeout=300)
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert "error (rank 1): this node lacks the file" in lines, done.stderr
    # the launcher may stop rank 0 before rank 0 notices
    assert len(lines) == 1 or (len(lines) == 2 and any(line.startswith("error: ") for line in lines))
    assert "[rank0]" not in done.stderr


def deep_error() -> UserError:
    """As `reported` makes it of what a library raises."""
    try:
        with reported("the policy", "some/folder"):
            try:
                raise KeyError("the root of it")
            except KeyError:
                raise ValueError("in the middle") from None
    except UserError as error:
        return error


def test_the_traceback_shows_the_whole_chain_if_asked(capsys, monkeypatch):
    monkeypatch.setenv("ALARM_TRACEBACK", "1")
    code, said = run(deep_error(), capsys)
    assert code == 2
    for part in ("KeyError: 'the root of it'", "ValueError: in the middle", "Traceback"):
        assert part in said
    assert said.splitlines()[-1].startswith("error: the policy some/folder")
    for off in ("", "0"):
        monkeypatch.setenv("ALARM_TRACEBACK", off)
        assert run(deep_error(), capsys)[1].count("\n") == 1


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.ENOTDIR, errno.ENAMETOOLONG])
def test_what_the_machine_refuses_is_one_line(number, capsys):
    code, said = run(OSError(number, os.strerror(number), "some/file"), capsys)
    assert code == 2
    assert said.startswith("error: some/file: " + os.strerror(number)) and said.count("\n") == 1


def test_a_file_that_the_code_loses_is_a_bug(capsys):
    @report_user_errors
    def main():
        Path("/nowhere/at/all").read_text()

    with pytest.raises(FileNotFoundError):
        main()


# no file may grow beyond 10 kB, which fails as a full disk does
FULL = """
import resource, signal, sys
import torch
from safetensors.torch import save_file
from alarm.common.errors import report_user_errors
from alarm.common.files import write_text
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
folder = sys.argv[1]
writers = {
    "text": lambda: write_text(folder + "/t", "x" * 100_000),
    "torch": lambda: torch.save(torch.zeros(100_000), folder + "/t.pt"),
    "safetensors": lambda: save_file({"a": torch.zeros(100_000)}, folder + "/t.safetensors"),
}
for name, write in writers.items():
    try:
        report_user_errors(write)()
    except SystemExit as stopped:
        print(name, stopped.code)
"""


def test_a_full_disk_is_one_line_whoever_writes(tmp_path):
    done = subprocess.run([sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True)
    assert done.stdout.split() == ["text", "2", "torch", "2", "safetensors", "2"], done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 3 and all(line.startswith("error: ") for line in lines), lines
    assert not (tmp_path / "t").exists()
