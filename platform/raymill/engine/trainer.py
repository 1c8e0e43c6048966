"""DeepSpeed behind a small interface: forward and backward, update, state out, state in."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch

from raymill.checkpoint.fragments import MUON_MOMENTS, WEIGHT, FloatArray, FragmentReader
from raymill.engine.compilation import compile_layers, layers_of
from raymill.engine.group import WorkerGroup
from raymill.engine.matrix_exchange import Matrix, MatrixExchange
from raymill.engine.muon import Muon
from raymill.engine.optimizers import build_optimizer, moments_of
from raymill.engine.ownership import Owned, Trained, layout, owned_by_this_rank
from raymill.engine.settings import clips_gradients_itself, deepspeed_config
from raymill.errors import CheckpointError
from raymill.plan.batch import accumulation_steps
from raymill.schema.jobs import TrainJob

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
        from deepspeed.utils import set_z3_leaf_module

        self.group = group
        self.updates = 0  # applied so far
        moments = moments_of(model, job.optim)
        trained = {
            name: Trained(f"{prefix}{name}", tuple(parameter.shape), moments[name])
            for name, parameter in model.named_parameters()
            if name in moments
        }
        self.shapes = {parameter.name: parameter.shape for parameter in trained.values()}
        self._own_norm = not clips_gradients_itself(job)
        self._grad_clip = job.optim.grad_clip or math.inf
        self.accumulation = accumulation_steps(job, group.world_size)
        if job.train.activation_checkpointing:
            model.gradient_checkpointing_enable(  # type: ignore[operator]
                gradient_checkpointing_kwargs={"use_reentrant": False}
            )
        if job.train.compile:
            layers = layers_of(model)
            compile_layers(layers)
            for layer in layers:
                # Under ZeRO-3 its weights are gathered at once, by a hook outside of what is compiled.
                set_z3_leaf_module(layer, True)
        self.optimizer = build_optimizer(model, job.optim, job.train.precision)
        self.engine, *_ = deepspeed.initialize(
            model=model,
            optimizer=self.optimizer,
            config=deepspeed_config(job, group.world_size),
            dist_init_required=False,
        )
        self.model = self.engine.module
        self._parameters = {
            parameter: trained[name]
            for name, parameter in self.model.named_parameters()
            if name in trained
        }
        self._undo_warm_up_step()
        self._replicated = self.engine.zero_optimization_stage() == 0
        self._low_precision = [
            parameter
            for parameter in self._parameters
            if self._replicated and parameter.dtype != torch.float32
        ]
        self._accumulate_in_fp32()
        if isinstance(self.optimizer, Muon):
            self.optimizer.exchange = MatrixExchange(
                self._matrices(), group, job.zero.bucket_elements
            )

    def _undo_warm_up_step(self) -> None:
        """ZeRO-0 bf16 creates the moments by a step on zero gradients, which decays the weights."""
        wrapper = self.engine.optimizer
        if not hasattr(wrapper, "fp32_groups"):
            return
        for low_group, high_group in zip(wrapper.fp16_groups, wrapper.fp32_groups, strict=True):
            for low, high in zip(low_group, high_group, strict=True):
                high.data.copy_(low.data)
        for owned in owned_by_this_rank(self.engine, self._parameters, 0, 1):
            owned.set_updates(self.optimizer, 0)

    def _accumulate_in_fp32(self) -> None:
        """Under ZeRO-0 autograd itself adds up the micro-batches, in each parameter's own precision unless it
        is told another; under the other stages DeepSpeed does, in fp32."""
        for parameter in self._low_precision:
            parameter.grad_dtype = torch.float32

    def _matrices(self) -> Iterator[Matrix]:
        """What Muon trains, with what each rank has of it."""
        group = self.group
        shares = (0, 1) if self._replicated else (group.rank, group.world_size)
        for owned in layout(self.engine, self._parameters, *shares):
            if owned.parameter.moments == MUON_MOMENTS:
                rows, columns = owned.parameter.shape
                partition = replace(owned.partition, replicated=self._replicated)
                yield Matrix((rows, columns), partition, owned.key, owned.offset, owned.numel)

    def begin_micro_batch(self, last: bool) -> None:
        """Before each forward pass: whether the update follows this micro-batch."""
        self.engine.set_gradient_accumulation_boundary(last)
        for parameter in self._low_precision if last else ():
            # DeepSpeed would give what was never used a gradient of zeros in the parameter's own precision.
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter, dtype=torch.float32)

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
            norm = float(torch.nn.utils.clip_grad_norm_(self._parameters, self._grad_clip))
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
        return owned_by_this_rank(
            self.engine, self._parameters, self.group.rank, self.group.world_size
        )

    def fragments(self) -> Iterator[tuple[str, int, Mapping[str, FloatArray]]]:
        """That part as a checkpoint has it, as it is now."""
        for owned in self.owned():
            yield owned.name, owned.start, owned.arrays(self.optimizer)

    def load_state(self, reader: FragmentReader, updates: int, moments: bool = True) -> None:
        """Put a checkpoint's fp32 weights and moments, after so many updates, into this rank's part; without
        `moments`, they stay at zero.

        The model was built with the same weights (`load_weights`), so that its low-precision copy is
        the rounding of these already.
        """
        # Unpartitioned state (stage 0) is written in shares, but every rank needs all of it.
        self.updates = updates
        shares = 1 if self._replicated else self.group.world_size
        rank = self.group.rank if shares > 1 else 0
        with torch.no_grad():
            for owned in owned_by_this_rank(self.engine, self._parameters, rank, shares):
                views = owned.views(self.optimizer) if moments else {WEIGHT: owned.weight()}
                for kind, view in views.items():
                    values = reader.read(kind, owned.name, owned.start, owned.numel)
                    view.copy_(torch.from_numpy(values))
                owned.set_updates(self.optimizer, updates)


def frozen(job: TrainJob, model: torch.nn.Module, group: WorkerGroup) -> torch.nn.Module:
    """A model for forward passes alone, on this worker's device; under ZeRO-3 its weights are shared out
    over the workers, as the trained model's are. Collective."""
    # Parameters alone, as DeepSpeed does: rotary frequencies are buffers, and stay in fp32.
    dtype = torch.bfloat16 if job.train.precision == "bf16" else torch.float32
    for parameter in model.parameters():
        parameter.requires_grad_(False)
        parameter.data = parameter.data.to(dtype)
    model.eval()
    if job.zero.stage < 3:
        return model.to(group.device)
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
