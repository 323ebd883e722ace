"""Every kind of adapter: saved and loaded without loss, and its own reference."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field

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
            parameter.requires_grad_(parameter.requires_grad or name.endswith(self.trained or ("nothing",)))
            if parameter.requires_grad:
                parameter.data += 0.1 * torch.randn_like(parameter)
        return model

    def wrap(self, model):
        seq2seq = self.base == "tiny_t5"
        return (AutoModelForSeq2SeqLMWithValueHead if seq2seq else AutoModelForCausalLMWithValueHead)(model).eval()

    def load(self, folder):
        seq2seq = self.base == "tiny_t5"
        cls = AutoModelForSeq2SeqLMWithValueHead if seq2seq else AutoModelForCausalLMWithValueHead
        return cls.from_pretrained(folder)


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


def batch(seed: int = 1, size: int = 8, vocabulary: int = 48):
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
    assert {name for name in trainable(model) if not name.endswith(kind.trained or ("nothing",))} == trainable(once)
    once.save_pretrained(tmp_path / "twice")
    torch.testing.assert_close(logits(kind.load(tmp_path / "twice")), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("embeddings", [True, "auto"])
def test_what_peft_saved_loads_and_is_saved_again(kind, adapted, embeddings, tmp_path):
    if kind.trained and (embeddings == "auto" or "norm" in kind.trained[0]):
        pytest.skip("PEFT does not write these")
    expected = logits(kind.wrap(adapted))
    adapted.save_pretrained(str(tmp_path / "peft"), save_embedding_layers=embeddings)
    model = kind.load(tmp_path / "peft")
    torch.testing.assert_close(logits(model), expected, atol=1e-5, rtol=0)
    model.save_pretrained(tmp_path / "ours")
    torch.testing.assert_close(logits(kind.load(tmp_path / "ours")), expected, atol=1e-5, rtol=0)
