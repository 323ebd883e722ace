from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trl import ppo_math

GOLDEN = Path(__file__).parent.parent / "fixtures" / "golden"
CASES = ("c0_", "c1_", "c2_", "c3_")
NEAR = {"atol": 1e-5, "rtol": 1e-5}


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "ppo_math.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


# --- hand arithmetic -------------------------------------------------------------------------------------------------


def test_gae_by_hand():
    # two tokens, gamma 0.5, lambda 0.5; the third column is padding and its 9s must not be seen
    values = torch.tensor([[1.0, 2.0, 9.0]])
    rewards = torch.tensor([[3.0, 4.0, 9.0]])
    mask = torch.tensor([[True, True, False]])
    # delta_1 = 4 + 0 - 2 = 2; delta_0 = 3 + 0.5 * 2 - 1 = 3; A_0 = 3 + 0.25 * 2 = 3.5
    advantages, returns = ppo_math.gae(values, rewards, mask, gamma=0.5, lam=0.5)
    assert advantages[0, :2].tolist() == [3.5, 2.0]
    assert returns[0, :2].tolist() == [4.5, 4.0]
    assert advantages[0, 2] == returns[0, 2] == 0


def test_masked_statistics_by_hand():
    x = torch.tensor([[1.0, 3.0, math.nan], [5.0, 100.0, 100.0]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert ppo_math.masked_mean(x, mask) == 3  # (1 + 3 + 5) / 3
    assert ppo_math.masked_var(x, mask) == 4  # (4 + 0 + 4) / 2
    whitened = ppo_math.masked_whiten(x, mask)
    torch.testing.assert_close(whitened[mask], torch.tensor([-1.0, 0.0, 1.0]))
    torch.testing.assert_close(ppo_math.masked_whiten(x, mask, shift_mean=False)[mask], torch.tensor([2.0, 3.0, 4.0]))


def test_statistics_of_the_union_from_two_processes():
    x = torch.randn(2, 5)
    mask = torch.tensor([[True] * 5, [True, True, False, False, False]])
    # one process holding row 0 sees the other's part of each sum in turn: sum of x, count, squares, count
    n, mean = mask.sum(), x[mask].mean()
    other = [x[1, :2].sum(), torch.tensor(2), ((x[1, :2] - mean) ** 2).sum(), torch.tensor(2)]
    got = ppo_math.masked_var(x[:1], mask[:1], total=lambda part: part + other.pop(0))
    torch.testing.assert_close(got, ((x[mask] - mean) ** 2).sum() / (n - 1))


def test_policy_loss_by_hand():
    ratio = torch.tensor([[1.5, 1.5, 0.5, 0.5]])
    advantages = torch.tensor([[1.0, -1.0, 1.0, -1.0]])
    losses, clipped = ppo_math.policy_losses(ratio.log(), torch.zeros(1, 4), advantages, cliprange=0.2)
    torch.testing.assert_close(losses, torch.tensor([[-1.2, 1.5, -0.5, 0.8]]))
    assert clipped.tolist() == [[True, False, False, True]]


def test_value_loss_by_hand():
    # old value 0, return 1: a value of 0.5 is read as 0.2 -> (0.2 - 1)^2 / 2; of -0.5: itself is worse -> 1.5^2 / 2
    losses, clipped = ppo_math.value_losses(
        torch.tensor([[0.5, -0.5]]), torch.zeros(1, 2), torch.ones(1, 2), cliprange_value=0.2
    )
    torch.testing.assert_close(losses, torch.tensor([[0.32, 1.125]]))
    assert clipped.tolist() == [[True, False]]


def test_kl_estimate_is_never_negative_and_its_mean_is_the_kl():
    old, new = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.3, 0.5])
    estimate = ppo_math.kl_estimate(new.log(), old.log())
    assert (estimate >= 0).all()
    torch.testing.assert_close((old * estimate).sum(), (old * (old / new).log()).sum())
    # tiny log-ratios: exp(d) - 1 - d would cancel to a negative number in float32
    assert (ppo_math.kl_estimate(torch.full((9,), 3e-4), torch.zeros(9)) >= 0).all()


def test_scores_on_tokens():
    mask = torch.tensor([[True, True, True], [True, False, False]])
    placed = ppo_math.place_scores([torch.tensor(5.0), torch.tensor([7.0])], mask)
    assert placed.tolist() == [[0, 0, 5], [7, 0, 0]]
    placed = ppo_math.place_scores([torch.tensor([1.0, 2.0, 3.0]), 4], mask)
    assert placed.tolist() == [[1, 2, 3], [4, 0, 0]]
    rewards = ppo_math.token_rewards(placed, torch.full((2, 3), 10.0), 0.1, mask)
    torch.testing.assert_close(rewards, torch.tensor([[0.0, 1, 2], [3, 0, 0]]))
    with pytest.raises(ValueError, match=r"score 1 has shape \(3,\).*shape \(1,\)"):
        ppo_math.place_scores([1.0, torch.zeros(3)], mask)


