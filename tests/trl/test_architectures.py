"""Every architecture that users bring, as tiny random models: the whole of the interface, all weights and LoRA."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
import transformers
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from trl import AutoModelForCausalLMWithValueHead, AutoModelForSeq2SeqLMWithValueHead, PPOConfig, PPOTrainer
from trl.lora import find_projections, lora_targets, unknown_targets
from trl.ppo_math import token_logprobs
from trl.recomputation import recomputed_layers

pytestmark = pytest.mark.filterwarnings("ignore")

VOCABULARY = 40
TOKENS = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
T5 = {
    "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 2,
    "decoder_start_token_id": 0,
}  # fmt: skip
BART = {
    "d_model": 16, "encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "decoder_start_token_id": 2,
}  # fmt: skip
LLAMA = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 64,
}  # fmt: skip
GPT = {"n_embd": 16, "n_positions": 64, "n_layer": 2, "n_head": 2}
Q_AND_V, ALL_FOUR = ["q_proj", "v_proj"], ["k_proj", "o_proj", "q_proj", "v_proj"]
ALL_OF_BART = ["k_proj", "out_proj", "q_proj", "v_proj"]


def scaled(logits: torch.Tensor) -> torch.Tensor:
    """T5 with tied embeddings divides its last hidden state by the root of its size."""
    return logits * 16**-0.5


def capped(limit: float) -> Callable:
    return lambda logits: limit * torch.tanh(logits / limit)


@dataclass(frozen=True)
class Architecture:
    """config: a class of transformers and its arguments; targets: what LoRA goes on if nobody says it."""

    config: str
    settings: dict
    targets: list[str]
    between: Callable = lambda logits: logits  # what the model does between its output layer and its logits
    cannot: dict[str, str] = field(default_factory=dict)  # what the model itself cannot do, and why

    def build(self) -> transformers.PreTrainedModel:
        torch.manual_seed(0)
        config = getattr(transformers, self.config)(**TOKENS | self.settings)
        model = (AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM).from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():  # the usual start makes logits that are all but equal
                parameter += 0.1 * torch.randn_like(parameter)
        return model.eval()


def bart(
    name: str, targets: list[str] = ALL_OF_BART, positions: int = 32, cannot: dict | None = None, **settings
) -> Architecture:
    settings = BART | {"max_position_embeddings": positions} | settings
    return Architecture(f"{name}Config", settings, targets, cannot=cannot or {})


GEMMA = LLAMA | {"head_dim": 8}
ARCHITECTURES = {
    "T5": Architecture("T5Config", T5, ["q", "v"], scaled),
    "mT5": Architecture("MT5Config", T5, ["q", "v"]),
    "UMT5": Architecture("UMT5Config", T5, ["k", "o", "q", "v"], scaled),
    "LongT5": Architecture("LongT5Config", T5, ["k", "o", "q", "v"], scaled),
    "Switch": Architecture(
        "SwitchTransformersConfig",
        T5 | {"num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1, "num_experts": 2},
        ["k", "o", "q", "v"],
        scaled,
    ),
    "T5Gemma": Architecture(
        "T5GemmaConfig",
        {"encoder": TOKENS | GEMMA, "decoder": TOKENS | GEMMA, "decoder_start_token_id": 1},
        ALL_FOUR,
        capped(30.0),
    ),
    "BART": bart("Bart", Q_AND_V),
    "mBART": bart("MBart"),
    "Marian": bart("Marian"),
    "M2M100": bart("M2M100"),  # NLLB too
    "Pegasus": bart("Pegasus"),
    "PegasusX": bart("PegasusX", num_global_tokens=2, block_size=4),
    "LED": bart(
        "LED",
        ["k_proj", "key", "out_proj", "output", "q_proj", "query", "v_proj", "value"],
        max_encoder_position_embeddings=32,
        max_decoder_position_embeddings=32,
        attention_window=4,
    ),
    "Blenderbot": bart("Blenderbot"),
    "BlenderbotSmall": bart("BlenderbotSmall"),
    "PLBart": bart("PLBart"),
    "Mvp": bart("Mvp"),
    "ProphetNet": Architecture(
        "ProphetNetConfig",
        {
            "hidden_size": 16,
            "encoder_ffn_dim": 32,
            "decoder_ffn_dim": 32,
            "num_encoder_layers": 2,
            "num_decoder_layers": 2,
            "num_encoder_attention_heads": 2,
            "num_decoder_attention_heads": 2,
            "max_position_embeddings": 64,
            "decoder_start_token_id": 1,
        },
        ["key_proj", "out_proj", "query_proj", "relative_pos_embeddings", "value_proj"],
        cannot={
            "output": "its logits come from the n-gram stream, the decoder's last hidden state is the main stream",
        },
    ),
    "BigBirdPegasus": bart(
        "BigBirdPegasus",
        ["k_proj", "key", "out_proj", "output", "q_proj", "query", "v_proj", "value"],
        attention_type="original_full",  # block_sparse turns into it at the first short input, and draws random numbers
    ),
    "FSMT": bart(
        "FSMT",
        langs=["en", "de"],
        src_vocab_size=VOCABULARY,
        tgt_vocab_size=VOCABULARY,
        cannot={"checkpointing": "transformers has none for it"},
    ),
    "GPT-2": Architecture("GPT2Config", GPT, ["c_attn"]),
    "Llama": Architecture("LlamaConfig", LLAMA, Q_AND_V),
    "Qwen2": Architecture("Qwen2Config", LLAMA, Q_AND_V),
    "Qwen3": Architecture("Qwen3Config", LLAMA, Q_AND_V),
    "Mistral": Architecture("MistralConfig", LLAMA, Q_AND_V),
    "Gemma2": Architecture("Gemma2Config", GEMMA, Q_AND_V, capped(30.0)),
    "Gemma3": Architecture("Gemma3TextConfig", GEMMA, Q_AND_V),
    "Phi3": Architecture("Phi3Config", LLAMA, ["o_proj", "qkv_proj"]),
    "OPT": Architecture(
        "OPTConfig",
        {"hidden_size": 16, "word_embed_proj_dim": 16, "ffn_dim": 32, "num_hidden_layers": 2, "num_attention_heads": 2},
        Q_AND_V,
    ),
    "Bloom": Architecture("BloomConfig", {"hidden_size": 16, "n_layer": 2, "n_head": 2}, ["query_key_value"]),
    "GPT-NeoX": Architecture("GPTNeoXConfig", LLAMA, ["query_key_value"]),
    "GPT-J": Architecture("GPTJConfig", GPT | {"rotary_dim": 4}, Q_AND_V),
    "Falcon": Architecture(
        "FalconConfig", {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}, ["query_key_value"]
    ),
    "Mamba": Architecture(
        "MambaConfig", {"hidden_size": 16, "state_size": 4, "num_hidden_layers": 2}, ["in_proj", "x_proj"]
    ),
}

# --- LoRA's places ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_lora_goes_on_the_projections_of_attention(name):
    architecture = ARCHITECTURES[name]
    with torch.device("meta"):
        model = architecture.build()
    assert lora_targets(model) == architecture.targets
    found = find_projections(model)
    assert unknown_targets(model, found) == [] and unknown_targets(model, [*found, "no_proj"]) == ["no_proj"]
    # what PEFT chooses is part of what is found by looking
    assert set(architecture.targets) <= set(found)


def test_a_name_that_other_layers_share_is_given_with_its_parents():
    model = ARCHITECTURES["GPT-2"].build()
    assert find_projections(model) == ["attn.c_proj", "c_attn"]  # mlp.c_proj is no projection of attention


def test_a_model_without_attention_is_refused():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    model.config = transformers.PretrainedConfig()
    with pytest.raises(ValueError, match="target_modules"):
        lora_targets(model)


# --- the interface ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """One architecture, all of its weights trained or LoRA, and the folder of its base model."""

    name: str
    architecture: Architecture
    folder: str
    lora: bool

    def needs(self, ability: str) -> None:
        """Skip the test if the model cannot do that."""
        if reason := self.architecture.cannot.get(ability):
            pytest.skip(reason)

    def load(self):
        model_class = _class_of(self.architecture.build())
        torch.manual_seed(1)
        return model_class.from_pretrained(self.folder, peft_config=self.peft_config())

    def peft_config(self) -> LoraConfig | None:
        return LoraConfig(r=2, target_modules=self.architecture.targets) if self.lora else None

    def trainer(self, model) -> PPOTrainer:
        config = PPOConfig(
            log_with=None, batch_size=3, mini_batch_size=3, gradient_accumulation_steps=1, ppo_epochs=1,
            learning_rate=1e-2, seed=3,
        )  # fmt: skip
        return PPOTrainer(config, model)


def _class_of(model) -> type:
    return AutoModelForSeq2SeqLMWithValueHead if model.config.is_encoder_decoder else AutoModelForCausalLMWithValueHead


@pytest.fixture(
    scope="module",
    params=[f"{name}{lora}" for name in ARCHITECTURES for lora in ("", " with LoRA")],
)
def case(request, tmp_path_factory) -> Case:
    name = request.param.removesuffix(" with LoRA")
    folder = str(tmp_path_factory.mktemp("base"))
    ARCHITECTURES[name].build().save_pretrained(folder)
    return Case(name, ARCHITECTURES[name], folder, request.param != name)


@pytest.fixture(scope="module")
def policy(case):
    """A policy that no test changes."""
    return case.load()


QUERIES = [torch.tensor(ids) for ids in ([5, 6, 7, 8, 9, 2], [10, 2], [11, 12, 13, 2])]
RESPONSES = [torch.tensor(ids) for ids in ([14, 15, 2], [16, 17, 18, 19, 2], [20])]
SCORES = [torch.linspace(-1, 1, len(ids)) for ids in RESPONSES]


def inputs_of(model, queries=QUERIES, responses=RESPONSES) -> tuple[dict, torch.Tensor]:
    """Arguments of the model's forward for ragged rows, and the response ids (B, T)."""
    padded = torch.nn.utils.rnn.pad_sequence
    query_side = "right" if model.config.is_encoder_decoder else "left"
    query_ids = padded(queries, batch_first=True, padding_side=query_side)
    query_mask = padded([torch.ones_like(ids) for ids in queries], batch_first=True, padding_side=query_side)
    response_ids = padded(responses, batch_first=True)
    mask = padded([torch.ones_like(ids) for ids in responses], batch_first=True)
    return model.response_inputs(query_ids, query_mask, response_ids, mask), response_ids


