"""A task as data: names, flags, and files that are no task."""

from __future__ import annotations

import argparse
import subprocess
import sys

import pytest

from alarm import Aspect, Flag, Metric, Task
from alarm.common.errors import UserError
from alarm.tasks.find import BUILT_IN, find_task, task_of
from alarm.training.main import parse_args
from helpers import ROOT


def score(prompts, answers, rows):
    return [0.0 for _ in answers]


def task(*aspects: Aspect, **fields) -> Task:
    return Task("toy", prompt=str, aspects=aspects, **fields)


def test_a_new_aspect_takes_no_part_unless_it_is_asked_for():
    toy = task(Aspect("brevity", score), Aspect("shouting", score, flag="w_shout"))
    assert toy.weights(parse_args(toy, "", ["--save_dir", "x"])) == {"brevity": 0.0, "shouting": 0.0}
    args = parse_args(toy, "", ["--save_dir", "x", "--w_shout", "2", "--w_brevity", "-1"])
    assert toy.weights(args) == {"brevity": -1.0, "shouting": 2.0}


def test_a_weight_of_an_aspect_that_is_not_there_is_one_line():
    with pytest.raises(UserError, match=r"--w_coherence.*toy.*--w_brevity") as error:
        parse_args(task(Aspect("brevity", score)), "", ["--save_dir", "x", "--w_coherence=1"])
    assert "\n" not in str(error.value)
    with pytest.raises(SystemExit):
        parse_args(task(Aspect("brevity", score)), "", ["--save_dir", "x", "--wbrevity", "1"])


def test_rows_come_from_the_named_files_or_from_the_task(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text('[{"text": "q"}]')
    args = argparse.Namespace(train_file=str(path), dev_file=None)
    task = Task("t", prompt=str, aspects=[])
    assert task.rows(args, ["train"]) == {"train": [{"text": "q"}]}
    assert task.rows(args, ["train"], lambda path: [{"read": path}]) == {"train": [{"read": str(path)}]}
    with pytest.raises(UserError, match="--dev_file"):
        task.rows(args, ["train", "dev"])
    asked = []
    own = Task(
        "t", prompt=str, aspects=[], splits=lambda args, names: asked.append(names) or {name: [] for name in names}
    )
    assert own.rows(args, ["train", "dev"]) == {"train": [], "dev": []}
    assert asked == [["train", "dev"]]  # once, so that a data set is read once


def test_the_columns_of_results():
    brevity = Aspect("brevity", score, metrics=[Metric("words", published="n_words"), Metric("letters")])
    assert task(brevity).columns_in_order == ("holistic_reward", "response_length", "n_words", "letters")
    some = task(brevity, columns=("letters", "holistic_reward"))
    assert some.columns_in_order == ("letters", "holistic_reward", "response_length", "n_words")


def test_the_published_columns_and_weights():
    qa, mt = find_task("qa"), find_task("mt")
    assert qa.columns_in_order == (
        "holistic_reward",
        "factuality_rate",
        "verbosity_rate",
        "completeness_reward",
        "response_length",
    )
    assert {metric.key for metric in mt.metrics if metric.lower_wins} == {"grammar_errors", "error_rate"}
    assert [aspect.flag for aspect in (*qa.aspects, *mt.aspects)] == [
        "w_rel",
        "w_fact",
        "w_comp",
        "w_read",
        "w_grammar",
        "w_confidence",
    ]


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: task(Aspect("a", score), Aspect("a", score)), "two aspects are named a"),
        (lambda: task(Aspect("a", score, metrics=[Metric("m")]), Aspect("b", score, metrics=[Metric("m")])), "named m"),
        (lambda: task(Aspect("a", score, metrics=[Metric("m")]), Aspect("m", score)), "named m"),
        (lambda: task(Aspect("a", score, metrics=[Metric("response_length")])), "response_length"),
        (lambda: task(Aspect("a", score, metrics=[Metric("kl")])), "kl"),
        (lambda: task(Aspect("a", score, flag="w"), Aspect("b", score, flag="w")), "two flags are named w"),
        (lambda: task(Aspect("a", score), flags=[Flag("w_a", 1.0, "")]), "two flags are named w_a"),
        (lambda: task(Aspect("a", score), columns=("holistic_reward", "b")), "columns name b"),
        (lambda: Aspect("a b", score), "'a b'"),
        (lambda: Aspect("a", score, pay="first"), "'first'"),
        (lambda: Aspect("a", 3), "int"),
        (lambda: Aspect("a", score, metrics=[Metric("per cent")]), "'per cent'"),
        (lambda: task(Aspect("a", score)).aspect("coherence"), "'coherence'.*a"),
    ],
)
def test_names_that_clash_or_are_none(make, named):
    with pytest.raises(UserError, match=named) as error:
        make()
    assert "\n" not in str(error.value)


GOOD = "from alarm import Aspect, Task\nTASK = Task('toy', prompt=str, aspects=[Aspect('a', lambda p, a, r: [])])\n"


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (None, "does not exist"),
        ("TASKS = 3\n", "no TASK"),
        ("TASK = 3\n", "int"),
        ("import nothing_of_this_name\n", "ModuleNotFoundError"),
        ("1 / 0\n", "ZeroDivisionError"),
        ("TASK = (\n", "SyntaxError"),
        (GOOD.replace("[Aspect", "[Aspect('a', len), Aspect"), "two aspects"),
    ],
)
def test_files_that_are_no_task_are_one_line_with_the_file(tmp_path, content, named):
    file = tmp_path / "toy.py"
    if content is not None:
        file.write_text(content)
    with pytest.raises(UserError, match=named) as error:
        find_task(str(file))
    assert "toy.py" in str(error.value) and "\n" not in str(error.value)


def test_a_task_of_a_file_knows_its_file(tmp_path):
    (tmp_path / "toy.py").write_text(GOOD)
    found = task_of(["--save_dir", "x", "--task", str(tmp_path / "toy.py")])
    assert (found.name, found.source) == ("toy", str(tmp_path / "toy.py"))
    assert find_task("qa").source == ""


@pytest.mark.parametrize("name", ["summaries", "qa.json", "QA"])
def test_an_unknown_task_is_named_with_those_that_exist(name):
    with pytest.raises(UserError) as error:
        find_task(name)
    assert name in str(error.value) and all(known in str(error.value) for known in BUILT_IN)


def test_the_package_loads_nothing_heavy():
    code = "import sys; from alarm import Aspect, Metric, Task, HierarchicalReward; "
    code += "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'numpy', 'spacy')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize("name", ["holistic", "response"])
def test_an_aspect_cannot_have_the_name_of_another_part_of_a_payment(name):
    with pytest.raises(UserError, match=name):
        Task("t", prompt=lambda row: row["text"], aspects=[Aspect(name, lambda p, a, r: [0.0] * len(a))])
