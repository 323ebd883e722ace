"""The quickstart on small worlds, with untrained models: every stage runs, and the screen says what the files say."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from alarm import train_holistic
from alarm.common.files import read_rows, write_json
from alarm.diagnostics import EMPTY_BOUND
from helpers import ROOT, load_script
from miniature import models
from miniature.results import read_runs, sentences
from quickstart import run
from quickstart.small_stages import CALIBRATED, RUNS, START, ranked, recommended

SIZES = ["--steps", "1", "--train_prompts", "48", "--dev_prompts", "8", "--test_prompts", "22"]


def tiny_world(name: str, folder):
    """A built world of untrained models."""
    folder.mkdir()
    base = folder / "base"
    models.main(["--world", name, "--save_dir", str(base), "--policy_size", "32", "--reward_size", "32"])
    (base / "t5").rename(folder / "start")
    few = ["--max_steps", "1", "--batch_size", "4"]
    files = []
    for split, words in (("train", "cdefghij"), ("dev", "klmn")):
        pairs = [{"prompt": f"a {word} b", "chosen": f"the {word}.", "rejected": "and and"} for word in words]
        write_json(folder / f"{split}.json", pairs)
        files += [f"--{split}_file", str(folder / f"{split}.json")]
    train_holistic.main(["--model_path", str(base / "llama"), *files, "--save_dir", str(folder / "holistic"), *few])
    if name == "qa":
        from miniature.qa import data

        made = folder / "feedback"
        sizes = {"train": 16, "train_feedback": 8, "dev": 8, "dev_feedback": 4, "test": 1}
        data.main(["--save_dir", str(made), *(str(x) for key, size in sizes.items() for x in (f"--{key}", size))])
        given = [
            flag
            for split in ("train", "dev")
            for flag in (
                f"--{split}_file", str(made / f"{split}.json"),
                f"--{split}_feedback_file", str(made / f"{split}_feedback.json"),
            )
        ]  # fmt: skip
        given += ["--splitter", "sentencizer", "--model_path", str(base / "longformer"), "--report_to", "none", *few]
        for aspect, model in (("relevance", "rel_rm"), ("factuality", "fact_rm"), ("completeness", "comp_rm")):
            load_script("long-form-QA/train_rm.py").main(
                ["--aspect", aspect, "--save_dir", str(folder / "rm" / model), *given]
            )
    write_json(folder / "built.json", {"world": name, "seed": 3})
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mt", pytest.param("qa", marks=pytest.mark.whole)])
def test_the_whole_quickstart_on_a_small_world(name, tmp_path, capfd, fresh_accelerate):
    built, work = tiny_world(name, tmp_path / "built"), tmp_path / "work"
    flags = ["--task", name, "--built", str(built), "--work_dir", str(work), *SIZES]
    copy = ROOT / "quickstart" / "work" / "results.json"  # of a run without --work_dir
    before = copy.read_bytes() if copy.exists() else None
    run.main(flags)
    assert (copy.read_bytes() if copy.exists() else None) == before
    shown = capfd.readouterr().out
    found = json.loads((work / "results.json").read_text())
    assert list(found) == [START, *RUNS]
    aspects = {"mt": {"grammar_errors"}, "qa": {"relevance_rate", "factuality_rate"}}[name]
    for run_name, row in found.items():
        rows = read_rows(work / "generations" / f"{run_name}.json")
        assert len(rows) == 22
        assert row["oracle"]["mean"] == pytest.approx(sum(one["oracle"] for one in rows) / 22)
        assert row["oracle"]["low"] <= row["oracle"]["mean"] <= row["oracle"]["high"]
        assert row["length"] == pytest.approx(sum(one["response_length"] for one in rows) / 22)
        assert row.keys() >= {"gain", "holistic", "empty", "collapsed"} | aspects
        assert run_name == START or row["empty"] <= EMPTY_BOUND or row["collapsed"]
    assert found[START]["gain"] == {"mean": 0, "low": 0, "high": 0}
    assert found["recommended"]["combiner"] in shown
    runs = read_runs([str(work / "generations" / f"{run_name}.json") for run_name in found])
    assert all(sentence in shown for sentence in sentences(runs)) and "22 prompts" in shown
    assert "check: every reward is on its token, in all 5 responses" in (work / "logs/inspection.html.txt").read_text()
    for file in ("generations_results/eval-report/index.html", "inspection.html", "plots/training.png"):
        assert (work / file).is_file() and file in shown
    run.main(flags)
    again = capfd.readouterr().out
    assert again.count("done before") == 18 and found == json.loads((work / "results.json").read_text())


def bench(tmp_path, dev: dict[str, float]):
    """A results file of best-of-n in which each combiner has one setting."""
    settings = [
        {"flags": {"reward_type": name, "w_grammar": 0.3, "ultra_std": 0.5}, "dev": [0.1, quality]}
        for name, quality in dev.items()
    ]
    write_json(tmp_path / "bench.json", {"settings": settings, "chosen_settings": {n: i for i, n in enumerate(dev)}})
    return tmp_path / "bench.json"


def test_the_best_combiner_that_is_not_trained_anyway_is_recommended(tmp_path):
    file = bench(tmp_path, {"hierarchical": 0.9, "stratified": 0.6, "worst_case": 0.7, "aspect_only": 0.8})
    assert list(ranked(file)) == ["hierarchical", "aspect_only", "worst_case", "stratified"]
    combiner, flags = recommended(file)
    assert combiner == "worst_case" and flags == {"w_grammar": 0.3}
    assert not flags.keys() & set(CALIBRATED)  # --calibration and these would be two sources of one number


@pytest.mark.parametrize("missing", ["start", "holistic", "rm", "built.json"])
def test_a_built_world_that_lacks_something_is_refused_before_anything_runs(missing, tmp_path, capsys):
    for name in {"start", "holistic", "rm", "built.json"} - {missing}:
        (tmp_path / name).mkdir()
    with pytest.raises(SystemExit) as stop:
        run.main(["--task", "qa", "--built", str(tmp_path), "--work_dir", str(tmp_path / "work")])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and missing in error and "miniature.build" in error


def test_flags_are_read_without_torch():
    code = "import sys; from quickstart import run; run.parse_args([]); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)
