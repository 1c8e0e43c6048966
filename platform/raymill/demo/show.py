"""Last step of `make demo`: evaluate the stages, print the table of figures, and write demo.html."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from html import escape
from pathlib import Path

from raymill.data.store.manifest import load_prepared
from raymill.demo.figures import STAGES, Example, Figures, measure
from raymill.demo.table import EXAMPLES, Row, example_text, examples, rows, table_text
from raymill.durable import write_atomic
from raymill.evaluate.baselines import baselines
from raymill.report.page import RunSummary, document

# The reward model is missing here because it writes no text.
MODELS = {"pretrain": "pretrained", "sft": "sft", "rlhf": "aligned"}
PAGE_NAME, FIGURES_NAME = "demo.html", "demo.json"

_STYLE = """
td.q { font-weight: 600; white-space: nowrap; } .tag { color: var(--soft); font-size: .85rem; }
.talk { background: var(--card); border-radius: .5rem; padding: .6rem 1rem; margin: .8rem 0; }
.talk table { font-size: .95rem; }
.talk td:first-child { width: 7rem; } .talk tr:last-child td { border-bottom: 0; }
.right { color: #2f855a; } .wrong { color: var(--accent); }
code { background: var(--card); padding: 0 .2rem; border-radius: .2rem; }
"""


def show(summaries: Mapping[str, RunSummary], storage: Path, fraction: float, seed: int) -> Figures:
    """Evaluate and report the finished runs, whose `summaries` are keyed by the pipeline's stage."""
    folders = {
        name: Path(summaries[stage]["export"])
        for stage, name in MODELS.items()
        if stage in summaries
    }
    print("\nevaluating every stage on the held-out questions …", flush=True)
    gzip, digest = None, ""
    if (pretrained := summaries.get("pretrain")) is not None:
        digest = pretrained["data_digests"][0]
        gzip = baselines(load_prepared(Path(pretrained["data"][0]))).gzip
    figures = measure(folders, fraction, seed, digest)
    table = list(rows(figures, summaries, gzip))
    print("\n" + table_text(table))
    for example in figures.questions:
        print("\n" + example_text(example))
    print("\nexamples of questions it can answer:\n" + examples())
    page = storage / PAGE_NAME
    write_atomic(page, demo_page(figures, table))
    write_atomic(storage / FIGURES_NAME, json.dumps(asdict(figures), indent=1))
    print(f"\nthe same as a page: {page}", flush=True)
    return figures


def demo_page(figures: Figures, table: Sequence[Row]) -> str:
    """Return demo.html: one page that needs neither network nor scripts."""
    example_rows = "".join(
        f"<tr><td class=tag>{escape(topic)}</td><td>{escape(text)}</td></tr>"
        for topic, text in EXAMPLES
    )
    parts = [
        "<h1>An assistant trained on this machine</h1>",
        "<p class=sub>The effect of each stage, measured on questions and text outside the training data.</p>",
        _table(table),
        "<h2>One question per class</h2>",
        "<p class=sub>Selected by the digest of the corpus, not by hand.</p>",
        *map(_example, figures.questions),
        "<h2>Two failures</h2>",
        "<p class=sub>The first two held-out questions, in the same order, that the last model gets wrong.</p>",
        *map(_example, figures.failures),
        "<h2>Examples of questions it can answer</h2>",
        f"<table>{example_rows}</table>",
    ]
    if figures.functions is not None:
        parts += ["<h2>Functions written by the base model</h2>"]
        parts += [f"<pre>{escape(code)}</pre>" for code in figures.functions.functions[:3]]
    return document("Raymill: the demonstration", "\n".join(parts), _STYLE)


def _table(table: Sequence[Row]) -> str:
    body = "".join(
        f"<tr><td class=q>{escape(row.stage)}</td><td>{escape(row.figure)}</td>"
        f"<td class=n>{escape(row.before)}</td><td class=n><b>{escape(row.after)}</b></td>"
        f"<td class=tag>{escape(row.comparison)}</td></tr>"
        for row in table
    )
    head = (
        "<tr><th>stage</th><th>figure</th><th class=n>before</th><th class=n>after</th>"
        "<th>for comparison</th></tr>"
    )
    return f"<div class=wide><table>{head}{body}</table></div>"


def _example(example: Example) -> str:
    cells = [("expected", example.expected, "")]
    for stage in STAGES:
        if stage in example.answers:
            answer = example.answers[stage]
            cells.append((f"@{stage}", answer, "right" if answer == example.expected else ""))
    body = "".join(
        f'<tr><td class=tag>{escape(name)}</td><td class="{style}">{escape(text)}</td></tr>'
        for name, text, style in cells
    )
    return f"<div class=talk><b>{escape(example.question)}</b><table>{body}</table></div>"
