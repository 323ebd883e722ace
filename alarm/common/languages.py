"""The languages that a tokenizer names. Loads no torch.

NLLB, M2M100 and mBART-50 read a token of the source language in the prompt, and their decoder reads one of the target
language before the response.
"""

from __future__ import annotations

import argparse
from difflib import get_close_matches
from typing import TYPE_CHECKING

from .errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NAMES = "as the tokenizer calls it; NLLB, M2M100 and mBART-50 need it (NLLB: spa_Latn, eng_Latn)"
# how a policy is asked: another value than in its training is worth a warning
FLAGS = ("prompt_prefix", "chat_template", "source_language", "target_language")


def language_ids(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Name -> token id of each language that a tokenizer has; empty for a tokenizer without language tokens."""
    ids = getattr(tokenizer, "lang_code_to_id", None)
    if ids is None:  # NLLB's has no such table: its extra special tokens are its languages
        names = tokenizer.extra_special_tokens if hasattr(tokenizer, "src_lang") else []
        ids = {str(name): tokenizer.convert_tokens_to_ids(str(name)) for name in names}
    return {name: id for name, id in ids.items() if id != tokenizer.unk_token_id}


def set_languages(tokenizer: PreTrainedTokenizerBase, source: str | None, target: str | None) -> tuple[int, ...]:
    """Make `tokenizer` write prompts in `source` and targets in `target`.

    Returns the tokens that the decoder reads between its start token and the response: the target language, or none
    for a tokenizer without language tokens. Raises UserError for languages that do not fit the tokenizer.
    """
    ids = language_ids(tokenizer)
    given = {"--source_language": source, "--target_language": target}
    missing = [flag for flag, name in given.items() if name is None]
    if not ids:
        if len(missing) == len(given):
            return ()
        flags = " and ".join(flag for flag in given if flag not in missing)
        raise UserError(f"the tokenizer has no language tokens; drop {flags}, and see --prompt_prefix of translation")
    if missing:
        some = ", ".join(list(ids)[:3])
        raise UserError(f"the tokenizer has language tokens ({some}, ...); give {' and '.join(missing)}")
    for flag, name in given.items():
        if name not in ids:
            near = get_close_matches(name, ids, cutoff=0.4) or list(ids)[:3]
            raise UserError(f"{flag}: the tokenizer has no language {name!r}; it has {', '.join(near)}, ...")
    tokenizer.src_lang, tokenizer.tgt_lang = source, target
    if tokenizer(text_target="")["input_ids"] != [ids[target], tokenizer.eos_token_id]:
        raise UserError(
            "the tokenizer does not put the language in front of a response, as NLLB, M2M100 and mBART-50 do; "
            "give a model of one of these types"
        )
    return (ids[target],)


def differences(before: object, args: argparse.Namespace) -> list[str]:
    """What the JSON object `before` keeps of FLAGS and `args` has otherwise, in words."""
    kept = before if isinstance(before, dict) else {}
    return [
        f"--{name} {kept[name]!r} instead of {getattr(args, name)!r}"
        for name in FLAGS
        if name in kept and hasattr(args, name) and kept[name] != getattr(args, name)
    ]
