"""Models with a value head under the names, defaults and file layouts of TRL 0.7 to 0.11."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoModelForSequenceClassification

from trl import (
    AutoModelForCausalLMWithValueHead,
    AutoModelForSeq2SeqLMWithValueHead,
    PreTrainedModelWrapper,
    create_reference_model,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing", "ignore:.*base_model_name_or_path")
IDS = torch.tensor([[5, 9, 7, 11, 6], [8, 3, 12, 4, 10]])
HEAD_NAMES = {"v_head.summary.weight", "v_head.summary.bias"}


def causal_lora(**settings) -> LoraConfig:
    return LoraConfig(**{"r": 2, "task_type": "CAUSAL_LM", **settings})


@pytest.fixture(params=["tiny_gpt2", "tiny_t5"])
def family(request):
    """(folder, class, class of transformers)"""
    folder = request.getfixturevalue(request.param)
    if request.param == "tiny_t5":
        return folder, AutoModelForSeq2SeqLMWithValueHead, AutoModelForSeq2SeqLM
    return folder, AutoModelForCausalLMWithValueHead, AutoModelForCausalLM


def forward(model, **kwargs):
    decoder = {"decoder_input_ids": IDS} if model.config.is_encoder_decoder else {}
    return model(IDS, **decoder, **kwargs)


def equal(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# --- forward ---------------------------------------------------------------------------------------------------------


def test_forward_gives_logits_loss_and_value(family):
    folder, cls, plain_class = family
    model, plain = cls.from_pretrained(folder), plain_class.from_pretrained(folder).eval()
    assert isinstance(model, PreTrainedModelWrapper)
    logits, loss, value = forward(model)
    assert loss is None and value.shape == IDS.shape and value.dtype == torch.float32
    decoder = {"decoder_input_ids": IDS} if model.config.is_encoder_decoder else {}
    expected = plain(input_ids=IDS, labels=IDS, output_hidden_states=True, **decoder)
    torch.testing.assert_close(logits, expected.logits)
    torch.testing.assert_close(forward(model, labels=IDS)[1], expected.loss)
    hidden = expected["decoder_hidden_states" if decoder else "hidden_states"][-1]
    head = model.v_head.summary
    torch.testing.assert_close(value, hidden @ head.weight[0] + head.bias)


def test_a_cache_goes_on_where_it_ended(tiny_gpt2):
    model = AutoModelForCausalLMWithValueHead.from_pretrained(tiny_gpt2)
    whole = model(IDS)
    cache = transformers.DynamicCache(config=model.config)
    parts = [model(part, past_key_values=cache) for part in (IDS[:, :2], IDS[:, 2:])]
    torch.testing.assert_close(torch.cat([part[0] for part in parts], 1), whole[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(torch.cat([part[2] for part in parts], 1), whole[2], atol=1e-5, rtol=1e-5)


def test_generate_passes_through(family):
    folder, cls, plain_class = family
    settings = {"max_new_tokens": 4, "do_sample": False}
    ours = cls.from_pretrained(folder).generate(IDS, **settings)
    assert torch.equal(ours, plain_class.from_pretrained(folder).generate(IDS, **settings))


def test_gradient_checkpointing_changes_no_gradient(tiny_gpt2):
    model = AutoModelForCausalLMWithValueHead.from_pretrained(tiny_gpt2)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    model.train()
    layers = [module for module in model.modules() if hasattr(module, "gradient_checkpointing")]
    gradients = []
    for switch in (model.gradient_checkpointing_enable, model.gradient_checkpointing_disable):
        switch()
        gradients.append(torch.autograd.grad(model(IDS, labels=IDS)[1], model.base_model.transformer.wte.weight)[0])
        assert {layer.gradient_checkpointing for layer in layers} == {len(gradients) == 1}
    torch.testing.assert_close(*gradients)


# --- the value head --------------------------------------------------------------------------------------------------


def test_start_of_the_value_head(family):
    folder, cls, _ = family
    torch.manual_seed(0)
    default = cls.from_pretrained(folder).v_head.summary
    width = default.in_features
    assert default.weight.any() and default.bias.any()
    assert default.weight.abs().max() <= width**-0.5  # as any linear layer
    assert not any(p.any() for p in cls.from_pretrained(folder, v_head_init_strategy="zeros").v_head.parameters())
    for std in (0.2, 3.0):
        given = {} if std == 0.2 else {"v_head_initializer_range": std}
        head = cls.from_pretrained(folder, v_head_init_strategy="normal", **given).v_head.summary
        assert not head.bias.any() and std / 2 < head.weight.std() < std * 2
    with pytest.raises(ValueError, match="v_head_init_strategy"):
        cls.from_pretrained(folder, v_head_init_strategy="xavier")


def test_dropout_of_the_value_head(family):
    folder, cls, plain_class = family
    assert cls.from_pretrained(folder).v_head.dropout.p == 0.1
    assert cls.from_pretrained(folder, summary_dropout_prob=0.3).v_head.dropout.p == 0.3
    plain = plain_class.from_pretrained(folder)
    plain.config.summary_dropout_prob = 0.5
    model = cls.from_pretrained(plain)
    assert model.v_head.dropout.p == 0.5
    assert torch.equal(forward(model)[2], forward(model)[2])
    model.v_head.train()
    assert not torch.equal(forward(model)[2], forward(model)[2])
    model = cls.from_pretrained(folder, summary_dropout_prob=0.0)
    model.v_head.train()
    assert torch.equal(forward(model)[2], forward(model)[2])


# --- what can be wrapped ---------------------------------------------------------------------------------------------


def test_a_model_object_is_wrapped_as_it_is(family):
    folder, cls, plain_class = family
    plain = plain_class.from_pretrained(folder)
    model = cls.from_pretrained(plain)
    assert model.pretrained_model is plain and not model.is_peft_model
    task = "SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM"
    adapted = get_peft_model(plain_class.from_pretrained(folder), LoraConfig(task_type=task))
    model = cls.from_pretrained(adapted)
    assert model.pretrained_model is adapted and model.is_peft_model
    model = cls.from_pretrained(plain, peft_config=LoraConfig(task_type=task))
    assert model.is_peft_model and model.base_model is plain
    with pytest.raises(ValueError, match="peft_config"):
        cls.from_pretrained(adapted, peft_config=LoraConfig(task_type=task))
    with pytest.raises(ValueError, match="peft_config"):
        cls.from_pretrained(folder, peft_config={"r": 4})
    with pytest.warns(UserWarning, match="dtype"):
        cls.from_pretrained(plain_class.from_pretrained(folder), torch_dtype=torch.bfloat16)


def test_a_model_without_a_language_model_head_is_refused(tiny_gpt2, tiny_t5, tiny_llama):
    body = AutoModelForCausalLM.from_pretrained(tiny_gpt2).transformer
    for other in (body, AutoModelForSequenceClassification.from_pretrained(tiny_gpt2)):
        with pytest.raises(ValueError, match="language model head"):
            AutoModelForCausalLMWithValueHead.from_pretrained(other)
    for other in (tiny_t5, AutoModelForSeq2SeqLM.from_pretrained(tiny_t5).config):
        body = transformers.AutoModel.from_pretrained(other) if other is tiny_t5 else transformers.T5Model(other)
        with pytest.raises(ValueError, match="language model head"):
            AutoModelForSeq2SeqLMWithValueHead.from_pretrained(body)
    with pytest.raises(ValueError, match="decoder-only"):
        AutoModelForCausalLMWithValueHead.from_pretrained(AutoModelForSeq2SeqLM.from_pretrained(tiny_t5))
    with pytest.raises(ValueError, match="encoder-decoder"):
        AutoModelForSeq2SeqLMWithValueHead.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_gpt2))
    for other in (torch.nn.Linear(2, 2), 5):
        with pytest.raises(ValueError, match=r"neither a transformers|not 5"):
            AutoModelForCausalLMWithValueHead.from_pretrained(other)
    inside = AutoModelForCausalLM.from_pretrained(tiny_llama)
    inside.add_adapter(LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(ValueError, match="add_adapter"):
        AutoModelForCausalLMWithValueHead.from_pretrained(inside)


def test_weights_are_float32_unless_told(tiny_gpt2, tmp_path):
    AutoModelForCausalLM.from_pretrained(tiny_gpt2, dtype=torch.bfloat16).save_pretrained(tmp_path)
    for given, expected in (
        ({}, torch.float32),
        ({"torch_dtype": torch.bfloat16}, torch.bfloat16),
        ({"dtype": torch.bfloat16}, torch.bfloat16),
        ({"torch_dtype": "auto"}, torch.bfloat16),
    ):
        model = AutoModelForCausalLMWithValueHead.from_pretrained(tmp_path, **given)
        assert {p.dtype for p in model.pretrained_model.parameters()} == {expected}
        logits, _, value = model(IDS)
        assert logits.dtype == expected and value.dtype == model.v_head.summary.weight.dtype == torch.float32


def test_an_adapter_can_be_loaded_frozen(tiny_gpt2, tmp_path):
    AutoModelForCausalLMWithValueHead.from_pretrained(tiny_gpt2, peft_config=causal_lora()).save_pretrained(tmp_path)
    frozen = AutoModelForCausalLMWithValueHead.from_pretrained(tmp_path, is_trainable=False)
    assert {name for name, p in frozen.named_parameters() if p.requires_grad} == HEAD_NAMES
    for given in ({}, {"is_trainable": True}):
        model = AutoModelForCausalLMWithValueHead.from_pretrained(tmp_path, **given)
        assert any("lora_" in name for name, p in model.named_parameters() if p.requires_grad)


# --- weights and files -----------------------------------------------------------------------------------------------


def test_state_dict_has_the_names_of_the_wrapped_model(family):
    folder, cls, plain_class = family
    model, other = cls.from_pretrained(folder), cls.from_pretrained(folder)
    state = model.state_dict()
    assert state.keys() == plain_class.from_pretrained(folder).state_dict().keys() | HEAD_NAMES
    for parameter in other.parameters():
        torch.nn.init.normal_(parameter)
    assert not equal(other.state_dict(), state)
    other.load_state_dict(state)
    assert equal(other.state_dict(), state)
    with pytest.raises(RuntimeError, match=r"Missing.*v_head\.summary\.bias"):
        other.load_state_dict({name: tensor for name, tensor in state.items() if name != "v_head.summary.bias"})


def test_state_dict_of_a_peft_model(tiny_gpt2):
    model = AutoModelForCausalLMWithValueHead.from_pretrained(tiny_gpt2, peft_config=causal_lora())
    other = AutoModelForCausalLMWithValueHead.from_pretrained(tiny_gpt2, peft_config=causal_lora())
    for parameter in other.parameters():
        torch.nn.init.normal_(parameter)
    before = dict(other.pretrained_model.state_dict())
    assert model.state_dict().keys() == HEAD_NAMES
    other.load_state_dict(model.state_dict())
    assert equal(other.state_dict(), model.state_dict())
    assert equal(dict(other.pretrained_model.state_dict()), before)
    # as DeepSpeed calls it: every weight
    whole = model.state_dict(destination=None, prefix="", keep_vars=False)
    assert whole.keys() >= {name for name, _ in model.named_parameters()}
    other.load_state_dict(whole)
    assert equal(dict(other.named_parameters()), dict(model.named_parameters()))


def test_as_part_of_another_module_every_weight_is_in_the_state_dict(tiny_gpt2):
    models = [
        torch.nn.ModuleList([AutoModelForCausalLMWithValueHead.from_pretrained(tiny_gpt2, peft_config=causal_lora())])
        for _ in range(2)
    ]
    state = models[0].state_dict()
    assert state.keys() >= {name for name, _ in models[0].named_parameters()}
    models[1].load_state_dict(state)
    assert equal(*(dict(model.named_parameters()) for model in models))


def test_names_of_older_versions_load(tiny_gpt2):
    model = AutoModelForCausalLMWithValueHead.from_pretrained(tiny_gpt2)
    state = {name.replace("summary.", ""): tensor for name, tensor in model.state_dict().items()}
    assert {"v_head.weight", "v_head.bias"} <= state.keys()
    other = AutoModelForCausalLMWithValueHead.from_pretrained(tiny_gpt2)
    other.load_state_dict(state)
    assert equal(other.state_dict(), model.state_dict())


def test_a_saved_folder_loads_here_and_in_plain_transformers(family, tmp_path):
    folder, cls, plain_class = family
    model = cls.from_pretrained(folder)
    model.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "sharded", max_shard_size="50KB", safe_serialization=True)
    assert len(list((tmp_path / "sharded").glob("model-*.safetensors"))) > 1
    for saved in (tmp_path / "whole", tmp_path / "sharded"):
        assert equal(cls.from_pretrained(saved).state_dict(), model.state_dict())
        plain, info = plain_class.from_pretrained(saved, output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"]
        assert equal(dict(plain.state_dict()), dict(plain_class.from_pretrained(folder).state_dict()))
    other = cls.from_pretrained(folder)
    other.save_pretrained(tmp_path / "given", state_dict=model.state_dict())
    assert equal(cls.from_pretrained(tmp_path / "given").state_dict(), model.state_dict())
    model.save_pretrained(tmp_path / "other rank", is_main_process=False)
    assert not (tmp_path / "other rank").exists()


def trl_folder(model, folder, layout: str) -> None:
    """What TRL wrote: the value head among the model's weights, or alone beside an adapter."""
    state = {name: tensor.detach().clone().contiguous() for name, tensor in model.state_dict().items()}
    if layout == "adapter":
        model.pretrained_model.save_pretrained(str(folder))
        torch.save(state, folder / "pytorch_model.bin")
        return
    model.config.save_pretrained(folder)
    state.pop("lm_head.weight", None)  # tied
    names = sorted(state)
    if layout == "model.safetensors":
        save_file(state, folder / layout, metadata={"format": "pt"})
    elif layout == "pytorch_model.bin":
        torch.save(state, folder / layout)
    else:  # an index; the two weights of the head in different shards
        bin_files = layout == "pytorch_model.bin.index.json"
        stem, end = layout.removesuffix(".index.json").rsplit(".", 1)
        shards = {f"{stem}-0000{n + 1}-of-00002.{end}": names[n::2] for n in range(2)}
        for filename, members in shards.items():
            part = {name: state[name] for name in members}
            torch.save(part, folder / filename) if bin_files else save_file(
                part, folder / filename, metadata={"format": "pt"}
            )
        places = {name: filename for filename, members in shards.items() for name in members}
        (folder / layout).write_text(json.dumps({"metadata": {}, "weight_map": places}))


