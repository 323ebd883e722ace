"""Self-contained pages: nothing in the data is markup, and what others wrote is as they published it."""

from __future__ import annotations

import hashlib
import json
import re

from hypothesis import example, given, settings
from hypothesis import strategies as st

from alarm.evaluation.pages.colours import BLUE, DARK_BLUE, DARK_ORANGE, ORANGE
from alarm.evaluation.pages.page import FOLDER, assemble, embed_json, table_scripts, table_styles
from alarm.evaluation.report.figures import luminance

texts = st.text(st.characters(codec=None, exclude_categories=()), max_size=12)


@given(st.recursive(texts | st.none() | st.integers() | st.floats(allow_nan=False, allow_infinity=False), st.lists))
@example("</script><script>alert(1)</script>")
@example("<!--<script>")
@example("\ud800 \udc00 \u2028 \x00")
@settings(max_examples=300, deadline=None)
def test_embedded_json_ends_no_element_and_reads_back(value):
    text = embed_json(value)
    assert "<" not in text
    # a high and a low half side by side are one character for JSON
    assert json.dumps(json.loads(text)) == json.dumps(json.loads(json.dumps(value)))
    text.encode("utf-8")


def test_the_page_allows_its_own_scripts_alone():
    page = assemble("</title><script>alert(1)</script>", "<p>x</p>", ["p{}"], ["let a = 1;"], {"a": "</script>"})
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1]
    digest = hashlib.sha256(b"let a = 1;").digest()
    import base64

    assert f"script-src 'sha256-{base64.b64encode(digest).decode()}'" in policy
    assert "default-src 'none'" in policy and "connect-src" not in policy
    assert page.count("<script") == 2  # the data and the one script
    assert "script-src" not in assemble("t", "", [])


def test_what_others_wrote_is_as_published_with_its_licence():
    told = (FOLDER / "vendor" / "README.md").read_text()
    sums = dict(re.findall(r"\| `(\S+)` \| `([0-9a-f]{64})` \|", told))
    files = {path.name: path for path in (FOLDER / "vendor").iterdir() if path.name != "README.md"}
    assert sums == {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}
    (version,) = set(re.findall(r"\b6\.\d+\.\d+\b", told))
    assert f"Tabulator v{version} " in files["tabulator.min.js"].read_text()
    assert "MIT License" in files["LICENSE.tabulator"].read_text()


def test_assets_fetch_nothing():
    for text in [*table_styles(), *table_scripts()]:
        assert "sourceMappingURL" not in text and "</script" not in text and "</style" not in text
    for style in table_styles():
        assert not re.search(r"url\(|@import", style)


def test_colours_of_rewards_get_stronger():
    for light in (ORANGE, BLUE):
        assert sorted(map(luminance, light), reverse=True) == list(map(luminance, light))
    for dark in (DARK_ORANGE, DARK_BLUE):
        assert sorted(map(luminance, dark)) == list(map(luminance, dark))
