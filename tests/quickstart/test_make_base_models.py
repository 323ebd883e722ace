"""The untrained base models load by the ordinary classes and tokenise as their families do."""

from __future__ import annotations

import json

import pytest

from helpers import ROOT, load_script

TEXT = "In 1998, the U.S. team won, didn't it?"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    rows = json.loads((ROOT / "quickstart/data/qa/test.json").read_text())[:8]
    (folder / "train.json").write_text(json.dumps(rows))
    flags = ["--train_file", str(folder / "train.json"), "--save_dir", str(folder / "models")]
    sizes = ["--vocab_size", "700", "--policy_size", "64", "--reward_model_size", "64"]
    load_script("quickstart/make_base_models.py").main(flags + sizes)
    return folder / "models"


def test_t5_loads_generates_and_reads_its_own_text(base):
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base / "t5")
    model = AutoModelForSeq2SeqLM.from_pretrained(base / "t5")
    assert type(tokenizer).__name__ == "T5Tokenizer"
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (0, 1, 2)
    encoded = tokenizer(TEXT, return_tensors="pt")
    assert encoded["input_ids"][0, -1] == 1 and 2 not in encoded["input_ids"]
    assert tokenizer.decode(encoded["input_ids"][0], skip_special_tokens=True) == TEXT
    assert len(tokenizer) == model.config.vocab_size == 700
    assert model.generate(**encoded, max_new_tokens=3).shape[1] <= 4


def test_longformer_marks_separators_and_keeps_bytes(base):
    from transformers import AutoTokenizer, LongformerModel

    tokenizer = AutoTokenizer.from_pretrained(base / "longformer", add_prefix_space=True)
    assert (tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    ids = tokenizer(["a", "</s>", "žluťoučký"], is_split_into_words=True)["input_ids"]
    assert ids[0] == 0 and ids.count(2) == 2 and ids[-1] == 2
    assert "žluťoučký" in tokenizer.decode(ids)
    model = LongformerModel.from_pretrained(base / "longformer")
    assert len(tokenizer) == model.config.vocab_size
    assert model.config.max_position_embeddings >= tokenizer.model_max_length + 2


def test_llama_starts_with_bos_and_falls_back_to_bytes(base):
    from transformers import AutoTokenizer, LlamaModel

    tokenizer = AutoTokenizer.from_pretrained(base / "llama")
    ids = tokenizer("Human: 東京")["input_ids"]
    assert ids[0] == tokenizer.bos_token_id == 1 and tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == "Human: 東京"
    assert len(tokenizer) == LlamaModel.from_pretrained(base / "llama").config.vocab_size


def test_a_folder_that_holds_something_is_refused(base, capsys):
    with pytest.raises(SystemExit) as stop:
        load_script("quickstart/make_base_models.py").main(["--save_dir", str(base)])
    assert stop.value.code == 2 and "already holds something" in capsys.readouterr().err
