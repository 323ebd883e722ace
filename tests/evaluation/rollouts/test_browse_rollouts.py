"""The page in a real browser, and the script that writes and serves it."""

from __future__ import annotations

import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from browser import Browser, needs_browser

from helpers import ROOT

from .conftest import ODD

SCRIPT = ROOT / "eval" / "browse_rollouts.py"


def run_script(*arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, SCRIPT, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture(scope="module")
def page(runs, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("page") / "rollouts.html"
    done = run_script(*runs, "--save_path", path)
    assert (done.returncode, done.stderr) == (0, "")
    return path


def shown_rows(browser: Browser) -> int:
    return int(re.search(r"([\d,]+) of", browser.text("#status"))[1].replace(",", ""))


def answers(browser: Browser) -> list[str]:
    return browser.run(
        "[...document.querySelectorAll('[tabulator-field=answer].tabulator-cell')].map(e => e.textContent)"
    )


@needs_browser
def test_the_slider_moves_through_the_steps(opened):
    assert opened.text("#step-now") == "8"
    assert shown_rows(opened) == 5 + 11
    opened.run("document.querySelector('#step').focus()")
    opened.press("ArrowLeft")
    assert opened.text("#step-now") == "4"
    assert shown_rows(opened) == 5 + 4
    opened.click("#earlier")
    assert opened.text("#step-now") == "0"
    assert opened.run("document.querySelector('#earlier').disabled")
    opened.click("#all-steps")
    assert shown_rows(opened) == 34
    # a click on a curve goes to the step there
    opened.click("#curves svg")
    assert opened.text("#step-now") == "4"


@needs_browser
@pytest.mark.parametrize(
    ("name", "count", "inside"),
    [
        ("closed", 1, "one two"),
        ("down", 3, "short"),
        ("repeated", 4, "short"),
        ("same", 3, "short"),
        ("empty", 1, "empty"),
    ],
)
def test_filters(opened, name, count, inside):
    opened.click(f"#filter-{name}")
    assert shown_rows(opened) == count
    assert inside in answers(opened)[0]
    assert opened.run(f"document.querySelector('#filter-{name}').getAttribute('aria-pressed')") == "true"
    assert f" {count}" in opened.text(f"#filter-{name}")
    opened.click("#clear")
    assert shown_rows(opened) == 16


@needs_browser
def test_filter_for_a_holistic_reward_that_rises_while_an_aspect_falls(browser, tmp_path):
    from .conftest import row, write_run

    values = [(0, 0.0, 0.0), (1, 1.0, -1.0), (1, -1.0, 1.0), (1, 1.0, 1.0)]
    rows = [row(0, f"p{n}", ["a"], [0.0], aspects={"brevity": 0.0}, holistic=0.0) for n in range(4)]
    rows += [
        row(s, f"p{n}", [f"b{n}"], [1.0], aspects={"brevity": a}, holistic=h) for n, (s, h, a) in enumerate(values) if s
    ]
    rows[0]["prompt_id"] = rows[4 - 1]["prompt_id"] = "half \ud800"  # even a name can hold half a pair
    path = tmp_path / "page.html"
    assert run_script(write_run(tmp_path / "run", rows), "--save_path", path).returncode == 0
    browser.open(path)
    browser.click("#filter-up")
    assert answers(browser) == ["b1"]
    browser.click("#clear")
    browser.click("#filter-paid")
    assert answers(browser) == ["b2"]


@needs_browser
def test_search_and_order(opened):
    opened.press("/", *"PROMPT 3")
    opened.wait("document.querySelector('#status').textContent.startsWith('2 of')")
    assert [text[:6] for text in answers(opened)] == ["answer", "answer"]
    opened.click("#clear")
    opened.fill("#order", "length:desc")
    assert answers(opened)[0].startswith("word word")
    opened.fill("#order", "changed:desc")
    assert answers(opened)[0].startswith("short")
    # a click on a heading sorts too; what has no number comes last
    opened.click(".tabulator-col[tabulator-field=holistic]")
    assert answers(opened)[0].startswith("answer 8")
    opened.click(".tabulator-col[tabulator-field=holistic]")
    assert answers(opened)[0].startswith("short")


@needs_browser
def test_two_runs_side_by_side_by_keyboard_and_the_link_of_a_row(opened, page):
    opened.run("document.querySelector('#table').focus()")
    opened.press("ArrowDown", "ArrowDown", "Enter")
    assert opened.run("document.activeElement.id") == "details"
    cards = opened.run("[...document.querySelectorAll('#details article')].map(e => e.textContent)")
    assert len(cards) == 3  # both runs, and the first answer
    assert "honest, step 8" in cards[0] and "answer 8 of 1" in cards[0]
    assert "hacked, step 8" in cards[1] and "shortshort" in cards[1]
    assert "first answer" in cards[2] and "answer 0 of 1" in cards[2]
    opened.press("Escape", "ArrowLeft")
    assert opened.text("#step-now") == "4"
    assert "answer 4 of 1" in opened.text("#details article")  # the same prompt, followed

    link = opened.run("document.querySelector('#row-link').href")
    other = "document.querySelector('#details article.chosen h3').textContent"
    opened.open(link)
    assert opened.text("#step-now") == "4" and opened.run(other) == "honest, step 4"
    opened.requests[:] = [page.as_uri()]  # it was opened with the link
    assert opened.run("document.querySelector('.tabulator-selected .clip[dir]') !== null")
    opened.click(".steps a")  # the same prompt at another step
    opened.wait(f"{other} === 'honest, step 0'")
    opened.run("location.hash = '#row=nobody/dev/x/0/0'")
    opened.wait("document.querySelector('#status').textContent.includes('not on this page')")


@needs_browser
def test_tokens_are_coloured_by_reward(opened):
    opened.click("#filter-closed")
    opened.click("[tabulator-field=answer].tabulator-cell")
    tokens = opened.run(
        "[...document.querySelectorAll('#details article.chosen .tokens .token')]"
        ".map(e => [e.textContent, e.className, e.title])"
    )
    assert [text for text, _, _ in tokens] == ["two", "three", "◦"]  # 0.05, -0.5, 2 on a token without text
    assert [kind.split()[1:] for _, kind, _ in tokens] == [["plus", "p1"], ["minus", "n3"], ["plus", "p4"]]
    assert tokens[1][2] == "token 3 of 4: −0.500"


@needs_browser
def test_texts_of_the_data_are_text(opened):
    opened.press("/", *"odd")
    opened.wait("document.querySelector('#status').textContent.startsWith('5 of')")
    assert opened.run("window.hacked === undefined && document.images.length === 0")
    for number, (name, text) in enumerate(ODD.items(), start=1):
        opened.click(f".tabulator-row:nth-child({number}) [tabulator-field=answer]")
        assert name in opened.text("#details .prompt")
        found = opened.text("#details article.chosen .tokens")
        assert found == (text or "(empty) ◦")
    assert opened.run("window.hacked === undefined && document.images.length === 0")


@needs_browser
def test_a_long_answer_and_numbers_that_are_not_finite(opened):
    opened.press("/", *"long")
    opened.wait("document.querySelector('#status').textContent.startsWith('1 of')")
    opened.click("[tabulator-field=answer].tabulator-cell")
    assert len(opened.text("#details article.chosen .tokens")) == 5 * 10_000
    opened.fill("#search", "not finite", "input")
    opened.wait("document.querySelector('[tabulator-field=answer].tabulator-cell').textContent === 'nan'")
    opened.click("[tabulator-field=answer].tabulator-cell")
    facts = opened.text("#details article.chosen dl")
    assert "hnan" in facts and "KLinf" in facts


@needs_browser
@pytest.mark.parametrize("dark", [False, True])
def test_narrow_and_dark(opened, dark):
    opened.dark(dark)
    opened.size(400)
    try:
        opened.wait("document.querySelector('#table').getBoundingClientRect().width < 400")
        assert opened.run("document.documentElement.scrollWidth <= innerWidth")
        opened.click("[tabulator-field=answer].tabulator-cell")
        assert opened.run("document.documentElement.scrollWidth <= innerWidth")
        paper = opened.run("getComputedStyle(document.querySelector('.tabulator-row')).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", paper)[:3])) < 300) == dark
    finally:
        opened.dark(False)
        opened.size(1280)


