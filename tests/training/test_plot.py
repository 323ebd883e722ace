"""Plots of a run: what is read from its log, what is drawn, what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from alarm import Metric
from alarm.common.errors import UserError
from alarm.tasks.find import find_task
from alarm.training.plot import PANELS, STYLES, RunLog, main, panels_of, plot, read_run, run_names, running_mean

METRICS = [metric for name in ("qa", "mt") for metric in find_task(name).metrics]


def row(step: int, **changes) -> dict:
    train = {"reward": step / 2, "holistic_reward": -1.0 + step / 10, "response_length": 90.0 + step, "kl": 0.1 * step}
    train |= {"gate_rate": 0.25, "aspect_share": None, "kl_coef": 0.2, "factuality_rate": 0.7, "time/score": 3.0}
    return {"step": step, "train": train | changes}


def dev(step: int, reward: float) -> dict:
    return {"step": step, "dev": {"total_reward": reward, "holistic_reward": 0.1, "readability": 0.3}}


def write_log(folder: Path, rows: list[dict]) -> Path:
    folder.mkdir(parents=True)
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def a_run(folder: Path, steps: int = 20) -> Path:
    rows = [dev(0, -2.0), *(row(step) for step in range(1, steps + 1)), dev(steps, 3.0)]
    rows[7]["warnings"] = {"response_length_mean": "the running mean of ..."}
    return write_log(folder, rows)


def test_running_mean_by_hand():
    assert running_mean([1.0, 3.0, 5.0, 7.0], 2) == [1.0, 2.0, 4.0, 6.0]
    assert running_mean([1.0, math.nan, 3.0], 2) == [1.0, 1.0, 3.0]
    assert math.isnan(running_mean([math.nan, 2.0], 1)[0])


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=30), st.integers(1, 40))
def test_running_means_lie_between_the_values(values, window):
    means = running_mean(values, window)
    assert len(means) == len(values) and means[0] == values[0]
    for end, mean in enumerate(means, start=1):
        part = values[max(0, end - window) : end]
        assert min(part) - 1e-9 <= mean <= max(part) + 1e-9


def test_a_log_is_read(tmp_path):
    log = read_run(write_log(tmp_path / "run", [dev(0, 1.5), row(1), row(2, kl=None), row(3)]), "mine")
    assert log.series("train", "response_length") == ([1, 2, 3], [91.0, 92.0, 93.0])
    steps, values = log.series("train", "kl")
    assert steps == [1, 2, 3] and values[0] == 0.1 and math.isnan(values[1])
    assert log.series("dev", "total_reward") == ([0], [1.5])
    assert log.series("train", "aspect_share") == ([], [])  # null everywhere
    assert log.series("train", "grammar_errors") == ([], [])


def test_a_line_that_is_still_being_written_is_left_out(tmp_path):
    folder = write_log(tmp_path / "run", [row(1), row(2)])
    with open(folder / "log.jsonl", "a") as file:
        file.write('{"step": 3, "tra')
    assert list(read_run(folder, "mine").train) == [1, 2]


def test_metrics_of_an_unknown_task_have_panels_with_their_names(tmp_path):
    run = RunLog(
        "mine", {1: {"reward": 1.0, "n_words": 3.0, "entropy": 1.0, "length_correlation/n_words": 0.5}}, {}, {}
    )
    assert list(panels_of([run], METRICS))[len(PANELS) :] == ["n_words"]
    assert panels_of([run], [])["n_words"] == ("n words", None)
    assert panels_of([run], [Metric("n_words", title="words", ends=(0, 9))])["n_words"] == ("words", (0, 9))


def lines_of(axes) -> list[tuple[list, list]]:
    return [(list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines]


def panels(figure) -> dict:
    titles = {title: metric for metric, (title, _) in PANELS.items()} | {one.title: one.name for one in METRICS}
    return {titles[axes.get_title(loc="left")]: axes for axes in figure.axes}


def test_every_metric_of_the_log_has_a_panel_with_its_numbers(tmp_path):
    figure = plot([read_run(a_run(tmp_path / "run"), "mine")], 2, METRICS)
    found = panels(figure)
    expected = {"reward", "holistic_reward", "gate_rate", "kl", "kl_coef", "response_length", "factuality_rate"}
    assert set(found) == expected | {"readability"}  # that one on the dev file alone
    thin, mean, markers = lines_of(found["reward"])
    assert thin == (list(range(1, 21)), [step / 2 for step in range(1, 21)])
    assert mean[1][:3] == [0.5, 0.75, 1.25]
    assert markers == ([0, 20], [-2.0, 3.0])
    # the warning of step 7 is marked where the length is
    assert lines_of(found["response_length"])[-1][0] == [7]
    assert [7] not in [x for x, _ in lines_of(found["kl"])]
    assert figure.get_suptitle() == "mine"


def test_the_raw_score_has_a_panel_and_rounding_is_no_curve(tmp_path):
    """Less the mean of its group, a holistic reward is 0 but for rounding."""
    rows = [row(step, holistic_reward=(-1) ** step * 1e-17, raw_holistic=step / 4) for step in range(1, 9)]
    found = panels(plot([read_run(write_log(tmp_path / "run", rows), "mine")], 1, METRICS))
    assert lines_of(found["raw_holistic"])[0][1] == [step / 4 for step in range(1, 9)]
    low, high = found["holistic_reward"].get_ylim()
    assert low < -0.4 and high > 0.4
    low, high = found["reward"].get_ylim()
    assert high < 5  # steps / 2, up to 4


def test_runs_differ_by_more_than_colour(tmp_path):
    assert len({str(line) for _, line, _ in STYLES}) == len({marker for _, _, marker in STYLES}) == len(STYLES)
    runs = [read_run(a_run(tmp_path / name, steps), name) for name, steps in (("a", 20), ("b", 10))]
    figure = plot(runs, metrics=METRICS)
    _, first, _, _, second, _ = panels(figure)["reward"].lines
    assert first.get_linestyle() != second.get_linestyle() and first.get_color() != second.get_color()
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()][-2:] == ["a", "b"]


def test_a_run_of_one_step_is_a_point(tmp_path):
    runs = [read_run(write_log(tmp_path / name, [row(1)]), name) for name in ("a", "b")]
    lines = [line for line in panels(plot(runs, metrics=METRICS))["kl"].lines if line.get_linewidth() == 1.8]
    assert [line.get_marker() for line in lines] == [STYLES[0][2], STYLES[1][2]]


def test_colours_are_visible_and_differ_in_grey():
    from matplotlib.colors import to_rgb

    grey = [np.dot((0.299, 0.587, 0.114), to_rgb(color)) for color, _, _ in STYLES]
    assert max(grey) < 0.75  # on white
    assert np.diff(sorted(grey[:3])).min() > 0.15  # of the first three, which most comparisons need


def test_names_of_runs():
    assert run_names(["x/a", "x/b/"]) == ["a", "b"]
    assert run_names(["x/a", "y/a"]) == ["x/a", "y/a"]


def test_the_script_writes_a_picture_and_replaces_its_own(tmp_path, capsys):
    runs = [a_run(tmp_path / "a"), a_run(tmp_path / "b", 7)]
    main(["--run_dir", str(runs[0])])
    picture = runs[0] / "training.png"
    with Image.open(picture) as image:
        assert image.format == "PNG" and image.width > 1000 and image.height > 500
        assert len(set(image.convert("L").resize((64, 64)).get_flattened_data())) > 10  # something is drawn
    main(["--run_dir", str(runs[0])])
    main(["--run_dir", str(runs[0]), "--run_dir", str(runs[1]), "--save_dir", str(tmp_path / "new" / "plots")])
    assert "a: 20 steps, b: 7 steps" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "new" / "plots").iterdir()] == ["training.png"]


def refused(capsys, *flags: str) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main(list(flags))
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    return error


def test_pictures_of_others_are_not_replaced(tmp_path, capsys):
    run = a_run(tmp_path / "run")
    picture = run / "training.png"
    Image.new("RGB", (4, 4)).save(picture)
    before = picture.read_bytes()
    assert "not written by alarm.plot_run" in refused(capsys, "--run_dir", str(run))
    assert picture.read_bytes() == before
    picture.write_text("notes")
    assert "not written by alarm.plot_run" in refused(capsys, "--run_dir", str(run))


def test_what_is_no_run_is_refused(tmp_path, capsys):
    assert "does not exist" in refused(capsys, "--run_dir", str(tmp_path / "gone"))
    assert "holds no log.jsonl" in refused(capsys, "--run_dir", str(tmp_path))
    file = tmp_path / "file"
    file.write_text("x")
    assert "is a file" in refused(capsys, "--run_dir", str(file), "--save_dir", str(tmp_path))
    assert "no finished step" in refused(capsys, "--run_dir", str(write_log(tmp_path / "empty", [])))
    run = a_run(tmp_path / "run")
    assert "is a file" in refused(capsys, "--run_dir", str(run), "--save_dir", str(file))
    assert "at most 6" in refused(capsys, *["--run_dir", str(run)] * 7)


@pytest.mark.parametrize("line", ["{", "[1]", '{"train": {}}', '{"step": 1, "train": 3}', '{"step": "1", "train": {}}'])
def test_other_logs_are_refused_with_the_line(tmp_path, line):
    folder = write_log(tmp_path / "run", [row(1)])
    with open(folder / "log.jsonl", "a") as file:
        file.write(line + "\n")
    with pytest.raises(UserError, match="line 2"):
        read_run(folder, "mine")