LAYOUTS = ["model.safetensors", "pytorch_model.bin", "model.safetensors.index.json", "pytorch_model.bin.index.json"]


@pytest.mark.parametrize("layout", [*LAYOUTS, "adapter"])
def test_the_value_head_in_a_checkpoint_of_trl_is_restored(tiny_gpt2, tmp_path, layout):
    lora = causal_lora() if layout == "adapter" else None
    model = AutoModelForCausalLMWithValueHead.from_pretrained(tiny_gpt2, peft_config=lora)
    trl_folder(model, tmp_path, layout)
    again = AutoModelForCausalLMWithValueHead.from_pretrained(tmp_path)
    assert equal(again.state_dict(), model.state_dict())
    # a folder of our own next to it: the same state in our layout
    again.save_pretrained(tmp_path / "ours")
    ours = AutoModelForCausalLMWithValueHead.from_pretrained(tmp_path / "ours")
    assert equal(ours.state_dict(), model.state_dict())


def test_a_value_head_of_another_shape_is_named(tiny_gpt2, tmp_path):
    model = AutoModelForCausalLMWithValueHead.from_pretrained(tiny_gpt2)
    trl_folder(model, tmp_path, "model.safetensors")
    path = tmp_path / "model.safetensors"
    save_file(load_file(path) | {"v_head.summary.weight": torch.ones(1, 5)}, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"model\.safetensors does not hold this model's value head"):
        AutoModelForCausalLMWithValueHead.from_pretrained(tmp_path)


