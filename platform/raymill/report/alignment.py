"""The cards of runs that align: what people prefer, whether the model has learned it, and at what price."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from raymill.data.store.manifest import PreparedData
from raymill.reading import read_json
from raymill.report.page import Card, Column, Curve, Tile, by_source, sample_files, sheet

PAIR_COLUMNS = (
    Column("held-out loss", "pairs/loss", ".4f"),
    Column("accuracy", "pairs/reward/accuracy", ".1%"),
    Column("margin", "pairs/reward/margin", "+.3f"),
    Column("calibration error", "pairs/calibration_error", ".3f"),
    Column("accuracy of log π", "pairs/policy/log_prob_accuracy", ".1%"),
)
PAIR_CURVE = Curve("train/loss", "pairs/loss", "loss (nats a pair)")
REWARD_COLUMNS = (
    Column("held-out reward", "prompts/reward", "+.4f"),
    Column("KL to the reference", "prompts/kl", ".4f"),
    Column("answer's tokens", "prompts/length", ".1f"),
    Column("cut off", "prompts/truncated", ".1%"),
)
REWARD_CURVE = Curve("rollout/reward", "prompts/reward", "reward")


def pairs_card(
    run_dir: Path,
    prepared: Sequence[PreparedData],
    events: Sequence[dict[str, Any]],
    summary: dict[str, Any],
) -> Card:
    """What a run on compared answers has to say: a reward model's, or DPO's."""
    found = summary["figures"]
    accuracy, before = found["pairs/reward/accuracy"], found["pairs/reward/accuracy/before"]
    headlines = [
        f"held out  {accuracy:.1%} of the pairs ranked right, {before:.1%} before; loss "
        f"{found['pairs/loss']:.4f}, calibration error {found['pairs/calibration_error']:.3f}"
    ]
    tiles = [
        Tile(f"{accuracy:.1%}", "held-out pairs ranked right", True),
        Tile(f"{found['pairs/loss']:.3f}", "held-out loss"),
        Tile(f"{found['pairs/calibration_error']:.3f}", "calibration error"),
    ]
    name = "pairs/policy/log_prob_accuracy"
    policy = name in found
    if policy:
        headlines.append(
            f"          by log π alone {found[name]:.1%}, {found[f'{name}/before']:.1%} before"
        )
        tiles.append(Tile(f"{found[name]:.1%}", "ranked right by log π alone"))
    return Card(
        tuple(headlines),
        tuple(tiles),
        PAIR_COLUMNS if policy else PAIR_COLUMNS[:-1],
        (),
        by_source(prepared, _pairs),
        ("generate", "model") if policy else ("rlhf", "reward.model"),
        PAIR_CURVE,
    )


def _pairs(prepared: PreparedData) -> tuple[tuple[str, str], ...]:
    facts = prepared.manifest.preference
    assert facts is not None
    return (
        ("pairs", f"{facts.pairs:,} to learn from, of {facts.prompts:,} prompts"),
        ("chat template", f"{facts.template_sha256[:16]}…"),
    )


def reward_card(
    run_dir: Path,
    prepared: Sequence[PreparedData],
    events: Sequence[dict[str, Any]],
    summary: dict[str, Any],
) -> Card:
    """What a run of reinforcement learning has to say."""
    evaluations = [event for event in events if "prompts/length" in event]
    # An evaluation whose answers couldn't be judged has no reward, and an older one doesn't stand for it.
    found = summary["figures"] | {
        f"{name}{when}": evaluation.get(name, math.nan)
        for name in (name for event in evaluations for name in event if "/reward" in name)
        for when, evaluation in (("/before", evaluations[0]), ("", evaluations[-1]))
    }
    reward = found.get("prompts/reward", math.nan)
    before = found.get("prompts/reward/before", math.nan)
    headlines = [
        f"held out  reward {before:+.4f} before, {reward:+.4f} after; KL to the reference "
        f"{found['prompts/kl']:.3f} nats an answer",
        f"          {found['prompts/length']:.0f} tokens an answer, {found['prompts/length/before']:.0f} "
        f"before; {found['prompts/truncated']:.1%} cut off",
    ]
    parts = sorted(
        name.removeprefix("prompts/reward/")
        for name in found
        if name.startswith("prompts/reward/") and not name.endswith("/before")
    )
    if len(parts) > 1:
        listed = ", ".join(
            f"{name} {found[f'prompts/reward/{name}/before']:.3f} → "
            f"{found[f'prompts/reward/{name}']:.3f}"
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
            Tile(f"{reward - before:+.3f}", "gained"),
            Tile(f"{found['prompts/kl']:.3f}", "nats from the reference"),
            Tile(f"{found['prompts/length']:.0f}", "tokens an answer"),
        ),
        tuple(columns),
        (_tables(run_dir),),
        by_source(prepared, _prompts),
        ("generate", "model"),
        REWARD_CURVE,
    )


def _prompts(prepared: PreparedData) -> tuple[tuple[str, str], ...]:
    facts = prepared.manifest.prompts
    assert facts is not None
    return (
        ("prompts", f"{facts.prompts:,}"),
        ("chat template", f"{facts.template_sha256[:16]}…"),
    )


def _tables(run_dir: Path) -> str:
    """The held-out prompts with answers before and after."""
    files = sample_files(run_dir, "prompts")
    if not files:
        return ""
    table = read_json(files[-1])
    return (
        "<h2>Held-out prompts</h2><p class=sub>sampled with the same seeds before and after</p>"
        f"{sheet(table)}"
    )
