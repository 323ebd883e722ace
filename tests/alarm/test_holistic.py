"""Holistic reward models: layouts, reading position, truncation, bad checkpoints."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoTokenizer,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from alarm.errors import UserError
from alarm.holistic import HolisticModel, LlamaRewardModel
from helpers import CHECKPOINTS, GOLDEN

ULTRARM = CHECKPOINTS / "tiny-ultrarm"


@pytest.fixture(scope="module")
def model() -> HolisticModel:
    return HolisticModel.load(ULTRARM)


def prompt_and_answer(text: str) -> list[str]:
    return text.removeprefix("Human: ").rsplit("\nAssistant: ", 1)


@pytest.mark.parametrize("folder", GOLDEN)
def test_golden_scores(folder: Path):
    model = HolisticModel.load(folder / "checkpoints" / "tiny-ultrarm")
    arrays, meta = np.load(folder / "llama_rm.npz"), json.loads((folder / "llama_rm.json").read_text())
    worst = {}
    with torch.inference_mode():
        for side, prefix in [("right", ""), ("left", "left_")]:
            found = model.model(
                torch.tensor(arrays[f"{prefix}input_ids"]), torch.tensor(arrays[f"{prefix}attention_mask"])
            )
            worst[side] = np.abs(found.numpy() - arrays[f"rewards_{side}_pad"]).max()
    prompts, answers = zip(*map(prompt_and_answer, meta["texts"]), strict=True)
    assert model.encode(list(prompts), list(answers), 1230) == meta["single_ids"]
    singles = model.score(list(prompts), list(answers), max_length=1230, batch_size=5)
    worst["single"] = np.abs(singles.numpy() - arrays["rewards_single"]).max()
    print("llama_rm: largest differences", {name: f"{value:.1e}" for name, value in worst.items()})
    assert max(worst.values()) < 1e-5
    assert model.truncated == 0


def test_order_and_batch_mates_change_nothing(model):
    prompts = ["Why?", "What is the longest river of them all?", "Who?"]
    answers = ["Because it is.", "No", "A man who lived a long time ago. " * 5]
    together = model.score(prompts, answers, 1230, 3)
    alone = torch.cat([model.score([p], [a], 1230, 1) for p, a in zip(prompts, answers, strict=True)])
    backwards = model.score(prompts[::-1], answers[::-1], 1230, 2).flip(0)
    assert together.dtype == torch.float32
    assert torch.allclose(together, alone, atol=1e-5)
    assert torch.allclose(together, backwards, atol=1e-5)
    assert len(set(together.tolist())) == 3
    assert model.score([], [], 1230, 3).shape == (0,)


def test_a_long_prompt_loses_its_tail_and_the_answer_stays_whole():
    model = HolisticModel.load(ULTRARM)
    prompt, answer = "one two three four five six seven. " * 20, "The answer is forty-two."
    [whole] = model.encode([prompt], [answer], 10_000)
    assert model.truncated == 0
    [cut] = model.encode([prompt], [answer], 60)
    assert model.truncated == 1
    assert len(cut) == 60
    text = model.tokenizer.decode(cut, skip_special_tokens=True)
    assert text.endswith("\nAssistant: The answer is forty-two.")
    assert text.startswith("Human: one two three")
    keep = next(k for k in range(60) if cut[k] != whole[k])
    assert cut == whole[:keep] + whole[keep + len(whole) - 60 :]  # one piece taken out, nothing re-tokenised


def test_an_answer_longer_than_the_limit_loses_its_tail():
    model = HolisticModel.load(ULTRARM)
    [cut] = model.encode(["Why?"], ["one two three four five six seven. " * 20], 40)
    assert len(cut) == 40
    assert "\nAssistant: one two three" in model.tokenizer.decode(cut)
    assert "Why" not in model.tokenizer.decode(cut)
    assert model.truncated == 1


def test_the_position_limit_of_the_model_holds(tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINTS / "tiny-comp_rm", model_max_length=10_000)
    tokenizer.save_pretrained(tmp_path)
    config = RobertaConfig(
        vocab_size=4000,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=66,
        num_labels=1,
    )
    RobertaForSequenceClassification(config).save_pretrained(tmp_path)
    model = HolisticModel.load(tmp_path)
    [row] = model.encode(["word " * 300], ["A short answer."], 1230)
    assert len(row) == 64  # two positions lie before the first token
    assert row[-1] == tokenizer.sep_token_id  # closing special token kept
    assert tokenizer.decode(row).endswith("Assistant: A short answer.</s>")
    assert model.score(["word " * 300], ["A short answer."], 1230, 4).isfinite().all()


def llama_classifier(folder: Path) -> Path:
    config = HolisticModel.load(ULTRARM).model.config
    config.num_labels = 1
    torch.manual_seed(0)
    LlamaForSequenceClassification(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(ULTRARM).save_pretrained(folder)
    return folder


def gpt2_classifier(folder: Path) -> Path:
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINTS / "tiny-comp_rm")
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=4000, n_positions=128, n_embd=16, n_layer=1, n_head=2, num_labels=1)
    GPT2ForSequenceClassification(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("build", [llama_classifier, gpt2_classifier])
def test_decoder_only_sequence_classifiers(build, tmp_path):
    """They look for the last real token by the padding id, which such checkpoints often lack."""
    model = HolisticModel.load(build(tmp_path))
    prompts, answers = ["Why?", "What is the longest river?"], ["No", "The Amazon, or the Nile, or neither of them."]
    together = model.score(prompts, answers, 128, 2)
    alone = torch.cat([model.score([p], [a], 128, 1) for p, a in zip(prompts, answers, strict=True)])
    assert torch.allclose(together, alone, atol=1e-5)


def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(ULTRARM, tmp_path / "model"))


def test_sharded_pytorch_weights_load(tmp_path, model):
    """The published UltraRM is a set of pytorch_model-*.bin shards."""
    folder = copy(tmp_path)
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names, index = sorted(weights), {}
    for number, part in enumerate([names[::2], names[1::2]], start=1):
        file = f"pytorch_model-0000{number}-of-00002.bin"
        torch.save({name: weights[name] for name in part}, folder / file)
        index |= dict.fromkeys(part, file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    assert torch.equal(HolisticModel.load(folder).score(["a"], ["b"], 99, 1), model.score(["a"], ["b"], 99, 1))


def test_bfloat16_reads_out_in_float32(model):
    low = HolisticModel.load(ULTRARM, dtype="bfloat16")
    assert low.model.dtype == torch.bfloat16
    prompts, answers = ["Why?"] * 4, ["Because.", "No one knows why.", "Yes", "It is a long story."]
    scores = low.score(prompts, answers, 99, 4)
    assert scores.dtype == torch.float32
    assert not torch.equal(scores, scores.bfloat16().float())  # finer than a bfloat16 read-out
    assert torch.allclose(scores, model.score(prompts, answers, 99, 4), atol=0.1)


def test_missing_weights_are_named(tmp_path):
    folder = copy(tmp_path)
    weights = load_file(folder / "model.safetensors")
    del weights["regression_head.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"regression_head\.weight"):
        HolisticModel.load(folder)


def test_a_language_model_is_no_reward_model(tmp_path):
    shutil.copytree(CHECKPOINTS / "small-t5-tokenizer", tmp_path, dirs_exist_ok=True)
    with pytest.raises(UserError, match=str(tmp_path)):
        HolisticModel.load(tmp_path)


def test_more_than_one_label_is_refused():
    with pytest.raises(UserError, match="3 labels"):
        HolisticModel.load(CHECKPOINTS / "tiny-rel_rm")


@pytest.mark.parametrize("damage", ["absent", "no config", "no weights", "broken weights", "no tokenizer"])
def test_damaged_folders_are_one_line(tmp_path, damage):
    folder = copy(tmp_path)
    if damage == "absent":
        shutil.rmtree(folder)
    elif damage == "broken weights":
        (folder / "model.safetensors").write_bytes(b"not weights")
    else:
        patterns = {"no config": "config.json", "no weights": "model.safetensors", "no tokenizer": "*token*"}
        for file in folder.glob(patterns[damage]):
            file.unlink()
    with pytest.raises(UserError) as error:
        HolisticModel.load(folder)
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)


def test_the_layout_round_trips(tmp_path, model):
    assert isinstance(model.model, LlamaRewardModel)
    model.model.save_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["LlamaRewardModel"]
    assert torch.equal(HolisticModel.load(tmp_path).score(["a"], ["b"], 99, 1), model.score(["a"], ["b"], 99, 1))
