"""A report as one HTML file that needs nothing else, and as Markdown beside its figures."""

from __future__ import annotations

import base64
import random
import struct
from dataclasses import dataclass

import numpy as np

from ..compare import HOLISTIC, comparable_metrics
from ..generations import Generations
from .tables import Table, breakable, escape_html, escape_markdown, to_html, to_markdown

SAMPLES = 20
PROMPT_LENGTH, ANSWER_LENGTH = 6000, 2500  # characters shown
OPEN_ROWS = 15  # a longer table starts closed


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
    title: str, description: list[str], tables: dict[str, Table], pictures: dict[str, Picture], samples: str = ""
) -> str:
    """The whole page; its pictures are data URIs. samples: HTML of the section of answers, "" for none."""
    sections = []
    for key, table in tables.items():
        body = to_html(table, f"{key}-title")
        if sum(len(section.rows) for section in table.sections) > OPEN_ROWS:
            rows = sum(len(section.rows) for section in table.sections)
            body = f"<details><summary>Table of {rows} rows</summary>{body}</details>"
        sections.append((key, table.title, (_figure(pictures[key]) if key in pictures else "") + body))
    if samples:
        sections.insert(len(sections) - 1, ("answers", "Answers side by side", samples))
    contents = "".join(f'<li><a href="#{key}">{escape_html(heading)}</a></li>' for key, heading, _ in sections)
    bodies = "\n".join(
        f'<section id="{key}"><h2 id="{key}-title">{breakable(heading)}</h2>\n{body}</section>'
        for key, heading, body in sections
    )
    lines = "".join(f"<p>{breakable(line)}</p>\n" for line in description)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{escape_html(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<header><h1>{breakable(title)}</h1>
{lines}</header>
<nav aria-label="Contents"><ul>{contents}</ul></nav>
<main>
{bodies}
</main>
</body>
</html>
"""


def _figure(picture: Picture) -> str:
    width, height = picture.size
    data = base64.b64encode(picture.png).decode("ascii")
    return (
        f'<figure><div class="scroll card" tabindex=0 role=region aria-label="{escape_html(picture.file)}">'
        f'<img src="data:image/png;base64,{data}" width={width} height={height} alt="{escape_html(picture.alt)}"></div>'
        f"<figcaption>{escape_html(picture.caption)}</figcaption></figure>\n"
    )


# --- answers side by side ----------------------------------------------------------------------------------------


def choose_samples(runs: list[Generations], seed: int, count: int = SAMPLES) -> list[tuple[int, str]]:
    """Rows to read, each with why it was chosen: half by the spread of the holistic reward, the rest at random.

    The same for the same seed; all rows where there are no more than `count`.
    """
    rewards = comparable_metrics(runs)[HOLISTIC]
    spread = rewards.max(axis=0) - rewards.min(axis=0)
    widest = [int(row) for row in np.argsort(-spread, kind="stable")[: count // 2] if spread[row] > 0]
    others = sorted(set(range(len(spread))) - set(widest))
    drawn = random.Random(seed).sample(others, min(count - len(widest), len(others)))
    return [(row, "large difference") for row in widest] + [(row, "random") for row in drawn]


def samples_section(runs: list[Generations], chosen: list[tuple[int, str]], seed: str) -> str:
    """The chosen prompts, each with every run's answer and metrics. seed: whose answers, "" for the only ones."""
    entries = []
    rewards = comparable_metrics(runs)[HOLISTIC]
    for row, why in chosen:
        prompt = runs[0].queries[row]
        excerpt = " ".join(prompt.split())
        excerpt = excerpt if len(excerpt) <= 110 else f"{excerpt[:110]}…"
        cards = []
        for run, reward in zip(runs, rewards[:, row], strict=True):
            numbers = "".join(
                f"<div><dt>{breakable(metric)}</dt><dd>{values[row]:.4g}</dd></div>"
                for metric, values in run.metrics.items()
            )
            highest = len(runs) > 1 and reward == rewards[:, row].max()
            mark = " <span class=mark>highest holistic reward</span>" if highest else ""
            cards.append(
                f"<article><h4>{breakable(run.name)}{mark}</h4>"
                f"<p class=answer>{_excerpt(run.generations[row], ANSWER_LENGTH)}</p><dl>{numbers}</dl></article>"
            )
        entries.append(
            f"<details><summary><span class=mark>{why}</span> {escape_html(excerpt)}</summary>\n"
            f"<h3>Prompt</h3><p class=answer>{_excerpt(prompt, PROMPT_LENGTH)}</p>\n"
            f"<div class=cards>{''.join(cards)}</div></details>"
        )
    widest = sum(why.startswith("large") for _, why in chosen)
    whose = f" Answers of {escape_html(seed)}." if seed else ""
    return (
        f"<p class=note>{len(chosen)} prompts: the {widest} on which the holistic rewards of the runs differ most, and "
        f"{len(chosen) - widest} drawn at random.{whose}</p>\n" + "\n".join(entries)
    )


def _excerpt(text: str | None, length: int) -> str:
    if not text or not text.strip():
        return "<em>(empty)</em>"
    cut = f" <em>… ({len(text) - length} more characters)</em>" if len(text) > length else ""
    return escape_html(text[:length]) + cut


_STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1b; --soft: #5a5a5a; --paper: #fff; --line: #d4d4d4; --shade: #f3f4f6;
  --link: #174a8b; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e6e6; --soft: #a8a8a8; --paper: #16181c; --line: #3a3d44;
  --shade: #20232a; --link: #8ab8f0; } }
* { box-sizing: border-box; }
html { scroll-padding-top: 3.2rem; }
body { margin: 0 auto; max-width: 74rem; padding: 0 1rem 4rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { margin: 1.5rem 0 .5rem; font-size: 1.6rem; line-height: 1.2; }
h2 { margin: 2.5rem 0 .4rem; font-size: 1.25rem; }
h3, h4 { margin: .8rem 0 .3rem; font-size: 1rem; }
header p { margin: .2rem 0; max-width: 60rem; }
a { color: var(--link); }
nav { position: sticky; top: 0; z-index: 3; margin: 1rem -1rem 0; padding: .45rem 1rem; background: var(--paper);
  border-bottom: 1px solid var(--line); overflow-x: auto; }
nav ul { display: flex; gap: 0 1.1rem; margin: 0; padding: 0; list-style: none; white-space: nowrap; font-size: .9rem; }
@media (min-width: 48rem) { nav ul { flex-wrap: wrap; } }
.note { margin: .2rem 0 .6rem; max-width: 60rem; color: var(--soft); font-size: .9rem; white-space: pre-line; }
.scroll { overflow-x: auto; }
table { border-spacing: 0; font-size: .9rem; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top;
  font-weight: normal; white-space: nowrap; }
thead th { font-weight: 600; vertical-align: bottom; border-bottom: 2px solid var(--soft); }
th.text, td.text, .section th { text-align: left; }
tbody th.text { white-space: normal; min-width: 8rem; }
tr > th:first-child { position: sticky; left: 0; background: var(--paper) padding-box; }
.section th { font-weight: 600; background: var(--shade) !important; padding-top: .5rem; }
small { color: var(--soft); }
figure { margin: .6rem 0 1rem; }
figcaption { color: var(--soft); font-size: .9rem; margin-top: .3rem; max-width: 60rem; }
.card { background: #fff; border: 1px solid var(--line); border-radius: .4rem; padding: .6rem; }
.card img { display: block; width: 100%; min-width: 44rem; height: auto; }
details { border: 1px solid var(--line); border-radius: .4rem; margin: .5rem 0; padding: .2rem .8rem; }
details[open] { padding-bottom: .8rem; }
summary { cursor: pointer; padding: .3rem 0; }
.mark { display: inline-block; padding: 0 .5rem; border: 1px solid var(--line); border-radius: 1rem;
  background: var(--shade); color: var(--soft); font-size: .8rem; font-weight: normal; white-space: nowrap; }
.answer { margin: 0; white-space: pre-wrap; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 15rem), 1fr)); gap: .8rem;
  margin-top: .8rem; }
article { display: flex; flex-direction: column; padding: .2rem .8rem .8rem; border-radius: .4rem;
  background: var(--shade); }
article .answer { flex: 1; }
dl { margin: .8rem 0 0; font-size: .85rem; font-variant-numeric: tabular-nums; }
dl div { display: flex; justify-content: space-between; gap: 1rem; border-top: 1px solid var(--line); }
dt { color: var(--soft); }
dd { margin: 0; }
"""
