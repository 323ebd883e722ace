"""train_ppo.py --test --num_samples, and the bench on what it writes, as a user runs them."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass

import pytest

from helpers import ROOT, forget_accelerate

SCRIPT = [sys.executable, "-m", "alarm.train_ppo", "--task", "qa"]
TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "alarm.train_ppo"]
SAMPLE = ["--test", "--test_do_sample", "--num_samples", "3"]


@dataclass(frozen=True)
class Sampled:
    path: str
    rows: list[dict]
    output: str


@pytest.fixture(scope="module")
def sampled(world) -> Sampled:
    path = world.folder / "samples.json"
    command = [*SCRIPT, *world.flags, *SAMPLE, "--save_dir", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return Sampled(str(path), json.loads(path.read_text()), done.stdout)


def test_rows_of_a_prompt_stand_together_and_carry_all_parts(world, sampled):
    rows = sampled.rows
    assert [row["sample"] for row in rows] == [0, 1, 2] * 10
    texts = [row["text"] for row in world.rows("test")]
    assert all(row["query"] == texts[row["index"]] for row in rows)
    assert [row["index"] for row in rows[::3]] == [row["index"] for row in rows[1::3]] and rows[0]["index"] != 0
    assert len({row["generation"] for row in rows}) > 20
    for row in rows:
        # the flags of the world: mean 0, standard deviation 1
        assert row["holistic_reward"] == pytest.approx(row["raw_holistic"])
        assert list(row["aspects"]) == ["relevance", "factuality", "completeness"]
        facts = row["aspects"]["factuality"]
        assert facts["best"] == 0.5 and set(facts["values"]) <= {0.5, -0.5}
        assert facts["total"] == pytest.approx(sum(facts["values"]))
        units = len(facts["values"])
        assert row["factuality_rate"] == pytest.approx((0.5 + facts["total"] / units) if units else 0.5)
        assert row["aspects"]["completeness"]["total"] == pytest.approx(row["completeness_reward"])
        assert "total_reward" not in row
    assert "3 samples of each" in sampled.output
    meta = json.loads((world.folder / "samples.meta.json").read_text())
    assert meta["settings"]["num_samples"] == 3 and meta["settings"]["sampling"]["do_sample"]


def test_the_bench_reads_them(world, sampled, tmp_path):
    """Without --task: the sidecar names it. Quality is an aspect that is held out."""
    out = tmp_path / "bench.json"
    command = [sys.executable, "-m", "alarm.best_of_n", "--generations", sampled.path, "--save_path", str(out)]
    command += ["--quality", "completeness_reward", "--combine", "all"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and "--w_comp 0" in done.stderr
    done = subprocess.run([*command, "--w_comp", "0"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert found["task"] == "qa" and found["n"] == [1, 2, 3] and found["prompts"] == 10
    mean = sum(row["completeness_reward"] for row in sampled.rows) / 30
    assert found["at_random"]["quality"] == pytest.approx([mean] * 3)
    # the best by the holistic score, by hand
    best = [max(sampled.rows[i : i + 3], key=lambda row: row["raw_holistic"]) for i in range(0, 30, 3)]
    wanted = sum(row["completeness_reward"] for row in best) / 10
    assert found["chosen"]["holistic_only"]["quality"][-1] == pytest.approx(wanted)
    assert out.with_suffix(".png").stat().st_size > 10_000


def test_one_sample_is_the_file_as_it_was(world, train_ppo, tmp_path):
    flags = [*world.flags, "--test", "--test_do_sample", "--save_dir"]
    train_ppo([*flags, str(tmp_path / "a.json")])
    forget_accelerate()
    train_ppo([*flags, str(tmp_path / "b.json"), "--num_samples", "1"])
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert set(json.loads((tmp_path / "a.json").read_text())[0]) == {
        *("query", "generation", "holistic_reward", "response_length"),
        *("verbosity_rate", "factuality_rate", "completeness_reward"),
    }


@pytest.mark.parametrize(
    "flags, words", [(["--test"], "--test_do_sample"), (["--test_do_sample"], "--test"), ([], "--samples_per_prompt")]
)
def test_flags_that_do_not_go_together(world, train_ppo, tmp_path, capfd, flags, words):
    with pytest.raises(SystemExit) as stopped:
        train_ppo([*world.flags, *flags, "--num_samples", "4", "--save_dir", str(tmp_path / "out.json")])
    assert stopped.value.code == 2 and words in capfd.readouterr().err


def test_a_comparison_takes_one_answer_a_prompt(sampled, tmp_path):
    folder = tmp_path / "generations"
    folder.mkdir()
    for name in ("a", "b"):
        (folder / f"{name}.json").write_text(json.dumps(sampled.rows))
    command = [sys.executable, "eval/eval_compare.py", "--generations_dir", str(folder), "--task_type", "qa"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and "one answer" in done.stderr and len(done.stderr.splitlines()) == 1


def test_one_level_is_subtracted_from_all_samples(world, train_ppo, tmp_path):
    """Best-of-n subtracts the mean of each prompt by itself."""
    out = tmp_path / "group.json"
    flags = [*world.flags, *SAMPLE, "--holistic_baseline", "group", "--holistic_level", "0.5"]
    train_ppo([*flags, "--save_dir", str(out)])
    for row in json.loads(out.read_text()):
        assert row["holistic_reward"] == pytest.approx(row["raw_holistic"] - 0.5)
        assert "holistic_baseline" not in row


@pytest.mark.slow
def test_two_processes_write_the_same_samples(world, sampled, tmp_path):
    out = tmp_path / "two.json"
    command = [*TWO, "--task", "qa", *world.flags, *SAMPLE, "--save_dir", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    rows = json.loads(out.read_text())
    keys = ("index", "sample", "generation")
    assert [[row[key] for key in keys] for row in rows] == [[row[key] for key in keys] for row in sampled.rows]
    # the last bits of CPU arithmetic differ between a single process and one of several
    raw = [row["raw_holistic"] for row in sampled.rows]
    assert [row["raw_holistic"] for row in rows] == pytest.approx(raw, abs=1e-5)
