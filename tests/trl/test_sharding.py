"""ZeRO-2, ZeRO-3 and FSDP2 in two real processes on CPU (gloo), against DDP in two."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import DistributedType
from launches import LAUNCHES, launch
from peft import LoraConfig
from safetensors.torch import load_file
from torch.distributed.fsdp import CPUOffloadPolicy
from transformers import AutoModelForSeq2SeqLM, LEDConfig

from trl import (
    AutoModelForCausalLMWithValueHead,
    AutoModelForSeq2SeqLMWithValueHead,
    PPOConfig,
    create_reference_model,
)
from trl.launch import check_launch_settings
from trl.sharding import sharding_of

FOLDER = Path(__file__).parent
TINY_T5 = FOLDER.parent / "fixtures" / "golden" / "checkpoints" / "tiny-t5"
SHARDED = [name for name in LAUNCHES if name != "ddp"]


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


CASES = ("fresh LoRA", "all weights")
MORE = ("trained LoRA", "decoder-only")  # of which `make test-all` is the place: a launch takes half a minute


@pytest.fixture(scope="module")
def runs(tmp_path_factory, models):
    """A function: kind of launch and names of trainings -> name -> Case. Each launch happens once."""
    found: dict[tuple[str, tuple[str, ...]], dict[str, Case]] = {}

    def of(kind: str, names: tuple[str, ...]) -> dict[str, Case]:
        if (kind, names) not in found:
            out = tmp_path_factory.mktemp(LAUNCHES[kind])
            cases = [word for name in names for word in (name, *models[name], "float32")]
            persist = 0 if kind == "ZeRO-3" else None
            done = launch(kind, out, FOLDER / "sharded_processes.py", str(out), *cases, persist=persist)
            assert done.returncode == 0, done.stderr[-3000:]
            found[kind, names] = {
                name: Case(
                    json.loads((out / name / "results.json").read_text()),
                    load_file(out / name / "weights.safetensors"),
                    out / name,
                )
                for name in names
            }
        return found[kind, names]

    return of


FEW = [pytest.mark.slow]
MANY = [pytest.mark.slow, pytest.mark.whole]
PAIRS = [
    pytest.param((kind, names), id=f"{kind}-{names[0]}", marks=marks)
    for names, marks in ((CASES, FEW), (MORE, MANY))
    for kind in SHARDED
]


@pytest.fixture(scope="module", params=PAIRS)
def both(request, runs):
    """The trainings by DDP, and those of one kind of sharding."""
    kind, names = request.param
    sharded = runs(kind, names)
    assert {case.results["sharding"] for case in sharded.values()} == {kind}
    return runs("ddp", names), sharded


def test_statistics_and_weights_are_those_of_ddp(both):
    for name in both[0]:
        ddp, sharded = (kind[name] for kind in both)
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
    for name in both[0]:
        ddp, sharded = (kind[name] for kind in both)
        assert sharded.results["texts"] == ddp.results["texts"]
        before, after = ddp.results["texts"][0][0], ddp.results["texts"][0][-1]
        assert before != after


@pytest.mark.slow
def test_a_training_has_updates_early_stops_and_skipped_updates(runs):
    for case in runs("ddp", CASES).values():
        stats = case.results["stats"]
        assert stats[0]["ppo/early_stopped"] == 1
        assert stats[2]["ppo/skipped_ratio"] > 0 and stats[2]["ppo/updates"] == 0
        assert stats[0]["ppo/updates"] > 0 and stats[3]["ppo/updates"] > 0
        assert stats[0]["ppo/grad_norm"] > 0.5  # so that it was clipped


def test_a_loaded_state_goes_on_bit_for_bit(both):
    for case in both[1].values():
        assert case.results["resumed_alike"] and case.results["resumed_weights"] == 0


def test_a_state_of_another_launch_or_model_or_a_damaged_one_is_refused(both):
    for case in both[1].values():
        launch_line, model_line, damage_line = case.results["refused"]
        for line, kind, words in (
            (launch_line, "ValueError", "other"),
            (model_line, "ValueError", "another model"),
            (damage_line, "DamagedStateError", "cut short or changed"),
        ):
            assert line.startswith(kind) and words in line and "\n" not in line


def test_what_is_saved_loads_in_one_process(both, models):
    for name in both[0]:
        ddp, sharded = (kind[name] for kind in both)
        kind = AutoModelForCausalLMWithValueHead if name == "decoder-only" else AutoModelForSeq2SeqLMWithValueHead
        one, other = (dict(kind.from_pretrained(c.folder / "policy").named_parameters()) for c in (ddp, sharded))
        assert one.keys() == other.keys() == ddp.weights.keys()
        for key, weight in one.items():
            torch.testing.assert_close(other[key], weight, atol=1e-5, rtol=1e-4)


def test_each_process_holds_a_part(both):
    for case in both[1].values():
        whole, held, optimizer = (case.results[name] for name in ("size", "held", "momentum"))
        split = case.results["sharding"] != "ZeRO-2"
        assert held < 0.8 * whole if split else held == whole
        assert optimizer < 0.8 * case.results["trainable"]


# --- what is refused --------------------------------------------------------------------------------------------------


def a_launch(kind: DistributedType, **state) -> SimpleNamespace:
    """What the trainer asks accelerate of a launch."""
    return SimpleNamespace(
        distributed_type=kind, num_processes=2, device=torch.device("cpu"), state=SimpleNamespace(**state)
    )


def deepspeed(zero: dict, init: bool = False, clipping: float | str = "auto", **settings) -> SimpleNamespace:
    plugin = SimpleNamespace(
        deepspeed_config={"zero_optimization": zero, **settings}, zero3_init_flag=init, gradient_clipping=clipping
    )
    return a_launch(DistributedType.DEEPSPEED, deepspeed_plugin=plugin)


def fsdp(**settings) -> SimpleNamespace:
    usual = {"fsdp_version": 2, "cpu_ram_efficient_loading": False, "activation_checkpointing": False}
    return a_launch(DistributedType.FSDP, fsdp_plugin=SimpleNamespace(**usual | {"cpu_offload": None} | settings))


@pytest.mark.parametrize(
    ("launched", "words"),
    [
        (deepspeed({"stage": 1}), "zero_stage"),
        (deepspeed({"stage": 2, "offload_optimizer": {"device": "cpu"}}), "offload_optimizer_device: none"),
        (deepspeed({"stage": 3, "offload_param": {"device": "nvme"}}), "offload_param_device: none"),
        (deepspeed({"stage": 3}, init=True), "zero3_init_flag: false"),
        (deepspeed({"stage": 2}, fp16={"enabled": True}), "fp16"),
        (deepspeed({"stage": 2}, clipping=2.0), "gradient_clipping"),
        (fsdp(fsdp_version=1), "fsdp_version: 2"),
        (fsdp(cpu_ram_efficient_loading=True), "fsdp_cpu_ram_efficient_loading"),
        (fsdp(activation_checkpointing=True), "fsdp_activation_checkpointing"),
        (fsdp(cpu_offload=CPUOffloadPolicy()), "fsdp_offload_params"),
    ],
)
def test_settings_that_are_not_supported_are_refused(launched, words):
    with pytest.raises(ValueError, match=words) as error:
        sharding_of(launched, PPOConfig(max_grad_norm=1.0))
    assert "\n" not in str(error.value)


def test_layers_are_not_computed_again_where_weights_are_in_parts():
    config = PPOConfig(gradient_checkpointing=True)
    for launched in (deepspeed({"stage": 3}), fsdp()):
        with pytest.raises(ValueError, match="gradient_checkpointing"):
            sharding_of(launched, config)
    sharding_of(deepspeed({"stage": 2}), config)


@pytest.mark.parametrize(
    "launched",
    [deepspeed({"stage": 2}), deepspeed({"stage": 3}), fsdp(auto_wrap_policy=None, transformer_cls_names_to_wrap=None)],
)
def test_models_that_cannot_be_split_are_refused(launched):
    sharding = sharding_of(launched, PPOConfig())
    config = LEDConfig(
        vocab_size=40, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, attention_window=4,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, decoder_start_token_id=0,
    )  # fmt: skip
    model = AutoModelForSeq2SeqLMWithValueHead(AutoModelForSeq2SeqLM.from_config(config)).eval()
    with pytest.raises(ValueError, match="_global"):  # attention that is off
        sharding.prepare(model, None, None, None)
    if sharding.name != "ZeRO-2":
        model = AutoModelForSeq2SeqLMWithValueHead.from_pretrained(TINY_T5)
        with pytest.raises(ValueError, match="num_shared_layers"):
            sharding.prepare(model, None, None, create_reference_model(model, num_shared_layers=1))


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"USE_FSDP": "true"}, "fsdp_version: 2"),
        ({"USE_FSDP": "true", "FSDP_VERSION": "1"}, "fsdp_version: 2"),
        ({"USE_FSDP": "true", "FSDP_VERSION": "2"}, "two processes"),
        ({"USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}, "set it to false"),
        ({"USE_DEEPSPEED": "true"}, "deepspeed"),  # not installed, or asked for on CPU
    ],
)
def test_launches_that_are_not_supported_are_refused_before_a_model_loads(monkeypatch, variables, words):
    for name in ("FSDP_VERSION", "FSDP_CPU_RAM_EFFICIENT_LOADING", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(f"ACCELERATE_{name}" if name.startswith("USE_") else name, value)
    with pytest.raises(ValueError, match=rf"(?i){words}") as error:
        check_launch_settings()
    assert "\n" not in str(error.value)


def test_ordinary_launches_pass(monkeypatch):
    for name in ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"):
        monkeypatch.setenv(name, "false")
    check_launch_settings()
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    monkeypatch.setenv("WORLD_SIZE", "2")
    check_launch_settings()
