"""Held-out metrics of several sources, compared with transformers' own losses."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from data.prepared_factory import write_prepared
from raymill.config import load
from raymill.data.store.manifest import PreparedData
from raymill.data.store.validation import ValidationSet
from raymill.driver.resolution import resolved_run
from raymill.engine.batches import DatasetBatches
from raymill.engine.evaluation import EvalPoint
from raymill.engine.event_log import EventLog
from raymill.engine.group import WorkerGroup
from raymill.engine.learner import Learner
from raymill.engine.samples import SampledText
from raymill.model.build import build_model
from raymill.recipes.registry import recipe_of
from raymill.schema.sections import TextEvaluation
from sections import plain

ARCH = (
    "arch.layers=1", "arch.hidden_size=32", "arch.heads=2", "arch.kv_heads=2", "arch.head_dim=16",
    "arch.intermediate_size=64", "data.sequence_length=16",
)  # fmt: skip


def measured(tmp_path: Path, weights: dict[str, float]) -> tuple[dict[str, float], dict[str, Any]]:
    """Return the metrics of a pretraining run before its first step, and (nats, tokens, bytes) per source."""
    prepared = [
        write_prepared(tmp_path / name, seed=seed, name=name, validation_rows=(3 + 4 * seed,))
        for seed, name in enumerate(weights)
    ]
    job = load("pretrain", [*ARCH, "tracking=none", f"storage.root={tmp_path}", "run.name=r"])
    folders = {data.folder: weights[data.manifest.name] for data in prepared}
    recipe = recipe_of(resolved_run(job, folders), prepared)
    model, group = recipe.plan_model(fresh=True).whole(), WorkerGroup(torch.device("cpu"))
    objective = recipe.objective(model, group)
    learner = cast(Learner, SimpleNamespace(objective=objective, model=model))
    batch_builder = DatasetBatches(objective, prepared)
    figures: dict[str, float] = {}
    for evaluator in recipe.evaluators([learner], batch_builder, group, None):
        figures |= evaluator.measure(model, group, EvalPoint(0, first=True, last=False))
    return figures, {data.manifest.name: sums(model, data) for data in prepared}


def sums(model: Any, data: PreparedData) -> tuple[float, int, int]:
    """Return nats, predicted tokens and bytes of a source's held-out rows, as transformers counts them."""
    nats, count, size = 0.0, 0, 0
    for rows in ValidationSet(data.folder, rank=0, world_size=1, batch_rows=1):
        length = int(rows.length[0])
        ids = torch.tensor(rows.tokens[:, :length].astype("int64"))
        with torch.no_grad():
            nats += model(input_ids=ids, labels=ids).loss.item() * (length - 1)
        count += length - 1
        assert rows.bytes is not None
        size += int(rows.bytes.sum())
    return nats, count, size


def test_every_source_is_evaluated_and_their_mean_is_by_weight(tmp_path: Path) -> None:
    weights = {"wiki": 0.75, "code": 0.25}
    figures, expected = measured(tmp_path, weights)
    mean = {"loss": 0.0, "bits_per_byte": 0.0}
    for name, (nats, count, size) in expected.items():
        assert figures[f"eval/{name}/loss"] == pytest.approx(nats / count, rel=1e-5), name
        bits = nats / math.log(2) / size
        assert figures[f"eval/{name}/bits_per_byte"] == pytest.approx(bits, rel=1e-5), name
        mean["loss"] += weights[name] * nats / count
        mean["bits_per_byte"] += weights[name] * bits
    assert figures["eval/loss"] == pytest.approx(mean["loss"], rel=1e-6)
    assert figures["eval/bits_per_byte"] == pytest.approx(mean["bits_per_byte"], rel=1e-6)
    assert figures["eval/perplexity"] == pytest.approx(math.exp(mean["loss"]), rel=1e-6)


def test_one_source_has_no_name_of_its_own(tmp_path: Path) -> None:
    figures, expected = measured(tmp_path, {"wiki": 3.0})
    nats, count, _ = expected["wiki"]
    assert figures.keys() == {"eval/loss", "eval/perplexity", "eval/bits_per_byte"}
    assert figures["eval/loss"] == pytest.approx(nats / count, rel=1e-5)


class Heard(EventLog):
    """An event log that keeps its messages."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def write(self, kind: str, step: int, **values: Any) -> None:
        if kind == "message":
            self.messages.append(values["text"])


def test_a_prompt_that_the_model_does_not_see_whole_is_told(tmp_path: Path) -> None:
    prepared = write_prepared(tmp_path / "data")
    arch = load("pretrain", [*ARCH, "arch.max_positions=16"]).arch
    model = build_model(arch, prepared.manifest.tokenizer.vocab_size, 0, 1)
    settings = plain(TextEvaluation, prompts=("abc", "x" * 14, "y" * 40), sample_tokens=2)
    heard = Heard()
    sampled = SampledText(prepared, settings, tmp_path, 1, heard)
    sampled.measure(model, WorkerGroup(torch.device("cpu")), EvalPoint(3, first=False, last=True))
    assert heard.messages == [
        f"evaluation.prompts: prompt {'y' * 40!r}: the model has no positions for the first 26 of its "
        "41 tokens, and continues the rest"
    ]
