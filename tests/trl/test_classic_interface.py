"""What scripts written for TRL 0.7 to 0.11 use of PPOTrainer."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForSeq2SeqLM

from trl import AutoModelForCausalLMWithValueHead, AutoModelForSeq2SeqLMWithValueHead, PPOConfig, PPOTrainer, ppo_math

STATISTICS = """
objective/kl objective/kl_dist objective/logprobs objective/ref_logprobs objective/kl_coef objective/entropy
ppo/mean_non_score_reward ppo/mean_scores ppo/std_scores ppo/loss/policy ppo/loss/value ppo/loss/total
ppo/policy/entropy ppo/policy/approxkl ppo/policy/policykl ppo/policy/clipfrac ppo/policy/advantages
ppo/policy/advantages_mean ppo/policy/ratio ppo/returns/mean ppo/returns/var ppo/val/vpred ppo/val/error
ppo/val/clipfrac ppo/val/mean ppo/val/var ppo/val/var_explained ppo/learning_rate tokens/queries_len_mean
tokens/queries_len_std tokens/queries_dist tokens/responses_len_mean tokens/responses_len_std tokens/responses_dist
time/ppo/forward_pass time/ppo/compute_rewards time/ppo/compute_advantages time/ppo/optimize_step time/ppo/calc_stats
time/ppo/total
""".split()

pytestmark = pytest.mark.filterwarnings("ignore:no dataset was given")


def load(folder, lora: bool = False):
    torch.manual_seed(0)
    causal = "t5" not in folder.name
    cls = AutoModelForCausalLMWithValueHead if causal else AutoModelForSeq2SeqLMWithValueHead
    task = "CAUSAL_LM" if causal else "SEQ_2_SEQ_LM"
    return cls.from_pretrained(folder, peft_config=LoraConfig(task_type=task) if lora else None)


def make_trainer(folder, model=None, cls=PPOTrainer, trainer_kwargs=None, **config):
    """A trainer of batches of two, with plain gradient descent: Adam would amplify rounding noise."""
    model = load(folder) if model is None else model
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    config = {"batch_size": 2, "mini_batch_size": 2, "ppo_epochs": 1, **config}
    return cls(PPOConfig(**config), model, optimizer=optimizer, **(trainer_kwargs or {}))


def weights(trainer) -> torch.Tensor:
    return torch.cat([p.detach().flatten().clone() for p in trainer.policy.parameters()])


QUERIES = [torch.tensor([5, 6, 7]), torch.tensor([8, 9])]
RESPONSES = [torch.tensor([10, 11, 12]), torch.tensor([13, 14, 15, 16])]
SCORES = [torch.tensor(1.0), torch.tensor(-0.5)]


# --- statistics and arguments of step --------------------------------------------------------------------------------


@pytest.mark.parametrize("fixture", ["tiny_t5", "tiny_gpt2"])
def test_statistics_have_their_names_and_shapes(fixture, request):
    trainer = make_trainer(request.getfixturevalue(fixture), ppo_epochs=3, mini_batch_size=1)
    stats = trainer.step(QUERIES, RESPONSES, SCORES)
    assert set(STATISTICS) <= stats.keys()
    arrays = {name: value for name, value in stats.items() if isinstance(value, np.ndarray)}
    assert {name: array.shape for name, array in arrays.items()} == {
        "objective/kl_dist": (2,),
        "objective/logprobs": (2, 4),
        "objective/ref_logprobs": (2, 4),
        "ppo/policy/advantages": (7,),
        "ppo/policy/ratio": (3 * 7,),
        "tokens/queries_dist": (2,),
        "tokens/responses_dist": (2,),
    }
    assert all(isinstance(value, float) for name, value in stats.items() if name not in arrays)
    assert arrays["tokens/queries_dist"].tolist() == [3, 2] and arrays["tokens/responses_dist"].tolist() == [3, 4]
    assert stats["tokens/responses_len_std"] == pytest.approx(math.sqrt(0.5))
    assert arrays["objective/logprobs"][0, 3] == 0 and (arrays["objective/logprobs"][1] < 0).all()
    np.testing.assert_allclose(arrays["objective/kl_dist"].mean(), stats["objective/kl"], atol=1e-6)
    np.testing.assert_allclose(arrays["objective/logprobs"], arrays["objective/ref_logprobs"], atol=1e-5)
    np.testing.assert_allclose(arrays["ppo/policy/advantages"].mean(), stats["ppo/policy/advantages_mean"], atol=1e-6)
    assert (np.abs(arrays["ppo/policy/ratio"][:3] - 1) < 1e-5).all() and (arrays["ppo/policy/ratio"][-3:] != 1).any()
    assert stats["ppo/mean_scores"] == 0.25 and stats["ppo/std_scores"] == pytest.approx(1.5 / math.sqrt(2))
    assert 0 < stats["ppo/policy/entropy"] <= math.log(trainer.policy.config.vocab_size) + 1e-4


def test_every_shape_of_a_score(tiny_t5):
    vectors = [torch.tensor([0.0, 0, 1]), torch.tensor([0.0, 0, 0, -0.5])]
    shapes = [SCORES, [score[None] for score in SCORES], [1.0, -0.5], vectors, torch.tensor([1.0, -0.5])]
    results = []
    for scores in shapes:
        trainer = make_trainer(tiny_t5)
        trainer.step(QUERIES, RESPONSES, scores)
        results.append(weights(trainer))
    assert all(torch.equal(result, results[0]) for result in results)
    for wrong in ([torch.tensor([[1.0]])] * 2, [torch.zeros(2)] * 2):
        with pytest.raises(ValueError, match="score 0 has shape"):
            make_trainer(tiny_t5).step(QUERIES, RESPONSES, wrong)


def test_bad_input_is_named(tiny_t5):
    trainer = make_trainer(tiny_t5)
    ones = [torch.ones_like(r) for r in RESPONSES]
    wrong = [
        ((QUERIES[:1], RESPONSES, SCORES), "1 queries; batch_size is 2"),
        ((QUERIES, RESPONSES, SCORES[:1]), "1 scores; batch_size is 2"),
        ((QUERIES, RESPONSES, SCORES, ones[:1]), "1 response_masks; batch_size is 2"),
        (([q[None] for q in QUERIES], RESPONSES, SCORES), "query 0 must be a 1-D tensor"),
        ((QUERIES, [r.float() for r in RESPONSES], SCORES), "response 0 must be a 1-D tensor"),
        ((QUERIES, RESPONSES, SCORES, [ones[0], ones[0]]), "response mask 1 has 3 elements; its response has 4"),
        ((QUERIES, RESPONSES, SCORES, [ones[0] * 2, ones[1]]), "response mask 0 must be a 1-D tensor of 0 and 1"),
        ((QUERIES, RESPONSES, SCORES, [ones[0] * 0, ones[1]]), "response mask 0 masks every token"),
    ]
    before = weights(trainer)
    for arguments, message in wrong:
        with pytest.raises(ValueError, match=message) as error:
            trainer.step(*arguments)
        assert "\n" not in str(error.value)
    trainer.config.mini_batch_size = 3
    with pytest.raises(ValueError, match=r"batch_size \(2\) must be a multiple"):
        trainer.step(QUERIES, RESPONSES, SCORES)
    assert torch.equal(weights(trainer), before)


# --- response_masks --------------------------------------------------------------------------------------------------


def test_masked_tokens_are_as_if_they_were_part_of_the_query(tiny_gpt2):
    """Tokens in front of the first action: the same update as from a batch in which the query holds them."""
    masked, plain = make_trainer(tiny_gpt2), make_trainer(tiny_gpt2)
    masks = [torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1, 1])]
    for _ in range(2):
        masked_stats = masked.step(QUERIES, RESPONSES, SCORES, masks)
        queries = [torch.cat([q, r[m == 0]]) for q, r, m in zip(QUERIES, RESPONSES, masks, strict=True)]
        responses = [r[m == 1] for r, m in zip(RESPONSES, masks, strict=True)]
        plain_stats = plain.step(queries, responses, SCORES)
        torch.testing.assert_close(weights(masked), weights(plain), rtol=0, atol=1e-6)
        for name in ("objective/kl", "ppo/returns/mean", "ppo/loss/total", "ppo/policy/entropy", "ppo/grad_norm"):
            assert masked_stats[name] == pytest.approx(plain_stats[name], abs=1e-5), name
    assert not torch.equal(weights(masked), weights(make_trainer(tiny_gpt2)))


def test_what_stands_between_actions_is_no_step_in_time():
    mask = torch.tensor([[True, False, True, False]])
    values, rewards = torch.tensor([[1.0, 50, 2, 60]]), torch.tensor([[3.0, 70, 4, 80]])
    gaps = ppo_math.gae(values, rewards, mask, gamma=0.9, lam=0.5)
    dense = ppo_math.gae(values[:, ::2], rewards[:, ::2], mask[:, ::2], gamma=0.9, lam=0.5)
    for gap, found in zip(gaps, dense, strict=True):
        assert torch.equal(gap[:, ::2], found)
    # delta_2 = 4 - 2, delta_0 = 3 + 0.9 * 2 - 1, A_0 = delta_0 + 0.9 * 0.5 * A_2
    torch.testing.assert_close(dense[0], torch.tensor([[3.8 + 0.45 * 2, 2.0]]))


@pytest.mark.parametrize("fixture", ["tiny_t5", "tiny_gpt2"])
def test_a_masked_token_between_actions(fixture, request):
    """It has no loss: a step of pure policy gradient moves along the gradient of the actions' log-probabilities."""
    trainer = make_trainer(
        request.getfixturevalue(fixture), vf_coef=0.0, init_kl_coef=0.0, adap_kl_ctrl=False, batch_size=2
    )
    masks = [torch.tensor([1, 0, 1]), torch.tensor([1, 1, 0, 1])]
    before = weights(trainer)
    stats = trainer.step(QUERIES, RESPONSES, SCORES, masks)
    assert (stats["objective/logprobs"] != 0).tolist() == [[True, False, True, False], [True, True, False, True]]
    assert stats["ppo/policy/advantages"].shape == (5,)
    moved = weights(trainer) - before

    again = make_trainer(request.getfixturevalue(fixture))
    logprobs, _, _, actions = again.batched_forward_pass(again.policy, QUERIES, RESPONSES, response_masks=masks)
    advantages = torch.tensor(stats["ppo/policy/advantages"])
    # ratio 1: the gradient of -mean(A r) is that of -mean(A log p)
    (-(advantages * logprobs[actions.bool()]).mean()).backward()
    gradient = torch.cat(
        [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in again.policy.parameters()]
    )
    torch.testing.assert_close(moved, -0.1 * gradient, rtol=1e-3, atol=1e-6)
    assert moved.abs().max() > 1e-4


