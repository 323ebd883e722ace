"""Encoding of supervised pairs, and what train_sft.py refuses."""

from __future__ import annotations

import json

import pytest
from transformers import AutoTokenizer

from alarm.learning.fit import Epoch, epoch_table, format_epochs
from alarm.learning.sft import encode_separate, load_demonstrations
from alarm.tasks.qa.spec import TASK
from helpers import FIXTURES, load_script


def test_what_is_too_long_loses_its_end_but_keeps_eos_and_is_counted():
    tokenizer = AutoTokenizer.from_pretrained(FIXTURES / "golden" / "checkpoints" / "tiny-t5")
    pairs = [("a b", "c"), ("word " * 50, "d " * 40), ("e", "f " * 40)]
    encoded = encode_separate(tokenizer, pairs, max_prompt=12, max_target=8)
    assert (encoded.cut_prompts, encoded.cut_targets) == (1, 2)
    for item in encoded.items:
        assert item["input_ids"][-1] == item["labels"][-1] == tokenizer.eos_token_id
    assert [len(item["labels"]) for item in encoded.items[1:]] == [8, 8]
    whole = tokenizer(pairs[1][0])["input_ids"]
    assert encoded.items[1]["input_ids"] == [*whole[:11], tokenizer.eos_token_id]


def test_every_reference_is_a_target(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([{"text": "p", "answer": ["x", " y "]}, {"text": "q", "answer": ["z", " "]}]))
    args = load_script("long-form-QA/train_sft.py").parse_args(["--save_dir", "x", "--train_file", str(path)])
    assert load_demonstrations(TASK, "train", args) == [("p", "x"), ("p", "y"), ("q", "z")]


def test_epochs_pair_losses_by_step():
    history = [
        {"loss": 2.0, "step": 5, "epoch": 1.0},
        {"eval_loss": 1.5, "step": 5, "epoch": 1.0},
        {"eval_loss": 1.25, "step": 7, "epoch": 1.4},
    ]
    epochs = epoch_table(history, [3.0, 4.0], keep_last=False)
    assert epochs == [Epoch(1.0, 5, 2.0, 1.5, 3.0, False), Epoch(1.4, 7, None, 1.25, 4.0, True)]
    assert [line.endswith("kept") for line in format_epochs(epochs).splitlines()] == [False, False, True]
    worse_later = [history[1] | {"eval_loss": 1.0}, history[2]]
    assert [row.kept for row in epoch_table(worse_later, [3.0, 4.0], keep_last=False)] == [True, False]
    assert [row.kept for row in epoch_table(worse_later, [3.0, 4.0], keep_last=True)] == [False, True]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--train_file": "absent.json"}, "absent.json does not exist"),
        ({"--dev_file": "empty.json"}, "holds no rows"),
        ({"--train_file": "nulls.json"}, "row 2: 'answer' holds NoneType"),
        ({"--dev_file": "numbers.json"}, "row 1: 'answer' holds int"),
        ({"--train_file": "half.json"}, "row 1: 'text'"),
        ({"--train_file": "half_answer.json"}, "row 1: 'answer'"),
        ({"--save_dir": "rows.json/out"}, "rows.json is not a folder"),
        ({"--train_file": "unanswered.json"}, "holds no reference answer"),
        ({"--save_dir": "taken"}, "already holds something"),
        ({"--model_path": "./no/model"}, "no folder ./no/model"),
    ],
)
def test_bad_input_is_one_line(change, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("mine")
    (tmp_path / "empty.json").write_text("[]")
    (tmp_path / "unanswered.json").write_text('[{"text": "p", "answer": []}]')
    (tmp_path / "nulls.json").write_text('[{"text": "p", "answer": ["x"]}, {"text": "q", "answer": ["y", null]}]')
    (tmp_path / "numbers.json").write_text('[{"text": "p", "answer": [1965]}]')
    (tmp_path / "half.json").write_text(r'[{"text": "a \ud83d b", "answer": ["x"]}]')
    (tmp_path / "half_answer.json").write_text(r'[{"text": "p", "answer": ["\ud83d"]}]')
    (tmp_path / "rows.json").write_text("[]")
    (tmp_path / "good.json").write_text('[{"text": "p", "answer": ["x"]}]')
    flags = {
        "--model_path": str(FIXTURES / "golden" / "checkpoints" / "tiny-t5"),
        "--save_dir": "new",
        "--train_file": "good.json",
        "--dev_file": "good.json",
    }
    with pytest.raises(SystemExit) as stop:
        load_script("long-form-QA/train_sft.py").main([word for pair in (flags | change).items() for word in pair])
    assert stop.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and message in lines[0]
    assert (tmp_path / "taken" / "file").read_text() == "mine"
