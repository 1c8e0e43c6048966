"""Estimate of a worker's memory, part by part.

State: Rajbhandari et al. 2020 ("ZeRO"), section 3 and figure 1: mixed precision holds 2 bytes of weights,
2 of gradients and 12 of fp32 weights and Adam moments per parameter. Stage 1 partitions the 12 over the
workers, stage 2 the gradients too, stage 3 everything. Gradients are accumulated here in fp32 in bf16 too,
which the paper doesn't count; `accumulate_fp32` says so. In fp32, weights and gradients take 4 bytes each and
moments 8; stages 1 to 3 keep a partitioned fp32 copy of the weights besides. With Muon a matrix of the blocks
has one moment, 4 bytes. After the activations are freed, a worker holds a bucket of whole matrices, their
updates, and the products of the largest (`update_bytes`).

Activations: Korthikanti et al. 2022 ("Reducing activation recomputation"), redone for these blocks with
attention that doesn't keep its matrix (SDPA, flash). Kept per token and layer, in elements, for a gated
block: the input of each norm and its output (4h), queries, keys and values (q + 2k), attention's output
(q), the gate, its activation, the up projection and their product (4f). A plain block keeps 4h + 4h and
two times f. Full recomputation keeps the block's input alone (h) and one block's worth at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

from raymill.plan.parameters import ParameterCount, count_parameters, head_dim
from raymill.schema.jobs import TrainJob
from raymill.schema.sections import ArchConfig, Offload


@dataclass(frozen=True)
class Memory:
    """Bytes of one worker on its device and on the host.

    The host holds the offloaded state, and the copy that checkpoints are written from: fp32 weights and
    moments, partitioned over the workers under every stage.
    """

    weights: float
    gradients: float
    optimizer: float
    activations: float
    logits: float
    host: float
    update: float = 0.0  # buffers of Muon's update, after the backward pass

    @property
    def state(self) -> float:
        return self.weights + self.gradients + self.optimizer

    @property
    def device(self) -> float:
        return self.state + max(self.activations + self.logits, self.update)


def moment_bytes(count: ParameterCount, optimizer: str) -> int:
    """Return the bytes of the whole model's fp32 moments."""
    return 8 * count.total - (4 * count.in_block_matrices if optimizer == "muon" else 0)