def test_a_scalar_goes_to_the_last_action_and_a_masked_token_takes_no_score():
    tokens = torch.tensor([[True, True, True], [True, True, False]])
    actions = torch.tensor([[True, True, False], [False, True, False]])
    placed = ppo_math.place_scores([2.0, torch.tensor([0.0, 3.0])], tokens, actions)
    assert placed.tolist() == [[0, 2, 0], [0, 3, 0]]
    with pytest.raises(ValueError, match="score 1 pays token 0, which response_masks masks"):
        ppo_math.place_scores([2.0, torch.tensor([1.0, 3.0])], tokens, actions)
    placed = ppo_math.place_scores([math.nan, math.inf], tokens, actions)
    assert placed.isfinite().tolist() == [[True, False, True], [True, False, True]]


# --- the decoder's start token ---------------------------------------------------------------------------------------


def test_a_start_token_in_front_of_every_response_is_no_action(tiny_t5):
    start = torch.tensor([0])
    whole = [torch.cat([start, r]) for r in RESPONSES]
    scores = [torch.tensor([0.5, 0.0, 1.0]), torch.tensor(-0.5)]
    masks = [torch.tensor([1, 0, 1]), torch.tensor([1, 1, 1, 1])]
    scores[0][1] = 0.0
    plain = make_trainer(tiny_t5)
    plain.step(QUERIES, RESPONSES, scores, masks)
    longer = [torch.cat([torch.zeros(1), scores[0]]), scores[1]]
    longer_masks = [torch.cat([torch.tensor([1]), m]) for m in masks]
    for given, given_masks in ((scores, masks), (longer, longer_masks)):
        trainer = make_trainer(tiny_t5)
        with pytest.warns(UserWarning, match="start token") as caught:
            trainer.step(QUERIES, whole, given, given_masks)
            assert torch.equal(weights(trainer), weights(plain))
            trainer.step(QUERIES, whole, given, given_masks)
        assert len([w for w in caught if "start token" in str(w.message)]) == 1
    # a pad token that one response begins with is an action
    trainer = make_trainer(tiny_t5)
    stats = trainer.step(QUERIES, [whole[0], RESPONSES[1]], SCORES)
    assert stats["tokens/responses_dist"].tolist() == [4, 4]


