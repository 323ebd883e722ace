"""Best of n: sample several responses to each query and keep those with the highest scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedTokenizerBase

from ..core import set_seed
from ..generation import generate, special_tokens


class BestOfNSampler:
    """Samples `sample_size` responses to each query and returns the `n_candidates` best.

    model: encoder-decoder or decoder-only, with a value head or without; a PEFT model samples with its adapter on
    tokenizer: of the model
    queries_to_scores: N texts -> N numbers, higher is better. A text is the query and the response of a decoder-only
        model, and the response alone of an encoder-decoder model.
    length_sampler: called once per query, gives the largest number of new tokens
    seed: seeds the random numbers of Python, numpy and torch; None leaves them as they are
    generation_config: settings of generation. Whatever it leaves open changes nothing, whatever the model's
        generation_config.json asks for, except that responses are sampled if `do_sample` is left open.

    Raises ValueError if the arguments do not fit together.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        queries_to_scores: Callable[[list[str]], Sequence[float]],
        length_sampler: Callable[[], int],
        sample_size: int = 4,
        seed: int | None = None,
        n_candidates: int = 1,
        generation_config: GenerationConfig | None = None,
    ) -> None:
        if not isinstance(tokenizer, PreTrainedTokenizerBase):
            raise ValueError(f"tokenizer must be a tokenizer of transformers, not {type(tokenizer).__name__}")
        language_model = getattr(model, "pretrained_model", model)
        if not (isinstance(language_model, nn.Module) and hasattr(language_model, "generate")):
            raise ValueError(f"model must be a language model that can generate, not {type(model).__name__}")
        if not 1 <= n_candidates <= sample_size:
            raise ValueError(f"n_candidates ({n_candidates}) must lie between 1 and sample_size ({sample_size})")
        if seed is not None:
            set_seed(seed)
        self.model = model
        self.tokenizer = tokenizer
        self.queries_to_scores = queries_to_scores
        self.length_sampler = length_sampler
        self.sample_size = sample_size
        self.n_candidates = n_candidates
        self.gen_config = generation_config
        self._language_model = language_model

    def generate(
        self,
        tokenized_query: Sequence[int] | Tensor | Sequence[Tensor] | Sequence[Sequence[int]],
        skip_special_tokens: bool = True,
        device: str | torch.device | None = None,
        **generation_kwargs: Any,
    ) -> list[list[str]]:
        """The best texts of each query, best first: `n_candidates` texts for each of the queries.

        tokenized_query: one query (ids, or a 1-D tensor of them) or a list of queries, without padding
        device: of the model; None: where its weights are
        generation_kwargs: arguments of transformers' `generate`; they go before `generation_config`

        Raises ValueError if the scores are too few, too many or NaN.
        """
        device = device or next(self._language_model.parameters()).device
        return [
            self._best(query.to(device), skip_special_tokens, generation_kwargs) for query in _queries(tokenized_query)
        ]

    def _best(self, query: Tensor, skip_special_tokens: bool, given: dict[str, Any]) -> list[str]:
        model = self._language_model
        open_settings = {"max_new_tokens": self.length_sampler()}
        if self.gen_config is None or self.gen_config.do_sample is None:
            open_settings["do_sample"] = True
        ids = query.repeat(self.sample_size, 1)
        tokens = special_tokens(model, self.tokenizer)
        rows = generate(model, ids, torch.ones_like(ids), tokens, self.gen_config, **open_settings | given)
        if not model.config.is_encoder_decoder:
            rows = [torch.cat([query, row]) for row in rows]
        texts = [self.tokenizer.decode(row, skip_special_tokens=skip_special_tokens) for row in rows]

        scores = [float(score) for score in self.queries_to_scores(texts)]
        if len(scores) != len(texts):
            raise ValueError(f"queries_to_scores gave {len(scores)} scores for {len(texts)} texts")
        scores = torch.tensor(scores, dtype=torch.float64)
        if scores.isnan().any():
            raise ValueError(f"queries_to_scores gave NaN for {texts[int(scores.isnan().nonzero()[0])]!r:.80}")
        return [texts[index] for index in scores.topk(self.n_candidates).indices]


def _queries(tokenized: Any) -> list[Tensor]:
    """Queries (Q_i,) of each form that `generate` takes."""
    if isinstance(tokenized, Tensor):
        if tokenized.dim() != 1:
            raise ValueError(f"a query must be a 1-D tensor, not one of shape {tuple(tokenized.shape)}")
        return [tokenized]
    if len(tokenized) and isinstance(tokenized[0], int):
        return [torch.tensor(tokenized)]
    return [torch.as_tensor(query).reshape(-1) for query in tokenized]
