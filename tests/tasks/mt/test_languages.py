"""Marian, NLLB, M2M100 and mBART-50 in the scripts of MT/: prompts, languages, and what the decoder starts with."""

from __future__ import annotations

import argparse
import functools
import io
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import sentencepiece
import torch
from tasks.mt.test_scripts import PAIRS, refused, train_rows, words_of, write_pairs
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    M2M100Config,
    M2M100ForConditionalGeneration,
    M2M100Tokenizer,
    MarianConfig,
    MarianMTModel,
    MarianTokenizer,
    MBart50Tokenizer,
    MBartConfig,
    MBartForConditionalGeneration,
    MBartTokenizer,
    NllbTokenizer,
)

from alarm.common.errors import UserError
from alarm.common.languages import differences, set_languages
from alarm.tasks.spans import token_offsets
from alarm.training import calibrate
from helpers import CHECKPOINTS, forget_accelerate, load_script

pytestmark = pytest.mark.filterwarnings("ignore")
ONE = ("Hola.", "We will go to the beach tomorrow.")
SPANISH, ENGLISH = ([ONE[side]] + [pair[side] for pair in PAIRS] for side in (0, 1))
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]
SIZES = {
    "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": 64, "dropout": 0.0,
    "attention_dropout": 0.0,
}  # fmt: skip


