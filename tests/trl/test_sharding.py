"""ZeRO-2, ZeRO-3 and FSDP2 in two real processes on CPU (gloo) against DDP in two: the same samples, the same settings."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml
from peft import LoraConfig
from safetensors.torch import load_file

from trl import AutoModelForCausalLMWithValueHead, AutoModelForSeq2SeqLMWithValueHead
from trl.launch import check_launch_settings

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]
CONFIGS = ROOT / "configs" / "accelerate"
DEEPSPEED = ROOT / "build" / "deepspeed"
TINY_T5 = FOLDER.parent / "fixtures" / "golden" / "checkpoints" / "tiny-t5"
LAUNCHES = {"ddp": "multi_gpu", "ZeRO-2": "deepspeed_zero2", "ZeRO-3": "deepspeed_zero3", "FSDP2": "fsdp2"}
SHARDED = [name for name in LAUNCHES if name != "ddp"]

pytestmark = pytest.mark.slow


def launch(kind: str, folder: Path, script: Path, *arguments: str) -> subprocess.CompletedProcess:
    """`accelerate launch` with the repository's file of this kind, in two processes on CPU."""
    if kind.startswith("ZeRO") and not (DEEPSPEED / "deepspeed").is_dir():
        pytest.skip("build/deepspeed is not here; `make test` installs it")
    settings = yaml.safe_load((CONFIGS / f"{LAUNCHES[kind]}.yaml").read_text()) | {"num_processes": 2}
    settings["use_cpu"] = not kind.startswith("ZeRO")
    changed = folder / f"{LAUNCHES[kind]}.yaml"
    changed.write_text(yaml.safe_dump(settings))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": f"{ROOT / 'trl'}:{ROOT}",
    }  # fmt: skip
    environment.pop("ACCELERATE_USE_CPU", None)
    if kind.startswith("ZeRO"):
        environment["PYTHONPATH"] += f":{DEEPSPEED}"
        environment["DS_ACCELERATOR"] = "cpu"
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(changed)]
    command += ["--main_process_port", str(port), str(script), *arguments]
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300)


@dataclass(frozen=True)
class Case:
    results: dict
    weights: dict[str, torch.Tensor]  # of the whole policy, after the training
    folder: Path


@pytest.fixture(scope="module")
def models(tmp_path_factory, tiny_gpt2):
    """Name -> model folder and adapter, of each training."""
    folder = tmp_path_factory.mktemp("adapter")
    torch.manual_seed(0)
    lora = LoraConfig(r=4, task_type="SEQ_2_SEQ_LM")
    policy = AutoModelForSeq2SeqLMWithValueHead.from_pretrained(TINY_T5, peft_config=lora)
    for name, weight in policy.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(weight, std=0.1)
    policy.save_pretrained(folder)
    return {
        "fresh LoRA": (str(TINY_T5), "fresh"),
        "all weights": (str(TINY_T5), "none"),
        "trained LoRA": (str(TINY_T5), str(folder)),  # its reference is the adapter as it was
        "decoder-only": (str(tiny_gpt2), "none"),
    }


CASES = ["fresh LoRA", "all weights", "trained LoRA", "decoder-only"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, models):
    """A function: kind of launch -> name of a training -> Case. A launch has all trainings, and happens once."""
    found: dict[str, dict[str, Case]] = {}

    def of(kind: str) -> dict[str, Case]:
        if kind not in found:
            out = tmp_path_factory.mktemp(LAUNCHES[kind])
            cases = [word for name in CASES for word in (name, *models[name], "float32")]
            done = launch(kind, out, FOLDER / "sharded_processes.py", str(out), *cases)
            assert done.returncode == 0, done.stderr[-3000:]
            found[kind] = {
                name: Case(
                    json.loads((out / name / "results.json").read_text()),
                    load_file(out / name / "weights.safetensors"),
                    out / name,
                )
                for name in CASES
            }
        return found[kind]

    return of


@pytest.fixture(scope="module", params=SHARDED)
def both(request, runs):
    """The trainings by DDP, and those of one kind of sharding."""
    sharded = runs(request.param)
    assert {case.results["sharding"] for case in sharded.values()} == {request.param}
    return runs("ddp"), sharded


def test_statistics_and_weights_are_those_of_ddp(both):
    for name in CASES:
        ddp, sharded = (kind[name] for kind in both)
        assert ddp.results["updates"] == sharded.results["updates"]
        for one, other in zip(ddp.results["stats"], sharded.results["stats"], strict=True):
            assert one.keys() == other.keys()
            for key in one:
                assert other[key] == pytest.approx(one[key], rel=1e-3, abs=1e-5), (name, key)
        assert ddp.weights.keys() == sharded.weights.keys()
        for key, weight in ddp.weights.items():
            torch.testing.assert_close(sharded.weights[key], weight, atol=1e-5, rtol=1e-4)
        assert ddp.results["moved"] > 1e-2


def test_texts_are_those_of_ddp(both):
    """Greedy and sampled, of policy and reference, by calls whose number and length differ between processes."""
    for name in CASES:
        ddp, sharded = (kind[name] for kind in both)
        assert sharded.results["texts"] == ddp.results["texts"]
        before, after = ddp.results["texts"][0][0], ddp.results["texts"][0][-1]
        assert before != after


def test_a_training_has_updates_early_stops_and_skipped_updates(runs):
    for case in runs("ddp").values():
        stats = case.results["stats"]
        assert stats[0]["ppo/early_stopped"] == 1
        assert stats[2]["ppo/skipped_ratio"] > 0 and stats[2]["ppo/updates"] == 0
        assert stats[0]["ppo/updates"] > 0 and stats[3]["ppo/updates"] > 0
        assert stats[0]["ppo/grad_norm"] > 0.5  # so that it was clipped


def test_a_loaded_state_goes_on_bit_for_bit(both):
    for case in both[1].values():
        assert case.results["resumed_alike"] and case.results["resumed_weights"] == 0


def test_a_state_of_another_launch_or_model_is_refused(both):
    for case in both[1].values():
        launch_line, model_line = case.results["refused"]
        for line, words in ((launch_line, "other"), (model_line, "another model")):
            assert line.startswith("ValueError") and words in line and "\n" not in line


def test_a_changed_file_of_a_state_is_found(both):
    for case in both[1].values():
        assert "cut short or changed" in case.results["damage"]


def test_what_is_saved_loads_in_one_process(both, models):
    for name in CASES:
        ddp, sharded = (kind[name] for kind in both)
        kind = AutoModelForCausalLMWithValueHead if name == "decoder-only" else AutoModelForSeq2SeqLMWithValueHead
        one, other = (dict(kind.from_pretrained(c.folder / "policy").named_parameters()) for c in (ddp, sharded))
        assert one.keys() == other.keys() == ddp.weights.keys()
        for key, weight in one.items():
            torch.testing.assert_close(other[key], weight, atol=1e-5, rtol=1e-4)


def test_each_process_holds_a_part(both, request):
    for case in both[1].values():
        whole, held, optimizer = (case.results[name] for name in ("size", "held", "momentum"))
        split = case.results["sharding"] != "ZeRO-2"
        assert held < 0.8 * whole if split else held == whole
        assert optimizer < 0.8 * case.results["trainable"]


# --- what is refused --------------------------------------------------------------------------------------------------
