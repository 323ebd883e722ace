"""eval/inspect_rewards.py: the check finds rewards that are out of place; the script shows what training would pay."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from e2e.conftest import make_world
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from alarm import Aspect, Metric, Task
from alarm.evaluation.generations import Generations
from alarm.evaluation.inspection import show as inspection_report
from alarm.evaluation.inspection.inspect import (
    Report,
    check_rewards,
    compare_metrics,
    decide,
    inspect_generations,
    place_rewards,
    response_ids,
    shown_tokens,
    summary,
)
from alarm.evaluation.inspection.show import html_report, print_report, signed, strength
from alarm.rewards import RewardRecipe, open_gate
from alarm.scoring import Scorer
from alarm.tasks.mt.spec import TASK as MT
from helpers import CHECKPOINTS, ROOT, load_script

SCRIPT = ROOT / "eval" / "inspect_rewards.py"
PROMPT = "translate Spanish to English: "


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("inspect_world"))


@pytest.fixture(scope="session")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(CHECKPOINTS / "tiny-t5")


@pytest.fixture(scope="session")
def byte_level():
    """A tokenizer that knows every byte."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(CHECKPOINTS / "tiny-rel_rm")


@pytest.fixture
def inspect(fresh_accelerate):
    """main() of eval/inspect_rewards.py."""
    return load_script("eval/inspect_rewards.py").main


def published_placement(scores, mask):
    """The published defect: each reward vector at the right end of the padded row."""
    placed = torch.zeros(mask.shape)
    for row, score in zip(placed, scores, strict=True):
        row[len(row) - len(score) :] = score
    return placed


# --- the check -------------------------------------------------------------------------------------------------------


def test_a_reward_on_its_token_by_hand():
    # aspects 0, 0.5, 0, 0.25; w_h h = 2.5 on the last of 4 tokens; one column of padding
    check = check_rewards(
        torch.tensor([0, 0.5, 0, 2.75, 0]), ["a", " b", ".", "</s>"], torch.tensor([0, 0.5, 0, 0.25]), 2.5
    )
    assert check.problems == []
    assert check.fact == (
        "4 tokens, 4 rewards, none on padding; the holistic part is on token 4 ('</s>'), the last; "
        "sum +3.2500 = +2.5000 holistic +0.7500 aspects"
    )


def test_the_published_defect_is_named():
    # the same rewards, right-aligned to a row of 6: token 4 gets 0.5, and the rest is lost behind it
    placed = published_placement([torch.tensor([0, 0.5, 0, 2.75])], torch.ones(1, 6))[0]
    assert placed.tolist() == [0, 0, 0, 0.5, 0, 2.75]
    check = check_rewards(placed, ["a", " b", ".", "</s>"], torch.tensor([0, 0.5, 0, 0.25]), 2.5)
    assert check.fact == ""
    expected = [
        ("2 tokens late", "6", "4"),
        ("+2.7500", "padding"),
        ("token 4 ('</s>')", "+0.5000", "+2.7500", "+2.5000 of it holistic"),
        ("token 2 ('b')", "+0.0000", "+0.5000"),
    ]
    for problem, parts in zip(check.problems, expected, strict=True):
        assert all(part in problem for part in parts), problem


@pytest.mark.parametrize(
    ("placed", "problem"),
    [
        ([0, 0.5, 0, 0.25], "token 4 ('d') gets +0.2500 instead of +2.7500"),
        ([2.5, 0.5, 0, 0.25], "token 1 ('a') gets +2.5000 instead of +0.0000"),
        ([0, 0.5, 0, 2.75, 1], "+1.0000 in sum"),
        ([0, 0.5, 0, 2.751], "gets +2.7510 instead of +2.7500"),
        ([0, 0.5, 0], "token 4 ('d') gets +0.0000"),
        ([0, 0.5, 0, float("nan")], "not a finite number"),
    ],
)
def test_other_misplacements(placed, problem):
    check = check_rewards(torch.tensor(placed), list("abcd"), torch.tensor([0, 0.5, 0, 0.25]), 2.5)
    assert any(problem in found for found in check.problems), check.problems


