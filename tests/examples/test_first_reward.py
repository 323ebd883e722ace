"""The code of docs/first_reward.md, as it stands."""

from __future__ import annotations

import contextlib
import io
import re

from helpers import CHECKPOINTS, ROOT


def test_the_page_does_what_it_shows():
    page = (ROOT / "docs" / "first_reward.md").read_text()
    blocks = re.findall(r"```(\w+)\n(.*?)```", page, flags=re.DOTALL)
    assert [kind for kind, _ in blocks] == ["python", "python", "text", "python", "python", "text"]
    names = {"TOKENIZER": str(CHECKPOINTS / "small-t5-tokenizer")}
    printed = io.StringIO()
    for kind, text in blocks:
        if kind == "text":
            assert printed.getvalue() == text
            printed = io.StringIO()
        else:
            with contextlib.redirect_stdout(printed):
                exec(compile(text, "first_reward.md", "exec"), names)
    # ten lines, blank ones left out
    assert len([line for line in blocks[0][1].splitlines() if line.strip()]) <= 10
