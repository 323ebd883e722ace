"""Translation: the rows and their split, and the three rewards on sampled ids of several tokenizers."""

from __future__ import annotations

import gzip
import json
import logging
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alarm.common.errors import UserError
from alarm.rewards import aspect_rewards
from alarm.scoring import place
from alarm.tasks.mt.aspects import EnglishConfidence, Grammar, covered, readability_grade
from alarm.tasks.mt.data import load_rows, prompt, split_source
from alarm.tasks.mt.grammar import Match
from alarm.tasks.mt.spec import GRAMMAR, TASK
from alarm.tasks.spans import token_offsets
from alarm.training.main import parse_args
from alarm.types import Rollout
from helpers import CHECKPOINTS, FIXTURES, Aspects

ASPECTS = tuple(aspect.name for aspect in TASK.aspects)


def pairs(count: int) -> list[dict]:
    return [{"translation": {"es": f"frase {i}", "en": f"sentence {i}"}} for i in range(count)]


def write(path, rows):
    if path.suffix == ".parquet":
        import datasets

        datasets.Dataset.from_list(rows).to_parquet(path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# --- data ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl", "rows.parquet"])
def test_rows_of_every_format(tmp_path, name):
    path = write(tmp_path / name, pairs(7))
    assert load_rows(path) == pairs(7)
    assert load_rows(str(path), limit=3) == pairs(3)


@pytest.mark.parametrize(
    "name", ["rows.ndjson", "rows.JSON", "ROWS.JSONL", "rows.txt", "rows", "rows.jsonl.gz", "r.gz"]
)
def test_the_content_of_a_file_tells_its_format(tmp_path, name):
    """And not its name: the file that is there is read."""
    text = "".join(json.dumps(row) + "\n" for row in pairs(7)).encode()
    (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith(".gz") else b"\xef\xbb\xbf" + text)
    assert load_rows(tmp_path / name) == pairs(7)
    assert load_rows(tmp_path / name, limit=3) == pairs(3)


@pytest.mark.parametrize("name", ["rows.PARQUET", "rows.pq", "rows"])
def test_a_parquet_file_by_another_name_is_read(tmp_path, name):
    write(tmp_path / "rows.parquet", pairs(7)).rename(tmp_path / name)
    assert load_rows(tmp_path / name, limit=3) == pairs(3)


def hub_layout(folder, rows):
    """A folder as the hub holds the data set: configurations named in the card, parquet under the one asked for."""
    (folder / "en-es").mkdir(parents=True)
    write(folder / "en-es" / "train-00000-of-00001.parquet", rows)
    card = "---\nconfigs:\n- config_name: en-es\n  data_files:\n  - split: train\n    path: en-es/train-*\n---\n"
    (folder / "README.md").write_text(card)
    return folder


def test_the_split_is_the_published_one(tmp_path):
    """30% test of all rows, then 10% dev of the others, both with seed 42, through the calls that made it."""
    import datasets

    whole = datasets.Dataset.from_list(pairs(101))
    first = whole.train_test_split(test_size=0.3, seed=42)
    second = first["train"].train_test_split(test_size=0.1, seed=42)
    for source in (write(tmp_path / "rows.jsonl", pairs(101)), hub_layout(tmp_path / "europarl", pairs(101))):
        splits = split_source(source)
        assert (len(splits.train), len(splits.dev), len(splits.test)) == (63, 7, 31)
        assert splits.test == first["test"].to_list()
        assert splits.dev == second["test"].to_list()
        assert splits.train == second["train"].to_list()


def test_the_split_takes_the_first_rows_and_cuts_dev(tmp_path, monkeypatch):
    monkeypatch.setattr("alarm.tasks.mt.data.MAX_ROWS", 100)
    monkeypatch.setattr("alarm.tasks.mt.data.MAX_DEV_ROWS", 5)
    splits = split_source(write(tmp_path / "rows.jsonl", pairs(150)))
    assert (len(splits.train), len(splits.dev), len(splits.test)) == (63, 5, 30)
    seen = {row["translation"]["en"] for part in (splits.train, splits.dev, splits.test) for row in part}
    assert seen <= {f"sentence {i}" for i in range(100)}


def test_rows_without_es_or_en_are_left_out_counted_and_named(tmp_path, caplog):
    bad = [{}, {"translation": None}, {"translation": {"es": "a"}}, {"translation": {"es": "a", "en": " "}}]
    bad += [{"translation": {"es": 3, "en": "b"}}, {"translation": "a"}]
    bad += [{"translation": {"es": "half \ud83d", "en": "b"}}]
    path = write(tmp_path / "rows.jsonl", [*pairs(3), *bad, *pairs(1)])
    assert load_rows(path) == [*pairs(3), *pairs(1)]
    assert f"{path}: left out 7 of 11" in caplog.text
    assert "row 4" in caplog.text
    with pytest.raises(UserError, match=r"all 7 are rows without text under 'es' or 'en'"):
        load_rows(write(tmp_path / "bad.jsonl", bad))


def test_bad_rows_do_not_move_the_others_between_the_splits(tmp_path):
    rows = pairs(100)
    whole = split_source(write(tmp_path / "whole.jsonl", rows))
    missing = whole.test[3]
    damaged = [{} if row == missing else row for row in rows]
    splits = split_source(write(tmp_path / "damaged.jsonl", damaged))
    assert splits.train == whole.train
    assert splits.test == [row for row in whole.test if row != missing]


def test_sources_that_cannot_be_read(tmp_path):
    broken = tmp_path / "broken.parquet"
    broken.write_text("no parquet")
    table, zipped = tmp_path / "pairs.csv", tmp_path / "pairs.json.zip"
    table.write_text("es,en\nhola,hello\n")
    zipped.write_bytes(b"PK\x03\x04 and so on")
    for source, named in [
        (tmp_path / "absent.jsonl", "does not exist"),
        (tmp_path / "absent.parquet", "does not exist"),
        (tmp_path / "absent.ndjson", "does not exist"),
        ("absent.jsonl.gz", "does not exist"),
        (tmp_path / "absent", "does not exist"),
        ("./absent", "does not exist"),
        (table, "starts with 'es,en"),
        (zipped, "zip"),
        (broken, "cannot be loaded"),
        ("no-such/hub-id", "--train_file"),
        (write(tmp_path / "three.jsonl", pairs(3)), "too few"),
    ]:
        with pytest.raises(UserError, match=named) as error:
            split_source(source)
        assert "\n" not in str(error.value)


def test_the_prompt():
    assert prompt(pairs(1)[0]) == "translate Spanish to English: frase 0"


# --- readability and confidence --------------------------------------------------------------------------------------


def test_readability_is_that_of_the_version_the_constants_come_from():
    golden = json.loads((FIXTURES / "golden" / "combine_mt.json").read_text())
    grades = [readability_grade(text) for text in golden["texts"]]
    # recorded with a later textstat, which scores higher where its syllables differ
    assert grades == [10.3, 10.7, 10.3, 10.3, 10.3, 9.9, 9.9, 9.9]
    # 0.39 words/sentence + 11.8 syllables/word - 15.59, by hand: 2 words, 3 syllables, 1 sentence
    assert readability_grade("Hello world.") == pytest.approx(0.39 * 2 + 11.8 * 1.5 - 15.59, abs=0.05)


def test_confidence_agrees_with_the_golden_numbers():
    golden = json.loads((FIXTURES / "golden" / "combine_mt.json").read_text())
    confidence = EnglishConfidence()
    found = [confidence(text) for text in golden["texts"]]
    assert found == pytest.approx(golden["cases"][0]["fg_in"]["language_confidence"], abs=1e-9)
    assert confidence("Esto es una frase en español.") < 0.05
    assert [confidence(text) for text in ("", " ", "???", "12 34", "\ufffd")] == [0.0] * 5


# --- tokens ----------------------------------------------------------------------------------------------------------


def tokenizer_of(name: str):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(CHECKPOINTS / name)


@pytest.fixture(scope="module")
def tokenizers():
    """Sentencepiece twice, sentencepiece with byte fallback, byte-level BPE."""
    return {name: tokenizer_of(name) for name in ("tiny-t5", "small-t5-tokenizer", "tiny-ultrarm", "tiny-rel_rm")}


def rollout_of(tokenizer, texts: list[str]) -> Rollout:
    ids = [torch.tensor([*tokenizer(t, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]) for t in texts]
    return rollout_of_ids(tokenizer, ids)


def rollout_of_ids(tokenizer, ids: list[torch.Tensor]) -> Rollout:
    responses = [token_offsets(tokenizer, row)[0] for row in ids]
    n = len(ids)
    return Rollout([torch.zeros(1)] * n, ids, [""] * n, responses, [{}] * n, torch.zeros(n, dtype=torch.bool))


class PlannedChecker:
    """Gives the matches it was told to."""

    def __init__(self, matches: list[list[Match]]):
        self.matches, self.counts = matches, {}

    def check(self, texts: list[str]) -> list[list[Match]]:
        return self.matches

    def close(self):
        pass


def grammar_of(tokenizer, rollout: Rollout, matches: list[list[Match]], shaped: bool = False, **values):
    """Rewards B x (T_i,) and metrics for these matches."""
    values = {"correct": 0.0, "incorrect": -1.0} | values
    decoded = [token_offsets(tokenizer, ids) for ids in rollout.response_ids]
    score = place(GRAMMAR, Grammar(PlannedChecker(matches), **values)(rollout), decoded)
    return aspect_rewards(
        score, [len(ids) for ids in rollout.response_ids], "sigmoid" if shaped else "none"
    ), score.metrics


def mark_tokens(tokenizer, ids: list[int], matches: list[Match]) -> list[bool]:
    rollout = rollout_of_ids(tokenizer, [torch.tensor(ids, dtype=torch.long)])
    (rewards,), _ = grammar_of(tokenizer, rollout, [matches])
    return (rewards == -1).tolist()


GOLDEN_NAMES = {"tiny-t5": "tiny-t5", "small-t5": "small-t5-tokenizer"}


def golden_rows() -> list[dict]:
    return json.loads((FIXTURES / "golden" / "grammar_mapping.json").read_text())["rows"]


def test_golden_marks(tokenizers):
    """Token for token the tokens that overlap the match; what the published loop marks, where it is exact."""
    exact, published, other_text = 0, 0, 0
    for row in golden_rows():
        text, _ = token_offsets(tokenizers[GOLDEN_NAMES[row["tokenizer"]]], row["token_ids"])
        for found in row["per_match"]:
            match = Match(found["offset"], found["offset"] + found["length"], "", "")
            marks = mark_tokens(tokenizers[GOLDEN_NAMES[row["tokenizer"]]], row["token_ids"], [match])
            marked = [i for i, mark in enumerate(marks) if mark]
            if text != row["text"]:
                other_text += 1  # white space was folded on the way to ids: the golden offsets are of another text
                continue
            wanted = found["char_overlap_tokens"]
            if text == "x":
                wanted = [1]  # the "▁" in front of it is no character of the text that was sampled
            assert marked == wanted, (row["text"], found)
            exact += 1
            published += found["seed_marks"] == found["char_overlap_tokens"]
    assert (exact, published, other_text) == (130, 80, 12)


@pytest.mark.parametrize("shaped", [0, 1])
def test_golden_rewards(tokenizers, shaped):
    """Rewards and metrics, to 1e-6, of the responses whose every match the published loop maps exactly."""
    compared = 0
    for row in golden_rows():
        tokenizer = tokenizers[GOLDEN_NAMES[row["tokenizer"]]]
        exact = all(found["seed_marks"] == found["char_overlap_tokens"] for found in row["per_match"])
        if not exact or row["text"] == "x" or token_offsets(tokenizer, row["token_ids"])[0] != row["text"]:
            continue
        matches = [Match(offset, offset + length, kind, "") for offset, length, kind in row["matches"]]
        rollout = rollout_of_ids(tokenizer, [torch.tensor(row["token_ids"])])
        rewards, metrics = grammar_of(tokenizer, rollout, [matches], bool(shaped))
        golden = row[f"grammar_rewards_sig{shaped}"][: len(row["token_ids"])]
        np.testing.assert_allclose(rewards[0].numpy(), golden, atol=1e-6)
        assert metrics == {"grammar_errors": [row["grammar_errors"]], "error_rate": [row["error_rate"]]}
        compared += 1
    assert compared > 30


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_marked_are_the_tokens_that_hold_a_character_of_a_match(tokenizers, data):
    """Random ids (bytes of half a character, unknown and special tokens among them) and random matches."""
    tokenizer = tokenizers[data.draw(st.sampled_from(sorted(tokenizers)))]
    ids = data.draw(st.lists(st.integers(0, len(tokenizer) - 1), max_size=30))
    text, offsets = token_offsets(tokenizer, ids)
    spans = data.draw(st.lists(st.tuples(st.integers(0, len(text)), st.integers(0, 12)), max_size=4))
    matches = [Match(start, min(start + length, len(text)), "", "") for start, length in spans]
    marks = mark_tokens(tokenizer, ids, matches)
    for mark, (start, end) in zip(marks, offsets, strict=True):
        assert mark == any(m.start <= c < m.end for c in range(start, end) for m in matches)
    wrong = {c for m in matches for c in range(m.start, m.end)}
    assert {c for start, end in covered(matches) for c in range(start, end)} == wrong
    marked = {c for mark, (start, end) in zip(marks, offsets, strict=True) if mark for c in range(start, end)}
    assert wrong <= marked, "a character of a match belongs to no marked token"


ODD_TEXTS = [
    "It is a apple.",
    "  two  spaces  is a  apple ",
    "😀 emoji 👩‍👩‍👧 a apple 😀",
    "cafe\u0301 a apple",
    "naïve 中文 a apple",
    "control \x07 a apple",
    "a apple" + " x" * 5_000,
]


@pytest.mark.parametrize("name", ["tiny-t5", "small-t5-tokenizer", "tiny-ultrarm", "tiny-rel_rm"])
def test_every_character_of_an_error_is_marked_and_little_else(tokenizers, name):
    tokenizer = tokenizers[name]
    rollout = rollout_of(tokenizer, ODD_TEXTS)
    spans = [re.search(r"a +apple", text).span() for text in rollout.responses]
    found, _ = grammar_of(tokenizer, rollout, [[Match(start, end, "", "")] for start, end in spans])
    for ids, text, rewards in zip(rollout.response_ids, rollout.responses, found, strict=True):
        assert len(rewards) == len(ids)
        wrong = (rewards == -1).nonzero().flatten().tolist()
        _, offsets = token_offsets(tokenizer, ids)
        marked = text[offsets[wrong[0]][0] : offsets[wrong[-1]][1]]
        assert re.fullmatch(r"\s*a +apple\s*\.?", marked), (text, marked)
        assert rewards[-1] == 0  # the end of sequence


# --- the aspects -----------------------------------------------------------------------------------------------------


def test_rewards_by_hand(tokenizers):
    tokenizer = tokenizers["small-t5-tokenizer"]
    rollout = rollout_of(tokenizer, ["He saw the the dog.", "Hello world."])
    aspects = Aspects(TASK, tokenizer, grammar_backend="rules")
    found = aspects(rollout)
    assert tuple(found) == ASPECTS
    grades = [readability_grade(text) for text in rollout.responses]
    assert grades[1] == 2.9
    for b, rewards in enumerate(found["readability"].rewards):
        assert rewards[:-1].eq(0).all()
        assert rewards[-1].item() == pytest.approx((grades[b] - 11.19907041598879) / 6.04405504045225, rel=1e-6)
    assert [r[-1].item() for r in found["readability"].rewards] == pytest.approx(
        found["readability"].metrics["readability"]
    )
    assert found["confidence"].rewards[1][-1].item() == pytest.approx(EnglishConfidence()("Hello world."))
    assert found["grammar"].metrics["grammar_errors"] == [1, 0]
    assert found["grammar"].metrics["error_rate"] == [1 / len(rollout.response_ids[0]), 0]
    assert found["grammar"].rewards[1].eq(0).all()

    shaped = aspects(rollout, shaped=True)
    for name in ASPECTS:
        assert shaped[name].metrics == found[name].metrics
        for plain, row in zip(found[name].rewards, shaped[name].rewards, strict=True):
            last = slice(None) if name == "grammar" else slice(-1, None)  # a token without a reward stays at 0
            torch.testing.assert_close(row[last], torch.sigmoid(plain[last]))
            assert all(rewards.dtype == torch.float32 for rewards in shaped[name].rewards)
            if name != "grammar":
                assert row[:-1].eq(0).all()


def test_only_the_named_aspects_are_computed(tokenizers):
    tokenizer = tokenizers["small-t5-tokenizer"]
    aspects = Aspects(TASK, tokenizer, ["confidence", "readability"])  # no LanguageTool is looked for
    assert tuple(aspects(rollout_of(tokenizer, ["One."]))) == ("confidence", "readability")


@pytest.mark.parametrize("name", ["small-t5-tokenizer", "tiny-rel_rm"])
def test_translations_without_text_are_defined_and_counted(tokenizers, name):
    """Nothing at all, the end of sequence alone, unknown tokens alone, padding alone, white space alone."""
    tokenizer = tokenizers[name]
    eos, pad, unk = tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id
    space = tokenizer(" ", add_special_tokens=False)["input_ids"]
    ids = [torch.tensor(row, dtype=torch.long) for row in ([], [eos], [unk] * 5, [pad, pad, eos], space)]
    rollout = rollout_of_ids(tokenizer, ids)
    aspects = Aspects(TASK, tokenizer, grammar_backend="rules")
    found = aspects(rollout)
    assert [text.strip() for text in rollout.responses] == [""] * 5
    assert 5 in aspects.scorer.counts().values()
    assert found["grammar"].metrics == {"grammar_errors": [0] * 5, "error_rate": [0.0] * 5}
    assert found["confidence"].metrics["language_confidence"] == [0.0] * 5
    assert found["readability"].metrics["readability"] == [(-15.7 - 11.19907041598879) / 6.04405504045225] * 5
    for score in found.values():
        assert [len(rewards) for rewards in score.rewards] == [len(row) for row in ids]
        assert all(torch.isfinite(rewards).all() for rewards in score.rewards)


def test_constants_come_from_flags(tokenizers):
    tokenizer = tokenizers["small-t5-tokenizer"]
    flags = {"readability_mean": 1.0, "readability_std": 2.0, "grammar_backend": "rules"}
    flags |= {"grammar_correct_reward": 3.0, "grammar_incorrect_reward": 4.0}
    found = Aspects(TASK, tokenizer, **flags)(rollout_of(tokenizer, ["Hello world."]))
    assert found["readability"].metrics == {"readability": [(2.9 - 1) / 2]}
    assert found["readability"].raw == [2.9]
    assert found["grammar"].rewards[0].tolist() == [3.0] * len(found["grammar"].rewards[0])
    assert parse_args(TASK, "", ["--save_dir", "x"]).grammar_incorrect_reward == -1


def test_the_module_loads_nothing_heavy():
    import subprocess
    import sys

    code = "import sys, alarm.tasks.mt.spec; "
    heavy = ("torch", "transformers", "datasets", "lingua", "textstat", "requests", "numpy")
    code += f"print([m for m in {heavy} if m in sys.modules])"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.strip() == "[]"


def test_missing_rows_are_only_warned_about_once_a_file(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        load_rows(write(tmp_path / "rows.jsonl", [*pairs(3), {}, {}]))
    assert len(caplog.records) == 1
