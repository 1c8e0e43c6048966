"""report.html of a finished run: results, samples, origin and next commands, in one file without network.

The sections that depend on the kind of job come from its `Card`.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TypedDict

from raymill.data.store.location import source_names
from raymill.data.store.manifest import PreparedData
from raymill.engine.event_log import Event
from raymill.reading import entries, read_bytes, read_text
from raymill.redaction import append_arguments, job_command
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


INK, TRAIN, HELD_OUT, GRID = "#1f2933", "#9fb3c8", "#d64545", "#e4e7eb"


class RunSummary(TypedDict):
    """summary.json of a finished run."""

    run: str
    status: str
    figures: dict[str, float]
    checkpoint: str
    checkpoint_digest: str
    export: str
    adapter: str | None
    registered: str | None
    parent: str | None
    reward: str | None
    data: list[str]
    data_digests: list[str]
    config_digest: str
    code_commit: str | None
    metrics: str
    command: str
    going_on: str | None


@dataclass(frozen=True)
class FinishedRun:
    """Everything that a report is made of."""

    folder: Path
    prepared: Sequence[PreparedData]
    events: Sequence[Event]
    summary: RunSummary


class StoredTable(TypedDict):
    """Table of sampled answers as a run stores it."""

    columns: list[str]
    data: list[list[object]]


@dataclass(frozen=True)
class Tile:
    """Headline figure in large type."""

    value: str
    text: str
    main: bool = False


@dataclass(frozen=True)
class Column:
    """Column of the table of evaluations: heading, metric name and number format."""

    title: str
    name: str
    form: str


@dataclass(frozen=True)
class Curve:
    """Plot over tokens: a metric of the steps, one of the evaluations, and the label of their axis."""

    train: str = "train/loss"
    held_out: str = "eval/loss"
    label: str = "loss (nats per token)"


@dataclass(frozen=True)
class Card:
    """Parts of a report that depend on the kind of job.

    `headlines` are printed on the terminal. `sections` are HTML, placed after the evaluations. `next_job`:
    the job that uses the model, and its configuration key for it.
    """

    headlines: tuple[str, ...]
    tiles: tuple[Tile, ...]
    columns: tuple[Column, ...]
    sections: tuple[str, ...]
    lineage: tuple[tuple[str, str], ...]
    next_job: tuple[str, str]
    curve: Curve = Curve()


def by_source(
    prepared: Sequence[PreparedData],
    describe: Callable[[PreparedData], tuple[tuple[str, str], ...]],
) -> tuple[tuple[str, str], ...]:
    """Describe each data source in rows of (topic, text), prefixed with its name if there are several."""
    if len(prepared) == 1:
        return describe(prepared[0])
    named = zip(source_names(prepared), prepared, strict=True)
    return tuple(
        (f"{name}: {topic}", text) for name, data in named for topic, text in describe(data)
    )


def sample_files(run_dir: Path, kind: str) -> list[Path]:
    """Return the files of a run's samples of one kind, in the order of their steps."""
    return [path for path in entries(run_dir / "samples") if path.name.startswith(f"{kind}-")]


def write_report(run: FinishedRun, card: Card) -> tuple[Path, Path]:
    """Write report.html and loss.png; return their paths."""
    summary = run.summary
    steps = last_of_each_step(run.events, "step")
    evaluations = last_of_each_step(run.events, "evaluation")
    plot, path = run.folder / "loss.png", run.folder / "report.html"
    draw_curve(steps, evaluations, card.curve, plot)
    figures, label = summary["figures"], card.curve.label
    # The plot is embedded, so that the report is a single file.
    picture = base64.b64encode(read_bytes(plot)).decode("ascii")
    sections = [
        f"<h1>{escape(summary['run'])}</h1>",
        f"<p class=sub>{figures['steps']:,} steps, {figures['tokens']:,} tokens, "
        f"{figures['perf/tokens_per_s']:,.0f} tokens/s</p>",
        tiles(card.tiles),
        f"<h2>{escape(label.partition(' (')[0].capitalize())}</h2>",
        f'<img alt="training and held-out {escape(label)} over tokens" '
        f'src="data:image/png;base64,{picture}">',
        _evaluations(evaluations, card.columns),
        *card.sections,
        "<h2>Origin</h2>",
        table([*_origin(summary), *card.lineage]),
        "<h2>Next commands</h2>",
        f"<pre>{escape(_commands(summary, card.next_job))}</pre>",
        "<h2>Configuration</h2>",
        f"<pre>{escape(read_text(run.folder / 'config.yaml'))}</pre>",
    ]
    page = document(f"{summary['run']} – Raymill", "\n".join(sections))
    path.write_text(page, encoding="utf-8")
    return path, plot


