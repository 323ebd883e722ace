"""The driver: stages are skipped when done, rerun when their command changed, and never eat foreign files."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys

import pytest

from alarm.common.errors import UserError
from alarm.tasks.find import find_task
from alarm.training import main as train
from helpers import ROOT
from miniature import stages
from quickstart import run


@pytest.fixture
def work(tmp_path):
    stages.check_work_dir(tmp_path / "work")
    return tmp_path / "work"


def writer(work, name: str, text: str):
    """A stage that appends `text` to a file."""
    code = f"open({str(work / name)!r}, 'a').write({text!r})"
    return stages.Stage(name, name, lambda: ["-c", code])


def test_done_stages_are_skipped_and_changed_ones_take_the_later_along(work, capfd):
    todo = [writer(work, "a", "1"), writer(work, "b", "2")]
    stages.run_stages(todo, work)
    stages.run_stages(todo, work)
    assert (work / "a").read_text() == "1" and (work / "b").read_text() == "2"
    assert capfd.readouterr().out.count("done before") == 2
    stages.run_stages([writer(work, "a", "x"), todo[1]], work)
    assert (work / "a").read_text() == "x" and (work / "b").read_text() == "2"
    assert "done before" not in capfd.readouterr().out


def test_a_failed_stage_stops_with_its_code_and_is_run_again(work, capfd):
    good = writer(work, "a", "1")
    bad = stages.Stage("bad", "b", lambda: ["-c", f"open({str(work / 'b')!r}, 'w'); raise SystemExit(3)"])
    with pytest.raises(SystemExit) as stop:
        stages.run_stages([good, bad], work)
    assert stop.value.code == 3
    stages.run_stages([good, writer(work, "b", "2")], work)
    assert (work / "a").read_text() == "1" and (work / "b").read_text() == "2"


INTERRUPTED = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a script inherits it ignored
sys.path[:0] = sys.argv[2:]
from pathlib import Path
from miniature import stages

stage = stages.Stage("long", "out", lambda: ["-c", "import time; print('begun', flush=True); time.sleep(3600)"])
stages.run_stages([stage], Path(sys.argv[1]))
"""


def test_an_interrupt_of_the_driver_alone_ends_its_stage_too(work):
    """As by `kill -INT`; a terminal's ^C reaches both. The limit is that of a hang."""
    paths = [str(ROOT / folder) for folder in ("quickstart", "trl", "")]
    driver = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, str(work), *paths],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        while driver.stdout.readline() != "begun\n":
            assert driver.poll() is None
        driver.send_signal(signal.SIGINT)
        driver.communicate(timeout=120)  # the stage holds the pipe too
    finally:
        driver.kill()
    assert driver.returncode in (1, 130, -signal.SIGINT)


def test_a_resumable_stage_keeps_what_an_interrupted_one_left(work):
    (work / "run").mkdir()
    (work / "run" / "checkpoint").write_text("half")
    code = f"import pathlib; pathlib.Path({str(work / 'run')!r}, 'end').write_text('whole')"
    stages.run_stages([stages.Stage("run", "run", lambda: ["-c", code], resumable=True)], work)
    assert (work / "run" / "checkpoint").read_text() == "half" and (work / "run" / "end").exists()


def test_a_folder_with_other_files_is_left_alone(tmp_path, capsys):
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(SystemExit) as stop:
        run.main(["--work_dir", str(tmp_path)])
    assert stop.value.code == 2 and "holds other files" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["mine"]


def test_flags_that_best_of_n_writes_are_flags_of_training():
    """Of log_sigmoid and of decoupled: a dict and a switch."""
    task = find_task("mt")
    off = stages.flag_words(references={}, decoupled_cv=False, decoupled_conflict=0.0)
    args = train.parse_args(task, "", [*off, "--save_dir", "x"])
    assert (args.references, args.decoupled_cv) == ({}, False)
    on = stages.flag_words(references={"grammar": -0.5, "readability": 2.0}, decoupled_cv=True)
    args = train.parse_args(task, "", [*on, "--save_dir", "x"])
    assert (args.references, args.decoupled_cv) == ({"grammar": -0.5, "readability": 2.0}, True)


def test_printed_commands_can_be_pasted():
    words = stages.flag_words(a="b c", lr=1e-3, test=True, none=None, n=3)
    line = stages.printable(["python", "x.py", *words, *["--z"] * 60])
    assert shlex.split(line.replace("\\\n", " "))[:9] == [
        "python",
        "x.py",
        "--a",
        "b c",
        "--lr",
        "0.001",
        "--test",
        "--n",
        "3",
    ]
    assert max(map(len, line.split("\n"))) <= 130


@pytest.mark.whole
@pytest.mark.slow
def test_the_whole_quickstart_on_a_few_rows(tmp_path, capfd):
    data = tmp_path / "data"
    data.mkdir()
    for split in ("train", "dev", "test"):
        for kind in ("", "_feedback"):
            rows = json.loads((ROOT / f"quickstart/data/qa/{split}{kind}.json").read_text())
            (data / f"{split}{kind}.json").write_text(json.dumps(rows[:24]))
    flags = [
        "--task",
        "real-qa",
        "--data_dir",
        str(data),
        "--work_dir",
        str(tmp_path / "work"),
        "--splitter",
        "sentencizer",
        "--steps",
        "2",
    ]
    run.main(flags)
    shown = capfd.readouterr().out
    assert "[15/15] comparison" in shown and "What this shows" in shown
    assert len(json.loads((tmp_path / "work/generations/hierarchical.json").read_text())) == 24
    assert (tmp_path / "work/generations_results/eval-results.json").exists()
    assert "check: every reward is on its token, in all 3 responses" in shown
    for file in ("generations_results/eval-report/index.html", "inspection.html", "plots/training.png"):
        assert (tmp_path / "work" / file).is_file() and file in shown
    run.main(flags)
    assert capfd.readouterr().out.count("done before") == 15


