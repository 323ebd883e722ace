"""Looking at rewards: what each token of a response earns, and whether the recipe puts the reward on this token.

`inspect_generations` scores responses by the training loop's own code and places the rewards by the trainer's own code;
`check_rewards` then checks the result against the recipe, on its own account. `show` shows it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ...api import LENGTH, Task
from ...common.errors import UserError
from ...common.files import is_text
from ..generations import Generations

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from ...rewards import RewardRecipe
    from ...scoring import Scorer

TOLERANCE = 1e-3  # between a recorded metric and the same one computed again


@dataclass(frozen=True)
class TokenRow:
    """One reward on all tokens of a response."""

    name: str
    note: str
    values: list[float]  # T

    @property
    def total(self) -> float:
        return sum(self.values)


@dataclass(frozen=True)
class Decision:
    """What the recipe lets into the reward of one response."""

    aspects: float  # the share that is paid, 0 to 1
    holistic: float
    gate: str  # open, closed, undefined (h is not finite), not used
    why: str
    own: bool = False  # a combiner decided a share of its own for each aspect


@dataclass(frozen=True)
class Check:
    """Whether each reward is on the token that it belongs to. If it is, `problems` is empty."""

    fact: str
    problems: list[str]


@dataclass(frozen=True)
class Difference:
    """A recorded metric that has another value now."""

    metric: str
    recorded: float
    here: float
    retokenised: bool  # can come from the tokens, which are not the sampled ones
    reason: str


@dataclass(frozen=True)
class Inspection:
    """All that is shown of one response."""

    number: int  # its row in the file, from 1
    query: str
    tokens: list[str]  # T, as shown
    raw: float  # the holistic model's score
    h: float  # z-normalised
    decision: Decision
    rows: list[TokenRow]  # each aspect, their weighted sum, the final reward
    check: Check
    compared: int  # recorded metrics that could be compared
    differences: list[Difference]
    notes: list[str]

    @property
    def final(self) -> TokenRow:
        return self.rows[-1]


@dataclass(frozen=True)
class Report:
    """What is printed or written."""

    title: str
    settings: dict[str, str]
    inspections: list[Inspection]

    @property
    def failed(self) -> list[int]:
        """The numbers of the responses whose check failed."""
        return [one.number for one in self.inspections if one.check.problems]


# --- choosing --------------------------------------------------------------------------------------------------------


def choose(run: Generations, index: int | None, query: str | None, limit: int, path: str | Path) -> list[int]:
    """Row `index` (from 1), or the rows whose query contains `query`, or all; `limit` of them at most. -> rows, from 0.

    Raises UserError if there is none, and for a text that no tokenizer can read.
    """
    for row, texts in enumerate(zip(run.queries, run.generations, strict=True), start=1):
        if not all(map(is_text, texts)):
            raise UserError(f"{path}, row {row} holds half of a surrogate pair, which is no character; fix the row")
    if index is not None:
        if not 1 <= index <= len(run.queries):
            raise UserError(f"--index {index}: {path} holds the generations 1 to {len(run.queries)}")
        return [index - 1]
    found = [row for row, text in enumerate(run.queries) if query is None or query in text]
    if not found:
        raise UserError(f"no query in {path} contains the text of --query; give a part of one as the file has it")
    return found[:limit]


def recorded_metrics(run: Generations, row: int) -> dict[str, float]:
    """The finite metrics that the file has of one row, by their keys in the file."""
    values = {name: float(column[row]) for name, column in run.metrics.items()}
    return {name: value for name, value in values.items() if math.isfinite(value)}


# --- scoring ---------------------------------------------------------------------------------------------------------


def response_ids(tokenizer: PreTrainedTokenizerBase, text: str, recorded_length: float | None = None) -> list[int]:
    """The tokens of a text, and EOS behind them.

    EOS is left out if `recorded_length` counts no EOS: the response reached the length limit.
    """
    ids = list(tokenizer(text_target=text, add_special_tokens=False, verbose=False)["input_ids"])
    if tokenizer.eos_token_id is not None and (not ids or recorded_length != len(ids)):
        ids.append(tokenizer.eos_token_id)
    return ids


def shown_tokens(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> tuple[list[str], str]:
    """What each token shows, and the text that they decode to. T ids -> T strings.

    Its own characters. The token's name if it has none, or shares a character with the token before.
    """
    from ...tasks.spans import token_offsets

    text, offsets = token_offsets(tokenizer, ids)
    shown, reached = [], 0
    for id, (start, end) in zip(ids, offsets, strict=True):
        own = start < end and start >= reached
        shown.append(visible(text[start:end] if own else str(tokenizer.convert_ids_to_tokens(id))))
        reached = max(reached, end)
    return shown, text


def visible(text: str) -> str:
    """`text` with line breaks, tabs and control characters as signs, so that none acts on a terminal."""
    text = text.replace("\n", "↵").replace("\t", "⇥")
    return "".join(char if char.isprintable() else "�" for char in text)


def place_rewards(rewards: list[Tensor]) -> Tensor:
    """What PPO pays to each column of the padded batch, by the trainer's own placement. B x (T_i,) -> (B, max T)."""
    import torch

    from trl.ppo_math import place_scores

    lengths = torch.tensor([len(row) for row in rewards])
    mask = torch.arange(int(lengths.max()))[None, :] < lengths[:, None]
    return place_scores(rewards, mask)


