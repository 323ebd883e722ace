"""Language models with a value head: one number per response token, read from the last decoder hidden state."""

from __future__ import annotations

import inspect
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM
from transformers.utils import cached_file

from .weights import load_whole
from .weights import some_names as _some

VALUE_HEAD_FILE = "v_head.safetensors"
ADAPTER_CONFIG_FILE = "adapter_config.json"


def _find_file(name_or_path: str, filename: str) -> str | None:
    """Path of a file of a model folder or hub repository; None where it has no such file."""
    if Path(name_or_path).is_dir():
        path = Path(name_or_path) / filename
        return str(path) if path.is_file() else None
    return cached_file(
        name_or_path,
        filename,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        _raise_exceptions_for_gated_repo=False,
    )


def _load_language_model(auto_class: type, name_or_path: str, dtype: Any, kwargs: dict) -> nn.Module:
    """A language model whose every weight comes from its checkpoint."""
    if Path(name_or_path).is_dir() and not (Path(name_or_path) / "config.json").is_file():
        raise ValueError(f"{name_or_path} has neither config.json nor {ADAPTER_CONFIG_FILE}; give a model folder")
    config = AutoConfig.from_pretrained(name_or_path)
    if type(config) not in auto_class._model_mapping:
        kind = "an encoder-decoder" if auto_class is AutoModelForSeq2SeqLM else "a decoder-only"
        raise ValueError(f"{name_or_path} holds a {config.model_type} model, which is not {kind} language model")
    if dtype is not None:
        kwargs = {**kwargs, "dtype": dtype}
    return load_whole(auto_class, name_or_path, **kwargs)[0]


def _load_adapter(auto_class: type, name_or_path: str, dtype: Any, kwargs: dict) -> nn.Module:
    """The base model that an adapter folder names, with that adapter, trainable."""
    from peft import PeftConfig, PeftModel, get_peft_model_state_dict
    from peft.utils import load_peft_weights

    config = PeftConfig.from_pretrained(name_or_path)
    base = config.base_model_name_or_path
    if not base:
        raise ValueError(f"{name_or_path}/{ADAPTER_CONFIG_FILE} names no base model (base_model_name_or_path)")
    model = _load_language_model(auto_class, base, dtype, kwargs)
    try:
        found = set(load_peft_weights(name_or_path, device="cpu"))
        model = PeftModel.from_pretrained(model, name_or_path, is_trainable=True)
    except (RuntimeError, ValueError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"the adapter in {name_or_path} cannot be put on {base}: {reason}") from None
    # PEFT only warns, and leaves such weights at their fresh values
    missing = set(get_peft_model_state_dict(model, save_embedding_layers=False)) - found
    if missing:
        raise ValueError(f"the adapter in {name_or_path} lacks weights: {_some(missing)}")
    return model