# --- scores and rewards ----------------------------------------------------------------------------------------------


def test_running_moments_are_those_of_all_scores():
    moments = ppo_math.RunningMoments()
    assert (moments.mean, moments.std) == (0, 1)
    moments.update(torch.tensor([5.0]))
    assert (moments.mean, moments.std) == (5, 1)  # one score has no spread: nothing to divide by
    seen = [5.0]
    for batch in ([1.0, 2.0], [4.0, 8.0, 1000.0], [-3.0]):
        moments.update(torch.tensor(batch))
        seen += batch
        assert moments.mean == pytest.approx(np.mean(seen), rel=1e-6)
        assert moments.std == pytest.approx(np.std(seen, ddof=1), rel=1e-6)
    copy = ppo_math.RunningMoments()
    copy.load_state_dict(moments.state_dict())
    assert copy.state_dict() == moments.state_dict()


def test_scaled_and_clipped_vectors():
    mask = torch.tensor([[True, True, True], [True, True, False]])
    placed = torch.tensor([[1.0, 2, 3], [0, 4, 0]])
    assert ppo_math.scale_scores(placed, mask, std=2.0).tolist() == [[0.5, 1, 1.5], [0, 2, 0]]
    normed = ppo_math.scale_scores(placed, mask, std=2.0, mean=5.0)
    assert normed.tolist() == [[0.5, 1, -1], [0, -0.5, 0]]  # sums (6 - 5) / 2 and (4 - 5) / 2
    clipped = ppo_math.clip_scores(torch.tensor([[1.0, 2, 3], [0, -4, 0], [1, -1, 0]]), 3.0)
    torch.testing.assert_close(clipped, torch.tensor([[0.5, 1, 1.5], [0, -3, 0], [1, -1, 0]]))


