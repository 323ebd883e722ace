"""The scripts in MT/ as a user runs them, on tiny real models."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, MarianConfig, MarianMTModel

from alarm.common.errors import UserError
from alarm.evaluation.generations import read_generations
from alarm.tasks.find import find_task
from alarm.tasks.mt.grammar.checker import LanguageToolChecker
from alarm.tasks.mt.grammar.server import find_installation
from helpers import CHECKPOINTS, ROOT, forget_accelerate, load_script

PAIRS = [
    ("El cielo es azul.", "The sky is blue."),
    ("No hace falta que hagas eso.", "You don't need to do that."),
    ("¿Dónde está la biblioteca?", "Where is the library?"),
    ("Ella tiene dos hermanos.", "She has two brothers."),
    ("Mañana iremos a la playa.", "We will go to the beach tomorrow."),
    ("Me gusta leer por la noche.", "I like to read at night."),
    ("El perro come una manzana.", "The dog eats an apple."),
    ("Hace mucho frío hoy.", "It is very cold today."),
    ("Quiero aprender a cocinar.", "I want to learn to cook."),
    ("Él no sabe nadar.", "He can't swim."),
    ("La puerta está abierta.", "The door is open."),
    ("Compré un libro nuevo.", "I bought a new book."),
]


@dataclass(frozen=True)
class World:
    folder: Path
    files: list[str]  # --train_file, --dev_file, --test_file
    flags: list[str]  # all that train_ppo.py needs to run on tiny models


def write_pairs(path: Path, pairs: list[tuple[str, str]]) -> Path:
    rows = [{"translation": {"es": es, "en": en}} for es, en in pairs]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


def words_of(flags: dict) -> list[str]:
    return [word for flag, value in flags.items() for word in (f"--{flag}", str(value))]


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> World:
    folder = tmp_path_factory.mktemp("mt_world")
    shutil.copytree(CHECKPOINTS / "tiny-mt5", folder / "policy")
    shutil.copytree(CHECKPOINTS / "tiny-ultrarm", folder / "holistic")
    parts = {"train": PAIRS[:8], "dev": PAIRS[8:], "test": PAIRS}
    files = words_of({f"{name}_file": write_pairs(folder / f"{name}.jsonl", part) for name, part in parts.items()})
    flags = {
        "policy_ckpt": folder / "policy",
        "holistic_model": folder / "holistic",
        "grammar_backend": "rules",
        "dtype": "float32",
        "report_to": "none",
        "max_len": 16,
        "batch_size": 4,
        "mini_batch_size": 2,
        "gradient_accumulation_steps": 1,
        # the random holistic model's scores, so that some answers pass the gate and some do not
        "ultra_mean": 0,
        "ultra_std": 1,
        "hierarchical_threshold": 0,
    }
    return World(folder, files, files + words_of(flags))


@pytest.fixture
def train_ppo(fresh_accelerate):
    return load_script("MT/train_ppo.py").main


def train_rows(run: Path) -> list[dict]:
    rows = map(json.loads, (run / "log.jsonl").read_text().splitlines())
    return [{k: v for k, v in row["train"].items() if "time/" not in k} for row in rows if "train" in row]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    files = sorted(folder.glob("*.safetensors"))
    assert len(files) == 2, files
    return {f"{file.name}:{name}": tensor for file in files for name, tensor in load_file(file).items()}


def refused(main, flags, capfd) -> str:
    """The one line that a refused call prints."""
    capfd.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main(flags)
    assert stopped.value.code == 2
    said = capfd.readouterr().err
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in said
    return lines[0]


# --- train_ppo.py ----------------------------------------------------------------------------------------------------


def test_defaults_are_the_published_ones():
    args = load_script("MT/train_ppo.py").parse_args(["--save_dir", "x"])
    expected = {
        "policy_ckpt": "halfrot/sft-mt5-base",
        "reward_type": "hierarchical",
        "w_read": 1,
        "w_grammar": 1,
        "w_confidence": 1,
        "hierarchical_threshold": 0.5,
        "holistic_reward_weight": 3,
        "lr": 5e-4,
        "max_len": 128,
        "episodes": 50,
        "batch_size": 32,
        "mini_batch_size": 16,
        "gradient_accumulation_steps": 2,
        "kl_threshold": 0.1,
        "n_ppo_epoch_per_rollout": 4,
        "eval_interval": 5,
        "eval_batch_size": 256,
        "rm_max_batch_size": 32,
        "ultra_mean": -2.34417221913525,
        "ultra_std": 2.946283030347152,
        "length_mean": 36.69312107831745,
        "readability_mean": 11.19907041598879,
        "readability_std": 6.04405504045225,
        "grammar_correct_reward": 0,
        "grammar_incorrect_reward": -1,
        "grammar_backend": "languagetool",
        "grammar_server": None,
        "holistic_model": "openbmb/UltraRM-13b",
        "train_file": None,
        "seed": 42,
    }
    assert {name: getattr(args, name) for name in expected} == expected


@pytest.mark.parametrize("test", [False, True])
def test_the_published_commands_end_in_one_line_where_nothing_can_be_downloaded(train_ppo, tmp_path, capfd, test):
    words = "--sigmoid_shaping --reward_type hierarchical --w_read 0 --w_grammar 1 --w_confidence 0 --seed 42".split()
    if test:
        words += ["--run_name", "test_hierarchical", "--save_dir", str(tmp_path / "hierarchical.json"), "--test"]
        words += ["--policy_ckpt", "halfrot/sft-mt5-base", "--batch_size", "256"]
    else:
        words += ["--run_name", "hierarchical", "--save_dir", str(tmp_path / "hierarchical")]
    # with LanguageTool or without
    line = refused(train_ppo, words, capfd)
    assert "Helsinki-NLP/europarl cannot be loaded" in line or "LanguageTool" in line
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("reward_type", ["hierarchical", "holistic_only", "aspect_only", "weighted_sum"])
def test_trains_by_each_reward_type(world, train_ppo, tmp_path, capfd, caplog, reward_type):
    run = tmp_path / "run"
    words = [*world.flags, "--reward_type", reward_type, "--sigmoid_shaping", "--episodes", "2", "--eval_interval", "2"]
    train_ppo([*words, "--save_dir", str(run)])
    rows = train_rows(run)
    assert len(rows) == 2
    aspects = {"readability", "language_confidence", "grammar_errors", "error_rate"}
    assert (aspects <= rows[0].keys()) == (reward_type != "holistic_only")
    dev = [row["dev"] for row in map(json.loads, (run / "log.jsonl").read_text().splitlines()) if "dev" in row]
    assert len(dev) == 2 and all(aspects <= row.keys() for row in dev)
    # B starts at zero
    assert any(tensor.abs().max() > 0 for name, tensor in weights(run / "policy").items() if "lora_B" in name)
    assert "GRAMMAR STAND-IN" in caplog.text and "total_reward" in capfd.readouterr().out


def test_generation_file_is_what_the_comparison_reads(world, train_ppo, tmp_path, capfd):
    out = tmp_path / "generations" / "sft.json"
    train_ppo([*world.flags, "--test", "--batch_size", "5", "--save_dir", str(out)])
    rows = json.loads(out.read_text())
    assert [row["query"] for row in rows] == sorted(f"translate Spanish to English: {es}" for es, _ in PAIRS)
    assert set(rows[0]) == {
        "query",
        "generation",
        "holistic_reward",
        "response_length",
        "readability",
        "language_confidence",
        "grammar_errors",
        "error_rate",
    }
    for row in rows:
        assert row["error_rate"] == pytest.approx(row["grammar_errors"] / row["response_length"])
        assert 0 <= row["language_confidence"] <= 1
    assert read_generations(out, find_task("mt")).metrics["error_rate"].shape == (len(PAIRS),)
    line = refused(train_ppo, [*world.flags, "--test", "--save_dir", str(out)], capfd)
    assert "--overwrite" in line and json.loads(out.read_text()) == rows


def test_test_obeys_the_batch_size(world, train_ppo, tmp_path, monkeypatch):
    import alarm.training.evaluate

    sizes = []

    def counting(generate, tokenizer, prompts):
        sizes.append(len(prompts))
        return sample_rollout(generate, tokenizer, prompts)

    sample_rollout = alarm.training.evaluate.sample_rollout
    monkeypatch.setattr(alarm.training.evaluate, "sample_rollout", counting)
    train_ppo([*world.flags, "--test", "--batch_size", "7", "--save_dir", str(tmp_path / "out.json")])
    assert sizes == [7, 5]


def test_resumed_run_is_the_undisturbed_one(world, train_ppo, tmp_path, capfd):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    flags = [*world.flags, "--w_read", "0", "--w_confidence", "0", "--eval_interval", "0", "--checkpoint_interval", "1"]
    for folder, steps in ((whole, 3), (parts, 2), (parts, 3)):
        train_ppo([*flags, "--resume", "--max_steps", str(steps), "--save_dir", str(folder)])
        forget_accelerate()
    assert train_rows(whole) == train_rows(parts) and len(train_rows(whole)) == 3
    ours, theirs = weights(whole / "policy"), weights(parts / "policy")
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    # only the grammar aspect weighs anything, so the others were not computed
    assert "error_rate" in train_rows(whole)[0] and "readability" not in train_rows(whole)[0]


def test_a_resumed_run_refuses_other_data_and_models(world, train_ppo, tmp_path, capfd):
    """Files, the splits of a data set, the holistic model."""
    holistic = shutil.copytree(world.folder / "holistic", tmp_path / "holistic")
    data = write_pairs(tmp_path / "data.jsonl", PAIRS)
    dev = write_pairs(tmp_path / "dev.jsonl", PAIRS[:2])
    run = tmp_path / "run"
    flags = [*world.flags[len(world.files) :], "--holistic_model", str(holistic), "--dataset", str(data)]
    flags += ["--dev_file", str(dev), "--max_steps", "1", "--eval_interval", "0", "--save_dir", str(run), "--resume"]
    train_ppo(flags)
    for file, changed, name in (
        (dev, write_pairs(tmp_path / "other.jsonl", PAIRS[2:4]), "--dev_file"),
        (data, write_pairs(tmp_path / "fewer.jsonl", PAIRS[1:]), "--dataset (train)"),
        (holistic / "config.json", world.folder / "policy" / "config.json", "--holistic_model"),
    ):
        whole = file.read_bytes()
        shutil.copy(changed, file)
        line = refused(train_ppo, flags, capfd)
        assert name in line and "--resume_anyway" in line
        file.write_bytes(whole)
    forget_accelerate()
    train_ppo([*flags[:-1], "--max_steps", "2", "--resume"])
    assert len(train_rows(run)) == 2


def test_a_grammar_service_that_fails_for_good_leaves_a_checkpoint(world, train_ppo, tmp_path, capfd, monkeypatch):
    from alarm.tasks.mt.grammar import GrammarServiceError
    from alarm.tasks.mt.grammar.rules import RulesChecker

    check, calls = RulesChecker.check, []

    def failing(checker, texts):
        calls.append(len(texts))
        if len(calls) == 3:
            raise GrammarServiceError("LanguageTool failed 6 times in a row")
        return check(checker, texts)

    monkeypatch.setattr(RulesChecker, "check", failing)
    run = tmp_path / "run"
    flags = [*world.flags, "--eval_interval", "0", "--checkpoint_interval", "0", "--max_steps", "4"]
    flags += ["--save_dir", str(run), "--resume"]
    assert "6 times in a row" in refused(train_ppo, flags, capfd)
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["2"] and len(train_rows(run)) == 2
    forget_accelerate()
    train_ppo(flags)
    assert len(train_rows(run)) == 4 and calls == [4] * 5


def test_trains_with_the_real_languagetool(world, train_ppo, tmp_path, caplog):
    """Rewards and counts of the server, which ends with the run."""
    import psutil

    try:
        find_installation()
    except UserError as missing:
        pytest.skip(str(missing))
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    words = [*world.flags, "--grammar_backend", "languagetool", "--max_len", "6", "--eval_interval", "0"]
    words += ["--max_steps", "1", "--batch_size", "2", "--mini_batch_size", "1", "--save_dir", str(tmp_path / "run")]
    train_ppo(words)
    (row,) = train_rows(tmp_path / "run")
    assert row["grammar_errors"] > 0  # random tokens
    assert "GRAMMAR STAND-IN" not in caplog.text
    left = {child for child in psutil.Process().children(recursive=True) if child.pid not in before}
    _, alive = psutil.wait_procs(left, timeout=10)
    assert not [child for child in alive if "java" in " ".join(child.cmdline())]


@pytest.mark.slow
def test_java_killed_twice_during_training_changes_no_reward(world, train_ppo, tmp_path, monkeypatch):
    """The real server dies as steps 2 and 3 ask for checks; the run and its rewards are those of one left alone."""
    import psutil

    try:
        find_installation()
    except UserError as missing:
        pytest.skip(str(missing))
    words = [*world.flags, "--grammar_backend", "languagetool", "--max_len", "6", "--eval_interval", "0"]
    words += ["--max_steps", "3", "--batch_size", "4", "--mini_batch_size", "2", "--gradient_accumulation_steps", "1"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train_ppo([*words, "--save_dir", str(whole)])
    forget_accelerate()

    check, deaths = LanguageToolChecker.check, []

    def after_a_death(checker, texts):
        servers = [p for p in psutil.Process().children(recursive=True) if p.name() == "java"]
        for server in servers if len(deaths) < 2 else []:
            server.kill()
            deaths.append(server.pid)
        return check(checker, texts)

    monkeypatch.setattr(LanguageToolChecker, "check", after_a_death)
    train_ppo([*words, "--save_dir", str(killed)])
    assert len(set(deaths)) == 2

    def untimed(run: Path) -> list[dict]:
        return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in train_rows(run)]

    assert untimed(killed) == untimed(whole)
    ours, theirs = weights(killed / "policy"), weights(whole / "policy")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([], "no rows"),
        ([{"es": "Hola.", "en": "Hello."}], "'es' or 'en'"),
        ([{"translation": {"es": "Hola."}}, {"translation": {"en": "Hello."}}], "all 2 are"),
        ([{"translation": "Hola."}], "'es' or 'en'"),
        ([["Hola.", "Hello."]], "row 1"),
    ],
)
def test_bad_data_ends_in_one_line(world, train_ppo, tmp_path, capfd, rows, says):
    file = tmp_path / "train.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = [*world.flags, "--train_file", str(file), "--save_dir", str(tmp_path / "run")]
    line = refused(train_ppo, flags, capfd)
    assert says in line and str(file) in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (["--train_file", "nowhere.jsonl"], "nowhere.jsonl does not exist"),
        (["--grammar_server", "http://localhost:1"], "--grammar_server"),
        (["--grammar_backend", "languagetool", "--grammar_server", "http://127.0.0.1:9"], "no LanguageTool at"),
        (["--policy_ckpt", "./nowhere"], "no folder ./nowhere"),
        (["--holistic_model", "./nowhere"], "no folder ./nowhere"),
        (["--batch_size", "3"], "multiple"),
        (["--batch_size", "16"], "8"),  # more than the train file holds
    ],
)
def test_bad_flags_end_in_one_line(world, train_ppo, tmp_path, capfd, change, says):
    assert says in refused(train_ppo, [*world.flags, "--save_dir", str(tmp_path / "run"), *change], capfd)
    assert not (tmp_path / "run").exists()


def test_unusable_rows_are_left_out_counted_and_said(world, train_ppo, tmp_path, caplog):
    file = write_pairs(tmp_path / "test.jsonl", PAIRS[:3])
    with open(file, "a") as out:
        out.write('{"translation": {"es": "Hola."}}\n{"translation": {"es": " ", "en": "Hello."}}\n')
    out = tmp_path / "out.json"
    train_ppo([*world.flags, "--test", "--test_file", str(file), "--save_dir", str(out)])
    assert "left out 2 of 5" in caplog.text
    assert len(json.loads(out.read_text())) == 3


# --- train_sft.py, eval_sft.py ---------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def sft(world) -> Path:
    """A folder written by train_sft.py."""
    folder = world.folder / "sft"
    flags = {"model_path": world.folder / "policy", "save_dir": folder, "max_steps": 2, "batch_size": 4, "max_len": 16}
    load_script("MT/train_sft.py").main([*world.files[:4], *words_of(flags)])
    forget_accelerate()
    return folder


def test_sft_keeps_the_best_epoch_and_its_scores(sft):
    metrics = json.loads((sft / "metrics.json").read_text())
    assert [row["step"] for row in metrics["epochs"]] == [2]
    assert 0 <= metrics["bleu"] <= 100 and 0 <= metrics["chrf"] <= 100
    before = load_file(CHECKPOINTS / "tiny-mt5" / "model.safetensors")
    assert any(not torch.equal(tensor, before[name]) for name, tensor in load_file(sft / "model.safetensors").items())


def test_eval_sft_measures_a_folder_of_sft(world, sft, tmp_path, capfd, fresh_accelerate):
    out = tmp_path / "scores.json"
    main = load_script("MT/eval_sft.py").main
    flags = words_of({"policy_ckpt": sft, "test_file": world.folder / "dev.jsonl", "output": out, "max_len": 16})
    main([*flags, "--dtype", "float32", "--batch_size", "3"])
    found = json.loads(out.read_text())
    # the same weights on the same pairs, in other batches
    metrics = json.loads((sft / "metrics.json").read_text())
    assert found["scores"]["translations"]["bleu"] == pytest.approx(metrics["bleu"])
    assert found["scores"]["translations"]["chrf"] == pytest.approx(metrics["chrf"])
    assert [row["reference"] for row in found["translations"]] == [en for _, en in PAIRS[8:]]
    assert set(found["scores"]["references"]) == {"dale_chall", "flesch_kincaid_grade", "flesch_reading_ease"}
    assert "flesch_reading_ease" in capfd.readouterr().out
    assert "--overwrite" in refused(main, flags, capfd)


BENT = {
    "temperature": 0.1,
    "repetition_penalty": 5.0,
    "no_repeat_ngram_size": 1,
    "suppress_tokens": list(range(20, 200)),
    "forced_bos_token_id": 9,
    "forced_eos_token_id": 1,
    "length_penalty": -2.0,
}


def ask_for(folder: Path, **settings) -> None:
    """Add settings to the generation_config.json of a checkpoint."""
    file = folder / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


def test_eval_sft_measures_the_weights_alone(world, sft, tmp_path, capfd, fresh_accelerate):
    bent = shutil.copytree(sft, tmp_path / "bent")
    ask_for(bent, **BENT, do_sample=True, num_beams=3, max_time=1e-9)
    found = {}
    for policy in (sft, bent):
        out = tmp_path / f"{policy.name}.json"
        flags = words_of({"policy_ckpt": policy, "test_file": world.folder / "dev.jsonl", "output": out, "max_len": 16})
        load_script("MT/eval_sft.py").main([*flags, "--dtype", "float32"])
        found[policy] = json.loads(out.read_text())
    assert found[sft]["translations"] == found[bent]["translations"]
    assert found[sft]["scores"] == found[bent]["scores"]
    (line,) = [line for line in capfd.readouterr().out.splitlines() if "are not used" in line]
    assert str(bent) in line and all(f"{name}=" in line for name in (*BENT, "num_beams", "max_time"))


def test_sft_starts_from_the_weights_alone(world, sft, tmp_path, capfd, fresh_accelerate):
    """Its metrics and what it saves do not depend on settings of the base, which may be ones that cannot be saved."""
    base = shutil.copytree(world.folder / "policy", tmp_path / "base")
    ask_for(base, **BENT, eos_token_id=[1, 5])
    out = tmp_path / "out"
    flags = {"model_path": base, "save_dir": out, "max_steps": 2, "batch_size": 4, "max_len": 16}
    load_script("MT/train_sft.py").main([*world.files[:4], *words_of(flags)])
    (line,) = [line for line in capfd.readouterr().out.splitlines() if "are not used" in line]
    assert str(base) in line and all(f"{name}=" in line for name in BENT)
    assert torch.equal(*(load_file(f / "model.safetensors")["shared.weight"] for f in (out, sft)))
    saved = json.loads((out / "generation_config.json").read_text())
    assert not BENT.keys() & saved.keys() and saved["eos_token_id"] == [1, 5]


def test_a_translation_ends_at_every_end_token(tmp_path, fresh_accelerate):
    """A list in the generation config, another id in the config, and the tokenizer's."""
    from transformers import AutoTokenizer

    from alarm.tasks.mt.spec import TASK
    from alarm.training.generate import answer_all
    from alarm.training.policy import load_policy
    from alarm.training.rollout import encode_prompts
    from trl.generation import GREEDY

    folder = str(CHECKPOINTS / "tiny-mt5")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    policy = load_policy(folder, tokenizer, "float32")
    model = policy.pretrained_model
    prompts, _ = encode_prompts(tokenizer, [{"translation": {"es": es}} for es, _ in PAIRS], TASK, 32)
    settings = {"batch_size": 4, "title": "translating", "max_new_tokens": 8, **GREEDY}
    whole = answer_all(policy, tokenizer, prompts, **settings)
    assert tokenizer.eos_token_id == 1

    def greedy(prompt):
        ids = model.generate(input_ids=prompt.ids[None], max_new_tokens=8, do_sample=False)[0, 1:].tolist()
        return ids[: ids.index(1) + 1] if 1 in ids else ids

    ids = [greedy(prompt) for prompt in prompts]
    first, second = ids[0][2], ids[3][1]
    model.config.eos_token_id = first
    model.generation_config.eos_token_id = [1, second]
    cut = [row[: min((row.index(end) + 1 for end in (1, first, second) if end in row), default=None)] for row in ids]
    expected = [tokenizer.decode(row, skip_special_tokens=True, clean_up_tokenization_spaces=False) for row in cut]
    assert answer_all(policy, tokenizer, prompts, **settings) == expected
    assert expected[0] != whole[0] and expected[3] != whole[3]