class _ModelWithValueHead(nn.Module):
    """A language model (`pretrained_model`, possibly a PEFT model) and its value head (`v_head`)."""

    auto_class: type

    def __init__(self, pretrained_model: nn.Module) -> None:
        super().__init__()
        self.pretrained_model = pretrained_model
        self.config = pretrained_model.config
        hidden_size = self.base_model.get_input_embeddings().weight.shape[1]
        hidden_size = getattr(self.config, "d_model", None) or getattr(self.config, "hidden_size", hidden_size)
        # Outside of the PEFT model: modules_to_save=["v..."] would also match the value projections of attention.
        # float32 whatever the model's type; zeros, so that an untrained head adds no noise to the first advantages.
        device = next(pretrained_model.parameters()).device
        self.v_head = nn.Linear(hidden_size, 1, dtype=torch.float32, device=device)
        nn.init.zeros_(self.v_head.weight)
        nn.init.zeros_(self.v_head.bias)

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, peft_config: Any = None, dtype: Any = None, **kwargs: Any):
        """Load a policy.

        name_or_path: a base model (folder or hub name), a LoRA adapter folder (its adapter is trainable again), or a
            folder written by `save_pretrained` (the value head is restored; elsewhere it starts at zero)
        peft_config: adds a fresh adapter to a base model
        dtype: of the base weights, such as torch.bfloat16; adapters and value head are float32
        kwargs: to transformers' `from_pretrained`

        Raises ValueError, naming the weights, where the checkpoint lacks some or holds some of the wrong shape.
        """
        name = str(name_or_path)
        if _find_file(name, ADAPTER_CONFIG_FILE):
            if peft_config is not None:
                raise ValueError(f"{name} is a trained adapter: leave peft_config out to train it on")
            pretrained_model = _load_adapter(cls.auto_class, name, dtype, kwargs)
        else:
            pretrained_model = _load_language_model(cls.auto_class, name, dtype, kwargs)
            if peft_config is not None:
                from peft import get_peft_model

                pretrained_model = get_peft_model(pretrained_model, peft_config)
        model = cls(pretrained_model)
        head = _find_file(name, VALUE_HEAD_FILE)
        if head:
            model._load_value_head(head)
        return model.eval()

    def _load_value_head(self, path: str) -> None:
        try:
            state = load_file(path)
            self.v_head.load_state_dict(state)
        except (RuntimeError, SafetensorError, OSError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"{path} does not hold this model's value head: {reason}") from None

    @property
    def is_peft(self) -> bool:
        return hasattr(self.pretrained_model, "peft_config")

    @property
    def base_model(self) -> nn.Module:
        """The transformers model, without the PEFT wrapper around it."""
        return self.pretrained_model.get_base_model() if self.is_peft else self.pretrained_model

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the adapter (PEFT) or the whole model in its usual files, and the value head beside it."""
        # "auto" would ask the hub whether the vocabulary of the base model has grown
        extra = {"save_embedding_layers": False} if self.is_peft else {}
        self.pretrained_model.save_pretrained(str(folder), **extra)
        state = {name: p.detach().cpu().contiguous() for name, p in self.v_head.state_dict().items()}
        save_file(state, str(Path(folder) / VALUE_HEAD_FILE))

    @contextmanager
    def _last_hidden_state(self):
        """Yield a list that receives the decoder's last hidden state (`output_hidden_states` keeps every layer's)."""
        kept: list[Tensor] = []
        hook = self.base_model.get_decoder().register_forward_hook(lambda _m, _i, output: kept.append(output[0]))
        try:
            yield kept
        finally:
            hook.remove()

    def _values(self, hidden: Tensor) -> Tensor:
        return self.v_head(hidden.to(self.v_head.weight.dtype)).squeeze(-1).float()


class AutoModelForSeq2SeqLMWithValueHead(_ModelWithValueHead):
    """An encoder-decoder language model (T5, mT5, BART...) with a value head on the decoder."""

    auto_class = AutoModelForSeq2SeqLM
    query_padding = "right"

    def response_inputs(self, query_ids: Tensor, query_mask: Tensor, response_ids: Tensor, mask: Tensor) -> dict:
        """Arguments of `forward` such that output t scores response token t: decoder input = [start] + response[:-1].

        query_ids, query_mask: (B, Q); response_ids, mask: (B, T), padded on the right
        """
        start = self.config.decoder_start_token_id
        if start is None:
            raise ValueError("the model's config has no decoder_start_token_id; set it")
        first = torch.full_like(response_ids[:, :1], start)
        return {
            "input_ids": query_ids,
            "attention_mask": query_mask,
            "decoder_input_ids": torch.cat([first, response_ids[:, :-1]], dim=1),
            # said, and made from lengths: a sampled pad token is an action like any other
            "decoder_attention_mask": mask,
        }

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        decoder_input_ids: Tensor,
        decoder_attention_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Logits (B, T, V) in the model's type and values (B, T) float32, for (B, T) decoder inputs."""
        with self._last_hidden_state() as kept:
            logits = self.pretrained_model(
                input_ids=input_ids,
                attention_mask=attention_mask,
                decoder_input_ids=decoder_input_ids,
                decoder_attention_mask=decoder_attention_mask,
                use_cache=False,
            ).logits
        return logits, self._values(kept[-1])


class AutoModelForCausalLMWithValueHead(_ModelWithValueHead):
    """A decoder-only language model (GPT-2, Llama...) with a value head."""

    auto_class = AutoModelForCausalLM
    query_padding = "left"

    def response_inputs(self, query_ids: Tensor, query_mask: Tensor, response_ids: Tensor, mask: Tensor) -> dict:
        """Arguments of `forward` such that output t scores response token t: query + response[:-1], last T outputs.

        query_ids, query_mask: (B, Q), padded on the left; response_ids, mask: (B, T), padded on the right
        """
        return {
            "input_ids": torch.cat([query_ids, response_ids[:, :-1]], dim=1),
            "attention_mask": torch.cat([query_mask, mask[:, :-1].to(query_mask.dtype)], dim=1),
            "logits_to_keep": response_ids.shape[1],
        }

    def forward(self, input_ids: Tensor, attention_mask: Tensor, logits_to_keep: int = 0) -> tuple[Tensor, Tensor]:
        """Logits (B, T, V) in the model's type and values (B, T) float32 at the last T = `logits_to_keep` positions.

        0 keeps all positions. Position numbers start at the first unmasked token of a row.
        """
        accepted = inspect.signature(self.base_model.forward).parameters
        optional = {
            "position_ids": (attention_mask.long().cumsum(1) - 1).clamp(min=0),
            "logits_to_keep": logits_to_keep,
            "use_cache": False,
        }
        optional = {name: value for name, value in optional.items() if name in accepted}
        with self._last_hidden_state() as kept:
            logits = self.pretrained_model(input_ids=input_ids, attention_mask=attention_mask, **optional).logits
        # [-0:] is the whole
        return logits[:, -logits_to_keep:], self._values(kept[-1][:, -logits_to_keep:])