numbers = st.floats(-3, 3, width=32).map(lambda x: 0.0 if abs(x) < 0.01 else x)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.lists(numbers, min_size=1, max_size=7), numbers), min_size=1, max_size=5),
)
def test_ragged_batches_pass_and_right_aligned_ones_do_not(batch):
    aspects = [torch.tensor(values) for values, _ in batch]
    rewards = [row.clone() for row in aspects]
    for reward, (_, holistic) in zip(rewards, batch, strict=True):
        reward[-1] += holistic
    width = max(map(len, rewards))
    placed = place_rewards(rewards)
    moved = published_placement(rewards, torch.ones(len(rewards), width))
    assume(all(reward.abs().sum() > 0.005 for reward in rewards))
    for k, (values, holistic) in enumerate(batch):
        tokens = ["x"] * len(values)
        assert check_rewards(placed[k], tokens, aspects[k], holistic).problems == []
        late = check_rewards(moved[k], tokens, aspects[k], holistic).problems
        # a vector of one value throughout still leaves its tokens for the padding
        assert bool(late) == (len(values) < width)


@pytest.mark.parametrize(
    ("kind", "h", "empty", "expected"),
    [
        ("hierarchical", 0.6, False, (True, True, "open")),
        ("hierarchical", 0.59, False, (False, True, "closed")),
        ("hierarchical", math.nan, False, (True, True, "undefined")),
        ("hierarchical", -10.0, True, (False, True, "not used")),
        ("holistic_only", 0.6, False, (False, True, "not used")),
        ("aspect_only", 0.0, False, (True, False, "not used")),
        ("aspect_only", -10.0, True, (False, True, "not used")),
        ("weighted_sum", 0.0, False, (True, True, "not used")),
    ],
)
def test_the_decision(kind, h, empty, expected):
    gate = open_gate(torch.tensor([h]), torch.tensor([empty]), 0.6).item()
    decision = decide(gate, h, empty, RewardRecipe(kind, 0.6, 5.0))
    assert (decision.aspects, decision.holistic, decision.gate) == expected
    assert kind in decision.why or "threshold 0.6" in decision.why or "no text" in decision.why


# --- tokens and recorded metrics -------------------------------------------------------------------------------------


def test_eos_is_a_token_unless_the_record_says_otherwise(tokenizer):
    ids = response_ids(tokenizer, "The sky is blue.")
    assert ids == tokenizer("The sky is blue.")["input_ids"]
    assert response_ids(tokenizer, "The sky is blue.", len(ids)) == ids
    assert response_ids(tokenizer, "The sky is blue.", len(ids) - 1) == ids[:-1]  # it ran into the limit
    assert response_ids(tokenizer, "", 0) == [tokenizer.eos_token_id]
    shown, text = shown_tokens(tokenizer, ids)
    assert (shown[-1], text) == ("</s>", "The sky is blue.")
    assert "".join(shown[:-1]) == text


def test_recorded_metrics():
    recorded = {"holistic_reward": 0.5, "response_length": 8.0, "error_rate": 0.25, "grammar_errors": 2.0}
    assert compare_metrics(MT, recorded, recorded | {"holistic_reward": 0.5009, "unknown": 1.0}, True) == []
    assert compare_metrics(MT, {}, recorded, True) == []
    found = compare_metrics(MT, recorded, recorded | {"holistic_reward": 0.502}, True)
    assert [(d.metric, d.retokenised) for d in found] == [("holistic_reward", False)]
    assert "--ultra_mean" in found[0].reason
    # two tokens more: the rate of errors per token moves with them, the number of errors does not
    moved = compare_metrics(
        MT, recorded, recorded | {"response_length": 10, "error_rate": 0.2, "grammar_errors": 3}, True
    )
    assert {d.metric: d.retokenised for d in moved} == {
        "response_length": True,
        "error_rate": True,
        "grammar_errors": False,
    }
    (nan,) = compare_metrics(MT, {"holistic_reward": 0.5}, {"holistic_reward": float("nan")}, True)
    assert not nan.retokenised


