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

from .paths import check_base, is_local_path
from .weights import load_whole, some_names

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


def is_adapter(name_or_path: str | Path) -> bool:
    """Whether a folder or hub repository holds an adapter instead of a whole model."""
    return _find_file(str(name_or_path), ADAPTER_CONFIG_FILE) is not None


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


def _check_adapter_kind(config: Any, name: str) -> None:
    if config.is_prompt_learning:
        raise ValueError(
            f"{name} is a {config.peft_type.value} adapter, which makes sequences longer than PPO counts them; "
            "train a LoRA adapter instead"
        )


def _embedding_weights(model: nn.Module) -> list[nn.Parameter]:
    """The base's own input and output embeddings (V, H), below any adapters on them; one tensor if they are tied."""
    layers = [model.get_input_embeddings(), model.get_output_embeddings()]
    for wrapped in ("original_module", "base_layer"):
        layers = [getattr(layer, wrapped, layer) for layer in layers]
    return list(dict.fromkeys(layer.weight for layer in layers if layer is not None))


def _names_of(parameters: list[nn.Parameter], model: nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters() if any(p is one for one in parameters)}


def _vocabulary_of(found: dict[str, Tensor], layer: str) -> int | None:
    """The vocabulary for which an adapter was trained, as far as its weights of the input embedding `layer` tell."""
    for name, tensor in found.items():
        if name.startswith(f"base_model.model.{layer}."):
            if name.endswith(".lora_embedding_A"):  # (rank, V)
                return tensor.shape[1]
            if name.endswith((f".{layer}.weight", ".base_layer.weight", ".original_module.weight")):
                return tensor.shape[0]
    return None


def _load_adapter(auto_class: type, name_or_path: str, dtype: Any, kwargs: dict) -> tuple[nn.Module, set[str]]:
    """The base model that an adapter folder names, with that adapter, trainable.

    Also the names of those base weights that the folder holds (such as embeddings for added tokens). They are loaded.
    """
    from peft import PeftConfig, PeftModel, get_peft_model_state_dict
    from peft.utils import load_peft_weights

    config = PeftConfig.from_pretrained(name_or_path)
    _check_adapter_kind(config, name_or_path)
    base = config.base_model_name_or_path
    if not base:
        raise ValueError(f"{name_or_path}/{ADAPTER_CONFIG_FILE} names no base model (base_model_name_or_path)")
    check_base(name_or_path, base)
    base_model = _load_language_model(auto_class, base, dtype, kwargs)
    try:
        found = load_peft_weights(name_or_path, device="cpu")
        embedding = base_model.get_input_embeddings()
        (layer,) = [name for name, module in base_model.named_modules() if module is embedding]
        tokens = len(embedding.weight)
        trained_for = _vocabulary_of(found, layer) or tokens
        if trained_for != tokens:
            base_model.resize_token_embeddings(trained_for, mean_resizing=False)
        embeddings = _embedding_weights(base_model)
        model = PeftModel.from_pretrained(base_model, name_or_path, is_trainable=True)
    except KeyError as error:
        raise ValueError(f"the adapter in {name_or_path} lacks weights: {error.args[0]}") from None
    except (RuntimeError, ValueError, IndexError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"the adapter in {name_or_path} cannot be put on {base}: {reason}") from None
    # PEFT only warns, and leaves such weights at their fresh values
    adapter = set(get_peft_model_state_dict(model, save_embedding_layers=False))
    if missing := adapter - found.keys():
        raise ValueError(f"the adapter in {name_or_path} lacks weights: {some_names(missing)}")
    if trained_for != tokens and (missing := _names_of(embeddings, model) - found.keys()):
        raise ValueError(
            f"the adapter in {name_or_path} was trained with {trained_for} tokens, {base} has {tokens}, and the "
            f"adapter file lacks {some_names(missing)}; give a base model of {trained_for} tokens"
        )
    # PEFT drops these in silence
    known = adapter | set(get_peft_model_state_dict(model, save_embedding_layers=True)) | set(model.state_dict())
    if unknown := found.keys() - known:
        raise ValueError(
            f"the adapter in {name_or_path} holds weights that {base} has no place for: {some_names(unknown)}"
        )
    return model, found.keys() & {name for name, _ in model.named_parameters()} - adapter


