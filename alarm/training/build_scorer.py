"""The scorer that a task's train_ppo.py makes of its flags; whoever shows or checks rewards makes the same one."""

from __future__ import annotations

import functools
from argparse import Namespace
from typing import TYPE_CHECKING

import torch

from ..models.holistic import HolisticModel
from ..rewards import RewardRecipe
from ..tasks.mt import aspects as translation
from ..tasks.mt.aspects import MTAspects, MTSettings
from ..tasks.qa import aspects as long_form_qa
from ..tasks.qa.aspects import QAAspects, QASettings
from .flags import HOLISTIC_MAX_TOKENS
from .loop import Scorer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ..tasks.mt.grammar.checker import Checker


def qa_scorer(args: Namespace, tokenizer: PreTrainedTokenizerBase, device: torch.device) -> Scorer:
    """args: the flags of long-form-QA/train_ppo.py. tokenizer: the policy's. Loads all reward models."""
    placed = {"device": device, "dtype": getattr(torch, args.dtype)}
    settings, batch = QASettings.from_flags(args), args.rm_max_batch_size
    aspects = QAAspects(args.reward_model_dir, args.splitter, tokenizer, settings, batch_size=batch, **placed)
    holistic = HolisticModel.load(args.holistic_model, **placed)
    weights = (args.w_rel, args.w_fact, args.w_comp)
    return Scorer(
        aspects=aspects,
        aspect_names=long_form_qa.ASPECTS,
        holistic=functools.partial(holistic.score, max_length=HOLISTIC_MAX_TOKENS["qa"], batch_size=batch),
        recipe=RewardRecipe.from_flags(args, dict(zip(long_form_qa.ASPECTS, weights, strict=True))),
        truncated=lambda: aspects.truncated | {"holistic": holistic.truncated},
    )


def mt_scorer(args: Namespace, tokenizer: PreTrainedTokenizerBase, device: torch.device, checker: Checker) -> Scorer:
    """args: the flags of MT/train_ppo.py. tokenizer: the policy's. checker: of grammar, closed by the caller."""
    aspects = MTAspects(checker, tokenizer, MTSettings.from_flags(args))
    holistic = HolisticModel.load(args.holistic_model, device=device, dtype=getattr(torch, args.dtype))
    weights = (args.w_read, args.w_grammar, args.w_confidence)
    limits = {"max_length": HOLISTIC_MAX_TOKENS["mt"], "batch_size": args.rm_max_batch_size}
    return Scorer(
        aspects=aspects,
        aspect_names=translation.ASPECTS,
        holistic=functools.partial(holistic.score, **limits),
        recipe=RewardRecipe.from_flags(args, dict(zip(translation.ASPECTS, weights, strict=True))),
        truncated=lambda: {"holistic": holistic.truncated},
        counts=lambda: {
            "translations without text that were scored": aspects.empty,
            "failures of the grammar checker, after which texts were checked again": checker.counts.get("failures", 0),
        },
    )
