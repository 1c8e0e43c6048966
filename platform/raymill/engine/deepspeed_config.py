"""DeepSpeed's configuration, derived from the job's. Its keys are spelled nowhere else."""

from __future__ import annotations

from typing import Any

from raymill.plan.batch import accumulation_steps, rows_per_update
from raymill.schema.jobs import TrainJob
from raymill.schema.sections import Offload


def clips_gradients_itself(job: TrainJob) -> bool:
    """Return True if DeepSpeed clips gradients, which it does except in ZeRO-0 with fp32.

    There it doesn't return the norm before the update, so the trainer computes and clips it.
    """
    return job.zero.stage > 0 or job.train.precision != "fp32"


def deepspeed_config(job: TrainJob, world_size: int) -> dict[str, Any]:
    """Return the dictionary that `deepspeed.initialize` takes."""
    zero: dict[str, Any] = {
        "stage": job.zero.stage,
        "reduce_bucket_size": job.zero.bucket_elements,
        "allgather_bucket_size": job.zero.bucket_elements,
        # Streams to overlap on exist only on a GPU; on a CPU the extra buffers are pure cost.
        "overlap_comm": job.cluster.gpu,
        "contiguous_gradients": job.cluster.gpu or job.zero.stage >= 2,
    }
    # Parameters below the threshold stay whole on every rank: gathering them would cost more than it saves.
    if job.zero.stage == 3:
        zero["stage3_prefetch_bucket_size"] = job.zero.bucket_elements
        zero["stage3_param_persistence_threshold"] = 100_000
    if job.zero.offload_optimizer != "none":
        zero["offload_optimizer"] = _offload(job.zero.offload_optimizer, job)
    if job.zero.offload_params != "none":
        zero["offload_param"] = _offload(job.zero.offload_params, job)
    bf16 = job.train.precision == "bf16"
    config: dict[str, Any] = {
        "train_batch_size": rows_per_update(job),
        "train_micro_batch_size_per_gpu": job.train.micro_batch,
        "gradient_accumulation_steps": accumulation_steps(job, world_size),
        "gradient_clipping": job.optim.grad_clip if clips_gradients_itself(job) else 0.0,
        "zero_optimization": zero,
        # The default is the precision of the forward pass: in bf16 the sum would be rounded on every rank.
        "communication_data_type": job.train.reduce_precision,
        # Without the check, stage 2 would apply an update with a non-finite norm.
        "bf16": {"enabled": bf16, "check_grad_overflow": bf16},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        # The platform logs its own metrics.
        "steps_per_print": 2**31,
        "wall_clock_breakdown": False,
    }
    # In bf16 small contributions of micro-batches would be lost when they are added up.
    if bf16 and job.zero.stage > 0:
        config["data_types"] = {"grad_accum_dtype": "fp32"}
    return config


def _offload(device: Offload, job: TrainJob) -> dict[str, Any]:
    settings: dict[str, Any] = {"device": device, "pin_memory": job.cluster.gpu}
    if device == "nvme":
        settings["nvme_path"] = job.zero.nvme_path
    return settings