class _ModelWithValueHead(nn.Module):
    """A language model (`pretrained_model`, possibly a PEFT model) and its value head (`v_head`)."""

    auto_class: type
    # Encoder-decoder models: token ids between the decoder's start token and the response, such as the target language
    # of NLLB. The policy did not choose them: they are no actions.
    decoder_prefix: tuple[int, ...] = ()

    def __init__(self, pretrained_model: nn.Module) -> None:
        super().__init__()
        self.pretrained_model = pretrained_model
        self.config = pretrained_model.config
        self._loaded_base_weights: set[str] = set()  # names of base weights that came with the adapter
        if self.is_peft:
            for name, config in pretrained_model.peft_config.items():
                _check_adapter_kind(config, f"adapter {name!r}")
            if len(active := pretrained_model.active_adapters) != 1:
                raise ValueError(f"PPO trains one adapter, and {len(active)} are active: {some_names(active)}; set one")
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

        name_or_path: a base model (folder or hub name), an adapter folder (its adapter is trainable again), or a
            folder written by `save_pretrained` (the value head is restored; elsewhere it starts at zero). Base weights
            in an adapter folder are loaded too, and stay frozen. The embeddings are resized if the adapter was trained
            with another number of tokens.
        peft_config: adds a fresh adapter to a base model
        dtype: of the base weights, such as torch.bfloat16; adapters and value head are float32
        kwargs: to transformers' `from_pretrained`

        Raises ValueError, naming the weights, where the checkpoint lacks some or holds some of the wrong shape, and for
        adapters that make sequences longer (prompt tuning and similar kinds).
        """
        name = str(name_or_path)
        if is_local_path(name) and not Path(name).is_dir():
            raise ValueError(f"there is no folder {name}; give the folder of a model or a hub name")
        loaded: set[str] = set()
        if is_adapter(name):
            if peft_config is not None:
                raise ValueError(f"{name} is a trained adapter: leave peft_config out to train it on")
            pretrained_model, loaded = _load_adapter(cls.auto_class, name, dtype, kwargs)
        else:
            pretrained_model = _load_language_model(cls.auto_class, name, dtype, kwargs)
            if peft_config is not None:
                from peft import get_peft_model

                pretrained_model = get_peft_model(pretrained_model, peft_config)
        model = cls(pretrained_model)
        model._loaded_base_weights = loaded
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
        """Write the adapter (PEFT) or the whole model in its usual files, and the value head beside it.

        Base weights go with the adapter if they train, came with it, or are embeddings of another size than the base's.
        """
        if self.is_peft:
            self._save_adapter(Path(folder))
        else:
            self.pretrained_model.save_pretrained(str(folder))
        state = {name: p.detach().cpu().contiguous() for name, p in self.v_head.state_dict().items()}
        save_file(state, str(Path(folder) / VALUE_HEAD_FILE))

    def _adapter_weights(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The active adapter's weights under their names in its file, and all other weights that train."""
        from peft import get_peft_model_state_dict

        model = self.pretrained_model
        (active,) = model.active_adapters
        adapter = get_peft_model_state_dict(model, adapter_name=active, save_embedding_layers=False)
        places = {tensor.data_ptr() for tensor in adapter.values()}
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        return adapter, {name: p for name, p in trained.items() if p.data_ptr() not in places}

    def _save_adapter(self, folder: Path) -> None:
        from peft.utils import SAFETENSORS_WEIGHTS_NAME

        model = self.pretrained_model
        (active,) = model.active_adapters
        # PEFT's own rule for embeddings asks the hub, and would write tied ones twice
        model.save_pretrained(str(folder), selected_adapters=[active], save_embedding_layers=False)
        if active != "default":  # in a subfolder, where it would not be found
            for file in (folder / active).iterdir():
                file.replace(folder / file.name)
            (folder / active).rmdir()
        adapter, others = self._adapter_weights()
        names = self._loaded_base_weights | self._resized_embeddings()
        others |= {name: p for name, p in model.named_parameters() if name in names}
        if others:
            state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in (adapter | others).items()}
            save_file(state, str(folder / SAFETENSORS_WEIGHTS_NAME), metadata={"format": "pt"})

    def _resized_embeddings(self) -> set[str]:
        """Names of the base's embeddings, if its checkpoint has another vocabulary size or cannot be looked at."""
        (active,) = self.pretrained_model.active_adapters
        base = self.pretrained_model.peft_config[active].base_model_name_or_path
        embeddings = _embedding_weights(self.base_model)
        try:
            tokens = AutoConfig.from_pretrained(base or "", local_files_only=True).get_text_config().vocab_size
        except (OSError, ValueError):
            tokens = None
        return set() if tokens == len(embeddings[0]) else _names_of(embeddings, self.pretrained_model)

    def adapter_adds_zero(self) -> bool:
        """Whether the model computes what it does with adapters off, and only low-rank terms will train: fresh LoRA."""
        if not self.is_peft or len(self.pretrained_model.peft_config) > 1:
            return False
        adapter, others = self._adapter_weights()
        if others or not all(".lora_A." in name or ".lora_B." in name for name in adapter):
            return False
        return not any(tensor.any() for name, tensor in adapter.items() if ".lora_B." in name)

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
        """Arguments of `forward` such that output t scores response token t.

        The decoder reads [start] + decoder_prefix + response[:-1], and its last T outputs count.
        query_ids, query_mask: (B, Q); response_ids, mask: (B, T), padded on the right
        """
        start = self.config.decoder_start_token_id
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

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        decoder_input_ids: Tensor,
        decoder_attention_mask: Tensor | None = None,
        logits_to_keep: int = 0,
    ) -> tuple[Tensor, Tensor]:
        """Logits (B, T, V) in the model's type and values (B, T) float32 at the last T = `logits_to_keep` inputs.

        0 keeps all decoder inputs.
        """
        with self._last_hidden_state() as kept:
            logits = self.pretrained_model(
                input_ids=input_ids,
                attention_mask=attention_mask,
                decoder_input_ids=decoder_input_ids,
                decoder_attention_mask=decoder_attention_mask,
                use_cache=False,
            ).logits
        return logits[:, -logits_to_keep:], self._values(kept[-1][:, -logits_to_keep:])


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
