"""Encoding of supervised pairs, and what train_sft.py refuses."""

from __future__ import annotations

import argparse
import json
import math

import pytest
import torch
from transformers import AutoTokenizer

from alarm import train_sft
from alarm.learning.fit import Epoch, epoch_table, epochs_as_table
from alarm.learning.sft import (
    collate_joined,
    encode_joined,
    encode_separate,
    joined_loss,
    load_demonstrations,
    parse_args,
)
from alarm.tasks.find import add_task_flag, find_task
from alarm.tasks.qa.spec import TASK
from helpers import CHECKPOINTS, FIXTURES, load_script


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


LLAMA = CHECKPOINTS / "tiny-ultrarm"
CHAT = (
    "{% for turn in messages %}<{{ turn['role'] }}> {{ turn['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)


def test_prompt_and_answer_are_one_sequence_of_which_the_answer_is_learnt():
    tokenizer = AutoTokenizer.from_pretrained(LLAMA)
    pairs = [("a b", "c"), ("word " * 50, "d " * 40)]
    encoded = encode_joined(tokenizer, pairs, max_prompt=12, max_target=8, chat=False)
    assert (encoded.cut_prompts, encoded.cut_targets) == (1, 1)
    short, long = encoded.items
    prompt, answer = tokenizer("a b").input_ids, tokenizer("c", add_special_tokens=False).input_ids
    assert short["input_ids"] == [*prompt, *answer, tokenizer.eos_token_id]
    assert short["labels"] == [-100] * len(prompt) + [*answer, tokenizer.eos_token_id]
    assert long["labels"][:12] == [-100] * 12 and len(long["labels"]) == 12 + 8
    assert long["labels"][-1] == tokenizer.eos_token_id

    batch = collate_joined(encoded.items)
    padding = len(long["input_ids"]) - len(short["input_ids"])
    assert batch["attention_mask"].sum(1).tolist() == [len(item["input_ids"]) for item in encoded.items]
    assert batch["labels"][0].tolist() == short["labels"] + [-100] * padding


def test_the_logits_at_one_token_are_of_the_next():
    class Fixed(torch.nn.Module):
        def forward(self, input_ids, attention_mask):
            # after id k the model is sure of id k + 1, by a factor of e
            return argparse.Namespace(logits=torch.eye(4).roll(1, 1)[input_ids])

    items = [{"input_ids": [0, 1, 2], "labels": [-100, -100, 2]}, {"input_ids": [0, 3], "labels": [-100, 3]}]
    found = joined_loss(Fixed(), collate_joined(items))
    assert found.weights.tolist() == [1, 1]
    assert found.sums.tolist() == pytest.approx([math.log(math.e + 3) - 1, math.log(math.e + 3)])


@pytest.mark.parametrize("template", [None, CHAT])
def test_a_llama_answers_as_it_was_taught(template, tmp_path, fresh_accelerate, capsys):
    """One pair, often enough: the greedy answer is the target, through alarm.train_sft and the generation of PPO."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from alarm.training.generate import generator
    from alarm.training.policy import load_policy
    from alarm.training.rollout import decode, encode_prompts
    from trl.generation import GREEDY

    torch.manual_seed(1)
    tokenizer = AutoTokenizer.from_pretrained(LLAMA)
    tokenizer.chat_template = template
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(tokenizer), bos_token_id=1, eos_token_id=tokenizer.eos_token_id, **sizes)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    (tmp_path / "task.py").write_text(TASK_FILE)
    row = {"text": "Say it.", "answer": "It is said."}
    (tmp_path / "rows.json").write_text(json.dumps([row] * 16))
    (tmp_path / "dev.json").write_text(json.dumps([row | {"text": "Say it again."}]))
    words = ["--task", str(tmp_path / "task.py"), "--model_path", str(tmp_path / "base")]
    words += ["--train_file", str(tmp_path / "rows.json"), "--dev_file", str(tmp_path / "dev.json")]
    words += ["--lr", "1e-2", "--num_epochs", "15", "--batch_size", "8", "--save_dir", str(tmp_path / "sft")]
    train_sft.main(words)
    assert ("chat template" in capsys.readouterr().out) == (template is not None)

    policy = str(tmp_path / "sft")
    tokenizer = AutoTokenizer.from_pretrained(policy)
    task = find_task(str(tmp_path / "task.py"))
    prompts, _ = encode_prompts(tokenizer, [row], task, 64, chat=template is not None)
    answer = generator(load_policy(policy, tokenizer, "float32"), tokenizer, **GREEDY, max_new_tokens=20)
    [ids] = answer([prompt.ids for prompt in prompts])
    assert ids[-1] == tokenizer.eos_token_id and decode(tokenizer, [ids]) == [row["answer"]]


TASK_FILE = """
from alarm import Aspect, Task
TASK = Task("toy", prompt=lambda row: row["text"], aspects=[Aspect("brevity", lambda p, a, r: [0.0] * len(a))])
"""


@pytest.mark.parametrize(
    ("row", "named"),
    [
        ({"text": "p"}, "no 'answer'"),
        ({"answer": "x"}, "no 'text'"),
        ({"text": "p", "answer": None}, "answer is NoneType"),
        ({"text": "p", "answer": 7}, "answer is int"),
        ({"text": "p", "answer": ["x", None]}, "answer is NoneType"),
        ({"text": "p", "answer": " "}, "answer is empty"),
        ({"text": "p", "answer": "\ud83d"}, "surrogate"),
        ({"text": ["p"], "answer": "x"}, "prompt is list"),
    ],
)
def test_a_row_without_an_answer_is_named_with_its_file(row, named, tmp_path, capsys):
    (tmp_path / "task.py").write_text(TASK_FILE)
    (tmp_path / "rows.json").write_text(json.dumps([{"text": "p", "answer": "x"}, row]))
    flags = ["--task", str(tmp_path / "task.py"), "--model_path", "hub/name", "--save_dir", str(tmp_path / "new")]
    with pytest.raises(SystemExit) as stop:
        train_sft.main([*flags, "--train_file", str(tmp_path / "rows.json"), "--dev_file", "dev.json"])
    [line] = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == 2 and "rows.json, row 2" in line and named in line


def test_the_command_and_the_script_of_a_task_have_the_same_flags_and_defaults():
    for task, script in {"qa": "long-form-QA/train_sft.py", "mt": "MT/train_sft.py"}.items():
        given = ["--save_dir", "new"]
        here = vars(load_script(script).parse_args(given))
        there = vars(parse_args(find_task(task), "", ["--task", task, *given], add_task_flag))
        assert here == {name: value for name, value in there.items() if name != "task"}


def test_epochs_pair_losses_by_step():
    history = [
        {"loss": 2.0, "step": 5, "epoch": 1.0},
        {"eval_loss": 1.5, "step": 5, "epoch": 1.0},
        {"eval_loss": 1.25, "step": 7, "epoch": 1.4},
    ]
    epochs = epoch_table(history, [3.0, 4.0], keep_last=False)
    assert epochs == [Epoch(1.0, 5, 2.0, 1.5, 3.0, False), Epoch(1.4, 7, None, 1.25, 4.0, True)]
    (section,) = epochs_as_table(epochs).sections
    assert section.rows == (
        ("1.00", "5", "2.0000", "1.5000", "3.0", ""),
        ("1.40", "7", "-", "1.2500", "4.0", "kept"),
    )
    worse_later = [history[1] | {"eval_loss": 1.0}, history[2]]
    assert [row.kept for row in epoch_table(worse_later, [3.0, 4.0], keep_last=False)] == [True, False]
    assert [row.kept for row in epoch_table(worse_later, [3.0, 4.0], keep_last=True)] == [False, True]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--train_file": "absent.json"}, "absent.json"),
        ({"--dev_file": "empty.json"}, "empty.json"),
        ({"--train_file": "nulls.json"}, "nulls.json, row 2: 'answer'"),
        ({"--dev_file": "numbers.json"}, "numbers.json, row 1: 'answer'"),
        ({"--train_file": "half.json"}, "half.json, row 1: 'text'"),
        ({"--train_file": "half_answer.json"}, "half_answer.json, row 1: 'answer'"),
        ({"--save_dir": "rows.json/out"}, "--save_dir"),
        ({"--train_file": "unanswered.json"}, "unanswered.json"),
        ({"--save_dir": "taken"}, "--save_dir taken"),
        ({"--model_path": "./no/model"}, "./no/model"),
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