def test_our_older_value_head_file_loads(tiny_gpt2, tmp_path):
    model = AutoModelForCausalLMWithValueHead.from_pretrained(tiny_gpt2)
    model.save_pretrained(tmp_path)
    head = model.v_head.summary
    save_file({"weight": head.weight.data, "bias": head.bias.data}, tmp_path / "v_head.safetensors")
    again = AutoModelForCausalLMWithValueHead.from_pretrained(tmp_path)
    assert equal(again.state_dict(), model.state_dict())


# --- the adapter of a reward model -----------------------------------------------------------------------------------


@pytest.fixture
def reward_model(tiny_gpt2, tmp_path):
    """A reward model with a LoRA adapter away from zero, and its folder."""
    torch.manual_seed(1)
    base = AutoModelForSequenceClassification.from_pretrained(tiny_gpt2, num_labels=1)
    model = get_peft_model(base, LoraConfig(r=3, task_type="SEQ_CLS")).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    model.save_pretrained(str(tmp_path / "reward"), save_embedding_layers=False)
    return model, tmp_path / "reward"


def test_reward_adapter_scores_every_token(tiny_gpt2, reward_model, tmp_path):
    rewards, folder = reward_model
    model = AutoModelForCausalLMWithValueHead.from_pretrained(
        tiny_gpt2, peft_config=causal_lora(lora_dropout=0.5), reward_adapter=str(folder)
    )
    assert model.supports_rm_adapter
    plain = AutoModelForCausalLMWithValueHead.from_pretrained(tiny_gpt2, peft_config=causal_lora())
    trains = {name for name, p in plain.named_parameters() if p.requires_grad}
    dropout = next(m for name, m in model.named_modules() if name.endswith("lora_dropout.default"))
    dropout.train()
    before = forward(model.eval())
    dropout.train()

    scores = model.compute_reward_score(IDS, attention_mask=torch.ones_like(IDS))
    assert scores.shape == (2, 5, 1)
    for length in range(1, 6):  # the reward model reads the last token of a text
        expected = rewards(input_ids=IDS[:1, :length]).logits
        torch.testing.assert_close(scores[:1, length - 1], expected, atol=1e-5, rtol=1e-5)

    # nothing else has changed
    assert {name for name, p in model.named_parameters() if p.requires_grad} == trains
    assert dropout.training and model.pretrained_model.active_adapter == "default"
    for a, b in zip(forward(model.eval()), before, strict=True):
        assert a is b or torch.equal(a, b)
    assert model.state_dict().keys() == HEAD_NAMES
    model.save_pretrained(tmp_path / "policy")
    assert load_file(tmp_path / "policy" / "adapter_model.safetensors").keys() == {
        name.replace(".default", "").removeprefix("pretrained_model.") for name in trains if "lora_" in name
    }


