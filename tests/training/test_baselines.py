"""What a holistic score is compared with: measured once, kept in a file, the same for training, --test, calibration."""

from __future__ import annotations

import json
from argparse import Namespace

import pytest

from alarm import calibrate, train_ppo
from alarm.api import Task
from alarm.common.errors import UserError
from alarm.training.baselines import reference_texts, with_baselines
from alarm.training.calibrate import of_groups
from alarm.training.rollout import Prompt
from helpers import FIXTURES, ROOT

DATA = ROOT / "examples" / "data"
POLICY = FIXTURES / "golden" / "checkpoints" / "tiny-t5"
TASK = """
from alarm import Aspect, Task
def holistic(prompts, answers, rows):
    with open(COUNTS, "a") as file:
        file.write(f"{len(answers)}\\n")
    return [len(answer) / 10 for answer in answers]
TASK = Task("count", prompt=lambda row: row["text"], answer=lambda row: row["headline"], holistic=holistic,
            aspects=[Aspect("letters", lambda prompts, answers, rows: [-float(len(a)) for a in answers])],
            max_input_len=64, max_generated_len=8)
"""


@pytest.fixture
def task(tmp_path):
    """A task whose holistic score is a tenth of the length, and which writes how many answers it scored."""
    rows = json.loads((DATA / "train.json").read_text())
    field = "headline" if "headline" in rows[0] else next(name for name in rows[0] if name != "text")
    path = tmp_path / "task.py"
    path.write_text(f"COUNTS = {str(tmp_path / 'counts')!r}\n" + TASK.replace("headline", field))
    return path


def words(**flags) -> list[str]:
    return [word for name, value in flags.items() for word in (f"--{name}", *([] if value is True else [str(value)]))]


def train(task, run, **flags):
    common = {
        "task": task, "policy_ckpt": POLICY, "train_file": DATA / "train.json", "dev_file": DATA / "dev.json",
        "dtype": "float32", "report_to": "none", "batch_size": 4, "mini_batch_size": 2, "max_steps": 1,
        "eval_interval": 1, "w_letters": 0.1, "ultra_mean": 0, "ultra_std": 1, "save_dir": run,
    }  # fmt: skip
    train_ppo.main(words(**common | flags))
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def test_the_start_policy_is_the_zero_of_its_own_greedy_answers(tmp_path, task, fresh_accelerate):
    log = train(task, tmp_path / "run", holistic_baseline="greedy")
    assert log[0]["dev"]["holistic_reward"] == pytest.approx(0, abs=1e-6)  # greedy less greedy
    kept = json.loads((tmp_path / "run" / "baselines.json").read_text())
    prompts = sum(len(json.loads((DATA / f"{split}.json").read_text())) for split in ("train", "dev"))
    assert len(kept["scores"]) == prompts and kept["baseline"] == "greedy"


def test_baselines_are_measured_once(tmp_path, task, fresh_accelerate, capsys):
    file = tmp_path / "shared.json"
    flags = {"holistic_baseline": "reference", "baseline_file": file, "eval_interval": 0}
    train(task, tmp_path / "one", **flags)
    first = [int(line) for line in (tmp_path / "counts").read_text().split()]
    train(task, tmp_path / "two", **flags)
    second = [int(line) for line in (tmp_path / "counts").read_text().split()][len(first) :]
    assert sum(first) - sum(second) == len(json.loads(file.read_text())["scores"])
    assert sum(second) == 4  # the answers of the one step
    # another holistic function is another model
    task.write_text(task.read_text().replace("/ 10", "/ 20"))
    with pytest.raises(SystemExit) as exit:
        train(task, tmp_path / "three", **flags)
    assert exit.value.code == 2 and "task file" in capsys.readouterr().err


def test_training_pays_the_difference(tmp_path, task, fresh_accelerate):
    none = train(task, tmp_path / "none", reward_type="holistic_only", eval_interval=0)
    less = train(task, tmp_path / "less", reward_type="holistic_only", eval_interval=0, holistic_baseline="reference")
    scores = json.loads((tmp_path / "less" / "baselines.json").read_text())["scores"].values()
    # the same four prompts and answers: h falls by a mean of four baselines
    fall = none[-1]["train"]["holistic_reward"] - less[-1]["train"]["holistic_reward"]
    assert min(scores) <= fall <= max(scores) and fall > 0


