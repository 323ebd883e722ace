"""Adapters (PEFT): loaded and saved without loss, and the adapter of a reward model beside that of the policy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoConfig

from .loading import ADAPTER_CONFIG_FILE, check_folder, find_file, load_language_model, source_arguments
from .paths import check_base
from .weights import some_names

REWARD_ADAPTER = "reward_model_adapter"  # its name in the PEFT model


def is_adapter(name_or_path: str | Path, **source: Any) -> bool:
    """Whether a folder or hub repository holds an adapter instead of a whole model."""
    return find_file(str(name_or_path), ADAPTER_CONFIG_FILE, **source) is not None


def check_adapter_kind(config: Any, name: str) -> None:
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


def load_adapter(auto_class: type, name_or_path: str, is_trainable: bool, kwargs: dict) -> tuple[nn.Module, set[str]]:
    """The base model that an adapter folder names, with that adapter; kwargs: to the base's `from_pretrained`.

    Also the names of those base weights that the folder holds (such as embeddings for added tokens). They are loaded.
    """
    from peft import PeftConfig, PeftModel, get_peft_model_state_dict
    from peft.utils import load_peft_weights

    source = source_arguments(kwargs)
    config = PeftConfig.from_pretrained(name_or_path, **source)
    check_adapter_kind(config, name_or_path)
    base = config.base_model_name_or_path
    if not base:
        raise ValueError(f"{name_or_path}/{ADAPTER_CONFIG_FILE} names no base model (base_model_name_or_path)")
    check_base(name_or_path, base)
    base_model = load_language_model(
        auto_class, base, {name: value for name, value in kwargs.items() if name != "revision"}
    )
    try:
        found = load_peft_weights(name_or_path, device="cpu", **source)
        embedding = base_model.get_input_embeddings()
        (layer,) = [name for name, module in base_model.named_modules() if module is embedding]
        tokens = len(embedding.weight)
        trained_for = _vocabulary_of(found, layer) or tokens
        if trained_for != tokens:
            base_model.resize_token_embeddings(trained_for, mean_resizing=False)
        embeddings = _embedding_weights(base_model)
        model = PeftModel.from_pretrained(base_model, name_or_path, is_trainable=is_trainable, **source)
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


def adapter_weights(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A PEFT model's active adapter under the names in its file, and all other weights that train."""
    from peft import get_peft_model_state_dict

    (active,) = model.active_adapters
    adapter = get_peft_model_state_dict(model, adapter_name=active, save_embedding_layers=False)
    places = {tensor.data_ptr() for tensor in adapter.values()}
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    return adapter, {name: p for name, p in trained.items() if p.data_ptr() not in places}


def save_adapter(model: nn.Module, folder: Path, base_weights: set[str]) -> None:
    """Write the active adapter of a PEFT model in its usual files.

    Base weights go with it if they train, are named in `base_weights`, or are embeddings of another size than the
    base's.
    """
    from peft.utils import SAFETENSORS_WEIGHTS_NAME

    (active,) = model.active_adapters
    # PEFT's own rule for embeddings asks the hub, and would write tied ones twice
    model.save_pretrained(str(folder), selected_adapters=[active], save_embedding_layers=False)
    if active != "default":  # in a subfolder, where it would not be found
        for file in (folder / active).iterdir():
            file.replace(folder / file.name)
        (folder / active).rmdir()
    adapter, others = adapter_weights(model)
    names = base_weights | _resized_embeddings(model)
    others |= {name: p for name, p in model.named_parameters() if name in names}
    if others:
        state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in (adapter | others).items()}
        save_file(state, str(folder / SAFETENSORS_WEIGHTS_NAME), metadata={"format": "pt"})