def sentencepiece_model(texts: list[str], path: Path, size: int) -> list[tuple[str, float]]:
    """Write a unigram model. -> its pieces with their scores: <unk>, <s>, </s>, then the others."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=model, vocab_size=size, hard_vocab_limit=False, minloglevel=2,
        character_coverage=1.0,
    )  # fmt: skip
    path.write_bytes(model.getvalue())
    made = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    return [(made.id_to_piece(i), made.get_score(i)) for i in range(made.vocab_size())]


def marian(folder: Path) -> None:
    """Two sentencepiece models, one vocabulary, the pad token last and first of the decoder, as in opus-mt."""
    pieces = [
        piece
        for texts, name in ((SPANISH, "source.spm"), (ENGLISH, "target.spm"))
        for piece, _ in sentencepiece_model(texts, folder / name, 90)[3:]
    ]
    vocab = {piece: id for id, piece in enumerate(["</s>", "<unk>", *dict.fromkeys(pieces), "<pad>"])}
    (folder / "vocab.json").write_text(json.dumps(vocab))
    files = {"source_spm": folder / "source.spm", "target_spm": folder / "target.spm", "vocab": folder / "vocab.json"}
    MarianTokenizer(**{name: str(path) for name, path in files.items()}).save_pretrained(folder)
    pad = vocab["<pad>"]
    config = MarianConfig(
        vocab_size=len(vocab), pad_token_id=pad, eos_token_id=0, decoder_start_token_id=pad, forced_eos_token_id=None,
        **SIZES,
    )  # fmt: skip
    MarianMTModel(config).save_pretrained(folder)


def nllb(folder: Path) -> None:
    bpe = Tokenizer(models.BPE(unk_token="<unk>"))
    bpe.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=True)
    bpe.train_from_iterator(
        SPANISH + ENGLISH, trainers.BpeTrainer(vocab_size=150, special_tokens=SPECIAL, show_progress=False)
    )
    model = json.loads(bpe.to_str())["model"]
    tokenizer = NllbTokenizer(vocab=model["vocab"], merges=[tuple(merge) for merge in model["merges"]])
    tokenizer.save_pretrained(folder)
    m2m100_model(len(tokenizer)).save_pretrained(folder)


def m2m100(folder: Path) -> None:
    pieces = [piece for piece, _ in sentencepiece_model(SPANISH + ENGLISH, folder / "sentencepiece.bpe.model", 150)]
    (folder / "vocab.json").write_text(json.dumps({piece: id for id, piece in enumerate(SPECIAL + pieces[3:])}))
    files = {"vocab_file": folder / "vocab.json", "spm_file": folder / "sentencepiece.bpe.model"}
    tokenizer = M2M100Tokenizer(**{name: str(path) for name, path in files.items()})
    tokenizer.save_pretrained(folder)
    m2m100_model(max(tokenizer.lang_code_to_id.values()) + 1).save_pretrained(folder)


def m2m100_model(size: int) -> M2M100ForConditionalGeneration:
    config = M2M100Config(
        vocab_size=size, pad_token_id=1, bos_token_id=0, eos_token_id=2, decoder_start_token_id=2,
        encoder_layerdrop=0.0, decoder_layerdrop=0.0, **SIZES,
    )  # fmt: skip
    return M2M100ForConditionalGeneration(config)


def mbart50(folder: Path) -> None:
    pieces = sentencepiece_model(SPANISH + ENGLISH, folder / "sentencepiece.bpe.model", 150)
    tokenizer = MBart50Tokenizer(vocab=pieces)
    tokenizer.save_pretrained(folder)
    config = MBartConfig(
        vocab_size=len(tokenizer), pad_token_id=1, bos_token_id=0, eos_token_id=2, decoder_start_token_id=2,
        forced_eos_token_id=None, **SIZES,
    )  # fmt: skip
    MBartForConditionalGeneration(config).save_pretrained(folder)


@dataclass(frozen=True)
class Kind:
    make: object
    start: str  # the token that the decoder starts with
    languages: tuple[str, ...] = ()  # source, target
    tokens: tuple[str, ...] = ()  # of these

    @property
    def flags(self) -> dict:
        return {"prompt_prefix": ""} | dict(zip(("source_language", "target_language"), self.languages, strict=False))


KINDS = {
    "marian": Kind(marian, "<pad>"),
    "nllb": Kind(nllb, "</s>", ("spa_Latn", "eng_Latn"), ("spa_Latn", "eng_Latn")),
    "m2m100": Kind(m2m100, "</s>", ("es", "en"), ("__es__", "__en__")),
    "mbart50": Kind(mbart50, "</s>", ("es_XX", "en_XX"), ("es_XX", "en_XX")),
}
WITH_LANGUAGES = [name for name, kind in KINDS.items() if kind.languages]


@pytest.fixture(scope="session")
def bases(tmp_path_factory):
    """The folder of a tiny random model of a kind, with a real tokenizer of its type."""
    folder = tmp_path_factory.mktemp("languages")

    @functools.cache
    def base(name: str) -> Path:
        torch.manual_seed(0)
        (folder / name).mkdir()
        KINDS[name].make(folder / name)
        return folder / name

    return base


@pytest.fixture
def decoded(monkeypatch):
    """Watch the type of model in a folder. -> what its decoder reads in each pass that does not go on from a cache."""

    def watch(folder: Path) -> list[torch.Tensor]:
        decoder = type(AutoModelForSeq2SeqLM.from_pretrained(folder).get_decoder())
        seen, forward = [], decoder.forward

        @functools.wraps(forward)
        def watching(self, *args, **kwargs):
            ids, cache = kwargs["input_ids"], kwargs.get("past_key_values")
            if cache is None or cache.get_seq_length() == 0:
                seen.append(ids.clone())
            return forward(self, *args, **kwargs)

        monkeypatch.setattr(decoder, "forward", watching)
        return seen

    return watch


def starts_of(kind: Kind, folder: Path) -> list[int]:
    """What the decoder is to read before a translation."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return tokenizer.convert_tokens_to_ids([kind.start, *kind.tokens[1:]])


# --- the tokenizer ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WITH_LANGUAGES)
def test_source_and_target_language(bases, name):
    source, target = KINDS[name].languages
    tokenizer = AutoTokenizer.from_pretrained(bases(name))
    (id,) = set_languages(tokenizer, source, target)
    assert tokenizer.convert_ids_to_tokens(id) == KINDS[name].tokens[1]
    first, *_, last = tokenizer(ONE[0])["input_ids"]
    assert tokenizer.convert_ids_to_tokens([first, last]) == [KINDS[name].tokens[0], "</s>"]
    assert set_languages(tokenizer, target, source) != (id,)


