"""Corrections of models in transformers that compute other numbers for a token if other padding is beside it.

PPO compares a token's probability in one batch with that in another.
"""

from __future__ import annotations

import functools

from torch import Tensor, nn


def correct_attention(model: nn.Module) -> None:
    """Make what a transformers model computes for a token independent of its batch, in place. Weights stay."""
    sparse = next((module for module in model.modules() if hasattr(module, "set_attention_type")), None)
    if sparse is not None:
        # BigBird's block-sparse attention depends on the padding, and one short batch turns it off for good
        sparse.set_attention_type("original_full")
    if model.config.model_type == "prophetnet":
        original, corrected = _prophetnet_classes()
        for module in model.modules():
            if type(module) is original:
                module.__class__ = corrected


@functools.cache
def _prophetnet_classes() -> tuple[type, type]:
    from transformers.models.prophetnet.modeling_prophetnet import ProphetNetNgramSelfAttention

    class CorrectedNgramSelfAttention(ProphetNetNgramSelfAttention):
        """Its relative positions of a whole sequence in the right order.

        The original mixes heads with positions, so that a token's logits depend on the length of the sequence and are
        not those of generation, which goes token by token.
        """

        def get_predict_relative_pos_embeddings(
            self, hidden_states: Tensor, attn_weights: Tensor, position_ids: Tensor, buckets: Tensor | None
        ) -> Tensor:
            """(B, N, heads, T, 2T) from hidden states (B, T, N, H) and buckets (B, T, 2T) of N predicting streams."""
            if buckets is None:  # one token
                return super().get_predict_relative_pos_embeddings(hidden_states, attn_weights, position_ids, buckets)
            embeddings = self.relative_pos_embeddings(hidden_states).unflatten(-1, (self.num_buckets, -1))
            embeddings = embeddings.permute(0, 2, 4, 1, 3)  # (B, N, heads, T, buckets)
            return embeddings.gather(-1, buckets[:, None, None].long().expand(*embeddings.shape[:-1], -1))

    return ProphetNetNgramSelfAttention, CorrectedNgramSelfAttention
