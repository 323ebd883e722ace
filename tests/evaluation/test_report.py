"""Tables, figures and pages of a comparison and of a selection: cells by hand, nothing cut, nothing unescaped."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

from alarm.common.console import Column, Section, Table, print_table
from alarm.common.errors import UserError
from alarm.evaluation.compare import Comparison, JudgeRates, compare
from alarm.evaluation.generations import Generations
from alarm.evaluation.judge.judge import Judgement
from alarm.evaluation.report import report
from alarm.evaluation.report.answers import answers_data
from alarm.evaluation.report.figures import (
    WIN_COLOURS,
    bin_edges,
    distribution_figure,
    ink_on,
    luminance,
    short_names,
    win_rate_figure,
)
from alarm.evaluation.report.report import Setup, print_results, print_selection, write_report, write_selection_report
from alarm.evaluation.report.tables import escape_html, escape_markdown, to_markdown
from alarm.evaluation.runs import read_folder
from alarm.evaluation.selection import select_aspect
from alarm.tasks.find import find_task

TASKS = {name: find_task(name) for name in ("qa", "mt")}
QA = TASKS["qa"]


def comparison(*seeds, task=QA, **settings) -> Comparison:
    return compare(*seeds, task=task, **settings)


GOLDEN = Path(__file__).parents[1] / "fixtures" / "eval"
ODD = ["$a_1$ <b>x</b>|y", "*b* [c](http://d.example) `e` :smile:"]
PLAIN = {"markup": False, "emoji": False, "highlight": False}


def golden(task: str) -> list[Generations]:
    return read_folder(GOLDEN / task / "gens", TASKS[task])


def make_runs(names: list[str], prompts: int = 4, seed: int = 0, task: str = "qa") -> list[Generations]:
    random = np.random.default_rng(seed)
    return [
        Generations(
            name,
            [f"query {number}" for number in range(prompts)],
            [f"answer {number} of {name}" for number in range(prompts)],
            {metric: random.normal(size=prompts) for metric in TASKS[task].columns_in_order},
        )
        for name in names
    ]


def make_setup(prompts: int = 4, **changes) -> Setup:
    values = {"folder": "gens", "total_prompts": prompts, "draw_seed": 42, "seeds": (), "draws": 2000, "judge": None}
    return Setup(prompts=prompts, **{**values, **changes})


def with_judge(found: Comparison) -> Comparison:
    """The holistic verdicts once more, as a judge's."""
    judge = JudgeRates(failures=3, identical=2, flip_rate=12.5, first_position_rate=None)
    pairs = {
        names: rates | {"judge": replace(rates["holistic_reward"], judge=judge)} for names, rates in found.pairs.items()
    }
    averages = {run: means | {"judge": means["holistic_reward"]} for run, means in found.averages.items()}
    return replace(found, pairs=pairs, averages=averages)


def screen(found: Comparison, setup: Setup | None = None, width: int = 100) -> str:
    text = io.StringIO()
    print_results(found, setup or make_setup(), Console(file=text, width=width, **PLAIN))
    return text.getvalue()


def squeeze(text: str) -> str:
    return " ".join(text.split())


def image(png: bytes) -> np.ndarray:
    """(height, width, 3) of 0 .. 255."""
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), dtype=int)


