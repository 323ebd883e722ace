from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig
from transformers import AutoTokenizer, T5Config, T5ForConditionalGeneration

from trl import AutoModelForCausalLMWithValueHead, AutoModelForSeq2SeqLMWithValueHead, PPOConfig, PPOTrainer, set_seed

LORA = {"r": 4, "lora_alpha": 8, "task_type": "SEQ_2_SEQ_LM"}


def make_trainer(folder, *, lora: dict | None = None, dtype=None, trainer_kwargs: dict | None = None, **config):
    torch.manual_seed(0)
    causal = "T5" not in str(folder) and "t5" not in str(folder)
    cls = AutoModelForCausalLMWithValueHead if causal else AutoModelForSeq2SeqLMWithValueHead
    peft_config = LoraConfig(**lora) if lora else None
    model = cls.from_pretrained(folder, peft_config=peft_config, dtype=dtype, v_head_init_strategy="zeros")
    sizes = {"batch_size": 8, "mini_batch_size": 4, "gradient_accumulation_steps": 2}
    config = {"log_with": "none", "learning_rate": 1e-3, **sizes, **config}
    return PPOTrainer(PPOConfig(**config), model, **{"data_collator": list} | (trainer_kwargs or {}))


def make_batch(size: int = 8, vocabulary: int = 48, seed: int = 1):
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 9, (2, size), generator=g).tolist()
    queries, responses = ([torch.randint(3, vocabulary, (n,), generator=g) for n in row] for row in lengths)
    return queries, responses, [torch.randn(len(r), generator=g) for r in responses]


def weights(trainer) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trainer.policy.named_parameters()}


def differ(a: dict, b: dict) -> float:
    return max(float((a[name] - b[name]).detach().abs().max()) for name in a)


# --- generation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("fixture", ["tiny_t5", "tiny_gpt2", "tiny_llama"])
def test_generated_responses_do_not_depend_on_batch_mates(fixture, side, request, tiny_t5):
    tokenizer = None
    if fixture == "tiny_t5":
        tokenizer = AutoTokenizer.from_pretrained(tiny_t5)
        tokenizer.padding_side = side
    trainer = make_trainer(request.getfixturevalue(fixture), trainer_kwargs={"tokenizer": tokenizer})
    queries, _, _ = make_batch()
    together = trainer.generate(queries, batch_size=None, return_prompt=False, max_new_tokens=6, do_sample=False)
    for size in (1, 3):
        apart = trainer.generate(queries, batch_size=size, return_prompt=False, max_new_tokens=6, do_sample=False)
        assert [r.tolist() for r in apart] == [r.tolist() for r in together]
    assert all(1 <= len(r) <= 6 for r in together)


def test_a_response_ends_with_its_first_end_token(tiny_t5):
    trainer = make_trainer(tiny_t5)
    queries, _, _ = make_batch()
    free = trainer.generate(queries, max_new_tokens=8, do_sample=False)
    end = int(free[0][2])  # call the third token of the first response an end token
    cut = trainer.generate(queries, max_new_tokens=8, do_sample=False, eos_token_id=end)
    for response, whole in zip(cut, free, strict=True):
        ids = whole.tolist()
        assert response.tolist() == (ids[: ids.index(end) + 1] if end in ids else ids)
    assert len(cut[0]) <= 3 and cut[0][-1] == end


def test_sampling_is_from_the_whole_vocabulary(tiny_t5):
    trainer = make_trainer(tiny_t5)
    query = [torch.tensor([5, 6, 7])] * 400
    inputs = trainer.prepare_model_inputs(query[:1], [torch.tensor([3])])
    likeliest = trainer.policy(**inputs)[0][0, 0].topk(50).indices
    first = torch.stack([r[0] for r in trainer.generate(query, do_sample=True, max_new_tokens=1)])
    assert not torch.isin(first, likeliest).all()
    first = torch.stack([r[0] for r in trainer.generate(query, do_sample=True, max_new_tokens=1, top_k=50)])
    assert torch.isin(first, likeliest).all()


# --- a reward belongs to its token, through the trainer ---------------------------------------------------------------


FIRST_ROW_ID = 6  # the query of row i repeats the id 6 + i


class Learning(Exception):
    """The loss was reached: a step ends here, and changes no weight."""


