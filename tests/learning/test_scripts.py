"""The training scripts end to end on eight rows: what they write is what train_ppo.py loads."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from alarm.tasks.qa.spec import TASK
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
    from transformers import AutoModelForSeq2SeqLM

    load_script("long-form-QA/train_sft.py").main(flags_of(world, "t5", "sft", feedback=False))
    folder = world / "sft"
    before = AutoModelForSeq2SeqLM.from_pretrained(world / "base" / "t5")
    after = AutoModelForSeq2SeqLM.from_pretrained(folder)
    assert AutoTokenizer.from_pretrained(folder).eos_token_id == 1
    assert not before.shared.weight.equal(after.shared.weight)
    epochs = json.loads((folder / "metrics.json").read_text())["epochs"]
    assert epochs[-1]["step"] == 2 and epochs[-1]["eval_loss"] > 0 and epochs[-1]["kept"]
    assert "eval loss" in capsys.readouterr().out
    assert not list(world.glob(".*")) and not (folder / "training_args.bin").exists()


@pytest.mark.parametrize(
    ("aspect", "name", "more"),
    [
        ("relevance", "rel_rm", ["--max_steps", "6"]),
        ("factuality", "fact_rm", ["--class_weights", "balanced"]),
        ("completeness", "comp_rm", []),
    ],
)
def test_train_rm_writes_what_scoring_loads(aspect, name, more, world, fresh_accelerate, capsys):
    from alarm.models.classifiers import TextScorer, UnitClassifier

    flags = flags_of(world, "longformer", f"rm/{name}")
    load_script("long-form-QA/train_rm.py").main([*flags, "--aspect", aspect, "--splitter", "sentencizer", *more])
    TASK.aspect(aspect).check(argparse.Namespace(reward_model_dir=world / "rm", splitter="sentencizer"))
    config = json.loads((world / "rm" / name / "config.json").read_text())
    metrics = json.loads((world / "rm" / name / "metrics.json").read_text())
    dev, said = metrics["dev"], capsys.readouterr().out
    if aspect == "completeness":
        scorer = TextScorer(world / "rm" / name, aspect, "cpu", torch.float32, 2)
        assert len(scorer(["a question answer: yes", "another answer: no"])) == 2
        assert 0 <= dev["pairwise_accuracy"] <= 1 and dev["pairs"] > 0
    else:
        assert config["id2label"] == {"0": "F-ERR", "1": "NF-ERR", "2": "O"}
        judge = UnitClassifier(world / "rm" / name, aspect, "cpu", torch.float32, 2)
        assert judge(["question: why answer:"], [["one two", "three"]])[0].shape == (2, 3)
        low, high = dev["intervals"]["auroc"]
        assert dev["units"] > 0 and low <= dev["auroc"] <= high
    # the verdict is the last line about the model, and the file says the same
    assert metrics["verdict"].startswith(f"{aspect}: ") and f"\n{metrics['verdict']}\n" in said
    # only where there are epochs to choose from are questions set aside
    chosen = "1 of the 8 training questions" in said
    assert chosen == (aspect == "relevance") and len(metrics["epochs"]) == (3 if chosen else 1)


@pytest.mark.parametrize(
    ("aspect", "base", "change", "message"),
    [
        ("relevance", "t5", {}, "separator token"),
        ("relevance", "llama", {}, "separator token"),
        ("completeness", "unpadded", {}, "padding token"),
        ("relevance", "longformer", {"--max_length": "9"}, "--max_length"),
        ("completeness", "longformer", {"--max_length": "9"}, "--max_length"),
        ("relevance", "longformer", {"--train_feedback_file": "clean.json"}, "relevance error"),
        ("factuality", "longformer", {"--dev_feedback_file": "irrelevant.json"}, "dev file"),
    ],
)
def test_what_leaves_nothing_to_learn_is_one_line_before_any_model(
    aspect, base, change, message, world, fresh_accelerate, capsys, monkeypatch
):
    rows = {split: json.loads((world / f"{split}_feedback.json").read_text()) for split in ("train", "dev")}
    for row in rows["train"]:
        row["feedback"]["errors"] = []
    (world / "clean.json").write_text(json.dumps(rows["train"]))
    for row in rows["dev"]:
        whole = {"error type": "Irrelevant", "start": 0, "end": len(row["prediction 1"])}
        row["feedback"]["errors"] = [whole]
    (world / "irrelevant.json").write_text(json.dumps(rows["dev"]))
    if base == "unpadded":
        folder = shutil.copytree(world / "base" / "llama", world / "base" / base)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.pad_token = None
        tokenizer.save_pretrained(folder)
    words = flags_of(world, base, "unwritten")
    for flag, value in change.items():
        words += [flag, str(world / value) if value.endswith(".json") else value]
    monkeypatch.setattr("transformers.AutoModelForTokenClassification.from_pretrained", None)
    monkeypatch.setattr("transformers.AutoModelForSequenceClassification.from_pretrained", None)
    with pytest.raises(SystemExit) as stop:
        load_script("long-form-QA/train_rm.py").main([*words, "--aspect", aspect, "--splitter", "sentencizer"])
    lines = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == 2 and len(lines) == 1 and message in lines[0]
    assert not (world / "unwritten").exists()


def test_train_holistic_writes_the_ultrarm_layout(world, fresh_accelerate):
    from alarm import train_holistic
    from alarm.models.holistic import HolisticModel

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


# --- the weights to start from ---------------------------------------------------------------------------------------


def rm_words(aspect: str) -> list[str]:
    return ["--aspect", aspect, "--splitter", "sentencizer"]


def run_of(script: str, world, base: str, save_dir: str):
    """main() of a script and the words that start it from `base`."""
    if script == "train_holistic":
        from alarm import train_holistic

        return train_holistic.main, flags_of(world, base, save_dir)
    if script == "MT/train_sft.py":
        rows = [{"translation": {"es": f"uno {i}", "en": f"one {i}"}} for i in range(8)]
        words = flags_of(world, base, save_dir, feedback=False)
        for split, part in (("train", rows[:5]), ("dev", rows[5:])):
            (world / f"mt-{split}.jsonl").write_text("\n".join(map(json.dumps, part)))
            words[words.index(f"--{split}_file") + 1] = str(world / f"mt-{split}.jsonl")
        return load_script(script).main, words
    if script == "long-form-QA/train_sft.py":
        return load_script(script).main, flags_of(world, base, save_dir, feedback=False)
    script, aspect = script.split()
    return load_script(script).main, [*flags_of(world, base, save_dir), *rm_words(aspect)]


STARTS = [
    ("long-form-QA/train_sft.py", "t5"),
    ("MT/train_sft.py", "t5"),
    ("long-form-QA/train_rm.py relevance", "longformer"),
    ("long-form-QA/train_rm.py factuality", "longformer"),
    ("long-form-QA/train_rm.py completeness", "longformer"),
    ("train_holistic", "llama"),
    ("train_holistic", "longformer"),
]


def broken(world, base: str, damage: str) -> str:
    """A copy of a base model whose weights do not fit; -> its name."""
    name = f"{base}-{damage.strip('.')}"
    if not (world / "base" / name).exists():
        shutil.copytree(world / "base" / base, world / "base" / name)
        path = world / "base" / name / "model.safetensors"
        weights = load_file(path)
        if damage == "lost":
            weights = {key: tensor for key, tensor in weights.items() if ".0." not in key}
        else:
            weights = {damage + key: tensor for key, tensor in weights.items()}
        save_file(weights, path, metadata={"format": "pt"})
    return name


@pytest.mark.parametrize("damage", ["module.", "_orig_mod.", "lost"])
@pytest.mark.parametrize(("script", "base"), STARTS)
def test_no_script_starts_from_random_weights(script, base, damage, world, fresh_accelerate, capsys):
    main, words = run_of(script, world, broken(world, base, damage), "unwritten")
    with pytest.raises(SystemExit) as stop:
        main(words)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert stop.value.code == 2 and len(lines) == 1
    assert (f"strip the prefix '{damage}'" if damage != "lost" else ".0.") in lines[0]
    assert not (world / "unwritten").exists() and not list(world.glob(".unwritten*"))


@pytest.mark.parametrize(
    ("script", "base", "head"),
    [
        ("long-form-QA/train_rm.py relevance", "longformer", "classifier.weight"),
        ("long-form-QA/train_rm.py completeness", "longformer", "classifier.dense.weight"),
        ("train_holistic", "llama", "regression_head.weight"),
        ("long-form-QA/train_sft.py", "t5", None),
    ],
)
def test_a_new_head_is_reported_in_one_line(script, base, head, world, fresh_accelerate, capsys):
    main, words = run_of(script, world, base, f"headed-{base}-{len(script)}")
    main(words)
    lines = [line for line in capsys.readouterr().out.splitlines() if "start at random" in line]
    assert len(lines) == (0 if head is None else 1) and all(head in line for line in lines)


def test_an_encoder_alone_is_no_start_for_sft(world, fresh_accelerate, capsys):
    from transformers import T5EncoderModel

    folder = shutil.copytree(world / "base" / "t5", world / "base" / "encoder")
    T5EncoderModel.from_pretrained(folder).save_pretrained(folder)
    main, words = run_of("long-form-QA/train_sft.py", world, "encoder", "unwritten")
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2 and "decoder.block.0" in capsys.readouterr().err
    assert not (world / "unwritten").exists()


def write_pairs(path, prompts) -> str:
    rows = [{"prompt": f"p{i}", "chosen": f"good {i}", "rejected": "bad"} for i in prompts]
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


@pytest.mark.parametrize(("base", "architecture"), [("llama", "LlamaRewardModel"), ("longformer", "Longformer")])
def test_train_holistic_takes_pairs(base, architecture, world, fresh_accelerate, capsys):
    """A Llama takes the UltraRM layout, another model the head of a classifier; both load as --holistic_model."""
    from alarm import train_holistic
    from alarm.models.holistic import HolisticModel

    save_dir = world / f"pairs-{base}"
    flags = ["--model_path", str(world / "base" / base), "--save_dir", str(save_dir), "--max_steps", "2"]
    train, dev = write_pairs(world / "train.jsonl", range(8)), write_pairs(world / "dev.jsonl", range(6, 30))
    train_holistic.main([*flags, "--train_file", train, "--dev_file", dev])
    metrics = json.loads((save_dir / "metrics.json").read_text())
    assert (metrics["dev"]["pairs"], metrics["dev"]["questions"]) == (24, 24)
    said = capsys.readouterr().out
    assert "asks 2 of the training questions" in said and "6 and 24 pairs" in said
    assert json.loads((save_dir / "config.json").read_text())["architectures"][0].startswith(architecture)
    assert (save_dir / "calibration.png").stat().st_size > 1000 and metrics["calibration"]["bins"][0]["pairs"] == 24

    scores = HolisticModel.load(save_dir).score(["p7", "p7"], ["good 7", "bad"], max_length=64, batch_size=2)
    assert scores.isfinite().all()


def with_nan(world, name: str, weight: str, row: int | None = None) -> str:
    """A copy of the Llama in which one weight, or a row of it, is no number. -> its folder"""
    folder = shutil.copytree(world / "base" / "llama", world / "base" / name)
    weights = load_file(folder / "model.safetensors")
    [key] = [key for key in weights if key.endswith(weight)]
    weights[key][slice(None) if row is None else row] = torch.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


def test_a_loss_that_is_not_finite_ends_the_run_and_leaves_nothing(world, fresh_accelerate, capsys):
    from alarm import train_holistic

    words = flags_of(world, "llama", "exploded")
    words[words.index("--model_path") + 1] = with_nan(world, "no-numbers", "layers.0.input_layernorm.weight")
    with pytest.raises(SystemExit) as stop:
        train_holistic.main(words)
    err = capsys.readouterr().err
    assert stop.value.code == 2 and "after step 2" in err and "--lr" in err
    assert not list(world.glob("*exploded*")) and not list(world.glob(".*exploded*"))


def test_one_dev_pair_without_a_finite_loss_ends_the_run(world, fresh_accelerate, capsys):
    """A mean that leaves it out would keep an epoch that fails on it. Here one token has no finite embedding."""
    from alarm import train_holistic

    token = AutoTokenizer.from_pretrained(world / "base" / "llama")("Q").input_ids[-1]
    base = with_nan(world, "broken-token", "embed_tokens.weight", token)
    train, dev = write_pairs(world / "train-4.jsonl", range(4)), write_pairs(world / "dev-5.jsonl", range(10, 15))
    rows = [json.loads(line) for line in Path(dev).read_text().splitlines()]
    rows[-1]["rejected"] = "Q"
    Path(dev).write_text("\n".join(map(json.dumps, rows)))
    flags = ["--model_path", base, "--save_dir", str(world / "partly"), "--max_steps", "2"]
    with pytest.raises(SystemExit) as stop:
        train_holistic.main([*flags, "--batch_size", "2", "--train_file", train, "--dev_file", dev])
    out = capsys.readouterr()
    assert stop.value.code == 2 and "nan" in out.err and "--lr" in out.err
    assert "'loss': 'nan'" not in out.out  # the training pairs are fine
    assert not (world / "partly").exists()


def test_a_dev_file_of_the_training_questions_is_refused(world, fresh_accelerate, capsys):
    from alarm import train_holistic

    path = write_pairs(world / "same.jsonl", range(3))
    flags = ["--model_path", str(world / "base" / "llama"), "--save_dir", str(world / "leaked")]
    with pytest.raises(SystemExit) as stop:
        train_holistic.main([*flags, "--train_file", path, "--dev_file", path])
    assert stop.value.code == 2 and "same 3 questions" in capsys.readouterr().err


def test_a_model_of_another_kind_is_refused(world, fresh_accelerate, capsys):
    from transformers import VitsConfig

    from alarm import train_holistic

    VitsConfig().save_pretrained(world / "base" / "speech")
    with pytest.raises(SystemExit) as stop:
        train_holistic.main(flags_of(world, "speech", "other"))
    assert stop.value.code == 2 and "vits" in capsys.readouterr().err
    assert not (world / "other").exists()