@pytest.mark.parametrize("vectors", [False, True])
def test_scores_are_scaled_by_all_scores_so_far(tiny_t5, tmp_path, vectors):
    shapes = [torch.linspace(0, 1, len(r)) for r in RESPONSES]

    def scores(*sums):
        if not vectors:
            return [torch.tensor(float(s)) for s in sums]
        return [s * shape / shape.sum() for s, shape in zip(sums, shapes, strict=True)]

    settings = {"use_score_scaling": True, "use_score_norm": True, "score_clip": 0.6}
    trainer = make_trainer(tiny_t5, **settings)
    stats = trainer.step(QUERIES, RESPONSES, scores(1, 3))
    # mean 2, deviation sqrt(2): -0.707 and 0.707, clipped
    assert stats["ppo/mean_scores"] == pytest.approx(0, abs=1e-6)
    assert stats["ppo/std_scores"] == pytest.approx(1.2 / math.sqrt(2), rel=1e-5)
    trainer.save_state(tmp_path / "state")
    again = make_trainer(tiny_t5, **settings)
    again.load_state(tmp_path / "state")
    # all scores so far: 1 3 2 10, mean 4 and variance 50 / 3
    expected = (-2 / math.sqrt(50 / 3) + 0.6) / 2
    for each in (trainer, again):
        stats = each.step(QUERIES, RESPONSES, scores(2, 10))
        assert stats["ppo/mean_scores"] == pytest.approx(expected, rel=1e-5)
    # a step that is left out does not count
    trainer.step(QUERIES, RESPONSES, scores(math.nan, 0))
    again.save_state(tmp_path / "again")
    trainer.save_state(tmp_path / "trainer")
    third = [trainer.step(QUERIES, RESPONSES, scores(5, 6)), again.step(QUERIES, RESPONSES, scores(5, 6))]
    assert third[0]["ppo/mean_scores"] == third[1]["ppo/mean_scores"]


def test_scaling_without_norm_keeps_the_mean(tiny_t5):
    trainer = make_trainer(tiny_t5, use_score_scaling=True)
    stats = trainer.step(QUERIES, RESPONSES, [torch.tensor(1.0), torch.tensor(3.0)])
    assert stats["ppo/mean_scores"] == pytest.approx(2 / math.sqrt(2), rel=1e-5)
    # equal scores have no deviation to divide by
    stats = make_trainer(tiny_t5, use_score_scaling=True).step(QUERIES, RESPONSES, [3.0, 3.0])
    assert stats["ppo/mean_scores"] == 3


