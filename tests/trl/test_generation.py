"""Generation depends on the weights and on what the caller passes, whatever lies beside the weights."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    CompileConfig,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
)

from trl import AutoModelForCausalLMWithValueHead, PPOConfig, PPOTrainer
from trl.config import CACHES
from trl.generation import (
    GREEDY,
    SAMPLING,
    describe_unused,
    generate,
    generation_settings,
    keep_special_tokens,
    special_tokens,
    unused_settings,
)

# field of GenerationConfig -> its value when transformers generates. Asked for: 5 new tokens behind 1 start token,
# of a model whose start, pad and end are 0, 0 and 1.
EXPECTED = {
    "max_length": 6,
    "max_new_tokens": 5,
    "min_length": 0,
    "min_new_tokens": None,
    "early_stopping": False,
    "max_time": None,
    "stop_strings": None,
    "do_sample": False,
    "num_beams": 1,
    "use_mtp": None,
    "use_cache": True,
    "cache_implementation": None,
    "cache_config": None,
    "max_cache_len": None,
    "temperature": 1.0,
    "top_k": 50,  # has no part in a greedy search
    "top_p": 1.0,
    "min_p": None,
    "top_h": None,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "length_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "bad_words_ids": None,
    "renormalize_logits": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "remove_invalid_values": False,
    "exponential_decay_length_penalty": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "sequence_bias": None,
    "token_healing": None,
    "guidance_scale": None,
    "watermarking_config": None,
    "num_return_sequences": 1,
    "output_attentions": None,
    "output_hidden_states": None,
    "output_scores": False,
    "output_logits": None,
    "return_dict_in_generate": False,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": [1],
    "encoder_no_repeat_ngram_size": 0,
    "decoder_start_token_id": 0,
    # of assisted generation, which is off
    "is_assistant": None,
    "num_assistant_tokens": 20,
    "num_assistant_tokens_schedule": "constant",
    "assistant_confidence_threshold": 0.4,
    "prompt_lookup_num_tokens": None,
    "max_matching_ngram_size": None,
    "assistant_early_exit": None,
    "assistant_lookbehind": 10,
    "target_lookbehind": 10,
    "assistant_ensemble_weight": None,
    "speculation_type": None,
    "compile_config": None,
    "disable_compile": None,
    "continuous_batching_config": None,
    "low_memory": None,
    "penalty_alpha": None,
    "dola_layers": None,
    "diversity_penalty": 0.0,
    "num_beam_groups": 1,
    "constraints": None,
    "force_words_ids": None,
    "prefill_chunk_size": None,
    "_from_model_config": None,
}
SAMPLED = EXPECTED | {"do_sample": True, "top_k": 0}
# for each field a value that a file may ask for; bos is taken from it, to stand in for a start token that is missing
HOSTILE = {
    "max_length": 3,
    "max_new_tokens": 2,
    "min_length": 5,
    "min_new_tokens": 5,
    "early_stopping": "never",
    "max_time": 1e-9,
    "stop_strings": ["e"],
    "do_sample": None,  # set to the contrary of what is asked for
    "num_beams": 3,
    "use_mtp": True,
    "use_cache": False,
    "cache_implementation": "static",
    "cache_config": {"backend": "quanto"},
    "max_cache_len": 2,
    "temperature": 0.01,
    "top_k": 1,
    "top_p": 0.01,
    "min_p": 0.9,
    "top_h": 0.01,
    "typical_p": 0.01,
    "epsilon_cutoff": 0.9,
    "eta_cutoff": 0.9,
    "repetition_penalty": 50.0,
    "encoder_repetition_penalty": 50.0,
    "length_penalty": -5.0,
    "no_repeat_ngram_size": 1,
    "bad_words_ids": [[n] for n in range(2, 40)],
    "renormalize_logits": True,
    "forced_bos_token_id": 0,
    "forced_eos_token_id": 9,
    "remove_invalid_values": True,
    "exponential_decay_length_penalty": [1, 50.0],
    "suppress_tokens": list(range(2, 40)),
    "begin_suppress_tokens": list(range(2, 40)),
    "sequence_bias": [[[7], 50.0]],
    "token_healing": True,
    "guidance_scale": 9.0,
    "watermarking_config": {"bias": 50.0},
    "num_return_sequences": 2,
    "output_attentions": True,
    "output_hidden_states": True,
    "output_scores": True,
    "output_logits": True,
    "return_dict_in_generate": True,
    "encoder_no_repeat_ngram_size": 1,
    "decoder_start_token_id": 7,  # the config's is what scoring uses
    "is_assistant": True,
    "num_assistant_tokens": 1,
    "num_assistant_tokens_schedule": "heuristic",
    "assistant_confidence_threshold": 0.9,
    "prompt_lookup_num_tokens": 2,
    "max_matching_ngram_size": 1,
    "assistant_early_exit": 1,
    "assistant_lookbehind": 1,
    "target_lookbehind": 1,
    "assistant_ensemble_weight": 0.5,
    "speculation_type": "dflash",
    "compile_config": CompileConfig(),
    "disable_compile": True,
    "continuous_batching_config": {},
    "low_memory": True,
    "penalty_alpha": 0.9,
    "dola_layers": "high",
    "diversity_penalty": 5.0,
    "num_beam_groups": 3,
    "constraints": ["none"],
    "force_words_ids": [[5]],
    "prefill_chunk_size": 1,
}
TAKEN = {"pad_token_id", "bos_token_id", "eos_token_id"}
METADATA = {"transformers_version", "_from_model_config"}
FIELDS = set(GenerationConfig().to_dict())


def test_every_field_of_this_version_is_decided_on():
    """A field that is new fails here: decide on its value, and on what a file may ask with it."""
    assert set(EXPECTED) == FIELDS - {"transformers_version"}
    assert set(HOSTILE) == FIELDS - TAKEN - METADATA


@pytest.fixture
def t5(tiny_t5):
    return AutoModelForSeq2SeqLM.from_pretrained(tiny_t5)


QUERIES = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12], [40, 41, 42, 43]])


def answers(model, queries=QUERIES, seed: int = 0, tokenizer=None, **given) -> list[list[int]]:
    torch.manual_seed(seed)
    tokens = special_tokens(model, tokenizer)
    return [ids.tolist() for ids in generate(model, queries, torch.ones_like(queries), tokens, **given)]


def what_transformers_uses(model, **given):
    """The settings, processors of logits and stopping criteria that a call of transformers' `generate` ends up with."""
    seen = {}

    def spy(model, input_ids, logits_processor, stopping_criteria, generation_config, **rest):
        seen.update(settings=generation_config, processors=logits_processor, criteria=stopping_criteria)
        return input_ids

    answers(model, custom_generate=spy, **given)
    return seen["settings"].to_dict(), list(seen["processors"]), [type(c).__name__ for c in seen["criteria"]]