@pytest.mark.parametrize(
    ("name", "source", "target", "says"),
    [
        ("nllb", None, None, ("--source_language", "--target_language", "language tokens")),
        ("nllb", "spa_Latn", None, ("--target_language",)),
        ("nllb", "spa_Latn", "eng", ("--target_language", "'eng'", "eng_Latn")),
        ("nllb", "spa_Latn", "<s>", ("--target_language", "'<s>'")),
        ("m2m100", "__es__", "en", ("--source_language", "'__es__'")),
        ("mbart50", "es_XX", "en", ("--target_language", "en_XX")),
        ("marian", None, "en", ("no language tokens", "--target_language", "--prompt_prefix")),
    ],
)
def test_languages_that_do_not_fit_the_tokenizer(bases, name, source, target, says):
    with pytest.raises(UserError) as error:
        set_languages(AutoTokenizer.from_pretrained(bases(name)), source, target)
    assert all(part in str(error.value) for part in says)


def test_mbart_25_is_refused(bases):
    """It has its language at the end of a target, where the decoder starts with it."""
    pieces = [(piece, 0.0) for piece in ["<s>", "<pad>", "</s>", "<unk>", "▁Hola", "es_XX", "en_XX"]]
    with pytest.raises(UserError, match="in front"):
        set_languages(MBartTokenizer(vocab=pieces), "es_XX", "en_XX")


def test_other_tokenizers_need_no_language():
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINTS / "tiny-mt5")
    before = tokenizer(ONE[0])["input_ids"]
    assert set_languages(tokenizer, None, None) == () and tokenizer(ONE[0])["input_ids"] == before


@pytest.mark.parametrize("name", KINDS)
def test_every_character_belongs_to_a_sampled_token(bases, name):
    tokenizer = AutoTokenizer.from_pretrained(bases(name))
    torch.manual_seed(0)
    for ids in torch.randint(len(tokenizer), (20, 12)).tolist():
        text, offsets = token_offsets(tokenizer, ids)
        assert text == tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert len(offsets) == len(ids) and {k for start, end in offsets for k in range(start, end)} >= set(
            range(len(text))
        )


# --- the scripts -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> dict:
    """Flags of train_ppo.py, with the files of pairs."""
    folder = tmp_path_factory.mktemp("languages_world")
    shutil.copytree(CHECKPOINTS / "tiny-ultrarm", folder / "holistic")
    files = {part: write_pairs(folder / f"{part}.jsonl", PAIRS[:4]) for part in ("train_file", "dev_file", "test_file")}
    return files | {
        "holistic_model": folder / "holistic",
        "grammar_backend": "rules",
        "dtype": "float32",
        "max_len": 16,
        "batch_size": 4,
        "mini_batch_size": 2,
        "gradient_accumulation_steps": 1,
        "report_to": "none",
        "eval_interval": 2,
    }


def test_the_defaults_are_those_of_the_published_runs():
    parsed = [
        load_script("MT/train_ppo.py").parse_args(["--save_dir", "x"]),
        load_script("MT/train_sft.py").parse_args(["--save_dir", "x"]),
        load_script("MT/eval_sft.py").parse_args([]),
        calibrate.parse_args(words_of({"task": "mt", "policy_ckpt": "x", "prompts": "x", "save_path": "x"})),
    ]
    for args in parsed:
        assert args.prompt_prefix == "translate Spanish to English: "
        assert args.source_language is None and args.target_language is None


@pytest.mark.parametrize("script", ["train_ppo", "train_sft", "eval_sft", "calibrate"])
def test_a_wrong_language_is_one_line_before_any_model_loads(bases, world, tmp_path, script, capfd, fresh_accelerate):
    policy = shutil.copytree(bases("nllb"), tmp_path / "policy")
    (policy / "model.safetensors").unlink()
    out, pairs = tmp_path / "out", world["train_file"]
    main = calibrate.main if script == "calibrate" else load_script(f"MT/{script}.py").main
    flags = {
        "train_ppo": world | {"policy_ckpt": policy, "save_dir": out},
        "train_sft": {"model_path": policy, "save_dir": out, "train_file": pairs, "dev_file": pairs},
        "eval_sft": {"policy_ckpt": policy, "test_file": pairs},
        "calibrate": {"task": "mt", "policy_ckpt": policy, "prompts": pairs, "save_path": out, "rewards": "length"},
    }[script]
    line = refused(main, words_of(flags | {"source_language": "spa_Latn", "target_language": "english"}), capfd)
    assert "'english'" in line and "--target_language" in line and str(policy) in line
    forget_accelerate()
    assert "--source_language" in refused(main, words_of(flags), capfd)
    assert not out.exists()


