"""Sampling and greedy search of small T5 models on a CPU, where transformers spends most of a token in Python.

One token of all rows at a time: the encoder reads each different query once, keys and values have their place from the
start, rows that have ended are dropped, adapters are added to copies of the weights. The model is only read. Logits
are those of transformers but for rounding; sampling has the same distribution, by other draws. What is not known to
be computed alike is left to transformers: `decoder_of` and `covers` say so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import GenerationConfig, LogitsProcessorList
from transformers.generation import (
    MinLengthLogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from .batching import different_queries

MODELS = ("transformers.models.t5.modeling_t5", "transformers.models.mt5.modeling_mt5")
PARTS = (*MODELS, "torch.nn.modules.", "transformers.activations", "peft.tuners.lora.")  # modules of a known kind
# fields of GenerationConfig that are followed, and the value of each other one that changes nothing, besides None
FOLLOWED = {
    "do_sample", "temperature", "top_k", "top_p", "min_length", "min_new_tokens", "max_new_tokens", "eos_token_id",
    "pad_token_id", "bos_token_id", "decoder_start_token_id", "transformers_version",
}  # fmt: skip
FEW_ENDED = 0.25  # ended rows are dropped once they are more than this share
TURNED_HEAD = 2**24  # numbers in an output matrix that is turned too; above it a second one is too large


def covers(settings: GenerationConfig, neutral: dict[str, Any]) -> bool:
    """Whether nothing but `FOLLOWED` differs from `neutral` and from what is left open."""
    if settings.max_new_tokens is None or settings.decoder_start_token_id is None:
        return False

    def changes_nothing(name: str, value: Any) -> bool:
        # an attribute that GenerationConfig keeps for itself starts with an underscore
        return value is None or name in FOLLOWED or name.startswith("_") or value == neutral.get(name, _NO_VALUE)

    return all(changes_nothing(name, value) for name, value in vars(settings).items())


_NO_VALUE = object()


def processors_of(settings: GenerationConfig, device: torch.device) -> LogitsProcessorList:
    """What transformers applies to logits for these settings, in its order."""
    found, ends = [], settings.eos_token_id
    if ends is not None:
        if settings.min_length:
            found.append(MinLengthLogitsProcessor(settings.min_length, ends, device=device))
        if settings.min_new_tokens:
            found.append(MinNewTokensLengthLogitsProcessor(1, settings.min_new_tokens, ends, device=device))
    if settings.do_sample:
        if settings.temperature not in (None, 1.0):
            found.append(TemperatureLogitsWarper(settings.temperature))
        if settings.top_k:
            found.append(TopKLogitsWarper(settings.top_k))
        if settings.top_p is not None and settings.top_p < 1.0:
            found.append(TopPLogitsWarper(settings.top_p))
    return LogitsProcessorList(found)


def draw(logits: Tensor, uniform: Tensor) -> Tensor:
    """One token a row from softmax(logits), (B, V) -> (B,): the first whose sum of probabilities passes `uniform`.

    A token without probability is never drawn. Raises RuntimeError, as torch.multinomial does, for what is no
    distribution.
    uniform: (B,) float64, drawn from [0, 1)
    """
    cumulative = logits.softmax(-1).cumsum(-1, dtype=torch.float64)
    total = cumulative[:, -1:]
    if not torch.isfinite(total).all():
        raise RuntimeError("the policy's probabilities contain `inf` or `nan`")
    # torch.rand gives up to 1 - 2^-53: the clamp keeps the product below the total when it is rounded
    reached = uniform.clamp(max=1 - 2**-52)[:, None] * total
    return torch.searchsorted(cumulative, reached, right=True).squeeze(-1)


@dataclass(frozen=True)
class Layer:
    """The weights of a decoder layer, adapters added: of the norms (d,), else (in, out).

    Turned, because with a handful of rows x @ W is nearly twice as fast as x @ W.t().
    """

    norms: tuple[Tensor, Tensor, Tensor]  # before attention, before cross-attention, before the feed-forward part
    query_key_value: Tensor  # (d, 3 heads * head_dim)
    output: Tensor
    cross_query: Tensor
    cross_key_value: Tensor  # (d, 2 heads * head_dim)
    cross_output: Tensor
    up: tuple[Tensor, ...]  # one, or gate and linear part
    down: Tensor


class RowsFirst:
    """Keys and values (B * heads, T, d) for a few rows or a long context: products of matrices."""

    def __init__(self, batch: int, heads: int, length: int, dim: int, like: Tensor) -> None:
        self.heads = heads
        self.keys, self.values = (like.new_empty(batch * heads, length, dim) for _ in range(2))

    def put(self, place: slice, keys: Tensor, values: Tensor) -> None:
        """keys, values: (B, t, heads, d)"""
        self.keys[:, place], self.values[:, place] = (part.transpose(1, 2).flatten(0, 1) for part in (keys, values))

    def attend(self, query: Tensor, length: int, bias: Tensor) -> Tensor:
        """(B, heads * d) -> the same; bias: (heads or 1, B or 1, length), added to scores of the first positions."""
        # bmm, because matmul copies what is cut out of a cache
        scores = torch.bmm(query.reshape(len(self.keys), 1, -1), self.keys[:, :length].transpose(1, 2))
        scores.view(len(query), self.heads, length).add_(bias.transpose(0, 1))
        return torch.bmm(scores.softmax(-1), self.values[:, :length]).view(query.shape)

    def keep(self, rows: Tensor) -> None:
        self.keys, self.values = (
            part.unflatten(0, (-1, self.heads)).index_select(0, rows).flatten(0, 1) for part in (self.keys, self.values)
        )


class RowsLast:
    """Keys and values (T, heads, d, B) for many rows and a short context: sums over vectors of rows."""

    def __init__(self, batch: int, heads: int, length: int, dim: int, like: Tensor) -> None:
        self.keys, self.values = (like.new_empty(length, heads, dim, batch) for _ in range(2))

    def put(self, place: slice, keys: Tensor, values: Tensor) -> None:
        self.keys[place], self.values[place] = keys.permute(1, 2, 3, 0), values.permute(1, 2, 3, 0)

    def attend(self, query: Tensor, length: int, bias: Tensor) -> Tensor:
        _, heads, dim, batch = self.keys.shape
        query = query.t().contiguous().view(heads, dim, batch)
        scores = (query * self.keys[:length]).sum(2)  # (T, heads, B)
        shares = scores.add_(bias.permute(2, 0, 1)).softmax(0)
        return (shares[:, :, None] * self.values[:length]).sum(0).view(heads * dim, batch).t()

    def keep(self, rows: Tensor) -> None:
        shape = (*self.keys.shape[:-1], len(rows))
        self.keys, self.values = (
            part.flatten(0, 2).index_select(1, rows).view(shape) for part in (self.keys, self.values)
        )


class T5Decoder:
    """A T5's decoder with its adapters added, for one generation. `decoder_of` makes it."""

    def __init__(self, base: nn.Module) -> None:
        decoder, config = base.decoder, base.config
        self.encoder = base.encoder
        self.embedding, head = decoder.embed_tokens.weight, _weight(base.lm_head)
        self.head = head.t() if head.numel() > TURNED_HEAD else head.t().contiguous()
        self.scale = config.d_model**-0.5 if getattr(config, "scale_decoder_outputs", False) else None
        self.heads, self.head_dim = config.num_heads, config.d_kv
        self.epsilon, self.last_norm = config.layer_norm_epsilon, decoder.final_layer_norm.weight
        self.position_bias = decoder.block[0].layer[0].SelfAttention.compute_bias
        self.act = decoder.block[0].layer[-1].DenseReluDense.act
        self.layers = [_layer(block) for block in decoder.block]

    @torch.no_grad()
    def generate(self, query_ids: Tensor, query_mask: Tensor, settings: GenerationConfig) -> Tensor:
        """(B, Q) ids and mask -> (B, 1 + T): the start token, the response, and padding behind its end."""
        batch, limit, device = len(query_ids), settings.max_new_tokens, query_ids.device
        ends = torch.as_tensor([] if settings.eos_token_id is None else settings.eos_token_id, device=device).flatten()
        processors = processors_of(settings, device)
        found = query_ids.new_full((batch, 1 + limit), settings.pad_token_id)
        found[:, 0] = settings.decoder_start_token_id

        hidden, mask, row_of = self._encode(query_ids, query_mask)
        crossed = self._caches(batch, hidden.shape[1])
        for layer, cache in zip(self.layers, crossed, strict=True):
            both = (hidden @ layer.cross_key_value).unflatten(-1, (2, self.heads, -1))[row_of]
            cache.put(slice(None), *both.unbind(2))
        # (1, B, Q): the lowest number rather than -inf, as transformers has it
        hide = (1 - mask[row_of].to(hidden)) * torch.finfo(hidden.dtype).min
        hide = hide[None]
        own = self._caches(batch, limit)
        # (heads, 1, limit): of the last position; the distances of position t are its last t + 1
        bias = self.position_bias(1, limit, past_seen_tokens=limit - 1)[0].transpose(0, 1).contiguous()
        bias = bias.transpose(0, 1)

        alive = torch.arange(batch, device=device)  # rows that are computed
        ended = torch.zeros(batch, dtype=torch.bool, device=device)  # of those
        tokens = found[:, 0]
        for t in range(limit):
            logits = self._step(tokens, t, own, crossed, bias[..., limit - 1 - t :], hide).float()
            if processors:
                logits = processors(found[alive, : t + 1], logits)
            if settings.do_sample:
                # a number for each row, ended or not: no row depends on when others end
                tokens = draw(logits, torch.rand(batch, dtype=torch.float64, device=device)[alive])
            else:
                tokens = logits.argmax(-1)
            tokens = torch.where(ended, settings.pad_token_id, tokens)
            found[alive, t + 1] = tokens
            if not len(ends):
                continue
            ended |= torch.isin(tokens, ends)
            count = int(ended.sum())
            if count == len(alive):
                return found[:, : t + 2]
            if count > FEW_ENDED * len(alive):
                kept = (~ended).nonzero().flatten()
                alive, tokens, hide = alive[kept], tokens[kept], hide[:, kept]
                ended = ended[kept]
                for cache in (*own, *crossed):
                    cache.keep(kept)
        return found

    def _encode(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Each different query once: hidden states (U, Q, d), mask (U, Q), and which of them a row has (B,)."""
        ids, mask, row_of = different_queries(ids, mask)
        return self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state, mask, row_of

    def _caches(self, batch: int, length: int) -> list[RowsFirst] | list[RowsLast]:
        kind = RowsLast if batch >= 32 and length * self.head_dim <= 2048 else RowsFirst
        return [kind(batch, self.heads, length, self.head_dim, self.embedding) for _ in self.layers]

    def _norm(self, hidden: Tensor, weight: Tensor) -> Tensor:
        return functional.rms_norm(hidden, weight.shape, weight, self.epsilon)

    def _step(self, tokens: Tensor, t: int, own: list, crossed: list, bias: Tensor, hide: Tensor) -> Tensor:
        """The logits (B, V) after token t of each row (B,)."""
        hidden = self.embedding[tokens]
        for layer, cache, cross in zip(self.layers, own, crossed, strict=True):
            parts = (self._norm(hidden, layer.norms[0]) @ layer.query_key_value).chunk(3, -1)
            cache.put(slice(t, t + 1), *(part.view(len(tokens), 1, self.heads, -1) for part in parts[1:]))
            hidden = torch.addmm(hidden, cache.attend(parts[0], t + 1, bias), layer.output)
            query = self._norm(hidden, layer.norms[1]) @ layer.cross_query
            hidden = torch.addmm(hidden, cross.attend(query, hide.shape[-1], hide), layer.cross_output)
            normed = self._norm(hidden, layer.norms[2])
            wide = self.act(normed @ layer.up[0])
            if len(layer.up) == 2:
                wide = wide * (normed @ layer.up[1])
            hidden = torch.addmm(hidden, wide, layer.down)
        hidden = self._norm(hidden, self.last_norm)
        return (hidden if self.scale is None else hidden * self.scale) @ self.head


def decoder_of(model: nn.Module, base: nn.Module) -> T5Decoder | None:
    """The decoder of a T5 (mT5) of float32 on the CPU, a PEFT model with LoRA or not; None for any other model.

    None too for a T5 of which a part computes something else: hooks, train mode, another class, sharded weights.
    base: the transformers model in `model`
    """
    if type(base).__module__ not in MODELS or type(base).__name__.removeprefix("M") != "T5ForConditionalGeneration":
        return None
    for module in base.modules():
        if module.training or module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module):
            return None
        if not type(module).__module__.startswith(PARTS):
            return None
    weights = base.parameters()
    if any(type(p) is not nn.Parameter or p.device.type != "cpu" or p.dtype != torch.float32 for p in weights):
        return None
    if any(config.is_prompt_learning for config in getattr(model, "peft_config", {}).values()):
        return None
    if type(base.decoder.embed_tokens) is not nn.Embedding or not base.decoder.embed_tokens.weight.numel():
        return None  # ZeRO-3 leaves no numbers in place
    try:
        return T5Decoder(base)
    except _Unknown:
        return None


class _Unknown(Exception):
    """A module whose weight is not known."""


def _weight(module: nn.Module) -> Tensor:
    """(out, in) of a linear layer without bias, with the LoRA that is active on it added to a copy."""
    if type(module) is nn.Linear:
        if module.bias is not None:
            raise _Unknown
        return module.weight.detach()
    base = getattr(module, "base_layer", None)
    if type(base) is not nn.Linear or base.bias is not None or type(module).__name__ != "Linear" or module.merged:
        raise _Unknown
    weight = base.weight.detach()
    if module.disable_adapters:
        return weight
    for name in module.active_adapters:
        if name not in module.lora_A:
            continue
        if name in module.lora_variant or module.lora_bias.get(name) or module.fan_in_fan_out:
            raise _Unknown
        weight = torch.addmm(
            weight, module.lora_B[name].weight.detach(), module.lora_A[name].weight.detach(), alpha=module.scaling[name]
        )
    return weight


def _layer(block: nn.Module) -> Layer:
    own, cross, forward = (part.layer_norm.weight.detach() for part in block.layer)
    attention, crossed = block.layer[0].SelfAttention, block.layer[1].EncDecAttention
    dense = block.layer[2].DenseReluDense
    up = (dense.wi_0, dense.wi_1) if hasattr(dense, "wi_0") else (dense.wi,)

    def turned(*parts: nn.Module) -> Tensor:
        return torch.cat([_weight(part).t() for part in parts], dim=1)

    return Layer(
        norms=(own, cross, forward),
        query_key_value=turned(attention.q, attention.k, attention.v),
        output=turned(attention.o),
        cross_query=turned(crossed.q),
        cross_key_value=turned(crossed.k, crossed.v),
        cross_output=turned(crossed.o),
        up=tuple(map(turned, up)),
        down=turned(dense.wo),
    )