def ask_for(model, field: str, value) -> None:
    """Put a setting where from_pretrained puts those of generation_config.json, without its checks."""
    setattr(model.generation_config, field, value)


@pytest.mark.parametrize("settings, expected", [(GREEDY, EXPECTED), (SAMPLING, SAMPLED)], ids=["greedy", "sampled"])
@pytest.mark.parametrize("beside", ["nothing", "everything"])
def test_each_field_has_its_value(t5, settings, expected, beside):
    if beside == "everything":
        for field, value in HOSTILE.items():
            ask_for(t5, field, not settings["do_sample"] if field == "do_sample" else value)
        ask_for(t5, "a_field_of_a_custom_class", 5)
    used, processors, criteria = what_transformers_uses(t5, **settings, max_new_tokens=5)
    assert {name: used[name] for name in expected} == expected
    assert not hasattr(used, "a_field_of_a_custom_class") and "a_field_of_a_custom_class" not in used
    assert processors == [] and criteria == ["MaxLengthCriteria", "EosTokenCriteria"]


def test_no_file_changes_a_response(t5):
    """Each setting alone, sampled with the same seed and greedy."""
    plain = {name: answers(t5, **how, max_new_tokens=5) for name, how in [("greedy", GREEDY), ("sampled", SAMPLING)]}
    assert plain["greedy"] != plain["sampled"]
    own = t5.generation_config
    for field, value in HOSTILE.items():
        for name, how in [("greedy", GREEDY), ("sampled", SAMPLING)]:
            t5.generation_config = copy.deepcopy(own)
            ask_for(t5, field, not how["do_sample"] if field == "do_sample" else value)
            assert answers(t5, **how, max_new_tokens=5) == plain[name], (field, name)


