"""Sample several answers to each prompt from a policy, for preferences, feedback and agreement.

    python -m miniature.sample --task miniature/qa/task.py --policy_ckpt DIR --prompts FILE --samples 4 --save_path FILE

writes JSON lines {"row": the row of the prompts file, "answers": [...]}.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

from alarm.common.errors import report_user_errors
from alarm.common.files import check_new_file, read_rows, require_fields, write_text
from alarm.common.flags import add_policy_flags, parser, positive_int, seed_value
from alarm.tasks.find import add_task_flag, task_of
from alarm.training.flags import resolve_policy


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    task = task_of(argv)
    flags = parser(__doc__.split("\n\n")[0])
    add = flags.add_argument
    add_task_flag(flags)
    add("--policy_ckpt", required=True, help="policy that answers: a folder, a run's --save_dir or a hub name")
    add("--prompts", required=True, help="rows of the task (JSON list or JSON lines)")
    add("--limit", type=positive_int, help="take the first rows of the file only")
    add("--samples", type=positive_int, default=4, help="answers to each prompt")
    add("--max_input_len", type=positive_int, default=task.max_input_len, help="prompt tokens")
    add("--max_generated_len", type=positive_int, default=task.max_generated_len, help="answer tokens")
    add("--batch_size", type=positive_int, default=256, help="answers that are sampled at once")
    add("--dtype", default="float32", choices=("bfloat16", "float32"), help="weights of the policy")
    add("--seed", type=seed_value, default=0, help="seed of the samples")
    add("--save_path", required=True, help="new file")
    add_policy_flags(flags)
    return flags.parse_args(argv)


@report_user_errors
def main(argv: list[str] | None = None) -> None:
    args, task = parse_args(argv), task_of(argv)
    check_new_file(args.save_path, "--save_path")
    rows = task.load(args.prompts)[: args.limit]

    args.policy_ckpt = resolve_policy(args.policy_ckpt)

    import torch

    from alarm.training.generate import answer_all
    from alarm.training.policy import encode_splits, load_answering_policy, load_tokenizer
    from trl.generation import SAMPLING

    tokenizer = load_tokenizer(args.policy_ckpt, args)
    prompts = encode_splits(tokenizer, {"rows": rows}, task, args.max_input_len, {"rows": args.prompts})["rows"]
    repeated = [replace(prompt) for prompt in prompts for _ in range(args.samples)]
    policy = load_answering_policy(args.policy_ckpt, tokenizer, args)
    torch.manual_seed(args.seed)
    settings = SAMPLING | {"max_new_tokens": args.max_generated_len}
    answers = answer_all(policy, tokenizer, repeated, args.batch_size, "sampling", **settings)
    lines = [
        json.dumps({"row": row, "answers": answers[i * args.samples : (i + 1) * args.samples]})
        for i, row in enumerate(rows)
    ]
    write_text(args.save_path, "\n".join(lines) + "\n")
    print(f"wrote {args.samples} answers to each of {len(rows)} prompts to {args.save_path}")


def load_samples(path: str | Path) -> list[tuple[dict, list[str]]]:
    """(row, answers) for each prompt of a file of this command. Raises UserError."""
    found = read_rows(path)
    require_fields(found, {"row": dict, "answers": list}, path)
    return [(one["row"], one["answers"]) for one in found]


if __name__ == "__main__":
    main()
