"""Every kind of adapter: saved and loaded without loss, and its own reference."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from peft import IA3Config, LoraConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from trl import AutoModelForCausalLMWithValueHead, AutoModelForSeq2SeqLMWithValueHead, PPOConfig, PPOTrainer

pytestmark = pytest.mark.filterwarnings("ignore")
ADAPTER_FILE = "adapter_model.safetensors"


@dataclass(frozen=True)
class Kind:
    base: str = "tiny_t5"
    settings: dict = field(default_factory=dict)
    config: type = LoraConfig
    trained: tuple[str, ...] = ()  # base weights that train too
    tokens: int | None = None  # vocabulary, if it is not the base's

    def build(self, folder):
        """The adapter on its base, as a PEFT model whose trainable weights have all moved from their start."""
        seq2seq = self.base == "tiny_t5"
        torch.manual_seed(0)
        base = (AutoModelForSeq2SeqLM if seq2seq else AutoModelForCausalLM).from_pretrained(folder)
        if self.tokens:
            base.resize_token_embeddings(self.tokens)
        task = "SEQ_2_SEQ_LM" if seq2seq else "CAUSAL_LM"
        size = {"r": 4} if self.config is LoraConfig else {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = get_peft_model(base, self.config(task_type=task, **size, **self.settings))
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(parameter.requires_grad or self.trains_base_weight(name))
            if parameter.requires_grad:
                parameter.data += 0.1 * torch.randn_like(parameter)
        return model

    def trains_base_weight(self, name: str) -> bool:
        return any(name.endswith(end) for end in self.trained)

    @property
    def model_class(self) -> type:
        return AutoModelForSeq2SeqLMWithValueHead if self.base == "tiny_t5" else AutoModelForCausalLMWithValueHead

    def wrap(self, model):
        return self.model_class(model).eval()

    def load(self, folder):
        return self.model_class.from_pretrained(folder)


KINDS = {
    "lora": Kind(),
    "lora on llama": Kind("tiny_llama"),
    "dora": Kind(settings={"use_dora": True}),
    "rslora": Kind(settings={"use_rslora": True}),
    "pissa": Kind(settings={"init_lora_weights": "pissa"}),
    "olora": Kind(settings={"init_lora_weights": "olora"}),
    "ia3": Kind(config=IA3Config),
    "lora_only": Kind("tiny_gpt2", {"bias": "lora_only"}),
    "bias all": Kind("tiny_gpt2", {"bias": "all"}),
    "trained embeddings": Kind(trained=("shared.weight",)),
    "trained embeddings on llama": Kind("tiny_llama", trained=("embed_tokens.weight", "lm_head.weight")),
    "trained norm": Kind(trained=("final_layer_norm.weight",)),
    "lora on embeddings": Kind(settings={"target_modules": ["shared", "lm_head", "q"]}),
    "lora on embed_tokens": Kind("tiny_llama", {"target_modules": ["embed_tokens", "lm_head", "q_proj"]}),
    "tied lora": Kind("tiny_gpt2", {"target_modules": ["wte", "c_attn"], "ensure_weight_tying": True}),
    "modules_to_save shared": Kind(settings={"modules_to_save": ["shared"]}),
    "modules_to_save lm_head": Kind(settings={"modules_to_save": ["lm_head"]}),
    "modules_to_save tied": Kind("tiny_gpt2", {"modules_to_save": ["wte"], "ensure_weight_tying": True}),
    "modules_to_save on llama": Kind("tiny_llama", {"modules_to_save": ["embed_tokens", "lm_head"]}),
    "trainable tokens": Kind(settings={"trainable_token_indices": [5, 9]}),
    "trainable tokens on llama": Kind("tiny_llama", {"trainable_token_indices": [5, 9]}),
    "added tokens": Kind(tokens=514),
    "added tokens on llama": Kind("tiny_llama", tokens=50),
    "fewer tokens": Kind(tokens=500),
    "added tokens, modules_to_save": Kind("tiny_llama", {"modules_to_save": ["embed_tokens", "lm_head"]}, tokens=50),
    "added tokens, lora on them": Kind("tiny_llama", {"target_modules": ["embed_tokens", "q_proj"]}, tokens=50),
    "added tokens, trained alone": Kind(settings={"trainable_token_indices": [512, 513]}, tokens=514),
}


@pytest.fixture(params=KINDS)
def kind(request) -> Kind:
    return KINDS[request.param]


@pytest.fixture
def adapted(kind, request):
    return kind.build(request.getfixturevalue(kind.base))


def batch(seed: int = 1, size: int = 4, vocabulary: int = 48):
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, 7, (2, size), generator=g).tolist()
    queries, responses = ([torch.randint(3, vocabulary, (n,), generator=g) for n in row] for row in lengths)
    queries[0][:2] = responses[0][:2] = torch.tensor([5, 9])
    return queries, responses, [torch.randn(len(r), generator=g) for r in responses]


@torch.no_grad()
def logits(model) -> torch.Tensor:
    """Of all the tokens that the model has."""
    ids = torch.arange(model.base_model.get_input_embeddings().weight.shape[0])[-40:].repeat(2, 1)
    ids[1, :3] = torch.tensor([5, 9, 7])
    return model(**model.response_inputs(ids, torch.ones_like(ids), ids.flip(1)[:, :9], torch.ones(2, 9).long()))[0]


def trainable(model) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


# --- saving ----------------------------------------------------------------------------------------------------------


def test_what_is_saved_loads_to_the_same_logits(kind, adapted, tmp_path):
    model = kind.wrap(adapted)
    expected = logits(model)
    model.save_pretrained(tmp_path / "once")
    once = kind.load(tmp_path / "once")
    torch.testing.assert_close(logits(once), expected, atol=1e-5, rtol=0)
    assert trainable(once) == {name for name in trainable(model) if not kind.trains_base_weight(name)}
    once.save_pretrained(tmp_path / "twice")
    torch.testing.assert_close(logits(kind.load(tmp_path / "twice")), expected, atol=1e-5, rtol=0)


FOUND_BY_PEFT = [(name, "auto") for name, kind in KINDS.items() if not kind.trained]
TOLD_TO_PEFT = [
    "lora",
    "trained embeddings",
    "trained embeddings on llama",
    "lora on embeddings",
    "lora on embed_tokens",
]
TOLD_TO_PEFT += ["modules_to_save shared", "modules_to_save on llama", "trainable tokens", "trainable tokens on llama"]


@pytest.mark.parametrize(("name", "embeddings"), [*FOUND_BY_PEFT, *((name, True) for name in TOLD_TO_PEFT)])
def test_what_peft_saved_loads_and_is_saved_again(name, embeddings, request, tmp_path):
    kind = KINDS[name]
    adapted = kind.build(request.getfixturevalue(kind.base))
    expected = logits(kind.wrap(adapted))
    adapted.save_pretrained(str(tmp_path / "peft"), save_embedding_layers=embeddings)
    if name == "added tokens, lora on them":  # PEFT leaves out what is not adapted, here the new output rows
        with pytest.raises(ValueError, match=r"50 tokens.* has 48.*lm_head\.weight"):
            kind.load(tmp_path / "peft")
        return
    model = kind.load(tmp_path / "peft")
    torch.testing.assert_close(logits(model), expected, atol=1e-5, rtol=0)
    model.save_pretrained(tmp_path / "ours")
    torch.testing.assert_close(logits(kind.load(tmp_path / "ours")), expected, atol=1e-5, rtol=0)


def test_tied_embeddings_are_written_once(tiny_t5, tmp_path):
    KINDS["lora"].wrap(KINDS["added tokens"].build(tiny_t5)).save_pretrained(tmp_path)
    sizes = [tensor.shape for tensor in load_file(tmp_path / ADAPTER_FILE).values()]
    assert sizes.count((514, 64)) == 1


def test_embeddings_that_did_not_change_are_not_written(tiny_t5, tmp_path):
    for name in ("lora", "lora on embeddings"):
        KINDS[name].wrap(KINDS[name].build(tiny_t5)).save_pretrained(tmp_path / name)
        assert not [k for k in load_file(tmp_path / name / ADAPTER_FILE) if "lora_" not in k]


def test_embeddings_are_written_if_the_base_cannot_be_looked_at(tiny_t5, tmp_path):
    adapted = KINDS["lora"].build(tiny_t5)
    adapted.peft_config["default"].base_model_name_or_path = str(tmp_path / "moved")
    KINDS["lora"].wrap(adapted).save_pretrained(tmp_path / "saved")
    assert "base_model.model.shared.weight" in load_file(tmp_path / "saved" / ADAPTER_FILE)


@pytest.mark.parametrize("name", ["lora", "lora on embeddings", "modules_to_save shared"])
def test_an_adapter_by_another_name_can_be_loaded(tiny_t5, tmp_path, name):
    kind = KINDS[name]
    adapted = kind.build(tiny_t5)
    adapted.add_adapter("second", LoraConfig(r=3, task_type="SEQ_2_SEQ_LM", **kind.settings))
    adapted.set_adapter("second")
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    model = kind.wrap(adapted)
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(logits(kind.load(tmp_path)), logits(model), atol=1e-5, rtol=0)


def edit_adapter(folder, edit) -> None:
    state = load_file(folder / ADAPTER_FILE)
    state = {name: tensor.clone() for name, tensor in state.items()}
    edit(state)
    save_file(state, folder / ADAPTER_FILE, metadata={"format": "pt"})


def refused(kind: Kind, folder) -> str:
    with pytest.raises(ValueError) as error:
        kind.load(folder)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("name", "lost"),
    [
        ("modules_to_save shared", "base_model.model.shared.weight"),
        ("trainable tokens", "base_model.model.shared.token_adapter.trainable_tokens_delta"),
        ("bias all", "base_model.model.transformer.ln_f.bias"),
        ("added tokens on llama", "base_model.model.lm_head.weight"),
    ],
)
def test_a_weight_that_an_adapter_lacks_is_named(request, tmp_path, name, lost):
    kind = KINDS[name]
    kind.wrap(kind.build(request.getfixturevalue(kind.base))).save_pretrained(tmp_path)
    edit_adapter(tmp_path, lambda state: state.pop(lost))
    assert lost in refused(kind, tmp_path)


def test_a_weight_without_a_place_is_named(tiny_t5, tmp_path):
    kind = KINDS["lora"]
    kind.wrap(kind.build(tiny_t5)).save_pretrained(tmp_path)
    name = "base_model.model.encoder.block.7.layer.0.SelfAttention.q.lora_A.weight"
    edit_adapter(tmp_path, lambda state: state.update({name: torch.ones(4, 64)}))
    assert name in refused(kind, tmp_path)


@pytest.mark.parametrize("name", ["added tokens, trained alone", "added tokens, lora on them"])
def test_added_tokens_without_their_embeddings_are_refused(request, tmp_path, name):
    kind = KINDS[name]
    kind.build(request.getfixturevalue(kind.base)).save_pretrained(str(tmp_path), save_embedding_layers=False)
    refused(kind, tmp_path)


def test_prompt_tuning_is_refused(tiny_t5, tmp_path):
    config = PromptTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=4)
    adapted = get_peft_model(AutoModelForSeq2SeqLM.from_pretrained(tiny_t5), config)
    adapted.save_pretrained(str(tmp_path))
    assert "PROMPT_TUNING" in refused(KINDS["lora"], tmp_path)
    with pytest.raises(ValueError, match="PROMPT_TUNING"):
        AutoModelForSeq2SeqLMWithValueHead(adapted)
    with pytest.raises(ValueError, match="PROMPT_TUNING"):
        AutoModelForSeq2SeqLMWithValueHead.from_pretrained(tiny_t5, peft_config=config)


def test_two_active_adapters_are_refused(tiny_t5):
    adapted = KINDS["lora"].build(tiny_t5)
    adapted.add_adapter("second", LoraConfig(r=2, task_type="SEQ_2_SEQ_LM"))
    adapted.base_model.set_adapter(["default", "second"])
    with pytest.raises(ValueError, match="default, second"):
        AutoModelForSeq2SeqLMWithValueHead(adapted)


# --- the reference and checkpoints -----------------------------------------------------------------------------------


def make_trainer(model) -> PPOTrainer:
    config = PPOConfig(
        log_with="none", batch_size=4, mini_batch_size=2, gradient_accumulation_steps=2, ppo_epochs=1,
        learning_rate=1e-2, seed=3,
    )  # fmt: skip
    return PPOTrainer(config, model)


def untimed(stats: dict) -> dict:
    return {name: np.asarray(value).tolist() for name, value in stats.items() if not name.startswith("time/")}


def test_a_trained_adapter_is_its_own_reference_also_after_a_resume(kind, adapted, tmp_path):
    kind.wrap(adapted).save_pretrained(tmp_path / "policy")
    as_given = kind.load(tmp_path / "policy")
    policy = kind.load(tmp_path / "policy")
    for name, parameter in policy.named_parameters():
        parameter.requires_grad_(parameter.requires_grad or kind.trains_base_weight(name))
    ours = {name: parameter.data_ptr() for name, parameter in policy.named_parameters()}
    trains = trainable(policy)
    trainer = make_trainer(policy)
    assert abs(trainer.step(*batch())["objective/kl"]) < 1e-5
    inputs = trainer.prepare_model_inputs(*batch(2)[:2])
    with torch.no_grad():
        start = as_given(**inputs)[0]
        torch.testing.assert_close(trainer.reference_logits(inputs), start, atol=1e-5, rtol=0)
        assert (trainer.policy(**inputs)[0] - start).abs().max() > 1e-4
    # looking at the reference left the policy's weights in place, and trainable
    assert {name: parameter.data_ptr() for name, parameter in trainer.policy.named_parameters()} == ours
    assert trainable(trainer.policy) == trains

    trainer.save_state(tmp_path / "state")
    second = untimed(trainer.step(*batch(2)))
    trained = logits(trainer.policy)
    policy = kind.load(tmp_path / "policy")
    for name, parameter in policy.named_parameters():
        parameter.requires_grad_(name in trains)
    resumed = make_trainer(policy)
    resumed.load_state(tmp_path / "state")
    assert untimed(resumed.step(*batch(2))) == second
    assert torch.equal(logits(resumed.policy), trained)

    trainer.save_pretrained(tmp_path / "trained")
    torch.testing.assert_close(logits(kind.load(tmp_path / "trained")), trained, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["lora", "bias all", "trained embeddings", "trainable tokens", "modules_to_save tied"])
@pytest.mark.parametrize("fresh", [False, True])
def test_the_reference_of_a_classic_peft_model_is_its_start(name, fresh, request):
    kind = KINDS[name]
    adapted = kind.build(request.getfixturevalue(kind.base))
    if fresh:
        for parameter_name, parameter in adapted.named_parameters():
            if "lora_B" in parameter_name:
                parameter.data.zero_()
    trainer = make_trainer(kind.wrap(adapted))
    inputs = trainer.prepare_model_inputs(*batch(3)[:2])
    with torch.no_grad():
        start = trainer.policy(**inputs)[0]
    assert abs(trainer.step(*batch())["objective/kl"]) < 1e-5
    with torch.no_grad():
        assert torch.equal(trainer.reference_logits(inputs), start)
        assert (trainer.policy(**inputs)[0] - start).abs().max() > 1e-4


def test_adapters_off_are_the_reference_of_fresh_lora_alone(tiny_t5, tiny_gpt2):
    def fresh(folder, cls=AutoModelForSeq2SeqLMWithValueHead, **settings):
        task = "SEQ_2_SEQ_LM" if folder == tiny_t5 else "CAUSAL_LM"
        return cls.from_pretrained(folder, peft_config=LoraConfig(task_type=task, **settings))

    assert fresh(tiny_t5).adapter_adds_zero()
    assert not KINDS["lora"].wrap(KINDS["lora"].build(tiny_t5)).adapter_adds_zero()
    assert not AutoModelForSeq2SeqLMWithValueHead.from_pretrained(tiny_t5).adapter_adds_zero()
    for settings in ({"use_dora": True}, {"init_lora_weights": "pissa"}, {"modules_to_save": ["lm_head"]}):
        assert not fresh(tiny_t5, **settings).adapter_adds_zero()
    # adapters off would leave the trained biases of the base on
    assert not fresh(tiny_gpt2, AutoModelForCausalLMWithValueHead, bias="all").adapter_adds_zero()
    unfrozen = fresh(tiny_t5)
    unfrozen.base_model.shared.weight.requires_grad_(True)
    assert not unfrozen.adapter_adds_zero()