@pytest.mark.parametrize("lora", [False, True], ids=["whole", "lora"])
@pytest.mark.parametrize("kind", ["tiny_gpt2", "tiny_llama", "tiny_t5"])
def test_files_of_other_models_change_nothing_either(kind, lora, request, tmp_path):
    """Read from generation_config.json, decoder-only models included, with and without PEFT around them."""
    folder = request.getfixturevalue(kind)
    auto = AutoModelForSeq2SeqLM if kind == "tiny_t5" else AutoModelForCausalLM
    found = []
    for ask in ({}, {"repetition_penalty": 50.0, "min_new_tokens": 5, "num_beams": 2, "do_sample": True, "top_k": 1}):
        model = auto.from_pretrained(folder)
        model.save_pretrained(tmp_path / "copy")
        file = tmp_path / "copy" / "generation_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | ask))
        model = auto.from_pretrained(tmp_path / "copy")
        if lora:
            model = get_peft_model(model, LoraConfig(r=2, task_type="SEQ_2_SEQ_LM" if "t5" in kind else "CAUSAL_LM"))
        assert set(unused_settings(model)) == set(ask)
        found.append([answers(model.eval(), **how, max_new_tokens=5) for how in (GREEDY, SAMPLING)])
    assert found[0] == found[1]


@pytest.mark.parametrize("lora", [False, True], ids=["whole", "lora"])
@pytest.mark.parametrize("kind", ["tiny_gpt2", "tiny_llama", "tiny_t5"])
def test_a_static_cache_gives_the_same_tokens(kind, lora, request):
    folder = request.getfixturevalue(kind)
    auto_class = AutoModelForSeq2SeqLM if kind == "tiny_t5" else AutoModelForCausalLM
    model = auto_class.from_pretrained(folder)
    if lora:
        torch.manual_seed(1)
        model = get_peft_model(model, LoraConfig(r=4, init_lora_weights=False))
    model.eval()
    lengths, side = (3, 11, 7), "right" if kind == "tiny_t5" else "left"
    rows = [torch.randint(4, 48, (length,), generator=torch.Generator().manual_seed(length)) for length in lengths]
    ids, mask = (
        torch.nn.utils.rnn.pad_sequence(part, batch_first=True, padding_side=side)
        for part in (rows, [torch.ones_like(row) for row in rows])
    )
    tokens = special_tokens(model)
    if kind == "tiny_t5":
        tokens = replace(tokens, prefix=(7, 9))
    found = [
        [row.tolist() for row in generate(model, ids, mask, tokens, **GREEDY, **CACHES[name], max_new_tokens=12)]
        for name in ("dynamic", "static")
    ]
    assert found[0] == found[1] and (len({tuple(row) for row in found[0]}) > 1 or not lora)


def test_the_settings_of_a_cache(t5):
    usual = what_transformers_uses(t5, **GREEDY, **CACHES["dynamic"])[0]
    for cache, forbidden in (("static", True), ("compiled", None)):
        settings = what_transformers_uses(t5, **GREEDY, **CACHES[cache])[0]
        assert settings == usual | {"cache_implementation": "static", "disable_compile": forbidden}


def test_the_models_own_settings_are_left_as_they_were(t5, tmp_path):
    ask_for(t5, "repetition_penalty", 3.0)
    own, before = t5.generation_config, t5.generation_config.to_dict()
    answers(t5, max_new_tokens=2)
    with pytest.raises(ValueError):
        answers(t5, max_new_tokens=2, no_such_argument=1)
    assert t5.generation_config is own and own.to_dict() == before
    t5.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "generation_config.json").read_text())
    assert saved["repetition_penalty"] == 3.0 and "max_new_tokens" not in saved and "top_k" not in saved


# --- what the caller passes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [
        {"do_sample": True, "temperature": 0.7, "top_k": 5},
        {"do_sample": True, "top_p": 0.5},
        {"num_beams": 3, "length_penalty": 2.0},
        {"repetition_penalty": 2.0},
        {"forced_bos_token_id": 0},
        {"bad_words_ids": [[81]]},
        {"max_length": 3},
        {"min_new_tokens": 4},
    ],
    ids=str,
)
def test_what_is_passed_is_used(t5, given):
    """As transformers itself generates from a model without settings of its own."""
    given = {"max_new_tokens": 5, "top_k": 0} | given if given.get("do_sample") else {"max_new_tokens": 5} | given
    if "max_length" in given:
        del given["max_new_tokens"]
    torch.manual_seed(0)
    rows = t5.generate(input_ids=QUERIES, attention_mask=torch.ones_like(QUERIES), **given)[:, 1:].tolist()
    expected = [row[: row.index(1) + 1] if 1 in row else row for row in rows]
    ask_for(t5, "repetition_penalty", 50.0)
    ask_for(t5, "temperature", 9.0)
    if given.get("do_sample"):
        given["synced_gpus"] = False  # of `generate`: with it transformers samples, whose draws are those of `rows`
    assert answers(t5, **given) == expected
    fields = {name: value for name, value in given.items() if name != "synced_gpus"}
    rest = {name: value for name, value in given.items() if name == "synced_gpus"}
    assert answers(t5, generation_config=GenerationConfig(**fields), **rest) == expected


