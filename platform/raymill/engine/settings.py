"""DeepSpeed's configuration, derived from ours: the only place that spells its keys."""

from __future__ import annotations

from typing import Any

from raymill.plan.batch import accumulation_steps, rows_per_update
from raymill.schema.jobs import TrainJob
from raymill.schema.sections import Offload


def clips_gradients_itself(job: TrainJob) -> bool:
    """Whether DeepSpeed clips: not in ZeRO-0 fp32, where it doesn't tell the norm before the update."""
    return job.zero.stage > 0 or job.train.precision != "fp32"


def deepspeed_config(job: TrainJob, world_size: int) -> dict[str, Any]:
    """The dictionary that `deepspeed.initialize` takes."""
    zero: dict[str, Any] = {
        "stage": job.zero.stage,
        "reduce_bucket_size": job.zero.bucket_elements,
        "allgather_bucket_size": job.zero.bucket_elements,
        # Streams to overlap on exist only on a GPU; on a CPU the extra buffers are pure cost.
        "overlap_comm": job.cluster.gpu,
        "contiguous_gradients": job.cluster.gpu or job.zero.stage >= 2,
    }
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
        # DeepSpeed's default is that of the forward pass: in bf16 every hop over the ranks would round.
        "communication_data_type": job.train.reduce_precision,
        # A non-finite norm must not become an update; without the check stage 2 would apply it.
        "bf16": {"enabled": bf16, "check_grad_overflow": bf16},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**31,
        "wall_clock_breakdown": False,
    }
    if bf16 and job.zero.stage > 0:
        config["data_types"] = {"grad_accum_dtype": "fp32"}
    return config


def _offload(device: Offload, job: TrainJob) -> dict[str, Any]:
    settings: dict[str, Any] = {"device": device, "pin_memory": job.cluster.gpu}
    if device == "nvme":
        settings["nvme_path"] = job.zero.nvme_path
    return settings