@pytest.mark.slow
def test_eval_sft_on_two_processes_finds_the_same(world, sft, tmp_path, fresh_accelerate):
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    flags = ["--policy_ckpt", str(sft), *world.files[4:], "--dtype", "float32", "--batch_size", "5", "--max_len", "16"]
    load_script("MT/eval_sft.py").main([*flags, "--output", str(one)])
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "MT/eval_sft.py"]
    done = subprocess.run([*words, *flags, "--output", str(two)], capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr
    assert json.loads(one.read_text()) == json.loads(two.read_text())
    assert len(json.loads(one.read_text())["translations"]) == len(PAIRS)


def test_scores_of_known_texts():
    from alarm.tasks.mt.quality import overlap_scores, readability_scores

    references = [en for _, en in PAIRS]
    assert overlap_scores(references, references) == pytest.approx({"bleu": 100, "chrf": 100})
    assert overlap_scores([""] * len(references), references)["bleu"] == 0
    # 6 words of one syllable in one sentence: .39 * 6 + 11.8 * 1 - 15.59, and 206.835 - 1.015 * 6 - 84.6 * 1
    text = "The cat sat on the mat."
    scores = readability_scores([text])
    assert scores["flesch_kincaid_grade"] == pytest.approx(-1.45, abs=0.06)
    assert scores["flesch_reading_ease"] == pytest.approx(116.145, abs=0.06)
    assert readability_scores([text, ""])["flesch_kincaid_grade"] == pytest.approx((-1.45 - 15.7) / 2, abs=0.06)


def test_a_broken_policy_is_named(world, tmp_path, capfd, fresh_accelerate):
    from safetensors.torch import save_file

    policy = shutil.copytree(world.folder / "policy", tmp_path / "policy")
    tensors = load_file(policy / "model.safetensors")
    lost = "decoder.block.1.layer.0.SelfAttention.q.weight"
    del tensors[lost]
    save_file(tensors, policy / "model.safetensors", metadata={"format": "pt"})
    main = load_script("MT/eval_sft.py").main
    assert lost in refused(main, ["--policy_ckpt", str(policy), *world.files[4:]], capfd)


# --- all three -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", ["train_ppo.py", "train_sft.py", "eval_sft.py"])
def test_help_loads_nothing_heavy(script):
    code = (
        "import runpy, sys\nsys.argv = [sys.argv[1], '--help']\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'spacy', 'lingua', 'textstat', 'sacrebleu', 'datasets'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    words = [sys.executable, "-c", code, str(ROOT / "MT" / script)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "(default: " in done.stdout


def test_a_marian_policy_trains_and_translates(world, train_ppo, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(world.folder / "policy")
    config = MarianConfig(
        vocab_size=len(tokenizer), d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, max_position_embeddings=64,
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id, forced_eos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    MarianMTModel(config).save_pretrained(tmp_path / "marian")
    tokenizer.save_pretrained(tmp_path / "marian")
    flags = [*world.flags, "--policy_ckpt", str(tmp_path / "marian"), "--lora_targets", "q_proj, v_proj"]
    train_ppo([*flags, "--save_dir", str(tmp_path / "run"), "--max_steps", "2"])
    assert len(train_rows(tmp_path / "run")) == 2
    assert '"lora_targets": "q_proj, v_proj"' in (tmp_path / "run" / "run.json").read_text()
    adapter = json.loads((tmp_path / "run" / "policy" / "adapter_config.json").read_text())
    assert sorted(adapter["target_modules"]) == ["q_proj", "v_proj"]
    forget_accelerate()
    out = tmp_path / "out.json"
    flags = [*world.flags, "--policy_ckpt", str(tmp_path / "run"), "--test", "--save_dir", str(out)]
    train_ppo(flags)
    assert len(json.loads(out.read_text())) == len(PAIRS)