def update_bytes(
    count: ParameterCount, stage: int, workers: int, precision: str, bucket_elements: int
) -> float:
    """Return the bytes of Muon's buffers on the worker that assembles the most."""
    low = 2 if precision == "bf16" else 4
    largest = max(rows * columns for rows, columns, _ in count.matrices)
    smaller = max(min(rows, columns) for rows, columns, _ in count.matrices)
    # A bucket holds at least one matrix, and at most a worker's share of all.
    bucket = max(largest, min(bucket_elements, -(-count.in_block_matrices // workers)))
    if workers == 1:
        exchanged = 0
    elif stage == 0:
        # Every worker receives the updates of all matrices.
        exchanged = low * min(count.in_block_matrices, max(bucket_elements, workers * largest))
    else:
        # Gradients are held twice: in parts as received, and assembled.
        exchanged = 2 * 4 * bucket
    products = (4 + 2 * low) * largest + 2 * low * smaller**2
    return float(exchanged + low * bucket + products)


def state_bytes(
    parameters: int,
    stage: int,
    workers: int,
    precision: str,
    accumulate_fp32: bool = False,
    moments: int | None = None,
) -> tuple[float, float, float]:
    """Return (weights, gradients, optimizer) of one worker in bytes.

    `moments` of the whole model, by default Adam's.
    """
    low = 2 if precision == "bf16" else 4
    gradient = 4 if precision != "bf16" or accumulate_fp32 else 2
    # ZeRO-0 in fp32 updates the weights in place; all others update an fp32 copy.
    masters = 4 * parameters if precision == "bf16" or stage > 0 else 0
    optimizer = masters + (8 * parameters if moments is None else moments)
    share = 1 / workers
    return (
        parameters * low * (share if stage == 3 else 1),
        parameters * gradient * (share if stage >= 2 else 1),
        optimizer * (share if stage >= 1 else 1),
    )


def activation_bytes(
    arch: ArchConfig, micro_batch: int, sequence_length: int, precision: str, recompute: bool
) -> float:
    """Return the bytes kept for the backward pass, without the logits."""
    element = 2 if precision == "bf16" else 4
    hidden, inner = arch.hidden_size, arch.intermediate_size
    query, key_value = arch.heads * head_dim(arch), arch.kv_heads * head_dim(arch)
    attention = 2 * query + 2 * key_value
    # GPT-2's block, without a gate.
    block = 8 * hidden + attention + 2 * inner
    if arch.family != "gpt2":
        block = 4 * hidden + attention + 4 * inner
    tokens = micro_batch * sequence_length
    # The input of every layer, and everything within one of them, is held at a time.
    if recompute:
        return float(tokens * element * (arch.layers * hidden + block))
    return float(tokens * element * arch.layers * block)


def logits_bytes(vocab_size: int, micro_batch: int, sequence_length: int, precision: str) -> float:
    """Return the bytes of the logits as computed, their fp32 copy and its gradient.

    They are often the peak of a small model. Where the output matrix computes in fp32, there is no copy of
    them, and `head_bytes` are added.
    """
    copies = 4 + 4 + (2 if precision == "bf16" else 0)
    return float(micro_batch * sequence_length * vocab_size * copies)


def head_bytes(arch: ArchConfig, vocab_size: int, precision: str) -> float:
    """Return the bytes of fp32 copies of the output matrix and its gradient, for DPO and RL."""
    return 8.0 * vocab_size * arch.hidden_size if precision == "bf16" else 0.0


def job_memory(job: TrainJob, arch: ArchConfig, vocab_size: int, workers: int) -> Memory:
    """Estimate the memory of one worker of a job on `workers` workers."""
    return worker_memory(
        arch,
        vocab_size,
        stage=job.zero.stage,
        workers=workers,
        precision=job.train.precision,
        micro_batch=job.train.micro_batch * job.sequences_per_row,
        sequence_length=job.forward_length,
        recompute=job.train.activation_checkpointing,
        offload_optimizer=job.zero.offload_optimizer,
        offload_params=job.zero.offload_params,
        optimizer_name=job.optim.name,
        bucket_elements=job.zero.bucket_elements,
        fp32_head=job.fp32_head,
    )


def worker_memory(
    arch: ArchConfig,
    vocab_size: int,
    *,
    stage: int,
    workers: int,
    precision: str,
    micro_batch: int,
    sequence_length: int,
    recompute: bool,
    offload_optimizer: Offload = "none",
    offload_params: Offload = "none",
    optimizer_name: str = "adamw",
    bucket_elements: int = 0,
    fp32_head: bool = False,
) -> Memory:
    """Estimate a worker's memory, without allocator overhead and communication buffers (except Muon's)."""
    count = count_parameters(arch, vocab_size)
    moments = moment_bytes(count, optimizer_name)
    weights, gradients, optimizer = state_bytes(
        count.total, stage, workers, precision, accumulate_fp32=True, moments=moments
    )
    update = 0.0
    if optimizer_name == "muon":
        update = update_bytes(count, stage, workers, precision, bucket_elements)
    # Checkpoints are written from a copy in host memory.
    host = (4 * count.total + moments) / workers
    if offload_optimizer == "cpu":
        host += optimizer
    # On NVMe the state takes neither device nor host memory.
    if offload_optimizer != "none":
        optimizer = 0.0
    if offload_params == "cpu":
        host += weights
    if offload_params != "none":
        weights = 0.0
    logits = logits_bytes(vocab_size, micro_batch, sequence_length, precision)
    if fp32_head:
        logits += head_bytes(arch, vocab_size, precision)
    return Memory(
        weights=weights,
        gradients=gradients,
        optimizer=optimizer,
        activations=activation_bytes(arch, micro_batch, sequence_length, precision, recompute),
        logits=logits,
        host=host,
        update=update,
    )