@torch.no_grad()
def logprobs(model, queries=QUERIES, responses=RESPONSES) -> list[torch.Tensor]:
    """Of each response's tokens, B x (T_i,)."""
    inputs, ids = inputs_of(model, queries, responses)
    found = token_logprobs(model(**inputs)[0], ids)
    return [row[: len(response)] for row, response in zip(found, responses, strict=True)]


def same(found: list[torch.Tensor], expected: list[torch.Tensor], tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(torch.cat(found), torch.cat(expected), atol=tolerance, rtol=0)


def test_a_row_is_scored_in_a_batch_as_alone(policy, case):
    alone = [logprobs(policy, [query], [response])[0] for query, response in zip(QUERIES, RESPONSES, strict=True)]
    assert torch.cat(alone).std() > 0.01
    same(logprobs(policy), alone)


def test_the_output_layer_reads_what_the_value_head_reads(policy, case):
    case.needs("output")
    read = []
    hook = policy.v_head.register_forward_pre_hook(lambda _module, inputs: read.append(inputs[0]))
    with torch.no_grad():
        logits = policy(**inputs_of(policy)[0])[0]
        hook.remove()
        (hidden,) = read
        assert hidden.std() > 0.01
        # FSMT's is not where transformers says
        own = getattr(policy.base_model.get_decoder(), "output_projection", None)
        output_layer = own or policy.base_model.get_output_embeddings()
        torch.testing.assert_close(case.architecture.between(output_layer(hidden)), logits, atol=1e-4, rtol=0)


def test_generation_is_the_same_in_a_batch_as_alone(policy, case, fresh_accelerate):
    trainer = case.trainer(policy)
    settings = {"do_sample": False, "max_new_tokens": 4, "return_prompt": False}
    batch = trainer.generate(QUERIES, batch_size=3, **settings)
    alone = [trainer.generate([query], batch_size=1, **settings)[0] for query in QUERIES]
    assert [ids.tolist() for ids in batch] == [ids.tolist() for ids in alone]
    assert all(1 <= len(ids) <= 4 for ids in batch)
    # each token is the likeliest one in the pass that scores it
    with torch.no_grad():
        likeliest = policy(**inputs_of(policy, QUERIES, batch)[0])[0].argmax(-1)
    for row, response in enumerate(batch):
        assert likeliest[row, : len(response)].tolist() == response.tolist()


def test_a_policy_learns_and_is_saved_and_resumed(case, tmp_path, fresh_accelerate):
    trainer = case.trainer(case.load())
    before = logprobs(trainer.policy)
    first = trainer.step(QUERIES, RESPONSES, SCORES)
    assert abs(float(first["objective/kl"])) < 1e-5 and float(first["ppo/updates"]) == 1
    assert (torch.cat(logprobs(trainer.policy)) - torch.cat(before)).abs().max() > 1e-4
    trainer.save_state(tmp_path / "state")
    second = trainer.step(QUERIES, RESPONSES, SCORES)
    assert float(second["objective/kl"]) != 0
    trained = torch.cat(logprobs(trainer.policy))
    resumed = case.trainer(case.load())
    resumed.load_state(tmp_path / "state")
    assert float(resumed.step(QUERIES, RESPONSES, SCORES)["objective/kl"]) == float(second["objective/kl"])
    assert torch.equal(torch.cat(logprobs(resumed.policy)), trained)

    trainer.policy.save_pretrained(tmp_path / "policy")
    loaded = type(trainer.policy).from_pretrained(tmp_path / "policy")
    torch.testing.assert_close(torch.cat(logprobs(loaded)), trained, atol=1e-6, rtol=0)


# --- weights without a gradient --------------------------------------------------------------------------------------

WITHOUT_GRADIENT = {"LED": "_global.", "Marian": "embed_positions.", "Pegasus": "embed_positions.", "Switch": "expert_"}


def gradients(policy) -> dict[str, torch.Tensor | None]:
    """Of each trainable weight, by its name."""
    trainable = {name: p for name, p in policy.named_parameters() if p.requires_grad}
    logits, _, values = policy(**inputs_of(policy)[0])
    found = torch.autograd.grad(logits.std() + values.std(), list(trainable.values()), allow_unused=True)
    return dict(zip(trainable, found, strict=True))


def test_which_weights_get_no_gradient(policy, case):
    """Those that the model names, whatever the input; and experts of Switch, which depend on the input."""
    unused = set(policy.unused_weights())
    without = {name for name, gradient in gradients(policy).items() if gradient is None}
    assert without <= unused and all("expert_" in name for name in unused - without)
    part = None if case.lora else WITHOUT_GRADIENT.get(case.name)
    assert bool(unused) == (part is not None) and all(part in name for name in unused)


def test_checkpointed_layers_have_the_same_gradients(policy, case):
    """In eval mode, from less memory."""
    case.needs("checkpointing")
    weights = {p.untyped_storage().data_ptr() for p in policy.parameters()}

    def kept_bytes() -> tuple[int, dict[str, torch.Tensor | None]]:
        kept = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            found = gradients(policy)
        return sum(kept.values()), found

    plain_bytes, plain = kept_bytes()
    # the reentrant kind, which gives frozen inputs no gradient, is not used
    policy.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    try:
        with recomputed_layers(policy):
            assert not policy.training
            fewer_bytes, found = kept_bytes()
    finally:
        policy.gradient_checkpointing_disable()
    assert fewer_bytes < 0.5 * plain_bytes
    for name, gradient in plain.items():
        assert (gradient is None) == (found[name] is None)
        if gradient is not None:
            torch.testing.assert_close(found[name], gradient, atol=1e-6, rtol=0)


# --- half precision --------------------------------------------------------------------------------------------------

# float16 keeps 11 bits and bfloat16 8; these logits reach 10, and two layers round several times
TOLERANCES = {torch.float16: 0.02, torch.bfloat16: 0.15}


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("name", ["T5", "Llama"])
def test_half_precision_is_finite_and_close_to_float32(name, dtype, tmp_path, fresh_accelerate):
    model = ARCHITECTURES[name].build()
    model.save_pretrained(tmp_path)
    exact = Case(name, ARCHITECTURES[name], str(tmp_path), lora=True)
    expected = logprobs(exact.load())
    trainer = exact.trainer(_class_of(model).from_pretrained(tmp_path, peft_config=exact.peft_config(), dtype=dtype))
    assert trainer.policy.base_model.dtype == dtype
    found = logprobs(trainer.policy)
    assert found[0].dtype == torch.float32
    same(found, expected, TOLERANCES[dtype])
    assert not torch.equal(torch.cat(found), torch.cat(expected))
    responses = trainer.generate(QUERIES, batch_size=3, do_sample=True, max_new_tokens=4, return_prompt=False)
    stats = trainer.step(QUERIES, responses, [torch.ones(len(ids)) for ids in responses])
    assert float(stats["ppo/updates"]) == 1
    assert all(torch.isfinite(torch.as_tensor(value)).all() for value in stats.values())
    assert torch.isfinite(torch.cat(logprobs(trainer.policy))).all()
