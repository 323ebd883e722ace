"""Language models with a value head: one number per response token, read from the last decoder hidden state."""

from __future__ import annotations

import inspect
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _IncompatibleKeys
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils import PushToHubMixin

from .adapters import (
    adapter_adds_zero,
    add_reward_adapter,
    check_adapter_kind,
    is_adapter,
    load_adapter,
    reward_adapter_active,
    save_adapter,
)
from .batching import different_queries
from .corrections import correct_attention
from .generation import special_tokens
from .loading import check_folder, load_language_model, source_arguments
from .reference import create_reference_model
from .value_head import ValueHead, current_names, load_value_head, save_value_head
from .weights import some_names

__all__ = [
    "AutoModelForCausalLMWithValueHead",
    "AutoModelForSeq2SeqLMWithValueHead",
    "PreTrainedModelWrapper",
    "ValueHead",
    "create_reference_model",
]


class PreTrainedModelWrapper(nn.Module, PushToHubMixin):
    """A language model (`pretrained_model`, possibly a PEFT model) and its value head (`v_head`).

    pretrained_model: a transformers or PEFT model with a language-model head
    value_head: False: there is none, `v_head` is None and so are the values (rloo and grpo need none)
    summary_dropout_prob, v_head_initializer_range, v_head_init_strategy: see `ValueHead`
    """

    transformers_parent_class: type
    lm_head_namings: tuple[str, ...]
    supported_args = ("value_head", "summary_dropout_prob", "v_head_initializer_range", "v_head_init_strategy")

    # Encoder-decoder models: token ids between the decoder's start token and the response, such as the target language
    # of NLLB. The policy did not choose them: they are no actions.
    decoder_prefix: tuple[int, ...] = ()

    def __init__(self, pretrained_model: nn.Module, value_head: bool = True, **head: Any) -> None:
        super().__init__()
        self.pretrained_model = pretrained_model
        self.config = pretrained_model.config
        self._loaded_base_weights: set[str] = set()  # names of base weights that came with the adapter
        self._check_kind()
        if self.is_peft_model:
            for name, config in pretrained_model.peft_config.items():
                check_adapter_kind(config, f"adapter {name!r}")
            if len(active := pretrained_model.active_adapters) != 1:
                raise ValueError(f"PPO trains one adapter, and {len(active)} are active: {some_names(active)}; set one")
        correct_attention(self.base_model)
        # Outside of the PEFT model: modules_to_save=["v..."] would also match the value projections of attention.
        self.v_head = ValueHead(self.config, **head).to(self._head_device()) if value_head else None

    def _check_kind(self) -> None:
        name = type(self.base_model).__name__
        if not self.is_peft_model and hasattr(self.pretrained_model, "peft_config"):
            raise ValueError(
                f"the {name} has adapters inside (add_adapter); load it as a PeftModel, or give its folder"
            )
        # a class of transformers that has a language-model head can generate, and no other can
        if not self.base_model.can_generate():
            raise ValueError(f"{name} does not have a language model head; give a model that has one")
        encoder_decoder = self.transformers_parent_class is AutoModelForSeq2SeqLM
        if bool(getattr(self.config, "is_encoder_decoder", False)) != encoder_decoder:
            kind = "an encoder-decoder" if encoder_decoder else "a decoder-only"
            raise ValueError(f"{name} is not {kind} language model")

    def _head_device(self) -> torch.device:
        devices = set(self._device_map.values())
        if devices & {"cpu", "disk"} and devices != {"cpu"}:
            raise ValueError("the model is offloaded to CPU or disk, where it cannot train; choose another device_map")
        head = self.base_model.get_output_embeddings()
        return next((head or self.base_model).parameters()).device

    @property
    def _device_map(self) -> dict[str, Any]:
        return getattr(self.base_model, "hf_device_map", None) or {}

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path | nn.Module,
        *,
        peft_config: Any = None,
        reward_adapter: str | Path | None = None,
        is_trainable: bool = True,
        dtype: Any = None,
        torch_dtype: Any = None,
        **kwargs: Any,
    ) -> PreTrainedModelWrapper:
        """Load a policy, in eval mode.

        pretrained_model_name_or_path: a transformers or PEFT model; or the folder or hub name of a base model, of an
            adapter, or of what `save_pretrained` or TRL wrote (the value head is restored). Base weights in an adapter
            folder are loaded too, and stay frozen. The embeddings are resized if the adapter was trained with another
            number of tokens.
        peft_config: adds a fresh adapter to a base model
        reward_adapter: folder or hub name of a reward model's LoRA adapter on the same base, for
            `compute_reward_score`; for PEFT models only
        is_trainable: whether the adapter of an adapter folder trains. TRL's default was False, which trained the value
            head alone.
        dtype (or torch_dtype): of the base weights, such as torch.bfloat16, or "auto" for the checkpoint's. The default
            is float32, in which small updates are not lost. Adapters and value head are float32.
        kwargs: `supported_args` to the value head, all others to transformers' `from_pretrained`

        Raises ValueError, naming the weights, if the checkpoint lacks some or holds some of the wrong shape, for a
        model without a language-model head, and for adapters that make sequences longer (prompt tuning and similar
        kinds).
        """
        head = {name: kwargs.pop(name) for name in cls.supported_args if name in kwargs}
        if "use_auth_token" in kwargs:  # its name before
            kwargs["token"] = kwargs.pop("use_auth_token")
        dtype = torch_dtype if dtype is None else dtype
        loaded: set[str] = set()
        source, name = source_arguments(kwargs), None
        if isinstance(pretrained_model_name_or_path, nn.Module):
            pretrained_model = pretrained_model_name_or_path
            if not isinstance(pretrained_model, PreTrainedModel) and not hasattr(pretrained_model, "get_base_model"):
                raise ValueError(f"a {type(pretrained_model).__name__} is neither a transformers nor a PEFT model")
            if unused := [*kwargs, *(["dtype"] if dtype is not None else [])]:
                warnings.warn(
                    f"the model is already loaded, so these have no effect: {some_names(unused)}", stacklevel=2
                )
        elif isinstance(pretrained_model_name_or_path, str | Path):
            name = str(pretrained_model_name_or_path)
            check_folder(name)
            if dtype is not None or "quantization_config" not in kwargs:
                kwargs["dtype"] = torch.float32 if dtype is None else dtype
            if is_adapter(name, **source):
                if peft_config is not None:
                    raise ValueError(f"{name} is a trained adapter: leave peft_config out to train it on")
                pretrained_model, loaded = load_adapter(cls.transformers_parent_class, name, is_trainable, kwargs)
            else:
                pretrained_model = load_language_model(cls.transformers_parent_class, name, kwargs)
        else:
            raise ValueError(f"give a name, a folder or a model, not {pretrained_model_name_or_path!r:.80}")
        if peft_config is not None:
            pretrained_model = _with_fresh_adapter(pretrained_model, peft_config)
        model = cls(pretrained_model, **head)
        model._loaded_base_weights = loaded
        if name is not None and model.v_head is not None:
            load_value_head(model.v_head, name, **source)
        if reward_adapter is not None:
            if not model.is_peft_model:
                raise ValueError("reward_adapter is for a PEFT model; give peft_config too, or an adapter folder")
            if not isinstance(reward_adapter, str | Path):
                raise ValueError(f"reward_adapter must be a folder or a hub name, not {reward_adapter!r:.80}")
            model.score = add_reward_adapter(pretrained_model, str(reward_adapter), **source)
        return model.eval()

    @property
    def is_peft_model(self) -> bool:
        return hasattr(self.pretrained_model, "get_base_model")

    @property
    def base_model(self) -> nn.Module:
        """The transformers model, without the PEFT wrapper around it."""
        return self.pretrained_model.get_base_model() if self.is_peft_model else self.pretrained_model

    @property
    def keeps_rows(self) -> bool:
        """Whether `rows_to_keep` saves logits."""
        return self.config.model_type in ("t5", "mt5")  # nothing behind their head knows a shape

    @property
    def is_sequential_parallel(self) -> bool:
        """Whether the layers are on more than one device (device_map)."""
        return len(set(self._device_map.values())) > 1

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """transformers' `generate` of the wrapped model."""
        return self.pretrained_model.generate(*args, **kwargs)

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict:
        return self.pretrained_model.prepare_inputs_for_generation(*args, **kwargs)

    def gradient_checkpointing_enable(self, **kwargs: Any) -> None:
        """transformers' own. PPOTrainer, in eval mode, recomputes the same layers without the reentrant kind."""
        self.base_model.gradient_checkpointing_enable(**kwargs)

    def gradient_checkpointing_disable(self) -> None:
        self.base_model.gradient_checkpointing_disable()

    # --- weights -----------------------------------------------------------------------------------------------------

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Without arguments, the weights under TRL's names: those of the wrapped model, and `v_head.*`.

        For a PEFT model the value head alone. With arguments, as other modules and DeepSpeed call it, every weight
        under its full name.
        """
        if args or kwargs:
            return super().state_dict(*args, **kwargs)
        weights = {} if self.is_peft_model else self.pretrained_model.state_dict()
        head = {} if self.v_head is None else self.v_head.state_dict()
        return weights | {f"v_head.{name}": tensor for name, tensor in head.items()}

    def load_state_dict(self, state_dict: dict[str, Tensor], strict: bool = True, **kwargs: Any) -> _IncompatibleKeys:
        """Load what `state_dict` gave, with or without arguments, also that of TRL."""
        state = current_names(state_dict)
        if self.is_peft_model and all(name.startswith("v_head.") for name in state):
            state = {name.removeprefix("v_head."): tensor for name, tensor in state.items()}
            head = nn.Module() if self.v_head is None else self.v_head
            return head.load_state_dict(state, strict, **kwargs)
        if not any(name.startswith("pretrained_model.") for name in state):
            state = {
                name if name.startswith("v_head.") else f"pretrained_model.{name}": tensor
                for name, tensor in state.items()
            }
        return super().load_state_dict(state, strict, **kwargs)

    def save_pretrained(
        self,
        save_directory: str | Path,
        *,
        state_dict: dict[str, Tensor] | None = None,
        is_main_process: bool = True,
        **kwargs: Any,
    ) -> None:
        """Write the adapter (PEFT) or the whole model in its usual files, and the value head beside it.

        Base weights go with the adapter if they train, came with it, or are embeddings of another size than the base's.

        state_dict: the weights to write, under the names that `state_dict()` gives; left out, the model's own
        is_main_process: False writes nothing
        kwargs: to transformers' `save_pretrained` (max_shard_size...); an adapter is one safetensors file
        """
        if not is_main_process:
            return
        hub = {name: kwargs.pop(name) for name in ("repo_id", "commit_message", "private", "token") if name in kwargs}
        push = kwargs.pop("push_to_hub", False)
        folder = Path(save_directory)
        state = self.state_dict() if state_dict is None else state_dict
        if self.is_peft_model:
            save_adapter(self.pretrained_model, folder, self._loaded_base_weights)
        else:
            own = {name: tensor for name, tensor in state.items() if not name.startswith("v_head.")}
            self.pretrained_model.save_pretrained(str(folder), state_dict=own, **kwargs)
        prefix = "v_head."
        if self.v_head is not None:
            save_value_head({n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}, folder)
        if push:
            self.push_to_hub(hub.pop("repo_id", folder.name), **hub)

    def adapter_adds_zero(self) -> bool:
        """Whether the model computes what it does with adapters off, and only low-rank terms will train: fresh LoRA."""
        return self.is_peft_model and adapter_adds_zero(self.pretrained_model)

    # --- forward -----------------------------------------------------------------------------------------------------

    def forward(
        self,
        input_ids: Tensor | None = None,
        past_key_values: Any = None,
        attention_mask: Tensor | None = None,
        logits_to_keep: int = 0,
        rows_to_keep: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Logits (B, T, V) in the model's type, loss (if `labels` are given) and values (B, T) float32.

        Without a value head the values are None.

        logits_to_keep: T, the last positions (of the decoder's inputs if there is an encoder); 0 keeps all
        rows_to_keep: (B, T) bool; T5 and mT5 then compute logits for its N True places alone, in order: (N, V). Other
            models give (B, T, V) as without it.
        kwargs: to the wrapped model (labels, decoder_input_ids, position_ids...). The position numbers of a
            decoder-only model start at the first unmasked token of a row unless they are given.
        """
        inputs = self._inputs(input_ids, past_key_values, attention_mask, kwargs)
        inputs |= self._accepted({"logits_to_keep": logits_to_keep})
        if rows_to_keep is None or not self.keeps_rows:
            output, hidden = self._run(**inputs)
            # [-0:] is the whole
            logits = output.logits[:, -logits_to_keep:]
        else:
            head = self.base_model.get_output_embeddings()
            hook = head.register_forward_pre_hook(lambda _m, x: (x[0][:, -rows_to_keep.shape[1] :][rows_to_keep],))
            try:
                output, hidden = self._run(**inputs)
            finally:
                hook.remove()
            logits = output.logits
        return logits, output.loss, self._values(hidden[:, -logits_to_keep:], logits)

    def _inputs(self, input_ids: Any, past_key_values: Any, attention_mask: Any, kwargs: dict) -> dict[str, Any]:
        given = {"input_ids": input_ids, "past_key_values": past_key_values, "attention_mask": attention_mask} | kwargs
        given = {name: value for name, value in given.items() if value is not None}
        defaults: dict[str, Any] = {"use_cache": "past_key_values" in given}
        if not self.config.is_encoder_decoder and attention_mask is not None and "past_key_values" not in given:
            defaults["position_ids"] = (attention_mask.long().cumsum(1) - 1).clamp(min=0)
        return self._accepted(defaults) | given

    def _run(self, **inputs: Any) -> tuple[Any, Tensor]:
        """The wrapped model's output, and the decoder's last hidden state (B, T, H)."""
        with self._last_hidden_state() as kept:
            output = self.pretrained_model(**inputs)
        return output, kept[-1]

    def shares_queries(self) -> bool:
        """Whether rows of an input that have the same query share its encoding."""
        return False

    def _accepted(self, defaults: dict[str, Any]) -> dict[str, Any]:
        """Those arguments that the wrapped model's forward has."""
        names = inspect.signature(self.base_model.forward).parameters
        return {name: value for name, value in defaults.items() if name in names}

    @contextmanager
    def _last_hidden_state(self):
        """Yield a list that receives the decoder's last hidden state (`output_hidden_states` keeps every layer's)."""
        kept: list[Tensor] = []
        decoder = _decoder(self.base_model)
        if hasattr(decoder, "output_projection"):  # FSMT's decoder returns logits
            hook = decoder.output_projection.register_forward_pre_hook(lambda _m, inputs: kept.append(inputs[0]))
        else:
            hook = decoder.register_forward_hook(lambda _m, _i, output: kept.append(output[0]))
        try:
            yield kept
        finally:
            hook.remove()

    def _values(self, hidden: Tensor, logits: Tensor) -> Tensor | None:
        """(B, T) float32 from (B, T, H)."""
        if self.v_head is None:
            return None
        return self.v_head(hidden).squeeze(-1).float().to(logits.device)

    def unused_weights(self) -> list[str]:
        """Names of the trainable weights that have no part in the outputs for an input of one token.

        Such as the experts that get no token, and LED's projections for global attention, which is off.
        """
        token = torch.ones(1, 1, dtype=torch.long, device=self.base_model.get_input_embeddings().weight.device)
        with torch.enable_grad():
            logits, _, values = self(**self.response_inputs(token, token, token, token))
        outputs = (logits,) if values is None else (logits, values)
        nodes = [output.grad_fn for output in outputs if output.grad_fn is not None]
        seen, used = set(nodes), set()
        while nodes:
            node = nodes.pop()
            if hasattr(node, "variable"):  # of a leaf: it adds up the gradient of a weight
                used.add(node.variable)
            new = {before for before, _ in node.next_functions if before is not None} - seen
            seen |= new
            nodes += new
        return [name for name, p in self.named_parameters() if p.requires_grad and p not in used]

    # --- the adapter of a reward model -------------------------------------------------------------------------------

    @property
    def supports_rm_adapter(self) -> bool:
        return hasattr(self, "score")

    @torch.no_grad()
    def compute_reward_score(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        ppo_adapter_name: str | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Scores (B, T, labels) of the reward adapter at every token; without gradients.

        ppo_adapter_name: the adapter that is active afterwards; left out, the one that is active now
        """
        if not self.supports_rm_adapter:
            raise ValueError("this model has no reward adapter; give reward_adapter to from_pretrained")
        inputs = self._inputs(input_ids, None, attention_mask, kwargs)
        with reward_adapter_active(self.pretrained_model, ppo_adapter_name):
            _, hidden = self._run(**inputs)
        return self.score(hidden.to(self.score.weight))


def _with_fresh_adapter(model: nn.Module, peft_config: Any) -> nn.Module:
    from peft import PeftConfig, get_peft_model

    if not isinstance(peft_config, PeftConfig):
        raise ValueError(
            f"peft_config must be a configuration of PEFT, such as LoraConfig(...), not {peft_config!r:.80}"
        )
    if not isinstance(model, PreTrainedModel):
        raise ValueError("the model has an adapter already: leave peft_config out to train it on")
    return get_peft_model(model, peft_config)


def _decoder(model: nn.Module) -> nn.Module:
    """The module whose output is the decoder's last hidden state."""
    while hasattr(model, "get_decoder") and (inner := model.get_decoder()) is not model:
        model = inner
    return model


class AutoModelForSeq2SeqLMWithValueHead(PreTrainedModelWrapper):
    """An encoder-decoder language model (T5, mT5, BART...) with a value head on the decoder."""

    transformers_parent_class = AutoModelForSeq2SeqLM
    lm_head_namings = ("lm_head", "embed_out", "output_projection")
    query_padding = "right"
    sharing_types = ("t5", "mt5")  # whose encoder reads nothing but ids and mask

    def shares_queries(self) -> bool:
        """Only without dropout in the encoder: it is another for each row."""
        encoder = self.base_model.get_encoder()
        active = any(isinstance(m, nn.Dropout) and m.training and m.p > 0 for m in encoder.modules())
        return self.config.model_type in self.sharing_types and not active

    def _run(self, **inputs: Any) -> tuple[Any, Tensor]:
        ids, mask = inputs.get("input_ids"), inputs.get("attention_mask")
        if mask is None or ids is None or "encoder_outputs" in inputs or not self.shares_queries():
            return super()._run(**inputs)
        different, masks, row_of = different_queries(ids, mask)
        if len(different) < len(ids):
            hidden = self.base_model.get_encoder()(input_ids=different, attention_mask=masks).last_hidden_state
            del inputs["input_ids"]
            inputs["encoder_outputs"] = BaseModelOutput(last_hidden_state=hidden.index_select(0, row_of))
        return super()._run(**inputs)

    def response_inputs(self, query_ids: Tensor, query_mask: Tensor, response_ids: Tensor, mask: Tensor) -> dict:
        """Arguments of `forward` such that output t scores response token t.

        The decoder reads [start] + decoder_prefix + response[:-1], and its last T outputs count.
        query_ids, query_mask: (B, Q); response_ids, mask: (B, T), padded on the right
        """
        start = special_tokens(self.base_model).start
        if start is None:
            raise ValueError("the model's config has no decoder_start_token_id; set it")
        first = response_ids.new_tensor([[start, *self.decoder_prefix]]).repeat(len(response_ids), 1)
        prefix_mask = mask.new_ones(len(mask), len(self.decoder_prefix))
        return {
            "input_ids": query_ids,
            "attention_mask": query_mask,
            "decoder_input_ids": torch.cat([first, response_ids[:, :-1]], dim=1),
            # said, and made from lengths: a sampled pad token is an action like any other
            "decoder_attention_mask": torch.cat([prefix_mask, mask], dim=1),
            "logits_to_keep": response_ids.shape[1],
        }


class AutoModelForCausalLMWithValueHead(PreTrainedModelWrapper):
    """A decoder-only language model (GPT-2, Llama...) with a value head."""

    transformers_parent_class = AutoModelForCausalLM
    lm_head_namings = ("lm_head", "embed_out")
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
