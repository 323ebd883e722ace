"""Judge the judges: how far do an LLM, a reward model, a metric or a plain rule agree with people?

python ./eval/evaluate_judge.py --preferences pairs.json --judges words overlap llm --leaderboard judges.jsonl
"""

from __future__ import annotations

import argparse
from pathlib import Path

from alarm.api import Task
from alarm.common.errors import UserError, report_user_errors
from alarm.common.flags import nonnegative_float, parser, positive_int, seed_value
from alarm.evaluation.judge.judge import add_judge_flags
from alarm.evaluation.scores import add_score_flags, meanings
from alarm.tasks.find import add_task_flag, task_of


def parse_args(argv: list[str] | None = None) -> tuple[argparse.Namespace, Task]:
    """The flags, and the task that --task names."""
    task = task_of(argv)
    flags = parser(__doc__.split("\n\n")[0])
    add = flags.add_argument
    add("--questions", help="questions of qa-feedback: prompts under `text`; with --feedback")
    add("--feedback", help="its feedback: four answers to each question and six comparisons by people")
    add(
        "--preferences",
        help="instead: rows {prompt, chosen, rejected}; several rows on the same two answers are several votes "
        "(`annotator` says whose; `tie` true: for neither)",
    )
    add(
        "--judges",
        nargs="+",
        default=["words", "overlap"],
        metavar="JUDGE",
        help=f"llm, or what gives an answer a number, the higher wins: {', '.join(meanings(task))}; NAME=MODEL: a "
        "preference model",
    )
    add(
        "--ensemble",
        nargs="+",
        default=[],
        metavar="KIND:JUDGE,JUDGE",
        help="majority:a,b,c votes, rank:a,b takes the mean of the ranks of the answers to a prompt",
    )
    add("--leaderboard", type=Path, required=True, help="JSON lines file that gets a row for each judge")
    add("--replace", action="store_true", help="replace rows of the same judge on the same data")
    add("--repeats", type=positive_int, default=1, help="judge everything so many times, to see what changes")
    add("--limit", type=positive_int, help="judge the pairs of so many questions, drawn at random (default: all)")
    add("--seed", type=seed_value, default=42, help="seed of --limit")
    add(
        "--price_per_million",
        nargs=2,
        type=nonnegative_float,
        metavar=("INPUT", "OUTPUT"),
        help="dollars that the LLM judge's endpoint takes for a million tokens; without it there is no price",
    )
    add_task_flag(flags, "--task", required=False)
    add_score_flags(flags, task)
    add_judge_flags(flags, switch=False)
    return flags.parse_args(argv), task


@report_user_errors
def main(argv: list[str] | None = None) -> None:
    args, task = parse_args(argv)

    from alarm.common.console import print_table, say_counts, screen
    from alarm.evaluation import judging
    from alarm.evaluation.agreement import Meter, read_feedback, read_preferences
    from alarm.evaluation.judge.judge import judge_from_flags
    from alarm.evaluation.leaderboard import add_row, check_board, key_of, read_board
    from alarm.evaluation.scores import check_wanted, configured

    # 1. what can be wrong without loading a model
    task = configured(task, args)
    panel = judging.choose_judges(args.judges, args.ensemble, task)
    args.use_gpt = panel.llm
    judge = judge_from_flags(args, args.leaderboard.absolute().parent, f"--judges {judging.LLM}")
    if args.price_per_million is not None and not panel.llm:
        raise UserError(f"--price_per_million goes with --judges {judging.LLM}; drop it")
    for _, wanted, _ in panel.scores:
        check_wanted(wanted, task, args)
    if (args.preferences is None) == (args.questions is None) or (args.questions is None) != (args.feedback is None):
        raise UserError("give --questions and --feedback (qa-feedback), or --preferences")
    data = read_preferences(args.preferences) if args.preferences else read_feedback(args.questions, args.feedback)
    data = judging.draw_questions(data, args.limit, args.seed)
    identity = judging.data_identity(data)
    llm = judging.LLM if judge is None else f"{judging.LLM}:{judge.settings.model}"
    names = panel.names(llm)
    check_board(args.leaderboard, [(name, identity["sha256"]) for name in names], args.replace)

    # 2. judge, one judge after the other: what is done is kept
    meter, texts = Meter(data.pairs), judging.Texts(data.pairs)
    done: dict[str, judging.Judged] = {}
    counts: dict[str, int] = {"pairs of equal answers, left out": data.left_out}

    def keep(judged: judging.Judged) -> None:
        judging.require_verdicts(judged)
        found = meter.measure(judged.verdicts)
        row = judging.board_row(judged.name, found, judged.about, judged.cost, identity, meter, args.repeats)
        add_row(args.leaderboard, row, args.replace)

    if (judging.PEOPLE, identity["sha256"]) not in map(key_of, read_board(args.leaderboard)):
        people = judging.board_row(judging.PEOPLE, meter.of_people(data.ordered), {}, None, identity, meter, 1)
        add_row(args.leaderboard, people, replace=True)  # another process may have added the same
    for name, wanted, lower in panel.scores:
        done[name], found = judging.judge_by_score(name, wanted, lower, texts, task, args, args.repeats)
        counts |= found
        keep(done[name])
    if judge is not None:
        judges = judging.repeated(judge, args.repeats)
        done[judging.LLM] = judging.judge_by_llm(llm, judges, data.pairs, args.price_per_million)
        keep(done[judging.LLM])
    for name, (kind, members) in panel.ensembles.items():
        keep(judging.ensemble(name, kind, [done[member] for member in members], texts))

    # 3. show
    for table in judging.board_tables(read_board(args.leaderboard)):
        print_table(table, screen())
    print(f"wrote {args.leaderboard}")
    say_counts(counts)


if __name__ == "__main__":
    main()