def inspect_generations(
    run: Generations,
    rows: list[int],
    examples: list[dict],
    tokenizer: PreTrainedTokenizerBase,
    scorer: Scorer,
    recipe: RewardRecipe,
    batch_size: int,
) -> list[Inspection]:
    """Score responses as training would, all in one padded batch, and check the place of each reward.

    rows: which of the run, counted from 0. examples: the data row of each. batch_size: responses that are scored before
    the progress bar moves.
    """
    import torch
    from tqdm.auto import tqdm

    from ...rewards import aspect_rewards, aspects_of, combine, weigh_aspects, without_group
    from ...scoring import measure, metrics_of
    from ...types import Rollout

    queries, texts = [run.queries[row] for row in rows], [run.generations[row] for row in rows]
    recorded = [recorded_metrics(run, row) for row in rows]
    lengths = [metrics.get(LENGTH) for metrics in recorded]
    all_ids = [response_ids(tokenizer, *one) for one in zip(texts, lengths, strict=True)]
    scored = []
    with tqdm(total=len(rows), desc="scoring", unit="response", leave=False, delay=3, disable=None) as progress:
        for start in range(0, len(rows), batch_size):
            part = slice(start, start + batch_size)
            rollout = Rollout(
                query_ids=[],  # nothing that measures reads them
                response_ids=[torch.tensor(ids) for ids in all_ids[part]],
                queries=queries[part],
                responses=texts[part],
                examples=examples[part],
                too_short=torch.tensor([not text.strip() for text in texts[part]]),
            )
            measured = without_group(measure(rollout, scorer, scorer.aspects), recipe)
            payment = combine(measured, recipe.alone)
            metrics = metrics_of(measured, payment)
            shaped = {
                name: aspect_rewards(score, measured.lengths, recipe.shaping, recipe.placement)
                for name, score in measured.aspects.items()
            }
            paid = aspects_of(measured, recipe.alone)
            weights = torch.tensor([[recipe.paid[name] for name in paid]], dtype=torch.float64)
            sums = weigh_aspects(paid, weights.expand(len(rollout.responses), -1), measured.lengths)
            shared = weigh_aspects(paid, weights * payment.share, measured.lengths)
            for k in range(len(rollout.responses)):
                scored.append(
                    Scored(
                        reward=payment.rewards[k],
                        gate=payment.gate[k].item(),
                        shared=shared[k],
                        holistic_share=payment.holistic_share[k].item(),
                        response=0.0 if payment.response is None else payment.response[k].item(),
                        h=payment.h[k].item(),
                        raw=measured.holistic[k].item(),
                        aspects={name: rows[k] for name, rows in shaped.items()},
                        aspect_sum=sums[k],
                        metrics={name: values[k] for name, values in metrics.items()},
                    )
                )
            progress.update(len(rollout.responses))

    placed = place_rewards([one.reward for one in scored])
    return [
        _inspect_one(run, row, ids, tokenizer, scorer.task, recipe, *found)
        for row, ids, *found in zip(rows, all_ids, scored, placed, strict=True)
    ]


@dataclass(frozen=True)
class Scored:
    """One response as training would score and pay it."""

    reward: Tensor  # (T,) what PPO is given
    gate: float
    shared: Tensor  # (T,) the aspects, weighed, times the shares that a combiner decided
    holistic_share: float  # of w_h * h that a combiner decided
    response: float  # what a combiner pays on the last token for the whole response
    h: float
    raw: float
    aspects: dict[str, Tensor]  # name -> (T,) shaped, not weighed
    aspect_sum: Tensor  # (T,) weighed, before any gate
    metrics: dict[str, float | None]


