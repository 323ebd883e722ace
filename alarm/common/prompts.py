"""A prompt as the policy reads it: with its chat template if there is one, and short enough."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHAT_TEMPLATE = ("auto", "off")
_LABELS = {"user": "Human", "assistant": "Assistant"}  # of the turns of a conversation


def uses_chat(tokenizer: PreTrainedTokenizerBase, decoder_only: bool, wanted: str) -> bool:
    """Whether prompts go through the tokenizer's chat template. wanted: one of CHAT_TEMPLATE.

    auto: the tokenizer has one and the policy is decoder-only. Raises UserError for a template that says nothing.
    """
    if wanted == "off" or not decoder_only or not getattr(tokenizer, "chat_template", None):
        return False
    probe = "Is this here?"
    try:
        asked, bare = render(tokenizer, probe), _apply(tokenizer, probe, add_generation_prompt=False)
    except Exception as error:  # jinja2's own, and any that the template raises
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"the chat template of {tokenizer.name_or_path} fails ({reason}); fix it, or give --chat_template off"
        ) from error
    if probe not in asked or asked in (probe, bare):
        lacks = "leaves the prompt out" if probe not in asked else "does not say that an answer follows"
        raise UserError(f"the chat template of {tokenizer.name_or_path} {lacks}; fix it, or give --chat_template off")
    return True


def render(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """`text` as the user's turn of a chat, and the start of the assistant's turn after it."""
    return _apply(tokenizer, text, add_generation_prompt=True)


def _apply(tokenizer: PreTrainedTokenizerBase, text: str, add_generation_prompt: bool) -> str:
    turns = [{"role": "user", "content": text}]
    return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=add_generation_prompt)


def text_of(value: str | list[dict], what: str) -> str:
    """A text, or the text of a conversation: messages {"role": ..., "content": ...}, as trainers pass them.

    The content of one message is its text. Several become turns, as preference models read them: a system message and
    the first user's message as they stand, then "\\nHuman: ..." and "\\nAssistant: ...". The content of a message is
    a text, a list of parts {"type": "text", "text": ...}, or None for no text.
    what: what the message of an error calls it. Raises UserError for anything else.
    """
    if isinstance(value, str):
        return value
    if not isinstance(value, list | tuple) or not value or not all(isinstance(turn, dict) for turn in value):
        raise UserError(f"{what} is {_shown(value)}; give a text, or a list of messages with role and content")
    turns = [(turn.get("role"), _content(turn)) for turn in value]
    for turn, (role, content) in zip(value, turns, strict=True):
        if not isinstance(role, str) or not isinstance(content, str):
            raise UserError(f"a message of {what} is {_shown(turn)}; give it a role and a content that is text")
    if len(turns) > 1 and turns[0][0] == "system":
        turns[:2] = [(turns[1][0], f"{turns[0][1]}\n\n{turns[1][1]}")]
    (_, first), *others = turns
    return first + "".join(f"\n{_LABELS.get(role, role.capitalize())}: {content}" for role, content in others)


def _content(turn: dict) -> object:
    content = turn.get("content", turn)
    if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        return "".join(str(part.get("text", "")) for part in content)
    return "" if content is None else content


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def encode_texts(
    tokenizer: PreTrainedTokenizerBase, texts: list[str], max_tokens: int, chat: bool
) -> tuple[list[list[int]], list[str], int]:
    """N prompts -> N x (Q_i,) ids, what they are the ids of, and how many were cut to `max_tokens`.

    chat: each text goes through the chat template. What is too long loses the end of the text, and never the template
    around it. Without a template the tokenizer's own truncation cuts, which keeps a final EOS.
    Raises UserError if the template alone is too long.
    """
    if not chat:
        whole = tokenizer(texts, truncation=False, verbose=False)["input_ids"]
        cut = [i for i, ids in enumerate(whole) if len(ids) > max_tokens]
        if cut:
            short = tokenizer([texts[i] for i in cut], truncation=True, max_length=max_tokens)["input_ids"]
            for i, ids in zip(cut, short, strict=True):
                whole[i] = ids
        return whole, texts, len(cut)

    rendered = [render(tokenizer, text) for text in texts]
    # the template writes its own special tokens
    whole = tokenizer(rendered, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
    count = 0
    for i, ids in enumerate(whole):
        if len(ids) > max_tokens:
            rendered[i], whole[i] = _shortened(tokenizer, texts[i], max_tokens)
            count += 1
    return whole, rendered, count


def _shortened(tokenizer: PreTrainedTokenizerBase, text: str, max_tokens: int) -> tuple[str, list[int]]:
    """The longest start of `text` that fits with the template around it, and its ids. Found by bisection."""

    def encoded(length: int) -> tuple[str, list[int]]:
        shown = render(tokenizer, text[:length])
        return shown, tokenizer(shown, add_special_tokens=False, verbose=False)["input_ids"]

    found, low, high = None, 0, len(text) - 1
    while low <= high:
        middle = (low + high) // 2
        attempt = encoded(middle)
        if len(attempt[1]) <= max_tokens:
            found, low = attempt, middle + 1
        else:
            high = middle - 1
    if found is None:
        needed = len(encoded(0)[1])
        raise UserError(
            f"the chat template of {tokenizer.name_or_path} has {needed} tokens and --max_input_len is {max_tokens}; "
            "raise it, or give --chat_template off"
        )
    return found
