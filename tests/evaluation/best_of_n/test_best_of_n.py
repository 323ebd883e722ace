"""`python -m alarm.best_of_n` on files made by hand: what it computes, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alarm.combiners import COMBINERS
from alarm.evaluation.best_of_n.best_of_n import main
from helpers import ROOT

TASK = """
import torch
from alarm import Aspect, Metric, Task
from alarm.types import Shares

def total(prompts, answers, rows):
    return [0.0 for answer in answers]

def broken(scores, recipe):
    return Shares(0 * scores.h, 0 * scores.h, torch.where(scores.h > 0, torch.nan, scores.h))

TASK = Task(
    "toy", prompt=str, holistic=total, combiners={"broken": broken},
    aspects=[
        Aspect("facts", total, weight=1.0), Aspect("slips", total, metrics=[Metric("slip_rate", lower_wins=True)]),
    ],
)
"""


def rows_of(prompts: int = 40, samples: int = 4, seed: int = 0) -> list[dict]:
    """A world in which the aspect tells the truth and the holistic score is half noise."""
    random = np.random.default_rng(seed)
    rows = []
    for index in range(prompts):
        for sample in range(samples):
            truth = float(random.normal())
            aspects = {
                "facts": {"total": truth, "values": [truth], "best": 0.0},
                "slips": {"total": -1.0, "values": [-1.0] * int(random.integers(3)), "best": 0.0},
            }
            rows.append(
                {"index": index, "sample": sample, "query": f"question {seed} {index}", "generation": f"a{sample}"}
                | {"holistic_reward": 0.0, "response_length": 5.0 + sample, "slip_rate": float(random.random())}
                | {"raw_holistic": truth + float(random.normal()), "oracle": truth, "aspects": aspects}
            )
    return rows


class Bench:
    def __init__(self, folder: Path, capsys):
        self.folder, self.capsys = folder, capsys
        (folder / "toy.py").write_text(TASK)
        self.write("samples.json", rows_of())

    def write(self, name: str, rows: list[dict]) -> str:
        (self.folder / name).write_text(json.dumps(rows))
        return str(self.folder / name)

    def words(self, flags: str, rows: list[dict] | None = None) -> list[str]:
        if rows is not None:
            self.write("samples.json", rows)
        files = ["--task", str(self.folder / "toy.py"), "--generations", str(self.folder / "samples.json")]
        return [*files, "--save_path", str(self.folder / "out.json"), *flags.split()]

    def __call__(self, flags: str, rows: list[dict] | None = None) -> dict:
        main(self.words(flags, rows))
        return json.loads((self.folder / "out.json").read_text())

    def refused(self, flags: str, rows: list[dict] | None = None) -> str:
        with pytest.raises(SystemExit) as stopped:
            main(self.words(flags, rows))
        assert stopped.value.code == 2
        assert not (self.folder / "out.json").exists()
        return self.capsys.readouterr().err


@pytest.fixture
def bench(tmp_path, capsys) -> Bench:
    return Bench(tmp_path, capsys)


def row(index: int, sample: int, raw: float, facts: float, oracle: float | None, **changes) -> dict:
    found = {"index": index, "sample": sample, "query": f"q{index}", "generation": "a", "raw_holistic": raw}
    aspects = {"facts": {"values": [facts], "best": 0.0}, "slips": {"values": [], "best": 0.0}}
    return found | {"aspects": aspects, "oracle": oracle} | changes


def test_by_hand(bench):
    # holistic prefers 10 and 1; with the aspect 20 and 3
    rows = [row(0, 0, 1.0, 0.0, 10), row(0, 1, 0.0, 5.0, 20), row(1, 0, 2.0, 0.0, 1), row(1, 1, 1.0, 3.0, 3)]
    found = bench("--quality oracle --combine holistic_only,weighted_sum,aspect_only", rows)
    assert found["n"] == [1, 2] and found["kl"][0] == 0 and found["prompts"] == 2 and found["answers"] == 4
    curves = {name: line["quality"] for name, line in found["chosen"].items()}
    assert curves == {"holistic_only": [8.5, 5.5], "weighted_sum": [8.5, 11.5], "aspect_only": [8.5, 11.5]}
    assert found["chosen"]["weighted_sum"]["difference"] == [0, 6]
    assert found["best_possible"]["quality"] == [8.5, 11.5] and found["at_random"]["quality"] == [8.5, 8.5]
    holistic, weighted, aspect = found["settings"]
    assert (holistic["ranks_like"], weighted["ranks_like"], aspect["ranks_like"]) == (0, 1, 1)
    assert weighted["reported"] == [8.5, 11.5] and weighted["dev"] is None
    with Image.open(bench.folder / "out.png") as image:
        assert image.width > 500


def test_all_combiners_and_a_grid_chosen_on_dev_prompts(bench):
    flags = "--quality oracle --dev_share 0.5 --w_facts 0.1 3 --hierarchical_threshold -0.5 0.5 --ultra_mean 0 "
    found = bench(
        f"{flags} --ultra_std 1.4 --gate_temperature 0.1 0.5 --decoupled_cv off on --holistic_baseline none group"
    )
    assert found["prompts"] == found["dev_prompts"] == 20
    assert set(found["chosen"]) == set(found["chosen_settings"]) == set(COMBINERS)  # without the broken one
    for name, number in found["chosen_settings"].items():
        same = [one for one in found["settings"] if one["flags"]["reward_type"] == name]
        assert found["settings"][number]["dev"][-1] == max(one["dev"][-1] for one in same)
        assert found["settings"][number]["reported"] == pytest.approx(found["chosen"][name]["quality"])
    # the aspect is the truth, so that more of it is better
    assert found["settings"][found["chosen_settings"]["weighted_sum"]]["flags"]["w_facts"] == 3
    low, _ = found["chosen"]["weighted_sum"]["difference_intervals"][-1]
    assert low > 0
    printed = bench.capsys.readouterr().out
    assert "--reward_type weighted_sum --w_facts 3.0" in printed and "broken" in printed
    broken = [one for one in found["settings"] if one["flags"]["reward_type"] == "broken"]
    assert broken and all(one["reported"][0] is None for one in broken)


def test_the_level_of_a_group_is_measured(bench):
    """Training subtracts it on its dev file. It is no flag of this command, and no file without groups holds it."""
    mean = float(np.mean([one["raw_holistic"] for one in rows_of()]))
    for scale in ("", " --ultra_mean 0 --ultra_std 1"):
        found = bench(f"--quality oracle --combine weighted_sum --holistic_baseline group{scale} --overwrite")
        (setting,) = (one for one in found["settings"] if one["flags"]["reward_type"] == "weighted_sum")
        assert setting["flags"]["holistic_level"] == pytest.approx(mean)


def test_rewards_that_are_not_finite_are_never_ranked(bench):
    found = bench("--quality oracle --combine broken,weighted_sum")
    assert set(found["chosen"]) == {"holistic_only", "weighted_sum"}
    assert "not finite: broken" in bench.capsys.readouterr().out


def test_a_random_reward_gains_nothing_and_the_interval_says_so(bench):
    rows = rows_of(prompts=200)
    random = np.random.default_rng(1)
    for one in rows:
        one["raw_holistic"] = float(random.normal())
    found = bench("--quality oracle --combine holistic_only", rows)
    low, high = found["at_random"]["difference_intervals"][-1]
    assert low < 0 < high


def test_dev_samples_of_another_file(bench):
    dev = bench.write("dev.json", rows_of(seed=1) + [one | {"index": 99} for one in rows_of(prompts=1)])
    found = bench(f"--quality oracle --dev_generations {dev} --w_facts 0.1 3 --combine weighted_sum")
    assert found["prompts"] == 40 and found["dev_prompts"] == 40
    assert found["dev_left_out"]["dev prompts left out, reported as well"] == 1
    (bench.folder / "out.json").unlink()
    (bench.folder / "out.png").unlink()
    same = bench.write("same.json", rows_of())
    assert "tuning" in bench.refused(f"--quality oracle --dev_generations {same} --combine weighted_sum")


def test_one_question_is_on_one_side(bench):
    rows = rows_of(prompts=30)
    for one in rows:
        one["query"] = f"Question {one['index'] // 3}" + "?" * (one["index"] % 3)
    found = bench("--quality oracle --dev_share 0.3 --combine all", rows)
    assert (found["dev_prompts"], found["prompts"]) == (9, 21)


def test_lower_is_better(bench):
    rows = rows_of()
    for one in rows:
        one["harm"] = -one["oracle"]
    found = bench("--quality harm --lower_is_better --combine weighted_sum --w_facts 0.01 3 --dev_share 0.5", rows)
    assert found["settings"][found["chosen_settings"]["weighted_sum"]]["flags"]["w_facts"] == 3
    assert found["best_possible"]["quality"][-1] < found["chosen"]["weighted_sum"]["quality"][-1] < 0
    (bench.folder / "out.json").unlink()
    (bench.folder / "out.png").unlink()
    # a metric of the task says so itself
    assert bench("--quality slip_rate --combine weighted_sum")["lower_is_better"]


@pytest.mark.parametrize(
    "flags, words",
    [
        ("--quality oracle --combine weighted_sum,magic", "magic"),
        ("--quality truth", "truth"),
        ("--quality holistic_reward", "holistic"),
        ("--quality raw_holistic", "holistic"),
        ("--quality facts", "--w_facts 0"),
        ("--quality slip_rate --w_slips 1", "--w_slips 0"),
        ("--quality oracle --w_facts 0.5 1", "--dev_share"),
        ("--quality oracle --dev_share 0.5 --dev_generations x.json", "drop one"),
        ("--quality oracle --dev_quality_file x.csv", "--dev_generations"),
        ("--quality oracle --references size=1", "size"),
        ("--quality oracle --holistic_baseline greedy", "greedy"),
        ("--quality oracle --dev_share 0.001", "empty"),
        ("--quality oracle --w_facts 0", "weight"),
        ("--quality oracle --quality_file nowhere.csv", "nowhere.csv"),
        ("--quality oracle --decoupled_cv maybe", "maybe"),
    ],
)
def test_what_is_refused(bench, flags, words):
    assert words in bench.refused(flags)


def test_a_quality_that_is_a_copy_of_a_part_is_named(bench):
    bench("--quality oracle --combine weighted_sum")
    assert "circular" in bench.capsys.readouterr().out
    (bench.folder / "out.json").unlink()
    (bench.folder / "out.png").unlink()
    rows = rows_of()
    for one in rows:
        one["oracle"] = round(one["oracle"], 3)
    bench("--quality oracle --combine weighted_sum", rows)
    assert "circular" not in bench.capsys.readouterr().out


def test_one_sample_a_prompt(bench):
    assert "--num_samples" in bench.refused("--quality oracle", rows_of(samples=1))
    # what is not finite counts as missing
    rows = rows_of(samples=2)
    for one in rows:
        one["oracle"] = one["oracle"] if one["sample"] else None
    assert "--num_samples" in bench.refused("--quality oracle", rows)


def test_uneven_numbers_and_what_is_not_finite(bench):
    rows = rows_of(prompts=30, samples=5)
    rows[0]["raw_holistic"] = None
    rows[7]["oracle"] = None
    rows = [one for one in rows if one["index"] != 29 or one["sample"] < 2]
    found = bench("--quality oracle --combine all", rows)
    assert found["n"] == [1, 2, 3, 4, 5] and found["prompts"] == 27
    assert sorted(found["left_out"].values()) == [1, 1, 3]
    printed = bench.capsys.readouterr().out
    assert "3" in printed and "fewer than 5 answers" in printed
    (bench.folder / "out.json").unlink()
    (bench.folder / "out.png").unlink()
    # a prompt with more answers than n uses all of them
    found = bench("--quality oracle --combine all", [one for one in rows if one["index"] % 2 or one["sample"] < 3])
    assert found["n"] == [1, 2, 3] and found["prompts"] == 28


def test_nothing_is_overwritten_unasked(bench):
    flags = "--quality oracle --combine weighted_sum"
    bench(flags)
    before = (bench.folder / "out.json").read_text()
    with pytest.raises(SystemExit):
        main(bench.words(flags))
    assert "--overwrite" in bench.capsys.readouterr().err
    again = bench(f"{flags} --overwrite")
    assert json.loads(before) == again


def test_as_a_user_runs_it(bench):
    command = [sys.executable, "-m", "alarm.best_of_n"]
    done = subprocess.run([*command, *bench.words("--quality oracle")], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "best of 4" in done.stdout and "decoupled" in done.stdout
    done = subprocess.run([*command, "--quality", "oracle"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and "--generations" in done.stderr


def test_a_missing_file_is_said_to_be_missing(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(
            [
                "--generations",
                str(tmp_path / "none.json"),
                "--quality",
                "oracle",
                "--save_path",
                str(tmp_path / "x.json"),
            ]
        )
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert "does not exist" in error and error.count("\n") == 1
