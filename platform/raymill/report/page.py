"""report.html: what a run reached, how, from what, and what to type next; one file, no network.

What is shown of a kind of job is its card's business; this is the page around it.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from raymill.data.store.manifest import PreparedData
from raymill.engine.source_names import source_names
from raymill.reading import entries, read_bytes, read_text
from raymill.redaction import append_arguments, job_command
from raymill.report.curve import draw_curve
from raymill.track.follow import last_of_each_step

_STYLE = """
:root { color-scheme: light dark; --ink: #1f2933; --soft: #616e7c; --line: #e4e7eb;
  --card: #f5f7fa; --page: #ffffff; --accent: #d64545; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e7eb; --soft: #9aa5b1; --line: #323f4b;
  --card: #1f2933; --page: #14191f; --accent: #ff8787; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page);
  max-width: 54rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: 0; } h2 { font-size: 1.1rem; margin-top: 2.2rem; }
.sub { color: var(--soft); margin-top: .2rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .8rem; }
.card { background: var(--card); border-radius: .5rem; padding: .8rem 1rem; }
.card b { display: block; font-size: 1.5rem; font-variant-numeric: tabular-nums; }
.card.main b { color: var(--accent); } .card span { color: var(--soft); font-size: .85rem; }
img { width: 100%; border-radius: .5rem; background: #ffffff; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
td, th { text-align: left; padding: .3rem .6rem .3rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top; overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
table.even { table-layout: fixed; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
pre { background: var(--card); border-radius: .5rem; padding: .8rem 1rem; overflow-x: auto;
  white-space: pre-wrap; font-size: .85rem; } pre em { color: var(--accent); font-style: normal; }
"""


@dataclass(frozen=True)
class Tile:
    """A figure that stands out."""

    value: str
    text: str
    main: bool = False


@dataclass(frozen=True)
class Column:
    """A figure of the evaluations' table: its heading, its name in the journal, its format."""

    title: str
    name: str
    form: str


@dataclass(frozen=True)
class Curve:
    """What is drawn over tokens: a figure of the steps, one of the evaluations, and what both are."""

    train: str = "train/loss"
    held_out: str = "eval/loss"
    label: str = "loss (nats a token)"


@dataclass(frozen=True)
class Card:
    """What there is to say of one kind of job."""

    headlines: tuple[str, ...]  # lines for a terminal
    tiles: tuple[Tile, ...]
    columns: tuple[Column, ...]
    sections: tuple[str, ...]  # HTML, after the evaluations
    lineage: tuple[tuple[str, str], ...]
    ask: tuple[str, str]  # the job that uses the model, and the key that it is given under
    curve: Curve = Curve()


def by_source(
    prepared: Sequence[PreparedData],
    describe: Callable[[PreparedData], tuple[tuple[str, str], ...]],
) -> tuple[tuple[str, str], ...]:
    """Topics and texts of each data source, under its name where there are several."""
    if len(prepared) == 1:
        return describe(prepared[0])
    named = zip(source_names(prepared), prepared, strict=True)
    return tuple(
        (f"{name}: {topic}", text) for name, data in named for topic, text in describe(data)
    )


def sample_files(run_dir: Path, kind: str) -> list[Path]:
    """Files of a run's samples of one kind, in the order of their steps."""
    return [path for path in entries(run_dir / "samples") if path.name.startswith(f"{kind}-")]


def write_report(
    run_dir: Path, events: Sequence[dict[str, Any]], summary: dict[str, Any], card: Card
) -> tuple[Path, Path]:
    """Write report.html and loss.png; returns their paths."""
    steps = last_of_each_step(events, "step")
    evaluations = last_of_each_step(events, "evaluation")
    curve, path = run_dir / "loss.png", run_dir / "report.html"
    shown = card.curve
    draw_curve(steps, evaluations, shown.train, shown.held_out, shown.label, curve)
    figures = summary["figures"]
    picture = base64.b64encode(read_bytes(curve)).decode("ascii")
    sections = [
        f"<h1>{escape(summary['run'])}</h1>",
        f"<p class=sub>{figures['steps']:,} steps, {figures['tokens']:,} tokens, "
        f"{figures['perf/tokens_per_s']:,.0f} tokens/s</p>",
        "<div class=cards>" + "".join(map(_tile, card.tiles)) + "</div>",
        f"<h2>{escape(shown.label.partition(' (')[0].capitalize())}</h2>",
        f'<img alt="training and held-out {escape(shown.label)} over tokens" '
        f'src="data:image/png;base64,{picture}">',
        _evaluations(evaluations, card.columns),
        *card.sections,
        "<h2>Where it comes from</h2>",
        table([*_origin(summary), *card.lineage]),
        "<h2>What to type next</h2>",
        f"<pre>{escape(_commands(summary, card.ask))}</pre>",
        "<h2>Configuration</h2>",
        f"<pre>{escape(read_text(run_dir / 'config.yaml'))}</pre>",
    ]
    page = document(f"{summary['run']} – Raymill", "\n".join(sections))
    path.write_text(page, encoding="utf-8")
    return path, curve


def document(title: str, body: str, style: str = "") -> str:
    """One HTML page in the reports' style, with more of its own."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}{style}</style></head><body>"
        f"{body}</body></html>\n"
    )


def table(rows: Sequence[tuple[str, str]]) -> str:
    """Topics and texts."""
    body = "".join(f"<tr><th>{escape(k)}</th><td>{escape(v)}</td></tr>" for k, v in rows)
    return f"<table>{body}</table>"


def sheet(stored: Mapping[str, Any], rows: int | None = None) -> str:
    """A table of questions and answers as a run keeps it, or its first rows."""
    heads = "".join(f"<th>{escape(str(name))}</th>" for name in stored["columns"])
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>"
        for row in stored["data"][:rows]
    )
    return f"<table class=even><tr>{heads}</tr>{body}</table>"


def _tile(tile: Tile) -> str:
    kind = "card main" if tile.main else "card"
    return f'<div class="{kind}"><b>{escape(tile.value)}</b><span>{escape(tile.text)}</span></div>'


def _evaluations(evaluations: Sequence[dict[str, Any]], columns: Sequence[Column]) -> str:
    def cells(event: dict[str, Any]) -> str:
        found = (event.get(column.name) for column in columns)
        return "".join(
            f"<td class=n>{'' if value is None else format(value, column.form)}</td>"
            for value, column in zip(found, columns, strict=True)
        )

    rows = "".join(
        f"<tr><td class=n>{event['step']:,}</td>{cells(event)}</tr>" for event in evaluations
    )
    heads = "".join(f"<th class=n>{escape(column.title)}</th>" for column in columns)
    return (
        "<h2>Held-out evaluations</h2><div class=wide><table><tr><th class=n>step</th>"
        f"{heads}</tr>{rows}</table></div>"
    )


def _origin(summary: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [
        ("registered", str(summary["registered"] or "not registered")),
        ("checkpoint", f"{summary['checkpoint']} ({summary['checkpoint_digest'][:16]}…)"),
        ("exported", summary["export"]),
        ("parent", str(summary["parent"] or "none: trained from scratch")),
        ("data", "; ".join(summary["data"])),
        ("data digests", ", ".join(digest[:16] + "…" for digest in summary["data_digests"])),
        ("code", summary["code_commit"] or "unknown"),
        ("configuration", summary["config_digest"][:16] + "…"),
    ]
    if summary["adapter"]:
        rows.insert(3, ("adapter", summary["adapter"]))
    return rows


def _commands(summary: dict[str, Any], ask: tuple[str, str]) -> str:
    job, key = ask
    model = f"{key}={summary['export']}"
    use = f"# use it\n{job_command(job, model)}\n"
    if summary["going_on"] is None:
        return use
    return f"{use}\n# go on, for more steps\n{append_arguments(summary['command'], summary['going_on'])}\n"
