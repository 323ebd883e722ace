"""The losses of supervised training are means over all tokens, units or pairs, whatever the batches and processes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from alarm.learning.fit import token_losses
from helpers import CHECKPOINTS, FIXTURES, ROOT, forget_accelerate, load_script

T5 = FIXTURES / "golden" / "checkpoints" / "tiny-t5"


def test_token_losses_by_hand():
    logits = torch.tensor([[[0.0, 1.0], [2.0, 0.0], [5.0, 5.0]], [[1.0, 1.0], [0.0, 0.0], [3.0, 0.0]]])
    labels = torch.tensor([[0, 0, -100], [1, -100, -100]])
    # -log softmax: log(1 + e), log(1 + e^-2); log 2
    first, second, third = 1.3132617, 0.1269280, 0.6931472
    plain = token_losses(logits, labels)
    assert plain.sums.tolist() == pytest.approx([first + second, third])
    assert plain.weights.tolist() == [2, 1]
    weighted = token_losses(logits, labels, [0.5, 3.0])
    assert weighted.sums.tolist() == pytest.approx([(first + second) / 2, 3 * third])
    assert weighted.weights.tolist() == [1, 3]


def rows_of(prefix: str, lengths: list[int]) -> list[dict]:
    """Questions whose answers have so many words."""
    words = ("light", "water", "because", "of", "the", "river", "short", "waves")
    return [
        {"text": f"question: {prefix} {i}?", "answer": [" ".join(words[(i + k) % 8] for k in range(length))]}
        for i, length in enumerate(lengths)
    ]


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """Train and dev rows with answers from one word to sixty."""
    folder = tmp_path_factory.mktemp("answers")
    (folder / "train.json").write_text(json.dumps(rows_of("why", [1, 40, 2, 25, 3, 60, 5, 4])))
    (folder / "dev.json").write_text(json.dumps(rows_of("how", [1, 2, 60, 3, 1, 30, 2])))
    return folder


def sft_words(answers, out, batch_size: int, lr: str) -> list[str]:
    flags = {"model_path": T5, "train_file": answers / "train.json", "dev_file": answers / "dev.json", "save_dir": out}
    flags |= {"batch_size": batch_size, "lr": lr, "max_steps": 1, "max_generated_len": 400}
    return [str(word) for name, value in flags.items() for word in (f"--{name}", value)]


def token_mean(folder, rows: list[dict]) -> float:
    """Of the targets of all rows, each read alone by the model's own loss."""
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(T5), AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    total = count = 0
    with torch.inference_mode():
        for row in rows:
            labels = tokenizer(row["answer"], return_tensors="pt")["input_ids"]
            loss = model(**tokenizer(row["text"], return_tensors="pt"), labels=labels).loss.item()
            total, count = total + loss * labels.numel(), count + labels.numel()
    return total / count


def without_dropout(folder):
    shutil.copytree(T5, folder)
    config = json.loads((folder / "config.json").read_text()) | {"dropout_rate": 0.0}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def epochs_of(folder) -> list[dict]:
    return json.loads((folder / "metrics.json").read_text())["epochs"]


def test_the_loss_of_sft_is_the_token_mean_whatever_the_batch_size(answers, tmp_path, fresh_accelerate):
    expected = token_mean(T5, json.loads((answers / "dev.json").read_text()))
    for size in (1, 4, 50):
        out = tmp_path / str(size)
        load_script("long-form-QA/train_sft.py").main(sft_words(answers, out, size, "1e-12"))
        forget_accelerate()
        assert epochs_of(out)[0]["eval_loss"] == pytest.approx(expected, abs=1e-5)


def test_the_training_loss_is_the_token_mean_of_the_epoch(answers, tmp_path, fresh_accelerate):
    """Steps of two rows of other lengths: their mean is not the mean of the steps' means. No dropout, next to no lr."""
    base = without_dropout(tmp_path / "t5")
    words = sft_words(answers, tmp_path / "out", 2, "1e-12")
    words[words.index("--max_steps") + 1] = "4"
    load_script("long-form-QA/train_sft.py").main([*words, "--model_path", str(base)])
    expected = token_mean(base, json.loads((answers / "train.json").read_text()))
    assert epochs_of(tmp_path / "out")[0]["train_loss"] == pytest.approx(expected, abs=1e-5)


