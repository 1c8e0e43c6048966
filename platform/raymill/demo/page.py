"""demo.html: the demonstration's end as one page, without network or scripts."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from raymill.demo.figures import STAGES, Figures, Shown
from raymill.demo.table import EXAMPLES, Line
from raymill.report.page import document

_STYLE = """
td.q { font-weight: 600; white-space: nowrap; } .tag { color: var(--soft); font-size: .85rem; }
.talk { background: var(--card); border-radius: .5rem; padding: .6rem 1rem; margin: .8rem 0; }
.talk table { font-size: .95rem; }
.talk td:first-child { width: 7rem; } .talk tr:last-child td { border-bottom: 0; }
.right { color: #2f855a; } .wrong { color: var(--accent); }
code { background: var(--card); padding: 0 .2rem; border-radius: .2rem; }
"""


def demo_page(figures: Figures, table: Sequence[Line]) -> str:
    """The whole page."""
    parts = [
        "<h1>An assistant made on this machine</h1>",
        "<p class=sub>What each stage changed, measured on questions and text that nothing was trained on.</p>",
        _table(table),
        "<h2>One question of each kind</h2>",
        "<p class=sub>Chosen by the digest of the corpus, not by hand.</p>",
        *map(_talk, figures.questions),
        "<h2>Two failures</h2>",
        "<p class=sub>The first two held-out questions, in the same order, that the last model gets wrong.</p>",
        *map(_talk, figures.failures),
        "<h2>What it can be asked</h2>",
        "<table>"
        + "".join(
            f"<tr><td class=tag>{escape(what)}</td><td>{escape(text)}</td></tr>"
            for what, text in EXAMPLES
        )
        + "</table>",
    ]
    if figures.functions is not None:
        written = figures.functions.functions[:3]
        parts += ["<h2>Functions the base model writes</h2>"]
        parts += [f"<pre>{escape(one)}</pre>" for one in written]
    return document("Raymill: the demonstration", "\n".join(parts), _STYLE)


def _table(table: Sequence[Line]) -> str:
    rows = "".join(
        f"<tr><td class=q>{escape(line.stage)}</td><td>{escape(line.what)}</td>"
        f"<td class=n>{escape(line.before)}</td><td class=n><b>{escape(line.after)}</b></td>"
        f"<td class=tag>{escape(line.yardstick)}</td></tr>"
        for line in table
    )
    head = "<tr><th>stage</th><th>what</th><th class=n>before</th><th class=n>after</th><th>beside</th></tr>"
    return f"<div class=wide><table>{head}{rows}</table></div>"


def _talk(shown: Shown) -> str:
    rows = [("expected", shown.expected, "")]
    for stage in STAGES:
        if stage in shown.answers:
            answer = shown.answers[stage]
            rows.append((f"@{stage}", answer, "right" if answer == shown.expected else ""))
    body = "".join(
        f'<tr><td class=tag>{escape(name)}</td><td class="{kind}">{escape(text)}</td></tr>'
        for name, text, kind in rows
    )
    return f"<div class=talk><b>{escape(shown.question)}</b><table>{body}</table></div>"