def _inspect_one(
    run: Generations,
    row: int,
    ids: list[int],
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    recipe: RewardRecipe,
    found: Scored,
    placed: Tensor,
) -> Inspection:
    """row: of the run. placed: (M,) what one row of the padded batch is paid, M >= T."""
    import torch

    from ...rewards import normalise_holistic

    answer, recorded = run.generations[row], recorded_metrics(run, row)
    tokens, text = shown_tokens(tokenizer, ids)
    too_short = not answer.strip()
    recipe = recipe.alone
    decision = decide(found.gate, found.h, too_short, recipe, found.holistic_share)
    rows = []
    for name, rewards in found.aspects.items():
        weight = recipe.weights[name]
        unused = recipe.length_mean is not None or weight == 0
        rows.append(TokenRow(name, f"weight {weight:g}" + (", takes no part" if unused else ""), rewards.tolist()))
    total = found.aspect_sum
    if recipe.length_mean is not None:
        rows.append(TokenRow("length reward", f"{len(ids)} / {recipe.length_mean:g}, for the aspects", total.tolist()))
    else:
        rows.append(TokenRow("aspect sum", "weighted" if decision.aspects else "weighted, left out", total.tolist()))
    rows.append(TokenRow("final reward", "what PPO is given", placed[: len(ids)].tolist()))

    check = check_rewards(
        placed,
        tokens,
        found.shared if decision.own else total * decision.aspects if decision.aspects else torch.zeros(len(ids)),
        found.response + (decision.holistic * recipe.holistic_weight * found.h if decision.holistic else 0.0),
    )
    notes = []
    if text != answer:
        notes.append(
            "the tokens decode to another text than the recorded one; the aspects were scored on the decoded text"
        )
    if tokenizer.eos_token_id is not None and ids[-1] != tokenizer.eos_token_id:
        notes.append("no EOS: by the recorded response_length, the response reached the length limit")

    keys = {metric.name: metric.key for metric in task.metrics}
    metrics = {keys.get(name, name): value for name, value in found.metrics.items() if value is not None}
    # a file holds the model's own score of an empty answer; -10 belongs to training
    raw = torch.tensor([found.raw - (recipe.level if recipe.baseline == "group" else 0.0)])
    (own,) = normalise_holistic(raw, recipe.holistic_mean, recipe.holistic_std, torch.tensor([False]))
    metrics["holistic_reward"] = own.item()
    if undefined := [name for name, value in metrics.items() if not math.isfinite(value)]:
        notes.append(f"not a finite number: {', '.join(undefined)}; look at the reward model")
    differences = compare_metrics(task, recorded, metrics, same_text=text == answer)
    compared = len(recorded.keys() & metrics.keys())
    return Inspection(
        row + 1, run.queries[row], tokens, found.raw, found.h, decision, rows, check, compared, differences, notes
    )


def decide(gate: float, h: float, too_short: bool, recipe: RewardRecipe, holistic_share: float = 1.0) -> Decision:
    """What the recipe lets into the reward of a response, in words.

    gate: the one that was paid by (Payment.gate). holistic_share: what another combiner than the paper's decided.
    """
    if too_short:
        return Decision(0.0, 1.0, "not used", f"no text: training sets h to {h:g} and leaves the aspects out")
    kind = recipe.reward_type
    if kind != "hierarchical":
        parts = {
            "holistic_only": (0.0, 1.0, "the aspects never count"),
            "aspect_only": (1.0, 0.0, "the aspects count, the holistic reward does not"),
            "weighted_sum": (1.0, 1.0, "both always count"),
        }
        if kind not in parts:
            words = f"reward type {kind}: the parts as its combiner decides"
            return Decision(1.0, holistic_share, "not used", words, own=True)
        aspects, holistic, words = parts[kind]
        return Decision(aspects, holistic, "not used", f"reward type {kind}: {words}")
    if gate == 0:
        return Decision(0.0, 1.0, "closed", f"h {h:+.4f} < threshold {recipe.threshold:g}: the aspects are left out")
    if gate == 1:
        return Decision(1.0, 1.0, "open", f"h {h:+.4f} >= threshold {recipe.threshold:g}: the aspects count")
    return Decision(1.0, 1.0, "undefined", f"h is {h}, which has no side of the threshold {recipe.threshold:g}")


# --- the check -------------------------------------------------------------------------------------------------------