@pytest.fixture
def observed(tmp_path):
    """The returns that `step` of a very small trainer hands to the loss, by row, with KL off and values at 0."""
    folder = tmp_path / "t5-observed"
    torch.manual_seed(0)
    config = T5Config(vocab_size=16, d_model=8, d_ff=8, d_kv=4, num_heads=2, num_layers=1, decoder_start_token_id=0)
    T5ForConditionalGeneration(config).save_pretrained(folder)
    trainer = make_trainer(folder, lam=1.0, gamma=1.0, init_kl_coef=0.0, ppo_epochs=1)
    trainer.tokenizer = type("Tokenizer", (), {"padding_side": "right"})()
    seen = {}

    def note_rows(_policy, _args, kwargs):
        seen["rows"] = [int(ids.max()) - FIRST_ROW_ID for ids in kwargs["input_ids"]]

    def note_returns(_logprobs, _values, mask, *, returns, **_):
        seen["returns"] = [row[keep].tolist() for row, keep in zip(returns, mask, strict=True)]
        raise Learning

    trainer.policy.register_forward_pre_hook(note_rows, with_kwargs=True)

    def forward(logits_to_keep, input_ids, **_):
        logits = torch.zeros(len(input_ids), logits_to_keep, 16)
        return logits, None, logits[..., 0]

    def observe(query_lengths, rewards, side, real):
        trainer.policy.__dict__.pop("forward", None)
        trainer.__dict__.pop("reference_logits", None)
        if not real:  # the same numbers without the time of the model
            trainer.policy.forward = forward
            trainer.reference_logits = lambda inputs: forward(**inputs)[0]
        trainer.config.batch_size = trainer.config.mini_batch_size = len(rewards)
        trainer.config.gradient_accumulation_steps = 1
        trainer.policy.query_padding = side  # of the query rows, beside the tokenizer's own
        trainer.tokenizer.padding_side = side
        seen.clear()
        queries = [torch.full((n,), FIRST_ROW_ID + row) for row, n in enumerate(query_lengths)]
        responses = [torch.full((len(r),), 5) for r in rewards]
        with pytest.raises(Learning):
            trainer.step(queries, responses, [torch.tensor(r, dtype=torch.float32) for r in rewards])
        return dict(zip(seen["rows"], seen["returns"], strict=True))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trl.ppo_math.loss_sums", note_returns)
        yield observe


@st.composite
def ragged_batches(draw):
    rewards = draw(st.lists(st.lists(st.integers(-9, 9), min_size=1, max_size=8), min_size=1, max_size=5))
    query_lengths = [draw(st.integers(1, 5)) for _ in rewards]
    return query_lengths, rewards, draw(st.sampled_from(["left", "right"]))


@pytest.mark.parametrize(("real", "examples"), [(False, 1000), (True, 30)], ids=["no model", "through the model"])
def test_returns_of_ragged_batches(observed, real, examples):
    @settings(max_examples=examples, deadline=None, database=None)
    @given(batch=ragged_batches())
    def check(batch):
        _, rewards, _ = batch
        expected = {row: [sum(r[t:]) for t in range(len(r))] for row, r in enumerate(rewards)}
        assert observed(*batch, real) == expected

    check()


# --- one step --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fixture", ["tiny_t5", "tiny_gpt2", "tiny_llama"])
def test_first_update_starts_at_ratio_one_and_is_exact(fixture, request):
    """One update on one backward batch: the statistics before the optimizer step are those of the rollout policy."""
    folder = request.getfixturevalue(fixture)
    # dropout in the configuration must not matter: GPT-2 has 0.1 by default
    trainer = make_trainer(folder, ppo_epochs=1, batch_size=8, mini_batch_size=4, gradient_accumulation_steps=2)
    stats = trainer.step(*make_batch())
    assert stats["ppo/policy/ratio"] == pytest.approx(1, abs=1e-5)
    assert stats["ppo/policy/kl_estimate"] == pytest.approx(0, abs=1e-9)
    assert stats["objective/kl"] == pytest.approx(0, abs=1e-4)
    # whitened advantages have mean 0, and so has the policy loss at ratio 1
    assert stats["ppo/loss/policy"] == pytest.approx(0, abs=1e-5)
    assert stats["ppo/updates"] == 1 and stats["ppo/early_stopped"] == 0
    again = trainer.step(*make_batch())
    assert again["objective/kl"] != 0


