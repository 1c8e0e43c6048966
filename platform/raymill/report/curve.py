"""The loss curve as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

INK, TRAIN, HELD_OUT, GRID = "#1f2933", "#9fb3c8", "#d64545", "#e4e7eb"


def draw_curve(
    steps: Sequence[dict[str, Any]], held_out: Sequence[dict[str, Any]], path: Path
) -> None:
    """Training and held-out loss over tokens."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4), dpi=150)
    axes.plot(
        [event["tokens"] / 1e6 for event in steps],
        [event["train/loss"] for event in steps],
        color=TRAIN,
        linewidth=1.2,
        label="training",
    )
    axes.plot(
        [event["tokens"] / 1e6 for event in held_out],
        [event["eval/loss"] for event in held_out],
        color=HELD_OUT,
        marker="o",
        markersize=4,
        linewidth=1.8,
        label="held out",
    )
    axes.set_xlabel("tokens (millions)", color=INK)
    axes.set_ylabel("loss (nats a token)", color=INK)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)
