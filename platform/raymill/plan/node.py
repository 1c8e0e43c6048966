"""Memory of one node of the cluster: its workers, and the driver's export on the first node."""

from __future__ import annotations

from dataclasses import dataclass

from raymill.plan.memory import Memory, export_bytes, job_memory
from raymill.schema.jobs import TrainJob
from raymill.schema.sections import ArchConfig

# Of a worker after its imports, and of the driver.
PROCESS_BYTES = 700 * 2**20


@dataclass(frozen=True)
class NodeMemory:
    """Bytes of host memory that a job takes on its fullest node, which may have the driver, too."""

    workers: int
    each: float  # with what a process takes after its imports
    export: float  # after training, when the workers have ended

    @property
    def total(self) -> float:
        return max(self.workers * self.each + PROCESS_BYTES, PROCESS_BYTES + self.export)


def node_memory(job: TrainJob, arch: ArchConfig, vocab_size: int, workers: int) -> NodeMemory:
    """Estimate the host memory of the fullest node of a job on `workers` workers."""
    memory: Memory = job_memory(job, arch, vocab_size, workers)
    local = min(workers, job.cluster.workers_per_node)
    each = PROCESS_BYTES + memory.host(job.cluster.gpu)
    return NodeMemory(local, each, export_bytes(arch, vocab_size))
