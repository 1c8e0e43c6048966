"""Reports of alignment runs: accuracy on preference pairs, or rewards and their cost in KL divergence."""

from __future__ import annotations

import math
from pathlib import Path

from raymill.data.store.manifest import PreparedData
from raymill.reading import read_json
from raymill.report.page import (
    Card,
    Column,
    Curve,
    FinishedRun,
    Tile,
    by_source,
    sample_files,
    sheet,
)

PAIR_COLUMNS = (
    Column("held-out loss", "pairs/loss", ".4f"),
    Column("accuracy", "pairs/reward/accuracy", ".1%"),
    Column("margin", "pairs/reward/margin", "+.3f"),
    Column("calibration error", "pairs/calibration_error", ".3f"),
    Column("accuracy of log π", "pairs/policy/log_prob_accuracy", ".1%"),
)
PAIR_CURVE = Curve("train/loss", "pairs/loss", "loss (nats per pair)")
REWARD_COLUMNS = (
    Column("held-out reward", "prompts/reward", "+.4f"),
    Column("KL to the reference", "prompts/kl", ".4f"),
    Column("tokens per answer", "prompts/length", ".1f"),
    Column("cut off", "prompts/truncated", ".1%"),
)
REWARD_CURVE = Curve("rollout/reward", "prompts/reward", "reward")


def pairs_card(run: FinishedRun) -> Card:
    """Return the parts of the report that are specific to reward models and DPO."""
    figures = run.summary["figures"]
    accuracy, before = figures["pairs/reward/accuracy"], figures["pairs/reward/accuracy/before"]
    headlines = [
        f"held out  {accuracy:.1%} of the pairs ranked right, {before:.1%} before; loss "
        f"{figures['pairs/loss']:.4f}, calibration error {figures['pairs/calibration_error']:.3f}"
    ]
    tiles = [
        Tile(f"{accuracy:.1%}", "held-out pairs ranked right", True),
        Tile(f"{figures['pairs/loss']:.3f}", "held-out loss"),
        Tile(f"{figures['pairs/calibration_error']:.3f}", "calibration error"),
    ]
    name = "pairs/policy/log_prob_accuracy"
    # DPO trains a policy; a reward model has no log-probabilities of answers.
    policy = name in figures
    if policy:
        headlines.append(
            f"          by log π alone {figures[name]:.1%}, {figures[f'{name}/before']:.1%} before"
        )
        tiles.append(Tile(f"{figures[name]:.1%}", "ranked right by log π alone"))
    return Card(
        tuple(headlines),
        tuple(tiles),
        PAIR_COLUMNS if policy else PAIR_COLUMNS[:-1],
        (),
        by_source(run.prepared, _pairs),
        ("chat", "model") if policy else ("rlhf", "reward.model"),
        PAIR_CURVE,
    )


def _pairs(prepared: PreparedData) -> tuple[tuple[str, str], ...]:
    facts = prepared.manifest.preference
    assert facts is not None, "prepared preferences carry facts about the pairs"
    return (
        ("pairs", f"{facts.pairs:,} to train on, from {facts.prompts:,} prompts"),
        ("chat template", f"{facts.template_sha256[:16]}…"),
    )


def reward_card(run: FinishedRun) -> Card:
    """Return the parts of the report that are specific to reinforcement learning."""
    evaluations = [event for event in run.events if "prompts/length" in event]
    # An evaluation whose answers could not be scored has no reward; an older value must not stand in for it.
    figures = run.summary["figures"] | {
        f"{name}{when}": evaluation.get(name, math.nan)
        for name in (name for event in evaluations for name in event if "/reward" in name)
        for when, evaluation in (("/before", evaluations[0]), ("", evaluations[-1]))
    }
    reward = figures.get("prompts/reward", math.nan)
    before = figures.get("prompts/reward/before", math.nan)
    headlines = [
        f"held out  reward {before:+.4f} before, {reward:+.4f} after; KL to the reference "
        f"{figures['prompts/kl']:.3f} nats per answer",
        f"          {figures['prompts/length']:.0f} tokens per answer, {figures['prompts/length/before']:.0f} "
        f"before; {figures['prompts/truncated']:.1%} cut off",
    ]
    parts = sorted(
        name.removeprefix("prompts/reward/")
        for name in figures
        if name.startswith("prompts/reward/") and not name.endswith("/before")
    )
    # A single reward function equals the total, so only several are listed.
    if len(parts) > 1:
        listed = ", ".join(
            f"{name} {figures[f'prompts/reward/{name}/before']:.3f} → "
            f"{figures[f'prompts/reward/{name}']:.3f}"
            for name in parts
        )
        headlines.append(f"          {listed}")
    columns = [
        *REWARD_COLUMNS,
        *(Column(name, f"prompts/reward/{name}", "+.4f") for name in parts if len(parts) > 1),
    ]
    return Card(
        tuple(headlines),
        (
            Tile(f"{reward:+.3f}", "held-out reward", True),
            Tile(f"{reward - before:+.3f}", "gain in reward"),
            Tile(f"{figures['prompts/kl']:.3f}", "nats from the reference"),
            Tile(f"{figures['prompts/length']:.0f}", "tokens per answer"),
        ),
        tuple(columns),
        (_tables(run.folder),),
        by_source(run.prepared, _prompts),
        ("chat", "model"),
        REWARD_CURVE,
    )


def _prompts(prepared: PreparedData) -> tuple[tuple[str, str], ...]:
    facts = prepared.manifest.prompts
    assert facts is not None, "prepared prompts carry facts about the prompts"
    return (
        ("prompts", f"{facts.prompts:,}"),
        ("chat template", f"{facts.template_sha256[:16]}…"),
    )


def _tables(run_dir: Path) -> str:
    """Return the held-out prompts with their answers before and after, as HTML."""
    files = sample_files(run_dir, "prompts")
    if not files:
        return ""
    table = read_json(files[-1])
    return (
        "<h2>Held-out prompts</h2><p class=sub>sampled with the same seeds before and after</p>"
        f"{sheet(table)}"
    )
