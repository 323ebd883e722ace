"""Judges of answers, judged by what people prefer: an LLM, any score of an answer, and votes of several of them."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from random import Random

import numpy as np

from ..api import HOLISTIC, LENGTH, Task
from ..common.console import Column, Section, Table
from ..common.distinct import distinct
from ..common.errors import UserError
from ..common.identity import model_identity, rows_identity
from .agreement import (
    Agreement,
    HumanPair,
    Meter,
    Preferences,
    Verdicts,
    majority_vote,
    mean_ranks,
    verdicts_of_scores,
)
from .judge.judge import Comparison, Judge
from .leaderboard import KIND
from .scores import Answers, Wanted, models_of, plan, score_answers, settings_of

LLM, PEOPLE = "llm", "people"
MAJORITY, RANK = "majority", "rank"  # kinds of ensembles
NO_VERDICT = float("nan")


@dataclass(frozen=True)
class Cost:
    """What judging took. None: not known, such as the price of a judge of one's own."""

    seconds: float | None  # without the loading of models
    comparisons: int  # that were paid for; answers that a cache had are not among them
    dollars: float | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def per_1000(self) -> dict:
        scale = 1000 / self.comparisons if self.comparisons else None
        return {
            "comparisons": self.comparisons,
            "seconds_per_1000": None if scale is None or self.seconds is None else self.seconds * scale,
            "dollars_per_1000": None if scale is None or self.dollars is None else self.dollars * scale,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
        }


@dataclass(frozen=True)
class Judged:
    """One judge on all pairs."""

    name: str
    verdicts: Verdicts
    cost: Cost
    about: dict  # what the judge is: models with their hashes, settings
    scores: np.ndarray | None = None  # (R, M) of each answer, higher is better, if it gives scores


# --- what to judge ---------------------------------------------------------------------------------------------------


def draw_questions(data: Preferences, limit: int | None, seed: int) -> Preferences:
    """The pairs of `limit` questions drawn at random, or all of them."""
    questions = list(dict.fromkeys(pair.question for pair in data.pairs))
    if limit is None or limit >= len(questions):
        return data
    kept = set(Random(seed).sample(questions, limit))
    pairs = [pair for pair in data.pairs if pair.question in kept]
    if not any(vote for pair in pairs for vote in pair.votes):
        raise UserError(f"the {limit} questions of --limit hold ties only; give more")
    return replace(data, pairs=pairs)


def data_identity(data: Preferences) -> dict:
    """Which pairs and votes these are: two files of the same content are one data set."""
    rows = [{"prompt": pair.prompt, "a": pair.a, "b": pair.b, "votes": pair.votes} for pair in data.pairs]
    return {"name": data.name, "sha256": rows_identity(data.name, rows)["files"]["rows"]}


# --- names -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Panel:
    """The judges that were asked for."""

    scores: list[tuple[str, Wanted, bool]]  # name, what gives the score, whether the lower one wins
    llm: bool
    ensembles: dict[str, tuple[str, list[str]]]  # name -> kind, members

    def names(self, llm: str) -> list[str]:
        return [*(name for name, _, _ in self.scores), *([llm] if self.llm else []), *self.ensembles]


def choose_judges(names: Sequence[str], ensembles: Sequence[str], task: Task) -> Panel:
    """--judges and --ensemble. A judge is LLM or what `scores.plan` knows; an ensemble is KIND:JUDGE,JUDGE,...

    Raises UserError for a name that is nothing, and for members that are no judges.
    """
    asked = plan([name for name in names if name != LLM], task, "--judges")
    if asked.length:
        raise UserError(f"--judges {LENGTH} counts tokens, which are not known here; give words")
    single = {name: Wanted(features=(name,)) for name in asked.features}
    single |= {column: Wanted(metrics={column: one}) for column, one in asked.metrics.items()}
    single |= {column: Wanted(models={column: model}) for column, model in asked.models.items()}
    if asked.holistic:
        single[HOLISTIC] = Wanted(holistic=True)
    if tokens := [name for name, wanted in single.items() if wanted.needs_tokens]:
        raise UserError(f"--judges {tokens[0]} depends on tokens, which are not known here; leave it out")
    llm = LLM in names
    found = {}
    for spec in ensembles:
        kind, colon, members = spec.partition(":")
        chosen = [member.strip() for member in members.split(",") if member.strip()]
        if kind not in (MAJORITY, RANK) or not colon or len(set(chosen)) < 2:
            raise UserError(f"--ensemble {spec}: give {MAJORITY}:JUDGE,JUDGE,... or {RANK}:JUDGE,JUDGE,...")
        for member in chosen:
            if member == LLM and kind == RANK:
                raise UserError(f"--ensemble {spec}: {LLM} gives verdicts and no scores to rank; take {MAJORITY}")
            if member not in single and not (member == LLM and llm):
                known = ", ".join([*single, *([LLM] if llm else [])])
                raise UserError(f"--ensemble {spec}: {member!r} is none of the judges, {known}; add it to --judges")
        found[spec] = (kind, list(dict.fromkeys(chosen)))
    return Panel([(name, wanted, name in task.lower_wins) for name, wanted in single.items()], llm, found)


