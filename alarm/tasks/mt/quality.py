"""How good translations are: overlap with the references, readability."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ...training.rollout import Prompt


def translate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[Prompt],
    max_new_tokens: int,
    batch_size: int,
) -> list[str]:
    """The greedy translation of each prompt, in their order, on every process.

    Gathers: every process calls this.
    """
    import torch
    from accelerate.utils import gather_object
    from torch.nn.utils.rnn import pad_sequence
    from tqdm.auto import tqdm

    from trl.generation import GREEDY, describe_unused, generate, special_tokens

    from ...common.launch import process_state
    from ...training.rollout import deal_batches, decode

    state = process_state()
    tokens = special_tokens(model, tokenizer)
    if unused := describe_unused(model):
        state.print(unused)
    mine = deal_batches(prompts, batch_size, state.process_index, state.num_processes)
    found = []
    for _, batch in tqdm(mine, desc="translating", unit="batch", leave=False, disable=not state.is_main_process):
        rows = [prompts[i].ids for i in batch]
        ids = pad_sequence(rows, batch_first=True, padding_value=tokens.pad).to(model.device)
        mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True).to(model.device)
        with torch.inference_mode():
            answers = generate(model, ids, mask, tokens, **GREEDY, max_new_tokens=max_new_tokens)
        found += zip(batch, decode(tokenizer, answers), strict=True)
    return [text for _, text in sorted(gather_object(found))]


def overlap_scores(translations: list[str], references: list[str]) -> dict[str, float]:
    """BLEU and chrF of the whole corpus, 0 to 100, as sacrebleu computes them by default."""
    import sacrebleu

    return {
        "bleu": sacrebleu.corpus_bleu(translations, [references]).score,
        "chrf": sacrebleu.corpus_chrf(translations, [references]).score,
    }


def readability_scores(texts: list[str]) -> dict[str, float]:
    """Means over the texts of three readability scores by textstat: Dale-Chall, Flesch-Kincaid grade, Flesch ease.

    Higher is harder for the first two and easier for the last. A text without words counts as textstat has it: 0,
    -15.7 and 206.84.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # textstat 0.7.4 imports pkg_resources
        import textstat
    measures = {
        "dale_chall": textstat.dale_chall_readability_score,
        "flesch_kincaid_grade": textstat.flesch_kincaid_grade,
        "flesch_reading_ease": textstat.flesch_reading_ease,
    }
    return {name: sum(map(measure, texts)) / len(texts) for name, measure in measures.items()}
