"""Cost and evenness of the sample order: one rank's share of a run over 15T tokens.

    PYTHONPATH=platform .venv/bin/python bench/scale/order.py --ranks 8 64 1024 8192 --json order.json

Each rank has 4 rows of a global batch, from 20 sources of very different weights. Version 1, whose ranks
locate everybody's rows, is the order of earlier releases; it still runs here, so both are measured by the
same functions. CPU milliseconds are this thread's, per step, for calls of 16 steps. `--figure` draws where
a batch's rows come from.
"""

from __future__ import annotations

import argparse
import json
import pickle
import time
import tracemalloc
from pathlib import Path

import numpy as np

from raymill.data.store.blocks import SourceShape
from raymill.data.store.order import Order, SampleOrder
from raymill.data.store.order_v1 import OrderV1

RANK_ROWS, STEPS, SEED = 4, 16, 1
SEQUENCE_LENGTH, TOKENS = 4096, 15 * 10**12
ROWS = TOKENS // SEQUENCE_LENGTH
ROW_GROUP, SHARD_ROWS, WINDOW = 64, 65_536 + 30, 16
# Weights of 20 sources, from 45% to 0.2%; each has so many rows that it lasts one epoch.
WEIGHTS = tuple(round(0.45 / (i + 1) ** 1.8, 3) for i in range(20))


def sources() -> list[SourceShape]:
    """Return 20 sources that together have 15T tokens, in shards of about 1 GB."""
    total = sum(WEIGHTS)
    shards = [max(1, round(ROWS * weight / total / SHARD_ROWS)) for weight in WEIGHTS]
    return [
        SourceShape(f"source {i}", weight, ROW_GROUP, (SHARD_ROWS,) * count)
        for i, (weight, count) in enumerate(zip(WEIGHTS, shards, strict=True))
    ]


def built(version: int, batch: int) -> SampleOrder:
    """Return the order of the run."""
    kind = OrderV1 if version == 1 else Order
    return kind(sources(), SEED, WINDOW, batch)


