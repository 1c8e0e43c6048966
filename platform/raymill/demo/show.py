"""The end of `make demo`: measure the stages, print what changed, write the page."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from raymill.data.store.manifest import load_prepared
from raymill.demo.figures import Figures, measure
from raymill.demo.page import demo_page
from raymill.demo.table import conversation, examples, lines, printed
from raymill.durable import write_atomic
from raymill.evaluate.baselines import baselines

MODELS = {"pretrain": "pretrained", "sft": "sft", "rlhf": "aligned"}  # stages that talk
PAGE_NAME, FIGURES_NAME = "demo.html", "demo.json"


def show(
    summaries: dict[str, dict[str, Any]], storage: Path, fraction: float, seed: int
) -> Figures:
    """`summaries`: of the finished runs, by the pipeline's stage."""
    folders = {
        name: Path(summaries[stage]["export"])
        for stage, name in MODELS.items()
        if stage in summaries
    }
    print("\nasking every stage the held-out questions …", flush=True)
    gzip, digest = None, ""
    if (pretrained := summaries.get("pretrain")) is not None:
        digest = pretrained["data_digests"][0]
        gzip = baselines(load_prepared(Path(pretrained["data"][0]))).gzip
    figures = measure(folders, fraction, seed, digest)
    table = list(lines(figures, summaries, gzip))
    print("\n" + printed(table))
    for shown in figures.questions:
        print("\n" + conversation(shown))
    print("\nwhat it can be asked:\n" + examples())
    page = storage / PAGE_NAME
    write_atomic(page, demo_page(figures, table))
    write_atomic(storage / FIGURES_NAME, json.dumps(asdict(figures), indent=1))
    print(f"\nthe same as a page: {page}", flush=True)
    return figures
