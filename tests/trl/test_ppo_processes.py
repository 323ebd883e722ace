from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

from processes import run_together

FOLDER = Path(__file__).parent


COUNTS = (1, 2, 4)


def run_in_processes(script: str, *words: str, counts: tuple[int, ...] = COUNTS) -> None:
    """Run a script of this folder in so many real processes (gloo on CPU), for each of `counts`."""
    for count in counts:
        ended = run_together(count, f"tests/trl/{script}", *words)
        assert [one.code for one in ended] == [0] * count, ended


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The same training in one process, in two and in four."""
    out = tmp_path_factory.mktemp("processes")
    model = FOLDER.parent / "fixtures" / "golden" / "checkpoints" / "tiny-t5"
    run_in_processes("in_processes.py", str(model), str(out))
    results = {n: json.loads((out / f"results-{n}.json").read_text()) for n in COUNTS}
    weights = {n: load_file(out / f"weights-{n}.safetensors") for n in COUNTS}
    return results, weights


def same_statistics(one: dict[str, float], other: dict[str, float]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert other[name] == pytest.approx(one[name], rel=1e-3, abs=1e-5), name


def same_weights(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    for name, weight in one.items():
        torch.testing.assert_close(other[name], weight, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("count", [2, 4])
def test_several_processes_do_what_one_does_on_the_union(runs, count):
    results, weights = runs
    one, several = results[1], results[count]
    assert (one["processes"], several["processes"]) == (1, count)
    for a, b in zip(one["stats"], several["stats"], strict=True):
        same_statistics(a, b)
    assert one["moved"] > 1e-2
    same_weights(weights[1], weights[count])
    assert several["processes_agree"]


def test_all_processes_stop_early_together(runs):
    results, _ = runs
    decisions = [[stats["ppo/early_stopped"] for stats in run["stats"][:2]] for run in results.values()]
    assert decisions[0] == decisions[1] == decisions[2] and 1.0 in decisions[0]
    updates = [[stats["ppo/updates"] for stats in run["stats"][:2]] for run in results.values()]
    assert updates[0] == updates[1] == updates[2] and 0 < updates[0][0] < 6


def test_a_nonfinite_score_on_one_process_stops_all(runs):
    for run in runs[0].values():
        assert run["stats"][2]["ppo/skipped_nonfinite"] == 1 and run["unmoved_by_nan"]


def test_every_example_is_seen_once(runs):
    results, _ = runs
    for run in results.values():
        for epoch in run["seen"]:
            assert len(epoch) == len(set(epoch)) == 16
        assert run["seen"] == results[1]["seen"]


def test_random_states_come_back_to_their_process(runs):
    assert all(run["restored"] and run["different_draws"] for run in runs[0].values())


def test_a_damaged_state_is_refused_by_all_processes(runs):
    for run in runs[0].values():
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
    run_in_processes("all_weights.py", str(tmp_path), *PARTLY_USED, counts=(1, 2))
    for name, (_, without_gradient) in PARTLY_USED.items():
        one, two = (json.loads((tmp_path / f"{name}-{n}.json").read_text()) for n in (1, 2))
        same_statistics(one["stats"], two["stats"])
        assert one["stats"]["ppo/updates"] == 2
        same_weights(*(load_file(tmp_path / f"{name}-{n}.safetensors") for n in (1, 2)))
        assert one["still"] == two["still"]
        assert any(without_gradient in weight for weight in one["still"])
        moved = any(without_gradient in weight for weight in one["moved"])
        assert moved == (name == "SwitchTransformers")


def test_groups_that_lie_on_several_processes_are_compared_whole(tmp_path):
    """In four processes each group lies on all of them."""
    model = FOLDER.parent / "fixtures" / "golden" / "checkpoints" / "tiny-t5"
    run_in_processes("groups_in_processes.py", str(model), str(tmp_path))
    for kind in ("rloo", "grpo"):
        found = {n: json.loads((tmp_path / f"{kind}-{n}.json").read_text()) for n in COUNTS}
        assert found[1]["ppo/updates"] == 2 and found[1]["ppo/groups/std"] > 0
        weights = {n: load_file(tmp_path / f"{kind}-{n}.safetensors") for n in COUNTS}
        for count in (2, 4):
            same_statistics(found[1], found[count])
            same_weights(weights[1], weights[count])
