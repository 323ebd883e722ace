"""The check on a GPU, on a CPU with tiny models: the same code, other sizes and another device."""

from __future__ import annotations

import importlib
import json
import math
import shutil
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers import ROOT


@pytest.fixture(scope="module")
def bench():
    """The modules, which stand beside each other and are in no package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        names = ("agreement", "gpu_check", "measuring", "stages")
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})


@pytest.fixture(scope="module")
def small(bench, tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    bench.agreement.write_models(folder)
    return folder


@pytest.fixture(scope="module")
def changed(small, tmp_path_factory):
    """The same models with one weight of each off by a tenth."""
    folder = shutil.copytree(small, tmp_path_factory.mktemp("changed") / "models")
    for name in ("t5", "llama", "holistic", "units", "texts"):
        file = folder / name / "model.safetensors"
        weights = load_file(file)
        for weight in weights.values():
            if weight.dim() == 2 and weight.std() > 0:
                weight *= 1.1
                break
        save_file(weights, file, metadata={"format": "pt"})
    return folder


def test_all_parts(bench, tmp_path):
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu_check.py"), "--device", "cpu", "--sizes", "tiny"]
    command += ["--json", str(tmp_path / "found.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "found.json").read_text())

    rates = found["facts"]["operations a second"]
    assert set(rates) == {"float32", "float32 with TF32", "bfloat16"} and min(rates.values()) > 0
    assert found["facts"]["bytes a second"] > 0 and found["facts"]["float32 products in training"] == "highest"

    made = [(line["what"], line["dtype"]) for line in found["comparisons"]]
    caches = [f"{name} greedy tokens, static cache" for name in ("T5", "Llama")]
    wanted = {(what, dtype) for what in bench.agreement.TOLERANCES for dtype in ("float32", "bfloat16")}
    assert set(made) == wanted | {(what, "float32") for what in caches} and len(made) == len(set(made))
    assert all(line["ok"] and 0 <= line["difference"] <= line["tolerance"] for line in found["comparisons"])
    # bfloat16 was really computed in bfloat16
    assert any(line["difference"] > 1e-3 for line in found["comparisons"] if line["dtype"] == "bfloat16")

    stages = {stage["stage"]: stage for stage in found["stages"]}
    models = ["qa generate", "qa ppo", "qa holistic", "qa factuality", "qa relevance", "qa completeness"]
    models += ["qa generate, static cache", "mt generate", "mt ppo", "mt holistic"]
    assert stages.keys() == {*models, "qa pay"}
    assert all(stages[name]["operations"] > 0 and stages[name]["bytes"] > 0 for name in models)
    assert all(stages[name]["limits"].keys() == {"products", "memory"} for name in models)
    # four passes over the batch, each of one optimizer step
    assert stages["qa ppo"]["updates"] == stages["mt ppo"]["updates"] == 4
    assert found["facts"]["holistic model"]["size"] == "tiny"
    assert {part["what"] for part in found["left out"]} == {
        "qa generate, compiled cache", "T5 greedy tokens, compiled cache", "Llama greedy tokens, compiled cache"
    }  # fmt: skip
    assert "qa generate, static cache" in done.stdout and "compiled cache" in done.stdout


def test_no_gpu(bench, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as stopped:
        bench.gpu_check.main([])
    said = capsys.readouterr()
    assert stopped.value.code == 2 and said.out == ""
    (line,) = said.err.strip().splitlines()
    assert line.startswith("error:") and "--device cpu" in line


# --- comparisons ------------------------------------------------------------------------------------------------------


def lines_of(bench, reference, folder) -> dict:
    agreement = bench.agreement
    lines = [
        line
        for kind in agreement.POLICIES
        for line in agreement.policy_lines(reference, folder, kind, "cpu", "float32")
    ]
    return {line.what: line for line in [*lines, *agreement.reward_lines(reference, folder, "cpu", "float32")]}


def test_a_wrong_weight_is_found(bench, small, changed):
    found = lines_of(bench, small, changed)
    wrong = {what for what, line in found.items() if not line.ok}
    assert wrong >= {"T5 log-probs", "T5 values", "Llama log-probs", "holistic scores"}
    assert wrong >= {"Longformer units", "Longformer texts"}
    # Llama's first weight is the output matrix; draws are compared with the probabilities of the very device
    assert not wrong & {"Llama values", "T5 sampled tokens", "Llama sampled tokens"}
    assert all("FAILED" in str(line) for line in found.values() if not line.ok)


def finish(bench, capsys, lines, file=None) -> tuple[int, str]:
    check = bench.gpu_check.Check("cpu", bench.gpu_check.SIZES["tiny"], 99, lines=lines)
    return bench.gpu_check.finish(check, file), capsys.readouterr().out


def test_the_exit_code(bench, capsys, tmp_path):
    line = bench.agreement.Line
    right, wrong = line("a", "float32", 0.1, 0.1), line("b", "float32", 0.2, 0.1)
    assert finish(bench, capsys, [right])[0] == 0
    code, said = finish(bench, capsys, [right, wrong])
    assert code == 1 and "FAILED" in said and "1 of 2" in said
    assert finish(bench, capsys, [])[0] == 1
    for number in (math.nan, math.inf):
        file = tmp_path / "found.json"
        assert finish(bench, capsys, [line("c", "float32", number, 0.1)], file)[0] == 1
        (found,) = json.loads(file.read_text())["comparisons"]
        assert (found["difference"], found["ok"]) == (None, False)


def test_what_cannot_run_does_not_hide_the_others(bench):
    line = bench.agreement.Line

    def breaks(dtype):
        yield line("a", dtype, 0.0, 1.0)
        raise RuntimeError("no kernel\nfor this")

    groups = {"first": breaks, "second": lambda dtype: iter([line("b", dtype, 0.5, 1.0)])}
    one, broken, other = bench.gpu_check.guarded(groups, "bfloat16")
    assert one.ok and other.ok and (broken.what, broken.dtype, broken.ok) == ("first", "bfloat16", False)
    assert "no kernel for this" in str(broken)


def test_largest_difference(bench):
    largest = bench.agreement.largest_difference
    one = [torch.tensor([1.0, 2.0]), torch.tensor([[3.0]])]
    assert largest(one, [torch.tensor([1.5, 2.0]), torch.tensor([[2.0]])]) == 1.0
    assert largest(one, [torch.tensor([1.0]), torch.tensor([[3.0]])]) == math.inf
    assert math.isnan(largest(one, [torch.tensor([1.0, math.nan]), torch.tensor([[9.0]])]))
    assert math.isnan(largest(one, [torch.tensor([9.0, 2.0]), torch.tensor([[math.nan]])]))


def test_the_regret_of_answers_that_are_not_greedy(bench, small):
    agreement = bench.agreement
    policy, tokenizer = agreement.load_small_policy(small, "t5", "cpu", "float32")
    queries = agreement.prompts(tokenizer)[:2]
    logprobs = [row for row, _ in agreement.scored(policy, queries, [torch.tensor([5]), torch.tensor([5])])]
    best = [row[0].argmax().view(1) for row in logprobs]
    assert agreement.regret(policy, queries, best, 1, ends=[1]) == 0
    second = logprobs[1][0].topk(2)
    wanted = (second.values[0] - second.values[1]).item()
    other = [best[0], second.indices[1].view(1)]
    assert agreement.regret(policy, queries, other, 1, ends=[1]) == pytest.approx(wanted, rel=1e-4) and wanted > 0
    # one token of two, and no end
    assert agreement.regret(policy, queries, best, 2, ends=[1]) == math.inf


def test_draws_by_hand(bench):
    improbability = bench.agreement.improbability
    fair = torch.tensor([0.5, 0.5])
    assert improbability(torch.tensor([50, 50]), fair) == 0
    # chi-square 4 with one degree of freedom: p = 0.0455
    assert improbability(torch.tensor([60, 40]), fair) == pytest.approx(-math.log10(0.0455003), abs=1e-5)
    assert improbability(torch.tensor([99, 1]), torch.tensor([1.0, 0.0])) == math.inf
    # tokens expected 2 and 3 times are one that is expected 5 times: no difference
    assert improbability(torch.tensor([95, 5, 0]), torch.tensor([0.95, 0.02, 0.03])) == pytest.approx(0, abs=1e-6)


def test_a_step_by_hand(bench):
    step = {"statistics": {"a": 1.0}, "start": {"w": torch.zeros(2)}, "weights": {"w": torch.tensor([3.0, 4.0])}}
    other = {"statistics": {"a": 1.5}, "start": {"w": torch.zeros(2)}, "weights": {"w": torch.tensor([3.0, 5.0])}}
    statistics, weights = bench.agreement.ppo_lines(step, other, "bfloat16")
    assert (statistics.difference, weights.difference) == (0.25, 0.2) and not statistics.ok and weights.ok
    for wrong in ({"a": math.nan}, {"b": 1.0}):
        statistics, _ = bench.agreement.ppo_lines(step, step | {"statistics": wrong}, "float32")
        assert not statistics.ok


# --- costs and limits ------------------------------------------------------------------------------------------------


def test_counted_products(bench):
    x, y = torch.randn(3, 4, requires_grad=True), torch.randn(4, 5)
    operations, moved, result = bench.measuring.count_products(lambda: x @ y)
    assert (operations, moved) == (2 * 3 * 4 * 5, 4 * (12 + 20 + 15)) and result.shape == (3, 5)
    # and the gradient of x, (3, 5) by (5, 4)
    weight = torch.ones(3, 5)
    operations, moved, _ = bench.measuring.count_products(lambda: ((x @ y) * weight).sum().backward())
    assert operations == 2 * 2 * 3 * 4 * 5 and moved == 2 * 4 * (12 + 20 + 15)


def test_the_cost_of_a_stage_by_hand(bench):
    facts = {"operations a second": {"bfloat16": 100.0}, "bytes a second": 50.0}
    runs = [{"seconds": s, "MiB": 512.0, "highest": 1024.0} for s in (4.0, 8.0, 5.0)]
    found = bench.gpu_check.cost("x", runs, (200, 125), facts)
    assert (found["seconds"], found["least"], found["most"], found["runs"]) == (5.0, 4.0, 8.0, 3)
    assert found["limits"] == {"products": 2.0, "memory": 2.5} and found["share"] == 0.5
    assert (found["GiB added"], found["GiB"]) == (0.5, 1.0)


def test_the_largest_model_that_fits(bench):
    fits = bench.gpu_check.largest_that_fits
    sizes = {"13B": 26, "7B": 14, "1B": 2}
    assert [fits(sizes, free, 10) for free in (40, 36, 35, 12, 11)] == ["13B", "13B", "7B", "1B", None]
    shape = bench.gpu_check.SIZES["paper"].holistic["13B"]
    assert bench.gpu_check.parameters_of(shape) == pytest.approx(12.85e9, rel=0.01)


def test_a_smaller_model_is_said(bench):
    sizes = bench.gpu_check.SIZES["tiny"]
    huge = bench.stages.Shape(2**14, 400, 128, 2**16, 32000)
    check = bench.gpu_check.Check("cpu", sizes, 99)
    check.sizes = replace(sizes, holistic={"huge": huge, **sizes.holistic})
    assert bench.gpu_check.holistic_model(check).model.config.hidden_size == sizes.holistic["tiny"].hidden
    assert [part["what"] for part in check.left_out] == ["holistic model of huge"]
    check.sizes = replace(sizes, holistic={"huge": huge})
    assert bench.gpu_check.holistic_model(check) is None


def test_nothing_starts_after_the_time(bench, capsys):
    check = bench.gpu_check.Check("cpu", bench.gpu_check.SIZES["tiny"], seconds=0)
    assert not check.may_start("a part")
    check.seconds = 60
    assert check.may_start("another") and not check.may_start("a long one", needed=100)
    assert [part["what"] for part in check.left_out] == ["a part", "a long one"]
    assert capsys.readouterr().out.count("left out") == 2
