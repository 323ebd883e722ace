"""Make the small untrained models that the quickstart starts from: T5 (policy), Longformer and Llama (reward models).

Everything comes from the text of the given files: tokenizers are trained on it, weights are random. The folders are
ordinary Hugging Face layouts, so what reads them reads the published checkpoints too.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from alarm.common.console import plain_table, print_table
from alarm.common.errors import UserError, report_user_errors
from alarm.common.files import check_writable, read_rows, require_fields, require_texts, whole_folder
from alarm.common.flags import seed_value


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    flags = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    add = flags.add_argument
    add("--train_file", default="quickstart/data/qa/train.json", help="questions whose text trains the tokenizers")
    add("--save_dir", required=True, help="new folder that will hold t5, longformer and llama")
    add("--vocab_size", type=int, default=1500, help="pieces in each of the three vocabularies")
    add("--policy_size", type=int, default=128, help="hidden size of the T5 policy, a multiple of 64")
    add("--reward_model_size", type=int, default=64, help="hidden size of the reward models, a multiple of 64")
    add("--seed", type=seed_value, default=42, help="seed of the random weights")
    return flags.parse_args(argv)


def training_text(rows: list[dict]) -> list[str]:
    """The prompts and reference answers, one string each."""
    return [text for row in rows for text in (row["text"], *row["answer"])]


def t5_tokenizer(texts: list[str], vocab_size: int):
    """A sentencepiece-like unigram vocabulary: <pad>=0, </s>=1, <unk>=2, then pieces with a word mark."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import T5Tokenizer

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")]
    )
    trainer = trainers.UnigramTrainer(
        vocab_size=vocab_size,
        special_tokens=["<pad>", "</s>", "<unk>"],
        unk_token="<unk>",
        show_progress=False,
        n_sub_iterations=1,
    )
    tokenizer.train_from_iterator(texts, trainer)
    vocab = [(piece, score) for piece, score in tokenizer_state(tokenizer)["vocab"]]
    return T5Tokenizer(vocab=vocab, extra_ids=0, model_max_length=1024)


def longformer_tokenizer(texts: list[str], vocab_size: int, max_length: int):
    """A byte-level BPE vocabulary in RoBERTa's order: <s>=0, <pad>=1, </s>=2, <unk>=3, ..., <mask> last."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import LongformerTokenizer

    tokenizer = ByteLevelBPETokenizer(add_prefix_space=True)
    tokenizer.train_from_iterator(
        texts, vocab_size=vocab_size - 1, special_tokens=["<s>", "<pad>", "</s>", "<unk>"], show_progress=False
    )
    state = tokenizer_state(tokenizer)
    vocab = {**state["vocab"], "<mask>": len(state["vocab"])}
    merges = [tuple(pair) for pair in state["merges"]]
    return LongformerTokenizer(vocab=vocab, merges=merges, add_prefix_space=True, model_max_length=max_length)


def llama_tokenizer(texts: list[str], vocab_size: int, max_length: int):
    """A BPE vocabulary with byte fallback: <unk>=0, <s>=1, </s>=2, 256 bytes, then pieces with a word mark."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import LlamaTokenizer

    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first")
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    state = tokenizer_state(tokenizer)
    merges = [tuple(pair) for pair in state["merges"]]
    return LlamaTokenizer(
        vocab=state["vocab"], merges=merges, add_bos_token=True, pad_token="</s>", model_max_length=max_length
    )


def tokenizer_state(tokenizer) -> dict:
    """Vocabulary and merges of a trained `tokenizers` object."""
    import json

    text = tokenizer.to_str() if hasattr(tokenizer, "to_str") else tokenizer._tokenizer.to_str()
    return json.loads(text)["model"]


def make_models(texts: list[str], folder: Path, vocab_size: int, policy_size: int, reward_model_size: int) -> list:
    """Write folder/{t5,longformer,llama}. Returns [(name, parameters, vocabulary, tokens per prompt), ...]."""
    from transformers import (
        LlamaConfig,
        LlamaModel,
        LongformerConfig,
        LongformerModel,
        T5Config,
        T5ForConditionalGeneration,
    )

    # the longest prompt with an answer behind it has to fit, whatever the vocabulary
    positions = 2560
    heads = reward_model_size // 32
    made = []

    tokenizer = t5_tokenizer(texts, vocab_size)
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=policy_size,
        d_kv=32,
        num_heads=policy_size // 32,
        d_ff=2 * policy_size,
        # generation sizes its cache by the encoder: as many layers in both
        num_layers=2,
        num_decoder_layers=2,
        dropout_rate=0.1,
        # with the default of 1 the tied head learns too slowly for a few hundred steps
        initializer_factor=0.3,
        decoder_start_token_id=tokenizer.pad_token_id,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    made.append(("t5", T5ForConditionalGeneration(config), tokenizer))

    tokenizer = longformer_tokenizer(texts, vocab_size, positions)
    config = LongformerConfig(
        vocab_size=len(tokenizer),
        hidden_size=reward_model_size,
        intermediate_size=2 * reward_model_size,
        num_hidden_layers=2,
        num_attention_heads=heads,
        attention_window=64,
        # RoBERTa counts positions from pad_token_id + 1
        max_position_embeddings=positions + 2,
        type_vocab_size=1,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
        sep_token_id=2,
    )
    made.append(("longformer", LongformerModel(config), tokenizer))

    tokenizer = llama_tokenizer(texts, vocab_size, 384)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=reward_model_size,
        intermediate_size=2 * reward_model_size,
        num_hidden_layers=2,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        # the holistic model reads the answer and as much of the prompt as fits in front of it
        max_position_embeddings=384,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    made.append(("llama", LlamaModel(config), tokenizer))

    lines = []
    prompts = [text for text in texts if text.startswith("question:")] or texts
    for name, model, tokenizer in made:
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
        tokens = sum(map(len, tokenizer(prompts, verbose=False)["input_ids"])) / len(prompts)
        lines.append((name, model.num_parameters(), len(tokenizer), tokens))
    return lines


@report_user_errors
def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    save_dir = Path(args.save_dir)
    check_writable(save_dir, "--save_dir")
    if save_dir.is_file():
        raise UserError(f"--save_dir {save_dir} is a file; give the path of a new folder")
    if save_dir.exists() and any(save_dir.iterdir()):
        raise UserError(f"{save_dir} already holds something; give another --save_dir or remove it")
    for flag in ("policy_size", "reward_model_size"):
        if getattr(args, flag) < 64 or getattr(args, flag) % 64:
            raise UserError(f"--{flag} {getattr(args, flag)} is not a multiple of 64; give 64, 128, ...")
    if args.vocab_size < 600:
        raise UserError(
            f"--vocab_size {args.vocab_size} leaves no room beside bytes and special tokens; give 600 or more"
        )
    rows = read_rows(args.train_file)
    require_fields(rows, {"text": str}, args.train_file)
    require_texts(rows, "answer", args.train_file)

    from transformers import set_seed

    set_seed(args.seed)
    texts = training_text(rows)
    with whole_folder(save_dir) as folder:
        lines = make_models(texts, folder, args.vocab_size, args.policy_size, args.reward_model_size)
    rows = [
        (name, f"{parameters:,}", f"{vocabulary:,}", f"{tokens:.0f}") for name, parameters, vocabulary, tokens in lines
    ]
    print_table(plain_table("Base models", ("model", "parameters", "vocabulary", "tokens per prompt"), rows))
    print(f"wrote {save_dir}")


if __name__ == "__main__":
    main()
