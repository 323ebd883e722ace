"""The real script as a user runs it: files, paths, screen, and one clear line for each bad input."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from helpers import load_script

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "eval" / "eval_compare.py"
GOLDEN = ROOT / "tests" / "fixtures" / "eval"
stub = load_script("tests/evaluation/judge_stub.py")
OUTPUTS = ["eval-report", "eval-results.json"]


def run_script(*arguments: str | Path, cwd: Path = ROOT, encoding: str = "utf-8") -> subprocess.CompletedProcess:
    environment = {key: value for key, value in os.environ.items() if key not in ("FORCE_COLOR", "RANK")}
    environment["PYTHONIOENCODING"] = encoding
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, encoding="utf-8", timeout=60, check=False
    )


@pytest.fixture
def gens(tmp_path) -> Path:
    shutil.copytree(GOLDEN / "qa" / "gens", tmp_path / "gens")
    return tmp_path / "gens"


def test_results_and_screen(gens):
    done = run_script("--generations_dir", gens, "--task_type", "qa")
    assert (done.returncode, done.stderr) == (0, "")
    results = json.loads((gens.parent / "gens_results" / "eval-results.json").read_text())
    assert results["beta"]["gamma"]["completeness_reward"]["win_rate"] == pytest.approx(80.76923076923077, abs=1e-9)
    assert "3 runs, all 40 prompts" in done.stdout
    assert "80.8" in done.stdout
    assert "\x1b" not in done.stdout
    assert max(len(line) for line in done.stdout.splitlines()[1:-2]) <= 100
    assert sorted(path.name for path in (gens.parent / "gens_results").iterdir()) == OUTPUTS
    report = gens.parent / "gens_results" / "eval-report"
    assert {path.name for path in report.iterdir()} >= {"index.html", "report.md", "win_rates.png", "distributions.png"}

    # its own output is replaced, and the screen says so
    again = run_script("--generations_dir", gens, "--task_type", "qa", "--max_compare", "15")
    assert again.returncode == 0
    assert "15 of 40 prompts, drawn with seed 42" in again.stdout
    assert "replacing the earlier ones" in again.stdout
    sampled = json.loads((GOLDEN / "qa" / "gens_sample-results.json").read_text())
    results = json.loads((gens.parent / "gens_results" / "eval-results.json").read_text())
    assert results["alpha"]["Avg."] == pytest.approx(sampled["alpha"]["Avg."], abs=1e-9)


def test_any_working_directory_odd_names_trailing_slash(gens, tmp_path):
    folder = tmp_path / "my runs.v2"
    folder.mkdir()
    (gens / "alpha.json").rename(folder / "seed 42.json.lr1e-4.json")
    (gens / "beta.json").rename(folder / "[b]été.json")
    (folder / ".hidden.json").write_text("no generations")
    (folder / "notes.txt").write_text("no generations")
    done = run_script("--generations_dir", "my runs.v2/", "--task_type", "qa", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    results = json.loads((tmp_path / "my runs.v2_results" / "eval-results.json").read_text())
    assert sorted(results) == ["[b]été", "seed 42.json.lr1e-4"]
    assert "[b]été" in done.stdout

    done = run_script("--generations_dir", ".", "--task_type", "qa", cwd=folder, encoding="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert "[b]?t?" in done.stdout
    assert "replacing" in done.stdout
    assert [path.name for path in folder.iterdir() if "result" in path.name] == []


def test_single_file(gens, tmp_path):
    (gens / "alpha.json").unlink()
    (gens / "beta.json").unlink()
    done = run_script("--generations_dir", gens, "--task_type", "qa", "--output", tmp_path / "one" / "r.json")
    assert (done.returncode, done.stderr) == (0, "")
    assert "1 run, all 40 prompts" in done.stdout
    assert "One run only" in done.stdout
    assert json.loads((tmp_path / "one" / "r.json").read_text())["gamma"]["gamma"] == "*"
    assert not (tmp_path / "gens_results").exists()
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == ["r-report", "r.json"]


def test_control_adds_a_column(gens):
    done = run_script("--generations_dir", gens, "--task_type", "qa", "--control", "length", "lexical_density")
    assert (done.returncode, done.stderr) == (0, "")
    results = json.loads((gens.parent / "gens_results" / "eval-results.json").read_text())
    pair = results["alpha"]["beta"]["holistic_reward"]
    assert pair["controlled"]["features"] == ["length", "lexical_density"]
    assert "win_rate" in pair["length_controlled"]
    assert "equal length, lexical_density" in " ".join(done.stdout.split())

    wrong = run_script("--generations_dir", gens, "--task_type", "qa", "--control", "fun")
    assert wrong.returncode == 2
    assert "repetition" in wrong.stderr.splitlines()[-1]
    edit(gens, lambda rows: rows[3].pop("generation") and None)
    lacking = run_script("--generations_dir", gens, "--task_type", "qa", "--control", "words")
    assert (lacking.returncode, lacking.stderr.count("\n")) == (2, 1)
    assert "generation" in lacking.stderr


def test_compares_columns_that_were_added(gens):
    for number, path in enumerate(sorted(gens.glob("*.json"))):
        rows = json.loads(path.read_text())
        path.write_text(json.dumps([row | {"gold": number + 0.1 * (i % 3)} for i, row in enumerate(rows)]))
    done = run_script("--generations_dir", gens, "--task_type", "qa", "--also", "gold", "factuality_rate")
    assert (done.returncode, done.stderr) == (0, "")
    results = json.loads((gens.parent / "gens_results" / "eval-results.json").read_text())
    assert results["gamma"]["beta"]["gold"]["wins"] == 40
    assert results["alpha"]["gold-Mean"] == pytest.approx(0.1 * (0 * 14 + 1 * 13 + 2 * 13) / 40)
    for name in ("nothing", "query", "judge"):
        done = run_script("--generations_dir", gens, "--task_type", "qa", "--also", name)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert name in done.stderr


def test_imports_no_torch(gens):
    arguments = ["--generations_dir", str(gens), "--task_type", "qa"]
    code = (
        "import runpy, sys; sys.argv = ['eval_compare.py', *sys.argv[1:]]; "
        f"runpy.run_path({str(SCRIPT)!r}, run_name='__main__'); "
        "assert not {'torch', 'transformers', 'pandas', 'openai'} & set(sys.modules), 'heavy import'"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_help_names_every_flag():
    done = run_script("--help")
    assert done.returncode == 0
    for flag in ("--generations_dir", "--task_type", "--max_compare", "--seed", "--drop_duplicates", "--output"):
        assert flag in done.stdout
    assert "42" in done.stdout


def edit(gens: Path, change) -> None:
    rows = json.loads((gens / "beta.json").read_text())
    (gens / "beta.json").write_text(json.dumps(change(rows) or rows))


def set_metric(value):
    return lambda gens: edit(gens, lambda rows: rows[3].update(factuality_rate=value))


def clear(gens: Path) -> None:
    for path in gens.iterdir():
        path.unlink()


def inner_folder(gens: Path) -> None:
    (gens / "runs").mkdir()
    for path in gens.glob("*.json"):
        path.rename(gens / "runs" / path.name)


def runs_and_seeds(gens: Path) -> None:
    shutil.copytree(GOLDEN / "qa" / "gens", gens / "seed42")


def foreign_report(gens: Path) -> None:
    (gens.parent / "gens_results" / "eval-report").mkdir(parents=True)
    (gens.parent / "gens_results" / "eval-report" / "mine.txt").write_text("mine")


def blocked_output(gens: Path) -> None:
    (gens.parent / "gens_results").write_text("a file where the folder should go")


def foreign_output(gens: Path) -> None:
    (gens.parent / "gens_results").mkdir()
    (gens.parent / "gens_results" / "eval-results.json").write_text('{"mine": 1}')


def shorter(rows: list[dict]) -> list[dict]:
    rows[5]["query"] = "something else"
    return rows[2:]


BAD = {
    "missing folder": (shutil.rmtree, "does not exist"),
    "a file as folder": (lambda gens: (shutil.rmtree(gens), gens.write_text("[]")), "is not a folder"),
    "empty folder": (clear, "holds no *.json files"),
    "runs one folder down": (inner_folder, "such as"),
    "runs and seed folders": (runs_and_seeds, "holds both runs (alpha.json) and seed folders (seed42)"),
    "someone else's report": (foreign_report, "eval-report"),
    "an object": (lambda gens: (gens / "beta.json").write_text('{"query": "q"}'), "beta.json has no 'holistic_reward'"),
    "an indented object": (
        lambda gens: (gens / "beta.json").write_text('{\n"a": 1}'),
        "beta.json, row 1 has no 'query'",
    ),
    "malformed": (lambda gens: (gens / "beta.json").write_text('[{"query": '), "beta.json is not JSON"),
    "empty file": (lambda gens: (gens / "beta.json").write_text(""), "beta.json holds no rows"),
    "empty list": (lambda gens: (gens / "beta.json").write_text("[]"), "beta.json holds no rows"),
    "a list of text": (lambda gens: (gens / "beta.json").write_text('["a"]'), "row 1 is str, not an object"),
    "not UTF-8": (lambda gens: (gens / "beta.json").write_bytes(b'["\xff"]'), "cannot be read as UTF-8"),
    "no query": (lambda gens: edit(gens, lambda rows: rows[0].pop("query") and None), "row 1 has no 'query'"),
    "query of another type": (lambda gens: edit(gens, lambda rows: rows[0].update(query=1)), "row 1 has no 'query'"),
    "an integer of 5,000 digits": (
        lambda gens: (gens / "beta.json").write_text('[{"query": "q", "holistic_reward": ' + "9" * 5000 + "}]"),
        "beta.json is not JSON",
    ),
    "deep nesting": (lambda gens: (gens / "beta.json").write_text("[" * 100_000), "beta.json is not JSON"),
    "UTF-16": (lambda gens: (gens / "beta.json").write_bytes("[{}]".encode("utf-16")), "UTF-16"),
    "null generation": (lambda gens: edit(gens, lambda rows: rows[0].update(generation=None)), "row 1: 'generation'"),
    "number as text": (set_metric("1.5"), "'factuality_rate' is \"1.5\", not a finite number"),
    "missing metric": (
        lambda gens: edit(gens, lambda rows: rows[3].pop("factuality_rate") and None),
        "has no 'factuality_rate'",
    ),
    "text metric": (set_metric("high"), "'factuality_rate' is \"high\", not a finite number"),
    "null metric": (set_metric(None), "'factuality_rate' is null, not a finite number"),
    "bool metric": (set_metric(True), "'factuality_rate' is true, not a finite number"),
    "list metric": (set_metric([1]), "'factuality_rate' is [1], not a finite number"),
    "NaN metric": (set_metric(float("nan")), "'factuality_rate' is NaN, not a finite number"),
    "infinite metric": (set_metric(float("-inf")), "'factuality_rate' is -Infinity, not a finite number"),
    "giant metric": (set_metric(10**400), "not a finite number"),
    "duplicate queries": (
        lambda gens: edit(gens, lambda rows: rows + rows[:2] + rows[:1]),
        '3 rows repeat a query (most often "query 000", 3 times)',
    ),
    # 2 rows removed, 1 renamed: 3 only in alpha, 1 only in beta
    "other queries": (lambda gens: edit(gens, shorter), "4 queries differ (3 only in alpha, 1 only in beta)"),
    "a reserved name": (lambda gens: (gens / "beta.json").rename(gens / "Avg..json"), "rename it"),
    "a name of two lines": (lambda gens: (gens / "beta.json").rename(gens / "be\nta.json"), "rename it"),
    "someone else's results": (foreign_output, "was not written by this script"),
    "results folder is a file": (blocked_output, "cannot be written"),
}


def assert_one_error_line(done: subprocess.CompletedProcess, message: str) -> None:
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.endswith("\n")
    assert done.stderr.count("\n") == 1, done.stderr
    assert message in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case, gens):
    spoil, message = BAD[case]
    spoil(gens)
    results = gens.parent / "gens_results"
    before = results.read_text() if results.is_file() else None
    assert_one_error_line(run_script("--generations_dir", gens, "--task_type", "qa"), message)
    if before is not None:
        assert results.read_text() == before
    elif case == "someone else's results":
        assert (results / "eval-results.json").read_text() == '{"mine": 1}'
    elif case == "someone else's report":
        assert [path.name for path in results.rglob("*")] == ["eval-report", "mine.txt"]
    else:
        assert not results.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task_type", "mt"], "--task_type qa"),
        (["--task_type", "qa", "--max_compare", "0"], "--max_compare is 0"),
        (["--task_type", "qa", "--output", "gens/results.json"], "outside --generations_dir"),
    ],
)
def test_bad_flags(arguments, message, gens):
    done = run_script("--generations_dir", "gens", *arguments, cwd=gens.parent)
    assert_one_error_line(done, message)
    assert sorted(path.name for path in gens.parent.iterdir()) == ["gens"]


# --- seeds -----------------------------------------------------------------------------------------------------------


def test_seed_folders(tmp_path):
    for seed in ("seed42", "seed43", "seed44"):
        shutil.copytree(GOLDEN / "qa" / "gens", tmp_path / "gens" / seed)
    rows = json.loads((tmp_path / "gens" / "seed43" / "beta.json").read_text())
    for row in rows:
        row["holistic_reward"] += 10
    (tmp_path / "gens" / "seed43" / "beta.json").write_text(json.dumps(rows))
    done = run_script("--generations_dir", tmp_path / "gens", "--task_type", "qa")
    assert (done.returncode, done.stderr) == (0, "")
    results = json.loads((tmp_path / "gens_results" / "eval-results.json").read_text())
    rates = results["beta"]["alpha"]["holistic_reward"]
    plain = 100 * 15 / 26  # the golden one
    assert rates["win_rate_seeds"] == pytest.approx([plain, 100, plain])
    assert rates["win_rate"] == pytest.approx((2 * plain + 100) / 3)
    assert results["beta"]["holistic_reward-Std"] == pytest.approx(10 / 3**0.5)
    assert "3 seeds" in done.stdout
    assert "±" in done.stdout


# --- the judge -------------------------------------------------------------------------------------------------------


def with_quality(gens: Path) -> None:
    """Texts that the stub can judge: gamma is always better, alpha and beta are the same for half of the prompts."""
    for number, path in enumerate(sorted(gens.glob("*.json"))):
        rows = json.loads(path.read_text())
        for row in rows:
            same = int(row["query"].split()[1]) % 2
            row["generation"] = f"quality={(0 if same else number) + 7 * (number == 2):02d}"
        path.write_text(json.dumps(rows))


def test_equal_answers_tie_and_conflicts_are_named(tmp_path):
    """The last bits of a score decide nothing; a score from another model is named, and not used either."""
    scores = {"factuality_rate": 0.5, "verbosity_rate": 0.5, "completeness_reward": -0.25, "holistic_reward": 1.0}
    scores["response_length"] = 7
    rows = [{"query": f"q{i}", "generation": f"answer {i}", **scores} for i in range(20)]
    other = [
        row | {"holistic_reward": 1.0 + 1e-7 * i, "completeness_reward": -0.25 - 1e-8} for i, row in enumerate(rows)
    ]
    other[3] |= {"generation": "another answer", "holistic_reward": 0.0}
    folder = tmp_path / "gens"
    folder.mkdir()
    for last, warned in ((other[-1], ""), (other[-1] | {"holistic_reward": 5.5}, "1 of 19")):
        for name, content in (("a", rows), ("b", [*other[:-1], last])):
            (folder / f"{name}.json").write_text(json.dumps(content))
        done = run_script("--generations_dir", folder, "--task_type", "qa")
        assert done.returncode == 0, done.stderr
        assert warned in done.stderr
        assert bool(warned) == ("holistic_reward" in done.stderr)
        assert done.stderr.count("\n") == bool(warned)
        pair = json.loads((tmp_path / "gens_results" / "eval-results.json").read_text())["a"]["b"]
        outcomes = {name: [rates[count] for count in ("wins", "ties", "losses")] for name, rates in pair.items()}
        assert outcomes.pop("holistic_reward") == [1, 19, 0]
        assert outcomes.pop("completeness_reward") == [1, 19, 0]  # of the one prompt with two answers
        assert all(one == [0, 20, 0] for one in outcomes.values())


def test_judge(gens, monkeypatch):
    with_quality(gens)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-a-secret-of-the-user")
    with stub.JudgeStub() as server:
        arguments = ["--generations_dir", gens, "--task_type", "qa", "--use_gpt", "--base_url", server.url]
        done = run_script(*arguments)
        assert done.returncode == 0, done.stderr
        assert "120 comparisons (20 of identical texts)" in done.stderr
        assert "Traceback" not in done.stderr
        results = json.loads((gens.parent / "gens_results" / "eval-results.json").read_text())
        rates = results["gamma"]["alpha"]["judge"]
        assert (rates["wins"], rates["ties"], rates["losses"], rates["failures"]) == (40, 0, 0, 0)
        assert rates["win_rate"] == 100
        rates = results["beta"]["alpha"]["judge"]
        assert (rates["wins"], rates["ties"], rates["losses"], rates["identical"]) == (20, 20, 0, 20)
        assert results["alpha"]["Avg."]["judge"] == 0
        assert "judge" in done.stdout
        assert max(len(line) for line in done.stdout.splitlines()[1:-2]) <= 100
        # texts that occur in several pairs and orders are paid for once
        sent = [entry["prompt"] for entry in server.log]
        assert len(sent) == len(set(sent))

        # all of it is on disk: nothing is sent again, the numbers stay
        again = run_script(*arguments, "--max_calls", "1")
        assert again.returncode == 0, again.stderr
        assert len(server.log) == len(sent)
        assert "gave no verdict" not in again.stdout
        assert json.loads((gens.parent / "gens_results" / "eval-results.json").read_text()) == results

    written = [path for path in gens.parent.rglob("*") if path.is_file()]
    assert len(written) > 6
    assert not any(b"sk-a-secret" in path.read_bytes() for path in written)
    assert "sk-a-secret" not in done.stdout + done.stderr
    assert sorted(path.name for path in (gens.parent / "gens_results").iterdir()) == [*OUTPUTS, "judge-cache.jsonl"]


def test_judge_that_cannot_decide(gens, monkeypatch):
    with_quality(gens)
    edit(gens, lambda rows: [row | {"generation": f"vague {row['generation']}"} for row in rows])
    with stub.JudgeStub() as server:
        done = run_script("--generations_dir", gens, "--task_type", "qa", "--use_gpt", "--base_url", server.url)
    assert done.returncode == 0, done.stderr
    assert "The judge gave no verdict on 80 of 120 comparisons" in " ".join(done.stdout.split())
    results = json.loads((gens.parent / "gens_results" / "eval-results.json").read_text())
    assert results["beta"]["Avg."]["judge"] is None
    assert results["gamma"]["Avg."]["judge"] == 100


def test_judge_errors_come_before_any_call(gens, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    base = ["--generations_dir", gens, "--task_type", "qa"]
    assert_one_error_line(run_script(*base, "--use_gpt"), "set OPENAI_API_KEY")
    assert_one_error_line(run_script(*base, "--judge_model", "m"), "--judge_model goes with --use_gpt")
    (gens / "alpha.json").unlink()
    local = ["--use_gpt", "--base_url", "http://127.0.0.1:9/v1"]
    edit(gens, lambda rows: rows[4].pop("generation") and None)
    assert_one_error_line(run_script(*base, *local), "row 5 has no 'generation' text")
    (gens / "beta.json").unlink()
    assert_one_error_line(run_script(*base, *local), "holds one run, and a judge compares two")
    assert not (gens.parent / "gens_results").exists()


def test_judge_that_cannot_be_reached(gens):
    with_quality(gens)
    done = run_script(
        "--generations_dir", gens, "--task_type", "qa", "--use_gpt", "--base_url", "http://127.0.0.1:9/v1"
    )
    assert done.returncode == 2
    assert "error: the judge at http://127.0.0.1:9/v1 cannot be reached" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