# --- terminal ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["qa", "mt"])
@pytest.mark.parametrize("width", [60, 100])
def test_tables_fit_the_terminal_uncut(task, width):
    results = comparison(golden(task), golden(task), task=TASKS[task])  # two equal seeds: every deviation is 0
    judge = {"model": "judge-1", "calls": 1234}
    text = screen(with_judge(results), make_setup(40, seeds=("seed1", "seed2"), judge=judge), width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text and "\x1b" not in text
    for metric in TASKS[task].columns_in_order:
        assert f" {metric} " in text
    for cell in ("± 0.0", "± 0.000", "judge-1", "1,234", "12.5"):
        assert cell in text
    # a row of the published results, and the average with its deviation
    assert ("beta 57.7 * 65.4 61.5" if task == "qa" else "beta 54.8 * 36.7 45.8") in squeeze(text)


def test_ties_are_dashes_long_names_fold_and_columns_go_by_number():
    names = [f"[red]a long name of a run :smile: {letter}" for letter in "abcd"]
    runs = [
        Generations(name, ["p", "q"], ["", ""], {m: np.array([1.0, 2.0]) for m in QA.columns_in_order})
        for name in names
    ]
    text = screen(comparison(runs))
    assert "run #1 #2 #3 #4 Avg." in squeeze(text)
    assert "[red]a" in text and ":smile:" in text
    assert "- - - *" in squeeze(text)
    assert max(map(len, text.splitlines())) <= 100


def test_twelve_runs_leave_the_pairs_to_the_file():
    text = screen(comparison(make_runs([f"run{number}" for number in range(12)])))
    assert "too wide for 100 columns" in text
    assert "66 pairs: too long" in text
    assert "run0 / run1" not in text
    assert "Average win rate" in text
    assert max(map(len, text.splitlines())) <= 100


def test_one_run_has_nothing_to_compare():
    text = screen(comparison(make_runs(["only"])))
    assert text.startswith("gens: 1 run, all 4 prompts\n")
    assert text.rstrip().endswith("One run only: nothing to compare it with.")
    assert "Win rates" not in text


def test_markup_of_any_console_is_not_read():
    text = io.StringIO()
    print_results(comparison(make_runs(["[red]a[/red] :smile:", "b"])), make_setup(), Console(file=text, width=100))
    assert "[red]a[/red] :smile:" in text.getvalue()


def test_wide_tables_go_on_in_a_second_block():
    columns = (Column("run", text=True), *(Column(f"metric_{number}") for number in range(10)))
    table = Table("T", "", columns, (Section((("name", *(f"{number}.123456789" for number in range(10))),)),))
    text = io.StringIO()
    print_table(table, Console(file=text, width=40, **PLAIN))
    lines = text.getvalue().splitlines()
    assert max(map(len, lines)) <= 40
    assert sum(line.split()[:1] == ["name"] for line in lines) > 3
    for number in range(10):
        assert f" {number}.123456789" in text.getvalue()


# --- cells by hand -----------------------------------------------------------------------------------------------


def hand_runs() -> list[Generations]:
    """a wins 2, ties 1, loses 1 by holistic_reward."""
    scores = {"a": [1.0, 2.0, 3.0, 4.0], "b": [0.0, 0.0, 3.0, 5.0]}
    return [
        Generations(name, list("pqrs"), [None] * 4, {"holistic_reward": np.array(values)})
        for name, values in scores.items()
    ]


def test_outcomes_by_hand():
    table = report.outcome_table(comparison(hand_runs()), ["holistic_reward"])
    pair, wins, ties, losses, rate, half, controlled = table.sections[0].rows[0]
    assert (pair, wins, ties, losses) == ("a / b", "2", "1", "1")
    assert rate.startswith("66.7\n")  # 2 / (2 + 1)
    assert half.startswith("62.5\n")  # (2 + 0.5) / 4
    assert controlled == "refused (1)"
    assert table.footnotes == ("no lengths",)


def test_deviations_and_intervals_stand_in_the_cells():
    found = comparison(hand_runs())
    average = replace(found.averages["a"]["holistic_reward"], interval=[50.04, 72.06], std=1.25)
    summary = replace(found.metrics["a"]["holistic_reward"], std=0.0625)
    found = replace(
        found,
        seeds=2,
        averages=found.averages | {"a": {"holistic_reward": average}},
        metrics=found.metrics | {"a": {"holistic_reward": summary}},
    )
    assert report.average_table(found).sections[0].rows[0] == ("a", "66.7 ± 1.2\n50.0–72.1")
    assert report.metric_table(found).sections[0].rows == (("a", "2.500 ± 0.062\n1 .. 4"), ("b", "2.000\n0 .. 5"))
    assert "standard deviation" in report.metric_table(found).note


def test_judge_by_hand():
    rows = report.judge_table(with_judge(comparison(hand_runs()))).sections[0].rows
    assert rows == (("a / b", "2", "1", "1", "2", "3", "12.5", "-"),)


def test_the_paper_is_labelled():
    for task in ("qa", "mt"):
        table = report.paper_table(TASKS[task])
        assert "not ours" in table.title
        assert {len(row) for row in table.sections[0].rows} == {len(table.columns)}


def test_description_names_the_leader():
    lines = report.describe_comparison(comparison(hand_runs()), make_setup(total_prompts=9, seeds=("seed1", "seed2")))
    assert lines[0] == "gens: 2 runs, 4 of 9 prompts, drawn with seed 42, 2 seeds (seed1, seed2)"
    assert "of the prompts and the seeds" in lines[1]
    assert lines[2].startswith("Highest average win rate by holistic_reward: a, 66.7% (95% interval ")
    assert len(lines) == 3


# --- Markdown ----------------------------------------------------------------------------------------------------


def test_markdown_cells_by_hand():
    assert escape_markdown("a|b\\c") == r"a\|b\\c"
    assert escape_markdown("<b> & *x* `y` $z$ [l](u)") == r"&lt;b&gt; &amp; \*x\* \`y\` \$z\$ \[l\](u)"
    assert escape_markdown("error_rate _x_ a_") == r"error_rate \_x\_ a\_"
    assert escape_markdown("52.1\n48–56") == "52.1<br>48–56"
    table = Table("T", "n", (Column("a|b", text=True), Column("c")), (Section((("x", "1"),), "s|"),), ("why",))
    assert to_markdown(table) == ("## T\n\nn\n\n| a\\|b | c |\n| --- | ---: |\n| **s\\|** |  |\n| x | 1 |\n\n(1) why\n")


@given(st.lists(st.text(max_size=8), min_size=1, max_size=4))
@settings(max_examples=200, deadline=None)
def test_markdown_rows_keep_their_columns(cells):
    columns = tuple(Column("h", text=True) for _ in cells)
    row = to_markdown(Table("T", "", columns, (Section((tuple(cells),)),))).rstrip("\n").split("\n")[-1]
    assert len(re.findall(r"(?<!\\)(?:\\\\)*\|", row)) == len(cells) + 1


# --- figures -----------------------------------------------------------------------------------------------------


def test_win_colours_darken_all_the_way_and_text_contrasts():
    from matplotlib.colors import LinearSegmentedColormap

    light = [luminance(colour) for colour in LinearSegmentedColormap.from_list("w", WIN_COLOURS)(range(256))]
    assert (np.diff(light) < 0).all()
    for colour in LinearSegmentedColormap.from_list("w", WIN_COLOURS)(range(256)):
        text = luminance(ink_on(colour))
        low, high = sorted([text, luminance(colour)])
        assert (high + 0.05) / (low + 0.05) >= 4.5  # WCAG AA


def test_win_rate_figure_shows_the_values():
    runs = make_runs(["a", "b"])
    for metric in QA.columns_in_order:
        runs[0].metrics[metric], runs[1].metrics[metric] = np.ones(4), np.zeros(4)
    pixels = image(win_rate_figure(comparison(runs)))
    assert pixels.shape[1] == 1575
    # 100 and 0 for each metric: the darkest and the palest colour, in equal parts
    shares = [np.mean(np.all(np.abs(pixels - np.array(rgb)) <= 2, axis=2)) for rgb in ([22, 64, 127], [255, 244, 224])]
    assert shares[0] == pytest.approx(shares[1], rel=0.2)
    assert shares[0] > 0.02


def test_figures_take_ties_constants_twelve_runs_and_odd_names():
    names = [*ODD, *(f"hierarchical_with_a_very_long_name_of_a_run_{number}" for number in range(9)), "日本"]
    runs = [
        Generations(
            name, ["p", "q"], ["", ""], {m: np.full(2, float(m == "response_length")) for m in QA.columns_in_order}
        )
        for name in names
    ]
    found = comparison(runs)
    # one panel: the rest is alike
    means = {run: {"holistic_reward": of["holistic_reward"]} for run, of in found.averages.items()}
    pixels = image(win_rate_figure(replace(found, averages=means)))
    assert pixels.shape[1] == 1050
    assert pixels.std() > 10
    values = {"holistic_reward": {run.name: run.metrics["holistic_reward"] for run in runs}}
    pixels = image(distribution_figure(values, QA.lower_wins))
    assert pixels.std() > 10


def test_names_in_axes_differ_and_fit():
    names = ["a", "weighted_sum_with_sigmoid_shaping", "x" * 50 + "1", "y" * 100, "日"]
    short = short_names(names)
    assert short[:2] == ["a", "weighted_sum_with_\nsigmoid_shaping"]
    assert short[4] == "?"
    assert max(len(line) for label in short for line in label.split("\n")) == 20
    same = short_names(["z" * 60 + "a" * 30, "z" * 70 + "a" * 30])
    assert same[0] != same[1]


@given(st.lists(st.floats(-1e6, 1e6) | st.integers(-5, 5), min_size=1, max_size=40))
@example([0.0, 5e-324])
@example([1.5, 1.5 + 1e-15])
@example([3e-323])
@settings(max_examples=200, deadline=None)
def test_bins_hold_every_value(values):
    values = np.array(values, dtype=float)
    edges = bin_edges(values)
    assert (np.diff(edges) > 0).all()
    assert np.histogram(np.clip(values, edges[0], edges[-1]), edges)[0].sum() == len(values)


def test_bins_of_counts_are_numbers():
    assert bin_edges(np.array([0.0, 2.0, 3.0])).tolist() == [-0.5, 0.5, 1.5, 2.5, 3.5]


# --- the folder --------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Every tag is closed; what the page refers to, and its text."""

    VOID = frozenset({"meta", "img", "br", "wbr", "input"})

    def __init__(self, source: str):
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.images: list[dict] = []
        self.tags: list[tuple[str, dict]] = []
        self.text = ""
        self.embedded = ""  # the data of the scripts
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.tags.append((tag, attributes))
        if tag not in self.VOID:
            self.open.append(tag)
        self.ids += [attributes["id"]] if "id" in attributes else []
        self.links += [attributes[key] for key in ("href", "src", "srcset", "action", "data") if key in attributes]
        if tag == "img":
            self.images.append(attributes)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] == ["script"]:
            self.embedded += data if self.tags[-1] == ("script", {"type": "application/json", "id": "data"}) else ""
        elif "style" not in self.open:
            self.text += data


