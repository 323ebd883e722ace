"""How good translations are: overlap with the references, readability."""

from __future__ import annotations

import warnings


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