# --- judging ---------------------------------------------------------------------------------------------------------


class Texts:
    """The different answers of the pairs, and which of them each pair compares."""

    def __init__(self, pairs: Sequence[HumanPair]):
        sides = [(pair.prompt, text) for pair in pairs for text in (pair.a, pair.b)]
        found, places = distinct(sides)
        self.a, self.b = np.array(places[::2]), np.array(places[1::2])  # (N,) of the M answers
        rows: dict[tuple[str, str], dict] = {}
        for pair in pairs:
            for text in (pair.a, pair.b):
                rows.setdefault((pair.prompt, text), pair.row)
        prompts = [prompt for prompt, _ in found]
        self.answers = Answers(prompts, prompts, [text for _, text in found], [rows[key] for key in found])
        _, groups = distinct(prompts)
        self.groups = np.array(groups)


def judge_by_score(
    name: str, wanted: Wanted, lower: bool, texts: Texts, task: Task, args: argparse.Namespace, repeats: int
) -> tuple[Judged, dict[str, int]]:
    """The better score wins. -> the judge, and counts for the end of the run."""
    scores, seconds, counts = [], 0.0, {}
    for _ in range(repeats):
        found = score_answers(wanted, task, args, texts.answers)
        (values,) = found.columns.values()
        scores.append([NO_VERDICT if value is None else float(value) for value in values])
        seconds, counts = seconds + found.seconds, found.counts
    table = np.array(scores) * (-1 if lower else 1)
    values = np.stack([verdicts_of_scores(row[texts.a], row[texts.b]) for row in table])
    models = {role: model_identity(model) for role, model in models_of(wanted, task, args).items()}
    about = {"kind": "score", "models": models, "settings": settings_of(wanted, task, args)}
    if wanted.metrics or wanted.holistic:
        about["task"] = task.source or task.name
    return Judged(name, Verdicts(values), Cost(seconds, len(texts.a) * repeats), about, table), counts