def check_page(folder: Path) -> Page:
    source = (folder / "index.html").read_text(encoding="utf-8")
    page = Page(source)
    assert source.startswith("<!DOCTYPE html>")
    assert len(set(page.ids)) == len(page.ids)
    for link in page.links:
        assert link.startswith("data:image/png;base64,") or (link[0] == "#" and link[1:] in page.ids)
    assert not re.search(r"url\(|@import", source[: source.index("</style>")])
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"link", "iframe", "b", "base", "object"}
    assert all(not attributes or attributes["id"] == "data" for tag, attributes in page.tags if tag == "script")
    assert all(attributes.get("scope") in ("col", "row", "rowgroup") for tag, attributes in page.tags if tag == "th")
    assert all(picture["alt"] and int(picture["width"]) > 500 for picture in page.images)
    return page


def test_report_folder(tmp_path):
    folder = tmp_path / "gens_results" / "report"
    runs = golden("mt")
    results = with_judge(comparison(runs, runs, task=TASKS["mt"]))
    setup = make_setup(40, seeds=("seed1", "seed2"), judge={"model": "m", "calls": 7})
    write_report(folder, results, setup, {"seed1": runs, "seed2": runs})
    assert {path.name for path in folder.iterdir()} == {
        "index.html",
        "report.md",
        "settings.json",
        "win_rates.png",
        "distributions.png",
    }
    written = json.loads((folder / "settings.json").read_text())
    assert (written["written_by"], written["seeds"]) == ("eval_compare.py", ["seed1", "seed2"])
    page = check_page(folder)
    for words in ("alpha", "Answers side by side", "The paper's numbers (not ours)", "7"):
        assert words in page.text
    data = json.loads(page.embedded)
    assert (data["seeds"], len(data["prompts"]), data["runs"]) == (["seed1", "seed2"], 40, ["alpha", "beta", "gamma"])
    assert len(page.images) == 2
    for name in ("win_rates.png", "distributions.png"):
        pixels = image((folder / name).read_bytes())
        assert pixels.shape[1] == 1575
        assert pixels.std() > 10
        assert f"({name})" in (folder / "report.md").read_text()
    markdown = (folder / "report.md").read_text()
    assert "| beta | 54.8 | \\* | 36.7 | 45.8 |" in markdown
    headings = re.findall("^## (.*)$", markdown, re.MULTILINE)
    assert headings[0] == "Average win rate" and len(headings) == 8

    # its own report is replaced
    write_report(folder, comparison(runs), make_setup(40), {"": runs})
    assert json.loads((folder / "settings.json").read_text())["seeds"] == []
    assert [path.name for path in folder.parent.iterdir()] == ["report"]