def test_fresh_lora_with_dropout_starts_at_ratio_one(tiny_t5):
    trainer = make_trainer(tiny_t5, lora={**LORA, "lora_dropout": 0.5}, ppo_epochs=1)
    stats = trainer.step(*make_batch())
    assert stats["ppo/policy/ratio"] == pytest.approx(1, abs=1e-6)
    assert stats["objective/kl"] == pytest.approx(0, abs=1e-5)
    moved = [name for name, p in trainer.policy.named_parameters() if p.requires_grad and "lora_B" in name and p.any()]
    assert moved
    # dropout is on during updates alone: two passes of the same update differ, two rollouts do not
    same = {"update": [], "rollout": []}

    def pass_again(policy, args, kwargs, outputs):
        learns = torch.is_grad_enabled()
        with torch.no_grad():
            again = policy.forward(*args, **kwargs)  # without this hook
        same["update" if learns else "rollout"].append(torch.equal(again[0], outputs[0]))

    handle = trainer.policy.register_forward_hook(pass_again, with_kwargs=True)
    trainer.step(*make_batch())
    handle.remove()
    assert len(same["update"]) == 2 and not any(same["update"])
    assert len(same["rollout"]) >= 2 and all(same["rollout"])
    assert not [name for name, module in trainer.policy.named_modules() if module.training]


@pytest.mark.parametrize("lora", [None, {**LORA, "lora_dropout": 0.5}], ids=["all weights", "LoRA with dropout"])
def test_checkpointing_keeps_less_and_learns_the_same(tiny_t5, lora):
    """Bit for bit: dropout draws the same numbers when a layer is computed again."""
    results = []
    for checkpointing in (False, True):
        trainer = make_trainer(tiny_t5, lora=lora, ppo_epochs=2, gradient_checkpointing=checkpointing)
        kept = 0

        def pack(tensor):
            nonlocal kept
            kept += tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            stats = trainer.step(*make_batch())
        assert stats["ppo/updates"] > 0
        assert not any(module.training or "forward" in vars(module) for module in trainer.policy.modules())
        results.append((kept, torch.cat([p.detach().flatten() for p in trainer.policy.parameters()])))
    (plain_kept, plain), (kept, found) = results
    assert kept < 0.5 * plain_kept
    assert torch.equal(found, plain)


def test_reference_is_the_model_with_adapters_off(tiny_t5):
    trainer = make_trainer(tiny_t5, lora=LORA)
    frozen = make_trainer(tiny_t5)
    queries, responses, scores = make_batch()
    trainer.step(queries, responses, scores)
    inputs = trainer.prepare_model_inputs(queries, responses)
    with torch.no_grad():
        torch.testing.assert_close(trainer.reference_logits(inputs), frozen.policy(**inputs)[0])
        assert differ({"x": trainer.policy(**inputs)[0]}, {"x": frozen.policy(**inputs)[0]}) > 1e-3
        before = frozen.reference_logits(inputs)
    frozen.step(queries, responses, scores)
    with torch.no_grad():
        assert torch.equal(frozen.reference_logits(inputs), before)


@pytest.mark.parametrize("kind", ["kl", "abs", "mse", "full"])
def test_kl_kinds(tiny_t5, kind):
    trainer = make_trainer(tiny_t5, kl_penalty=kind, ppo_epochs=1)
    trainer.step(*make_batch())
    queries, responses, scores = make_batch(seed=2)
    inputs = trainer.prepare_model_inputs(queries, responses)
    labels = torch.nn.utils.rnn.pad_sequence(responses, batch_first=True)
    mask = torch.stack([torch.arange(labels.shape[1]) < len(r) for r in responses])
    with torch.no_grad():
        p, q = trainer.policy(**inputs)[0].log_softmax(-1), trainer.reference_logits(inputs).log_softmax(-1)
    d = (p - q).gather(-1, labels[..., None]).squeeze(-1)
    expected = {"kl": d, "abs": d.abs(), "mse": d**2 / 2, "full": (p.exp() * (p - q)).sum(-1)}[kind]
    stats = trainer.step(queries, responses, scores)
    assert stats["objective/kl"] == pytest.approx(float((expected * mask).sum(1).mean()), rel=1e-3, abs=1e-6)