def test_short_numbers_and_strengths():
    assert [signed(x) for x in (0.6225, -12.34, 0, 4e-4, 1e-9)] == ["+0.62", "-12.3", "0", "+4e-04", "0"]
    assert [strength(x) for x in (0.05, -0.1, 0.3, -2.9, 3, -50)] == [1, 2, 3, 4, 5, 5]


# --- one response, by hand -------------------------------------------------------------------------------------------

TEXTS = ["The sky is blue.", "<script>alert('[bold]x[/bold] & y')</script>", "\x1b[31m It is.", ""]
RAW = [-1.0, -4.0, 1.0, 2.0]


FIRST = Aspect(
    "first",
    lambda prompts, answers, rows: [[(0, 1, 0.5)] if answer else [] for answer in answers],
    metrics=[Metric("factuality_rate", value=lambda spans: 0.5)],
)
LAST = Aspect("last", lambda prompts, answers, rows: [-0.25] * len(answers))
TOY = Task("toy", prompt=str, aspects=[FIRST, LAST])


def toy_scorer(tokenizer) -> Scorer:
    """Aspect "first" pays 0.5 on the first token, "last" -0.25 on the last."""

    def holistic(rollout):
        return torch.tensor([RAW[TEXTS.index(response)] for response in rollout.responses])

    return Scorer(holistic, {aspect.name: aspect.load(None) for aspect in TOY.aspects}, TOY, tokenizer)


def toy_recipe(kind: str, **changes) -> RewardRecipe:
    """h = (raw + 4) / 2; "last" weighs 2."""
    recipe = {"threshold": 1.0, "holistic_weight": 3.0, "weights": {"first": 1.0, "last": 2.0}}
    return RewardRecipe(kind, **recipe | {"holistic_mean": -4.0, "holistic_std": 2.0} | changes)


def toy_report(tokenizer, kind: str = "hierarchical", **changes) -> Report:
    recorded = {"holistic_reward": [1.5, 0.7, math.nan, 3], "factuality_rate": [0.5, *[math.nan] * 3]}
    queries = [f"prompt {n} <i>&" for n in range(1, 5)]
    run = Generations("a", queries, TEXTS, {name: np.array(values) for name, values in recorded.items()})
    recipe = toy_recipe(kind, **changes)
    found = inspect_generations(run, [0, 1, 2, 3], [{}] * 4, tokenizer, toy_scorer(tokenizer), recipe, batch_size=3)
    return Report("runs/a<b>.json", {"reward": kind}, found)


def test_rewards_by_hand(byte_level):
    open_, closed, third, empty = toy_report(byte_level).inspections
    # h = (-1 + 4) / 2 = 1.5 >= 1: 3 * 1.5 - 2 * 0.25 on the last token, 0.5 on the first
    assert (open_.raw, open_.h, open_.decision.gate) == (-1, 1.5, "open")
    assert [row.name for row in open_.rows] == ["first", "last", "aspect sum", "final reward"]
    middle = [0.0] * (len(open_.tokens) - 2)
    assert [row.values for row in open_.rows] == [
        [0.5, *middle, 0],
        [0, *middle, -0.25],
        [0.5, *middle, -0.5],
        [0.5, *middle, 4],
    ]
    assert open_.final.total == 4.5
    assert open_.differences == []
    assert open_.compared == 2
    # h = 0 < 1: nothing but 3 * 0
    assert (closed.h, closed.decision.gate, closed.final.total) == (0, "closed", 0)
    assert [d.metric for d in closed.differences] == ["holistic_reward"]
    assert third.final.total == 0.5 - 0.5 + 3 * 2.5
    # an empty answer is trained with h = -10; its recorded score is the model's own: (2 + 4) / 2
    assert (empty.tokens, empty.h, empty.final.values) == (["</s>"], -10, [-30])
    assert empty.differences == []
    assert not toy_report(byte_level).failed