def test_whitened_rewards(tiny_t5):
    mask = torch.tensor([[True, True, True], [True, False, False]])
    rewards = torch.tensor([[1.0, 2, 3], [6, 99, 99]])
    zeros = torch.zeros_like(rewards)
    trainer = make_trainer(tiny_t5, whiten_rewards=True, gamma=1.0, lam=1.0)
    _, advantages, returns = trainer.compute_advantages(zeros, rewards, mask)
    # mean 3, variance 14 / 3: (r - 3) / sqrt(14 / 3) + 3
    white = ((rewards - 3) / math.sqrt(14 / 3) + 3)[mask]
    assert float(white.mean()) == pytest.approx(3) and float(white.var()) == pytest.approx(1)
    expected = torch.stack([white[:3].sum(), white[1:3].sum(), white[2], white[3]])
    torch.testing.assert_close(returns[mask], expected)
    torch.testing.assert_close(advantages[mask], (expected - expected.mean()) / expected.std())
    _, _, returns = make_trainer(tiny_t5, gamma=1.0, lam=1.0).compute_advantages(zeros, rewards, mask)
    assert returns[mask].tolist() == [6, 5, 3, 6]


def test_the_best_policy_is_pushed(tiny_t5):
    class Recorder(PPOTrainer):
        def push_to_hub(self, **kwargs):
            pushed.append((self.steps_done, kwargs))

    for compare, expected in ((1, [1, 3, 5]), (2, [1, 3, 5]), (3, [1, 4])):
        pushed: list = []
        kwargs = {"repo_id": "me/model", "private": True}
        trainer = make_trainer(tiny_t5, cls=Recorder, push_to_hub_if_best_kwargs=kwargs, compare_steps=compare)
        for score in (1.0, 0.5, 2.0, 2.0, 3.0):
            trainer.step(QUERIES, RESPONSES, [score, score])
        assert pushed == [(step, kwargs) for step in expected]
    make_trainer(tiny_t5, cls=Recorder).step(QUERIES, RESPONSES, [9.0, 9.0])
    assert len(pushed) == 2


# --- generate --------------------------------------------------------------------------------------------------------


def test_what_generate_returns_of_a_decoder_only_model(tiny_gpt2):
    trainer = make_trainer(tiny_gpt2)
    how = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None}
    listed = trainer.generate(QUERIES, **how)
    assert [tuple(ids.shape) for ids in listed] == [(7,), (6,)]
    assert all(torch.equal(ids[: len(q)], q) for ids, q in zip(listed, QUERIES, strict=True))
    bare = trainer.generate(QUERIES, return_prompt=False, batch_size=1, **how)
    assert [ids.tolist() for ids in bare] == [ids[-4:].tolist() for ids in listed]
    single = trainer.generate(QUERIES[0], **how)
    assert single.shape == (1, 7) and torch.equal(single[0], listed[0])
    assert torch.equal(trainer.generate(QUERIES[0], return_prompt=False, **how)[0], bare[0])
    two = trainer.generate(QUERIES, do_sample=True, num_return_sequences=2, max_new_tokens=3, eos_token_id=None)
    assert [ids[:2].tolist() for ids in two] == [[5, 6], [5, 6], [8, 9], [8, 9]]
    assert trainer.generate([]) == []
    for wrong in (torch.stack([QUERIES[0], QUERIES[0]]), [QUERIES[0][None]]):
        with pytest.raises(ValueError):
            trainer.generate(wrong, **how)


def test_what_generate_returns_of_an_encoder_decoder(tiny_t5):
    trainer = make_trainer(tiny_t5)
    how = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None}
    single = trainer.generate(QUERIES[0], **how)
    assert single.shape == (1, 4)  # without query and start token
    transformers_own = AutoModelForSeq2SeqLM.from_pretrained(tiny_t5)
    whole = transformers_own.generate(QUERIES[0][None], max_new_tokens=4, do_sample=False, eos_token_id=None)
    assert whole[0, 0] == 0 and torch.equal(whole[:, 1:], single)
    assert torch.equal(trainer.generate(QUERIES[0], return_prompt=False, **how), single)


@pytest.mark.parametrize("lora", [False, True])
def test_responses_of_the_reference(tiny_gpt2, lora):
    trainer = make_trainer(tiny_gpt2, load(tiny_gpt2, lora))
    how = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    start = [ids.tolist() for ids in trainer.generate(QUERIES, **how)]
    with torch.no_grad():
        for parameter in trainer.policy.pretrained_model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape) * 0.3)
    responses, ref_responses = trainer.generate(QUERIES, generate_ref_response=True, **how)
    assert [ids.tolist() for ids in ref_responses] == start
    assert [ids.tolist() for ids in responses] != start
    one, ref_one = trainer.generate(QUERIES[0], generate_ref_response=True, **how)
    assert one.shape == ref_one.shape == (1, 9) and ref_one[0].tolist() == start[0]