def test_kl_kinds_by_hand():
    d = torch.tensor([[0.5, -0.5]])
    zero = torch.zeros(1, 2)
    assert ppo_math.kl_penalty(d, zero, "kl").tolist() == [[0.5, -0.5]]
    assert ppo_math.kl_penalty(d, zero, "abs").tolist() == [[0.5, 0.5]]
    assert ppo_math.kl_penalty(d, zero, "mse").tolist() == [[0.125, 0.125]]
    with pytest.raises(ValueError, match="unknown"):
        ppo_math.kl_penalty(d, zero, "k3")


# --- chunks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk_rows", [1, 4, 7, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_chunked_logprobs_equal_log_softmax_with_gradients(chunk_rows, dtype):
    torch.manual_seed(0)
    logits = (3 * torch.randn(3, 5, 11)).to(dtype)
    labels, weight = torch.randint(11, (3, 5)), torch.randn(3, 5)
    ours, plain = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    got = ppo_math.token_logprobs(ours, labels, chunk_rows=chunk_rows)
    expected = plain.float().log_softmax(-1).gather(-1, labels[..., None]).squeeze(-1)
    torch.testing.assert_close(got, expected)
    assert got.dtype == torch.float32
    (got * weight).sum().backward()
    (expected * weight).sum().backward()
    torch.testing.assert_close(ours.grad, plain.grad)
    entropy = torch.distributions.Categorical(logits=logits.float()).entropy()
    torch.testing.assert_close(ppo_math.token_entropy(logits, chunk_rows=chunk_rows), entropy)


