"""Make the untrained models of a small world: a T5 policy and a Llama for the holistic reward, one token a word."""

from __future__ import annotations

import argparse
from pathlib import Path

from alarm.common.errors import report_user_errors
from alarm.common.files import check_new_folder, read_json, whole_folder
from alarm.common.flags import parser, positive_int, seed_value

MARKS = (".", ",", ":", "?")
OF_THE_HOLISTIC_INPUT = ("Human", "Assistant")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    flags = parser(__doc__)
    add = flags.add_argument
    add("--words", required=True, help="JSON object of lists of words, as the world's data script writes it")
    add("--save_dir", required=True, help="new folder that will hold t5 and llama")
    add("--size", type=positive_int, default=128, help="hidden size of both, a multiple of 32")
    add("--seed", type=seed_value, default=42, help="seed of the random weights")
    return flags.parse_args(argv)


def word_tokenizer(words: list[str], end: bool, max_length: int):
    """One token a word, with and without a capital; marks are tokens of their own. <pad>=0, </s>=1, <unk>=2.

    end: texts get </s> at their end, as a T5's do.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    forms = dict.fromkeys(form for word in words for form in (word, word[:1].upper() + word[1:]))
    pieces = ["<pad>", "</s>", "<unk>", *MARKS, *(f"▁{word}" for word in (*forms, *OF_THE_HOLISTIC_INPUT))]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    marks = Regex("[" + "".join(MARKS) + "]")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always"),
            pre_tokenizers.Split(marks, "isolated"),
        ]
    )
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    if end:
        tokenizer.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    )


def make_models(words: list[str], folder: Path, size: int) -> list[tuple[str, int, int]]:
    """Write folder/{t5,llama}. -> (name, parameters, vocabulary) of each."""
    from transformers import LlamaConfig, LlamaModel, T5Config, T5ForConditionalGeneration

    policy, reader = word_tokenizer(words, True, 128), word_tokenizer(words, False, 192)
    t5 = T5Config(
        vocab_size=len(policy),
        d_model=size,
        d_kv=32,
        num_heads=size // 32,
        d_ff=2 * size,
        num_layers=2,
        num_decoder_layers=2,
        dropout_rate=0.0,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=1,
    )
    llama = LlamaConfig(
        vocab_size=len(reader),
        hidden_size=size,
        intermediate_size=2 * size,
        num_hidden_layers=2,
        num_attention_heads=size // 32,
        num_key_value_heads=size // 32,
        max_position_embeddings=192,
        bos_token_id=1,
        eos_token_id=1,
        pad_token_id=0,
    )
    found = []
    for name, model, tokenizer in (
        ("t5", T5ForConditionalGeneration(t5), policy),
        ("llama", LlamaModel(llama), reader),
    ):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
        found.append((name, model.num_parameters(), len(tokenizer)))
    return found


@report_user_errors
def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    check_new_folder(args.save_dir, "--save_dir")
    words = [word for part in read_json(args.words).values() for word in part]

    from transformers import set_seed

    set_seed(args.seed)
    with whole_folder(args.save_dir) as folder:
        made = make_models(words, folder, args.size)
    print(f"{'model':<8}{'parameters':>12}{'vocabulary':>12}")
    for name, parameters, vocabulary in made:
        print(f"{name:<8}{parameters:>12,}{vocabulary:>12,}")
    print(f"wrote {args.save_dir}")


if __name__ == "__main__":
    main()