def test_a_length_sampler_draws_for_each_batch(tiny_gpt2):
    trainer = make_trainer(tiny_gpt2)
    lengths = iter([np.int64(2), np.int64(5)])
    found = trainer.generate(
        QUERIES, lambda: next(lengths), batch_size=1, return_prompt=False, do_sample=False, eos_token_id=None
    )
    assert [len(ids) for ids in found] == [2, 5]


# --- constructor and attributes --------------------------------------------------------------------------------------


def test_the_constructor_takes_its_arguments_in_trls_order(tiny_gpt2):
    model, reference = load(tiny_gpt2), load(tiny_gpt2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer)
    config = PPOConfig(batch_size=2, seed=3)
    with pytest.warns(UserWarning, match="num_shared_layers has no effect"):
        trainer = PPOTrainer(config, model, reference, None, [1, 2, 3], optimizer, sum, 1, schedule)
    assert trainer.model is model and trainer.ref_model is reference and trainer.config is config
    assert trainer.optimizer.optimizer is optimizer and trainer.lr_scheduler.scheduler is schedule
    assert [type(batch) for batch in trainer.dataloader] == [int]
    assert trainer.kl_ctl is trainer.kl_controller and trainer.kl_ctl.value == 0.2
    assert trainer.current_device == trainer.accelerator.device and trainer.current_step == 0
    assert (trainer.is_encoder_decoder, trainer.is_peft_model) == (False, False)
    assert (config.is_encoder_decoder, config.is_peft_model, config.world_size) == (False, False, 1)
    assert (config.global_batch_size, config.global_backward_batch_size) == (2, 1)
    trainer.step(QUERIES, RESPONSES, SCORES)
    assert trainer.current_step == 1


def test_a_model_without_adapters_has_a_frozen_copy_as_reference(tiny_t5):
    trainer = make_trainer(tiny_t5)
    reference = trainer.ref_model
    assert not any(p.requires_grad for p in reference.parameters())
    before = {name: p.clone() for name, p in reference.named_parameters()}
    trainer.step(QUERIES, RESPONSES, SCORES)
    moved = dict(trainer.policy.named_parameters())
    assert before.keys() == moved.keys()
    assert all(torch.equal(before[name], p) for name, p in reference.named_parameters())
    assert any(not torch.equal(before[name], p) for name, p in moved.items())
    with pytest.raises(ValueError, match="ref_model is the model that trains"):
        make_trainer(tiny_t5, trainer.policy, trainer_kwargs={"ref_model": trainer.policy})


def test_the_reference_of_a_peft_model(tiny_t5, capsys):
    assert make_trainer(tiny_t5, load(tiny_t5, lora=True)).ref_model is None
    capsys.readouterr()
    other = AutoModelForSeq2SeqLM.from_pretrained(tiny_t5)
    with torch.no_grad():
        other.shared.weight.mul_(1.5)
    trainer = make_trainer(tiny_t5, load(tiny_t5, lora=True), trainer_kwargs={"ref_model": other})
    assert "reference" in capsys.readouterr().out
    assert trainer.ref_model.pretrained_model is other
    stats = trainer.step(QUERIES, RESPONSES, SCORES)
    assert np.abs(stats["objective/kl_dist"]).max() > 1e-3  # the adapter adds zero: of itself it would be 0


def test_what_cannot_be_built_is_named(tiny_t5):
    model = load(tiny_t5)
    wrong = [
        (({"batch_size": 2}, model), {}, "config must be a PPOConfig, not dict"),
        ((PPOConfig(), model.pretrained_model), {}, "model must be an AutoModelForCausalLMWithValueHead or"),
        ((PPOConfig(), model, "gpt2"), {}, "ref_model must be a model, not str"),
        ((PPOConfig(), model), {"dataset": iter([])}, "dataset must be a sequence"),
        ((PPOConfig(), model), {"data_collator": 3}, "data_collator must be a function"),
        ((PPOConfig(accelerator_kwargs={"log_with": "wandb"}), model), {}, "accelerator_kwargs cannot set log_with"),
        ((PPOConfig(accelerator_kwargs={"colour": 1}), model), {}, "accelerator_kwargs: .*colour"),
        ((PPOConfig(accelerator_kwargs={"mixed_precision": "fp16"}), model), {}, "fp16"),
        ((PPOConfig(project_kwargs={"colour": 1}), model), {}, "project_kwargs: .*colour"),
    ]
    for arguments, more, message in wrong:
        with pytest.raises(ValueError, match=message) as error:
            PPOTrainer(*arguments, **more)
        assert "\n" not in str(error.value)


