"""Estimate of a worker's memory, part by part and moment by moment: the start, a step, a checkpoint's copy.

State: Rajbhandari et al. 2020 ("ZeRO"), section 3 and figure 1: mixed precision holds 2 bytes of weights,
2 of gradients and 12 of fp32 weights and Adam moments per parameter. Stage 1 partitions the 12 over the
workers, stage 2 the gradients too, stage 3 everything. Gradients are accumulated here in fp32 in bf16 too,
which the paper doesn't count; `accumulate_fp32` says so. In fp32, weights and gradients take 4 bytes each and
moments 8; stages 1 to 3 keep a partitioned fp32 copy of the weights besides. With Muon a matrix of the blocks
has one moment, 4 bytes. After the activations are freed, a worker holds a bucket of whole matrices, their
updates, and the products of the largest (`update_bytes`). Under ZeRO-3
the weights in use are whole (`buffers`).

The start: every worker makes its share of the state alone, one parameter after the other. Under ZeRO-0 to 2
DeepSpeed then copies the weights into one buffer; a resumed run has its moments before the first step.

Activations: Korthikanti et al. 2022 ("Reducing activation recomputation"), redone for these blocks with
attention that doesn't keep its matrix (SDPA, flash). Kept per token and layer, in elements, for a gated
block: the input of each norm and its output (4h), queries, keys and values (q + 2k), attention's output
(q), the gate, its activation, the up projection and their product (4f). A plain block keeps 4h + 4h and
two times f. Full recomputation keeps the block's input alone (h) and one block's worth at a time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from raymill.plan.models import HeldModel, held_models
from raymill.plan.parameters import ParameterCount, count_parameters, head_dim
from raymill.schema.data_sections import ChatConfig, PreferenceConfig
from raymill.schema.jobs import TrainJob
from raymill.schema.sections import ArchConfig

# DeepSpeed's default of stage3_max_live_parameters: weights that may be whole at a time.
LIVE_ELEMENTS = 10**9
# DeepSpeed's MEMORY_OPT_ALLREDUCE_SIZE: elements that are reduced at once under ZeRO-0.
REPLICATED_BUCKET = 5 * 10**8
# What computing takes besides tensors (threads, kernels, the allocator's rest), fitted to four runs
# on a CPU; not measured on GPUs.
RUNTIME_BYTES = 100 * 2**20
# An export holds a tensor, its adapters' product, their sum, and its rounding.
EXPORTED_TENSORS = 4
EXPORT_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Memory:
    """Bytes of one worker, over what it takes after its imports.

    `start` and the parts of a step are on the device, which is the host where there is no GPU. `offloaded`,
    `reading` and `copy`, from which checkpoints are written (fp32 weights and moments, partitioned under every
    stage), are on the host.
    """

    weights: float
    gradients: float
    optimizer: float
    buffers: float  # of gathered weights and of reductions
    activations: float
    logits: float
    update: float  # buffers of Muon's update, after the backward pass
    start: float  # peak while the models are made
    offloaded: float
    copy: float
    reading: float

    @property
    def state(self) -> float:
        return self.weights + self.gradients + self.optimizer

    @property
    def step(self) -> float:
        return self.state + self.buffers + max(self.activations + self.logits, self.update)

    @property
    def device(self) -> float:
        """The larger of start and step."""
        return max(self.start, self.step)

    def host(self, gpu: bool) -> float:
        """Return the bytes on the host, with the device's if there is no GPU."""
        kept = self.offloaded + self.copy + self.reading
        # The copy is made between two steps, and stays.
        return kept if gpu else kept + self.device


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
    """Estimate the memory of one worker of a job on `workers` workers, without the allocator's overhead."""
    zero, precision = job.zero, job.train.precision
    models = held_models(job, arch, vocab_size)
    states = [_state(model, zero.stage, workers, precision) for model in models]
    weights, gradients, optimizer = (sum(parts) for parts in zip(*states, strict=True))
    low = 2 if precision == "bf16" else 4
    elements = sum(model.parameters for model in models)
    trained = sum(model.trained for model in models)
    update = 0.0
    if job.optim.name == "muon":
        count = count_parameters(arch, vocab_size)
        update = update_bytes(count, zero.stage, workers, precision, zero.bucket_elements)
    buffers = float(RUNTIME_BYTES)
    if zero.stage == 3 and workers > 1:
        # The gradients of a bucket, whole and flat, and what their reduction returns.
        buffers += low * min(elements, LIVE_ELEMENTS) + 2 * 4 * min(trained, zero.bucket_elements)
    if zero.stage == 0 and workers > 1:
        # Gradients are reduced in copies.
        buffers += 4 * min(trained, REPLICATED_BUCKET)
    if zero.stage > 0 and workers > 1:
        # Two, since one is filled while the other is reduced.
        buffers += low * min(trained, zero.bucket_elements) * (2 if job.cluster.gpu else 1)
    offloaded = 0.0
    if zero.offload_optimizer == "cpu":
        offloaded += optimizer
    if zero.offload_optimizer != "none":
        optimizer = 0.0
    if zero.offload_params == "cpu":
        offloaded += weights
    if zero.offload_params != "none":
        # On NVMe it takes neither device nor host memory.
        weights = 0.0
    length, micro_batch = job.forward_length, job.train.micro_batch * job.sequences_per_row
    logits = logits_bytes(vocab_size, micro_batch, length, precision)
    if job.fp32_head:
        logits += head_bytes(arch, vocab_size, precision)
    return Memory(
        weights=weights,
        gradients=gradients,
        optimizer=optimizer,
        buffers=buffers,
        activations=activation_bytes(
            arch, micro_batch, length, precision, job.train.activation_checkpointing
        ),
        logits=logits,
        update=update,
        start=_start(job, models, (weights, gradients, optimizer)),
        offloaded=offloaded,
        copy=sum(4 * model.trained + model.moments for model in models) / workers,
        reading=reading_bytes(job, vocab_size, workers),
    )


