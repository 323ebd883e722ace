"""Tokens between the decoder's start token and the response: given, not chosen, so no actions."""

from __future__ import annotations

import pytest
import torch
from transformers import M2M100Config, M2M100ForConditionalGeneration

from trl import AutoModelForCausalLMWithValueHead, AutoModelForSeq2SeqLMWithValueHead, PPOConfig, PPOTrainer
from trl.ppo_math import token_logprobs

pytestmark = pytest.mark.filterwarnings("ignore")
START, LANGUAGE, END = 2, 37, 2
QUERIES = [torch.tensor(ids) for ids in ([5, 6, 7, 2], [8, 2])]


@pytest.fixture
def nllb() -> AutoModelForSeq2SeqLMWithValueHead:
    torch.manual_seed(0)
    config = M2M100Config(
        vocab_size=40, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, max_position_embeddings=32, pad_token_id=1,
        bos_token_id=0, eos_token_id=END, decoder_start_token_id=START,
    )  # fmt: skip
    model = M2M100ForConditionalGeneration(config).eval()
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    model = AutoModelForSeq2SeqLMWithValueHead(model)
    model.decoder_prefix = (LANGUAGE,)
    torch.nn.init.normal_(next(p for name, p in model.v_head.named_parameters() if name.endswith("weight")))
    return model.eval()


def response_inputs(model) -> dict:
    ids, mask = torch.tensor([[9, 10, END], [11, END, 1]]), torch.tensor([[1, 1, 1], [1, 1, 0]])
    return model.response_inputs(torch.tensor([[5, 2], [6, 2]]), torch.ones(2, 2).long(), ids, mask)


def test_the_decoder_reads_the_prefix_before_the_response(nllb):
    inputs = response_inputs(nllb)
    assert inputs["decoder_input_ids"].tolist() == [[START, LANGUAGE, 9, 10], [START, LANGUAGE, 11, END]]
    assert inputs["decoder_attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]


def test_an_output_per_response_token_is_left(nllb):
    inputs = response_inputs(nllb)
    output = nllb(**inputs)
    whole = nllb.pretrained_model(
        input_ids=inputs["input_ids"], decoder_input_ids=inputs["decoder_input_ids"], output_hidden_states=True
    )
    # row 0 holds no padding: output 1, behind the language token, scores the first response token
    torch.testing.assert_close(output[0][0], whole.logits[0, 1:])
    torch.testing.assert_close(output[-1][0], nllb.v_head(whole.decoder_hidden_states[-1][0, 1:]).squeeze(-1))


def trainer_of(model) -> PPOTrainer:
    config = PPOConfig(log_with=None, batch_size=2, mini_batch_size=2, gradient_accumulation_steps=1, ppo_epochs=1)
    return PPOTrainer(config, model)


def test_generate_and_step_agree(nllb, fresh_accelerate):
    trainer = trainer_of(nllb)
    responses = trainer.generate(QUERIES, batch_size=2, do_sample=False, max_new_tokens=4)
    assert all(1 <= len(ids) <= 4 for ids in responses)
    # what transformers makes of the same request: start, forced language, then the response
    plain = nllb.pretrained_model.generate(
        input_ids=QUERIES[0][None], forced_bos_token_id=LANGUAGE, do_sample=False, num_beams=1, max_new_tokens=5
    )[0]
    assert plain[:2].tolist() == [START, LANGUAGE]
    assert plain[2 : 2 + len(responses[0])].tolist() == responses[0].tolist()
    with torch.no_grad():
        inputs = nllb.response_inputs(
            QUERIES[0][None], torch.ones(1, 4).long(), responses[0][None], torch.ones(1, len(responses[0])).long()
        )
        assert nllb(**inputs)[0].argmax(-1)[0].tolist() == responses[0].tolist()
        logprobs = token_logprobs(nllb(**inputs)[0], responses[0][None])
    assert logprobs.shape == (1, len(responses[0]))

    vectors = [torch.ones(len(ids)) for ids in responses]  # one score per response token, none for the language
    stats = trainer.step(QUERIES, responses, vectors)
    assert abs(float(stats["objective/kl"])) < 1e-5 and float(stats["ppo/updates"]) == 1
    assert float(stats["tokens/responses_len_mean"]) == sum(map(len, responses)) / 2


def test_without_a_prefix_nothing_changes(nllb):
    nllb.decoder_prefix = ()
    inputs = response_inputs(nllb)
    assert inputs["decoder_input_ids"].tolist() == [[START, 9, 10], [START, 11, END]]
    assert nllb(**inputs)[0].shape == (2, 3, 40)
    assert AutoModelForCausalLMWithValueHead.decoder_prefix == ()