def test_a_group_needs_its_numbers(tmp_path, task, fresh_accelerate, capsys):
    with pytest.raises(SystemExit) as exit:
        train(task, tmp_path / "run", holistic_baseline="group", samples_per_prompt=2)
    assert exit.value.code == 2 and "--holistic_level" in capsys.readouterr().err
    calibration = tmp_path / "calibration.json"
    measured = {"task": task, "policy_ckpt": POLICY, "prompts": DATA / "train.json", "save_path": calibration}
    measured |= {"dtype": "float32", "limit": 8, "holistic_baseline": "group"}
    with pytest.raises(SystemExit):
        calibrate.main(words(**measured))
    assert "--samples_per_prompt" in capsys.readouterr().err
    calibrate.main(words(**measured, samples_per_prompt=2))
    found = json.loads(calibration.read_text())
    assert found["rewards"]["holistic"]["mean"] == pytest.approx(0, abs=1e-6)
    assert found["rewards"]["holistic_level"]["mean"] > 0
    flags = {"holistic_baseline": "group", "samples_per_prompt": 2, "calibration": calibration}
    common = {
        "task": task, "policy_ckpt": POLICY, "train_file": DATA / "train.json", "dev_file": DATA / "dev.json",
        "dtype": "float32", "report_to": "none", "batch_size": 4, "mini_batch_size": 2, "max_steps": 1,
        "w_letters": 0.1, "save_dir": tmp_path / "run",
    }  # fmt: skip
    train_ppo.main(words(**common | flags))
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    (step,) = [row["train"] for row in rows if "train" in row]
    assert step["holistic_reward"] == pytest.approx(0, abs=1e-5)  # of each group, the mean is 0
    # the same calibration without the baseline is another scale
    with pytest.raises(SystemExit) as exit:
        train_ppo.main(words(**common | {"calibration": calibration, "save_dir": tmp_path / "other"}))
    assert exit.value.code == 2 and "--holistic_baseline" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ({"baseline_file": "x.json"}, "--baseline_file"),
        ({"baseline_policy": POLICY}, "--baseline_policy"),
        ({"holistic_baseline": "group", "holistic_level": 0}, "--samples_per_prompt"),
        ({"holistic_baseline": "greedy", "baseline_policy": "no/such/folder"}, "--baseline_policy"),
        ({"holistic_baseline": "reference", "baseline_file": DATA / "train.json"}, "--baseline_file"),
    ],
)
def test_flags_that_do_not_fit(tmp_path, task, capsys, flags, named):
    with pytest.raises(SystemExit) as exit:
        train(task, tmp_path / "run", **flags)
    assert exit.value.code == 2 and named in capsys.readouterr().err


def test_a_test_of_greedy_names_the_start_policy(tmp_path, task, fresh_accelerate, capsys):
    common = {"task": task, "test": True, "policy_ckpt": POLICY, "test_file": DATA / "dev.json", "dtype": "float32"}
    common |= {"holistic_baseline": "greedy", "ultra_mean": 0, "ultra_std": 1, "save_dir": tmp_path / "out.json"}
    with pytest.raises(SystemExit) as exit:
        train_ppo.main(words(**common))
    assert exit.value.code == 2 and "--baseline_policy" in capsys.readouterr().err
    train_ppo.main(words(**common, baseline_policy=POLICY))
    rows = json.loads((tmp_path / "out.json").read_text())
    assert [row["holistic_reward"] for row in rows] == pytest.approx([0.0] * len(rows), abs=1e-6)
    assert "baseline_policy" in json.loads((tmp_path / "out.meta.json").read_text())["models"]


def test_scores_less_the_mean_of_their_group_by_hand():
    samples = [
        {"index": i, "generation": text, "holistic": score}
        for i, (text, score) in enumerate([("a", 1.0), ("b", 4.0), (" ", 9.0), ("c", 2.0)])
    ]
    found = of_groups(samples, 2)
    assert [row["holistic"] for row in found] == [-1.5, 1.5, 7.0, 0.0]
    assert [row["holistic_level"] for row in found] == [1.0, 4.0, 9.0, 2.0]


def test_references():
    import torch

    def prompt(row):
        return Prompt(row, "q", "q", "q", torch.tensor([1]))

    task = Task("t", prompt=str, aspects=[], holistic=len, answer=lambda row: row["answer"])
    assert reference_texts([prompt({"answer": "a"}), prompt({"answer": ["b", "c"]})], task) == ["a", "b"]
    for row in ({}, {"answer": []}, {"answer": None}):
        with pytest.raises(UserError, match="reference"):
            reference_texts([prompt(row)], task)


def test_scores_that_are_not_finite_end_the_run(tmp_path):
    import torch

    prompt = Prompt({"answer": "a"}, "q", "q", "q", torch.tensor([1]))
    task = Task("t", prompt=str, aspects=[], holistic=len, answer=lambda row: row["answer"])
    args = Namespace(
        holistic_baseline="reference", holistic_model=None, dtype="float32", max_input_len=4, max_generated_len=4,
        chat_template="auto", source_language=None, target_language=None,
    )  # fmt: skip
    scorer = Namespace(holistic=lambda rollout: torch.tensor([float("nan")]))
    with pytest.raises(UserError, match="finite"):
        with_baselines({"train": [prompt]}, task, args, "policy", scorer, 2, tmp_path / "b.json")
    assert not (tmp_path / "b.json").exists()