def test_the_level_of_groups_takes_the_place_of_a_mean(byte_level):
    """h = (raw - level - mean) / std: a level of -3 and a mean of -1 are the mean of -4 above."""
    by_hand = toy_report(byte_level).inspections
    found = toy_report(byte_level, baseline="group", level=-3.0, holistic_mean=-1.0).inspections
    assert [(one.raw, one.h, one.final.values) for one in found] == [
        (one.raw, one.h, one.final.values) for one in by_hand
    ]
    assert found[0].differences == found[3].differences == []


def test_length_reward_by_hand(byte_level):
    one = toy_report(byte_level, "aspect_only", length_mean=4.0).inspections[0]
    count = len(one.tokens)
    assert [row.name for row in one.rows] == ["first", "last", "length reward", "final reward"]
    assert one.final.values == [0.0] * (count - 1) + [count / 4]
    assert one.check.problems == []


def test_the_published_placement_is_flagged_on_screen_and_page(byte_level, monkeypatch):
    monkeypatch.setattr("trl.ppo_math.place_scores", published_placement)
    report = toy_report(byte_level)
    lengths = [len(one.tokens) for one in report.inspections]
    # the longest response loses nothing; the second one's rewards are zeros
    assert report.failed == [1, 3, 4]
    assert lengths[1] == max(lengths)
    assert f"all rewards lie {lengths[1] - 1} tokens late" in report.inspections[3].check.problems[0]
    assert summary(report)[0] == "CHECK FAILED in 3 of 4 responses: 1, 3, 4"
    assert screen(report).count("CHECK FAILED") >= 7
    assert html_report(report).count('<p class="bad">CHECK FAILED') == 4


# --- on the screen and as a page -------------------------------------------------------------------------------------


def screen(report: Report, **kwargs) -> str:
    out = StringIO()
    print_report(report, Console(file=out, markup=False, emoji=False, highlight=False, **({"width": 100} | kwargs)))
    return out.getvalue()


@pytest.mark.parametrize("width", [100, 60])
def test_plain_screen(byte_level, width):
    text = screen(toy_report(byte_level), width=width)
    assert "\x1b" not in text
    assert max(cell_len(line) for line in text.splitlines()) <= width
    assert "[</s> +4.00]" in text and "[</s> -0.25]" in text
    assert "[bold]x[/bold]" in text  # text, not markup
    assert "closed: h +0.0000 < threshold 1: the aspects are left out" in " ".join(text.split())


def test_a_reward_that_most_tokens_have_is_said_once():
    rows = inspection_report.token_text(
        ["a", " b", " c", "</s>"], [0.5, 0.25, 0.5, 0.5], inspection_report.usual_value([0.5, 0.25, 0.5, 0.5])
    )
    assert rows.plain == "a [b +0.25] c</s>"
    assert inspection_report.usual_value([0, 0, 0, 0.5]) is None


def test_colours_on_a_terminal(byte_level):
    text = screen(toy_report(byte_level), force_terminal=True, color_system="truecolor")
    orange, blue = "48;2;229;131;42", "48;2;189;216;243"  # background of +4 is the strongest; -0.25 the second blue
    assert "48;2;169;79;0" in text and blue in text and orange not in text


class Page(HTMLParser):
    """Checks that tags are balanced, and collects what is needed."""

    VOID = ("meta", "br")

    def __init__(self, text: str):
        super().__init__()
        self.open, self.tags, self.spans, self.blocks = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)
        if "tokens" in (dict(attrs).get("class") or "").split():
            self.blocks.append([])
        if tag == "span" and "title" in dict(attrs):
            self.blocks[-1].append([dict(attrs), ""])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "span" and self.blocks:
            self.blocks[-1][-1][1] += data