def test_reward_adapter_errors(tiny_gpt2, reward_model, tmp_path):
    _, folder = reward_model

    def load(**given):
        return AutoModelForCausalLMWithValueHead.from_pretrained(tiny_gpt2, **given)

    with pytest.raises(ValueError, match="PEFT"):
        load(reward_adapter=str(folder))
    with pytest.raises(ValueError, match="reward_adapter"):
        load(peft_config=causal_lora(), reward_adapter=5)
    with pytest.raises(ValueError, match="reward_adapter"):
        load(peft_config=causal_lora()).compute_reward_score(IDS)
    load(peft_config=causal_lora()).save_pretrained(tmp_path / "no score")
    with pytest.raises(ValueError, match="score"):
        load(peft_config=causal_lora(), reward_adapter=str(tmp_path / "no score"))
    path = folder / "adapter_model.safetensors"
    state = load_file(path)
    lost = next(name for name in state if "lora_A" in name)
    save_file({name: tensor for name, tensor in state.items() if name != lost}, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="lacks weights") as error:
        load(peft_config=causal_lora(), reward_adapter=str(folder))
    assert lost in str(error.value) and "\n" not in str(error.value)
    shutil.rmtree(folder)
    with pytest.raises(ValueError, match="no folder"):
        load(peft_config=causal_lora(), reward_adapter=str(folder))
    with pytest.raises(ValueError, match=r"adapter_config\.json"):
        load(peft_config=causal_lora(), reward_adapter=str(tiny_gpt2))