def test_settings_reach_accelerate(tiny_t5, tmp_path):
    trainer = make_trainer(
        tiny_t5, log_with="tensorboard", project_kwargs={"logging_dir": str(tmp_path / "logs")},
        accelerator_kwargs={"rng_types": ["torch"]}, tracker_kwargs={"tensorboard": {"filename_suffix": ".mine"}},
    )  # fmt: skip
    assert trainer.accelerator.rng_types == ["torch"]
    trainer.log_stats({"x": 1.0})
    trainer.accelerator.end_training()
    assert list((tmp_path / "logs").rglob("*.mine"))


def test_names_that_are_absent_say_what_to_use(tiny_t5):
    trainer = make_trainer(tiny_t5)
    for name in ("train_minibatch", "record_step_stats", "gather_stats", "create_model_card"):
        with pytest.raises(AttributeError, match=f"no {name} in this version; "):
            getattr(trainer, name)
    with pytest.raises(AttributeError, match=r"no colour$"):
        trainer.colour  # noqa: B018


# --- data ------------------------------------------------------------------------------------------------------------


def test_columns_of_a_dataset(tiny_t5):
    rows = {"input_ids": [[1, 2], [3, 4], [5, 6]], "query": list("abc"), "label": [0, 1, 0], "source": list("xyz")}
    data = Dataset.from_dict(rows).with_format("torch")
    trainer = make_trainer(tiny_t5, trainer_kwargs={"dataset": data})
    (batch,) = trainer.dataloader
    assert set(batch) == {"input_ids", "query", "label"}
    assert batch["input_ids"].shape == (2, 2) and len(batch["query"]) == 2
    trainer = make_trainer(tiny_t5, remove_unused_columns=False, trainer_kwargs={"dataset": data})
    assert trainer.dataset.column_names == list(rows)


def test_each_epoch_has_another_order(tiny_t5):
    trainer = make_trainer(tiny_t5, trainer_kwargs={"dataset": list(range(40)), "data_collator": list})
    epochs = [[i for batch in trainer.dataloader for i in batch] for _ in range(3)]
    assert all(sorted(epoch) == list(range(40)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    next(iter(trainer.dataloader))
    assert trainer.dataloader.batch_sampler.epoch == 4
    trainer.dataloader.batch_sampler.set_epoch(1)
    assert [i for batch in trainer.dataloader for i in batch] == epochs[1]


# --- views of the mathematics ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("fixture", ["tiny_t5", "tiny_gpt2"])
@pytest.mark.parametrize("kind", ["kl", "full"])
def test_the_parts_of_a_step_give_its_statistics(fixture, kind, request):
    trainer = make_trainer(request.getfixturevalue(fixture), kl_penalty=kind, whiten_rewards=True, mini_batch_size=1)
    trainer.step(QUERIES, RESPONSES, SCORES)  # so that policy and reference differ
    with torch.no_grad():
        inputs = trainer.prepare_model_inputs(QUERIES, RESPONSES)
        assert {"input_ids", "attention_mask"} <= inputs.keys()
        logprobs, logits, values, mask = trainer.batched_forward_pass(
            trainer.policy, QUERIES, RESPONSES, inputs, return_logits=True
        )
        ref_logprobs, ref_logits, _, _ = trainer.batched_forward_pass(
            trainer.ref_model, QUERIES, RESPONSES, inputs, return_logits=True
        )
        assert mask.tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]] and logits.shape[:2] == (2, 4)
        full = kind == "full"
        rewards, penalty = trainer.compute_rewards(
            torch.stack(SCORES), logits if full else logprobs, ref_logits if full else ref_logprobs, mask
        )
        values, advantages, returns = trainer.compute_advantages(values, rewards, mask)
        policy_loss, value_loss, parts = trainer.loss(
            logprobs, values, logits, values, logprobs, mask, advantages, returns
        )
    assert (rewards - penalty)[mask.bool()].tolist() == pytest.approx([0, 0, 1, 0, 0, 0, -0.5], abs=1e-6)
    trainer.config.mini_batch_size = 2
    stats = trainer.step(QUERIES, RESPONSES, SCORES)
    keep = mask.bool().numpy()
    np.testing.assert_allclose(stats["objective/logprobs"][keep], logprobs[mask.bool()], atol=1e-5)
    np.testing.assert_allclose(stats["objective/ref_logprobs"][keep], ref_logprobs[mask.bool()], atol=1e-5)
    np.testing.assert_allclose(stats["ppo/policy/advantages"], advantages[mask.bool()], atol=1e-4)
    assert stats["ppo/returns/mean"] == pytest.approx(float(returns[mask.bool()].mean()), abs=1e-5)
    for name in ("loss/policy", "loss/value", "loss/total", "policy/entropy", "val/error"):
        assert stats[f"ppo/{name}"] == pytest.approx(parts[name], abs=1e-5), name
    assert float(policy_loss + value_loss) == pytest.approx(parts["loss/total"], abs=1e-6)