def test_page(byte_level):
    report = toy_report(byte_level)
    text = html_report(report)
    page = Page(text)
    # nothing runs and nothing is fetched
    assert not {tag for tag, _ in page.tags} & {"script", "img", "link", "iframe", "i"}
    assert "http" not in text and "url(" not in text and "\x1b" not in text
    assert all(attrs["href"].startswith("#r") for tag, attrs in page.tags if tag == "a")
    assert "prefers-color-scheme: dark" in text
    # one block of tokens a row, in order, each token a span with its reward
    rows = [(one, row) for one in report.inspections for row in one.rows]
    assert len(page.blocks) == len(rows) == 16
    for block, (one, row) in zip(page.blocks, rows, strict=True):
        assert [token for _, token in block] == one.tokens
        values = [float(attrs["title"].split(": ")[1]) for attrs, _ in block]
        assert values == pytest.approx(row.values, rel=1e-5)
        assert [attrs.get("class", "-")[:3] for attrs, _ in block] == [
            "v p" if value > 0 else "v n" if value < 0 else "-" for value in row.values
        ]
    assert page.blocks[3][-1][0] == {
        "class": "v p p5",
        "data-v": "+4.00",
        "title": f"{len(report.inspections[0].tokens)} of {len(report.inspections[0].tokens)}: +4",
    }


# --- the script ------------------------------------------------------------------------------------------------------


def run_script(*words, timeout: int = 120) -> subprocess.CompletedProcess:
    environment = {key: value for key, value in os.environ.items() if key not in ("FORCE_COLOR", "RANK")}
    command = [sys.executable, str(SCRIPT), *map(str, words)]
    return subprocess.run(
        command, capture_output=True, text=True, encoding="utf-8", env=environment, timeout=timeout, check=False
    )


def answers(world) -> list[dict]:
    texts = ["The sky is blue, and the sea is as blue as it has ever been. It is late!", "No.", "Nobody knows <that>."]
    return [{"query": row["text"], "generation": text} for row, text in zip(world.rows("test"), texts, strict=False)]


@pytest.fixture
def generations(world, tmp_path) -> Path:
    path = tmp_path / "generations.json"
    path.write_text(json.dumps(answers(world)))
    return path


def test_qa_script(world, generations, tmp_path):
    page = tmp_path / "new" / "page.html"
    flags = ["--task_type", "qa", *world.flags, "--sigmoid_shaping", "--html", page]
    done = run_script("--generations", generations, *flags)
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    assert max(cell_len(line) for line in done.stdout.splitlines() if not line.startswith("wrote")) <= 100
    assert "check: every reward is on its token, in all 3 responses" in done.stdout
    assert "tokenised again" in done.stdout
    assert done.stdout.count("final reward (what PPO is given)") == 3
    assert len(Page(page.read_text()).blocks) == 3 * 5


def test_mt_script(tmp_path):
    shutil.copytree(CHECKPOINTS / "tiny-mt5", tmp_path / "policy")
    shutil.copytree(CHECKPOINTS / "tiny-ultrarm", tmp_path / "holistic")
    rows = [("Ella tiene dos hermanos.", "She have two brothers."), ("El cielo es azul.", "The sky is blue.")]
    rows = [
        {"query": PROMPT + es, "generation": en, "grammar_errors": n} for (es, en), n in zip(rows, (1, 7), strict=True)
    ]
    (tmp_path / "g.json").write_text(json.dumps(rows))
    flags = ["--policy_ckpt", tmp_path / "policy", "--holistic_model", tmp_path / "holistic", "--dtype", "float32"]
    flags += ["--grammar_backend", "rules", "--reward_type", "weighted_sum", "--ultra_mean", "-1", "--lr", "1e-3"]
    done = run_script("--task_type", "mt", "--generations", tmp_path / "g.json", *flags)
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.split())
    # "She have" is an error: -1 on each of its tokens, and nothing else
    assert "grammar (weight 1), total -4.00 [S -1.00][h -1.00][e -1.00] [have -1.00] two brothers.</s>" in said
    assert "h = (raw + 1) / 2.94628" in said
    assert "recorded grammar_errors differs in 1 of 2 responses, by 7 at most: look at --grammar_backend" in said
    assert "GRAMMAR STAND-IN" in done.stderr


