"""Gradients are summed in fp32, over ranks and over micro-batches, in every precision of the forward pass."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch

from engine.probe import LENGTH, SEED, VOCAB, Case, batches, job_of, join
from engine.ranks import run_ranks
from model.planned import planned
from raymill.engine.deepspeed_config import deepspeed_config
from raymill.model.build import build_model
from raymill.schema.jobs import PretrainJob
from servers import free_port

WORLD = 2
MICRO_BATCHES = 8  # of each rank; one row each
TOKENS = float(WORLD * MICRO_BATCHES * LENGTH)
RANKS = 64  # that are simulated
IDLE = "idle"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Reduced:
    """A `Case` and the precision of sums over ranks; None for the default."""

    case: Case
    reduce_precision: str | None = None

    @property
    def name(self) -> str:
        return f"{self.case.name}-{self.reduce_precision}"

    @property
    def job(self) -> PretrainJob:
        job = job_of(replace(self.case, micro_batch=1, batch=WORLD * MICRO_BATCHES))
        train = job.train
        if self.reduce_precision is not None:
            train = replace(train, reduce_precision=self.reduce_precision)
        # Of a matrix that is used twice, autograd rounds the sum of both gradients, or doesn't.
        arch = replace(job.arch, tied_embeddings=False)
        return replace(job, arch=arch, train=train, optim=replace(job.optim, grad_clip=0.0))


STAGES = [Reduced(Case(stage, precision="bf16")) for stage in range(4)]
OFFLOADED = [Reduced(Case(1, precision="bf16", offload="cpu"))]
MUON = [Reduced(Case(stage, precision="bf16", optimizer="muon")) for stage in range(4)]
IN_BF16 = [Reduced(one.case, "bf16") for one in STAGES]
FEW = [STAGES[1], STAGES[3], *OFFLOADED, MUON[3], IN_BF16[1]]
REST = [one for one in (*STAGES, *MUON, *IN_BF16) if one not in FEW]


def each(cases: list[Reduced]) -> pytest.MarkDecorator:
    """A few in every run of the tests, the rest in the slow ones."""
    marked = [one if one in FEW else pytest.param(one, marks=pytest.mark.slow) for one in cases]
    return pytest.mark.parametrize("one", marked, ids=lambda one: one.name)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Reduced], dict[str, Any]]:
    """Figures of a case; those of its group are measured together, when the first is asked for."""

    @cache
    def of_group(few: bool) -> dict[str, Any]:
        folder = tmp_path_factory.mktemp("reductions")
        run_ranks(_one_update_each, (WORLD, free_port(), FEW if few else REST, folder), WORLD)
        reports: dict[str, Any] = json.loads((folder / "found.json").read_text())
        return reports

    return lambda one: of_group(one in FEW)


@pytest.fixture
def found(one: Reduced, measured: Callable[[Reduced], dict[str, Any]]) -> dict[str, Any]:
    return measured(one)


@each([*STAGES, *OFFLOADED, *MUON])
def test_every_float_that_is_summed_over_ranks_is_fp32(found: dict[str, Any], one: Reduced) -> None:
    sums = found[one.name]["sums"]
    floats = {name: count for name, count in sums.items() if "float" in name}
    assert set(floats) <= {"float32", "float64"}, sums
    assert floats["float32"] >= found["parameters"], "the gradients themselves were recorded"


@each([*STAGES, *OFFLOADED, *MUON])
def test_the_gradient_is_the_float64_sum_of_all_micro_batches(
    found: dict[str, Any], one: Reduced
) -> None:
    assert found[one.name]["error"] < 1e-5


@each([MUON[3]])
def test_muon_puts_its_matrices_together_in_fp32(found: dict[str, Any], one: Reduced) -> None:
    """Results go back in the precision of the iterations, since nothing is added to them.

    Under ZeRO-3 no rank has a whole matrix.
    """
    exchanged = found[one.name]["exchanged"]
    assert exchanged["float32"] >= exchanged["bfloat16"] > 0, exchanged


@each(IN_BF16)
def test_another_precision_is_asked_for_by_its_key(found: dict[str, Any], one: Reduced) -> None:
    """The gradient's error differs from that of fp32, so the test above can detect it."""
    assert found[one.name]["sums"]["bfloat16"] >= found["parameters"]
    assert found[one.name]["error"] > 1e-4


def ring(parts: torch.Tensor) -> torch.Tensor:
    """Sum [ranks, elements] chunk by chunk, as a ring does: each chunk starts at the rank of its number."""
    chunks = parts.view(RANKS, RANKS, -1)
    sums = []
    for first in range(RANKS):
        carried = chunks[first, first]
        for step in range(1, RANKS):
            carried = carried + chunks[(first + step) % RANKS, first]
        sums.append(carried)
    return torch.cat(sums)


def tree(parts: torch.Tensor) -> torch.Tensor:
    """Sum [ranks, elements] by halves, as a tree does."""
    while len(parts) > 1:
        parts = parts[0::2] + parts[1::2]
    return parts[0]


def error_of(
    reduce: Callable[[torch.Tensor], torch.Tensor], dtype: torch.dtype, noise: float
) -> float:
    """Return the error relative to the sum in float64, of gradients as in bf16 backward passes."""
    torch.manual_seed(SEED)
    signal = torch.randn(RANKS * 64)
    gradients = (signal + noise * torch.randn(RANKS, len(signal))).bfloat16()
    exact = gradients.double().sum(dim=0)
    return float((reduce(gradients.to(dtype)).double() - exact).norm() / exact.norm())


