"""Tiny models with a vocabulary of whole words: texts survive, and the project's own loaders take them."""

from __future__ import annotations

import pytest
from transformers import AutoTokenizer

from miniature import models
from miniature.qa import data


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "base"
    models.main(["--world", "qa", "--save_dir", str(path), "--policy_size", "32", "--reward_size", "32"])
    return path


def test_texts_come_back_as_they_were(folder):
    policy = AutoTokenizer.from_pretrained(folder / "t5")
    readers = [AutoTokenizer.from_pretrained(folder / name) for name in ("longformer", "llama")]
    for row in data.make_rows("dev", 30, 0):
        for text in (row["text"], row["answer"][0]):
            ids = policy(text)["input_ids"]
            assert policy.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False) == text
            for reader in readers:
                assert reader.unk_token_id not in reader(f"Human: {text}\nAssistant: {text} answer:")["input_ids"]


def test_a_word_is_one_token_and_a_separator_is_one_word(folder):
    reader = AutoTokenizer.from_pretrained(folder / "longformer", add_prefix_space=True)
    encoded = reader(["answer:", "</s>", "Old", "Brask."], is_split_into_words=True)
    assert encoded.tokens() == ["<s>", "answer", ":", "</s>", "Old", "Brask", ".", "</s>"]
    assert encoded.word_ids() == [None, 0, 0, 1, 2, 3, 3, None]
    assert reader.sep_token_id == encoded["input_ids"][3]


def test_bad_input_is_one_line(folder, capsys):
    for argv, what in ((["--save_dir", str(folder)], "exists"), (["--save_dir", "x", "--policy_size", "50"], "50")):
        with pytest.raises(SystemExit) as stop:
            models.main(["--world", "qa", *argv])
        assert stop.value.code == 2
        assert what in capsys.readouterr().err