def judge_by_llm(
    name: str, judges: Sequence[Judge], pairs: Sequence[HumanPair], prices: Sequence[float] | None
) -> Judged:
    """Each of R judges (one a repeat) compares every pair in both orders.

    prices: dollars for a million tokens, of prompts and of replies. Raises UserError before the first request if all
    repeats together would make more calls than max_calls allows.
    """
    comparisons = [Comparison(pair.prompt, pair.a, pair.b) for pair in pairs]
    values, first, placed = [], np.zeros(len(pairs)), np.zeros(len(pairs))
    seconds = 0.0
    calls = sum(judge.estimate(comparisons).calls for judge in judges)
    limit = judges[0].settings.max_calls
    if limit is not None and calls > limit:
        raise UserError(
            f"the judge would make {calls} calls in {len(judges)} repeats, and --max_calls is {limit}; raise it, or "
            "judge fewer questions by --limit"
        )
    for judge in judges:
        started = time.perf_counter()
        found = judge.judge(comparisons)
        seconds += time.perf_counter() - started
        values.append([NO_VERDICT if one.verdict is None else one.verdict for one in found])
        for i, one in enumerate(found):
            first[i] += (one.a_first == 1) + (one.b_first == -1)
            placed[i] += sum(answer is not None for answer in (one.a_first, one.b_first))
    usage = judges[0].usage  # all share it
    tokens = [usage.prompt_tokens, usage.completion_tokens]
    dollars = None if prices is None else sum(p * t for p, t in zip(prices, tokens, strict=True)) / 1e6
    cost = Cost(seconds, calls // 2, dollars if calls else None, *tokens)
    about = {"kind": LLM} | {key: judges[0].summary()[key] for key in ("model", "endpoint", "template_sha256")}
    return Judged(name, Verdicts(np.array(values, dtype=float), first, placed), cost, about)


def repeated(judge: Judge, repeats: int) -> list[Judge]:
    """The judge and others like it, each with a cache of its own: a cache would answer a second time by the first."""
    path = judge.settings.cache
    return [judge, *(judge.again(path.with_name(f"{path.stem}-repeat{r}{path.suffix}")) for r in range(2, repeats + 1))]


def ensemble(name: str, kind: str, members: Sequence[Judged], texts: Texts) -> Judged:
    """A vote of judges, or the mean of the ranks that they give the answers to a prompt."""
    repeats = min(len(member.verdicts.values) for member in members)
    if kind == MAJORITY:
        values = majority_vote([member.verdicts.values[:repeats] for member in members])
    else:
        ranks = [mean_ranks([m.scores[r] for m in members], texts.groups) for r in range(repeats)]
        values = np.stack([verdicts_of_scores(row[texts.a], row[texts.b]) for row in ranks])
    known = [member.cost for member in members]
    whole = all(cost.comparisons == known[0].comparisons for cost in known)
    cost = Cost(
        sum(cost.seconds for cost in known) if whole else None,
        known[0].comparisons if whole else 0,
        sum(cost.dollars or 0.0 for cost in known) if whole and any(cost.dollars for cost in known) else None,
    )
    about = {"kind": kind, "members": {member.name: member.about for member in members}}
    return Judged(name, Verdicts(values), cost, about)


def require_verdicts(judged: Judged) -> None:
    """Raise UserError for a judge that never says anything."""
    if not np.isfinite(judged.verdicts.values).any():
        raise UserError(
            f"the judge {judged.name} gave no verdict on any of {judged.verdicts.values.shape[1]} pairs; look at its "
            "replies or scores"
        )


# --- rows and tables -------------------------------------------------------------------------------------------------


def board_row(
    name: str, found: Agreement, about: dict, cost: Cost | None, data: dict, meter: Meter, repeats: int
) -> dict:
    """What the leaderboard keeps."""
    from ..training.provenance import versions

    return {
        "kind": KIND,
        "judge": name,
        "data": data,
        "questions": meter.questions,
        "pairs": len(meter.pairs),
        "votes": sum(len(pair.votes) for pair in meter.pairs),
        "repeats": repeats,
        "rates": asdict(found),
        "cost": None if cost is None else cost.per_1000(),
        "about": about,
        "versions": versions(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


RATES = {
    "people": "agrees",
    "majority": "majority",
    "over_length": "over length",
    "longer": "longer",
    "first": "first",
    "ties": "ties",
    "changed": "changed",
    "failures": "failed",
}


NOTE = (
    "in %, 95% intervals over questions below. Agrees: with votes of people for one side, a tie counts half "
    f"({PEOPLE}: a vote with the majority of the others on the pair). Majority: the same over pairs with several "
    "votes. Over length: agreement less that of `the longer wins`, in points. Longer, first: of its decisions, for the "
    f"answer with more words, for the one shown first (50: no bias; {PEOPLE}: the first of the file). Changed: other "
    "verdicts of two repeats. Failed: no verdict. Cost of 1000 comparisons without what a cache knew."
)


def board_tables(rows: Sequence[dict]) -> list[Table]:
    """The leaderboard, a table for each data set: people first, then the judges that agree most."""
    data_sets: dict[str, list[dict]] = {}
    for row in rows:
        data_sets.setdefault(row["data"]["sha256"], []).append(row)
    columns = (
        Column("judge", text=True),
        *(Column(heading.replace(" ", "\n"), name=True) for heading in RATES.values()),
        Column("$ per\n1000", name=True),
        Column("s per\n1000", name=True),
    )
    tables = []
    for of_data in data_sets.values():
        one = of_data[0]
        title = (
            f"Judges on {one['data']['name']} ({one['data']['sha256'][:8]}): {one['questions']} questions, "
            f"{one['pairs']} pairs, {one['votes']} votes"
        )
        ranked = sorted(of_data, key=lambda row: (row["judge"] != PEOPLE, -(row["rates"]["people"]["value"] or 0)))
        tables.append(Table(title, "" if tables else NOTE, columns, (Section(tuple(map(_cells, ranked))),)))
    return tables


def _cells(row: dict) -> tuple[str, ...]:
    cells = [row["judge"]]
    for name in RATES:
        rate = row["rates"][name]
        bounds = rate["interval"]
        value = (
            "-"
            if rate["value"] is None
            else f"{rate['value']:+.1f}"
            if name == "over_length"
            else f"{rate['value']:.1f}"
        )
        cells.append(value + (f"\n{bounds[0]:.1f}–{bounds[1]:.1f}" if bounds else ""))
    cost = row["cost"] or {}
    for name in ("dollars_per_1000", "seconds_per_1000"):
        value = cost.get(name)
        cells.append("-" if value is None else f"{value:.3g}")
    return tuple(cells)
