"""A task from a file, with function aspects, through every command: an encoder-decoder and a decoder-only policy."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from common.test_prompts import CHATML
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from alarm import calibrate, plot_run, train_ppo, train_sft
from alarm.evaluation.generations import read_generations
from alarm.tasks.find import find_task
from alarm.training.generate import generator
from alarm.training.policy import load_policy
from helpers import CHECKPOINTS, FIXTURES, ROOT, forget_accelerate, load_script
from trl.generation import GREEDY

EXAMPLES = ROOT / "examples"
NEWS = [(row["text"], row["headline"]) for row in json.loads((EXAMPLES / "data" / "train.json").read_text())[:8]]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """The task's file, its data, a T5, and a Llama with a chat template whose turns end with a token of their own."""
    folder = tmp_path_factory.mktemp("headlines")
    shutil.copy(EXAMPLES / "headlines.py", folder)
    rows = [{"text": text, "headline": headline} for text, headline in NEWS]
    for name, part in {"train": rows, "dev": rows[:3], "test": rows}.items():
        (folder / f"{name}.json").write_text(json.dumps(part))
    shutil.copytree(FIXTURES / "golden" / "checkpoints" / "tiny-t5", folder / "t5")
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINTS / "tiny-ultrarm")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|user|>", "<|assistant|>", "<|end|>"]})
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(folder / "llama")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    # as chat models have it: the end of a turn beside the end of the text
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|end|>")]
    model.save_pretrained(folder / "llama")
    return folder


def words_of(**flags) -> list[str]:
    return [word for name, value in flags.items() for word in (f"--{name}", str(value))]


def flags_of(world: Path, policy: str) -> list[str]:
    files = {f"{name}_file": world / f"{name}.json" for name in ("train", "dev", "test")}
    sizes = {"batch_size": 4, "mini_batch_size": 2, "lr": 1e-3, "ultra_mean": 0.5, "w_brevity": 1, "w_shouting": 2}
    return words_of(
        task=world / "headlines.py", policy_ckpt=world / policy, dtype="float32", report_to="none", **files, **sizes
    )


@pytest.mark.parametrize("policy", ["t5", "llama"])
def test_a_task_in_one_file_goes_through_every_command(world, policy, tmp_path, fresh_accelerate, capsys):
    flags, run, gens = flags_of(world, policy), tmp_path / "run", tmp_path / "gens"
    train_ppo.main([*flags, "--save_dir", str(run), "--max_steps", "3", "--eval_interval", "2"])
    said = capsys.readouterr().out
    assert ("chat template" in said) == (policy == "llama")
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    steps = [row["train"] for row in rows if "train" in row]
    assert len(steps) == 3 and steps[0]["kl"] == pytest.approx(0, abs=1e-5)
    assert {"brevity", "shouted_words", "holistic_reward", "gate_rate"} <= steps[0].keys()
    settings = json.loads((run / "run.json").read_text())
    assert settings["max_grad_norm"] == 1.0 and settings["inputs"]["hashes"]["task_file"]["files"]
    forget_accelerate()

    for name, more in {"greedy": [], "sampled": ["--test_do_sample"]}.items():
        target = gens / f"{name}.json"
        train_ppo.main([*flags, "--policy_ckpt", str(run), "--test", *more, "--save_dir", str(target)])
        forget_accelerate()
        written = json.loads(target.read_text())
        assert sorted(row["query"] for row in written) == sorted("headline: " + text for text, _ in NEWS)
        assert all("<|" not in row["generation"] and row["response_length"] <= 16 for row in written)
        for row in written:
            assert row["brevity"] == pytest.approx(-len(row["generation"].split()) / 20)
        meta = json.loads((gens / f"{name}.meta.json").read_text())
        assert (meta["task"], meta["seed"]) == ("headlines", 42)
        assert meta["settings"]["sampling"]["do_sample"] is bool(more) and meta["data"]["task"]["files"]
    task = find_task(str(world / "headlines.py"))
    assert read_generations(gens / "greedy.json", task).metrics.keys() == set(task.columns_in_order)

    calibration = tmp_path / "calibration.json"
    shared = {"task": world / "headlines.py", "policy_ckpt": world / policy, "dtype": "float32"}
    calibrate.main(words_of(**shared, prompts=world / "train.json", save_path=calibration))
    assert json.loads(calibration.read_text())["rewards"].keys() == {"holistic", "length", "brevity", "shouting"}
    forget_accelerate()
    calibrated = [word for word in flags if word not in ("--ultra_mean", "0.5")]
    calibrated += words_of(calibration=calibration, threshold_quantile=0.5, max_steps=1, save_dir=tmp_path / "again")
    train_ppo.main(calibrated)
    forget_accelerate()

    task_type = ["--task_type", str(world / "headlines.py")]
    load_script("eval/eval_compare.py").main([*task_type, "--generations_dir", str(gens)])
    results = json.loads((tmp_path / "gens_results" / "eval-results.json").read_text())
    pair = results["greedy"]["sampled"]["shouted_words"]
    assert pair["wins"] + pair["ties"] + pair["losses"] == len(NEWS)
    words = words_of(greedy=gens / "greedy.json", sampled=gens / "sampled.json", output_dir=tmp_path / "chosen")
    load_script("eval/select_rewards.py").main([*task_type, *words])
    assert (tmp_path / "chosen" / "selection.json").is_file()
    words = words_of(generations=gens / "greedy.json", html=tmp_path / "page.html", examples=world / "test.json")
    load_script("eval/inspect_rewards.py").main([*task_type, *flags[2:], *words])
    assert "w_" not in capsys.readouterr().err and "brevity" in (tmp_path / "page.html").read_text()
    plot_run.main(words_of(run_dir=run, task=world / "headlines.py"))
    assert (run / "training.png").stat().st_size > 10_000


