"""Do the reward models learn anything? All four, small and from scratch, against their baselines on held-out questions.

    python benchmarks/reward_models.py --questions dev_300.json --feedback dev_300_feedback.json --work_dir work/rm

Splits the questions at random, makes base models from the training text, trains each model by the command that it
prints, and ends with a line for each comparison of a model with a baseline (95% intervals over held-out questions).
What a run finished is not made again: remove a model's folder to train it anew.
"""

from __future__ import annotations

import argparse
import json
import random
import shlex
import subprocess
import sys
from pathlib import Path

from alarm.common.console import plain_table, print_table
from alarm.common.errors import UserError, report_user_errors
from alarm.common.files import read_rows, whole_folder, write_json
from alarm.common.flags import parser, positive_int
from alarm.tasks.qa.feedback import load_feedback

ROOT = Path(__file__).resolve().parents[1]
# chosen by training on parts of the training questions and measuring on the others
SETTINGS = {
    "relevance": "--num_epochs 4 --batch_size 8 --lr 1e-3 --selection_share 0",
    "factuality": "--num_epochs 4 --batch_size 8 --lr 1e-3 --class_weights balanced",
    "completeness": "--num_epochs 4 --batch_size 2 --lr 5e-4 --selection_share 0",
    "holistic": "--num_epochs 3 --batch_size 8 --lr 1e-3",
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    flags = parser(__doc__.split("\n\n")[0])
    add = flags.add_argument
    add("--questions", required=True, help="questions of qa-feedback")
    add("--feedback", required=True, help="the feedback on them")
    add("--held_out", type=positive_int, default=60, help="questions that no model is trained on")
    add("--work_dir", required=True, help="folder of everything that is written")
    add("--splitter", default="en_core_web_sm", help="a spaCy pipeline's name, pysbd or sentencizer")
    add("--only", nargs="+", default=list(SETTINGS), choices=list(SETTINGS), help="models to train")
    add("--seed", type=int, default=42, help="seed of the split and of the training")
    return flags.parse_args(argv)


def split_questions(args: argparse.Namespace, folder: Path) -> None:
    """Write folder/{train,dev}.json and folder/{train,dev}_feedback.json, rows as they were."""
    load_feedback(args.questions, args.feedback)
    questions, feedback = read_rows(args.questions), read_rows(args.feedback)
    asked = sorted({row["question"] for row in feedback})
    if args.held_out >= len(asked):
        raise UserError(f"--held_out {args.held_out} leaves none of {len(asked)} questions to train on; give less")
    held = set(random.Random(args.seed).sample(asked, args.held_out))
    for name, part in (("train", set(asked) - held), ("dev", held)):
        write_json(folder / f"{name}_feedback.json", [row for row in feedback if row["question"] in part])
        write_json(folder / f"{name}.json", [row for row in questions if row["question"] in part])


def run(words: list[str]) -> None:
    print(f"\n$ python {shlex.join(words)}", flush=True)
    if subprocess.run([sys.executable, *words], cwd=ROOT).returncode:
        raise UserError("the command above failed")


def command(model: str, data: Path, work: Path, args: argparse.Namespace) -> list[str]:
    script = ["-m", "alarm.train_holistic"] if model == "holistic" else ["long-form-QA/train_rm.py", "--aspect", model]
    base = "llama" if model == "holistic" else "longformer"
    files = [
        word
        for name in ("train", "dev")
        for kind in ("", "_feedback")
        for word in (f"--{name}{kind}_file", str(data / f"{name}{kind}.json"))
    ]
    splitter = [] if model == "holistic" else ["--splitter", args.splitter]
    paths = ["--model_path", str(work / "base" / base), "--save_dir", str(work / model), "--seed", str(args.seed)]
    return [*script, *files, *paths, *splitter, *SETTINGS[model].split()]


@report_user_errors
def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    work = Path(args.work_dir).resolve()
    data = work / "data"
    if not data.is_dir():
        with whole_folder(data) as folder:
            split_questions(args, folder)
    if not (work / "base").is_dir():
        make = ["quickstart/make_base_models.py", "--train_file", str(data / "train.json")]
        run([*make, "--save_dir", str(work / "base"), "--seed", str(args.seed)])
    for model in args.only:
        if not (work / model).is_dir():
            run(command(model, data, work, args))

    rows = []
    for model in args.only:
        found = json.loads((work / model / "metrics.json").read_text())
        for what, one in found["dev"]["comparisons"].items():
            between = "{:+.3f} .. {:+.3f}".format(*one["interval"]) if one["interval"] else ""
            gain = f"{one['gain']:+.3f}" if one["interval"] else "-"
            rows.append((f"{model}: {what}", gain, between, "yes" if one["beats"] else ""))
    print_table(plain_table("Reward models against their baselines", ("model", "gain", "95% interval", "beats"), rows))


if __name__ == "__main__":
    main()
