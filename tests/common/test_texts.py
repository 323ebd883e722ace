"""When two questions or answers are the same, and that every script looks at it."""

from __future__ import annotations

import argparse
import json
import unicodedata
from dataclasses import replace

import pytest

from alarm.common.errors import UserError
from alarm.common.texts import answer_key, one_spelling, question_key, without_shared
from alarm.learning.fit import set_aside
from alarm.learning.metrics import pair_metrics
from alarm.learning.pairs import encode_training_pairs
from alarm.tasks.preferences import Pair
from alarm.tasks.qa.feedback import Feedback, completeness_pairs
from alarm.tasks.sentences import make_splitter
from helpers import CHECKPOINTS, FIXTURES, load_script

T5 = FIXTURES / "golden" / "checkpoints" / "tiny-t5"


@pytest.mark.parametrize(
    "other",
    [
        unicodedata.normalize("NFD", "¿Qué é 3.5?"),
        "¿Qué\u00a0é\u20093.5?",
        "  ¿QUÉ é\n\t3.5?",
        "qué é 3.5",
        "Qué é 3.5 ?!",
        "¿Qué é ３.５？",  # full-width
        "\ufeff¿Qu\u00adé é\u200b 3.5?",  # invisible
    ],
)
def test_spelling_does_not_make_another_question(other):
    assert question_key(other) == question_key("¿Qué é 3.5?")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is C?", "What is C++?"),
        ("Is it 3.5?", "Is it 35?"),
        ("qué", "que"),
        ("???", "!!!"),
        ("why", "why not"),
        ("1 < 2", "1 > 2"),
    ],
)
def test_other_words_and_symbols_make_another_question(one, other):
    assert question_key(one) != question_key(other)


def test_apostrophes_and_sharp_s():
    assert question_key("What's a Straße?") == question_key("what’s a STRASSE")
    assert question_key("") == question_key(" \u00a0") == ""


def test_answers_differ_by_what_can_make_one_better():
    assert answer_key(" é ") == answer_key("e\u0301")
    for other in ("É", "é.", "é é"):
        assert answer_key(other) != answer_key("é")


def test_shared_questions_are_counted_once():
    train = ["Café?", "cafe\u0301", "tea?", "milk?"]
    assert without_shared(train, ["CAFÉ", "café ?", "milk", "juice"], str) == (["tea?"], 2)
    with pytest.raises(UserError):
        without_shared(["Café?"], ["cafe\u0301"], str)


def test_one_question_stays_on_one_side_and_in_one_cluster():
    items = [{"question": spelling.format(i)} for i in range(6) for spelling in ("é {}?", "E\u0301 {}", "é\u00a0{} ?")]
    args = argparse.Namespace(selection_share=0.5, seed=1, batch_size=4, num_epochs=2.0, max_steps=None)
    train, choosing = set_aside(items, args)
    sides = [{question_key(item["question"]) for item in part} for part in (train, choosing)]
    assert len(train) == len(choosing) == 9 and not sides[0] & sides[1]
    assert one_spelling(["é?", "x", "E\u0301", "X."]) == ["é?", "x", "é?", "x"]


def test_metrics_count_a_question_once():
    pairs = [Pair(question, question, "a", "b", "pair") for question in ("é?", "e\u0301", "É")]
    found = pair_metrics(pairs, [1.0, 2.0, 3.0], [0.0, 3.0, 0.0])
    assert found["questions"] == 1 and found["intervals"]["pairwise_accuracy"] is None


def test_pairs_that_look_the_same_teach_nothing():
    def encode(prompts, answers):
        return [[ord(letter) for letter in answer] for answer in answers]

    same = Pair("q", "q", "caf\u00e9 ", "cafe\u0301", "pair")
    other = replace(same, rejected="caf\u00e9.")
    assert len(encode_training_pairs(encode, [same, other], 99)) == 1
    row = Feedback("q", "q", ("cafe\u0301", "", "", ""), "caf\u00e9", (), ({"error type": "Missing-Answer"},), (0,) * 6)
    splitter = make_splitter("sentencizer")
    assert completeness_pairs(row, splitter) == []
    assert [pair.kind for pair in completeness_pairs(replace(row, corrected="caf\u00e9!"), splitter)] == ["added"]


# --- the scripts -----------------------------------------------------------------------------------------------------