# --- the reference ---------------------------------------------------------------------------------------------------


def trained(model) -> dict[str, torch.Tensor]:
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    _, loss, value = forward(model, labels=IDS)
    (loss + value.square().mean()).backward()
    optimizer.step()
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def test_a_reference_model_does_not_move(family):
    folder, cls, _ = family
    model = cls.from_pretrained(folder)
    reference = create_reference_model(model)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    assert not reference.training and not any(p.requires_grad for p in reference.parameters())
    after = trained(model)
    assert all(not torch.equal(after[name], start[name]) for name in HEAD_NAMES)
    assert not equal(after, start)
    assert equal(dict(reference.named_parameters()), start)


@pytest.mark.parametrize("given", [{}, {"pattern": "layer"}])
@pytest.mark.parametrize("layers", [0, 1])
def test_first_layers_can_be_shared(family, layers, given):
    folder, cls, _ = family
    name = "decoder.block.{layer}" if cls is AutoModelForSeq2SeqLMWithValueHead else "transformer.h.{layer}"
    model = cls.from_pretrained(folder)
    reference = create_reference_model(model, num_shared_layers=layers, pattern=name if given else None)
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    ours, theirs = dict(model.named_parameters()), dict(reference.named_parameters())
    cut = next(i for i, n in enumerate(ours) if name.format(layer=layers) in n)
    shared, own = list(ours)[:cut], list(ours)[cut:]
    assert any("shared" in n or "wte" in n for n in shared)
    assert all(ours[n] is theirs[n] and not ours[n].requires_grad for n in shared)
    assert all(ours[n] is not theirs[n] and ours[n].requires_grad and not theirs[n].requires_grad for n in own)
    after = trained(model)
    assert all(torch.equal(after[n], start[n]) for n in shared)
    assert any(not torch.equal(after[n], start[n]) for n in own)
    assert equal(theirs, start)