def test_t5_gives_logits_of_the_rows_to_keep_alone(tiny_t5, tiny_gpt2):
    for folder in (tiny_t5, tiny_gpt2):
        trainer = make_trainer(folder)
        queries, responses, _ = make_batch()
        inputs = trainer.prepare_model_inputs(queries, responses)
        keep = torch.zeros(8, inputs["logits_to_keep"], dtype=torch.bool)
        keep[0, 0] = keep[2, :2] = keep[7, -1] = True
        whole, _, values = trainer.policy(**inputs)
        kept, _, same_values = trainer.policy(**inputs, rows_to_keep=keep)
        torch.testing.assert_close(kept, whole[keep] if folder == tiny_t5 else whole)
        assert torch.equal(values, same_values)
        kept.square().sum().backward()  # the hook is gone: a pass after it is whole
        torch.testing.assert_close(trainer.policy(**inputs)[0], whole)


@pytest.mark.parametrize("config", [{"kl_penalty": "kl"}, {"kl_penalty": "full"}, {"gradient_checkpointing": True}])
@pytest.mark.parametrize("lora", [None, LORA])
def test_a_step_is_the_same_without_the_logits_of_padding(tiny_t5, monkeypatch, config, lora):
    queries, responses, scores = make_batch()
    masks = [torch.ones(len(response), dtype=torch.long) for response in responses]
    longest = max(range(8), key=lambda row: len(responses[row]))
    masks[longest][1], scores[longest][1] = 0, 0  # a token that is no action
    found = []
    for kept in (True, False):
        with monkeypatch.context() as patch:
            if not kept:
                patch.setattr(AutoModelForSeq2SeqLMWithValueHead, "keeps_rows", False)
            trainer = make_trainer(tiny_t5, lora=lora, **config)
            steps = [trainer.step(queries, responses, scores, masks) for _ in range(2)]
            found.append((steps, weights(trainer)))
    (kept, its_weights), (whole, other_weights) = found
    assert differ(its_weights, other_weights) < 1e-5
    for ours, theirs in zip(kept, whole, strict=True):
        for name in theirs.keys() - {key for key in theirs if key.startswith("time/")}:
            np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-3, atol=1e-5, err_msg=name)


def test_learning_moves_the_sampled_tokens_in_the_direction_of_their_rewards(tiny_t5):
    trainer = make_trainer(tiny_t5, init_kl_coef=0.0, adap_kl_ctrl=False, lam=1.0, learning_rate=3e-3)
    queries = [torch.tensor([5, 6, 7])] * 8
    responses = [torch.tensor([10, 20, 1])] * 4 + [torch.tensor([11, 21, 31, 1])] * 4
    with torch.no_grad():
        before, *_ = trainer.batched_forward_pass(trainer.policy, queries, responses)
    trainer.step(queries, responses, [1.0] * 4 + [-1.0] * 4)
    with torch.no_grad():
        after, *_ = trainer.batched_forward_pass(trainer.policy, queries, responses)
    # every token counts, the first and the end token included
    assert (after[0, :3] > before[0, :3]).all()
    assert (after[4, :4] < before[4, :4]).all()


@pytest.mark.parametrize(("mini", "steps"), [(4, 2), (2, 4), (1, 8)])
def test_accumulation_is_exact(tiny_t5, mini, steps):
    """However a backward batch of 8 is cut, the update is that of one pass over all 8, token-weighted."""
    results = []
    for size, accumulation in ((8, 1), (mini, steps)):
        trainer = make_trainer(
            tiny_t5, mini_batch_size=size, gradient_accumulation_steps=accumulation, ppo_epochs=2,
            trainer_kwargs={"optimizer": None},
        )  # fmt: skip
        # plain gradient descent: Adam would amplify rounding noise on weights with a tiny gradient
        trainer.optimizer.optimizer = torch.optim.SGD([p for p in trainer.policy.parameters() if p.requires_grad], 0.1)
        stats = trainer.step(*make_batch())
        results.append((weights(trainer), stats))
    (a, stats_a), (b, stats_b) = results
    assert differ(a, b) < 1e-5
    assert differ(a, weights(make_trainer(tiny_t5))) > 1e-3
    assert stats_b["ppo/updates"] == 2
    for name, value in stats_a.items():
        if not name.startswith("time/") and name != "ppo/policy/ratio":  # in another order
            assert stats_b[name] == pytest.approx(value, rel=1e-3, abs=1e-5), name


