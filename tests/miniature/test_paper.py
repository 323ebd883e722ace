"""Tables of the grid from a few records whose numbers are known."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from helpers import ROOT
from miniature import paper
from miniature.settings import WORLDS

MT = WORLDS["mt"]
PAGE = "# Page\n\n<!-- tables of mt -->\nold\n<!-- end -->\n\nkept\n"


def record(name: str, seed: int, quality: list[float], **means) -> dict:
    columns = {"holistic_reward": 0.5, "response_length": 9.0, "empty": 0.0, "error_rate": 0.1, "grammar_errors": 1.0,
               "language_confidence": 0.9}  # fmt: skip
    found = {"world": "mt", "name": name, "seed": seed, "oracle": quality, "means": columns | means}
    return found if name == "start" else found | {"kl": [0.0, 4.0], "dev": [[0, 0.0, 0.5], [5, 4.0, 0.5 + seed / 10]]}


def write(folder: Path, *records: dict) -> None:
    for one in records:
        file = folder / "mt" / f"seed{one['seed']}" / f"{one['name']}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(one))


def read(folder: Path, *records: dict) -> paper.Records:
    write(folder, *records)
    return paper.read_records(folder, MT)


def test_difference_is_paired_by_prompt(tmp_path):
    start = [0.1, 0.9, 0.4, 0.6]
    found = read(tmp_path, record("start", 0, start), record("hierarchical", 0, [value + 0.05 for value in start]))
    gain = paper.difference(found, "hierarchical", "start")
    assert (gain.mean, gain.low, gain.high) == pytest.approx((0.05, 0.05, 0.05))
    assert gain.clear


def test_seeds_are_drawn_too(tmp_path):
    """Gains of .1 and .3 on every prompt: of two seeds one is drawn, so the interval reaches from one to the other."""
    records = [record("start", seed, [0.5] * 30) for seed in (0, 1)]
    records += [record("hierarchical", seed, [0.5 + gain] * 30) for seed, gain in ((0, 0.1), (1, 0.3))]
    gain = paper.difference(read(tmp_path, *records), "hierarchical", "start")
    assert (gain.mean, gain.low, gain.high) == pytest.approx((0.2, 0.1, 0.3))


def test_only_seeds_that_both_have_are_compared(tmp_path):
    records = [
        record("start", 0, [0.5, 0.5]),
        *(record("hierarchical", seed, [0.6 + seed, 0.6 + seed]) for seed in (0, 1)),
    ]
    found = read(tmp_path, *records)
    assert paper.difference(found, "hierarchical", "start").mean == pytest.approx(0.1)
    assert paper.difference(found, "weighted_sum", "start") is None


def test_an_interval_with_0_is_no_difference():
    assert "better" in paper.verdict("a", "b", paper.Estimate(0.2, 0.1, 0.3))
    assert "worse" in paper.verdict("a", "b", paper.Estimate(-0.2, -0.3, -0.1))
    told = paper.verdict("a", "b", paper.Estimate(0.2, -0.1, 0.5))
    assert "better" not in told and "worse" not in told


@pytest.mark.parametrize(("means", "kl", "what"), [
    ({"empty": 0.8}, 1.0, "80%"),
    ({"response_length": 23.5}, 1.0, "24"),
    ({"response_length": 2.0}, 8.0, "4.0 nats"),
    ({}, None, "not finite"),
    ({}, 4.0, None),
])  # fmt: skip
def test_a_collapse_is_named_and_stays_in_the_mean(tmp_path, means, kl, what):
    fallen = record("weighted_sum", 1, [0.0] * 4, **means) | {"kl": [kl]}
    found = read(tmp_path, record("start", 0, [0.5] * 4), record("start", 1, [0.5] * 4),
                 record("weighted_sum", 0, [0.6] * 4), fallen)  # fmt: skip
    told = "\n".join(paper.remarks(found, ["start", "weighted_sum", "hierarchical"]))
    assert ("weighted_sum seed 1" in told) == (what is not None)
    assert what is None or what in told
    assert "hierarchical" in told  # not run yet
    row = paper.rows_of(found, ["weighted_sum"], ("start",))[0]
    assert row["true quality"].startswith("0.300 ± 0.424")
    assert row["seeds"] == "2"


def test_a_curve_is_the_mean_over_seeds_of_the_root(tmp_path):
    found = read(tmp_path, *(record("hierarchical", seed, [0.5]) for seed in (0, 1)))
    assert paper.curve(found, "hierarchical").tolist() == [[0, 0, 0.5], [5, 2, 0.55]]
    assert len(paper.curve(found, "start")) == 0


def test_ranks_of_best_of_n_and_of_ppo(tmp_path):
    """Three combiners; PPO turns the order of two of them round: rho = 1 - 6 * 2 / (3 * 8) = .5."""
    gains = {"holistic_only": 0.1, "hierarchical": 0.3, "weighted_sum": 0.2}
    write(tmp_path, record("start", 0, [0.5] * 4), *(record(name, 0, [0.5 + gain] * 4) for name, gain in gains.items()))
    ranked = {"holistic_only": 0.61, "hierarchical": 0.62, "weighted_sum": 0.63, "soft_gate": 0.9}
    told = {name: {"quality": at, "interval": [at - 0.01, at + 0.01], "tokens": 8.0} for name, at in ranked.items()}
    study = {"at_random": 0.5, "best_possible": 0.95, "samples": 16, "runs": told}
    (tmp_path / "mt" / "start").mkdir()
    (tmp_path / "mt" / "start" / "ranks.json").write_text(json.dumps(study))
    found = paper.read_records(tmp_path, MT)
    rows = paper.rank_rows(found)
    assert [row["run"] for row in rows] == ["holistic_only", "hierarchical", "weighted_sum"]  # soft_gate was not run
    assert rows[0]["quality, best of n"] == "0.610 [0.600, 0.620]"
    assert rows[0]["gain, best of n"] == "+0.110"
    assert all("+0.50" in line for line in paper.rank_remarks(found))


def test_tables_go_between_the_marks(tmp_path, capsys):
    folder, page = tmp_path / "results", tmp_path / "page.md"
    page.write_text(PAGE)
    names = ("holistic_only", "hierarchical", "weighted_sum", "hierarchical-centred-spans")
    write(folder, record("start", 0, [0.5] * 30), *(record(name, 0, [0.6] * 30) for name in names))
    paper.main(["--results", str(folder), "--page", str(page)])
    text = page.read_text()
    assert text.startswith("# Page\n") and text.endswith("<!-- end -->\n\nkept\n") and "\nold\n" not in text
    assert "### (a)" in text and "### (e)" in text and "### (h)" not in text  # nothing of (h) was run
    assert "52.12" in text  # the paper's own
    for letter in "abe":
        assert {(folder / "mt" / f"{letter}.{end}").stat().st_size > 0 for end in ("md", "csv", "png")} == {True}
    paper.main(["--results", str(folder), "--page", str(page)])
    assert page.read_text() == text
    capsys.readouterr()


@pytest.mark.parametrize(("records", "text", "what"), [(False, PAGE, "no records"), (True, "# Page", "tables of mt")])
def test_bad_input_is_one_line(tmp_path, capsys, records, text, what):
    (tmp_path / "page.md").write_text(text)
    if records:
        write(tmp_path, record("start", 0, [0.5] * 3), record("hierarchical", 0, [0.5] * 3))
    with pytest.raises(SystemExit) as stop:
        paper.main(["--results", str(tmp_path), "--page", str(tmp_path / "page.md")])
    assert stop.value.code == 2
    assert what in capsys.readouterr().err


def test_the_page_is_that_of_the_records(tmp_path, capsys):
    """docs/miniature.md holds what miniature/results/ says."""
    shipped = ROOT / "miniature" / "results"
    if not list(shipped.glob("*/seed*/*.json")):
        pytest.skip("the grid was not run yet")
    shutil.copytree(shipped, tmp_path / "results")
    shutil.copy(paper.PAGE, tmp_path / "page.md")
    paper.main(["--results", str(tmp_path / "results"), "--page", str(tmp_path / "page.md")])
    capsys.readouterr()
    assert (tmp_path / "page.md").read_text() == paper.PAGE.read_text()
