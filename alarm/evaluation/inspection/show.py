"""An inspection as text on the terminal and as a page: tokens coloured by their rewards."""

from __future__ import annotations

import html
import math
import re
from collections import Counter
from typing import TYPE_CHECKING

from ..pages.colours import BLUE, ORANGE, REWARD_CSS, STEPS
from .inspect import Difference, Inspection, Report, summary, visible

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

# --- on the screen ---------------------------------------------------------------------------------------------------

PROMPT_SHOWN = 240  # characters
RETOKENISED_NOTE = (
    "Tokens: the recorded text tokenised again, with EOS after it. The file does not hold the sampled tokens, which "
    "may have split the text in another way."
)
ONE_BATCH_NOTE = "The responses are placed as one padded batch by the code that PPO places them with."


def strength(value: float) -> int:
    """1 to 5, in steps of about three times the size."""
    return 1 + sum(abs(value) >= step for step in STEPS)


def signed(value: float) -> str:
    """Short, with its sign: +0.62, -12.3, +4e-04."""
    if not math.isfinite(value):
        return str(value)
    size = abs(value)
    if size < 1e-6:
        return "0"
    return f"{value:+.1f}" if size >= 10 else f"{value:+.2f}" if size >= 0.01 else f"{value:+.0e}"


def shorten(text: str, limit: int = PROMPT_SHOWN) -> str:
    """`text` without its middle if it is longer than `limit` characters."""
    if len(text) <= limit:
        return text
    return f"{text[: limit * 2 // 3]} [...] {text[-(limit // 3) :]}"


def holistic_line(one: Inspection) -> str:
    return f"raw score {one.raw:.4f}, h {one.h:+.4f}"


def difference_line(difference: Difference) -> str:
    return f"{difference.metric} {difference.recorded:.4f} recorded, {difference.here:.4f} here: {difference.reason}"


def print_report(report: Report, console: Console) -> None:
    """Print the settings, each response with its rewards, and what holds of all."""
    from rich.padding import Padding
    from rich.text import Text

    loud = "bold white on red"
    console.print(Text(visible(report.title), style="bold"))
    _print_facts(console, [(name, value, "") for name, value in report.settings.items()])
    console.print(f"{RETOKENISED_NOTE} {ONE_BATCH_NOTE}")
    console.print("[token value]: a token with a reward. Orange is positive, blue negative.\n")
    for one in report.inspections:
        console.rule(f"response {one.number}", align="left")
        facts = [("prompt", shorten(one.query), ""), ("holistic", holistic_line(one), "")]
        facts += [("gate", f"{one.decision.gate}: {one.decision.why}", ""), *(("note", note, "") for note in one.notes)]
        _print_facts(console, facts)
        for row in one.rows:
            usual = usual_value(row.values)
            every = "" if usual is None else f"; {signed(usual)} on each token that shows no value"
            console.print(Text(row.name, style="bold").append(f" ({row.note}), total {signed(row.total)}{every}"))
            tokens = token_text(one.tokens, row.values, usual)
            console.print(Padding(tokens, (0, 0, 0, 4), expand=False))
        facts = [("check", one.check.fact, "")] if one.check.fact else []
        facts += [("CHECK FAILED", problem, loud) for problem in one.check.problems]
        facts += [("differs", difference_line(difference), "") for difference in one.differences]
        _print_facts(console, facts)
        console.print()
    for line in summary(report):
        console.print(Text(line, style=loud if line.startswith("CHECK FAILED") else "bold"))


def _print_facts(console: Console, facts: list[tuple[str, str, str]]) -> None:
    """Labels, texts and styles, a line each, the texts in one column."""
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for label, text, style in facts:
        grid.add_row(Text(label, style=style or "bold"), Text(visible(text), style=style))
    console.print(grid)


def usual_value(values: list[float]) -> float | None:
    """The reward that more than half of the tokens have, if it is not 0. It is printed once."""
    value, times = Counter(values).most_common(1)[0]
    return value if value and times > 2 and 2 * times > len(values) else None


