"""report.html: what a run reached, how, from what, and what to type next; one file, no network."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from raymill.data.manifest import Prepared
from raymill.errors import DataError
from raymill.evaluate.baselines import Baselines, baselines
from raymill.report.curve import draw_curve
from raymill.track.follow import Follower, last_of_each_step

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
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
pre { background: var(--card); border-radius: .5rem; padding: .8rem 1rem; overflow-x: auto;
  white-space: pre-wrap; font-size: .85rem; } pre em { color: var(--accent); font-style: normal; }
"""


@dataclass(frozen=True)
class Report:
    """Where the page and its curve are, and its figures as lines for a terminal."""

    path: Path
    curve: Path
    headlines: tuple[str, ...]


def write_report(run_dir: Path, prepared: Prepared) -> Report:
    """Write report.html and loss.png from the run's journal, samples and summary."""
    events = Follower(run_dir / "metrics.jsonl").read()
    steps = last_of_each_step(events, "step")
    held_out = last_of_each_step(events, "evaluation")
    summary = json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))
    curve = run_dir / "loss.png"
    draw_curve(steps, held_out, curve)
    yardsticks = _baselines_or_none(prepared)
    before, after = held_out[0]["eval/bits_per_byte"], held_out[-1]["eval/bits_per_byte"]
    page = _page(run_dir, summary, curve, before, after, yardsticks, held_out, prepared)
    path = run_dir / "report.html"
    path.write_text(page, encoding="utf-8")
    headlines = [f"held out: {before:.4f} bits per byte before training, {after:.4f} after"]
    if yardsticks is not None:
        headlines.append(
            f"          byte trigram {yardsticks.byte_trigram:.4f}, gzip -9 {yardsticks.gzip:.4f}, "
            f"xz -9 {yardsticks.xz:.4f}"
        )
    return Report(path, curve, tuple(headlines))


def _baselines_or_none(prepared: Prepared) -> Baselines | None:
    try:
        return baselines(prepared)
    except DataError:  # a tokenizer that doesn't give its text back has no byte baselines
        return None


def _page(
    run_dir: Path,
    summary: dict[str, Any],
    curve: Path,
    before: float,
    after: float,
    yardsticks: Baselines | None,
    held_out: list[dict[str, Any]],
    prepared: Prepared,
) -> str:
    figures = summary["figures"]
    cards = [(f"{after:.3f}", "bits per byte, held out", True), (f"{before:.3f}", "before", False)]
    if yardsticks is not None:
        cards += [
            (f"{yardsticks.byte_trigram:.3f}", "byte trigram, same training text", False),
            (f"{yardsticks.gzip:.3f}", "gzip -9", False),
            (f"{yardsticks.xz:.3f}", "xz -9", False),
        ]
    picture = base64.b64encode(curve.read_bytes()).decode("ascii")
    sections = [
        f"<h1>{escape(summary['run'])}</h1>",
        f"<p class=sub>{figures['steps']:,} steps, {figures['tokens']:,} tokens, "
        f"{figures['perf/tokens_per_s']:,.0f} tokens/s</p>",
        "<div class=cards>" + "".join(_card(*card) for card in cards) + "</div>",
        "<h2>Loss</h2>",
        f'<img alt="training and held-out loss over tokens" src="data:image/png;base64,{picture}">',
        _evaluations(held_out),
        _samples(run_dir),
        "<h2>Where it comes from</h2>",
        _table(_lineage(summary, prepared)),
        "<h2>What to type next</h2>",
        f"<pre>{escape(_commands(summary))}</pre>",
        "<h2>Configuration</h2>",
        f"<pre>{escape((run_dir / 'config.yaml').read_text(encoding='utf-8'))}</pre>",
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(summary['run'])} – Raymill</title><style>{_STYLE}</style></head><body>"
        + "\n".join(sections)
        + "</body></html>\n"
    )


def _card(value: str, text: str, main: bool) -> str:
    kind = "card main" if main else "card"
    return f'<div class="{kind}"><b>{escape(value)}</b><span>{escape(text)}</span></div>'


def _evaluations(held_out: list[dict[str, Any]]) -> str:
    rows = "".join(
        f"<tr><td class=n>{event['step']:,}</td><td class=n>{event['eval/loss']:.4f}</td>"
        f"<td class=n>{event['eval/perplexity']:,.1f}</td>"
        f"<td class=n>{event['eval/bits_per_byte']:.4f}</td></tr>"
        for event in held_out
    )
    heads = "".join(
        f"<th class=n>{name}</th>"
        for name in ("step", "held-out loss", "perplexity", "bits per byte")
    )
    return f"<h2>Held-out evaluations</h2><table><tr>{heads}</tr>{rows}</table>"


def _samples(run_dir: Path) -> str:
    files = sorted((run_dir / "samples").glob("step-*.json"))
    if not files:
        return ""
    shown = [files[0], files[-1]] if len(files) > 1 else files
    parts = ["<h2>Samples</h2>"]
    for path in shown:
        step = int(path.stem.removeprefix("step-"))
        parts.append(f"<p class=sub>after step {step:,} (the prompt is coloured)</p>")
        for sample in json.loads(path.read_text(encoding="utf-8")):
            parts.append(f"<pre><em>{escape(sample['prompt'])}</em>{escape(sample['text'])}</pre>")
    return "\n".join(parts)


def _lineage(summary: dict[str, Any], prepared: Prepared) -> list[tuple[str, str]]:
    manifest = prepared.manifest
    train, held_out = manifest.splits["train"], manifest.splits["validation"]
    return [
        ("registered", str(summary["registered"] or "not registered")),
        ("checkpoint", f"{summary['checkpoint']} ({summary['checkpoint_digest'][:16]}…)"),
        ("exported", summary["export"]),
        ("parent", str(summary["parent"] or "none: trained from scratch")),
        ("data", "; ".join(summary["data"])),
        ("data digests", ", ".join(digest[:16] + "…" for digest in summary["data_digests"])),
        ("training text", f"{train.bytes:,} bytes, {train.tokens:,} tokens"),
        ("held-out text", f"{held_out.bytes:,} bytes, {held_out.tokens:,} tokens"),
        (
            "contamination",
            f"{manifest.contamination.share:.2%} of held-out {manifest.contamination.unit} "
            f"{manifest.contamination.n}-grams occur in the training text",
        ),
        (
            "tokenizer",
            f"{manifest.tokenizer.vocab_size:,} ({manifest.tokenizer.fingerprint[:16]}…)",
        ),
        ("code", summary["code_commit"] or "unknown"),
        ("configuration", summary["config_digest"][:16] + "…"),
    ]


def _table(rows: list[tuple[str, str]]) -> str:
    body = "".join(f"<tr><th>{escape(k)}</th><td>{escape(v)}</td></tr>" for k, v in rows)
    return f"<table>{body}</table>"


def _commands(summary: dict[str, Any]) -> str:
    return (
        f"# talk to it\npython jobs/generate.py model={summary['export']}\n\n"
        f"# go on (the same command with more steps resumes)\n{summary['command']} "
        "train.steps=…\n"
    )