@pytest.mark.parametrize("reduce", [ring, tree])
@pytest.mark.parametrize("noise", [0.0, 10.0])
def test_sixty_four_ranks_sum_as_float64_does(
    reduce: Callable[[torch.Tensor], torch.Tensor], noise: float
) -> None:
    for one in STAGES:
        settings = deepspeed_config(one.job, WORLD)
        assert error_of(reduce, DTYPES[settings["communication_data_type"]], noise) < 1e-5
    # Doubling rounds nothing, so a tree of equal gradients is exact in whatever precision.
    assert error_of(reduce, torch.bfloat16, noise) > 1e-3 or (reduce is tree and noise == 0)


def _one_update_each(rank: int, world: int, port: int, cases: list[Reduced], folder: Path) -> None:
    """Record by case the reduced and exchanged elements by dtype, and the gradient's error; rank 0 writes
    them."""
    group = join(rank, world, port, folder)
    import torch.distributed as dist

    exact = _exact_gradient(cases[0].job, group.device)
    used = sum(values.numel() for name, values in exact.items() if name != IDLE)
    reports: dict[str, Any] = {"parameters": used}
    for one in cases:
        reports[one.name] = _updated(one, rank, group, exact)
    if rank == 0:
        (folder / "found.json").write_text(json.dumps(reports))
    dist.barrier()
    os._exit(0)  # Gloo's threads may still be ending


def _exact_gradient(job: PretrainJob, device: torch.device) -> dict[str, torch.Tensor]:
    """Return the gradient of the mean loss per token: the float64 sum of each micro-batch's own gradient in
    bf16."""
    model = _model(job)
    parameters = dict(model.named_parameters())
    for parameter in parameters.values():  # the frequencies of rotary positions stay in fp32
        parameter.data = parameter.data.bfloat16()
    total = {name: torch.zeros(p.numel(), dtype=torch.float64) for name, p in parameters.items()}
    for row in range(WORLD * MICRO_BATCHES):
        # Scaled as a micro-batch is, so that what is rounded to bf16 is the same.
        scaled = _loss(model, row, device) * (WORLD * MICRO_BATCHES / TOKENS) / MICRO_BATCHES
        used = {name: p for name, p in parameters.items() if name != IDLE}
        gradients = torch.autograd.grad(scaled, list(used.values()))
        for name, gradient in zip(used, gradients, strict=True):
            total[name] += gradient.double().flatten() / WORLD
    return total


def _model(job: PretrainJob) -> torch.nn.Module:
    """Include a parameter that no forward pass uses, such as an expert that gets no token."""
    model = build_model(job.arch, VOCAB, 0, SEED)
    model.register_parameter(IDLE, torch.nn.Parameter(torch.ones(6)))
    return model


def _loss(forward: Any, row: int, device: torch.device) -> torch.Tensor:
    from raymill.data.store.rows import Rows
    from raymill.objective.language_modeling import LanguageModeling

    tokens = batches(1, WORLD * MICRO_BATCHES)[0, row : row + 1]
    rows = Rows(tokens, np.full(1, LENGTH + 1, np.int32))
    return LanguageModeling(end_of_text_id=0).losses(forward, rows, device).sum()


def _updated(one: Reduced, rank: int, group: Any, exact: dict[str, torch.Tensor]) -> dict[str, Any]:
    from raymill.engine.trainer import Trainer

    trainer = Trainer(one.job, planned(_model(one.job)), group)
    with _recorded() as (sums, exchanged):
        for number in range(MICRO_BATCHES):
            trainer.begin_micro_batch(last=number == MICRO_BATCHES - 1)
            loss = _loss(trainer.engine, rank * MICRO_BATCHES + number, group.device)
            trainer.backward(loss, TOKENS)
        off = _off_at_the_update(trainer, exact)
    trainer.engine.destroy()
    whole = sum(float(values.square().sum()) for values in exact.values())
    error = (group.sum(off)[0] / whole) ** 0.5
    return {"sums": sums, "exchanged": exchanged, "error": error}


def _off_at_the_update(trainer: Any, exact: dict[str, torch.Tensor]) -> float:
    """Return the squared distance of the optimizer's gradient from the exact one, in this rank's part."""
    off: dict[str, float] = {}
    step = trainer.optimizer.step

    def watched(*arguments: Any) -> Any:
        for owned in trainer.owned():
            if owned.key.grad is not None:  # stages 2 and 3 update group by group
                given = owned.key.grad.view(-1)[owned.offset : owned.offset + owned.numel]
                wanted = exact[owned.name][owned.start : owned.start + owned.numel]
                off[owned.name] = float((given.double() - wanted).square().sum())
        return step(*arguments)

    with patch.object(trainer.optimizer, "step", watched):
        trainer.update(1e-3)
    assert set(off) == {owned.name for owned in trainer.owned()}
    return sum(off.values())


@contextmanager
def _recorded() -> Iterator[tuple[dict[str, int], dict[str, int]]]:
    """Count the elements by dtype that process groups reduce, and exchange, within the block."""
    import torch.distributed as dist

    sums: dict[str, int] = defaultdict(int)
    exchanged: dict[str, int] = defaultdict(int)
    with pytest.MonkeyPatch.context() as patches:
        for name in dir(dist.ProcessGroup):
            if name.startswith("__") or not ("reduce" in name or "all_to_all" in name):
                continue
            counted = exchanged if "all_to_all" in name else sums
            original = getattr(dist.ProcessGroup, name)
            patches.setattr(dist.ProcessGroup, name, _counting(original, counted))
        yield sums, exchanged


def _counting(original: Any, counted: dict[str, int]) -> Any:
    def call(group: Any, *arguments: Any) -> Any:
        for tensor in _tensors(arguments):
            counted[str(tensor.dtype).removeprefix("torch.")] += tensor.numel()
        return original(group, *arguments)

    return call


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _tensors(one)