def token_text(tokens: list[str], values: list[float], usual: float | None) -> Text:
    """The tokens as coloured text; those with a reward of their own in brackets with it."""
    from rich.text import Text

    text = Text()
    for token, value in zip(tokens, values, strict=True):
        colour = (ORANGE if value > 0 else BLUE)[strength(value) - 1] if value else None
        style = f"{'white' if strength(value) == 5 else 'black'} on {colour}" if colour else ""
        word = token.lstrip(" ")
        text.append(token[: len(token) - len(word)])
        text.append(word if value == (usual or 0.0) else f"[{word} {signed(value)}]", style=style)
    return text


# --- as a page -------------------------------------------------------------------------------------------------------

_CSS = f"""
:root {{ color-scheme: light dark; --paper: #fff; --ink: #1b1b1b; --soft: #5c5c5c; --line: #d4d4d0; --panel: #f6f6f4;
  --bad: #a3123a }}
@media (prefers-color-scheme: dark) {{ :root {{ --paper: #16181b; --ink: #e9e7e3; --soft: #a9a6a0; --line: #3a3d42;
  --panel: #1f2226; --bad: #ff7b9c }} }}
* {{ box-sizing: border-box }}
body {{ margin: 0 auto; padding: 1rem; max-width: 72rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere }}
h1 {{ font-size: 1.3rem }}
h2 {{ font-size: 1.05rem; margin: 0 0 .4rem }}
a {{ color: inherit }}
section {{ border-top: 2px solid var(--line); padding: 1rem 0; margin-top: 1rem }}
dl {{ display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; margin: .3rem 0 }}
dt {{ color: var(--soft) }}
dd {{ margin: 0; min-width: 0 }}
.soft {{ color: var(--soft); font-size: .9rem; margin: .3rem 0 }}
.bad {{ border: 3px solid var(--bad); color: var(--bad); font-weight: 700; padding: .4rem .7rem; margin: .5rem 0 }}
.tokens {{ background: var(--panel); padding: .3rem .5rem; line-height: 1.6; white-space: pre-wrap;
  border-radius: 4px; margin-bottom: .5rem }}
.final {{ border-left: 4px solid var(--ink) }}
.v {{ display: inline-block; position: relative; min-width: 2.1rem; text-align: center; line-height: 1.3;
  white-space: pre; color: var(--on); border-radius: 3px; border-bottom: 3px solid var(--ink); margin: 0 1px 1rem }}
.v::after {{ content: attr(data-v); position: absolute; top: calc(100% + 4px); left: 0; right: 0; color: var(--ink);
  font-size: .7rem; line-height: 1; font-variant-numeric: tabular-nums }}
.n {{ border-bottom-style: dotted }}
{REWARD_CSS}
.sum {{ margin: .3rem 0 }}
code {{ font: inherit; white-space: nowrap }}
.tokens span:not(:first-child) {{ box-shadow: -1px 0 var(--line) }}
.scroll {{ overflow: auto; max-height: 24rem }}
table {{ border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums }}
th {{ color: var(--soft); font-weight: 400 }}
td, th {{ padding: .1rem 1.2rem .1rem 0; text-align: right; white-space: nowrap }}
:is(td, th):is(:nth-child(2), :nth-child(3)) {{ text-align: left }}
.legend .v {{ min-width: 2.9rem; margin-bottom: .3rem }}
@media (max-width: 600px) {{
  body {{ padding: .6rem }}
  dl {{ grid-template-columns: 1fr; gap: 0 }}
  dd {{ margin-bottom: .3rem }}
  td, th {{ padding-right: .5rem }}
  table {{ font-size: .8rem }}
}}
"""


def html_report(report: Report) -> str:
    """The report as one self-contained page, light or dark as the reader's system is."""
    page = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{_text(report.title)}</title><style>{_CSS}</style></head><body>",
        f"<h1>{_text(report.title)}</h1>",
        *(
            f'<p class="{"bad" if line.startswith("CHECK FAILED") else "sum"}">{_flags(line)}</p>'
            for line in summary(report)
        ),
        _definitions(report.settings),
        _paragraph(f"{RETOKENISED_NOTE} {ONE_BATCH_NOTE}", "soft"),
        _legend(),
        _contents(report),
        *map(_section, report.inspections),
        "</body></html>",
    ]
    return "\n".join(page) + "\n"