# --- tracking --------------------------------------------------------------------------------------------------------


COLUMNS, ROWS = ["step", "text", "score"], [[1, "a | <b>\n*c*", 0.5], [1, "d", None]]


def test_wandb_gets_any_table(tiny_t5, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_SILENT", "true")
    options = {"mode": "offline", "dir": str(tmp_path)}
    trainer = make_trainer(tiny_t5, log_with="wandb", tracker_kwargs={"wandb": options})
    trainer.log_table("rollouts/train", COLUMNS, ROWS)
    trainer.accelerator.end_training()
    (path,) = tmp_path.rglob("*.table.json")
    assert json.loads(path.read_text()) | {"columns": COLUMNS, "data": ROWS} == json.loads(path.read_text())


def test_tensorboard_gets_a_table_as_text(tiny_t5, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer = make_trainer(tiny_t5, log_with="tensorboard", project_kwargs={"logging_dir": str(tmp_path)}, run_name="r")
    trainer.log_table("rollouts/train", COLUMNS, ROWS)
    trainer.accelerator.end_training()
    events = EventAccumulator(str(tmp_path / "r"))
    events.Reload()
    (event,) = events.Tensors("rollouts/train/text_summary")
    lines = event.tensor_proto.string_val[0].decode().splitlines()
    assert lines[2:] == ["| 1 | a \\| &lt;b&gt;<br>\\*c\\* | 0.5 |", "| 1 | d |  |"]


def test_no_tracker_gets_no_table(tiny_t5):
    make_trainer(tiny_t5, log_with=None).log_table("rollouts/train", COLUMNS, ROWS)


def test_wandb_gets_a_table(tiny_t5, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_SILENT", "true")
    options = {"mode": "offline", "dir": str(tmp_path), "name": "mine"}
    notes = {"exp_name": "first", "task_name": "sentiment", "model_name": "tiny", "query_dataset": "imdb"}
    trainer = make_trainer(
        tiny_t5, log_with="wandb", tracker_kwargs={"wandb": options}, tracker_project_name="project", **notes
    )
    batch = {"query": ["q0", "q1"], "response": ["r0", "r1"], "answer": ["a0", "a1"]}
    trainer.log_stats({"x": 1.0}, batch, [torch.tensor([1.0, 1.0]), 0.5])
    trainer.log_stats({"x": 1.0}, batch, [1.0, 0.5], columns_to_log=["answer"])
    with pytest.raises(ValueError, match="columns_to_log names missing; the batch has query, response"):
        trainer.log_stats({"x": 1.0}, batch, [1.0, 0.5], columns_to_log=["query", "missing"])
    with pytest.warns(UserWarning, match="no table is logged"):
        trainer.log_stats({"x": 1.0}, {"other": [1, 2]}, [1.0, 0.5])
    run = trainer.accelerator.get_tracker("wandb", unwrap=True)
    assert (run.project, run.name) == ("project", "mine") and run.config["batch_size"] == 2
    assert {name: run.config[name] for name in notes} == notes
    trainer.accelerator.end_training()
    files = list(tmp_path.rglob("*.table.json"))
    assert all(path.name.startswith("game_log") for path in files)
    tables = [json.loads(path.read_text()) for path in files]
    assert sorted(table["columns"] for table in tables) == [["answer", "reward"], ["query", "response", "reward"]]
    (rows,) = [table["data"] for table in tables if len(table["columns"]) == 3]
    assert rows == [["q0", "r0", 2], ["q1", "r1", 0.5]]
