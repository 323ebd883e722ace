"""The real train_ppo.py scripts with weights in parts, launched by the files of configs/accelerate."""

from __future__ import annotations

import json
import math

import pytest
import torch
from launches import launch
from safetensors.torch import load_file

from helpers import CHECKPOINTS, ROOT

WORDS = [("cielo", "sky"), ("libro", "book"), ("mar", "sea"), ("perro", "dog"), ("sol", "sun"), ("tren", "train")]


def rows(run) -> list[dict]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def trained(run) -> dict[str, torch.Tensor]:
    """The saved policy's own files, all of whose numbers are finite."""
    files = sorted((run / "policy").glob("*.safetensors"))
    found = {f"{file.name}:{name}": x for file in files for name, x in load_file(file).items()}
    assert found and all(torch.isfinite(x).all() for x in found.values())
    return found


@pytest.mark.whole
@pytest.mark.slow
def test_long_form_qa_with_zero3_stops_and_goes_on(world, tmp_path):
    script = ROOT / "long-form-QA" / "train_ppo.py"
    flags = [*world.flags, "--reward_type", "hierarchical", "--sigmoid_shaping", "--eval_interval", "1"]
    flags += ["--checkpoint_interval", "1", "--max_grad_norm", "0.5", "--lr", "1e-2"]
    run = tmp_path / "run"
    for steps, more in (("1", []), ("2", ["--resume"])):
        done = launch("ZeRO-3", tmp_path, script, *flags, "--max_steps", steps, "--save_dir", str(run), *more)
        assert done.returncode == 0, done.stderr[-3000:]
    steps = [(row["step"], part) for row in rows(run) for part in ("train", "dev") if part in row]
    assert sorted(steps) == [(0, "dev"), (1, "dev"), (1, "train"), (2, "dev"), (2, "train")]
    assert all(math.isfinite(row["train"]["kl"]) for row in rows(run) if "train" in row)
    assert any(x.any() for name, x in trained(run).items() if ".lora_B." in name)


@pytest.mark.whole
@pytest.mark.slow
def test_translation_with_fsdp2_leaves_a_whole_policy(tmp_path):
    pairs = tmp_path / "pairs.jsonl"
    lines = [
        {"translation": {"es": f"El {es} es {k}.", "en": f"The {en} is {k}."}} for k in range(4) for es, en in WORDS
    ]
    pairs.write_text("".join(json.dumps(line) + "\n" for line in lines))
    flags = ["--policy_ckpt", str(CHECKPOINTS / "tiny-mt5"), "--holistic_model", str(CHECKPOINTS / "tiny-ultrarm")]
    flags += ["--grammar_backend", "rules", "--dtype", "float32", "--no_lora", "--train_file", str(pairs)]
    flags += ["--dev_file", str(pairs), "--max_len", "16"]
    flags += ["--batch_size", "4", "--mini_batch_size", "2", "--gradient_accumulation_steps", "1", "--max_steps", "1"]
    flags += ["--eval_interval", "0", "--report_to", "none", "--save_dir", str(tmp_path / "run")]
    done = launch("FSDP2", tmp_path, ROOT / "MT" / "train_ppo.py", *flags)
    assert done.returncode == 0, done.stderr[-3000:]
    before, after = load_file(CHECKPOINTS / "tiny-mt5" / "model.safetensors"), trained(tmp_path / "run")
    shared = "shared.weight"
    assert after[f"model.safetensors:{shared}"].shape == before[shared].shape
    assert not torch.equal(after[f"model.safetensors:{shared}"], before[shared])
