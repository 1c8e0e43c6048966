"""Finish a run: export the model, register it, and write a summary and a report."""

from __future__ import annotations

import json
import statistics
from typing import TYPE_CHECKING, Any

from raymill.checkpoint.resume import VerifiedCheckpoint
from raymill.data.store.manifest import load_prepared
from raymill.driver.exports import Export, export_checkpoint
from raymill.durable import write_atomic
from raymill.engine.resolved_run import ResolvedRun
from raymill.engine.start import extension_overrides
from raymill.errors import RaymillError, TrackingError
from raymill.redaction import typed_command
from raymill.schema.jobs import DpoJob, PretrainJob, RewardJob, RlhfJob, SftJob
from raymill.track.console import RunConsole
from raymill.track.follow import Follower, last_of_each_step
from raymill.track.forwarder import metrics_of

if TYPE_CHECKING:
    from raymill.report.page import RunSummary
    from raymill.track.tracker import Tracker

SUMMARY_NAME = "summary.json"


def finish_run(
    resolved: ResolvedRun, checkpoint: VerifiedCheckpoint, tracker: Tracker, console: RunConsole
) -> None:
    """Export, register, summarize and report the run's last, verified checkpoint.

    A registry that can't be reached doesn't fail the run: the model is on disk, and the same command registers
    it later.

    Raises:
        RaymillError: reinforcement learning has learned nothing, or the export can't be written.
    """
    from raymill.report.alignment import pairs_card, reward_card
    from raymill.report.fine_tuning import fine_tuning_card, yardsticks
    from raymill.report.page import FinishedRun, write_report
    from raymill.report.pretraining import pretraining_card

    cards = {
        PretrainJob: pretraining_card,
        SftJob: fine_tuning_card,
        RewardJob: pairs_card,
        DpoJob: pairs_card,
        RlhfJob: reward_card,
    }

    events = Follower(resolved.event_log).read()
    # Otherwise the unchanged parent would be registered as an aligned model.
    if resolved.rl is not None:
        _refuse_unchanged(events, str(resolved.config["algorithm.overlong"]))
    prepared = [load_prepared(folder) for folder in resolved.folders]
    export = export_checkpoint(resolved, checkpoint)
    console.say(f"exported {export.folder}")
    figures = run_figures(events) | yardsticks(prepared[0], resolved.job)
    # The alias moves only after the export is complete on disk.
    registered = None
    if resolved.job.tracking.register and resolved.job.tracking.uri != "none":
        try:
            registered = tracker.register(checkpoint, export.folder, figures, export.adapter)
            console.say(f"registered {registered}")
            if export.adapter is not None:
                tracking = resolved.job.tracking
                console.say(f"           {tracking.registered_model}-adapter@{tracking.alias}")
        except TrackingError as error:
            console.say(f"not registered: {error}")
    summary = _summary(resolved, checkpoint, export, figures, registered)
    # The pipeline's next stage reads its parent from this file.
    write_atomic(resolved.run_dir / SUMMARY_NAME, json.dumps(summary, indent=1))
    run = FinishedRun(resolved.run_dir, prepared, events, summary)
    card = cards[type(resolved.job)](run)
    for text in card.headlines:
        console.say(text)
    report, curve = write_report(run, card)
    tracker.attach([report, curve])
    console.say(f"report   {report}")
    console.say(f"summary  {resolved.run_dir / SUMMARY_NAME}")


def _refuse_unchanged(events: list[dict[str, Any]], overlong: str = "keep") -> None:
    """Refuse to finish a run in which no answer was learned from: its policy is its parent unchanged."""
    steps = last_of_each_step(events, "step")
    if not any("policy/ratio" in event for event in steps):
        raise RaymillError(
            f"nothing was learned in {len(steps)} steps: {'; '.join(_reasons(steps, overlong))}. "
            "The policy is still its parent, so nothing is exported or registered"
        )


def _reasons(steps: list[dict[str, Any]], overlong: str) -> list[str]:
    """Return the reasons why no answer was learned from, by the steps' metrics, each with its remedy."""
    count = max(len(steps), 1)
    dropped = sum(event.get("rollout/dropped", 0) for event in steps)
    equal = sum(event.get("rollout/equal_groups", 0) for event in steps) / count
    cut = sum(event.get("rollout/truncated", 0) for event in steps) / count
    reasons = []
    if dropped:
        reasons.append(
            f"{dropped:,.0f} answers had no reward, for the causes in the messages above"
        )
    if equal:
        reasons.append(
            f"in {equal:.0%} of the groups every answer had the same reward, so that no advantage is left: "
            "take prompts that the parent sometimes answers correctly, a reward with more than two values, "
            "or a larger rollout.group_size"
        )
    if cut and overlong == "mask":
        reasons.append(
            f"{cut:.0%} of the answers were cut off, which algorithm.overlong=mask leaves out: raise "
            "rollout.max_new_tokens, or use algorithm.overlong=keep"
        )
    return reasons or ["no answer was sampled"]


def run_figures(events: list[dict[str, Any]]) -> dict[str, Any]:
    """Compute a run's metrics from its event log; repeated steps count once, as last written."""
    ordered = last_of_each_step(events, "step")
    evaluations = [metrics_of(event) for event in last_of_each_step(events, "evaluation")]
    figures: dict[str, Any] = {"steps": len(ordered)}
    if ordered:
        # The first tenth fills caches and compiles, so it isn't counted.
        steady = ordered[len(ordered) // 10 :]
        figures |= {
            "samples": ordered[-1]["samples"],
            "tokens": ordered[-1]["tokens"],
            # A loss that isn't finite is stored as null.
            "train/loss": next(
                (e["train/loss"] for e in reversed(ordered) if e["train/loss"] is not None), None
            ),
            "perf/tokens_per_s": statistics.median(e["perf/tokens_per_s"] for e in steady),
            "perf/data_wait_share": sum(e["perf/data_wait_s"] for e in steady)
            / sum(e["perf/step_s"] for e in steady),
        }
    for evaluation in evaluations:
        for name, value in evaluation.items():
            # The first evaluation is that of the initial weights.
            figures.setdefault(f"{name}/before", value)
            figures[name] = value
    return figures


def _summary(
    resolved: ResolvedRun,
    checkpoint: VerifiedCheckpoint,
    export: Export,
    figures: dict[str, Any],
    registered: str | None,
) -> RunSummary:
    return {
        "run": str(resolved.job.run.name),
        "status": "finished",
        "figures": figures,
        "checkpoint": str(checkpoint.directory),
        "checkpoint_digest": checkpoint.manifest.digest,
        "export": str(export.folder),
        "adapter": None if export.adapter is None else str(export.adapter),
        "registered": registered,
        "parent": resolved.parent,
        "reward": None if resolved.rl is None else resolved.rl.reward_model,
        "data": [str(folder) for folder in resolved.folders],
        "data_digests": list(checkpoint.manifest.data_digests),
        "config_digest": resolved.config_digest,
        "code_commit": resolved.code_commit,
        "metrics": str(resolved.event_log),
        "command": typed_command(),
        "going_on": extension_overrides(resolved),
    }
