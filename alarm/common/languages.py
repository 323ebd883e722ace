"""Tokenizers with language tokens (NLLB, M2M100, mBART-50): the source's stands in the prompt, the target's in front of
the response."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NAMES = "as its files name them (NLLB: spa_Latn, eng_Latn; mBART-50: es_XX, en_XX; M2M100: es, en)"


def set_languages(tokenizer: PreTrainedTokenizerBase, source: str | None, target: str | None) -> tuple[int, ...]:
    """Let the tokenizer mark prompts as `source` and targets as `target`.

    -> the ids that stand between the decoder's start token and a response: the target's token, or nothing for a
    tokenizer without languages. Raises UserError for an unknown name, for a name that is missing, and for names that
    the tokenizer cannot use.
    """
    if not hasattr(tokenizer, "src_lang"):
        if source is not None or target is not None:
            flag = "--source_language" if source is not None else "--target_language"
            raise UserError(f"{flag}: {tokenizer.name_or_path} has no language tokens; drop it")
        return ()
    for flag, name in {"--source_language": source, "--target_language": target}.items():
        if name is None:
            raise UserError(f"{tokenizer.name_or_path} needs {flag}, {NAMES}")
    ids = {name: _language_id(tokenizer, name, flag) for name, flag in ((source, "source"), (target, "target"))}
    tokenizer.tgt_lang = target
    tokenizer.src_lang = source
    return (ids[target],)


def _language_id(tokenizer: PreTrainedTokenizerBase, name: str, which: str) -> int:
    """The id of a language's token. UserError if there is none."""
    known = getattr(tokenizer, "lang_code_to_token", None)
    token = known.get(name, name) if known else name
    found = tokenizer.convert_tokens_to_ids(token)
    if found is None or found == tokenizer.unk_token_id or token not in tokenizer.all_special_tokens:
        raise UserError(f"--{which}_language: {tokenizer.name_or_path} does not know {name!r}; give a name {NAMES}")
    return found
