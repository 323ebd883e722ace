from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

FOLDER = Path(__file__).parent


def run_in_one_and_in_two(script: str, *arguments: str) -> None:
    """Run a script of this folder in one process, and in two real ones (gloo on CPU)."""
    root = FOLDER.parent.parent
    environment = os.environ | {
        "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root / "trl"),
    }  # fmt: skip
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    for launcher in ([], torchrun):
        command = [sys.executable, *launcher, str(FOLDER / script), *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The same training in one process and in two."""
    out = tmp_path_factory.mktemp("processes")
    model = FOLDER.parent / "fixtures" / "golden" / "checkpoints" / "tiny-t5"
    run_in_one_and_in_two("two_processes.py", str(model), str(out))
    results = [json.loads((out / f"results-{n}.json").read_text()) for n in (1, 2)]
    weights = [load_file(out / f"weights-{n}.safetensors") for n in (1, 2)]
    return results, weights


def same_statistics(one: dict[str, float], two: dict[str, float]) -> None:
    assert one.keys() == two.keys()
    for name in one:
        assert two[name] == pytest.approx(one[name], rel=1e-3, abs=1e-5), name


def same_weights(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> None:
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, atol=2e-5, rtol=1e-4)


def test_two_processes_do_what_one_does_on_the_union(runs):
    (one, two), weights = runs
    assert (one["processes"], two["processes"]) == (1, 2)
    for a, b in zip(one["stats"], two["stats"], strict=True):
        same_statistics(a, b)
    assert one["moved"] > 1e-2
    same_weights(*weights)
    assert two["processes_agree"]


def test_all_processes_stop_early_together(runs):
    (one, two), _ = runs
    decisions = [[stats["ppo/early_stopped"] for stats in run["stats"][:2]] for run in (one, two)]
    assert decisions[0] == decisions[1] and 1.0 in decisions[0]
    updates = [[stats["ppo/updates"] for stats in run["stats"][:2]] for run in (one, two)]
    assert updates[0] == updates[1] and 0 < updates[0][0] < 6


def test_a_nonfinite_score_on_one_process_stops_all(runs):
    for run in runs[0]:
        assert run["stats"][2]["ppo/skipped_nonfinite"] == 1 and run["unmoved_by_nan"]


def test_every_example_is_seen_once(runs):
    (one, two), _ = runs
    for run in (one, two):
        for epoch in run["seen"]:
            assert len(epoch) == len(set(epoch)) == 16
    assert one["seen"] == two["seen"]


def test_random_states_come_back_to_their_process(runs):
    assert all(run["restored"] and run["different_draws"] for run in runs[0])


def test_a_damaged_state_is_refused_by_all_processes(runs):
    for run in runs[0]:
        assert run["refused, hashes: True"] == run["refused, hashes: False"] == run["processes"]


SIZES = {"vocab_size": 40, "d_model": 16, "pad_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 0}
BART = SIZES | {
    "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32, "decoder_ffn_dim": 32,
}  # fmt: skip
SWITCH = SIZES | {
    "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 2, "num_experts": 8,
    "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1,
}  # fmt: skip
# models, and the weights that get no gradient: global attention is off, sinusoidal positions do not train, and an
# expert trains only if it gets a token on one of the processes
PARTLY_USED = {
    "LED": (BART | {"attention_window": 4}, "_global."),
    "Marian": (BART, "embed_positions."),
    "SwitchTransformers": (SWITCH, "expert_"),
}


def test_models_that_do_not_use_each_weight_train_in_two_processes(tmp_path):
    for name, (settings, _) in PARTLY_USED.items():
        torch.manual_seed(0)
        config = getattr(transformers, f"{name}Config")(**settings)
        transformers.AutoModelForSeq2SeqLM.from_config(config).save_pretrained(tmp_path / name)
    run_in_one_and_in_two("all_weights.py", str(tmp_path), *PARTLY_USED)
    for name, (_, without_gradient) in PARTLY_USED.items():
        one, two = (json.loads((tmp_path / f"{name}-{n}.json").read_text()) for n in (1, 2))
        same_statistics(one["stats"], two["stats"])
        assert one["stats"]["ppo/updates"] == 2
        same_weights(*(load_file(tmp_path / f"{name}-{n}.safetensors") for n in (1, 2)))
        assert one["still"] == two["still"]
        assert any(without_gradient in weight for weight in one["still"])
        moved = any(without_gradient in weight for weight in one["moved"])
        assert moved == (name == "SwitchTransformers")


def test_groups_that_lie_on_two_processes_are_compared_whole(tmp_path):
    model = FOLDER.parent / "fixtures" / "golden" / "checkpoints" / "tiny-t5"
    run_in_one_and_in_two("groups_in_processes.py", str(model), str(tmp_path))
    for kind in ("rloo", "grpo"):
        one, two = (json.loads((tmp_path / f"{kind}-{n}.json").read_text()) for n in (1, 2))
        same_statistics(one, two)
        assert one["ppo/updates"] == 2 and one["ppo/groups/std"] > 0
        same_weights(*(load_file(tmp_path / f"{kind}-{n}.safetensors") for n in (1, 2)))
