"""docs/trainers: every exit has a page, its Python compiles, and the exits that it calls exist."""

from __future__ import annotations

import re

import pytest

from alarm import Aspect, HierarchicalReward
from helpers import ROOT

PAGES = sorted((ROOT / "docs" / "trainers").glob("*.md"))


def test_every_exit_has_a_page():
    modules = {path.stem for path in (ROOT / "alarm" / "integrations").glob("*.py")} - {"__init__", "host"}
    assert {page.stem for page in PAGES} == modules


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_code_of_a_page(page):
    text = page.read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    for block in blocks:
        compile(block, str(page), "exec")
    assert "**Lost:**" in text and "**Tested with:**" in text
    exits = set(re.findall(r"reward\.(\w+)\(", "".join(blocks)))
    assert exits and all(callable(getattr(HierarchicalReward, name)) for name in exits)
    # the first block, with a function for the model and without a calibration
    first = blocks[0].replace('"FOLDER_OR_HUB_NAME"', "len_of")
    first = re.sub(r'\s*calibration="calibration.json",', "", first)
    names = {"len_of": lambda prompts, answers, rows: [float(len(answer)) for answer in answers]}
    exec(compile(first, str(page), "exec"), names)
    assert names["reward"].score(["q"], ["four words are here"]).total.item() == pytest.approx(5 * 19 - 4 / 20)
    assert isinstance(names["reward"].task.aspects[0], Aspect)
