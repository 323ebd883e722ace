"""Add scores to answers that exist: metrics of any task, a holistic reward, a preference model, features, a judge.

The rows keep all that they have. Beside the new file stands a sidecar that says what was added, by what.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ..api import HOLISTIC, LENGTH, RAW_HOLISTIC, Task
from ..common.console import Column, Section, Table, print_table, say_counts
from ..common.errors import UserError, report_user_errors
from ..common.files import check_new_file, check_writable, is_finite_number, is_text, read_rows, write_json, write_rows
from ..common.flags import add_language_flags, parser
from ..common.identity import file_identity, hash_file, model_identity
from ..tasks.find import add_task_flag, task_of
from .compare import JUDGE
from .generations import shorten
from .judge.judge import Comparison, Judge, add_judge_flags, judge_from_flags
from .provenance import KIND, PARTIAL, SIDECAR, read_sidecar, sidecar_of
from .scores import (
    Answers,
    add_score_flags,
    check_wanted,
    configured,
    matched_rows,
    meanings,
    models_of,
    plan,
    score_answers,
    settings_of,
    with_ids,
)

VERSION = 1  # of training.provenance, for a file that had no sidecar
POINTS = {1: 1.0, 0: 0.5, -1: 0.0, None: None}  # of a judge's verdict


def parse_args(argv: list[str] | None = None) -> tuple[argparse.Namespace, Task]:
    """The flags of the command, and the task that --task names."""
    task = task_of(argv)
    flags = parser(__doc__.split("\n\n")[0])
    add = flags.add_argument
    add("--generations", type=Path, required=True, help="JSON file of answers, as train_ppo.py --test writes it")
    add(
        "--add",
        nargs="+",
        required=True,
        metavar="METRIC",
        help=f"columns to add: {', '.join(meanings(task))}; NAME=MODEL: raw scores of a preference model; {JUDGE}: "
        "points of an LLM judge against the answers of --against (1 won, 0.5 tie, 0 lost)",
    )
    where = flags.add_mutually_exclusive_group(required=True)
    where.add_argument("--output", type=Path, help="file to write")
    where.add_argument("--in_place", action="store_true", help="write --generations itself")
    add("--overwrite", action="store_true", help="replace the file at --output if it exists")
    add("--replace", action="store_true", help="compute columns again that the file has already")
    add_task_flag(flags, "--task", required=False)
    add("--examples", help="data file with the rows that were answered, matched by their prompts, for what reads them")
    add("--policy_ckpt", help="the policy whose tokenizer gives tokens, for what counts them")
    add("--against", type=Path, help=f"with --add {JUDGE}: another file of answers to the same prompts")
    add_language_flags(flags)
    add_score_flags(flags, task)
    add_judge_flags(flags, switch=False)
    return flags.parse_args(argv), task


@report_user_errors
def main(argv: list[str] | None = None) -> None:
    args, task = parse_args(argv)

    # 1. what can be wrong without loading a model
    task = configured(task, args)
    wanted = plan([name for name in args.add if name != JUDGE], task, "--add")
    output = args.generations if args.in_place else args.output
    check_output(args, output)
    rows = read_answers(args.generations)
    columns = [*wanted.columns, *([JUDGE] if JUDGE in args.add else [])]
    check_columns(columns, rows, args)
    parts = wanted.holistic or wanted.metrics
    if parts and any(RAW_HOLISTIC in row for row in rows) and set(columns) & set().union(*rows):
        raise UserError(
            f"{args.generations} holds samples with the parts of their rewards, which --replace would contradict; "
            "write them again with train_ppo.py --test"
        )
    meta = read_sidecar(args.generations)
    if wanted.needs_tokens and args.policy_ckpt is None:
        raise UserError(f"{wanted.needs_tokens[0]} counts tokens; give --policy_ckpt, for its tokenizer")
    check_wanted(wanted, task, args)
    judge, comparisons = judge_of(args, rows, output)
    queries = [row["query"] for row in rows]
    prompts, examples = matched_rows(task, queries, args.examples)
    answers = Answers(queries, prompts, [row["generation"] for row in rows], examples)
    if args.examples is None and wanted.aspects and task.name == "qa":
        raise UserError("the aspects of qa read the question; give --examples, the data file that was answered")
    if args.examples is None and wanted.aspects:
        print("--examples is not given: the aspects get empty rows")

    # 2. score
    tokenizer = None
    if wanted.needs_tokens:
        from ..training.flags import resolve_policy
        from ..training.policy import load_tokenizer

        tokenizer = load_tokenizer(resolve_policy(args.policy_ckpt), args)
        recorded = [row.get(LENGTH) if is_finite_number(row.get(LENGTH)) else None for row in rows]
        answers = with_ids(answers, tokenizer, recorded)
        print(
            f"{', '.join(wanted.needs_tokens)}: of the tokens that {args.policy_ckpt} gives the texts, not the sampled"
        )
    if wanted.holistic:
        print(f"{HOLISTIC}: (raw - ultra_mean {args.ultra_mean:.6g}) / ultra_std {args.ultra_std:.6g}")
    found = score_answers(wanted, task, args, answers, tokenizer)
    added = dict(found.columns)
    if judge is not None:
        added[JUDGE] = [POINTS[one.verdict] for one in judge.judge(comparisons)]
        if all(points is None for points in added[JUDGE]):
            raise UserError(
                f"the judge gave no verdict on any of {len(rows)} answers ({judge.usage}); its replies are in "
                f"{judge.settings.cache}"
            )

    # 3. write
    from ..training.run import finite

    before = [dict(row) for row in rows]
    for i, row in enumerate(rows):
        row |= finite({name: values[i] for name, values in added.items()})
    models = {role: model_identity(name) for role, name in models_of(wanted, task, args).items()}
    about = {
        "columns": list(added),
        "task": task.source or task.name,
        "from": file_identity(args.generations),
        "models": models,
        "settings": settings_of(wanted, task, args),
    }
    if args.examples is not None:
        about["examples"] = file_identity(args.examples)
    if judge is not None:
        about["judge"] = judge.summary() | {"against": file_identity(args.against)}
    write_scored(output, rows, meta, task, about)
    report(added, before, rows)
    print(f"wrote {output}")
    say_counts(found.counts)


# --- reading and checks ----------------------------------------------------------------------------------------------


def check_output(args: argparse.Namespace, output: Path) -> None:
    """Raise UserError for a place that cannot be written or would replace what nobody asked to replace."""
    if args.in_place:
        if args.overwrite:
            raise UserError("--overwrite goes with --output; drop it")
        check_writable(output, "--generations")
    else:
        if output.suffix != ".json" or output.name.endswith(SIDECAR):
            raise UserError(f"--output {output} must end in .json, and not in {SIDECAR}")
        if output.exists() and args.generations.exists() and output.samefile(args.generations):
            raise UserError("--output is --generations; give another file, or --in_place instead")
        check_new_file(output, "--output", args.overwrite)
        if sidecar_of(output).exists() and not args.overwrite:
            raise UserError(f"--output: {sidecar_of(output)} exists; give another name, or --overwrite to replace it")


def read_answers(path: Path) -> list[dict]:
    """The rows of a generations file. UserError if one has no texts `query` and `generation`."""
    rows = read_rows(path)
    for number, row in enumerate(rows, start=1):
        for name in ("query", "generation"):
            if not is_text(row.get(name)):
                value = shorten(row[name]) if name in row else "missing"
                raise UserError(f"{path}, row {number}: '{name}' is {value}; every row needs a text there")
    return rows


def check_columns(columns: Sequence[str], rows: list[dict], args: argparse.Namespace) -> None:
    """Raise UserError for columns that the file has, unless they are to be replaced."""
    there = set().union(*rows)
    if (had := [name for name in columns if name in there]) and not args.replace:
        raise UserError(f"{args.generations} has {', '.join(had)} already; leave it out, or give --replace")


def judge_of(args: argparse.Namespace, rows: list[dict], output: Path) -> tuple[Judge | None, list[Comparison]]:
    """The judge that --add asks for, and what it compares. UserError if --against answers other prompts."""
    args.use_gpt = JUDGE in args.add
    judge = judge_from_flags(args, output.parent, f"--add {JUDGE}")
    if judge is None:
        if args.against is not None:
            raise UserError(f"--against goes with --add {JUDGE}; add it or drop --against")
        return None, []
    if args.against is None:
        raise UserError(f"--add {JUDGE} compares two answers; give --against, another file of answers")
    others = {row["query"]: row["generation"] for row in reversed(read_answers(args.against))}
    if missing := [row["query"] for row in rows if row["query"] not in others]:
        raise UserError(
            f"--against {args.against} has no answer to {missing[0][:60]!r} ({len(missing)} of {len(rows)} are missing)"
        )
    return judge, [Comparison(row["query"], row["generation"], others[row["query"]]) for row in rows]


# --- writing ---------------------------------------------------------------------------------------------------------


def write_scored(path: Path, rows: list[dict], meta: dict | None, task: Task, about: dict) -> None:
    """Write the rows and their sidecar, each whole or not at all. meta: the sidecar that the answers had."""
    from ..training.provenance import versions

    # rows of several samples stand on a line each, as --test writes them
    several = any("sample" in row for row in rows)
    sidecar_of(path).unlink(missing_ok=True)  # of a file that is replaced now
    (write_rows if several else write_json)(path, rows)
    old = {"kind": KIND, "version": VERSION, "task": task.name, "models": {}, "settings": {}, PARTIAL: True}
    old = old if meta is None else meta
    about = about | {"versions": versions()}
    merged = {name: old[name] | about[name] for name in ("models", "settings")}
    later = [*old.get("scored_again", []), about]
    write_json(sidecar_of(path), old | merged | {"generations": hash_file(path), "scored_again": later})


def report(added: dict[str, list], before: list[dict], rows: list[dict]) -> None:
    """Print a row for each column: its mean, its range, and what changed if it was there."""
    lines = []
    for name in added:
        numbers = [row[name] for row in rows if row[name] is not None]
        old = [(row[name], now[name]) for row, now in zip(before, rows, strict=True) if name in row]
        changed = [abs(a - b) for a, b in old if is_finite_number(a) and is_finite_number(b)]
        summary = (sum(numbers) / len(numbers), min(numbers), max(numbers)) if numbers else ()
        shown = [f"{value:.4f}" for value in summary] or ["-"] * 3
        lines.append((name, *shown, str(len(rows) - len(numbers)), f"{max(changed):.2g}" if changed else "-"))
    headings = ("mean", "least", "greatest", "null", "largest change")
    columns = (Column("column", text=True), *map(Column, headings))
    print_table(Table(f"{len(rows)} answers", "", columns, (Section(tuple(lines)),)))
    if empty := [name for name in added if all(row[name] is None for row in rows)]:
        print(f"warning: no answer has a number for {', '.join(empty)}", file=sys.stderr)


if __name__ == "__main__":
    main()