@pytest.mark.parametrize("name", KINDS)
def test_sft_learns_a_pair_that_generation_gives_back(bases, tmp_path, decoded, capfd, name, fresh_accelerate):
    """Training and generation start the decoder alike, and the language takes no place of the translation."""
    kind, folder = KINDS[name], bases(name)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if kind.languages:
        set_languages(tokenizer, *kind.languages)
    length = len(tokenizer(text_target=ONE[1], add_special_tokens=False)["input_ids"])
    train, dev = write_pairs(tmp_path / "train.jsonl", [ONE] * 64), write_pairs(tmp_path / "dev.jsonl", [ONE])
    flags = {"model_path": folder, "save_dir": tmp_path / "sft", "train_file": train, "dev_file": dev, "lr": 0.01}
    flags |= {"num_epochs": 12, "batch_size": 8, "max_len": length + 1, **kind.flags}
    seen = decoded(folder)
    load_script("MT/train_sft.py").main(words_of(flags))
    said = capfd.readouterr().out
    assert "0 prompts cut" in said and "0 targets" in said and "trained with" not in said
    metrics = json.loads((tmp_path / "sft" / "metrics.json").read_text())
    assert metrics["bleu"] == pytest.approx(100)
    assert metrics["prompt_prefix"] == "" and metrics["target_language"] == kind.flags.get("target_language")
    forget_accelerate()
    out = tmp_path / "out.json"
    # as long as the text alone: with the language among the new tokens the last one would be missing
    flags = {"policy_ckpt": tmp_path / "sft", "test_file": dev, "output": out, "max_len": length, "dtype": "float32"}
    load_script("MT/eval_sft.py").main(words_of(flags | kind.flags))
    assert json.loads(out.read_text())["translations"] == [{"query": ONE[0], "generation": ONE[1], "reference": ONE[1]}]
    forget_accelerate()
    assert "trained with" not in capfd.readouterr().out
    flags = {"policy_ckpt": tmp_path / "sft", "test_file": dev, "max_len": length, "dtype": "float32"}
    load_script("MT/eval_sft.py").main(words_of(flags | kind.flags | {"prompt_prefix": "es: "}))
    assert "trained with --prompt_prefix '' instead of 'es: '" in capfd.readouterr().out
    starts = starts_of(kind, folder)
    assert len(seen) > 40 and all(row[: len(starts)] == starts for ids in seen for row in ids.tolist())


