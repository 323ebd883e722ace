"""Generation that depends on the weights and on what the caller passes, and on nothing else beside a checkpoint.

transformers fills every setting that a caller leaves open from `model.generation_config`, which comes from
generation_config.json or config.json: a repetition penalty there bends the distribution that PPO takes its samples to
come from. Only the special tokens are taken from these files here.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList, StopStringCriteria

from .t5_generation import covers, decoder_of

SAMPLING = {"do_sample": True, "top_k": 0, "top_p": 1.0, "temperature": 1.0, "num_beams": 1}  # the policy itself
GREEDY = {"do_sample": False, "num_beams": 1}

# The value that changes nothing, for each field that has one besides None. Two are not here: transformers warns if
# min_length stands beside min_new_tokens, and if top_k is set without sampling.
NEUTRAL = {
    "do_sample": False,
    "num_beams": 1,
    "num_return_sequences": 1,
    "temperature": 1.0,
    "top_p": 1.0,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "length_penalty": 1.0,
    "early_stopping": False,
    "remove_invalid_values": False,
    "use_cache": True,
    "output_scores": False,
    "return_dict_in_generate": False,
}
TOKEN_FIELDS = ("decoder_start_token_id", "bos_token_id", "eos_token_id", "pad_token_id")


@dataclass(frozen=True)
class SpecialTokens:
    """The ids that generation takes from a checkpoint."""

    start: int | None  # in front of a response, for encoder-decoder models
    bos: int | None
    ends: tuple[int, ...]  # each of them ends a response
    pad: int
    prefix: tuple[int, ...] = ()  # between start and response: tokens that are no actions, such as a target language


def special_tokens(model: nn.Module, tokenizer: Any = None) -> SpecialTokens:
    """The special tokens of a model (a PEFT model or not), its files, and its tokenizer.

    Every end token of the tokenizer, the config and the generation config counts, in this order. The start token is
    the config's, which scoring and fine-tuning use too; without one, an encoder-decoder model starts with its first bos
    token, as transformers lets it. Without any pad token the first end token pads, or 0.
    """
    base = _base_model(model)
    sources = (tokenizer, base.config, base.generation_config)

    def ids(name: str, *sources: Any) -> list[int]:
        found = [getattr(source, name, None) for source in sources]
        flat = [id for value in found for id in (value if isinstance(value, list | tuple) else [value])]
        return list(dict.fromkeys(id for id in flat if id is not None and id >= 0))  # some files have -1 for none

    ends = ids("eos_token_id", *sources)
    starts = ids("decoder_start_token_id", *sources[1:])
    bos = ids("bos_token_id", *sources[1:])
    return SpecialTokens(
        start=next(iter(starts + bos if base.config.is_encoder_decoder else starts), None),
        bos=next(iter(bos), None),
        ends=tuple(ends),
        pad=[*ids("pad_token_id", *sources), *ends, 0][0],
    )


def generation_settings(
    tokens: SpecialTokens, generation_config: GenerationConfig | None = None, **given: Any
) -> GenerationConfig:
    """Settings in which whatever the caller leaves open changes nothing, and `tokens` start, pad and end responses.

    generation_config: settings of the caller's own; `given`: fields of GenerationConfig, which go before these. None
    is what is left open; `eos_token_id=None` alone has a meaning, that no token ends a response. Forced first and last
    tokens (forced_bos_token_id, forced_eos_token_id) are off unless given: the policy does not choose them.
    """
    settings = GenerationConfig() if generation_config is None else copy.deepcopy(generation_config)
    settings.update(**given)
    left_open = NEUTRAL | {
        "decoder_start_token_id": tokens.start,
        "bos_token_id": tokens.bos,
        "eos_token_id": list(tokens.ends) or None,
        "pad_token_id": tokens.pad,
    }
    if settings.do_sample:
        left_open["top_k"] = 0  # transformers keeps the 50 likeliest tokens if it is left open
    if "eos_token_id" in given:
        del left_open["eos_token_id"]
    settings.update(defaults_only=True, **left_open)
    return settings


def generate(
    model: nn.Module,
    query_ids: Tensor,
    query_mask: Tensor,
    tokens: SpecialTokens,
    generation_config: GenerationConfig | None = None,
    **given: Any,
) -> list[Tensor]:
    """One response per row of a padded batch: (B, Q) ids and mask in, B x (T_i,) ids out.

    A response starts after the prompt, or after the start token and `tokens.prefix` of an encoder-decoder model. It
    ends with its first end token, included, or where a stopping criterion stops it, and holds no padding; a sampled
    pad token is an action like any other. `given`: fields of GenerationConfig (see `generation_settings`), and
    other arguments of transformers' `generate`.
    """
    fields = {name: value for name, value in given.items() if name in vars(GenerationConfig())}
    arguments = {name: value for name, value in given.items() if name not in fields}
    settings = generation_settings(tokens, generation_config, **fields)
    criteria = StoppingCriteriaList(arguments.pop("stopping_criteria", None) or [])
    if settings.stop_strings is not None and "tokenizer" in arguments:
        criteria.append(StopStringCriteria(arguments["tokenizer"], settings.stop_strings))
        settings.stop_strings = None
    stopped = _StoppedRows(criteria)
    if criteria:
        arguments["stopping_criteria"] = StoppingCriteriaList([stopped])

    base = _base_model(model)
    if base.config.model_type == "fsmt" and "use_cache" not in fields:
        settings.use_cache = False  # with it positions after a sampled pad token are others than in scoring
    # before anything is set up for transformers: small models on a CPU have a way of their own
    quick = None if arguments or tokens.prefix or not covers(settings, NEUTRAL) else decoder_of(model, base)
    if tokens.prefix:
        decoder_ids = query_ids.new_tensor([[settings.decoder_start_token_id, *tokens.prefix]])
        arguments["decoder_input_ids"] = decoder_ids.repeat(len(query_ids), 1)
    if quick is not None:
        output = quick.generate(query_ids, query_mask, settings)
    else:
        with _without_own_settings(base):
            # no process waits for another: each has the whole weights, and ends when its own rows do
            output = model.generate(
                input_ids=query_ids,
                attention_mask=query_mask,
                generation_config=settings,
                **{"synced_gpus": False} | arguments,
            )
    first = 1 + len(tokens.prefix) if base.config.is_encoder_decoder else query_ids.shape[1]
    ends = [] if settings.eos_token_id is None else settings.eos_token_id
    ends = torch.as_tensor(ends, dtype=torch.long, device=output.device).reshape(-1)
    responses = []
    for row, ids in enumerate(output):
        # beams change places: their rows are no longer those that were stopped
        response = ids[first : stopped.length(row) if settings.num_beams == 1 else None]
        found = torch.isin(response, ends).nonzero()
        responses.append((response[: int(found[0]) + 1] if len(found) else response).clone())
    return responses


def keep_special_tokens(model: nn.Module) -> None:
    """Take all but the special tokens out of the model's generation config, and so out of what is saved with it.

    transformers refuses to save some settings that it loads (a temperature without do_sample) once it has changed the
    tokens beside them, as its Trainer does.
    """
    own = model.generation_config
    model.generation_config = GenerationConfig(**{name: getattr(own, name) for name in TOKEN_FIELDS})


def unused_settings(model: nn.Module) -> dict[str, Any]:
    """What the files beside the weights ask of generation, and do not get."""
    base = _base_model(model)
    plain = NEUTRAL | {"top_k": 0, "min_length": 0, "decoder_start_token_id": special_tokens(base).start}
    ignored = {"transformers_version", *TOKEN_FIELDS} - {"decoder_start_token_id"}  # the config's start goes before

    def is_wish(name: str, value: Any) -> bool:
        if value is None or name in ignored or name.startswith("_"):
            return False
        # `is False`: 0 is a wish, if it is a forced token
        return value != plain[name] if name in plain else value is not False

    return {name: value for name, value in base.generation_config.to_dict().items() if is_wish(name, value)}


def describe_unused(model: nn.Module) -> str | None:
    """One line that names `unused_settings`; None if there are none."""
    unused = unused_settings(model)
    if not unused:
        return None
    shown = {name: repr(value) for name, value in unused.items()}
    words = [f"{name}={text if len(text) <= 40 else text[:37] + '...'}" for name, text in shown.items()]
    base = _base_model(model)
    return f"generation settings beside {base.name_or_path or type(base).__name__} are not used: {', '.join(words)}"


class _StoppedRows(StoppingCriteria):
    """The caller's criteria, and how long each row was when they first stopped it.

    transformers pads such a row while the others go on, and a pad token may also have been sampled.
    """

    def __init__(self, criteria: StoppingCriteriaList) -> None:
        self.criteria = criteria
        self.lengths: Tensor | None = None  # (B,), 0: not stopped

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        done = self.criteria(input_ids, scores, **kwargs)
        if self.lengths is None:
            self.lengths = torch.zeros(len(input_ids), dtype=torch.long, device=input_ids.device)
        self.lengths[done & (self.lengths == 0)] = input_ids.shape[1]
        return done

    def length(self, row: int) -> int | None:
        """Ids of a row up to where it was stopped; None if it was not."""
        return None if self.lengths is None else int(self.lengths[row]) or None


def _base_model(model: nn.Module) -> nn.Module:
    """The transformers model, without the PEFT wrapper around it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


@contextmanager
def _without_own_settings(base: nn.Module) -> Iterator[None]:
    """transformers fills what is None in the settings of a call from the model's: here there is nothing to find."""
    own = base.generation_config
    base.generation_config = GenerationConfig()
    try:
        yield
    finally:
        base.generation_config = own