def test_early_stop_drops_the_update(tiny_t5):
    trainer = make_trainer(tiny_t5, learning_rate=0.05, early_stopping=True, target_kl=0.01)
    start = weights(trainer)
    stats = trainer.step(*make_batch())
    assert stats["ppo/early_stopped"] == 1
    assert 1 <= stats["ppo/updates"] < 4
    assert stats["ppo/policy/kl_estimate"] > 0
    assert differ(start, weights(trainer)) > 0
    assert all(p.grad is None for p in trainer.policy.parameters())
    off = make_trainer(tiny_t5, learning_rate=0.05, early_stopping=False, target_kl=0.01)
    assert off.step(*make_batch())["ppo/early_stopped"] == 0


def test_ratio_guard_leaves_the_update_out(tiny_t5):
    trainer = make_trainer(tiny_t5, ratio_threshold=0.5, ppo_epochs=3)
    start = weights(trainer)
    stats = trainer.step(*make_batch())
    assert stats["ppo/skipped_ratio"] == 3 and stats["ppo/updates"] == 0
    assert differ(start, weights(trainer)) == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nonfinite_scores_change_nothing(tiny_t5, bad):
    trainer = make_trainer(tiny_t5)
    start, coefficient = weights(trainer), trainer.kl_controller.value
    queries, responses, scores = make_batch()
    scores[3][0] = bad
    stats = trainer.step(queries, responses, scores)
    assert stats["ppo/skipped_nonfinite"] == 1 and stats["ppo/updates"] == 0
    assert differ(start, weights(trainer)) == 0 and trainer.kl_controller.value == coefficient
    scores[3][0] = 1.0
    assert trainer.step(queries, responses, scores)["ppo/skipped_nonfinite"] == 0


def test_a_nonfinite_loss_or_gradient_changes_nothing(tiny_t5):
    trainer = make_trainer(tiny_t5, ppo_epochs=2)
    start = weights(trainer)
    # finite at rollout, NaN in training
    handle = trainer.policy.v_head.register_forward_hook(
        lambda _module, _inputs, values: values * (math.nan if torch.is_grad_enabled() else 1)
    )
    assert trainer.step(*make_batch())["ppo/skipped_nonfinite"] == 2
    handle.remove()
    assert differ(start, weights(trainer)) == 0
    handle = trainer.policy.v_head.summary.weight.register_hook(lambda grad: grad * math.inf)
    assert trainer.step(*make_batch())["ppo/skipped_nonfinite"] == 2
    handle.remove()
    assert differ(start, weights(trainer)) == 0
    assert trainer.step(*make_batch())["ppo/updates"] == 2
    assert differ(start, weights(trainer)) > 0


def test_gradient_clipping_and_schedule(tiny_t5):
    model = AutoModelForSeq2SeqLMWithValueHead.from_pretrained(tiny_t5)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (step + 1))
    config = PPOConfig(
        log_with="none", batch_size=8, mini_batch_size=4, gradient_accumulation_steps=2, max_grad_norm=1e-3,
        ppo_epochs=1,
    )  # fmt: skip
    trainer = PPOTrainer(config, model, optimizer=optimizer, lr_scheduler=schedule)
    start = weights(trainer)
    stats = trainer.step(*make_batch())
    moved = math.sqrt(sum(float((start[n] - p).square().sum()) for n, p in weights(trainer).items()))
    assert moved == pytest.approx(1e-3, rel=1e-2) and stats["ppo/grad_norm"] > 1e-2
    assert stats["ppo/learning_rate"] == 1
    assert trainer.step(*make_batch())["ppo/learning_rate"] == 0.5


def test_kl_coefficient_follows_the_controller(tiny_t5):
    trainer = make_trainer(tiny_t5)
    trainer.step(*make_batch())
    assert trainer.kl_controller.value == pytest.approx(0.2 * (1 - 0.2 * 8 / 10000))
    assert make_trainer(tiny_t5, adap_kl_ctrl=False).kl_controller.value == 0.2


def test_inputs_that_do_not_fit(tiny_t5):
    trainer = make_trainer(tiny_t5)
    queries, responses, scores = make_batch()
    with pytest.raises(ValueError, match="7 queries; batch_size is 8"):
        trainer.step(queries[1:], responses, scores)
    with pytest.raises(ValueError, match="response 2 must be a 1-D tensor of at least one id"):
        trainer.step(queries, [*responses[:2], torch.tensor([]), *responses[3:]], scores)
    with pytest.raises(ValueError, match="score 0 has shape"):
        trainer.step(queries, responses, [torch.zeros(77), *scores[1:]])