def test_what_train_ppo_recorded_comes_out_again(world, inspect, tmp_path, capsys):
    from helpers import forget_accelerate

    out = tmp_path / "generations.json"
    load_script("long-form-QA/train_ppo.py").main(
        [*world.flags, "--test", "--test_do_sample", "--save_dir", str(out), "--sigmoid_shaping"]
    )
    forget_accelerate()
    capsys.readouterr()
    flags = ["--task_type", "qa", *world.flags, "--sigmoid_shaping", "--generations", str(out)]
    inspect(flags)
    said = capsys.readouterr().out
    assert "every reward is on its token, in all 10 responses" in said
    assert sum(row["generation"].strip() != "" for row in json.loads(out.read_text())) > 5
    for metric in ("holistic_reward", "completeness_reward"):
        assert f"recorded {metric} differs" not in said

    forget_accelerate()
    inspect([*flags, "--ultra_mean", "0.5"])
    said = " ".join(capsys.readouterr().out.split())
    assert "recorded holistic_reward differs in 10 of 10 responses, by 0.5 at most: look at --holistic_model" in said


def test_a_single_answer_and_a_failed_check(world, inspect, capsys, monkeypatch):
    row = world.rows("test")[0]
    single = ["--task_type", "qa", *world.flags, "--query", row["text"], "--generation", "No. It is late."]
    inspect(single)
    said = capsys.readouterr().out
    assert "one generation" in said and "in all 1 responses" in said

    def lost(scores, mask):
        return torch.zeros(mask.shape)

    monkeypatch.setattr("trl.ppo_math.place_scores", lost)
    with pytest.raises(SystemExit) as stopped:
        inspect([*single[:-4], "--query", "a new prompt", "--question", "who?", "--generation", "No. It is late."])
    assert stopped.value.code == 1
    found = capsys.readouterr()
    assert "CHECK FAILED in 1 of 1 responses" in found.out
    assert "error: rewards are not on their tokens in 1 responses" in found.err


def test_selection(world, inspect, generations, capsys):
    flags = ["--task_type", "qa", *world.flags, "--generations", str(generations)]
    inspect([*flags, "--index", "2"])
    said = capsys.readouterr().out
    assert "1 of 3 generations" in said and "response 2" in said and "response 1" not in said
    inspect([*flags, "--query", answers(world)[2]["query"][:40]])
    said = capsys.readouterr().out
    assert "response 3" in said and "response 2" not in said
    inspect([*flags, "--limit", "2"])
    assert "2 of 3 generations" in capsys.readouterr().out


def edit(change):
    """A spoiled generations file."""

    def apply(path: Path) -> None:
        rows = json.loads(path.read_text())
        change(rows)
        path.write_text(json.dumps(rows))

    return apply