def test_no_float32_copy_of_the_logits_is_kept():
    logits = torch.randn(64, 1000, dtype=torch.bfloat16, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        ppo_math.token_logprobs(logits, torch.zeros(64, dtype=torch.long), chunk_rows=8)
    assert not [x.shape for x in kept if x.dtype == torch.float32 and x.numel() > 64]


# --- golden numbers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_golden_logprobs_and_kl(golden, case):
    g = {name.removeprefix(case): value for name, value in golden.items() if name.startswith(case)}
    logprobs = {}
    for kind in ("", "old_", "ref_"):
        logprobs[kind] = ppo_math.token_logprobs(g[kind + "logits"], g["labels"], chunk_rows=5)
        torch.testing.assert_close(logprobs[kind], g[kind + "logprobs"], **NEAR)
    entropy = ppo_math.token_entropy(g["logits"], chunk_rows=5)
    torch.testing.assert_close(entropy, g["entropy_per_token"], **NEAR)
    torch.testing.assert_close(ppo_math.masked_mean(entropy, g["mask"]), g["stat_policy__entropy"], **NEAR)
    for kind in ("kl", "abs", "mse"):
        got = ppo_math.kl_penalty(logprobs["old_"], logprobs["ref_"], kind)
        torch.testing.assert_close(got, g[f"kl_{kind}"], **NEAR)
    torch.testing.assert_close(ppo_math.full_kl(g["old_logits"], g["ref_logits"], 5), g["kl_full"], **NEAR)


@pytest.mark.parametrize("case", CASES)
def test_golden_advantages_and_whitening(golden, case):
    g = {name.removeprefix(case): value for name, value in golden.items() if name.startswith(case)}
    mask = g["mask"]
    for variant, (gamma, lam) in enumerate([(1.0, 0.95), (0.98, 0.9)]):
        advantages, returns = ppo_math.gae(g["in_values"], g["rewards"], mask, gamma, lam)
        torch.testing.assert_close(returns, g[f"g{variant}_returns"], **NEAR)
        whitened = ppo_math.masked_whiten(advantages, mask)
        torch.testing.assert_close(whitened, g[f"g{variant}_advantages_whitened"], **NEAR)
    scores = g["scores"]
    torch.testing.assert_close(ppo_math.masked_mean(scores, mask), g["masked_mean_scores"], **NEAR)
    torch.testing.assert_close(ppo_math.masked_var(scores, mask), g["masked_var_scores"], **NEAR)
    torch.testing.assert_close(ppo_math.masked_whiten(scores, mask), g["masked_whiten_scores"], **NEAR)
    torch.testing.assert_close(
        ppo_math.masked_whiten(scores, mask, shift_mean=False), g["masked_whiten_scores_noshift"], **NEAR
    )


@pytest.mark.parametrize("case", CASES)
def test_golden_losses_gradients_statistics(golden, case):
    g = {name.removeprefix(case): value for name, value in golden.items() if name.startswith(case)}
    mask = g["mask"].bool()
    logprobs, values = g["logprobs"].clone().requires_grad_(), g["vpreds"].clone().requires_grad_()
    sums = ppo_math.loss_sums(
        logprobs,
        values,
        mask,
        old_logprobs=g["old_logprobs"],
        old_values=g["g0_values"],
        advantages=g["g0_advantages_whitened"],
        returns=g["g0_returns"],
        entropy=ppo_math.token_entropy(g["logits"]),
        cliprange=0.2,
        cliprange_value=0.2,
    )
    stats = ppo_math.loss_statistics(sums, vf_coef=0.1)
    guarded = case == "c3_"
    assert ppo_math.ratio_guard(stats["policy/ratio"], 10.0) is guarded
    names = [
        "policy/approxkl",
        "policy/policykl",
        "policy/clipfrac",
        "policy/entropy",
        "val/vpred",
        "val/error",
        "val/clipfrac",
    ]
    if not guarded:  # the guard made the published losses and gradients zero; ours leaves the update out
        names += ["loss/policy", "loss/value", "loss/total"]
        (sums.policy_loss / sums.tokens).backward()
        (0.1 * sums.value_loss / sums.tokens).backward()
        torch.testing.assert_close(logprobs.grad, g["grad_logprobs"], **NEAR)
        torch.testing.assert_close(values.grad, g["grad_vpreds"], **NEAR)
    for name in names:
        expected = float(g["stat_" + name.replace("/", "__")])
        assert stats[name] == pytest.approx(expected, rel=1e-5, abs=1e-5), name
    for name, x in (("returns", g["g0_returns"]), ("val", g["g0_values"])):
        torch.testing.assert_close(ppo_math.masked_mean(x, mask), g[f"stat_{name}__mean"], **NEAR)
        torch.testing.assert_close(ppo_math.masked_var(x, mask), g[f"stat_{name}__var"], **NEAR)
    ratio = (g["logprobs"] - g["old_logprobs"]).exp()
    torch.testing.assert_close(ratio, g["stat_policy__ratio"], **NEAR)


def test_golden_adaptive_kl():
    recorded = json.loads((GOLDEN / "ppo_math.json").read_text())["adaptive_kl"]
    controller = ppo_math.AdaptiveKLController(recorded["init"], recorded["target"], recorded["horizon"])
    for kl, n_samples, before, after in recorded["rows"]:
        assert controller.value == pytest.approx(before, abs=1e-12)
        controller.update(kl, n_samples)
        assert controller.value == pytest.approx(after, abs=1e-12)
    copy = ppo_math.AdaptiveKLController(9.0, 6, 10000)
    copy.load_state_dict(controller.state_dict())
    assert copy.value == controller.value
    fixed = ppo_math.FixedKLController(0.2)
    fixed.update(100.0, 8)
    assert fixed.value == recorded["rows"][0][2] == 0.2


# --- a reward belongs to its token -----------------------------------------------------------------------------------


@st.composite
def ragged_rewards(draw):
    rewards = st.lists(st.integers(-9, 9), min_size=1, max_size=12)
    batch = draw(st.lists(rewards, min_size=1, max_size=6))
    return batch, draw(st.permutations(range(len(batch))))


def returns_of(batch: list[list[int]]) -> list[list[float]]:
    lengths = torch.tensor([len(r) for r in batch])
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    placed = ppo_math.place_scores([torch.tensor(r, dtype=torch.float32) for r in batch], mask)
    rewards = ppo_math.token_rewards(placed, torch.zeros_like(placed), 0.2, mask)
    _, returns = ppo_math.gae(torch.zeros_like(rewards), rewards, mask, gamma=1.0, lam=1.0)
    return [row[keep].tolist() for row, keep in zip(returns, mask, strict=True)]


@settings(max_examples=300, deadline=None)
@given(ragged_rewards())
def test_a_return_holds_the_rewards_at_and_after_its_token(batch_and_order):
    batch, order = batch_and_order
    returns = returns_of(batch)
    for rewards, row in zip(batch, returns, strict=True):
        assert row == [sum(rewards[t:]) for t in range(len(rewards))]
    assert returns_of([batch[i] for i in order]) == [returns[i] for i in order]
    assert returns_of(batch[:1]) == returns[:1]
