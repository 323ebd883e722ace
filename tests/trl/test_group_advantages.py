"""RLOO and GRPO: advantages by hand, over processes, without a value head, and a toy that learns."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig
from transformers import AutoTokenizer

from trl import AutoModelForCausalLMWithValueHead, AutoModelForSeq2SeqLMWithValueHead, PPOConfig, PPOTrainer
from trl.ppo_math import GRPO_EPSILON, group_advantages, group_rows, sequence_returns

TINY = {"batch_size": 8, "mini_batch_size": 4, "ppo_epochs": 1, "samples_per_prompt": 4, "log_with": "none"}


def test_returns_are_sums_over_the_actions():
    rewards = torch.tensor([[1.0, 2.0, 9.0], [0.5, -1.5, 2.0]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    assert sequence_returns(rewards, mask).tolist() == [3.0, 1.0]


def test_rloo_by_hand():
    returns, groups = torch.tensor([1.0, 5.0, 3.0, 10.0, 20.0]), ["a", "b", "a", "b", "a"]
    # a: 1, 3, 20; b: 5, 10
    assert group_advantages(returns, groups, "rloo").tolist() == [1 - 11.5, 5 - 10, 3 - 10.5, 10 - 5, 20 - 2]


def test_grpo_by_hand():
    found = group_advantages(torch.tensor([1.0, 3.0]), [0, 0], "grpo")
    assert found.tolist() == pytest.approx([-1 / (math.sqrt(2) + GRPO_EPSILON), 1 / (math.sqrt(2) + GRPO_EPSILON)])


def test_another_kind_is_refused():
    with pytest.raises(ValueError, match="'gae'"):
        group_advantages(torch.tensor([1.0, 3.0]), [0, 0], "gae")


def test_rows_of_groups():
    assert group_rows(["b", "a", "b", "a", "b"]) == [[0, 2, 4], [1, 3]]


@pytest.mark.parametrize("kind", ["rloo", "grpo"])
def test_equal_returns_have_no_advantage(kind):
    assert group_advantages(torch.tensor([0.1] * 3 + [0.7]), [1] * 4, kind).sum().abs() < 1e-9
    assert group_advantages(torch.tensor([1 / 3] * 7), [0] * 7, kind).tolist() == [0.0] * 7


@pytest.mark.parametrize("kind", ["rloo", "grpo"])
def test_a_group_of_one_is_refused(kind):
    with pytest.raises(ValueError, match="'b' has one response"):
        group_advantages(torch.tensor([1.0, 2.0, 3.0]), ["a", "b", "a"], kind)


@given(
    rows=st.lists(st.tuples(st.integers(0, 2), st.floats(-100, 100)), min_size=6, max_size=20),
    shift=st.floats(-50, 50),
    order=st.randoms(use_true_random=False),
)
def test_what_holds_of_both(rows, shift, order):
    """Advantages of a group add up to 0; a constant per group and the order of the batch change nothing."""
    rows = [*rows, (0, 0.0), (1, 1.0), (2, 2.0), (0, 3.0), (1, 4.0), (2, 5.0)]
    groups, returns = [g for g, _ in rows], torch.tensor([r for _, r in rows], dtype=torch.float64)
    mixed = order.sample(range(len(rows)), len(rows))
    for kind in ("rloo", "grpo"):
        found = group_advantages(returns, groups, kind)
        for group in set(groups):
            assert found[[i for i, g in enumerate(groups) if g == group]].sum().abs() < 1e-6
        moved = group_advantages(returns + shift * torch.tensor(groups), groups, kind)
        torch.testing.assert_close(moved, found, atol=1e-6, rtol=1e-6)
        again = group_advantages(returns[mixed], [groups[i] for i in mixed], kind)
        torch.testing.assert_close(again, found[mixed])


# --- the trainer -----------------------------------------------------------------------------------------------------


def make(folder, cls, head=False, **settings) -> PPOTrainer:
    model = cls.from_pretrained(folder, value_head=head, v_head_init_strategy="zeros")
    config = PPOConfig(**{**TINY, "advantage": "rloo", "seed": 3, **settings})
    tokenizer = AutoTokenizer.from_pretrained(folder) if "t5" in str(folder) else None
    return PPOTrainer(config, model, tokenizer=tokenizer, dataset=list(range(8)), data_collator=list)


def batch(vocabulary: int = 40) -> tuple[list, list, list]:
    generator = torch.Generator().manual_seed(0)
    queries = [torch.arange(3, 6 + q) for q in (0, 2) for _ in range(4)]
    responses = [torch.randint(3, vocabulary, (n,), generator=generator) for n in (3, 5, 2, 4, 3, 3, 6, 1)]
    return queries, responses, [torch.randn((len(r),), generator=generator) for r in responses]


@pytest.mark.parametrize(
    ("model", "cls"),
    [("tiny_t5", AutoModelForSeq2SeqLMWithValueHead), ("tiny_llama", AutoModelForCausalLMWithValueHead)],
)
@pytest.mark.parametrize("kind", ["rloo", "grpo"])
def test_a_step_without_a_value_head(model, cls, kind, request, fresh_accelerate):
    trainer = make(request.getfixturevalue(model), cls, advantage=kind)
    assert len(trainer.dataloader) == 4  # 2 prompts, 4 responses each
    before = [p.clone() for p in trainer.policy.parameters()]
    queries, responses, scores = batch()
    stats = trainer.step(queries, responses, scores)
    assert stats["ppo/updates"] == 2 and not any("val" in name or "value" in name for name in stats)
    assert stats["objective/kl"] == pytest.approx(0, abs=1e-5)
    # KL is 0: a return is the sum of the scores
    returns = torch.stack([score.sum() for score in scores]).double()
    expected = group_advantages(returns, [0] * 4 + [1] * 4, kind)
    found, at = torch.tensor(stats["ppo/policy/advantages"]), 0
    for advantage, response in zip(expected, responses, strict=True):
        own = found[at : at + len(response)]
        torch.testing.assert_close(own, advantage.float().expand(len(response)), atol=1e-5, rtol=1e-4)
        at += len(response)
    assert stats["ppo/returns/mean"] == pytest.approx(returns.mean().item(), abs=1e-5)  # one a response, however long
    assert stats["ppo/returns/var"] == pytest.approx(returns.var().item(), rel=1e-4)
    assert stats["ppo/groups/equal"] == 0
    assert stats["ppo/groups/std"] == pytest.approx((returns[:4].std() + returns[4:].std()).item() / 2, rel=1e-4)
    assert any(not torch.equal(a, b) for a, b in zip(before, trainer.policy.parameters(), strict=True))


def test_groups_by_name_in_any_order(tiny_t5, fresh_accelerate):
    queries, responses, scores = batch()
    order = [0, 4, 1, 5, 2, 6, 3, 7]
    plain = make(tiny_t5, AutoModelForSeq2SeqLMWithValueHead).step(queries, responses, scores)
    mixed = [[part[i] for i in order] for part in (queries, responses, scores)]
    named = make(tiny_t5, AutoModelForSeq2SeqLMWithValueHead, samples_per_prompt=1).step(*mixed, groups=["a", "b"] * 4)
    numbered = make(tiny_t5, AutoModelForSeq2SeqLMWithValueHead, samples_per_prompt=1).step(
        *mixed, groups=torch.tensor([7, 8] * 4)
    )
    for name in ("ppo/groups/std", "ppo/returns/mean", "ppo/policy/advantages_mean"):
        assert named[name] == pytest.approx(plain[name], abs=1e-5)
        assert numbered[name] == named[name]


def test_a_group_of_equal_scores_is_counted_although_its_kl_differs(tiny_t5, fresh_accelerate):
    trainer = make(tiny_t5, AutoModelForSeq2SeqLMWithValueHead, learning_rate=1e-2)
    queries, responses, scores = batch()
    trainer.step(queries, responses, scores)
    stats = trainer.step(queries, responses, [torch.tensor(0.25)] * 4 + [torch.tensor(float(i)) for i in range(4)])
    assert stats["ppo/groups/equal"] == 0.5
    assert max(stats["objective/kl_dist"][:4]) - min(stats["objective/kl_dist"][:4]) > 1e-3
    tokens = [len(response) for response in responses[:4]]
    assert len(set(stats["ppo/policy/advantages"][: sum(tokens)].tolist())) == 4


@pytest.mark.parametrize(
    ("settings", "head", "groups", "named"),
    [
        ({"advantage": "ppo"}, False, None, "gae, rloo, grpo"),
        ({"samples_per_prompt": 3}, False, None, "samples_per_prompt"),
        ({}, True, None, "value_head=False"),
        ({"advantage": "gae"}, False, None, "value_head=True"),
        ({"samples_per_prompt": 1}, False, None, "samples_per_prompt"),
        ({}, False, [0] * 7, "7 groups"),
        ({}, False, [0] * 7 + [1], "one response"),
        ({}, False, [0] * 8, "different queries"),
        ({"samples_per_prompt": 8}, False, None, r"different queries.*samples_per_prompt \(8\)"),
        ({}, False, [[0]] * 8, "one number or one text"),
        ({}, False, torch.zeros(8, 1), "one number or one text"),
        ({"advantage": "gae"}, True, [0] * 8, "leave them out"),
    ],
)
def test_mistakes_are_named(tiny_t5, fresh_accelerate, settings, head, groups, named):
    with pytest.raises(ValueError, match=named) as error:
        make(tiny_t5, AutoModelForSeq2SeqLMWithValueHead, head, **settings).step(*batch(), groups=groups)
    assert "\n" not in str(error.value)


def test_a_mistake_in_groups_changes_nothing(tiny_t5, fresh_accelerate):
    trainer = make(tiny_t5, AutoModelForSeq2SeqLMWithValueHead, use_score_scaling=True)
    with pytest.raises(ValueError, match="one response"):
        trainer.step(*batch(), groups=[0] * 7 + [1])
    assert trainer.steps_done == 0 and trainer.running.count == 0


def test_the_advantage_cannot_change_to_one_that_needs_another_model(tiny_t5, fresh_accelerate):
    trainer = make(tiny_t5, AutoModelForSeq2SeqLMWithValueHead)
    trainer.config.advantage = "gae"
    with pytest.raises(ValueError, match="value_head=True"):
        trainer.step(*batch())


def test_classic_methods_without_a_value_head(tiny_llama, fresh_accelerate):
    trainer = make(tiny_llama, AutoModelForCausalLMWithValueHead)
    queries, responses, _ = batch()
    logprobs, logits, values, mask = trainer.batched_forward_pass(trainer.model, queries, responses, return_logits=True)
    assert values is None and logprobs.shape == mask.shape == logits.shape[:2] == (8, 6)
    advantages = group_advantages(torch.arange(8.0), [0] * 4 + [1] * 4, "rloo").float()[:, None].expand(8, 6)
    policy, value, stats = trainer.loss(logprobs, None, logits, None, logprobs, mask, advantages, None)
    torch.testing.assert_close(policy, -advantages[mask.bool()].mean())
    assert value == 0 and "policy/entropy" in stats and not any("val" in name for name in stats)
    with pytest.raises(ValueError, match="group_advantages"):
        trainer.compute_advantages(logprobs, logprobs, mask)


def test_a_policy_without_a_head_is_saved_and_loaded_without_one(tiny_t5, tmp_path, fresh_accelerate):
    trainer = make(tiny_t5, AutoModelForSeq2SeqLMWithValueHead)
    trainer.step(*batch())
    trainer.save_pretrained(tmp_path)
    assert not (tmp_path / "v_head.safetensors").exists()
    again = AutoModelForSeq2SeqLMWithValueHead.from_pretrained(tmp_path, value_head=False)
    assert again.v_head is None and again(torch.tensor([[3, 4]]), decoder_input_ids=torch.tensor([[0]]))[2] is None
    for name, weight in trainer.policy.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name])


@pytest.mark.parametrize("lora", [True, False])
def test_the_head_of_a_checkpoint_is_left_behind(tiny_t5, tmp_path, lora, fresh_accelerate):
    """From a policy of gae to one of rloo and back; weights go from one model to another by state_dict."""
    cls = AutoModelForSeq2SeqLMWithValueHead
    peft_config = LoraConfig(r=2, init_lora_weights=False) if lora else None
    cls.from_pretrained(tiny_t5, peft_config=peft_config).save_pretrained(tmp_path / "gae")
    assert (tmp_path / "gae" / "v_head.safetensors").exists()
    model = cls.from_pretrained(tmp_path / "gae", value_head=False)
    trainer = PPOTrainer(PPOConfig(**TINY, advantage="rloo"), model)
    trainer.step(*batch())
    trainer.save_pretrained(tmp_path / "rloo")
    assert not (tmp_path / "rloo" / "v_head.safetensors").exists()
    again = cls.from_pretrained(tmp_path / "rloo")
    assert again.v_head is not None
    for (name, a), (_, b) in zip(
        model.pretrained_model.named_parameters(), again.pretrained_model.named_parameters(), strict=True
    ):
        assert torch.equal(a, b), name
    assert not any(name.startswith("v_head") for name in model.state_dict())
    model.load_state_dict(model.state_dict())
    with pytest.raises(RuntimeError, match="summary"):
        model.load_state_dict(again.state_dict())


def test_a_resumed_run_ends_in_the_same_bits(tiny_t5, tmp_path, fresh_accelerate):
    whole = make(tiny_t5, AutoModelForSeq2SeqLMWithValueHead)
    whole.step(*batch())
    whole.save_state(tmp_path / "state")
    whole.step(*batch())
    resumed = make(tiny_t5, AutoModelForSeq2SeqLMWithValueHead)
    resumed.load_state(tmp_path / "state")
    resumed.step(*batch())
    for a, b in zip(whole.policy.parameters(), resumed.policy.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("kind", ["rloo", "grpo"])
def test_a_toy_reward_rises(tiny_llama, kind, fresh_accelerate):
    """Paid for each token 7 that is sampled."""
    settings = {"batch_size": 32, "mini_batch_size": 32, "samples_per_prompt": 8, "learning_rate": 1e-2}
    trainer = make(tiny_llama, AutoModelForCausalLMWithValueHead, advantage=kind, init_kl_coef=0.01, **settings)
    queries = [torch.tensor([3, 4 + q]) for q in range(4) for _ in range(8)]
    shares = []
    for _ in range(14):
        responses = trainer.generate(
            queries, return_prompt=False, batch_size=None, do_sample=True, max_new_tokens=6, eos_token_id=None
        )
        shares.append(sum((r == 7).float().mean().item() for r in responses) / len(responses))
        trainer.step(queries, responses, [(r == 7).float() for r in responses])
    assert sum(shares[-3:]) / 3 > 4 * (sum(shares[:3]) / 3 + 0.02)
