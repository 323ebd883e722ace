"""Train a holistic reward model on preferences between answers (Bradley-Terry), in the UltraRM layout."""

from __future__ import annotations

import argparse

from .errors import UserError, report_user_errors
from .flags import positive_int
from .launch import process_state
from .reward_training import Pair, load_feedback, load_pairs, preference_pairs
from .supervised import check_training, load_pretrained, training_parser


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    flags = training_parser(__doc__, model_path="openbmb/UltraRM-13b", num_epochs=1.0, batch_size=8, lr=1e-5)
    add = flags.add_argument
    pairs = "rows {prompt, chosen, rejected}; with its feedback file: questions of long-form QA"
    for split, use in (("train", "trained on"), ("dev", "held out")):
        add(f"--{split}_file", required=True, help=f"{use}: {pairs}")
        add(f"--{split}_feedback_file", help="six preferences between four answers per question of the file above")
    add("--max_length", type=positive_int, default=1230, help="tokens of an input; the prompt loses what is too much")
    return flags.parse_args(argv)


def load_split(path: str, feedback_path: str | None) -> tuple[list[Pair], list]:
    """The pairs of a split, and its feedback rows where it has some."""
    rows = load_feedback(path, feedback_path) if feedback_path else []
    pairs = [pair for row in rows for pair in preference_pairs(row)] if feedback_path else load_pairs(path)
    if not pairs:
        raise UserError(f"{feedback_path} holds ties only; give feedback with preferences")
    return pairs, rows


@report_user_errors
def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    check_training(args)
    train, _ = load_split(args.train_file, args.train_feedback_file)
    dev, dev_rows = load_split(args.dev_file, args.dev_feedback_file)
    train_preferences(train, dev, dev_rows, args)


def train_preferences(train: list[Pair], dev: list[Pair], dev_rows: list, args: argparse.Namespace) -> dict:
    """Train from a Llama body, or on from a model in the UltraRM layout; write `args.save_dir`, return the metrics."""
    from transformers import AutoConfig, AutoTokenizer, set_seed

    from .holistic import HolisticModel, LlamaRewardModel
    from .reward_training import collate_pairs, encode_pairs, format_metrics, measure_preferences, pair_loss
    from .supervised import fit

    set_seed(args.seed)
    config = load_pretrained(AutoConfig.from_pretrained, args.model_path)
    if config.model_type != "llama":
        raise UserError(f"{args.model_path} is a {config.model_type} model; the UltraRM layout needs a llama")
    model = load_pretrained(LlamaRewardModel.from_pretrained, args.model_path, dtype="float32")
    tokenizer = load_pretrained(AutoTokenizer.from_pretrained, args.model_path)
    reader = HolisticModel(model, tokenizer)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(reader.pad_id)

    def encode(prompts: list[str], answers: list[str]) -> list[list[int]]:
        return reader.encode(prompts, answers, args.max_length)

    def score(model, batch):
        return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])

    def finish(model) -> dict:
        metrics = measure_preferences(model, reader.pad_id, score, encode, dev, dev_rows, args.batch_size)
        show = process_state().print
        show(format_metrics(metrics["dev"], f"preferences on {args.dev_file}"))
        show(f"dev answers: --ultra_mean {metrics['score_mean']:.6g} --ultra_std {metrics['score_std']:.6g}")
        return metrics

    items = {"train": encode_pairs(encode, train), "dev": encode_pairs(encode, dev)}
    process_state().print(
        f"train and dev: {len(train)} and {len(dev)} pairs; {reader.truncated} inputs with a prompt cut to fit"
    )
    return fit(model, tokenizer, items["train"], items["dev"], collate_pairs(tokenizer), args, pair_loss(score), finish)


if __name__ == "__main__":
    main()