def test_the_interpreter_of_the_driver_runs_the_stages(work):
    code = f"import sys; open({str(work / 'a')!r}, 'w').write(sys.executable)"
    stages.run_stages([stages.Stage("a", "a", lambda: ["-c", code])], work)
    assert (work / "a").read_text() == sys.executable


def group(*members: stages.Stage) -> stages.Together:
    return stages.Together("group", members)


def test_stages_of_a_group_run_at_the_same_time(work, capfd):
    """Each waits for the other's file: alone it would wait for ever (the limit is that of a hang)."""

    def waits(name: str, other: str) -> stages.Stage:
        code = f"""
import pathlib, time
pathlib.Path({str(work / name)!r}).write_text("here")
for _ in range(1200):
    if pathlib.Path({str(work / other)!r}).exists(): break
    time.sleep(0.05)
else: raise SystemExit(5)
"""
        return stages.Stage(name, name, lambda: ["-c", code])

    todo = [group(waits("a", "b"), waits("b", "a")), writer(work, "c", "3")]
    stages.run_stages(todo, work)
    stages.run_stages(todo, work)
    assert (work / "c").read_text() == "3"
    assert capfd.readouterr().out.count("done before") == 3


def test_a_group_of_which_one_fails_stops_the_others_and_shows_its_last_lines(work, capfd):
    long = stages.Stage("long", "long", lambda: ["-c", "import time; time.sleep(3600)"])
    bad = stages.Stage("bad", "bad", lambda: ["-c", "print('what went wrong'); raise SystemExit(3)"])
    with pytest.raises(SystemExit) as stop:
        stages.run_stages([group(long, bad)], work)
    assert stop.value.code == 3
    assert "what went wrong" in capfd.readouterr().out
    assert not (work / "stages" / "long.json").exists()


def test_a_bar_counts_the_steps_of_a_run(work):
    (work / "run").mkdir()
    stage = stages.Stage("run", "run", list, resumable=True, steps=5)
    assert stages.steps_done(stage, work) == 0
    (work / "run" / "log.jsonl").write_text("{}\n{}\n")
    assert stages.steps_done(stage, work) == 2
    (work / "run" / "log.jsonl").write_text("{}\n" * 9)
    assert stages.steps_done(stage, work) == 5


DEAF = r"""
import signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)  # as below a background job of a script
sys.path[:0] = sys.argv[2:]
from pathlib import Path
from miniature import stages

work = Path(sys.argv[1])
here = f"import pathlib, sys, time; here = pathlib.Path({str(work / 'here')!r})\n"
waits = here + "here.write_text('x'); time.sleep(3600)"
fails = here + "while not here.exists(): time.sleep(0.05)\nsys.exit(3)"
members = (stages.Stage("long", "long", lambda: ["-c", waits]), stages.Stage("bad", "bad", lambda: ["-c", fails]))
stages.run_stages([stages.Together("group", members)], work)
"""


def test_a_group_of_which_one_fails_stops_commands_that_ignore_an_interrupt(work):
    """The limit is that of a hang."""
    paths = [str(ROOT / folder) for folder in ("trl", "")]
    driver = subprocess.run([sys.executable, "-c", DEAF, str(work), *paths], capture_output=True, timeout=300)
    assert driver.returncode == 3
    assert not (work / "stages" / "long.json").exists()


def test_a_bar_of_resumed_runs_starts_where_they_were(work, capfd):
    (work / "run").mkdir()
    (work / "run" / "log.jsonl").write_text("{}\n" * 3)
    todo = group(stages.Stage("run", "run", lambda: ["-c", "pass"], resumable=True, steps=5), writer(work, "b", "2"))
    stages.run_stages([todo], work)
    shown = capfd.readouterr().err
    assert " 3/6 " in shown and " 6/6 " in shown


@pytest.mark.parametrize(
    "flags",
    [
        ["--data_dir", "x"],
        ["--task", "qa", "--splitter", "pysbd"],
        ["--task", "real-qa", "--built", "x"],
        ["--task", "real-mt", "--test_prompts", "3"],
    ],
)
def test_a_flag_that_the_task_does_not_read_is_refused(flags, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        run.main([*flags, "--work_dir", str(tmp_path / "work")])
    assert stop.value.code == 2 and flags[-2] in capsys.readouterr().err
    assert not (tmp_path / "work").exists()


def test_a_folder_of_another_quickstart_is_refused(work, capfd):
    old = writer(work, "generations/sft.json", "1")
    (work / "generations").mkdir()
    stages.run_stages([old], work)
    run.check_stages(work, [old])
    with pytest.raises(UserError, match="sft"):
        run.check_stages(work, [group(writer(work, "a", "1"))])
    assert (work / "generations" / "sft.json").exists()


@pytest.mark.parametrize("content", [{"world": "qa", "seed": 0}, {"world": "mt"}, []])
def test_a_built_world_of_another_task_is_refused(content, tmp_path, capsys):
    for name in ("start", "holistic"):
        (tmp_path / "built" / name).mkdir(parents=True)
    (tmp_path / "built" / "built.json").write_text(json.dumps(content))
    with pytest.raises(SystemExit) as stop:
        run.main(["--built", str(tmp_path / "built"), "--work_dir", str(tmp_path / "work")])
    assert stop.value.code == 2 and "built.json" in capsys.readouterr().err
