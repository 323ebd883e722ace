"""Chat templates: what the policy reads, and what is cut if it is too long."""

from __future__ import annotations

import pytest
from transformers import AutoTokenizer

from alarm.common.errors import UserError
from alarm.common.prompts import encode_texts, render, text_of, uses_chat
from helpers import CHECKPOINTS

CHATML = (
    "{% for turn in messages %}<|{{ turn.role }}|> {{ turn.content }} <|end|> {% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture
def tokenizer():
    found = AutoTokenizer.from_pretrained(CHECKPOINTS / "tiny-ultrarm")
    found.add_special_tokens({"additional_special_tokens": ["<|user|>", "<|assistant|>", "<|end|>"]})
    found.chat_template = CHATML
    return found


@pytest.mark.parametrize(
    ("decoder_only", "wanted", "template", "used"),
    [
        (True, "auto", CHATML, True),
        (True, "off", CHATML, False),
        (False, "auto", CHATML, False),
        (True, "auto", None, False),
    ],
)
def test_a_template_is_used_by_decoder_only_policies_that_have_one(tokenizer, decoder_only, wanted, template, used):
    tokenizer.chat_template = template
    assert uses_chat(tokenizer, decoder_only, wanted) is used


@pytest.mark.parametrize(
    "template",
    [
        "{% for turn in messages %}{{ turn.content }}{% endfor %}",  # adds nothing
        "{% for turn in messages %}<|user|>{{ turn.content }}<|end|>{% endfor %}",  # no sign that an answer follows
        "<|assistant|>",  # leaves the prompt out
        "{{ raise_exception('system turn first') }}",
        "{% for turn in messages %}",
    ],
)
def test_a_template_that_cannot_be_used_is_one_line_with_the_way_out(tokenizer, template):
    tokenizer.chat_template = template
    with pytest.raises(UserError, match="--chat_template off") as error:
        uses_chat(tokenizer, True, "auto")
    assert "\n" not in str(error.value)


def test_the_template_is_encoded_as_it_is_without_a_second_bos(tokenizer):
    (ids,), (text,), cut = encode_texts(tokenizer, ["Is it blue?"], 99, chat=True)
    assert (text, cut) == ("<|user|> Is it blue? <|end|> <|assistant|>", 0)
    assert ids == tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.bos_token_id not in ids
    tokenizer.chat_template = "{{ bos_token }}" + CHATML
    (ids,), _, _ = encode_texts(tokenizer, ["Is it blue?"], 99, chat=True)
    assert ids.count(tokenizer.bos_token_id) == 1


def test_a_long_prompt_loses_the_end_of_its_text_and_keeps_the_template_around_it(tokenizer):
    long = "one two three four five six seven eight nine ten " * 9
    bare = len(tokenizer(render(tokenizer, ""), add_special_tokens=False)["input_ids"])
    for limit in (bare + 1, bare + 7, bare + 40):
        (ids,), (text,), cut = encode_texts(tokenizer, [long], limit, chat=True)
        assert cut == 1 and limit - 3 <= len(ids) <= limit
        shown = text.removeprefix("<|user|> ").removesuffix(" <|end|> <|assistant|>")
        assert long.startswith(shown) and len(shown) < len(long)
        assert ids[-1] == tokenizer.convert_tokens_to_ids("<|assistant|>")
    with pytest.raises(UserError, match="--max_input_len is 3"):
        encode_texts(tokenizer, [long], 3, chat=True)


def test_without_a_template_the_tokenizer_cuts():
    t5 = AutoTokenizer.from_pretrained(CHECKPOINTS / "tiny-t5")
    ids, texts, cut = encode_texts(t5, ["a cat", "a cat and a dog and a bird"], 8, chat=False)
    assert cut == 1 and texts[1] == "a cat and a dog and a bird"
    assert len(ids[1]) == 8 and ids[1][-1] == t5.eos_token_id


def message(role, content):
    return {"role": role, "content": content}


@pytest.mark.parametrize(
    ("turns", "text"),
    [
        ("a text", "a text"),
        ([message("user", "Why?")], "Why?"),
        ([message("assistant", None)], ""),
        ([message("user", [{"type": "text", "text": "Why"}, {"type": "text", "text": "?"}])], "Why?"),
        ([message("system", "Be short."), message("user", "Why?")], "Be short.\n\nWhy?"),
        (
            [message("user", "Why?"), message("assistant", "So."), message("user", "How?")],
            "Why?\nAssistant: So.\nHuman: How?",
        ),
        (
            [message("assistant", "I look."), message("tool", "4"), message("assistant", "4.")],
            "I look.\nTool: 4\nAssistant: 4.",
        ),
    ],
)
def test_a_conversation_becomes_a_text(turns, text):
    assert text_of(turns, "a prompt") == text


@pytest.mark.parametrize(
    "turns", [3, None, [], ["Why?"], [{"content": "Why?"}], [{"role": "user"}], [message("user", [{"type": "image"}])]]
)
def test_what_is_no_conversation_is_refused(turns):
    with pytest.raises(UserError, match="a prompt"):
        text_of(turns, "a prompt")