def test_a_layer_that_is_not_there_cannot_be_shared(tiny_gpt2):
    model = AutoModelForCausalLMWithValueHead.from_pretrained(tiny_gpt2)
    for number, pattern in ((2, None), (1, "decoder.layers.{layer}")):
        with pytest.raises(ValueError, match="pattern"):
            create_reference_model(model, number, pattern)
    assert all(p.requires_grad for p in model.parameters())


# --- models that transformers computes differently beside other padding ----------------------------------------------

TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}


def scored(model, query: torch.Tensor, response: torch.Tensor) -> torch.Tensor:
    return model(**model.response_inputs(query, torch.ones_like(query), response, torch.ones_like(response)))[0]


@torch.no_grad()
def test_prophetnet_scores_a_prefix_as_it_scores_the_whole_and_as_it_generates():
    torch.manual_seed(0)
    sizes = {"encoder_ffn_dim": 8, "decoder_ffn_dim": 8, "max_position_embeddings": 32, "hidden_size": 16}
    layers = {f"num_{part}_layers": 2 for part in ("encoder", "decoder")}
    heads = {f"num_{part}_attention_heads": 2 for part in ("encoder", "decoder")}
    config = transformers.ProphetNetConfig(vocab_size=40, **sizes, **layers, **heads, **TOKENS)
    plain = AutoModelForSeq2SeqLM.from_config(config)
    for parameter in plain.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model = AutoModelForSeq2SeqLMWithValueHead.from_pretrained(plain)
    query, response = IDS[:1], IDS[1:]
    whole = scored(model, query, response)
    torch.testing.assert_close(scored(model, query, response[:, :2]), whole[:, :2])
    # one token at a time, as in generation
    cache, steps = None, []
    for token in torch.cat([torch.tensor([[2]]), response[:, :-1]], 1).T:
        output = plain(input_ids=query, decoder_input_ids=token[None], past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        steps.append(output.logits)
    torch.testing.assert_close(torch.cat(steps, 1), whole, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_bigbird_scores_do_not_depend_on_what_was_scored_before():
    torch.manual_seed(0)
    sizes = {f"{part}_{name}": 8 for part in ("encoder", "decoder") for name in ("ffn_dim", "layers")}
    sizes |= {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    config = transformers.BigBirdPegasusConfig(
        vocab_size=40, d_model=16, block_size=2, num_random_blocks=1, max_position_embeddings=64, **sizes, **TOKENS
    )
    model = AutoModelForSeq2SeqLMWithValueHead.from_pretrained(AutoModelForSeq2SeqLM.from_config(config))
    long = torch.randint(3, 40, (1, 31))
    first = scored(model, long, IDS[:1])
    scored(model, IDS[:1], IDS[:1])
    assert torch.equal(scored(model, long, IDS[:1]), first)
    # beside a longer query
    padded = torch.cat([long, torch.zeros(1, 9).long()], 1)
    inputs = model.response_inputs(padded, (padded > 0).long(), IDS[:1], torch.ones_like(IDS[:1]))
    torch.testing.assert_close(model(**inputs)[0], first, atol=1e-5, rtol=1e-5)
