"""A report as one HTML file that needs nothing else, and as Markdown beside its figures."""

from __future__ import annotations

import base64
import struct
from dataclasses import dataclass

from ..pages.page import assemble, table_scripts, table_styles
from .tables import Table, breakable, escape_html, escape_markdown, to_html, to_markdown

OPEN_ROWS = 15  # a longer table starts closed


@dataclass(frozen=True)
class Answers:
    """The section of the answers: its HTML, the script that fills it, and what that reads."""

    body: str
    script: str
    data: dict


@dataclass(frozen=True)
class Picture:
    file: str
    png: bytes
    alt: str
    caption: str

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels, from the header of the PNG."""
        return struct.unpack(">II", self.png[16:24])


def markdown_report(title: str, description: list[str], tables: dict[str, Table], pictures: dict[str, Picture]) -> str:
    """Title, sentences, tables; each picture, linked by its file name, above the table of the same key."""
    parts = [f"# {escape_markdown(title)}\n", *(f"{escape_markdown(line)}\n" for line in description)]
    for key, table in tables.items():
        text = to_markdown(table)
        if key in pictures:
            heading, rest = text.split("\n", 1)
            picture = pictures[key]
            image = f"![{escape_markdown(picture.alt)}]({picture.file})\n\n{escape_markdown(picture.caption)}\n"
            text = f"{heading}\n\n{image}{rest}"
        parts.append(text)
    return "\n".join(parts)


def html_page(
    title: str,
    description: list[str],
    tables: dict[str, Table],
    pictures: dict[str, Picture],
    answers: Answers | None = None,
) -> str:
    """The whole page; its pictures are data URIs."""
    sections = []
    for key, table in tables.items():
        body = to_html(table, f"{key}-title")
        if sum(len(section.rows) for section in table.sections) > OPEN_ROWS:
            rows = sum(len(section.rows) for section in table.sections)
            body = f"<details><summary>Table of {rows} rows</summary>{body}</details>"
        sections.append((key, table.title, (_figure(pictures[key]) if key in pictures else "") + body))
    if answers:
        sections.insert(len(sections) - 1, ("answers", "Answers side by side", answers.body))
    contents = "".join(f'<li><a href="#{key}">{escape_html(heading)}</a></li>' for key, heading, _ in sections)
    bodies = "\n".join(
        f'<section id="{key}"><h2 id="{key}-title">{breakable(heading)}</h2>\n{body}</section>'
        for key, heading, body in sections
    )
    lines = "".join(f"<p>{breakable(line)}</p>\n" for line in description)
    body = f"""<header><h1>{breakable(title)}</h1>
{lines}</header>
<nav aria-label="Contents"><ul>{contents}</ul></nav>
<main>
{bodies}
</main>"""
    styles = [*table_styles(), _STYLE]
    if answers is None:
        return assemble(title, body, styles)
    return assemble(title, body, styles, [*table_scripts(), answers.script], answers.data)


def _figure(picture: Picture) -> str:
    width, height = picture.size
    data = base64.b64encode(picture.png).decode("ascii")
    return (
        f'<figure><div class="scroll card" tabindex=0 role=region aria-label="{escape_html(picture.file)}">'
        f'<img src="data:image/png;base64,{data}" width={width} height={height} alt="{escape_html(picture.alt)}"></div>'
        f"<figcaption>{escape_html(picture.caption)}</figcaption></figure>\n"
    )


_STYLE = """
html { scroll-padding-top: 3.2rem; }
body { margin: 0 auto; max-width: 74rem; padding: 0 1rem 4rem; }
h1 { margin: 1.5rem 0 .5rem; font-size: 1.6rem; line-height: 1.2; }
h2 { margin: 2.5rem 0 .4rem; font-size: 1.25rem; }
h3, h4 { margin: .8rem 0 .3rem; font-size: 1rem; }
header p { margin: .2rem 0; max-width: 60rem; }
nav { position: sticky; top: 0; z-index: 3; margin: 1rem -1rem 0; padding: .45rem 1rem; background: var(--paper);
  border-bottom: 1px solid var(--line); overflow-x: auto; }
nav ul { display: flex; gap: 0 1.1rem; margin: 0; padding: 0; list-style: none; white-space: nowrap; font-size: .9rem; }
@media (min-width: 48rem) { nav ul { flex-wrap: wrap; } }
.scroll { overflow-x: auto; }
table { border-spacing: 0; font-size: .9rem; line-height: 1.375rem; font-variant-numeric: tabular-nums;
  overflow-wrap: normal; }
th, td { padding: .3125rem .7rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top;
  font-weight: normal; white-space: nowrap; }
thead th { font-weight: 600; vertical-align: bottom; border-bottom: 2px solid var(--soft); }
th.text, td.text, .section th { text-align: left; }
tbody th.text { white-space: normal; min-width: 8rem; }
tr > th:first-child { position: sticky; left: 0; background: var(--paper) padding-box; }
.section th { font-weight: 600; background: var(--shade) !important; padding-top: .5rem; }
td small, th small { line-height: 1; }
figure { margin: .6rem 0 1rem; }
figcaption { color: var(--soft); font-size: .9rem; margin-top: .3rem; max-width: 60rem; }
.card { background: #fff; border: 1px solid var(--line); border-radius: .4rem; padding: .6rem; }
.card img { display: block; width: 100%; min-width: 44rem; height: auto; }
details { border: 1px solid var(--line); border-radius: .4rem; margin: .5rem 0; padding: .2rem .8rem; }
details[open] { padding-bottom: .8rem; }
summary { cursor: pointer; padding: .3rem 0; }
article.winner { border: 2px solid var(--link); }
"""