def draw_curve(
    steps: Sequence[Event], evaluations: Sequence[Event], curve: Curve, path: Path
) -> None:
    """Plot the training metric and the held-out metric over tokens into an image file."""
    # The import takes seconds, and only the end of a run needs it.
    import matplotlib

    # Cluster nodes have no display.
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4), dpi=150)
    # Steps may lack the metric: a reward is missing where no answer could be scored.
    trained = [event for event in steps if event.get(curve.train) is not None]
    evaluated = [event for event in evaluations if event.get(curve.held_out) is not None]
    axes.plot(
        [event["tokens"] / 1e6 for event in trained],
        [event[curve.train] for event in trained],
        color=TRAIN,
        linewidth=1.2,
        label="training",
    )
    axes.plot(
        [event["tokens"] / 1e6 for event in evaluated],
        [event[curve.held_out] for event in evaluated],
        color=HELD_OUT,
        marker="o",
        markersize=4,
        linewidth=1.8,
        label="held out",
    )
    axes.set_xlabel("tokens (millions)", color=INK)
    axes.set_ylabel(curve.label, color=INK)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)


def document(title: str, body: str, style: str = "") -> str:
    """Return an HTML page in the style of the reports; `style` is additional CSS."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}{style}</style></head><body>"
        f"{body}</body></html>\n"
    )


def table(rows: Sequence[tuple[str, str]]) -> str:
    """Return an HTML table of (topic, text) rows."""
    body = "".join(f"<tr><th>{escape(k)}</th><td>{escape(v)}</td></tr>" for k, v in rows)
    return f"<table>{body}</table>"


def sheet(stored: StoredTable, rows: int | None = None) -> str:
    """Return a stored table of questions and answers as HTML, or its first `rows` rows."""
    heads = "".join(f"<th>{escape(name)}</th>" for name in stored["columns"])
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>"
        for row in stored["data"][:rows]
    )
    return f"<table class=even><tr>{heads}</tr>{body}</table>"


def tiles(chosen: Sequence[Tile]) -> str:
    """Return headline figures side by side, as HTML."""
    return "<div class=cards>" + "".join(map(_tile, chosen)) + "</div>"


def _tile(tile: Tile) -> str:
    style = "card main" if tile.main else "card"
    return f'<div class="{style}"><b>{escape(tile.value)}</b><span>{escape(tile.text)}</span></div>'


def _evaluations(evaluations: Sequence[Event], columns: Sequence[Column]) -> str:
    def cells(event: Event) -> str:
        values = (event.get(column.name) for column in columns)
        return "".join(
            f"<td class=n>{'' if value is None else format(value, column.form)}</td>"
            for value, column in zip(values, columns, strict=True)
        )

    rows = "".join(
        f"<tr><td class=n>{event['step']:,}</td>{cells(event)}</tr>" for event in evaluations
    )
    heads = "".join(f"<th class=n>{escape(column.title)}</th>" for column in columns)
    return (
        "<h2>Held-out evaluations</h2><div class=wide><table><tr><th class=n>step</th>"
        f"{heads}</tr>{rows}</table></div>"
    )


def _origin(summary: RunSummary) -> list[tuple[str, str]]:
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


def _commands(summary: RunSummary, next_job: tuple[str, str]) -> str:
    job, key = next_job
    model = f"{key}={summary['export']}"
    use = f"# use the model\n{job_command(job, model)}\n"
    # A run whose schedule has decayed to the end can't be continued.
    if summary["going_on"] is None:
        return use
    return f"{use}\n# train for more steps\n{append_arguments(summary['command'], summary['going_on'])}\n"