def _text(text: str) -> str:
    return html.escape(visible(text))


def _flags(text: str) -> str:
    """Escaped, with no line break inside the name of a flag."""
    return re.sub(r"--\w+", r"<code>\g<0></code>", _text(text))


def _paragraph(text: str, kind: str) -> str:
    return f'<p class="{kind}">{_text(text)}</p>'


def _definitions(pairs: dict[str, str]) -> str:
    return "<dl>" + "".join(f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>" for name, value in pairs.items()) + "</dl>"


def _token(token: str, value: float, title: str) -> str:
    if value == 0:
        return f'<span title="{html.escape(title)}">{html.escape(token)}</span>'
    sign = "p" if value > 0 else "n"
    shown = signed(value).replace("-", "−")
    kinds = f"v {sign} {sign}{strength(value)}"
    return f'<span class="{kinds}" data-v="{shown}" title="{html.escape(title)}">{html.escape(token)}</span>'


def _legend() -> str:
    names = [f"&lt; {STEPS[0]:g}", *(f"≥ {step:g}" for step in STEPS)]

    def swatches(sign: str) -> str:
        return "".join(f'<span class="v {sign} {sign}{k}">{name}</span>' for k, name in enumerate(names, start=1))

    return (
        f'<p class="legend">− dotted: {swatches("n")}<br>+ solid: {swatches("p")}</p>'
        '<p class="soft">The number below a token is its reward; a token without one has 0. Hover for all digits.</p>'
    )


def _contents(report: Report) -> str:
    """A line a response: a link to it, and its results."""
    titles = ("response", "check", "gate", "h", "final reward")
    rows = ["<tr>" + "".join(f"<th>{title}</th>" for title in titles) + "</tr>"]
    for one in report.inspections:
        check = "FAILED" if one.check.problems else "ok"
        differ = f"; {len(one.differences)} of {one.compared} differ" if one.differences else ""
        link = f'<a href="#r{one.number}">{one.number}</a>'
        cells = (link, check + differ, one.decision.gate, f"{one.h:+.4f}", f"{one.final.total:+.4f}")
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return f'<div class="scroll"><table>{"".join(rows)}</table></div>'


def _section(one: Inspection) -> str:
    prompt = _text(shorten(one.query))
    if len(one.query) > PROMPT_SHOWN:
        prompt = f"<details><summary>{prompt}</summary>{_text(one.query)}</details>"
    problems = "<br>".join(map(_text, one.check.problems))
    parts = [
        f'<section id="r{one.number}"><h2>response {one.number}</h2>',
        f"<dl><dt>prompt</dt><dd>{prompt}</dd><dt>holistic</dt><dd>{_text(holistic_line(one))}</dd>",
        f"<dt>gate</dt><dd><b>{one.decision.gate}</b>: {_text(one.decision.why)}</dd></dl>",
        *([f'<p class="bad">CHECK FAILED<br>{problems}</p>'] if problems else []),
        *(_paragraph(f"note: {note}", "soft") for note in one.notes),
    ]
    for row in one.rows:
        numbered = enumerate(zip(one.tokens, row.values, strict=True), start=1)
        spans = [
            _token(token, value, f"{number} of {len(one.tokens)}: {value:+.6g}") for number, (token, value) in numbered
        ]
        parts.append(
            f"<div><b>{_text(row.name)}</b> ({_text(row.note)}), total {row.total:+.4f}</div>"
            f'<div class="tokens{" final" if row is one.final else ""}">{"".join(spans)}</div>'
        )
    if one.check.fact:
        parts.append(_paragraph(f"check: {one.check.fact}", "soft"))
    parts += [f'<p class="soft">differs: {_flags(difference_line(difference))}</p>' for difference in one.differences]
    return "\n".join([*parts, "</section>"])