@pytest.mark.parametrize("name", KINDS)
def test_ppo_trains_and_its_policy_translates(bases, world, tmp_path, decoded, capfd, name, fresh_accelerate):
    kind, folder = KINDS[name], bases(name)
    starts = starts_of(kind, folder)
    seen = decoded(folder)
    train_ppo = load_script("MT/train_ppo.py").main
    flags, run = world | kind.flags | {"policy_ckpt": folder}, tmp_path / "run"

    def check_starts() -> int:
        """-> the most tokens that the decoder read at once"""
        assert seen and all(row[: len(starts)] == starts for ids in seen for row in ids.tolist())
        longest = max(ids.shape[1] for ids in seen)
        seen.clear()
        forget_accelerate()
        return longest

    train_ppo(words_of(flags | {"save_dir": run, "max_steps": 2}))
    rows = train_rows(run)
    assert len(rows) == 2 and rows[0]["kl"] == pytest.approx(0, abs=1e-5) != rows[1]["kl"]
    # responses of 16 tokens: the decoder read them but for the last, after what it starts with
    assert check_starts() == len(starts) + 15
    assert json.loads((run / "run.json").read_text()).items() >= kind.flags.items()

    out = tmp_path / "out.json"
    capfd.readouterr()
    train_ppo(["--test", *words_of(flags | {"policy_ckpt": run, "save_dir": out})])
    check_starts()
    written = json.loads(out.read_text())
    assert sorted(row["query"] for row in written) == sorted(es for es, _ in PAIRS[:4])
    assert all(row["response_length"] <= 16 and not {*kind.tokens} & {*row["generation"].split()} for row in written)
    assert "was trained with" not in capfd.readouterr().out

    scores = tmp_path / "scores.json"
    given = kind.flags | {"policy_ckpt": run, "test_file": world["test_file"], "max_len": 16, "dtype": "float32"}
    load_script("MT/eval_sft.py").main(words_of(given | {"output": scores}))
    check_starts()
    greedy = {row["query"]: row["generation"] for row in json.loads(scores.read_text())["translations"]}
    assert greedy == {row["query"]: row["generation"] for row in written}

    calibration = tmp_path / "calibration.json"
    given = kind.flags | {"task": "mt", "policy_ckpt": folder, "prompts": world["test_file"], "dtype": "float32"}
    given |= {"rewards": "length,readability", "max_generated_len": 16, "max_input_len": 16, "save_path": calibration}
    calibrate.main(words_of(given))
    check_starts()
    assert json.loads(calibration.read_text())["settings"].items() >= kind.flags.items()

    shown = {name: flags[name] for name in ("holistic_model", "grammar_backend", "dtype", *kind.flags)}
    given = {"task_type": "mt", "generations": out, "policy_ckpt": run}
    load_script("eval/inspect_rewards.py").main(words_of(given | shown))
    forget_accelerate()

    # the same with other flags: refused if it is the same run, else a warning
    other = {"target_language": kind.languages[0]} if kind.languages else {"prompt_prefix": "translate: "}
    ((flag, value),) = other.items()
    line = refused(train_ppo, ["--resume", *words_of(flags | {"save_dir": run, "max_steps": 3} | other)], capfd)
    assert f"--{flag} is {value}" in line
    forget_accelerate()
    given = {"policy_ckpt": run, "save_dir": tmp_path / "other.json", "calibration": calibration}
    train_ppo(["--test", *words_of(flags | given | other)])
    said = [line for line in capfd.readouterr().out.splitlines() if f"--{flag} " in line]
    assert [line.split(":")[0] for line in said] == ["note", "warning"] and all(value in line for line in said)


def test_a_marian_file_that_forbids_tokens_changes_no_translation(bases, world, tmp_path, capfd, fresh_accelerate):
    """Files of opus-mt hold bad_words_ids: generation depends on weights and flags alone."""
    tokenizer = AutoTokenizer.from_pretrained(bases("marian"))
    policy = shutil.copytree(bases("marian"), tmp_path / "policy")
    main, found = load_script("MT/eval_sft.py").main, []
    for out in (tmp_path / "plain.json", tmp_path / "forbidden.json"):
        flags = {"policy_ckpt": policy, "test_file": world["test_file"], "max_len": 8, "dtype": "float32"}
        main(words_of(flags | {"output": out, "prompt_prefix": ""}))
        found.append(json.loads(out.read_text())["translations"])
        lines = [line for line in capfd.readouterr().out.splitlines() if "are not used" in line]
        used = {id for row in found[0] for id in tokenizer(text_target=row["generation"])["input_ids"]}
        file = policy / "generation_config.json"
        forbidden = [[id] for id in {*used, tokenizer.pad_token_id} - {tokenizer.eos_token_id}]
        file.write_text(json.dumps(json.loads(file.read_text()) | {"bad_words_ids": forbidden}))
    assert found[0] == found[1] and any(row["generation"] for row in found[0])
    assert len(lines) == 1 and "bad_words_ids=" in lines[0]


def test_what_a_file_does_not_keep_is_not_compared():
    args = argparse.Namespace(prompt_prefix="", source_language="es", target_language="en")
    assert differences({"source_language": "es"}, args) == [] == differences([], args)
    (one,) = differences({"source_language": "pt", "target_language": "en"}, args)
    assert "--source_language 'pt'" in one and "'es'" in one
