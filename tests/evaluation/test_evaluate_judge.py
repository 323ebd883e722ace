"""eval/evaluate_judge.py as a user runs it: real preferences, tiny models, a stub for the LLM judge."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers import CHECKPOINTS, ROOT, load_script

SCRIPT = ROOT / "eval" / "evaluate_judge.py"
QA = ROOT / "quickstart" / "data" / "qa"
FEEDBACK = ("--questions", QA / "test.json", "--feedback", QA / "test_feedback.json")
stub = load_script("tests/evaluation/judge_stub.py")


def run(board: Path, *arguments: str | Path, **more: str) -> subprocess.CompletedProcess:
    environment = {key: value for key, value in os.environ.items() if key not in ("FORCE_COLOR", "RANK")} | more
    environment.pop("OPENAI_API_KEY", None)
    command = [sys.executable, str(SCRIPT), "--leaderboard", str(board), *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=180, check=False)


def rows(board: Path) -> dict[str, dict]:
    return {one["judge"]: one for one in map(json.loads, board.read_text().splitlines())}


def preferences(tmp_path: Path, texts: list[tuple[str, str]], **more) -> Path:
    path = tmp_path / "pairs.json"
    found = [{"prompt": f"question {i}?", "chosen": a, "rejected": b} | more for i, (a, b) in enumerate(texts)]
    path.write_text(json.dumps(found))
    return path


def test_rules_models_metrics_and_ensembles_on_real_preferences(tmp_path):
    board = tmp_path / "board.jsonl"
    task = tmp_path / "task.py"
    task.write_text(
        "from alarm import Aspect, Metric, Task\n"
        "def length(prompts, answers, rows): return [float(len(a)) for a in answers]\n"
        "TASK = Task('t', prompt=lambda row: row['text'], holistic=length, aspects=[\n"
        "    Aspect('brevity', length, metrics=[Metric('letters', lower_wins=True)])])\n"
    )
    done = run(
        board, *FEEDBACK, "--task", task, "--judges", "words", "overlap", "letters", "holistic_reward",
        f"random_rm={CHECKPOINTS / 'tiny-ultrarm'}", "--ensemble", "majority:words,overlap,letters",
        "rank:words,overlap", "--dtype", "float32", "--repeats", "2", "--limit", "12",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = rows(board)
    assert list(found) == [
        "people", "words", "overlap", "letters", "random_rm", "holistic_reward", "majority:words,overlap,letters",
        "rank:words,overlap",
    ]  # fmt: skip
    one = found["words"]
    assert (one["questions"], one["repeats"], one["data"]["name"]) == (12, 2, "test_feedback.json")
    assert one["rates"]["longer"]["value"] == 100
    assert one["rates"]["changed"]["value"] == 0
    assert one["rates"]["over_length"]["value"] == 0
    # the fewer letters win by one of the two, the more by the other
    both = [found[name]["rates"]["people"]["value"] for name in ("letters", "holistic_reward")]
    assert sum(both) == pytest.approx(100)
    low, high = found["overlap"]["rates"]["people"]["interval"]
    assert low < found["overlap"]["rates"]["people"]["value"] < high
    assert found["random_rm"]["about"]["models"]["random_rm"]["files"]["model.safetensors"]
    assert found["people"]["rates"]["people"]["value"] is None  # one annotator
    assert "random_rm" in done.stdout and "12 questions" in done.stdout

    # the same again is refused before anything is judged, and adds nothing
    before = board.read_text()
    again = run(board, *FEEDBACK, "--judges", "overlap", "copied", "--limit", "12")
    assert (again.returncode, again.stderr.count("\n")) == (2, 1)
    assert "--replace" in again.stderr
    assert board.read_text() == before
    assert run(board, *FEEDBACK, "--judges", "copied", "overlap", "--limit", "12", "--replace").returncode == 0
    assert list(rows(board))[-2:] == ["copied", "overlap"]
    assert len(board.read_text().splitlines()) == len(before.splitlines()) + 1
    # other questions are other data
    assert run(board, *FEEDBACK, "--judges", "overlap", "--limit", "11").returncode == 0


def test_the_reward_models_of_a_task_are_judges(tmp_path):
    for name in ("rel_rm", "fact_rm", "comp_rm"):
        (tmp_path / name).symlink_to(CHECKPOINTS / f"tiny-{name}")
    done = run(
        tmp_path / "b.jsonl", *FEEDBACK, "--task", "qa", "--reward_model_dir", tmp_path, "--splitter", "sentencizer",
        "--dtype", "float32", "--judges", "relevance", "factuality_rate", "completeness", "--limit", "4",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = rows(tmp_path / "b.jsonl")
    assert list(found) == ["people", "verbosity_rate", "factuality_rate", "completeness_reward"]
    assert found["completeness_reward"]["rates"]["ties"]["value"] == 0
    assert found["completeness_reward"]["about"]["models"].keys() == {"completeness"}
    assert found["verbosity_rate"]["about"]["settings"]["splitter"] == "sentencizer"


def test_a_biased_llm_judge_is_seen(tmp_path):
    board = tmp_path / "board.jsonl"
    with stub.JudgeStub(respond=stub.biased_verdict) as server:
        done = run(
            board, *FEEDBACK, "--judges", "llm", "words", "--base_url", server.url, "--judge_model", "stub",
            "--repeats", "2", "--limit", "10", "--price_per_million", "2", "10", "--ensemble", "majority:llm,words",
        )  # fmt: skip
        requests = len(server.log)
    assert done.returncode == 0, done.stderr
    found = rows(board)
    assert list(found) == ["people", "words", "llm:stub", "majority:llm,words"]
    judged = found["llm:stub"]
    pairs = judged["pairs"]
    assert requests == 2 * 2 * pairs  # both orders, both repeats
    rates = judged["rates"]
    assert rates["longer"]["value"] == 100
    assert rates["first"]["value"] > 50
    assert rates["first"]["count"] == 4 * pairs
    # a flip goes with the place, so each tie is one answer for the first and one for the second order's first
    ties = rates["ties"]["value"]
    assert rates["first"]["value"] == pytest.approx(50 + ties / 2)
    assert rates["changed"]["value"] == 0
    # the stub counts 100 tokens of prompt and 4 of reply: a comparison is two requests
    assert judged["cost"]["comparisons"] == 2 * pairs
    assert judged["cost"]["dollars_per_1000"] == pytest.approx(1000 * 2 * (100 * 2 + 4 * 10) / 1e6)
    assert judged["cost"]["seconds_per_1000"] > 0
    assert judged["about"]["model"] == "stub"
    assert sorted(path.name for path in tmp_path.glob("judge-cache*")) == [
        "judge-cache-repeat2.jsonl",
        "judge-cache.jsonl",
    ]


def test_repeats_of_a_judge_that_changes_its_mind(tmp_path):
    asked: dict[str, int] = {}

    def respond(prompt: str, attempt: int):
        asked[prompt] = asked.get(prompt, -1) + 1
        longer_first = stub.biased_verdict(prompt)
        return longer_first if asked[prompt] == 0 else stub.completion("Output (a)")  # then only the place counts

    path = preferences(tmp_path, [("long " * 10 + str(i), f"short {i}") for i in range(6)])
    with stub.JudgeStub(respond=respond) as server:
        done = run(
            tmp_path / "b.jsonl", "--preferences", path, "--judges", "llm", "--base_url", server.url, "--repeats", "2"
        )
    assert done.returncode == 0, done.stderr
    (judged,) = (one for name, one in rows(tmp_path / "b.jsonl").items() if name.startswith("llm"))
    # the longer one, then a tie
    assert judged["rates"]["changed"]["value"] == 100
    assert judged["rates"]["people"]["value"] == 75
    assert judged["cost"]["dollars_per_1000"] is None


def test_the_cap_of_calls_holds_for_all_repeats(tmp_path):
    path = preferences(tmp_path, [(f"one {i}", f"two {i}") for i in range(5)])
    with stub.JudgeStub(respond=stub.biased_verdict) as server:
        flags = ("--preferences", path, "--judges", "llm", "--base_url", server.url, "--repeats", "2")
        done = run(tmp_path / "b.jsonl", *flags, "--max_calls", "19")
        assert (done.returncode, server.log) == (2, [])
        assert "20 calls" in done.stderr
        assert run(tmp_path / "b.jsonl", *flags, "--max_calls", "20").returncode == 0
        assert len(server.log) == 20


@pytest.mark.parametrize("reply", ["Output (c)", None])
def test_a_judge_that_never_answers(tmp_path, reply):
    path = preferences(tmp_path, [("one", "two")])
    server = stub.JudgeStub(respond=lambda prompt, attempt: stub.completion(reply, refusal=None if reply else "no"))
    with server:
        done = run(tmp_path / "b.jsonl", "--preferences", path, "--judges", "words", "llm", "--base_url", server.url)
    assert done.returncode == 2
    assert "error: the judge llm" in done.stderr
    assert "no verdict" in done.stderr and "Traceback" not in done.stderr
    assert list(rows(tmp_path / "b.jsonl")) == ["people", "words"]  # what was done is kept


def test_several_annotators(tmp_path):
    found = []
    for i in range(30):
        for annotator in "xyz":
            a, b = ("right " + "w " * (i % 3), "wrong")
            turned = annotator == "z"  # who is against the two others
            found.append({"prompt": str(i), "chosen": b if turned else a, "rejected": a if turned else b}
                         | {"annotator": annotator})  # fmt: skip
    path = tmp_path / "votes.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in found))
    board = tmp_path / "b.jsonl"
    done = run(board, "--preferences", path, "--judges", "words")
    assert done.returncode == 0, done.stderr
    judged = rows(board)
    # x, y: one of the two others agrees, the other does not; z: both are against
    assert judged["people"]["rates"]["people"]["value"] == pytest.approx(100 * (0.5 + 0.5 + 0) / 3)
    # a third are ties of one word each: 2/3 agree, and 1/2 on ties
    assert judged["words"]["rates"]["people"]["value"] == pytest.approx(100 * (2 / 3 * 2 / 3 + 1 / 3 / 2))
    assert judged["words"]["rates"]["majority"]["value"] == pytest.approx(100 * (2 / 3 + 1 / 3 / 2))
    assert (judged["words"]["pairs"], judged["words"]["votes"]) == (30, 90)


GOOD = [("one two", "one"), ("a", "a b")]


@pytest.mark.parametrize(
    ("content", "arguments", "words"),
    [
        ("", [], "no rows"),
        ("[]", [], "no rows"),
        (json.dumps([{"prompt": "q", "chosen": "x"}]), [], "rejected"),
        (json.dumps([{"prompt": "q", "chosen": "x", "rejected": "x"}]), [], "equal"),
        (json.dumps([{"prompt": "q", "chosen": "x", "rejected": "y", "tie": True}]), [], "ties"),
        (None, ["--judges", "nonsense"], "nonsense"),
        (None, ["--judges", "relevance"], "--task"),
        (None, ["--judges", "response_length"], "words"),
        (None, ["--judges", "holistic_reward"], "--holistic_model"),
        (None, ["--judges", "x=nowhere/at/all/"], "no folder"),
        (None, ["--judges", "words=m"], "name of its own"),
        (None, ["--ensemble", "rank:words"], "rank:words"),
        (None, ["--ensemble", "mean:words,overlap"], "mean:words"),
        (None, ["--ensemble", "majority:words,copied"], "copied"),
        (None, ["--judges", "llm", "words", "--ensemble", "rank:llm,words"], "rank"),
        (None, ["--base_url", "http://127.0.0.1:9/v1"], "--judges llm"),
        (None, ["--price_per_million", "1", "2"], "--judges llm"),
        (None, ["--feedback", "x.json"], "--questions"),
        (None, ["--judges", "llm", "--base_url", "http://127.0.0.1:9/v1"], "cannot be reached"),
    ],
)  # fmt: skip
def test_bad_input(tmp_path, content, arguments, words):
    path = preferences(tmp_path, GOOD)
    if content is not None:
        path.write_text(content)
    board = tmp_path / "b.jsonl"
    done = run(board, "--preferences", path, *arguments)
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2, done.stderr
    assert len(lines) == 1 and words in lines[0], done.stderr
    assert "Traceback" not in done.stderr
    assert not board.exists() or list(rows(board)) == ["people"]


def test_help_is_instant_and_names_the_judges():
    code = (
        "import runpy, sys; sys.argv = ['evaluate_judge.py', '--help']\n"
        f"try: runpy.run_path({str(SCRIPT)!r}, run_name='__main__')\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'transformers', 'pandas', 'openai', 'spacy'} & set(sys.modules), 'heavy import'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    for word in ("llm", "overlap", "lexical_density", "--ensemble", "--repeats"):
        assert word in done.stdout
