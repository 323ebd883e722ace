"""Holistic reward models: layouts, reading position, truncation, bad checkpoints."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    CTRLConfig,
    CTRLForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    Qwen2Config,
    Qwen2ForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from alarm.common.errors import UserError
from alarm.models.holistic import HolisticModel, LlamaRewardModel
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


SIZES = {"vocab_size": 1032, "num_labels": 1, "bos_token_id": 1, "eos_token_id": 2}
SMALL = SIZES | {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
DECODERS = {
    LlamaForSequenceClassification: LlamaConfig(**SMALL),
    Qwen2ForSequenceClassification: Qwen2Config(**SMALL, num_key_value_heads=2),
    GPT2ForSequenceClassification: GPT2Config(**SIZES, n_positions=256, n_embd=16, n_layer=1, n_head=2),
    # its head has another name
    CTRLForSequenceClassification: CTRLConfig(**SIZES, n_positions=256, n_embd=16, dff=16, n_layer=1, n_head=2),
}


def closed_texts(folder: Path, pad: str | None, build=LlamaForSequenceClassification) -> Path:
    """A classifier whose tokenizer ends each text with EOS, and pads with `pad`."""
    tokenizer = AutoTokenizer.from_pretrained(ULTRARM)
    ends = [("<s>", tokenizer.bos_token_id), ("</s>", tokenizer.eos_token_id)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    tokenizer.pad_token = pad
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = copy.deepcopy(DECODERS[build])
    config.pad_token_id = tokenizer.pad_token_id
    model = build(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)  # an EOS embedding too, which is zero if it pads
    model.save_pretrained(folder)
    return folder


def read_alone(folder: Path, build, rows: list[list[int]], at: int = -1) -> list[float]:
    """The head's value at the last token of each row, or another, without padding and the classifier's own reading."""
    model = build.from_pretrained(folder).eval()
    head = next(part for part in model.children() if isinstance(part, torch.nn.Linear))
    with torch.inference_mode():
        return [head(model.base_model(torch.tensor([row])).last_hidden_state[0, at]).item() for row in rows]


@pytest.mark.parametrize("build", DECODERS)
@pytest.mark.parametrize("pad", [None, "</s>", "<unk>"])
def test_a_classifier_is_read_at_its_last_real_token(build, pad, tmp_path):
    """Also if that token is the padding id, as EOS is where nothing else pads, or if the text ends in it."""
    folder = closed_texts(tmp_path, pad, build)
    model = HolisticModel.load(folder)
    saved = (folder / "config.json").read_text()
    answers = ["Because.", "Because short waves scatter more than long ones.", "It ends<unk><unk>", "So</s></s>"]
    prompts = ["Why is the sky blue?"] * len(answers)
    rows = model.encode(prompts, answers, 200)
    assert {row[-1] for row in rows} == {model.tokenizer.eos_token_id}
    expected = read_alone(folder, build, rows)
    assert model.score(prompts, answers, 200, 4).tolist() == pytest.approx(expected, abs=1e-5)
    assert np.abs(np.subtract(expected, read_alone(folder, build, rows, at=-2)))[:3].min() > 1e-3
    # the padding id decides nothing, and what is saved is what was loaded
    model.model.config.pad_token_id = rows[0][-1]
    assert model.score(prompts, answers, 200, 2).tolist() == pytest.approx(expected, abs=1e-5)
    assert (folder / "config.json").read_text() == saved


@pytest.mark.parametrize("pad", [None, "<unk>"])
def test_a_classifier_is_trained_where_it_is_read(pad, tmp_path, fresh_accelerate):
    """The loss and the scores of train_holistic, by hand from what it wrote."""
    from alarm import train_holistic

    folder = closed_texts(tmp_path / "base", pad)
    files = {}
    for split, count in (("train", 6), ("dev", 5)):
        pairs = [
            {"prompt": f"{split} {i}?", "chosen": "good " * (i + 1), "rejected": "It is bad."} for i in range(count)
        ]
        files[split] = tmp_path / f"{split}.json"
        files[split].write_text(json.dumps(pairs))
    out = tmp_path / "out"
    words = ["--model_path", folder, "--save_dir", out, "--train_file", files["train"], "--dev_file", files["dev"]]
    train_holistic.main([*map(str, words), "--batch_size", "3", "--lr", "1e-2", "--max_steps", "4"])
    metrics = json.loads((out / "metrics.json").read_text())

    pairs = json.loads(files["dev"].read_text())
    encode = HolisticModel.load(out).encode
    rows = [encode([pair["prompt"]], [pair[side]], 200)[0] for side in ("chosen", "rejected") for pair in pairs]
    scores = np.array(read_alone(out, LlamaForSequenceClassification, rows))
    assert metrics["score_mean"] == pytest.approx(scores.mean(), abs=1e-5)
    assert metrics["dev"]["log_loss"] == pytest.approx(np.logaddexp(0, scores[5:] - scores[:5]).mean(), abs=1e-5)


def test_a_decoder_only_completeness_model_is_read_there_too(tmp_path):
    from alarm.models.classifiers import TextScorer

    folder = closed_texts(tmp_path / "comp_rm", "</s>")
    scorer = TextScorer(folder, "completeness", "cpu", torch.float32, 2)
    texts = ["why answer: because", "why answer: because short waves scatter more than long ones"]
    rows = scorer.tokenizer(texts)["input_ids"]
    assert scorer(texts) == pytest.approx(read_alone(folder, LlamaForSequenceClassification, rows), abs=1e-5)


def test_an_encoder_keeps_its_own_reading(tmp_path):
    AutoTokenizer.from_pretrained(CHECKPOINTS / "tiny-comp_rm").save_pretrained(tmp_path)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    torch.manual_seed(0)
    config = BertConfig(vocab_size=4000, **sizes, num_labels=1)
    BertForSequenceClassification(config).save_pretrained(tmp_path)
    model = HolisticModel.load(tmp_path)
    [row] = model.encode(["Why?"], ["Because."], 100)
    plain = BertForSequenceClassification.from_pretrained(tmp_path).eval()
    with torch.inference_mode():
        expected = plain(torch.tensor([row])).logits[0, 0].item()
    assert model.score(["Why?"], ["Because."], 100, 1).item() == pytest.approx(expected, abs=1e-6)


def copied(tmp_path: Path) -> Path:
    return Path(shutil.copytree(ULTRARM, tmp_path / "model"))


def test_sharded_pytorch_weights_load(tmp_path, model):
    """The published UltraRM is a set of pytorch_model-*.bin shards."""
    folder = copied(tmp_path)
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
    folder = copied(tmp_path)
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
    folder = copied(tmp_path)
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