def test_the_kept_epoch_is_the_one_of_least_token_mean(answers, tmp_path, fresh_accelerate):
    words = sft_words(answers, tmp_path / "out", 2, "3e-2")
    words[words.index("--max_steps") + 1] = "12"
    load_script("long-form-QA/train_sft.py").main(words)
    epochs = epochs_of(tmp_path / "out")
    [kept] = [row["eval_loss"] for row in epochs if row["kept"]]
    assert len(epochs) == 3 and kept == min(row["eval_loss"] for row in epochs)
    found = token_mean(tmp_path / "out", json.loads((answers / "dev.json").read_text()))
    assert kept == pytest.approx(found, abs=1e-5)


@pytest.mark.slow
def test_two_processes_train_and_measure_like_one(answers, tmp_path, fresh_accelerate):
    """Two batches of four rows are one of eight, and seven dev rows are seven, though transformers repeats one."""
    base = without_dropout(tmp_path / "t5")
    one, two = tmp_path / "one", tmp_path / "two"
    load_script("long-form-QA/train_sft.py").main([*sft_words(answers, one, 8, "1e-3"), "--model_path", str(base)])
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    words = [*launch, "long-form-QA/train_sft.py", *sft_words(answers, two, 4, "1e-3"), "--model_path", str(base)]
    done = subprocess.run(
        words, cwd=ROOT, env=os.environ | {"ACCELERATE_USE_CPU": "true"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for name in ("train_loss", "eval_loss"):
        assert epochs_of(two)[0][name] == pytest.approx(epochs_of(one)[0][name], abs=1e-5)
    weights = load_file(two / "model.safetensors")
    for name, tensor in load_file(one / "model.safetensors").items():
        torch.testing.assert_close(weights[name], tensor, atol=2e-5, rtol=0)


# --- reward models ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def feedback(tmp_path_factory):
    """Eight questions a split with their feedback, prompts cut short."""
    folder, data = tmp_path_factory.mktemp("feedback"), ROOT / "quickstart" / "data" / "qa"
    words = []
    for split in ("train", "dev"):
        questions = json.loads((data / f"{split}.json").read_text())[:8]
        for row in questions:
            row["text"] = row["text"][:100]
        (folder / f"{split}.json").write_text(json.dumps(questions))
        (folder / f"{split}_feedback.json").write_text(
            json.dumps(json.loads((data / f"{split}_feedback.json").read_text())[:8])
        )
        words += [f"--{split}_file", str(folder / f"{split}.json")]
        words += [f"--{split}_feedback_file", str(folder / f"{split}_feedback.json")]
    return words


def losses(main, words: list[str], folder) -> list[float]:
    """The dev loss by batch size, of weights that hardly move."""
    found = []
    for size in (1, 3, 50):
        main([*words, "--save_dir", str(folder / str(size)), "--batch_size", str(size), "--max_steps", "1"])
        forget_accelerate()
        found.append(epochs_of(folder / str(size))[0]["eval_loss"])
    return found


@pytest.mark.parametrize("weights", ["none", "balanced"])
def test_the_loss_of_a_unit_classifier_is_the_unit_mean(weights, feedback, tmp_path, fresh_accelerate):
    from transformers import AutoModelForTokenClassification, AutoTokenizer

    from alarm.learning.reward_models import balanced_weights, encode_answers, label_answers
    from alarm.tasks.qa.feedback import IGNORED, load_feedback
    from alarm.tasks.sentences import make_splitter

    base, splitter = CHECKPOINTS / "tiny-rel_rm", make_splitter("sentencizer")
    words = [
        *feedback,
        "--model_path",
        str(base),
        "--aspect",
        "relevance",
        "--splitter",
        "sentencizer",
        "--lr",
        "1e-12",
    ]
    found = losses(load_script("long-form-QA/train_rm.py").main, [*words, "--class_weights", weights], tmp_path)

    tokenizer = AutoTokenizer.from_pretrained(base, add_prefix_space=True)
    model = AutoModelForTokenClassification.from_pretrained(base).eval()
    items = {}
    for split, at in (("train", 1), ("dev", 5)):
        rows = load_feedback(feedback[at], feedback[at + 2])
        items[split] = encode_answers(tokenizer, label_answers("relevance", rows, splitter), 500)[0]
    class_weights = balanced_weights(items["train"]) if weights == "balanced" else [1.0, 1.0, 1.0]
    total = count = 0.0
    with torch.inference_mode():
        for item in items["dev"]:
            logs = model(torch.tensor([item["input_ids"]])).logits[0].log_softmax(-1)
            for position, label in enumerate(item["labels"]):
                if label != IGNORED:
                    total -= class_weights[label] * logs[position, label].item()
                    count += class_weights[label]
    assert found == pytest.approx([total / count] * 3, abs=1e-5)


def test_the_loss_of_a_preference_model_is_the_pair_mean(feedback, tmp_path, fresh_accelerate):
    from alarm import train_holistic
    from alarm.models.holistic import HolisticModel
    from alarm.tasks.qa.feedback import load_feedback, preference_pairs

    base = CHECKPOINTS / "tiny-ultrarm"
    words = [*feedback, "--model_path", str(base), "--max_length", "200", "--lr", "1e-12"]
    found = losses(train_holistic.main, words, tmp_path)
    pairs = [pair for row in load_feedback(feedback[5], feedback[7]) for pair in preference_pairs(row)]
    model, prompts = HolisticModel.load(base), [pair.prompt for pair in pairs]
    chosen, rejected = (
        model.score(prompts, [getattr(pair, side) for pair in pairs], 200, 8).double()
        for side in ("chosen", "rejected")
    )
    expected = torch.log1p((rejected - chosen).exp()).mean().item()
    assert found == pytest.approx([expected] * 3, abs=1e-5)


def test_which_side_of_a_pair_is_chosen_has_no_part_in_the_batches(tmp_path, fresh_accelerate):
    """Batches grouped by one side tell the model which side that is, and its training loss falls on pairs of noise."""
    from argparse import Namespace

    from transformers import AutoTokenizer

    from alarm.learning.fit import Losses, fit

    class Scale(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

    draw = torch.Generator().manual_seed(0)
    pairs = [torch.randint(1, 60, (2,), generator=draw).tolist() for _ in range(200)]

    def batches(name: str, sides: tuple[int, int]) -> list[list[int]]:
        seen = []

        def loss(model, batch):
            seen.append(batch["number"].tolist())
            sums = model.weight * torch.ones(len(batch["number"]))
            return Losses(sums, torch.ones(len(sums)))

        items = [
            {"input_ids": [1] * pair[sides[0]], "rejected_ids": [1] * pair[sides[1]], "number": number}
            for number, pair in enumerate(pairs)
        ]
        args = Namespace(
            save_dir=tmp_path / name, num_epochs=1, max_steps=None, batch_size=4, lr=1e-3, seed=0, dtype="float32",
            report_to="none",
        )  # fmt: skip
        fit(
            Scale(), AutoTokenizer.from_pretrained(T5), items, items[:4],
            lambda rows: {"number": torch.tensor([row["number"] for row in rows])}, args, loss,
        )  # fmt: skip
        forget_accelerate()
        return seen

    first = batches("first", (0, 1))
    assert batches("second", (1, 0))[:50] == first[:50]  # behind them: the evaluation
    # grouped all the same: the longer sides of a batch are alike
    ranges = [max(longer) - min(longer) for batch in first[:50] for longer in [[max(pairs[n]) for n in batch]]]
    assert sum(ranges) / len(ranges) < 10
