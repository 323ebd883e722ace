"""Pretrain an untrained Longformer on text with masked words, as published ones were: it learns to look things up.

    python -m miniature.pretrain --model_path DIR/longformer --train_file FILE --dev_file FILE --save_dir DIR

The text is that of the task's rows, a prompt with its reference answer, laid out as reward models read it. Rows should
be of another seed than the feedback.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from alarm.common.errors import report_user_errors
from alarm.common.flags import open_share
from alarm.learning.fit import Losses, check_training, fit, token_losses, training_parser
from alarm.models.classifiers import unit_words
from alarm.tasks.qa.aspects import factuality_context
from alarm.tasks.qa.data import load_answered, references
from alarm.tasks.sentences import make_splitter

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerBase


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    flags = training_parser(__doc__.split("\n\n")[0], model_path=None, num_epochs=5.0, batch_size=32, lr=3e-3)
    add = flags.add_argument
    add("--train_file", required=True, help="rows {text, answer} to learn from")
    add("--dev_file", required=True, help="rows whose loss is shown")
    add("--masked", type=open_share, default=0.25, help="share of the words that are masked")
    return flags.parse_args(argv)


def encode_rows(tokenizer: PreTrainedTokenizerBase, rows: list[dict]) -> list[dict]:
    """-> items {input_ids}: "{prompt} answer: </s> sentence 1 </s> sentence 2 ..." """
    texts = [references(row)[0] for row in rows]
    spans = make_splitter("sentencizer")(texts)
    words = [
        unit_words(factuality_context(row["text"]), [text[start:end] for start, end in found], tokenizer.sep_token)[0]
        for row, text, found in zip(rows, texts, spans, strict=True)
    ]
    return [{"input_ids": ids} for ids in tokenizer(words, is_split_into_words=True)["input_ids"]]


def masked_loss(model: nn.Module, batch: dict[str, Tensor]) -> Losses:
    """Cross-entropy at the masked words."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return token_losses(logits, batch["labels"])


@report_user_errors
def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    check_training(args)
    rows = {split: load_answered(getattr(args, f"{split}_file")) for split in ("train", "dev")}

    from transformers import AutoModelForMaskedLM, DataCollatorForLanguageModeling, set_seed

    from alarm.models.load import load_start, load_tokenizer
    from alarm.models.longformer import use_packed_attention

    set_seed(args.seed)
    tokenizer = load_tokenizer(args.model_path, "the model", add_prefix_space=True)
    model = use_packed_attention(load_start(AutoModelForMaskedLM, args.model_path))
    items = {split: encode_rows(tokenizer, found) for split, found in rows.items()}
    mask = DataCollatorForLanguageModeling(tokenizer, mlm_probability=args.masked)
    fit(model, tokenizer, items["train"], items["dev"], mask, args, masked_loss, keep_last=True)


if __name__ == "__main__":
    main()
