"""DeepSpeed behind a small interface: forward and backward, update, state out, state in."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from raymill.checkpoint.fragments import MOMENTS, WEIGHT, FloatArray, FragmentReader
from raymill.config.schema import OptimConfig, TrainJob
from raymill.engine.group import WorkerGroup
from raymill.engine.ownership import Owned, optimizer_state, owned_by_this_rank
from raymill.engine.settings import clips_gradients_itself, deepspeed_config
from raymill.errors import CheckpointError
from raymill.plan.batch import accumulation_steps


def decay_groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices are decayed, vectors (norms, biases) aren't; embeddings are matrices."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def build_optimizer(model: torch.nn.Module, optim: OptimConfig) -> torch.optim.AdamW:
    """AdamW in torch's fused kernel."""
    return torch.optim.AdamW(
        decay_groups(model, optim.weight_decay),
        lr=optim.learning_rate,
        betas=(optim.beta1, optim.beta2),
        eps=optim.eps,
        fused=True,
    )


CRITIC = "critic/"  # before the names of a critic's parameters in a checkpoint


def load_weights(model: torch.nn.Module, reader: FragmentReader, prefix: str = "") -> None:
    """Fill a freshly built model's trainable parameters with a checkpoint's fp32 weights, those whose
    names have the prefix.

    Raises:
        CheckpointError: the checkpoint's parameters aren't the model's; names the first that differ.
    """
    parameters = {f"{prefix}{name}": p for name, p in model.named_parameters() if p.requires_grad}
    saved = {name for name in reader.index if name.startswith(CRITIC) == (prefix == CRITIC)}
    missing = sorted(set(parameters) ^ saved)
    if missing:
        raise CheckpointError(
            f"{reader.directory} and the model differ in {len(missing)} parameters, "
            f"first {missing[0]}: what is trained isn't what was saved"
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(torch.from_numpy(reader.tensor(name)))


class Trainer:
    """A model under DeepSpeed. Collective throughout: every rank calls every method in step."""

    def __init__(
        self, job: TrainJob, model: torch.nn.Module, group: WorkerGroup, prefix: str = ""
    ) -> None:
        import deepspeed

        self.group = group
        self.updates = 0  # applied so far
        self.shapes = {
            f"{prefix}{name}": tuple(p.shape)
            for name, p in model.named_parameters()
            if p.requires_grad
        }
        self._own_norm = not clips_gradients_itself(job)
        self._grad_clip = job.optim.grad_clip or math.inf
        self.accumulation = accumulation_steps(job, group.world_size)
        if job.train.activation_checkpointing:
            model.gradient_checkpointing_enable(  # type: ignore[operator]
                gradient_checkpointing_kwargs={"use_reentrant": False}
            )
        self.optimizer = build_optimizer(model, job.optim)
        self.engine, *_ = deepspeed.initialize(
            model=model,
            optimizer=self.optimizer,
            config=deepspeed_config(job, group.world_size),
            dist_init_required=False,
        )
        self._undo_warm_up_step()
        if job.train.compile:
            self.engine.compile()
        self.model = self.engine.module
        self._names = {
            parameter: f"{prefix}{name}"
            for name, parameter in self.model.named_parameters()
            if parameter.requires_grad
        }

    def _undo_warm_up_step(self) -> None:
        """ZeRO-0 bf16 creates Adam's state by a step on zero gradients, which decays the weights."""
        wrapper = self.engine.optimizer
        if not hasattr(wrapper, "fp32_groups"):
            return
        for low_group, high_group in zip(wrapper.fp16_groups, wrapper.fp32_groups, strict=True):
            for low, high in zip(low_group, high_group, strict=True):
                high.data.copy_(low.data)
                optimizer_state(self.optimizer, high)["step"].zero_()

    def begin_micro_batch(self, last: bool) -> None:
        """Before each forward pass: whether the update follows this micro-batch."""
        self.engine.set_gradient_accumulation_boundary(last)

    def backward(self, loss_sum: torch.Tensor, global_tokens: float) -> None:
        """Accumulate the gradient of the global per-token mean.

        DeepSpeed divides by the accumulation steps and averages over the ranks; both are undone here,
        so that the denominator is the tokens of the whole global batch.
        """
        scale = self.group.world_size * self.accumulation / global_tokens
        self.engine.backward(loss_sum * scale)

    def update(self, learning_rate: float) -> float:
        """Clip and apply one optimizer step; returns the global gradient norm before clipping.

        A non-finite norm is returned and nothing is applied, on every rank alike.
        """
        for param_group in self.optimizer.param_groups:
            param_group["lr"] = learning_rate
        if self._own_norm:
            norm = float(torch.nn.utils.clip_grad_norm_(self._names, self._grad_clip))
            if math.isfinite(norm):
                self.engine.step()
                self.updates += 1
            else:
                self.engine.zero_grad()
            return norm
        self.engine.step()
        if not self.engine.was_step_applied():
            return float("nan")
        self.updates += 1
        return float(self.engine.get_global_grad_norm())

    def owned(self) -> Iterator[Owned]:
        """This rank's part of the training state; no element is in two ranks' parts."""
        return owned_by_this_rank(self.engine, self._names, self.group.rank, self.group.world_size)

    def fragments(self) -> Iterator[tuple[str, int, Mapping[str, FloatArray]]]:
        """That part as a checkpoint has it, as it is now."""
        for owned in self.owned():
            yield owned.name, owned.start, owned.arrays(self.optimizer)

    def load_state(self, reader: FragmentReader, updates: int) -> None:
        """Put a checkpoint's fp32 weights and moments, after so many updates, into this rank's part.

        The model was built with the same weights (`load_weights`), so that its low-precision copy is
        the rounding of these already.
        """
        # Unpartitioned state (stage 0) is written in shares, but every rank needs all of it.
        self.updates = updates
        shares = self.group.world_size if self.engine.zero_optimization_stage() > 0 else 1
        rank = self.group.rank if shares > 1 else 0
        with torch.no_grad():
            for owned in owned_by_this_rank(self.engine, self._names, rank, shares):
                owned.weight().copy_(
                    torch.from_numpy(reader.read(WEIGHT, owned.name, owned.start, owned.numel))
                )
                for kind in MOMENTS:
                    values = reader.read(kind, owned.name, owned.start, owned.numel)
                    owned.moment(self.optimizer, kind).copy_(torch.from_numpy(values))
                optimizer_state(self.optimizer, owned.key)["step"].fill_(float(updates))


def frozen(job: TrainJob, model: torch.nn.Module, group: WorkerGroup) -> torch.nn.Module:
    """A model for forward passes alone, on this worker's device; under ZeRO-3 its weights are shared out
    over the workers, as the trained model's are. Collective."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    model.eval()
    dtype = torch.bfloat16 if job.train.precision == "bf16" else torch.float32
    if job.zero.stage < 3:
        return model.to(group.device, dtype)
    import deepspeed

    config = deepspeed_config(job, group.world_size)
    engine, *_ = deepspeed.initialize(
        model=model.to(group.device), config=config, dist_init_required=False
    )
    shared: torch.nn.Module = engine.module
    return shared


@contextmanager
def gathered(parameters: Sequence[torch.nn.Parameter]) -> Iterator[None]:
    """Within the block the parameters are whole on every rank, under ZeRO-3 too. Collective."""
    if not any(hasattr(parameter, "ds_id") for parameter in parameters):
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(list(parameters)):
        yield
