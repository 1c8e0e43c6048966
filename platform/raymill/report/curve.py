"""A curve of training as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

INK, TRAIN, HELD_OUT, GRID = "#1f2933", "#9fb3c8", "#d64545", "#e4e7eb"


def draw_curve(
    steps: Sequence[dict[str, Any]],
    evaluations: Sequence[dict[str, Any]],
    train: str,
    held_out: str,
    label: str,
    path: Path,
) -> None:
    """The steps' figure `train` and the evaluations' figure `held_out` over tokens."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4), dpi=150)
    taken = [event for event in steps if event.get(train) is not None]
    measured = [event for event in evaluations if event.get(held_out) is not None]
    axes.plot(
        [event["tokens"] / 1e6 for event in taken],
        [event[train] for event in taken],
        color=TRAIN,
        linewidth=1.2,
        label="training",
    )
    axes.plot(
        [event["tokens"] / 1e6 for event in measured],
        [event[held_out] for event in measured],
        color=HELD_OUT,
        marker="o",
        markersize=4,
        linewidth=1.8,
        label="held out",
    )
    axes.set_xlabel("tokens (millions)", color=INK)
    axes.set_ylabel(label, color=INK)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)