def test_a_settings_object_of_the_caller(t5):
    own = GenerationConfig(do_sample=True, temperature=0.5, max_new_tokens=9)
    tokens = special_tokens(t5)
    made = generation_settings(tokens, own, max_new_tokens=4)
    # what it sets is used, what is passed beside it goes before, the rest is neutral
    assert (made.do_sample, made.temperature, made.max_new_tokens) == (True, 0.5, 4)
    assert (made.top_k, made.top_p, made.eos_token_id) == (0, 1.0, [1])
    assert own.max_new_tokens == 9 and own.eos_token_id is None
    assert generation_settings(tokens, GenerationConfig(eos_token_id=5)).eos_token_id == 5
    assert generation_settings(tokens, top_k=None, do_sample=True).top_k == 0
    assert generation_settings(tokens, eos_token_id=None).eos_token_id is None


def test_what_is_no_argument_is_an_error(t5):
    with pytest.raises(ValueError, match="topk"):
        answers(t5, topk=5)


# --- where a response ends -------------------------------------------------------------------------------------------


def with_ids(**ids) -> SimpleNamespace:
    return SimpleNamespace(is_encoder_decoder=True, **ids)


@pytest.mark.parametrize(
    "tokenizer, config, generation, ends, pad",
    [
        (None, 1, None, (1,), 0),
        (2, 1, [5, 1], (2, 1, 5), 0),
        ([2, 3], [4, 2], (6, 3), (2, 3, 4, 6), 0),
        (None, None, None, (), 0),
        (0, -1, None, (0,), 0),  # -1 stands for none
    ],
)
def test_all_end_tokens_in_order(tokenizer, config, generation, ends, pad):
    model = SimpleNamespace(
        config=with_ids(eos_token_id=config, pad_token_id=0), generation_config=with_ids(eos_token_id=generation)
    )
    found = special_tokens(model, with_ids(eos_token_id=tokenizer, pad_token_id=None))
    assert (found.ends, found.pad) == (ends, pad)


def test_pad_and_start_tokens():
    def found(tokenizer, config, generation):
        return special_tokens(SimpleNamespace(config=config, generation_config=generation), tokenizer)

    nothing = with_ids()
    assert found(with_ids(pad_token_id=3), with_ids(pad_token_id=4), nothing).pad == 3
    assert found(with_ids(pad_token_id=None), with_ids(pad_token_id=-1), with_ids(pad_token_id=6)).pad == 6
    assert found(with_ids(eos_token_id=7), nothing, with_ids(eos_token_id=[8])).pad == 7
    assert found(None, nothing, nothing).pad == 0
    # the config's start token is what scoring and fine-tuning put in front
    assert found(None, with_ids(decoder_start_token_id=2), with_ids(decoder_start_token_id=5)).start == 2
    assert found(None, nothing, with_ids(decoder_start_token_id=5)).start == 5


VOCABULARY = 12