def test_odd_names_and_texts_are_text(tmp_path):
    runs = make_runs([*ODD, "c"], prompts=2)
    runs[0].queries[0] = runs[1].queries[0] = runs[2].queries[0] = "</p><script>alert(1)</script> \ud800 \x00 &amp;"
    runs[0].generations[0] = '<img src="http://e.example/x.png">' + "long " * 1000
    runs[1].generations[1] = " "
    write_report(tmp_path / "r", comparison(runs), make_setup(prompts=2), {"": runs})
    page = check_page(tmp_path / "r")
    for name in ODD:
        assert name in page.text
    data = json.loads(page.embedded)  # whole, and as it was
    assert data["prompts"] == runs[0].queries
    assert data["answers"] == [[run.generations for run in runs]]
    markdown = (tmp_path / "r" / "report.md").read_text()
    assert "<b>" not in markdown and r"\$a_1\$ &lt;b&gt;x&lt;/b&gt;\|y" in markdown


def test_one_run(tmp_path):
    runs = make_runs(["only"], prompts=3)
    write_report(tmp_path / "r", comparison(runs), make_setup(prompts=3), {"": runs})
    assert not (tmp_path / "r" / "win_rates.png").exists()
    page = check_page(tmp_path / "r")
    assert "nothing to compare it with" in page.text
    assert json.loads(page.embedded)["answers"] == [[runs[0].generations]]