@pytest.mark.parametrize("policy", ["t5", "llama"])
def test_supervised_start_learns_an_answer_that_generation_gives_back(world, policy, tmp_path, fresh_accelerate):
    rows = [{"text": NEWS[0][0], "headline": NEWS[0][1]}] * 32
    for name, part in {"train": rows, "dev": rows[:1]}.items():
        # the dev question is another: what dev asks leaves training
        part = [row | {"text": row["text"] + (" again" if name == "dev" else "")} for row in part]
        (tmp_path / f"{name}.json").write_text(json.dumps(part))
    files = {f"{name}_file": tmp_path / f"{name}.json" for name in ("train", "dev")}
    given = {"task": world / "headlines.py", "model_path": world / policy, "save_dir": tmp_path / "sft", **files}
    sizes = {"batch_size": 8, "lr": 2e-2, "num_epochs": 20, "max_generated_len": 24}
    train_sft.main(words_of(**given, **sizes))
    forget_accelerate()
    shutil.copy(tmp_path / "train.json", tmp_path / "test.json")
    out = tmp_path / "out.json"
    words = words_of(
        task=world / "headlines.py", policy_ckpt=tmp_path / "sft", dtype="float32", test_file=tmp_path / "test.json",
        save_dir=out, max_generated_len=24,
    )  # fmt: skip
    train_ppo.main([*words, "--test"])
    assert {row["generation"] for row in json.loads(out.read_text())} == {NEWS[0][1]}


@pytest.mark.parametrize("policy", ["t5", "llama"])
def test_each_prompt_is_answered_alone_as_in_a_batch(world, policy):
    tokenizer = AutoTokenizer.from_pretrained(world / policy)
    model = load_policy(str(world / policy), tokenizer, "float32")
    answer = generator(model, tokenizer, **GREEDY, max_new_tokens=9)
    queries = [torch.tensor(tokenizer(text)["input_ids"]) for text, _ in NEWS[:5]]
    together = answer(queries)
    assert [ids.tolist() for ids in together] == [answer([query])[0].tolist() for query in queries]


def test_no_lora_trains_the_base_and_saves_a_whole_model(world, tmp_path, fresh_accelerate):
    run = tmp_path / "run"
    train_ppo.main([*flags_of(world, "llama"), "--no_lora", "--max_steps", "1", "--save_dir", str(run)])
    assert (run / "policy" / "config.json").is_file() and not (run / "policy" / "adapter_config.json").exists()
