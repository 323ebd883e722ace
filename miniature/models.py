"""Untrained models with a vocabulary of whole words: T5 (policy), Longformer and Llama (reward models).

    python -m miniature.models --world qa --save_dir DIR

writes ordinary Hugging Face folders DIR/{t5,longformer,llama}. The words are those of the world's `vocabulary()`.
"""

from __future__ import annotations

import argparse
import importlib
import re
from pathlib import Path

from alarm.common.errors import UserError, report_user_errors
from alarm.common.files import check_writable, whole_folder
from alarm.common.flags import parser, positive_int, seed_value

WORLDS = ("qa", "mt")
# marks that follow a word without a space, and the one between a clause's alternatives
MARKS = frozenset(".,:;?!")
CUT = "[" + re.escape("".join(sorted(MARKS)) + "|") + "]"
HEAD = 16  # size of an attention head
# initial weights have deviation size**-0.5: with the usual 0.02 attention of this size stays flat for long
WINDOW = 32  # of a Longformer's layers that read a clause: so many tokens, half of them on each side


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    flags = parser(__doc__.split("\n\n")[0])
    add = flags.add_argument
    add("--world", required=True, choices=WORLDS, help="whose words")
    add("--save_dir", required=True, help="new folder for the models")
    add("--policy_size", type=positive_int, default=128, help=f"hidden size of T5, a multiple of {HEAD}")
    add("--policy_layers", type=positive_int, default=2, help="layers of its encoder, and of its decoder")
    add("--reward_size", type=positive_int, default=64, help=f"hidden size of the reward models, a multiple of {HEAD}")
    add("--reward_layers", type=positive_int, default=3, help="layers of the reward models")
    add("--positions", type=positive_int, default=256, help="longest input of the reward models, in tokens")
    add("--seed", type=seed_value, default=0, help="seed of the random weights")
    return flags.parse_args(argv)


def policy_tokenizer(words: list[str]):
    """T5's: <pad>=0, </s>=1, <unk>=2, then each word with a mark for the space in front of it."""
    from transformers import T5Tokenizer

    pieces = ["<pad>", "</s>", "<unk>", *(word if word in MARKS else f"▁{word}" for word in words)]
    return T5Tokenizer(vocab=[(piece, 0.0) for piece in pieces], extra_ids=0, model_max_length=1024)


def reader_tokenizer(words: list[str], positions: int, both_ends: bool):
    """<s>=0, <pad>=1, </s>=2, <unk>=3, words, <mask>. both_ends: a text gets <s> and </s>, else <s> alone."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocab = {word: number for number, word in enumerate(("<s>", "<pad>", "</s>", "<unk>", *words, "<mask>"))}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(CUT), "isolated")]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"<s> $A{' </s>' if both_ends else ''}", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        sep_token="</s>",
        cls_token="<s>",
        unk_token="<unk>",
        pad_token="<pad>",
        mask_token="<mask>",
        model_max_length=positions,
    )


def make_policy(words: list[str], size: int, layers: int):
    """A T5 with random weights, and its tokenizer."""
    from transformers import T5Config, T5ForConditionalGeneration

    tokenizer = policy_tokenizer(words)
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=size,
        d_kv=HEAD,
        num_heads=size // HEAD,
        d_ff=2 * size,
        num_layers=layers,
        # generation sizes its cache by the encoder: as many layers in both
        num_decoder_layers=layers,
        dropout_rate=0.0,
        decoder_start_token_id=tokenizer.pad_token_id,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return T5ForConditionalGeneration(config), tokenizer


def make_longformer(words: list[str], size: int, layers: int, positions: int):
    """A Longformer with random weights that can be pretrained with masked words, and its tokenizer.

    The windows of its first and last layer are small, so that a token learns to read its clause and a separator its
    unit; between them a layer reads whole inputs, where an answer is compared with the passages.
    """
    from transformers import LongformerConfig, LongformerForMaskedLM

    tokenizer = reader_tokenizer(words, positions, both_ends=True)
    config = LongformerConfig(
        vocab_size=len(tokenizer),
        hidden_size=size,
        intermediate_size=2 * size,
        num_hidden_layers=layers,
        num_attention_heads=size // HEAD,
        attention_window=[WINDOW, *[2 * positions] * (layers - 2), WINDOW] if layers > 2 else 2 * positions,
        # RoBERTa counts positions from pad_token_id + 1
        max_position_embeddings=positions + 2,
        type_vocab_size=1,
        initializer_range=size**-0.5,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
        sep_token_id=2,
    )
    return LongformerForMaskedLM(config), tokenizer


def make_llama(words: list[str], size: int, layers: int, positions: int):
    """A Llama with random weights that can be pretrained as a language model, and its tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = reader_tokenizer(words, positions, both_ends=False)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=size,
        intermediate_size=2 * size,
        num_hidden_layers=layers,
        num_attention_heads=size // HEAD,
        num_key_value_heads=size // HEAD,
        max_position_embeddings=positions,
        initializer_range=size**-0.5,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
    )
    return LlamaForCausalLM(config), tokenizer


@report_user_errors
def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    save_dir = Path(args.save_dir)
    check_writable(save_dir, "--save_dir")
    if save_dir.exists():
        raise UserError(f"--save_dir {save_dir} exists; give the path of a new folder")
    for flag in ("policy_size", "reward_size"):
        if getattr(args, flag) % HEAD:
            raise UserError(f"--{flag} {getattr(args, flag)} is not a multiple of {HEAD}; give {HEAD}, {2 * HEAD}, ...")
    words = importlib.import_module(f"miniature.{args.world}.world").vocabulary()

    from transformers import set_seed

    set_seed(args.seed)
    rewards = (words, args.reward_size, args.reward_layers, args.positions)
    made = {
        "t5": make_policy(words, args.policy_size, args.policy_layers),
        "longformer": make_longformer(*rewards),
        "llama": make_llama(*rewards),
    }
    with whole_folder(save_dir) as folder:
        for name, (model, tokenizer) in made.items():
            model.save_pretrained(folder / name)
            tokenizer.save_pretrained(folder / name)
            print(f"{name:<12}{model.num_parameters():>10,} parameters{len(tokenizer):>6} words")
    print(f"wrote {save_dir}")


if __name__ == "__main__":
    main()