def _resized_embeddings(model: nn.Module) -> set[str]:
    """Names of the base's embeddings, if its checkpoint has another vocabulary size or cannot be looked at."""
    (active,) = model.active_adapters
    base = model.peft_config[active].base_model_name_or_path
    embeddings = _embedding_weights(model.get_base_model())
    try:
        tokens = AutoConfig.from_pretrained(base or "", local_files_only=True).get_text_config().vocab_size
    except (OSError, ValueError):
        tokens = None
    return set() if tokens == len(embeddings[0]) else _names_of(embeddings, model)


def adapter_adds_zero(model: nn.Module) -> bool:
    """Whether a PEFT model computes what it does with adapters off, and only low-rank terms will train: fresh LoRA."""
    if len(model.peft_config) > 1:
        return False
    adapter, others = adapter_weights(model)
    if others or not all(".lora_A." in name or ".lora_B." in name for name in adapter):
        return False
    return not any(tensor.any() for name, tensor in adapter.items() if ".lora_B." in name)


def add_reward_adapter(model: nn.Module, name_or_path: str, **source: Any) -> nn.Linear:
    """Add the adapter of a reward model, frozen and not active, to a PEFT model on the same base model.

    Returns the reward model's score head, hidden states (..., H) to (..., labels). Raises ValueError if a weight is
    missing or has no place.
    """
    from peft import PeftConfig, get_peft_model_state_dict, set_peft_model_state_dict
    from peft.utils import load_peft_weights

    check_folder(name_or_path)
    if not is_adapter(name_or_path, **source):
        raise ValueError(f"{name_or_path} holds no reward adapter: {ADAPTER_CONFIG_FILE} is missing")
    config = PeftConfig.from_pretrained(name_or_path, **source)
    check_adapter_kind(config, name_or_path)
    trains = [p for p in model.parameters() if p.requires_grad]
    try:
        found = load_peft_weights(name_or_path, device="cpu", **source)
        score = {name: found.pop(name) for name in list(found) if "score" in name.split(".")}
        score = {name.rsplit(".", 1)[-1]: tensor for name, tensor in score.items() if "original_module" not in name}
        if "weight" not in score:
            raise ValueError("it has no score head (score.weight)")
        # the head is outside of the PEFT model: a language model has no place for it
        config.modules_to_save = sorted(set(config.modules_to_save or ()) - {"score", "classifier"}) or None
        model.add_adapter(REWARD_ADAPTER, config)
        set_peft_model_state_dict(model, found, adapter_name=REWARD_ADAPTER)
    except (KeyError, RuntimeError, ValueError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"the reward adapter in {name_or_path} cannot be put on this model: {reason}") from None
    due = get_peft_model_state_dict(model, adapter_name=REWARD_ADAPTER, save_embedding_layers=False).keys()
    if missing := due - found.keys():
        raise ValueError(f"the reward adapter in {name_or_path} lacks weights: {some_names(missing)}")
    if unknown := found.keys() - due:
        raise ValueError(
            f"the reward adapter in {name_or_path} holds weights that have no place: {some_names(unknown)}"
        )
    _let_train(model, trains)
    labels, width = score["weight"].shape
    like = model.get_input_embeddings().weight
    head = nn.Linear(width, labels, bias="bias" in score, dtype=like.dtype, device=like.device)
    head.load_state_dict(score)
    return head.requires_grad_(False)


@contextmanager
def reward_adapter_active(model: nn.Module, policy_adapter: str | None = None) -> Iterator[None]:
    """The reward adapter in the place of the policy's, in eval mode; what trains and which modules do stays."""
    trains = [p for p in model.parameters() if p.requires_grad]
    training = [module for module in model.modules() if module.training]
    active = policy_adapter or model.active_adapter
    model.set_adapter(REWARD_ADAPTER)
    model.eval()
    try:
        yield
    finally:
        model.set_adapter(active)
        _let_train(model, trains)
        for module in training:
            module.training = True


def _let_train(model: nn.Module, parameters: list[nn.Parameter]) -> None:
    """PEFT makes adapters trainable, or not, whenever it adds or activates one."""
    model.requires_grad_(False)
    for parameter in parameters:
        parameter.requires_grad_(True)
