"""Make one HTML file of a body, data, styles and scripts. Nothing in the data can become markup or a script."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from ..report.tables import escape_html

FOLDER = Path(__file__).parent
DIGITS = 5  # significant, of numbers in a page; the files have all of them
_HALF_PAIR = re.compile("[\ud800-\udfff]")


def rounded(value: float) -> float:
    """A number as pages hold it."""
    return float(f"{value:.{DIGITS}g}")


def embed_json(value: object) -> str:
    """JSON to stand in a <script type="application/json">.

    Without `<` no text in it can end the element or start a comment. Half a surrogate pair, which has no UTF-8, is
    escaped. Raises ValueError for a number that is not finite: JSON has none.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return _HALF_PAIR.sub(lambda half: f"\\u{ord(half[0]):04x}", text.replace("<", "\\u003c"))


@cache
def read_asset(path: Path) -> str:
    """The text of a script or a style, without the comment that names its source map, which a browser could fetch."""
    return re.sub(r"\n?(//# sourceMappingURL=\S+|/\*# sourceMappingURL=\S+ \*/)\s*$", "\n", path.read_text("utf-8"))


def table_styles() -> list[str]:
    """The styles of a page with a table."""
    return [read_asset(FOLDER / "vendor" / "tabulator_simple.min.css"), read_asset(FOLDER / "table.css")]


def table_scripts() -> list[str]:
    """The scripts of a page with a table; its own come after them."""
    return [read_asset(FOLDER / "vendor" / "tabulator.min.js"), read_asset(FOLDER / "table.js")]


def assemble(title: str, body: str, styles: Sequence[str], scripts: Sequence[str] = (), data: object = None) -> str:
    """The whole page. Its policy allows these scripts, by their hashes, and no request at all.

    body: HTML. data: JSON value that the scripts read as `Page.data()`; without scripts it is left out.
    """
    hashes = " ".join(f"'sha256-{_sha256(script)}'" for script in scripts)
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    if scripts:
        policy += f"; script-src {hashes}"
    embedded = f'<script type="application/json" id="data">{embed_json(data)}</script>\n' if scripts else ""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{escape_html(title)}</title>
{"".join(f"<style>{style}</style>" for style in styles)}
</head>
<body>
{body}
{embedded}{"".join(f"<script>{script}</script>" for script in scripts)}
</body>
</html>
"""


def _sha256(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