def rank_cost(version: int, ranks: int) -> dict[str, float]:
    """Return start, CPU per step and memory of one rank's rows, at several positions of the run."""
    batch = RANK_ROWS * ranks
    began = time.thread_time()
    order = built(version, batch)
    order.locate(0, 1)
    figures = {"start_s": time.thread_time() - began, "pickled_kb": len(pickle.dumps(order)) / 1e3}
    # The code before takes seconds per step at 8,192 ranks.
    steps = STEPS if version == 2 else max(1, STEPS * 64 // ranks // 8)
    for percent in (1, 50, 99):
        first = ROWS * percent // 100 // batch * batch
        order.rank_rows(first, 1, ranks // 2, ranks)
        began = time.thread_time()
        order.rank_rows(first, steps, ranks // 2, ranks)
        figures[f"step_ms_at_{percent}"] = 1e3 * (time.thread_time() - began) / steps
    tracemalloc.start()
    order.rank_rows(0, steps, 0, ranks)
    figures["peak_mb"] = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    return figures


def locate_cost(version: int) -> dict[str, float]:
    """Return CPU milliseconds to locate a batch of 4,096 samples, by position in the run."""
    order = built(version, 4096)
    order.locate(0, 4096)
    figures = {}
    for percent in (1, 50, 99):
        began = time.thread_time()
        for _ in range(5):
            order.locate(ROWS * percent // 100, 4096)
        figures[f"locate_ms_at_{percent}"] = 1e3 * (time.thread_time() - began) / 5
    return figures


def amplification(ranks: int, batch: int = 8192, steps: int = 2**12) -> float:
    """Return the rows of the row groups that a rank opens, over the rows that it uses meanwhile.

    Places are shuffled twice within so many steps. What was open before isn't counted as opened.
    """
    order = built(2, batch)
    before = 4 * ROW_GROUP
    _, located = order.rank_rows(10**5 * batch, before + steps, ranks // 3, ranks)
    keys = np.stack([located.source, located.shard, located.row_group], axis=1)
    _, first = np.unique(keys, axis=0, return_index=True)
    own = batch // ranks
    return float((first >= before * own).sum() * ROW_GROUP / (steps * own))


def evenness(version: int, batch: int = 4096, batches: int = 64) -> dict[str, float]:
    """Compare a batch's composition with independent draws.

    `share_variance`: variance of a source's number of rows in a batch, over that of a binomial draw,
    averaged over sources. `places`: distinct row groups in a batch of one source alone. `neighbors`: pairs
    of rows from one row group in it, over those of independent draws from a source as large.
    """
    order = built(version, batch)
    weights = np.array(WEIGHTS) / sum(WEIGHTS)
    counts = np.array(
        [
            np.bincount(order.locate(number * batch, batch).source, minlength=len(weights))
            for number in range(batches)
        ]
    )
    ratio = counts.var(axis=0) / (batch * weights * (1 - weights))
    rows = 2**24
    kind = OrderV1 if version == 1 else Order
    alone = kind([SourceShape("one", 1.0, ROW_GROUP, (rows,))], SEED, WINDOW, batch)
    groups = [
        np.unique(alone.locate(number * batch, batch).row_group, return_counts=True)[1]
        for number in range(1, 9)
    ]
    pairs = np.mean([(count * (count - 1) / 2).sum() for count in groups])
    expected = batch * (batch - 1) / 2 * (ROW_GROUP - 1) / (rows - 1)
    return {
        "share_variance": float(ratio.mean()),
        "places": float(np.mean([len(count) for count in groups])),
        "neighbors": float(pairs / expected),
    }


def draw(path: Path, batch: int = 4096) -> None:
    """Draw where the rows of consecutive batches come from, for both versions, as SVG."""
    width, height, margin, batches = 640, 240, 30, 16
    rows = 2**21
    parts = []
    for line, (kind, title) in enumerate(
        [
            (OrderV1, "Version 1: the rows of 16 row groups at a time"),
            (Order, "Version 2: one row of each of 4,096 row groups"),
        ]
    ):
        order = kind([SourceShape("one", 1.0, ROW_GROUP, (rows,))], SEED, WINDOW, batch)
        top = margin + line * (height + 2 * margin)
        parts.append(f'<text x="0" y="{top - 8}" font-size="13">{title}</text>')
        for number in range(batches):
            groups = np.unique(order.locate((number + 4) * batch, batch).row_group)
            x = number * width / batches
            # One dash per row group, by its place in the corpus; those on one line of the page are one.
            lines = np.unique(height * groups * ROW_GROUP // rows).tolist()
            dashes = "".join(f"M{x + 2:.0f} {top + y}h{width / batches - 4:.0f}" for y in lines)
            parts.append(f'<path d="{dashes}" stroke="#245" stroke-width=".7"/>')
    size = f'viewBox="0 0 {width} {2 * (height + 2 * margin)}"'
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif">{"".join(parts)}</svg>\n'
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 64, 1024, 8192])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--figure", type=Path)
    arguments = parser.parse_args()
    found: dict[str, dict[str, float]] = {}
    for version in (1, 2):
        for ranks in arguments.ranks:
            found[f"version {version}, {ranks} ranks"] = rank_cost(version, ranks)
        found[f"version {version}, locate"] = locate_cost(version)
        found[f"version {version}, evenness"] = evenness(version)
    for ranks in (64, 1024, 8192):
        found[f"version 2, {ranks} ranks, reading"] = {"bytes_read_over_used": amplification(ranks)}
    for name, figures in found.items():
        print(f"{name:<28}", "  ".join(f"{key} {value:.4g}" for key, value in figures.items()))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    if arguments.figure is not None:
        draw(arguments.figure)


if __name__ == "__main__":
    main()