def test_bfloat16(tiny_t5, tiny_llama):
    for trainer in (
        make_trainer(tiny_t5, lora=LORA, dtype=torch.bfloat16),
        make_trainer(tiny_llama, dtype=torch.bfloat16, kl_penalty="full"),
    ):
        queries, _, _ = make_batch()
        responses = trainer.generate(queries, return_prompt=False, do_sample=True, max_new_tokens=5)
        stats = trainer.step(queries, responses, [1.0] * 8)
        assert stats["ppo/updates"] == 4
        assert all(np.isfinite(value).all() for value in stats.values())


# --- data, saving, tracking ------------------------------------------------------------------------------------------


def test_batches_are_a_function_of_seed_and_epoch(tiny_t5):
    def batches(epoch, start=0, seed=0):
        trainer = make_trainer(tiny_t5, seed=seed, trainer_kwargs={"dataset": list(range(100, 130))})
        trainer.dataloader.batch_sampler.set_epoch(epoch, start)
        assert len(trainer.dataloader) == 3
        return list(trainer.dataloader)

    first = batches(0)
    assert len(first) == 3 and all(len(batch) == 8 for batch in first)
    assert len({example for batch in first for example in batch}) == 24
    assert batches(0) == first and batches(0, start=1) == first[1:]
    assert batches(1) != first and batches(0, seed=1) != first
    trainer = make_trainer(tiny_t5, trainer_kwargs={"dataset": list(range(30)), "data_collator": sum})
    state = torch.get_rng_state()
    assert [type(batch) for batch in trainer.dataloader] == [int] * 3
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.warns(UserWarning, match="7 examples, fewer than one batch of 8"):
        small = make_trainer(tiny_t5, trainer_kwargs={"dataset": list(range(7))})
    assert len(small.dataloader) == 0 and list(small.dataloader) == []


def test_save_pretrained_whole_or_not_at_all(tiny_t5, tmp_path, monkeypatch):
    tokenizer = AutoTokenizer.from_pretrained(tiny_t5)
    trainer = make_trainer(tiny_t5, lora=LORA, trainer_kwargs={"tokenizer": tokenizer})
    trainer.step(*make_batch())
    folder = tmp_path / "runs" / "policy"
    trainer.save_pretrained(folder)
    again = AutoModelForSeq2SeqLMWithValueHead.from_pretrained(folder)
    assert differ(weights(trainer), dict(again.named_parameters())) == 0
    assert AutoTokenizer.from_pretrained(folder).eos_token == "</s>"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr("trl.value_head.save_file", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            trainer.save_pretrained(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    trainer.save_pretrained(folder)
    assert [path.name for path in folder.parent.iterdir()] == ["policy"]
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds something other than a model"):
        trainer.save_pretrained(tmp_path / "notes")


def test_tensorboard_gets_scalars(tiny_t5, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer = make_trainer(tiny_t5, log_with="tensorboard", logging_dir=str(tmp_path), run_name="mine")
    queries, responses, scores = make_batch()
    stats = trainer.step(queries, responses, scores)
    batch = {"query": ["text"] * 8, "rate": [0.0] * 4 + [1.0] * 4}
    trainer.log_stats({**stats, "ppo/an_array": torch.ones(3), "ppo/broken": math.nan}, batch, scores)
    trainer.accelerator.end_training()
    events = EventAccumulator(str(tmp_path / "mine"))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert {"objective/kl", "env/rate_mean", "env/reward_mean", "env/reward_std"} <= tags
    assert not {"ppo/an_array", "ppo/broken", "env/query_mean"} & tags
    (event,) = events.Scalars("env/rate_mean")
    assert (event.step, event.value) == (1, 0.5)
    (event,) = events.Scalars("env/reward_mean")
    assert event.value == pytest.approx(float(torch.stack([s.sum() for s in scores]).mean()), abs=1e-6)


def test_a_tracker_that_is_not_installed(tiny_t5, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"wandb.*not installed"):
        make_trainer(tiny_t5, log_with="wandb")


def test_set_seed():
    import random

    import numpy as np

    draws = []
    for _ in range(2):
        set_seed(5)
        draws.append((random.random(), float(np.random.rand()), float(torch.rand(()))))
    assert draws[0] == draws[1]