def test_answers_by_hand():
    runs = make_runs(["a", "b", "c"], prompts=2)
    for run, reward, length in zip(
        runs, ([1.0, 0.5], [-1.0, 0.5], [0.123456, 0.5]), ([3, 4], [5, 4], [3, 9]), strict=True
    ):
        run.metrics["holistic_reward"], run.metrics["response_length"] = np.array(reward), np.array(length, dtype=float)
    judged = {
        ("a", "b"): [Judgement(1, 1), Judgement(1, -1)],
        ("a", "c"): [Judgement(None, 1), Judgement(None, None, identical=True)],
        ("b", "c"): [Judgement(-1, -1), Judgement(-1, -1)],
    }
    data = answers_data({"": runs}, QA, [judged], draw_seed=1)
    assert data["verdicts"]["0/1"]["holistic_reward"] == [[1, 0]]
    assert data["verdicts"]["1/2"]["response_length"] == [[1, -1]]
    assert [data["verdicts"][pair]["judge"] for pair in ("0/1", "0/2", "1/2")] == [[[1, 0]], [[None, 0]], [[-1, -1]]]
    assert data["spread"] == [[2.0, 0.0]]
    assert data["metrics"]["holistic_reward"] == [[[1.0, 0.5], [-1.0, 0.5], [0.12346, 0.5]]]
    assert data["criteria"][-1] == {"name": "judge", "title": "judge"}
    several = make_runs(["a"], prompts=30)
    orders = [answers_data({"": several}, QA, None, draw_seed=seed)["random"] for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == list(range(30))


def test_what_is_not_a_report_is_left_alone(tmp_path):
    runs = make_runs(["a"])

    def refuse(folder: Path, message: str) -> None:
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(UserError, match=message) as caught:
            write_report(folder, comparison(runs), make_setup(), {"": runs})
        assert "\n" not in str(caught.value)
        assert sorted(tmp_path.rglob("*")) == before

    mine = tmp_path / "mine"
    mine.mkdir()
    report.check_report_folder(mine)  # empty
    (mine / "thesis.md").write_text("mine")
    refuse(mine, "other than a report")
    (mine / "settings.json").write_text('{"written_by": "another program"}')
    refuse(mine, "other than a report")
    (mine / "settings.json").write_text("[1]")
    refuse(mine, "other than a report")
    (mine / "settings.json").write_text('{"written_by": "eval_compare.py"}')
    refuse(mine, "'thesis.md' beside a report")
    refuse(mine / "thesis.md", "is a file")
    refuse(mine / "thesis.md" / "report", "cannot be written")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    refuse(tmp_path / "link", "is a file")


def test_a_failure_leaves_the_old_report(tmp_path, monkeypatch):
    runs = make_runs(["a"])
    write_report(tmp_path / "r", comparison(runs), make_setup(), {"": runs})
    old = (tmp_path / "r" / "index.html").read_bytes()

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(UserError, match="No space left on device"):
        write_report(tmp_path / "r", comparison(runs), make_setup(folder="other"), {"": runs})
    assert (tmp_path / "r" / "index.html").read_bytes() == old
    assert [path.name for path in tmp_path.iterdir()] == ["r"]


# --- selection ---------------------------------------------------------------------------------------------------


def selection() -> dict:
    greedy, sampled, _ = golden("qa")
    return select_aspect(greedy, sampled, QA, draws=200)


def test_selection_screen():
    chosen = selection()
    text = io.StringIO()
    print_selection(chosen, QA, Console(file=text, width=100, **PLAIN))
    lines = text.getvalue().splitlines()
    assert max(map(len, lines)) <= 100
    assert "…" not in text.getvalue()
    factuality = chosen["metrics"]["factuality_rate"]
    assert f" {factuality['inconsistency']:.1f} " in text.getvalue()
    assert "(1) length is no quality" in text.getvalue()
    assert "The paper's numbers (not ours)" in text.getvalue()
    assert f"Recommended: {chosen['recommended'] or 'none'}. " in text.getvalue()


def test_selection_rows_by_hand():
    chosen = selection()
    chosen["metrics"] = {
        "error_rate": {
            "inconsistency": 17.04,
            "inconsistency_interval": [15.0, 19.26],
            "inconsistency_without_ties": None,
            "decided_share": 80.0,
            "win_rate": 55.0,
            "win_rate_interval": None,
            "eligible": True,
            "why_not": None,
            "length_correlation": -0.125,
        }
    }
    chosen |= {"recommended": "error_rate", "least_share": {"error_rate": 99.5}}
    assert report.selection_table(chosen, TASKS["mt"]).sections[0].rows == (
        ("error_rate\n(lower wins)", "17.0\n15.0–19.3", "-", "80.0", "55.0", "-0.12", "99.5", "recommended"),
    )


def test_selection_folder(tmp_path):
    chosen = selection()
    write_selection_report(tmp_path / "s", chosen, QA)
    assert {path.name for path in (tmp_path / "s").iterdir()} == {
        "index.html",
        "report.md",
        "settings.json",
        "selection.json",
        "selection.png",
    }
    assert json.loads((tmp_path / "s" / "selection.json").read_text()) == chosen
    assert json.loads((tmp_path / "s" / "settings.json").read_text())["written_by"] == "select_rewards.py"
    assert "Recommended" in check_page(tmp_path / "s").text
    assert image((tmp_path / "s" / "selection.png").read_bytes()).shape[1] == 1275
    with_paper = (tmp_path / "s" / "selection.png").read_bytes()

    # nothing to recommend, no paper, a metric without a number
    chosen["metrics"]["verbosity_rate"] |= {"inconsistency": None, "inconsistency_interval": None}
    write_selection_report(tmp_path / "s", {**chosen, "recommended": None, "paper": None}, QA)
    assert "Recommended: none" in check_page(tmp_path / "s").text
    assert (tmp_path / "s" / "selection.png").read_bytes() != with_paper


# --- cost --------------------------------------------------------------------------------------------------------


def test_import_loads_neither_rich_nor_matplotlib():
    code = "import sys, alarm.evaluation.report.report; assert not {'matplotlib', 'rich', 'torch'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_escape_html_by_hand():
    assert escape_html('<a b="c">\'&\x07\x9f\n') == "&lt;a b=&quot;c&quot;&gt;&#x27;&amp;\ufffd\ufffd\n"