def check_rewards(placed: Tensor, tokens: list[str], aspect_part: Tensor, holistic_part: float) -> Check:
    """Whether reward t is on token t: the aspect rewards everywhere, and the holistic one on the last token alone.

    placed: (M,) what one row of the padded batch is paid, M >= T. tokens: T. aspect_part: (T,) what the aspects should
    pay, zeros if they are left out. holistic_part: w_h h, or 0 if it is left out.
    """
    import torch

    length, aspects = len(tokens), aspect_part.double()
    due = torch.zeros(max(len(placed), length), dtype=torch.float64)
    due[:length] = aspects
    due[length - 1] += holistic_part
    found = torch.zeros_like(due)
    found[: len(placed)] = placed.double()
    if not (torch.isfinite(found).all() and torch.isfinite(due).all()):
        return Check("", ["a reward is not a finite number: look at the reward models"])
    slack = 1e-5 * max(1.0, due.abs().max().item())  # the rounding of float32

    def token(t: int) -> str:
        return f"token {t + 1} ({tokens[t].strip()!r})"

    problems = []
    wrong = ((found - due).abs() > slack).nonzero().flatten().tolist()
    if late := next((s for s in range(1, len(due)) if _is_late(found, due, s, slack)), None) if wrong else None:
        problems.append(
            f"all rewards lie {late} token{'s' * (late > 1)} late: aligned to the padded row of {len(due)}, not to the "
            f"response of {length}"
        )
    if lost := [t for t in wrong if t >= length]:
        paid = found[length:].sum().item()
        problems.append(f"{len(lost)} rewards, {paid:+.4f} in sum, lie on the padding after the response and are lost")
    misplaced = [t for t in wrong if t < length]
    for t in [t for t in misplaced if t == length - 1] + [t for t in misplaced if t < length - 1][:3]:
        part = f", {holistic_part:+.4f} of it holistic" if t == length - 1 and holistic_part else ""
        problems.append(f"{token(t)} gets {found[t].item():+.4f} instead of {due[t].item():+.4f}{part}")
    if problems:
        if len(misplaced) > 4:
            problems.append(f"{len(misplaced)} of {length} tokens get a wrong reward")
        return Check("", problems)

    fact = f"{length} tokens, {len(placed[:length])} rewards, none on padding"
    beyond = ((found[:length] - aspects).abs() > slack).nonzero().flatten().tolist()
    fact += f"; the holistic part is on {', '.join(map(token, beyond))}, the last" if beyond else "; no holistic part"
    total, holistic, rest = found.sum().item(), (found[:length] - aspects).sum().item(), aspects.sum().item()
    return Check(f"{fact}; sum {total:+.4f} = {holistic:+.4f} holistic {rest:+.4f} aspects", [])


def _is_late(found: Tensor, due: Tensor, shift: int, slack: float) -> bool:
    """Whether `found` is `due` moved `shift` columns to the right, and not just empty."""
    moved = due.roll(shift)
    moved[:shift] = 0
    return bool(moved.abs().max() > slack) and bool(((found - moved).abs() <= slack).all())


# --- the comparison with what was recorded ---------------------------------------------------------------------------

RETOKENISED = "can come from tokenising again, or from another --policy_ckpt"
HOLISTIC_DEPENDS_ON = "--holistic_model, --ultra_mean, --ultra_std, --dtype"


def compare_metrics(
    task: Task, recorded: dict[str, float], here: dict[str, float], same_text: bool
) -> list[Difference]:
    """The recorded metrics from which those computed `here` differ by more than 0.001, in the order of the file.

    same_text: the tokens decode to the recorded text.
    """
    same_length = recorded.get(LENGTH) == here.get(LENGTH)
    of_aspects = {metric.key: metric for metric in task.metrics}
    found = []
    for name in [name for name in recorded if name in here]:
        if abs(recorded[name] - here[name]) <= TOLERANCE:
            continue
        metric = of_aspects.get(name)
        counts_tokens = name == LENGTH or (metric is not None and metric.differs_by == "tokens")
        # aspects read the text that the tokens decode to
        explained = (counts_tokens and not same_length) or (metric is not None and not same_text)
        if explained:
            reason = RETOKENISED
        elif name == LENGTH:
            reason = "look at --policy_ckpt"
        elif metric is None:
            reason = f"look at {HOLISTIC_DEPENDS_ON}"
        else:
            reason = f"look at {metric.depends_on or f'the function of the aspect, which gave another {name}'}"
        found.append(Difference(name, recorded[name], here[name], explained, reason))
    return found


def summary(report: Report) -> list[str]:
    """What holds of all responses together: the check, then the recorded metrics."""
    count, failed = len(report.inspections), report.failed
    lines = [f"check: every reward is on its token, in all {count} responses"]
    if failed:
        named = ", ".join(map(str, failed[:10])) + (", ..." if len(failed) > 10 else "")
        lines = [f"CHECK FAILED in {len(failed)} of {count} responses: {named}"]
    compared = sum(one.compared for one in report.inspections)
    differences = [difference for one in report.inspections for difference in one.differences]
    if compared and not differences:
        lines.append(f"recorded metrics: all {compared} values are the same here, within {TOLERANCE:g}")
    for metric in dict.fromkeys(difference.metric for difference in differences):
        mine = [difference for difference in differences if difference.metric == metric]
        largest = max(abs(difference.recorded - difference.here) for difference in mine)
        reasons = dict.fromkeys(d.reason for d in sorted(mine, key=lambda d: d.retokenised))
        lines.append(
            f"recorded {metric} differs in {len(mine)} of {count} responses, by {largest:.4g} at most: "
            + "; ".join(reasons)
        )
    return lines