def small_gpt2(**ids) -> GPT2LMHeadModel:
    """Random weights over few tokens: each is sampled often, pad and end tokens too."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=1, n_head=2, n_positions=64, bos_token_id=1, **ids)
    return GPT2LMHeadModel(config).eval()


def cut_by_hand(rows: list[list[int]], ends: set[int]) -> list[list[int]]:
    places = [next((t for t, id in enumerate(row) if id in ends), len(row)) for row in rows]
    return [row[: t + 1] for row, t in zip(rows, places, strict=True)]


@pytest.mark.parametrize("pad", [0, 2, 5], ids=["pad-is-sampled-too", "pad-is-the-first-end", "pad-is-another-end"])
def test_every_end_token_ends_a_response(pad):
    """One end token each of the tokenizer, the config and (as a list) the generation config."""
    queries = torch.tensor([[3, 4]]).repeat(64, 1)
    how = {**SAMPLING, "max_new_tokens": 30}
    free = answers(small_gpt2(eos_token_id=None, pad_token_id=pad), queries, **how)  # drawn with the same numbers
    assert {len(row) for row in free} == {30}

    model = small_gpt2(eos_token_id=3, pad_token_id=pad)
    model.generation_config.eos_token_id = [5, 3]
    tokenizer = with_ids(pad_token_id=pad, eos_token_id=2)
    found = answers(model, queries, tokenizer=tokenizer, **how)
    assert found == cut_by_hand(free, {2, 3, 5})
    if pad == 0:
        assert any(0 in row for row in found)

    ppo = PPOTrainer(PPOConfig(log_with="none"), AutoModelForCausalLMWithValueHead(model), tokenizer=tokenizer)
    torch.manual_seed(0)
    assert [ids.tolist() for ids in ppo.generate(list(queries), batch_size=None, return_prompt=False, **how)] == found


def test_end_tokens_of_the_caller_are_the_only_ones():
    queries = torch.tensor([[3, 4]]).repeat(16, 1)
    model = small_gpt2(eos_token_id=3, pad_token_id=0)
    free = answers(model, queries, **SAMPLING, max_new_tokens=20, eos_token_id=None)
    assert {len(row) for row in free} == {20} and any(3 in row for row in free)
    for given in ({"eos_token_id": 7}, {"eos_token_id": [7]}, {"generation_config": GenerationConfig(eos_token_id=7)}):
        assert answers(model, queries, **SAMPLING, max_new_tokens=20, **given) == cut_by_hand(free, {7})


def test_a_row_that_a_criterion_stops_has_no_padding():
    """Criteria are no field of GenerationConfig; transformers pads such a row, with a token that is also sampled."""
    queries = torch.tensor([[3, 4]]).repeat(32, 1)
    model = small_gpt2(eos_token_id=3, pad_token_id=0)
    free = answers(model, queries, **SAMPLING, max_new_tokens=30, eos_token_id=None)

    def sampled_7(ids, scores, **kwargs):
        return ids[:, -1] == 7

    how = {**SAMPLING, "max_new_tokens": 30, "stopping_criteria": [sampled_7]}
    assert answers(model, queries, **how) == cut_by_hand(free, {3, 7})


def test_a_row_that_a_string_stops_has_no_padding(t5, tiny_t5):
    tokenizer = AutoTokenizer.from_pretrained(tiny_t5)
    how = {**SAMPLING, "max_new_tokens": 12, "temperature": 5.0}
    queries = QUERIES.repeat(8, 1)
    # with a criterion, as below, transformers samples: the draws are the same
    never = [lambda ids, scores, **kwargs: torch.zeros(len(ids), dtype=torch.bool)]
    free = answers(t5, queries, **how, eos_token_id=None, stopping_criteria=never)

    def length(row):
        """Tokens up to the first whose text ends the response, or to the end token."""
        stops = (t for t, id in enumerate(row) if id == 1 or "e" in tokenizer.convert_ids_to_tokens(id))
        return next(stops, len(row)) + 1

    torch.manual_seed(0)
    how |= {"stop_strings": ["e"], "tokenizer": tokenizer}
    stopped = generate(t5, queries, torch.ones_like(queries), special_tokens(t5), **how)
    found = [ids.tolist() for ids in stopped]
    assert found == [row[: length(row)] for row in free]
    assert len({len(row) for row in found}) > 1


# --- what is not used is named ---------------------------------------------------------------------------------------


def test_nothing_is_named_if_nothing_is_asked_for(t5):
    assert unused_settings(t5) == {} and describe_unused(t5) is None
    for field, value in {"temperature": 1.0, "num_beams": 1, "do_sample": False, "use_cache": True}.items():
        ask_for(t5, field, value)
    assert describe_unused(t5) is None


def test_what_is_not_used_is_named_in_one_line(t5):
    asked = {field: value for field, value in HOSTILE.items() if field != "do_sample"}
    for field, value in asked.items():
        ask_for(t5, field, value)
    assert set(unused_settings(t5)) == set(asked)
    line = describe_unused(t5)
    assert all(f"{field}=" in line for field in asked)
    assert "\n" not in line and "repetition_penalty=50.0" in line and "forced_bos_token_id=0" in line
    assert "39" not in line.partition("suppress_tokens=")[2].partition("begin")[0]  # a long list is cut


def test_a_trainer_names_it_once(tiny_gpt2, capsys):
    model = AutoModelForCausalLMWithValueHead.from_pretrained(tiny_gpt2)
    ask_for(model.base_model, "no_repeat_ngram_size", 2)
    PPOTrainer(PPOConfig(log_with="none"), model).generate([torch.tensor([5])], max_new_tokens=2)
    said = capsys.readouterr().out
    assert said.count("no_repeat_ngram_size=2") == 1 and len(said.splitlines()) == 1


def test_special_tokens_can_be_kept_alone(t5, tmp_path):
    for field in ("temperature", "repetition_penalty", "forced_bos_token_id"):
        ask_for(t5, field, HOSTILE[field])
    ask_for(t5, "eos_token_id", [1, 5])
    keep_special_tokens(t5)
    t5.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "generation_config.json").read_text())
    del saved["transformers_version"]
    assert saved == {"decoder_start_token_id": 0, "eos_token_id": [1, 5], "pad_token_id": 0}
