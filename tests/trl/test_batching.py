"""Responses go through the model in parts of similar length, and the step is the same."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import T5Config, T5ForConditionalGeneration

from trl import AutoModelForSeq2SeqLMWithValueHead, PPOConfig, PPOTrainer, ppo_math
from trl.batching import alike

WIDE = 4096  # a hidden size at which one more pass costs next to nothing


def of_lengths(*lengths: int) -> list[torch.Tensor]:
    return [torch.full((length,), number + 2) for number, length in enumerate(lengths)]


def test_long_and_short_responses_are_parted():
    queries, responses = of_lengths(3, 3, 3, 3), of_lengths(50, 2, 50, 2)
    assert sorted(map(sorted, alike(range(4), queries, responses, WIDE, False))) == [[0, 2], [1, 3]]


def test_long_and_short_queries_are_parted():
    queries, responses = of_lengths(5, 500, 5, 500), of_lengths(3, 3, 3, 3)
    assert sorted(map(sorted, alike(range(4), queries, responses, WIDE, False))) == [[0, 2], [1, 3]]


def test_equal_queries_stay_together_if_they_are_read_once():
    first, second = torch.arange(100), torch.arange(100) + 1
    parts = alike(range(4), [first, second, first, second], of_lengths(3, 5, 5, 3), WIDE, True)
    assert {frozenset(part) for part in parts} <= {frozenset({0, 2}), frozenset({1, 3}), frozenset(range(4))}


def test_rows_of_a_small_model_stay_together():
    """A pass costs more than their padding."""
    assert alike([2, 0, 1], of_lengths(3, 9, 5), of_lengths(4, 2, 8), 32, False) == [[2, 0, 1]]


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), min_size=1, max_size=12), st.booleans())
@settings(deadline=None, max_examples=50)
def test_each_row_is_in_one_part(lengths, share):
    queries, responses = (of_lengths(*column) for column in zip(*lengths, strict=True))
    parts = alike(range(len(lengths)), queries, responses, WIDE, share)
    assert sorted(row for part in parts for row in part) == list(range(len(lengths))) and all(parts)


# --- in the trainer --------------------------------------------------------------------------------------------------


def trainer(ppo_epochs: int = 2) -> PPOTrainer:
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(
        T5Config(
            vocab_size=40, d_model=32, d_kv=8, num_heads=4, d_ff=64, num_layers=2, num_decoder_layers=2,
            decoder_start_token_id=0, dropout_rate=0.0,
        )
    )  # fmt: skip
    config = PPOConfig(
        batch_size=8, mini_batch_size=4, gradient_accumulation_steps=2, ppo_epochs=ppo_epochs, log_with="none"
    )
    return PPOTrainer(config, AutoModelForSeq2SeqLMWithValueHead(model, v_head_init_strategy="zeros"))


def batch():
    made = torch.Generator().manual_seed(5)
    different = [torch.randint(2, 40, (3 + 5 * number,), generator=made) for number in range(4)]
    queries = [query for query in different for _ in range(2)]
    responses = [torch.randint(2, 40, (1 + (7 * row) % 11,), generator=made) for row in range(8)]
    return queries, responses, [torch.randn(len(response), generator=made) for response in responses]


def test_a_step_is_the_same_in_parts_and_with_shared_queries(monkeypatch):
    """Weights, statistics and arrays, but for the order of ratios."""
    found = []
    for kind in ("whole", "parts"):
        ppo = trainer()
        if kind == "whole":
            ppo.policy.sharing_types = ()
            monkeypatch.setattr("trl.trainer.alike", lambda rows, *_: [list(rows)])
        else:
            seen = []

            def narrow(rows, queries, responses, hidden_size, share, seen=seen):
                parts = alike(rows, queries, responses, WIDE, share)
                seen.append(len(parts))
                return parts

            monkeypatch.setattr("trl.trainer.alike", narrow)
        torch.manual_seed(1)
        stats = ppo.step(*batch())
        found.append((stats, {name: p.detach().clone() for name, p in ppo.policy.named_parameters()}))
    assert max(seen) > 1
    (whole, weights), (parts, others) = found
    assert set(whole) == set(parts)
    for name, value in whole.items():
        if name.startswith("time/"):
            continue
        value, other = (torch.as_tensor(x, dtype=torch.float64) for x in (value, parts[name]))
        if name == "ppo/policy/ratio":
            value, other = value.sort()[0], other.sort()[0]
        torch.testing.assert_close(value, other, atol=1e-4, rtol=1e-4, equal_nan=True, msg=name)
    for name, weight in weights.items():
        torch.testing.assert_close(weight, others[name], atol=1e-5, rtol=1e-4)


def test_equal_queries_are_encoded_once():
    ppo = trainer()
    seen = []
    ppo.policy.base_model.encoder.register_forward_hook(lambda _m, _i, output: seen.append(len(output[0])))
    queries, responses, _ = batch()
    inputs = ppo.prepare_model_inputs(queries, responses)
    shared = ppo.policy(**inputs)
    ppo.policy.sharing_types = ()
    alone = ppo.policy(**inputs)
    assert seen == [4, 8]
    for one, other in ((shared[0], alone[0]), (shared[2], alone[2])):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_nothing_is_shared_if_dropout_acts_on_each_query():
    ppo = trainer()
    assert ppo.policy.shares_queries()
    dropout = ppo.policy.base_model.encoder.block[0].layer[0].dropout
    dropout.p = 0.1
    assert ppo.policy.shares_queries()
    dropout.train()
    assert not ppo.policy.shares_queries()


@pytest.mark.parametrize("chunk_rows", [1, 4, 100])
def test_entropies_are_those_of_the_distributions_and_have_no_gradient(chunk_rows):
    torch.manual_seed(0)
    logits = (3 * torch.randn(3, 5, 11)).requires_grad_()
    logprobs, entropy = ppo_math.token_statistics(logits, torch.randint(11, (3, 5)), chunk_rows=chunk_rows)
    torch.testing.assert_close(entropy, torch.distributions.Categorical(logits=logits.detach()).entropy())
    assert logprobs.requires_grad and not entropy.requires_grad


def test_what_is_not_finite_stays_so():
    logits = torch.zeros(4, 5)
    logits[0, 1], logits[1, 2], logits[2] = torch.nan, torch.inf, -torch.inf
    logprobs, entropy = ppo_math.token_statistics(logits[None], torch.zeros(1, 4, dtype=torch.long))
    assert torch.isfinite(entropy)[0].tolist() == [False, False, False, True]
    expected = logits.log_softmax(-1)[:, 0]
    assert torch.isfinite(logprobs)[0].tolist() == torch.isfinite(expected).tolist() == [False, False, False, True]