SPELLINGS = ("¿Qué é {}?", unicodedata.normalize("NFD", "¿Qué é {}?"), "¿QUÉ é\u00a0{}", "qué é {} ?")


def written(path, rows) -> str:
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def test_train_sft_leaves_out_what_dev_asks(tmp_path, fresh_accelerate, capsys):
    main = load_script("long-form-QA/train_sft.py").main
    train = [{"text": SPELLINGS[0].format(i), "answer": ["one", "two"]} for i in range(6)]
    dev = [{"text": SPELLINGS[i % 4].format(i), "answer": ["three"]} for i in range(4)]
    flags = {"model_path": T5, "train_file": written(tmp_path / "t.jsonl", train), "save_dir": tmp_path / "out"}
    flags |= {"dev_file": written(tmp_path / "d.jsonl", dev), "max_steps": 1, "batch_size": 4}
    main([str(word) for name, value in flags.items() for word in (f"--{name}", value)])
    said = capsys.readouterr().out
    assert "warning: the dev file asks 4 of the training questions" in said and "train: 4 pairs" in said

    flags |= {"dev_file": written(tmp_path / "all.jsonl", train), "save_dir": tmp_path / "other"}
    with pytest.raises(SystemExit) as stop:
        main([str(word) for name, value in flags.items() for word in (f"--{name}", value)])
    assert stop.value.code == 2 and "the same 6 questions" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_translation_warns_and_trains_on_all(tmp_path, fresh_accelerate, capsys):
    """Europarl repeats short sentences on purpose."""
    train = [{"translation": {"es": SPELLINGS[0].format(i), "en": f"what {i}"}} for i in range(5)]
    dev = [{"translation": {"es": SPELLINGS[1 + i % 3].format(i + 3), "en": f"what {i}"}} for i in range(4)]
    flags = {"model_path": CHECKPOINTS / "tiny-mt5", "train_file": written(tmp_path / "t.jsonl", train)}
    flags |= {"dev_file": written(tmp_path / "d.jsonl", dev), "save_dir": tmp_path / "out", "max_steps": 1}
    flags |= {"max_len": 16}
    load_script("MT/train_sft.py").main([str(word) for name, value in flags.items() for word in (f"--{name}", value)])
    said = capsys.readouterr().out
    assert "warning: 2 of the 4 dev prompts" in said and "train: 5 pairs" in said


def test_train_holistic_leaves_out_what_dev_asks(tmp_path, fresh_accelerate, capsys):
    from alarm import train_holistic

    train = [{"prompt": SPELLINGS[0].format(i), "chosen": f"good {i}", "rejected": "bad"} for i in range(6)]
    dev = [{"prompt": SPELLINGS[i % 4].format(i), "chosen": "yes", "rejected": f"no {i}"} for i in range(4)]
    flags = {"model_path": CHECKPOINTS / "tiny-ultrarm", "train_file": written(tmp_path / "t.jsonl", train)}
    flags |= {"dev_file": written(tmp_path / "d.jsonl", dev), "save_dir": tmp_path / "out", "max_steps": 1}
    train_holistic.main([str(word) for name, value in flags.items() for word in (f"--{name}", value)])
    said = capsys.readouterr().out
    assert "warning: the dev file asks 4 of the training questions" in said and "train and dev: 2 and 4 pairs" in said


def test_prompts_of_ppo_that_dev_holds_are_counted(capsys):
    from transformers import AutoTokenizer

    from alarm.tasks.qa.spec import TASK
    from alarm.training.policy import encode_splits

    examples = {"train": [{"text": SPELLINGS[0].format(i)} for i in range(5)]}
    examples["dev"] = [{"text": SPELLINGS[3].format(i)} for i in range(3, 9)]
    sources = dict.fromkeys(examples, "a file")
    prompts = encode_splits(AutoTokenizer.from_pretrained(T5), examples, TASK, 30, sources)
    assert "warning: 2 of the 6 dev prompts" in capsys.readouterr().out
    assert {split: len(rows) for split, rows in prompts.items()} == {"train": 5, "dev": 6}
    encode_splits(AutoTokenizer.from_pretrained(T5), {"test": examples["dev"]}, TASK, 30, {"test": "a file"})
    assert "warning" not in capsys.readouterr().out