@needs_browser
def test_many_rows(browser, tmp_path):
    from .conftest import row, write_run

    rows = [row(step, f"p{n}", ["a", f" {step}", f" {n}"], [0.0, 0.1, 1.0]) for step in range(50) for n in range(400)]
    path = tmp_path / "page.html"
    assert run_script(write_run(tmp_path / "run", rows), "--save_path", path).returncode == 0
    browser.open(path)
    browser.click("#all-steps")
    assert shown_rows(browser) == 20_000
    assert len(answers(browser)) < 100  # only what is seen is drawn
    browser.run("document.querySelector('#table').focus()")
    browser.press("End")
    browser.wait("[...document.querySelectorAll('[tabulator-field=answer]')].some(e => e.textContent === 'a 49 399')")
    assert "step 49" in browser.text("#details article.chosen h3")
    assert browser.problems == []


# --- the script ------------------------------------------------------------------------------------------------------


def assert_one_error_line(done: subprocess.CompletedProcess, message: str) -> None:
    assert done.returncode == 2
    assert re.search(message, done.stderr)
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def test_the_page_goes_into_the_first_folder_and_replaces_itself_alone(runs, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(runs[0], run)
    for _ in range(2):
        done = run_script(run)
        assert (done.returncode, done.stderr) == (0, "")
        assert "rollouts.html" in done.stdout
    (tmp_path / "mine.html").write_text("mine")
    assert_one_error_line(run_script(run, "--save_path", tmp_path / "mine.html"), "is no page of this script")
    assert (tmp_path / "mine.html").read_text() == "mine"
    assert_one_error_line(run_script(run, "--save_path", tmp_path), "is a folder")


def test_bad_input_is_one_line(runs, tmp_path):
    old = tmp_path / "old"
    old.mkdir()
    (old / "log.jsonl").write_text('{"step": 0, "train": {"reward": 1}}\n')
    assert_one_error_line(run_script(runs[0], old), "old holds no rollouts.jsonl")
    assert_one_error_line(run_script(runs[0], runs[0]), "given twice")
    assert_one_error_line(run_script(*[runs[0]] * 7), "at most 6")
    assert_one_error_line(run_script(runs[0], "--port", "8000"), "--serve")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert_one_error_line(run_script(runs[0], "--serve", "--port", port), f"--port {port} cannot be used")


def test_serve_answers_this_machine_alone_and_reads_anew(runs, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(runs[0], run)
    command = [sys.executable, SCRIPT, run, "--serve"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        address = re.search(r"http://127\.0\.0\.1:\d+/", process.stdout.readline())[0]
        first = urllib.request.urlopen(address, timeout=30).read().decode()
        assert "dev prompt 1" in first and "a later answer" not in first
        with (run / "rollouts.jsonl").open("a") as file:
            file.write('{"step": 9, "generation": "a later answer"}\n')
        assert "a later answer" in urllib.request.urlopen(address, timeout=30).read().decode()
        for request in (
            urllib.request.Request(address, headers={"Host": "evil.example"}),
            urllib.request.Request(f"{address}../../etc/passwd"),
        ):
            with pytest.raises(urllib.error.HTTPError) as caught:
                urllib.request.urlopen(request, timeout=30)
            assert caught.value.code in (403, 404)
        assert not (run / "rollouts.html").exists()
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate()


def test_no_torch():
    code = "import sys, alarm.evaluation.rollouts.page; assert not {'torch', 'matplotlib'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