BAD_FILES = {
    "missing": (lambda path: path.unlink(), "does not exist"),
    "malformed": (lambda path: path.write_text('[{"query'), "is not JSON"),
    "another layout": (edit(lambda rows: rows[1].pop("generation")), "row 2 has no 'generation'"),
    "no text": (edit(lambda rows: rows[1].update(generation=None)), "'generation' is NoneType"),
    "half a character": (edit(lambda rows: rows[1].update(generation="\ud800")), "row 2 holds half of"),
    "the other task's": (edit(lambda rows: rows[0].update(grammar_errors=1)), "give --task_type mt"),
    "an unknown query": (
        edit(lambda rows: rows[1].update(query="other")),
        "prompt 'other' (1 of 3",
    ),
}
BAD_FLAGS = {
    "index out of range": (["--index", "4"], "holds the generations 1 to 3"),
    "no such query": (["--query", "nobody asked"], "no query in"),
    "two sources": (["--generation", "x"], "give --generations FILE, or"),
    "two selections": (["--index", "1", "--query", "x"], "--index picks"),
    "question of a file": (["--question", "x"], "--question goes with --generation"),
    "examples": (["--examples", "nowhere.json"], "nowhere.json does not exist"),
    "page exists": (["--html", "PAGE"], "or --overwrite to replace it"),
    "page is a folder": (["--html", "."], "is a folder"),
    "overwrite alone": (["--overwrite"], "--overwrite goes with --html"),
    "no policy": (["--policy_ckpt", "./nowhere"], "--policy_ckpt: there is no folder"),
    "no holistic model": (["--holistic_model", "./nowhere"], "--holistic_model: there is no folder"),
    "no reward models": (["--reward_model_dir", "./nowhere"], "does not exist; put the checkpoint there"),
    "no splitter": (["--splitter", "absent"], "is not installed"),
}


def refused(inspect, words, capsys, monkeypatch) -> str:
    """The one line that a refused call prints, before a model loads."""

    def load(*args, **kwargs):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("alarm.training.policy.load_tokenizer", load)
    with pytest.raises(SystemExit) as stopped:
        inspect([str(word) for word in words])
    assert stopped.value.code == 2
    found = capsys.readouterr()
    assert found.out == "" and found.err.startswith("error: ") and found.err.count("\n") == 1
    return found.err


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files(case, world, inspect, generations, capsys, monkeypatch):
    spoil, message = BAD_FILES[case]
    spoil(generations)
    flags = ["--task_type", "qa", *world.flags, "--generations", generations]
    assert message in refused(inspect, flags, capsys, monkeypatch)


@pytest.mark.parametrize("case", BAD_FLAGS)
def test_bad_flags(case, world, inspect, generations, capsys, monkeypatch, tmp_path):
    words, message = BAD_FLAGS[case]
    page = tmp_path / "page.html"
    page.write_text("mine")
    words = [str(page) if word == "PAGE" else word for word in words]
    flags = ["--task_type", "qa", *world.flags, "--generations", generations, *words]
    assert message in refused(inspect, flags, capsys, monkeypatch)
    assert page.read_text() == "mine"


def test_a_server_that_is_not_there(inspect, generations, world, capsys, monkeypatch):
    flags = ["--task_type", "mt", "--policy_ckpt", world.folder / "policy"]
    flags += ["--holistic_model", world.folder / "holistic", "--generations", generations]
    message = refused(inspect, [*flags, "--grammar_server", "http://127.0.0.1:9"], capsys, monkeypatch)
    assert "127.0.0.1:9" in message


def test_an_unknown_flag_is_refused(generations):
    done = run_script("--task_type", "qa", "--generations", generations, "--wrel", "1")
    assert done.returncode == 2
    assert "unrecognized arguments: --wrel 1" in done.stderr


def test_help_and_bad_flags_import_no_torch():
    code = (
        "import runpy, sys; sys.argv = ['inspect_rewards.py', *sys.argv[1:]]\n"
        f"try: runpy.run_path({str(SCRIPT)!r}, run_name='__main__')\n"
        "except SystemExit as stopped: assert stopped.code == int(sys.argv.pop()), stopped.code\n"
        "assert not {'torch', 'transformers', 'datasets', 'spacy'} & set(sys.modules), 'heavy import'"
    )
    for words in (["--help", "0"], ["--task_type", "qa", "--generations", "nowhere.json", "--limit", "2"]):
        done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
