"""What a finished run leaves: an exported model, a registered version, a summary, a report."""

from __future__ import annotations

import json
import shlex
import statistics
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raymill.checkpoint.resume import Found
from raymill.data.manifest import load_prepared
from raymill.durable import write_atomic
from raymill.engine.assignment import Assignment
from raymill.errors import TrackingError
from raymill.model.export import export_folder
from raymill.track.console import RunConsole
from raymill.track.follow import Follower, last_of_each_step

if TYPE_CHECKING:
    from raymill.track.tracker import Tracker

SUMMARY_NAME = "summary.json"


def same_command() -> str:
    """What to type to run, or resume, this again."""
    return shlex.join(["python", *sys.argv])


def finish(assignment: Assignment, found: Found, tracker: Tracker, console: RunConsole) -> int:
    """Export, register, summarise and report the run's last, verified checkpoint.

    A registry that can't be reached doesn't fail the run: the model is on the disk, and the same
    command registers it later.
    """
    from raymill.report.page import write_report

    export = export_checkpoint(assignment, found)
    console.say(f"exported {export}")
    events = Follower(assignment.journal).read()
    figures = run_figures(events)
    registered = None
    if assignment.job.tracking.register and assignment.job.tracking.uri != "none":
        try:
            registered = tracker.register(found, export, figures)
            console.say(f"registered {registered}")
        except TrackingError as error:
            console.say(f"not registered: {error}")
    summary = _summary(assignment, found, export, figures, registered)
    write_atomic(assignment.run_dir / SUMMARY_NAME, json.dumps(summary, indent=1))
    report = write_report(assignment.run_dir, load_prepared(assignment.folders[0]))
    for text in report.headlines:
        console.say(text)
    tracker.attach([report.path, report.curve])
    console.say(f"report   {report.path}")
    console.say(f"summary  {assignment.run_dir / SUMMARY_NAME}")
    return 0


def export_checkpoint(assignment: Assignment, found: Found) -> Path:
    """The checkpoint as a Hugging Face folder; not written again if it is there already."""
    target = assignment.run_dir / "export"
    marker = target / "raymill.json"
    lineage = {
        "checkpoint": found.directory.name,
        "checkpoint_digest": found.manifest.digest,
        "data_digests": list(found.manifest.data_digests),
        "config_digest": found.manifest.config_digest,
        "code_commit": found.manifest.code_commit,
        "parent": found.manifest.parent,
    }
    if marker.exists() and json.loads(marker.read_text(encoding="utf-8")) == lineage:
        return target
    prepared = load_prepared(assignment.folders[0])
    tokenizer = prepared.manifest.tokenizer
    export_folder(
        found.reader(),
        assignment.job.arch,
        assignment.job.arch.vocab_size or tokenizer.vocab_size,
        tokenizer.end_of_text_id,
        prepared.tokenizer_folder,
        target,
        assignment.job.train.precision,
    )
    write_atomic(marker, json.dumps(lineage, indent=1))
    return target


def run_figures(events: list[dict[str, Any]]) -> dict[str, Any]:
    """The figures of a run from its journal; replayed steps count once, as last written."""
    ordered = last_of_each_step(events, "step")
    held_out = last_of_each_step(events, "evaluation")
    figures: dict[str, Any] = {"steps": len(ordered)}
    if ordered:
        steady = ordered[len(ordered) // 10 :]
        figures |= {
            "samples": ordered[-1]["samples"],
            "tokens": ordered[-1]["tokens"],
            "train/loss": ordered[-1]["train/loss"],
            "perf/tokens_per_s": statistics.median(e["perf/tokens_per_s"] for e in steady),
            "perf/data_wait_share": sum(e["perf/data_wait_s"] for e in steady)
            / sum(e["perf/step_s"] for e in steady),
        }
    if held_out:
        first, last = held_out[0], held_out[-1]
        figures |= {
            "eval/bits_per_byte/before": first["eval/bits_per_byte"],
            "eval/bits_per_byte": last["eval/bits_per_byte"],
            "eval/loss": last["eval/loss"],
        }
    return figures


def _summary(
    assignment: Assignment,
    found: Found,
    export: Path,
    figures: dict[str, Any],
    registered: str | None,
) -> dict[str, Any]:
    return {
        "run": assignment.job.run.name,
        "status": "finished",
        "figures": figures,
        "checkpoint": str(found.directory),
        "checkpoint_digest": found.manifest.digest,
        "export": str(export),
        "registered": registered,
        "parent": assignment.parent,
        "data": [str(folder) for folder in assignment.folders],
        "data_digests": list(found.manifest.data_digests),
        "config_digest": assignment.config_digest,
        "code_commit": assignment.code_commit,
        "metrics": str(assignment.journal),
        "command": same_command(),
    }
