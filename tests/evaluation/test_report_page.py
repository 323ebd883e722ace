"""The page of a comparison in a real browser: every prompt, search, filters, and a link from each verdict."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from browser import needs_browser

from helpers import FIXTURES, ROOT

pytestmark = needs_browser
SCRIPT = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'>"


def compare(folder: Path) -> Path:
    command = [sys.executable, ROOT / "eval" / "eval_compare.py", "--generations_dir", folder, "--task_type", "qa"]
    subprocess.run(command, check=True, capture_output=True)
    return folder.with_name(f"{folder.name}_results") / "eval-report" / "index.html"


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("compared") / "gens"
    shutil.copytree(FIXTURES / "eval" / "qa" / "gens", folder)
    for path in folder.glob("*.json"):
        rows = json.loads(path.read_text())
        rows[3]["query"] = f"odd {SCRIPT}"
        rows[3]["generation"] = f"{path.stem} {SCRIPT} \ud800"
        path.write_text(json.dumps(rows))
    return compare(folder)


def test_all_prompts_filters_and_what_the_tables_say(opened, page):
    assert opened.text("#status") == "40 of 40 prompts"
    results = json.loads((page.parents[1] / "eval-results.json").read_text())
    for criterion in ("holistic_reward", "completeness_reward"):
        for a, b in (("alpha", "gamma"), ("gamma", "beta")):
            opened.fill("#run-a", str(["alpha", "beta", "gamma"].index(a)))
            opened.fill("#run-b", str(["alpha", "beta", "gamma"].index(b)))
            opened.fill("#by", criterion)
            for verdict, count in (("a", "wins"), ("tie", "ties"), ("b", "losses")):
                opened.fill("#result", verdict)
                assert opened.text("#status") == f"{results[a][b][criterion][count]} of 40 prompts"


def test_each_verdict_leads_to_both_answers(opened, page):
    cell = ".tabulator-row:nth-child(2) [tabulator-field='v:completeness_reward'] a"
    winner = opened.text(cell)
    assert winner in ("alpha", "beta")
    link = opened.run(f'document.querySelector("{cell}").href')
    for go in (lambda: opened.click(cell), lambda: opened.open(link)):
        go()
        opened.wait("document.querySelectorAll('#both article').length === 2")
        names = opened.run("[...document.querySelectorAll('#both h3')].map(e => e.firstChild.textContent)")
        assert names == ["alpha", "beta"]
        assert opened.text("#both .winner h3").startswith(winner)
        assert "text" in opened.text("#both article:nth-child(1) .text")
        assert "gamma" in opened.text("#details details")
    opened.requests[:] = [page.as_uri()]  # it was opened with the link


def test_other_runs_change_every_cell(opened):
    opened.fill("#order", "id:asc")
    cells = "[...document.querySelectorAll('.tabulator-row .tabulator-cell:nth-child(3)')].map(e => e.textContent)"

    def names() -> set[str]:
        found = set()
        for key in ("Home", "End"):
            opened.run("document.querySelector('#table').focus()")
            opened.press(key)
            row = 1 if key == "Home" else 40
            opened.wait(f"document.querySelector('.tabulator-selected [tabulator-field=id]').textContent === '{row}'")
            found |= set(opened.run(cells))
        return found

    assert names() <= {"alpha", "beta", "="}
    opened.fill("#run-a", "2")
    opened.wait(f"{cells}.includes('gamma')")
    assert "gamma" in names() and "alpha" not in names()


def test_search_and_texts_are_text(opened):
    opened.press("/", *"ODD </SCR")  # in a prompt alone
    opened.wait("document.querySelector('#status').textContent === '1 of 40 prompts'")
    opened.run("document.querySelector('#table').focus()")
    opened.press("ArrowDown", "Enter")
    assert opened.run("document.activeElement.id") == "details"
    assert opened.text("#both article:nth-child(2) .text") == f"beta {SCRIPT} \ud800"
    assert opened.run("window.hacked === undefined && document.querySelectorAll('#answers img').length === 0")


def test_sections_and_narrow_screens(opened):
    opened.size(400)
    try:
        opened.wait("document.querySelector('#table').getBoundingClientRect().width < 400")
        assert opened.run("document.documentElement.scrollWidth <= innerWidth")
        opened.run("document.querySelector('nav a[href=\"#metrics\"]').click()")
        assert opened.run("location.hash") == "#metrics"  # a section's link stays one
    finally:
        opened.size(1280)


def test_one_run_has_no_verdicts(browser, page, tmp_path):
    (tmp_path / "one").mkdir()
    shutil.copy(page.parents[2] / "gens" / "alpha.json", tmp_path / "one")
    browser.open(compare(tmp_path / "one"))
    assert browser.text("#status") == "40 of 40 prompts"
    assert browser.run("document.querySelector('#run-a').closest('label').hidden")
    browser.click(".tabulator-row [tabulator-field=prompt]")
    browser.wait("document.querySelectorAll('#both article').length === 1")
    assert browser.problems == []
