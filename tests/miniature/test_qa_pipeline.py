"""The encyclopedia from nothing to an agreement table, with models of a few steps and the project's own commands."""

from __future__ import annotations

import json

import pytest

from alarm import train_holistic, train_ppo, train_sft
from alarm.common.files import read_rows
from alarm.tasks.qa.feedback import load_feedback
from helpers import ROOT, load_script
from miniature import agreement, models, preferences, sample
from miniature.qa import data, feedback
from miniature.qa.oracle import judge_row

TASK = ["--task", str(ROOT / "miniature" / "qa" / "task.py")]
LENGTHS = ["--max_input_len", "128", "--max_generated_len", "16"]


@pytest.mark.slow
def test_from_nothing_to_ppo(tmp_path, capsys, fresh_accelerate):
    def at(name: str) -> str:
        return str(tmp_path / name)

    sizes = ["--train", "40", "--train_feedback", "20", "--dev", "16", "--dev_feedback", "12", "--test", "8"]
    data.main(["--save_dir", at("data"), *sizes])
    models.main(["--world", "qa", "--save_dir", at("base"), "--policy_size", "32", "--reward_size", "32"])
    files = ["--train_file", at("data/train_noisy.json"), "--dev_file", at("data/dev_noisy.json")]
    start = ["--batch_size", "8", "--max_steps", "2", "--report_to", "none"]
    train_sft.main([*TASK, "--model_path", at("base/t5"), *files, "--save_dir", at("sft"), *start, *LENGTHS])
    for split in ("train", "dev"):
        words = ["--policy_ckpt", at("sft"), "--prompts", at(f"data/{split}.json"), "--save_path", at(f"{split}.jsonl")]
        sample.main([*TASK, *words, *LENGTHS])
    found = sample.load_samples(at("dev.jsonl"))
    assert [row for row, _ in found] == read_rows(at("data/dev.json"))
    assert all(len(answers) == 4 for _, answers in found)

    # feedback on samples is true, and the project's reader takes it
    feedback.main(["--samples", at("train.jsonl"), "--planted", "0.5", "--save_path", at("train_feedback.json")])
    rows = {row["question"]: row for row in read_rows(at("data/train.json"))}
    for row in load_feedback(at("data/train.json"), at("train_feedback.json")):
        units = judge_row(rows[row.question], row.answers[0]).units
        wanted = {kind for one in units for kind in (one.irrelevance, one.falsehood)}
        assert {error["error type"] for error in row.errors} == wanted - {None}

    given = [
        "--train_file", at("data/train.json"), "--dev_file", at("data/dev.json"),
        "--train_feedback_file", at("train_feedback.json"), "--dev_feedback_file", at("data/dev_feedback.json"),
        "--splitter", "sentencizer", "--model_path", at("base/longformer"), *start,
    ]  # fmt: skip
    train_rm = load_script("long-form-QA/train_rm.py")
    for aspect, folder in (("relevance", "rel_rm"), ("factuality", "fact_rm"), ("completeness", "comp_rm")):
        train_rm.main(["--aspect", aspect, "--save_dir", at(f"rm/{folder}"), *given])
    for split in ("train", "dev"):
        # samples of two steps are all worth nothing; pairs of made-up answers are
        lines = [
            {"row": row, "answers": [row["answer"][0], noisy["answer"][0], "", "She."]}
            for row, noisy in zip(
                read_rows(at(f"data/{split}.json")), read_rows(at(f"data/{split}_noisy.json")), strict=True
            )
        ]
        (tmp_path / f"made_{split}.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        words = ["--samples", at(f"made_{split}.jsonl"), "--save_dir", at(f"pairs_{split}")]
        preferences.main([*TASK, *words])
    pairs = ["--train_file", at("pairs_train/0.jsonl"), "--dev_file", at("pairs_dev/0.jsonl")]
    train_holistic.main(["--model_path", at("base/llama"), *pairs, "--save_dir", at("holistic"), *start])

    scoring = ["--reward_model_dir", at("rm"), "--splitter", "sentencizer"]
    models_of = [
        "--policy_ckpt",
        at("sft"),
        "--holistic_model",
        at("holistic"),
        *scoring,
        *LENGTHS,
        "--dtype",
        "float32",
    ]
    several = ["--test", "--test_do_sample", "--num_samples", "2", "--test_file", at("data/dev.json")]
    train_ppo.main([*TASK, *models_of, *several, "--save_dir", at("scored.json")])
    # the start of two steps says nothing true: all its answers are worth the same
    agreement.main([*TASK, "--samples", at("scored.json"), "--holistic", at("holistic"), "--output", at("found.json")])
    found = json.loads((tmp_path / "found.json").read_text())
    assert {"holistic", f"holistic {at('holistic')}", "length"} <= found["rewards"].keys() | set(found["not_finite"])
    assert not any(name.startswith("oracle") for name in found["rewards"])
    capsys.readouterr()

    run = [
        *TASK, *models_of, "--train_file", at("data/train.json"), "--dev_file", at("data/dev.json"),
        "--no_lora", "--batch_size", "8",
        "--mini_batch_size", "4", "--gradient_accumulation_steps", "1", "--samples_per_prompt", "4", "--advantage",
        "rloo", "--holistic_baseline", "group", "--ultra_mean", "0", "--ultra_std", "1", "--holistic_level", "0",
        "--shaping", "centred",
        "--max_steps", "1", "--report_to", "none", "--save_dir", at("run"),
    ]  # fmt: skip
    train_ppo.main(run)
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert any("oracle" in row.get("dev", {}) for row in log)
    # nothing is paid for the truth
    assert json.loads((tmp_path / "run" / "run.json").read_text())["w_oracle"] == 0
