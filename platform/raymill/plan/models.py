"""Models that each worker of a job holds, by their sizes: the trained one, and those that it needs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from raymill.plan.parameters import ParameterCount, adapter_parameters, count_parameters
from raymill.schema.jobs import DpoJob, ParentJob, RlhfJob, TrainJob
from raymill.schema.sections import ArchConfig

# Losses of pairs that compare with a reference; those of objective/preferences.py.
WITH_REFERENCE = ("dpo", "ipo")


@dataclass(frozen=True)
class HeldModel:
    """Sizes of a model, unpartitioned: elements, and bytes of its moments."""

    name: str
    parameters: int
    trained: int
    moments: int
    largest: int  # elements of the largest parameter


def moment_bytes(count: ParameterCount, optimizer: str) -> int:
    """Return the bytes of the whole model's fp32 moments, if all of it is trained."""
    return 8 * count.total - (4 * count.in_block_matrices if optimizer == "muon" else 0)


def held_models(job: TrainJob, arch: ArchConfig, vocab_size: int) -> list[HeldModel]:
    """Return the models of one worker, the trained one first.

    A scalar head isn't counted, and neither are the rows of a few new tokens, nor the models of samplers and
    rewards, which have processes of their own.
    """
    return list(_held_models(job, arch, count_parameters(arch, vocab_size)))


def _held_models(job: TrainJob, arch: ArchConfig, count: ParameterCount) -> Iterator[HeldModel]:
    everything = HeldModel(
        "model", count.total, count.total, moment_bytes(count, job.optim.name), count.largest
    )
    trained = everything
    if isinstance(job, ParentJob) and job.lora.rank:
        added = adapter_parameters(arch, job.lora.targets, job.lora.rank)
        trained = HeldModel("model", count.total + added, added, 8 * added, count.largest)
    yield trained
    if isinstance(job, RlhfJob) and job.algorithm.advantage == "gae":
        yield HeldModel(
            "critic", trained.parameters, trained.trained, trained.moments, trained.largest
        )
    # With adapters, the reference is the trained model without them.
    if isinstance(job, ParentJob) and not job.lora.rank and _has_reference(job):
        yield HeldModel("reference", count.total, 0, 0, count.largest)


def _has_reference(job: ParentJob) -> bool:
    if isinstance(job, DpoJob):
        return job.loss.name in WITH_REFERENCE and job.loss.reference == "live"
    return isinstance(job, RlhfJob)
