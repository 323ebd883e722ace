"""`python -m alarm.score` as a user runs it: new columns beside old ones, and what they come from."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from e2e.conftest import make_world, value_of

from alarm.common.identity import hash_file
from alarm.evaluation.provenance import read_sidecar, scoring_differences
from alarm.tasks.find import find_task
from helpers import CHECKPOINTS, ROOT, load_script

GENS = ROOT / "tests" / "fixtures" / "eval" / "qa" / "gens"
HEADLINES = ROOT / "examples" / "headlines.py"
RM = CHECKPOINTS / "tiny-ultrarm"
stub = load_script("tests/evaluation/judge_stub.py")


def run(*arguments: str | Path, module: str = "alarm.score") -> subprocess.CompletedProcess:
    environment = {key: value for key, value in os.environ.items() if key not in ("FORCE_COLOR", "RANK")}
    environment.pop("OPENAI_API_KEY", None)
    command = [sys.executable, "-m", module, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=180, check=False)


def write(path: Path, answers: list[str], **columns) -> Path:
    rows = [{"query": f"headline: storm {i}", "generation": answer} | columns for i, answer in enumerate(answers)]
    path.write_text(json.dumps(rows))
    return path


def read(path: Path) -> list[dict]:
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def tested(tmp_path_factory) -> tuple[Path, list[str]]:
    """A generations file of train_ppo.py --test with tiny models, and the flags that it was scored with."""
    folder = tmp_path_factory.mktemp("tested")
    world = make_world(folder / "world")
    out = folder / "run.json"
    done = run("--task", "qa", "--test", *world.flags, "--save_dir", out, module="alarm.train_ppo")
    assert done.returncode == 0, done.stderr
    names = ("holistic_model", "reward_model_dir", "splitter", "dtype", "ultra_mean", "ultra_std", "policy_ckpt")
    flags = [word for name in names for word in (f"--{name}", value_of(world.flags, name))]
    return out, ["--task", "qa", "--examples", value_of(world.flags, "test_file"), *flags]


def test_gives_the_numbers_of_test(tested, tmp_path):
    """Every column of --test, taken away and computed again from the texts alone."""
    path, flags = tested
    before = read(path)
    bare = tmp_path / "bare.json"
    # the sampled tokens are not in the file; a random policy's text has others
    columns = [name for name in before[0] if name not in ("query", "generation", "response_length")]
    bare.write_text(json.dumps([{name: row[name] for name in ("query", "generation")} for row in before]))
    done = run("--generations", bare, "--add", *columns, *flags, "--output", tmp_path / "new.json")
    assert done.returncode == 0, done.stderr
    assert "ultra_std 1" in done.stdout  # a number that the flags give is said
    after = read(tmp_path / "new.json")
    assert after[0].keys() == before[0].keys() - {"response_length"}
    for old, new in zip(before, after, strict=True):
        for name in columns:
            assert new[name] == pytest.approx(old[name], abs=1e-4), name
    meta = read_sidecar(tmp_path / "new.json")
    whole = read_sidecar(path)
    for role in ("holistic", "relevance", "factuality", "completeness"):
        assert meta["models"][role]["files"] == whole["models"][role]["files"]
    lines = scoring_differences(find_task("qa"), {"new": meta, "old": whole})
    assert [line for line in lines if line.startswith("warning")] == []
    assert any("added later" in line for line in lines)


def test_tokens_are_those_of_the_policys_tokenizer(tmp_path):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINTS / "tiny-t5")
    texts = ["the film has a long story", "yes", ""]
    path = write(tmp_path / "a.json", texts)
    flags = ("--policy_ckpt", CHECKPOINTS / "tiny-t5", "--task", "mt", "--grammar_backend", "rules")
    done = run("--generations", path, "--add", "response_length", "grammar", *flags, "--output", tmp_path / "b.json")
    assert done.returncode == 0, done.stderr
    found = read(tmp_path / "b.json")
    assert [row["response_length"] for row in found] == [len(tokenizer(text)["input_ids"]) for text in texts]
    for row in found:
        assert row["error_rate"] == pytest.approx(row["grammar_errors"] / row["response_length"])
    assert found[0]["error_rate"] > 0  # no capital letter
    assert "tiny-t5" in done.stdout


def test_in_place_keeps_what_was_there_and_adds_to_the_sidecar(tested, tmp_path):
    source, _ = tested
    path = tmp_path / "run.json"
    shutil.copy(source, path)
    shutil.copy(source.with_suffix(".meta.json"), path.with_suffix(".meta.json"))
    before, meta = read(path), read_sidecar(path)
    done = run("--generations", path, "--add", "words", "copied", f"gold={RM}", "--dtype", "float32", "--in_place")
    assert done.returncode == 0, done.stderr
    after, now = read(path), read_sidecar(path)
    for old, new in zip(before, after, strict=True):
        assert old.items() <= new.items()
        assert list(new)[-3:] == ["words", "copied", "gold"]
    assert now["generations"] == hash_file(path) != meta["generations"]
    assert now["settings"].items() >= {k: v for k, v in meta["settings"].items() if k != "holistic_max_tokens"}.items()
    assert now["models"].keys() == {*meta["models"], "gold"}
    (added,) = now["scored_again"]
    assert added["columns"] == ["words", "copied", "gold"]
    assert added["from"]["files"]["run.json"] == meta["generations"]

    again = run("--generations", path, "--add", "words", "--in_place")
    assert (again.returncode, "--replace" in again.stderr) == (2, True)
    assert read(path) == after
    assert run("--generations", path, "--add", "words", "--in_place", "--replace").returncode == 0
    assert read(path) == after
    assert len(read_sidecar(path)["scored_again"]) == 2


def test_a_task_file_by_hand(tmp_path):
    path = write(tmp_path / "a.json", ["STORM comes now", "", "a cat"], kept={"deep": [1]})
    examples = tmp_path / "rows.json"
    examples.write_text(json.dumps([{"text": f"storm {i}", "headline": "storm"} for i in range(3)]))
    done = run(
        "--generations", path, "--add", "brevity", "shouted_words", "holistic_reward", "--task", HEADLINES,
        "--examples", examples, "--output", tmp_path / "b.json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "ultra_mean 0.5" in done.stdout
    found = read(tmp_path / "b.json")
    assert [row["brevity"] for row in found] == [-3 / 20, 0, -2 / 20]
    assert [row["shouted_words"] for row in found] == [1, 0, 0]
    # the letters of "storm": all five, none, t alone; less 0.5, by 0.2
    expected = [(5 / 5 - 0.5) / 0.2, (0 - 0.5) / 0.2, (1 / 5 - 0.5) / 0.2]
    assert [row["holistic_reward"] for row in found] == pytest.approx(expected)
    assert found[0]["kept"] == {"deep": [1]}
    assert read_sidecar(tmp_path / "b.json")["scored_again"][0]["examples"]["files"]["rows.json"] == hash_file(examples)


def test_a_judge_against_other_answers(tmp_path):
    one = write(tmp_path / "one.json", ["quality=3", "quality=1", "same", "vague quality=2", "quality=5"])
    other = write(tmp_path / "two.json", ["quality=2", "quality=4", "same", "quality=1", "quality=5 x"])
    with stub.JudgeStub() as server:
        done = run(
            "--generations", one, "--add", "judge", "--against", other, "--base_url", server.url, "--output",
            tmp_path / "out.json",
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    # won, lost, equal texts, no verdict, flipped with the place
    assert [row["judge"] for row in read(tmp_path / "out.json")] == [1, 0, 0.5, None, 0.5]
    about = read_sidecar(tmp_path / "out.json")["scored_again"][0]["judge"]
    assert about["calls"] == 8
    assert about["against"]["files"]["two.json"] == hash_file(other)

    with stub.JudgeStub(respond=lambda prompt, attempt: stub.completion("Output (c)")) as server:
        done = run(
            "--generations", one, "--add", "judge", "--against", other, "--base_url", server.url, "--output",
            tmp_path / "none.json",
        )  # fmt: skip
    assert done.returncode == 0  # one pair of equal texts is a tie


def test_samples_keep_their_form(tmp_path):
    path = tmp_path / "s.json"
    rows = [{"index": 0, "sample": i, "query": "q", "generation": f"word {i}", "raw_holistic": 1.0} for i in range(2)]
    path.write_text(json.dumps(rows))
    assert run("--generations", path, "--add", "words", "--in_place").returncode == 0
    assert len(path.read_text().splitlines()) == 4  # a row a line
    assert [row["words"] for row in read(path)] == [2, 2]


def test_not_finite_becomes_null(tmp_path):
    task = tmp_path / "task.py"
    task.write_text(
        "from alarm import Aspect, Task\n"
        "def some(prompts, answers, rows): return [None if 'x' in a else 1.0 for a in answers]\n"
        "def bad(prompts, answers, rows): return [float('nan') if 'x' in a else 1.0 for a in answers]\n"
        "TASK = Task('t', prompt=str, aspects=[Aspect('some', some)], holistic=bad)\n"
    )
    path = write(tmp_path / "a.json", ["x", "y"])
    done = run(
        "--generations", path, "--add", "some", "holistic_reward", "--task", task, "--output", tmp_path / "b.json"
    )
    assert done.returncode == 0, done.stderr
    assert [(row["some"], row["holistic_reward"]) for row in read(tmp_path / "b.json")] == [(None, None), (1, 1)]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--add", "nonsense", "--output", "OUT.json"], "nonsense"),
        (["--add", "brevity", "--output", "OUT.json"], "--task"),
        (["--add", "factuality", "--task", "qa", "--output", "OUT.json"], "fact_rm"),
        (
            ["--add", "error_rate", "--task", "mt", "--grammar_backend", "rules", "--output", "OUT.json"],
            "--policy_ckpt",
        ),
        (["--add", "holistic_reward", "--output", "OUT.json"], "--holistic_model"),
        (["--add", "judge", "--output", "OUT.json", "--base_url", "http://127.0.0.1:9/v1"], "--against"),
        (["--add", "judge", "--output", "OUT.json"], "OPENAI_API_KEY"),
        (["--add", "words", "--against", "x.json", "--output", "OUT.json"], "--against"),
        (["--add", "words", "--base_url", "http://127.0.0.1:9/v1", "--output", "OUT.json"], "--add judge"),
        (["--add", "words", "--output", "OUT.meta.json"], ".meta.json"),
        (["--add", "words", "--output", "a.json"], "--in_place"),
        (["--add", "words", "--output", "there.json"], "--overwrite"),
        (["--add", "words", "--in_place", "--overwrite"], "--output"),
        (["--add", "brevity", "--task", HEADLINES, "--examples", "rows.json", "--output", "OUT.json"], "no row"),
        (["--add", f"words={RM}", "--output", "OUT.json"], "name of its own"),
    ],
)
def test_bad_input(tmp_path, arguments, words):
    write(tmp_path / "a.json", ["one", "two"])
    write(tmp_path / "there.json", ["mine"])
    (tmp_path / "rows.json").write_text(json.dumps([{"text": "other", "headline": "x"}]))
    named = [tmp_path / word if isinstance(word, str) and word.endswith(".json") else word for word in arguments]
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    done = run("--generations", tmp_path / "a.json", *named)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert done.stderr.startswith("error: ") and words in done.stderr
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "no rows"),
        ("[]", "no rows"),
        ('[{"query": "q"}]', "generation"),
        ('[{"generation": "q"}]', "query"),
        ('[{"query": "q", "generation": null}]', "generation"),
        ('[{"query": "q", "generation": "\\ud800"}]', "generation"),
        ('[{"query": "q", "generation": "a", "words": 3}]', "--replace"),
    ],
)
def test_bad_generations(tmp_path, content, words):
    path = tmp_path / "a.json"
    path.write_text(content)
    done = run("--generations", path, "--add", "words", "--in_place")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert words in done.stderr
    assert path.read_text() == content
    assert not path.with_suffix(".meta.json").exists()
