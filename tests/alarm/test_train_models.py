"""The training scripts end to end on eight rows: what they write is what train_ppo.py loads."""

from __future__ import annotations

import json

import pytest

from helpers import ROOT, load_script

DATA = ROOT / "quickstart" / "data" / "qa"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Eight rows with prompts cut short, and untrained base models made from them."""
    folder = tmp_path_factory.mktemp("world")
    for split in ("train", "dev"):
        questions = json.loads((DATA / f"{split}.json").read_text())[:8]
        for row in questions:
            row["text"] = row["text"][:160]
        (folder / f"{split}.json").write_text(json.dumps(questions))
        feedback = json.loads((DATA / f"{split}_feedback.json").read_text())[:8]
        (folder / f"{split}_feedback.json").write_text(json.dumps(feedback))
    flags = ["--train_file", str(folder / "train.json"), "--save_dir", str(folder / "base")]
    sizes = ["--vocab_size", "700", "--policy_size", "64", "--reward_model_size", "64"]
    load_script("quickstart/make_base_models.py").main(flags + sizes)
    return folder


def flags_of(world, base: str, save_dir: str, feedback: bool = True) -> list[str]:
    words = ["--model_path", str(world / "base" / base), "--save_dir", str(world / save_dir), "--lr", "1e-3"]
    for split in ("train", "dev"):
        words += [f"--{split}_file", str(world / f"{split}.json")]
        if feedback:
            words += [f"--{split}_feedback_file", str(world / f"{split}_feedback.json")]
    return [*words, "--max_steps", "2", "--batch_size", "4"]


def test_train_sft_writes_a_whole_t5_folder(world, fresh_accelerate, capsys):
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    load_script("long-form-QA/train_sft.py").main(flags_of(world, "t5", "sft", feedback=False))
    folder = world / "sft"
    before = AutoModelForSeq2SeqLM.from_pretrained(world / "base" / "t5")
    after = AutoModelForSeq2SeqLM.from_pretrained(folder)
    assert AutoTokenizer.from_pretrained(folder).eos_token_id == 1
    assert not before.shared.weight.equal(after.shared.weight)
    epochs = json.loads((folder / "metrics.json").read_text())["epochs"]
    assert epochs[-1]["step"] == 2 and epochs[-1]["dev_loss"] > 0
    assert "dev loss" in capsys.readouterr().out
    assert not list(world.glob(".*")) and not (folder / "training_args.bin").exists()


@pytest.mark.parametrize(
    ("aspect", "name"), [("relevance", "rel_rm"), ("factuality", "fact_rm"), ("completeness", "comp_rm")]
)
def test_train_rm_writes_what_scoring_loads(aspect, name, world, fresh_accelerate):
    from alarm.tasks.long_form_qa import TextScorer, UnitClassifier, check_reward_models

    flags = flags_of(world, "longformer", f"rm/{name}")
    load_script("long-form-QA/train_rm.py").main([*flags, "--aspect", aspect, "--splitter", "sentencizer"])
    check_reward_models(world / "rm", [aspect])
    config = json.loads((world / "rm" / name / "config.json").read_text())
    dev = json.loads((world / "rm" / name / "metrics.json").read_text())["dev"]
    if aspect == "completeness":
        scorer = TextScorer(aspect, world / "rm", "cpu", "float32", 2)
        assert len(scorer(["a question answer: yes", "another answer: no"])) == 2
        assert 0 <= dev["pairwise_accuracy"] <= 1 and dev["pairs"] > 0
    else:
        assert config["id2label"] == {"0": "F-ERR", "1": "NF-ERR", "2": "O"}
        judge = UnitClassifier(aspect, world / "rm", "cpu", "float32", 2)
        assert judge(["question: why answer:"], [["one two", "three"]])[0].shape == (2, 3)
        assert dev["units"] > 0 and 0 <= dev["accuracy"] <= 1


def test_train_holistic_writes_the_ultrarm_layout(world, fresh_accelerate):
    from safetensors.torch import load_file

    from alarm import train_holistic
    from alarm.holistic import HolisticModel

    train_holistic.main(flags_of(world, "llama", "holistic"))
    folder = world / "holistic"
    weights = load_file(folder / "model.safetensors")
    assert weights["regression_head.weight"].shape == (1, 64)
    assert {name.split(".")[0] for name in weights} == {"model", "regression_head"}
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["LlamaRewardModel"]
    metrics = json.loads((folder / "metrics.json").read_text())

    # the scores of the dev answers, read back through the model that train_ppo.py uses
    rows = json.loads((world / "dev_feedback.json").read_text())
    texts = {row["question"]: row["text"] for row in json.loads((world / "dev.json").read_text())}
    prompts = [texts[row["question"]] for row in rows for _ in range(4)]
    answers = [row[f"prediction {k}"] for row in rows for k in (1, 2, 3, 4)]
    scores = HolisticModel.load(folder).score(prompts, answers, max_length=1230, batch_size=4)
    assert scores.mean().item() == pytest.approx(metrics["score_mean"], abs=1e-5)
    assert scores.std().item() == pytest.approx(metrics["score_std"], abs=1e-5)


def test_train_holistic_takes_pairs(world, fresh_accelerate):
    from alarm import train_holistic

    path = world / "pairs.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": "p", "chosen": f"good {i}", "rejected": "bad"}) for i in range(8)))
    flags = ["--model_path", str(world / "base" / "llama"), "--save_dir", str(world / "pairs"), "--max_steps", "2"]
    train_holistic.main([*flags, "--train_file", str(path), "--dev_file", str(path)])
    assert json.loads((world / "pairs" / "metrics.json").read_text())["dev"]["pairs"] == 8


def test_a_body_of_another_kind_is_refused(world, fresh_accelerate, capsys):
    from alarm import train_holistic

    with pytest.raises(SystemExit) as stop:
        train_holistic.main(flags_of(world, "longformer", "other"))
    assert stop.value.code == 2 and "needs a llama" in capsys.readouterr().err
    assert not (world / "other").exists()