def reading_bytes(job: TrainJob, vocab_size: int, workers: int) -> float:
    """Return the bound of a worker's rows between the disk and a step, as `data/store/stream.py` states it."""
    from raymill.data.store.reader import OPEN_BYTES
    from raymill.data.store.stream import UNIT_BYTES, UNITS_IN_MEMORY

    data, sources = job.data, max(1, len(job.data.mixture))
    token_bytes = 2 if vocab_size <= 2**16 else 4
    # Conversations and pairs have a weight and the number of the conversation with each token.
    token_bytes += 6 if isinstance(data, ChatConfig | PreferenceConfig) else 0
    in_use = job.train.global_batch + sources * data.window_row_groups
    rows = (math.ceil(in_use / workers) + sources) * data.row_group_rows
    open_bytes = rows * (data.row_predictions + 1) * token_bytes
    return float(min(open_bytes, OPEN_BYTES) + UNITS_IN_MEMORY * UNIT_BYTES)


def _state(
    model: HeldModel, stage: int, workers: int, precision: str
) -> tuple[float, float, float]:
    """Return a model's (weights, gradients, optimizer) on one worker."""
    weights, _, _ = state_bytes(model.parameters, stage, workers, precision)
    _, gradients, optimizer = state_bytes(
        model.trained, stage, workers, precision, accumulate_fp32=True, moments=model.moments
    )
    return weights, gradients, optimizer


def _start(job: TrainJob, models: Sequence[HeldModel], state: tuple[float, float, float]) -> float:
    """Return the peak while the models are made, one parameter at a time."""
    weights, gradients, optimizer = state
    copied = 0.0
    if job.zero.stage in (1, 2):
        # DeepSpeed copies what is trained into one buffer before it frees the parameters.
        share = sum(model.trained for model in models) / sum(model.parameters for model in models)
        copied = weights * share
    if job.zero.stage == 3:
        # Its buffer of gradients is made with the optimizer's state.
        optimizer += gradients
    largest = 4 * max(model.largest for model in models)
    return weights + max(copied, optimizer) + largest + RUNTIME_BYTES


def export_bytes(arch: ArchConfig, vocab_size: int) -> float:
    """Return the bytes that an export takes in the driver, over what it takes after its imports."""
    return EXPORTED_TENSORS * 4 * count_parameters(arch, vocab_size).largest + EXPORT_BYTES
