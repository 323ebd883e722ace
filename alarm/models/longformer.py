"""Longformer's encoder without its padding: the same numbers from the same weights, in less time.

transformers pads every input to a multiple of the window and reads the window off the diagonals of chunks. Here the
encoder runs over the real tokens alone, packed into one row, and every block of queries reads the keys that its windows
reach in one `scaled_dot_product_attention`. A position is a key of a query of the same text if it lies at most half
a window away or has global attention; a global position reads its whole text with projections of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.models.longformer import modeling_longformer

MASKED, LOCAL, GLOBAL = 0, 1, 2

# queries of a block: in small ones few pairs lie outside of the windows, large ones start fewer kernels
CPU_BLOCK, GPU_BLOCK = 128, 512


def use_packed_attention(model: PreTrainedModel) -> PreTrainedModel:
    """Make a Longformer compute its encoder as this module does, in place; any other model stays as it is.

    Weights, their names and what `save_pretrained` writes do not change, and outputs at real positions change by
    rounding alone. At padded positions the last hidden state is zero. Dropout of attention has the same distribution,
    not the same draws. A request for attention probabilities raises ValueError.
    """
    if isinstance(model.base_model, modeling_longformer.LongformerModel):
        model.base_model.__class__ = LongformerModel
        for layer in model.base_model.encoder.layer:
            layer.attention.self.__class__ = BlockedSelfAttention
    return model


# --- which query reads which key -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Block:
    """Queries [start, end) of a text, and what they read."""

    start: int
    end: int
    first: int  # keys [first, last) ...
    last: int
    distant: Tensor  # ... and those at these positions (G,) int64: the global ones outside of [first, last)
    allowed: Tensor  # (end - start, last - first + G) bool


@dataclass(frozen=True)
class Group:
    """Texts alike in length and mask, one behind the other in the packed row."""

    texts: int
    length: int
    masked: Tensor  # (length,) bool
    global_at: Tensor  # (G,) int64, the positions with global attention
    blocks: dict[int, list[Block]]  # by how far a window reaches to each side


@dataclass(frozen=True)
class Packing:
    """Where the tokens of a batch (B, T) are in its packed row (1, N)."""

    kept: Tensor | None  # (N,) int64 positions in the flattened batch; None: all of them
    groups: list[Group]

    def pack(self, hidden: Tensor) -> Tensor:
        """(B, T, H) -> (1, N, H)"""
        flat = hidden.flatten(0, 1)
        return (flat if self.kept is None else flat[self.kept])[None]

    def unpack(self, packed: Tensor, shape: torch.Size) -> Tensor:
        """(1, N, H) -> (*shape, H), zero at positions that were not kept."""
        if self.kept is None:
            return packed.view(*shape, -1)
        return packed.new_zeros(shape.numel(), packed.shape[-1]).index_copy(0, self.kept, packed[0]).view(*shape, -1)


def make_packing(kinds: Tensor, reaches: set[int], block_size: int) -> Packing:
    """kinds (B, T) of MASKED, LOCAL, GLOBAL; how far the layers' windows reach to each side -> Packing.

    A text runs from its first to its last position that is not masked; masked ones in between stay, as keys of none.
    """
    texts, kept = [], []
    for row, text in enumerate(kinds.to("cpu", torch.int8)):
        real = text.nonzero().flatten().tolist() or [0]
        texts.append(text[real[0] : real[-1] + 1].numpy().tobytes())
        kept.append(torch.arange(real[0], real[-1] + 1) + row * kinds.shape[1])
    groups = []
    for text, alike in groupby(texts):
        of_text = torch.tensor(list(text), device=kinds.device)
        blocks = {reach: make_blocks(of_text, reach, block_size) for reach in reaches}
        global_at = (of_text == GLOBAL).nonzero().flatten()
        groups.append(Group(len(list(alike)), len(text), of_text == MASKED, global_at, blocks))
    at = torch.cat(kept)
    return Packing(None if len(at) == kinds.numel() else at.to(kinds.device), groups)


def make_blocks(kinds: Tensor, reach: int, size: int) -> list[Block]:
    """kinds (T,) of one text -> the blocks of `size` queries that cover it.

    A masked query reads itself as well: no row of a softmax is empty, and what it gives is read by none.
    """
    length, blocks = len(kinds), []
    positions = torch.arange(length, device=kinds.device)
    is_key, is_global = kinds != MASKED, kinds == GLOBAL
    for start in range(0, length, size):
        end = min(start + size, length)
        first, last = max(0, start - reach), min(end + reach, length)
        distance = (positions[start:end, None] - positions[first:last]).abs()
        allowed = (distance <= reach) & is_key[first:last] | is_global[first:last] | (distance == 0)
        outside = (positions < first) | (positions >= last)
        distant = (is_global & outside).nonzero().flatten()
        allowed = functional.pad(allowed, (0, len(distant)), value=True)
        blocks.append(Block(start, end, first, last, distant, allowed))
    return blocks


def block_attention(query: Tensor, key: Tensor, value: Tensor, blocks: list[Block], dropout: float = 0.0) -> Tensor:
    """softmax(query key' / sqrt(d)) value over the allowed pairs. All (b, T, heads, d), b texts of the same blocks."""
    found = []
    for block in blocks:
        keys, values = key[:, block.first : block.last], value[:, block.first : block.last]
        if len(block.distant):
            keys = torch.cat([keys, key[:, block.distant]], dim=1)
            values = torch.cat([values, value[:, block.distant]], dim=1)
        queries = query[:, block.start : block.end]
        found.append(
            functional.scaled_dot_product_attention(
                *(part.transpose(1, 2) for part in (queries, keys, values)), block.allowed, dropout
            ).transpose(1, 2)
        )
    return torch.cat(found, dim=1)


# --- the model -------------------------------------------------------------------------------------------------------


class BlockedSelfAttention(modeling_longformer.LongformerSelfAttention):
    """Takes the batch packed, and its Packing in the place of the mask."""

    def forward(self, hidden_states: Tensor, attention_mask: Packing, **_) -> tuple[Tensor]:
        """(1, N, H) -> (1, N, H)"""
        heads = (self.num_heads, self.head_dim)
        dropout = self.dropout if self.training else 0.0
        projected = [layer(hidden_states[0]) for layer in (self.query, self.key, self.value)]
        found, at = [], 0
        for group in attention_mask.groups:
            part, shape = slice(at, at + group.texts * group.length), (group.texts, group.length)
            at = part.stop
            blocks = group.blocks[self.one_sided_attn_window_size]
            output = block_attention(*(p[part].view(*shape, *heads) for p in projected), blocks, dropout).flatten(2)
            if len(group.global_at):
                outputs_of_global = self._global_attention(hidden_states[0, part].view(*shape, -1), group)
                output[:, group.global_at] = outputs_of_global.to(output.dtype)
            found.append(output.flatten(0, 1))
        return (torch.cat(found)[None],)

    def _global_attention(self, hidden: Tensor, group: Group) -> Tensor:
        """(b, T, H) -> (b, G, H), the outputs of the global positions.

        A handful of queries reads all keys, so the projections of keys and values move over to their side:
        q (W h + b) = (q W) h + q b, and sum_t p_t (W h_t + b) = W sum_t p_t h_t + b sum_t p_t.
        """
        heads = (self.num_heads, self.head_dim)
        of_key = self.key_global.weight.view(*heads, -1), self.key_global.bias.view(*heads)
        of_value = self.value_global.weight.view(*heads, -1), self.value_global.bias.view(*heads)
        query = self.query_global(hidden[:, group.global_at]).unflatten(-1, heads) / self.head_dim**0.5
        query_of_hidden = torch.einsum("bgnd,ndh->bgnh", query, of_key[0]).flatten(1, 2)
        scores = query_of_hidden @ hidden.transpose(1, 2)  # (b, G heads, T)
        scores = scores + torch.einsum("bgnd,nd->bgn", query, of_key[1]).flatten(1, 2)[..., None]
        scores = scores.masked_fill(group.masked, -torch.inf)
        shares = torch.softmax(scores, dim=-1)
        shares = functional.dropout(shares, self.dropout, self.training)
        mean = (shares @ hidden).unflatten(1, (-1, self.num_heads))
        output = torch.einsum("bgnh,ndh->bgnd", mean, of_value[0])
        return (output + shares.sum(-1).unflatten(1, (-1, self.num_heads))[..., None] * of_value[1]).flatten(2)


class LongformerModel(modeling_longformer.LongformerModel):
    """The body with the encoder over packed tokens; of the same name, which `save_pretrained` writes down."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        global_attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **_,
    ):
        """As the class of transformers does it. Raises ValueError if attention probabilities are asked for."""
        if self.config.output_attentions if output_attentions is None else output_attentions:
            raise ValueError(
                "packed attention keeps no attention probabilities; ask a Longformer of transformers for them"
            )
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        embedded = self.embeddings(
            input_ids=input_ids, token_type_ids=token_type_ids, position_ids=position_ids, inputs_embeds=inputs_embeds
        )
        shape = embedded.shape[:2]
        kinds = torch.ones(shape, device=embedded.device) if attention_mask is None else attention_mask
        if global_attention_mask is not None:
            kinds = kinds * (global_attention_mask + 1)
        layers = self.encoder.layer
        reaches = {layer.attention.self.one_sided_attn_window_size for layer in layers}
        block_size = CPU_BLOCK if embedded.device.type == "cpu" else GPU_BLOCK
        packing = make_packing(kinds, reaches, block_size)

        hidden = [packing.pack(embedded)]
        keep_all = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        for layer in layers:
            [output] = layer(hidden[-1], attention_mask=packing)
            hidden = [*hidden, output] if keep_all else [output]
        states = tuple(packing.unpack(state, shape) for state in hidden)
        pooled = None if self.pooler is None else self.pooler(states[-1])
        output = modeling_longformer.LongformerBaseModelOutputWithPooling(
            last_hidden_state=states[-1], pooler_output=pooled, hidden_states=states if keep_all else None
        )
        if self.config.return_dict if return_dict is None else return_dict:
            return output
        return (states[-1], pooled, *([states] if keep_all else []))
