"""DeepSpeed behind a small interface: forward and backward, optimizer update, training state out and in."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from raymill.checkpoint.fragments import MUON_MOMENTS, WEIGHT, FloatArray, FragmentReader
from raymill.checkpoint.layout import Layout
from raymill.engine.compilation import compile_layers, layers_of
from raymill.engine.deepspeed_config import clips_gradients_itself, deepspeed_config
from raymill.engine.group import WorkerGroup
from raymill.engine.matrix_exchange import Matrix, MatrixExchange
from raymill.engine.muon import Muon
from raymill.engine.optimizers import build_optimizer, moments_of
from raymill.engine.ownership import Destinations, Owned, Trained, layout, owned_by_this_rank
from raymill.errors import CheckpointError
from raymill.plan.batch import accumulation_steps
from raymill.schema.jobs import TrainJob

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CRITIC = "critic/"  # before the names of a critic's parameters in a checkpoint


class Trainer:
    """A model under DeepSpeed. Collective throughout: every rank calls every method in step."""

    def __init__(
        self, job: TrainJob, model: PreTrainedModel, group: WorkerGroup, prefix: str = ""
    ) -> None:
        import deepspeed
        from deepspeed.utils import set_z3_leaf_module

        self.group = group
        self.updates = 0  # optimizer updates applied so far
        # Names and shapes are read here, before DeepSpeed partitions the parameters.
        moments = moments_of(model, job.optim)
        trained = {
            name: Trained(f"{prefix}{name}", tuple(parameter.shape), moments[name])
            for name, parameter in model.named_parameters()
            if name in moments
        }
        # Where DeepSpeed doesn't return the norm, the trainer computes it and clips.
        self._own_norm = not clips_gradients_itself(job)
        self._grad_clip = job.optim.grad_clip or math.inf
        self.accumulation = accumulation_steps(job, group.world_size)
        if job.train.activation_checkpointing:
            # Reentrant checkpointing would need inputs with gradients, which frozen embeddings don't give.
            model.gradient_checkpointing_enable(
                gradient_checkpointing_kwargs={"use_reentrant": False}
            )
        if job.train.compile:
            layers = layers_of(model)
            compile_layers(layers)
            for layer in layers:
                # Under ZeRO-3 a hook outside the compiled code then gathers all weights of a layer at once.
                set_z3_leaf_module(layer, True)
        self.optimizer = build_optimizer(model, job.optim, job.train.precision)
        self.engine, *_ = deepspeed.initialize(
            model=model,
            optimizer=self.optimizer,
            config=deepspeed_config(job, group.world_size),
            dist_init_required=False,
        )
        self.model: PreTrainedModel = self.engine.module
        self._parameters = {
            parameter: trained[name]
            for name, parameter in self.model.named_parameters()
            if name in trained
        }
        self._undo_warm_up_step()
        self._replicated = self.engine.zero_optimization_stage() == 0
        # Under ZeRO-0 autograd itself adds up the micro-batches' gradients, by default in each parameter's own
        # precision. Under the other stages DeepSpeed adds them up, in fp32.
        self._low_precision = [
            parameter
            for parameter in self._parameters
            if self._replicated and parameter.dtype != torch.float32
        ]
        for parameter in self._low_precision:
            parameter.grad_dtype = torch.float32
        if isinstance(self.optimizer, Muon):
            self.optimizer.exchange = MatrixExchange(
                self._matrices(), group, job.zero.bucket_elements
            )

    def begin_micro_batch(self, last: bool) -> None:
        """Prepare for a forward pass; `last` if the optimizer update follows this micro-batch."""
        self.engine.set_gradient_accumulation_boundary(last)
        for parameter in self._low_precision if last else ():
            # DeepSpeed would give an unused parameter a gradient of zeros in the parameter's own precision.
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
        """Clip and apply one optimizer step. Return the global gradient norm before clipping.

        With a non-finite norm nothing is applied, on every rank alike.
        """
        # The schedule is a function of the step, so the rate is set again for every update.
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
        # DeepSpeed itself skips a step whose gradients aren't finite.
        if not self.engine.was_step_applied():
            return float("nan")
        self.updates += 1
        return float(self.engine.get_global_grad_norm())

    def owned(self) -> Iterator[Owned]:
        """Return this rank's part of the training state; no element is in two ranks' parts."""
        return owned_by_this_rank(
            self.engine, self._parameters, self.group.rank, self.group.world_size
        )

    def checkpoint_layout(self) -> Layout:
        """Return which rank has which part of the training state; the same on all ranks."""
        world_size = self.group.world_size
        owned = layout(self.engine, self._parameters, self.group.rank, world_size)
        return Layout.of(world_size, {part.name: (part.entry, part.partition) for part in owned})

    def fragments(self) -> Iterator[tuple[str, int, Mapping[str, FloatArray]]]:
        """Yield this rank's part in the form of a checkpoint: (name, start, kind → values)."""
        for owned in self.owned():
            yield owned.name, owned.start, owned.arrays(self.optimizer)

    def load_state(self, reader: FragmentReader, updates: int, moments: bool = True) -> None:
        """Load this rank's part of a checkpoint's fp32 weights and moments, saved after `updates` updates.

        Without `moments` these stay zero. The model was built with the same weights (`load_weights`), so its
        low-precision copy is the rounding of these already.
        """
        self.updates = updates
        # Unpartitioned state (stage 0) is written in shares, but every rank needs all of it.
        shares = 1 if self._replicated else self.group.world_size
        rank = self.group.rank if shares > 1 else 0
        parts = list(owned_by_this_rank(self.engine, self._parameters, rank, shares))
        # The order of a checkpoint's files, in which parameters that follow each other are read at once.
        kinds = dict.fromkeys(kind for part in parts for kind in (WEIGHT, *part.parameter.moments))
        destinations = Destinations(reader)
        for kind in kinds if moments else (WEIGHT,):
            for part in parts:
                if kind in (WEIGHT, *part.parameter.moments):
                    destinations.add(kind, part, self.optimizer)
        destinations.fill()
        for part in parts:
            part.set_updates(self.optimizer, updates)

    def _undo_warm_up_step(self) -> None:
        """Restore what DeepSpeed changed while starting up.

        For ZeRO-0 in bf16 it creates the moments by a step on zero gradients, which decays the weights.
        """
        wrapper = self.engine.optimizer
        if not hasattr(wrapper, "fp32_groups"):
            return
        for low_group, high_group in zip(wrapper.fp16_groups, wrapper.fp32_groups, strict=True):
            for low, high in zip(low_group, high_group, strict=True):
                high.data.copy_(low.data)
        # That step counts as AdamW's first, which would change its bias correction.
        for owned in owned_by_this_rank(self.engine, self._parameters, 0, 1):
            owned.set_updates(self.optimizer, 0)

    def _matrices(self) -> Iterator[Matrix]:
        """Yield the matrices that Muon trains, each with this rank's elements of it."""
        group = self.group
        # Under ZeRO-0 every rank has whole matrices, although checkpoints write them in shares.
        shares = (0, 1) if self._replicated else (group.rank, group.world_size)
        for owned in layout(self.engine, self._parameters, *shares):
            if owned.parameter.moments == MUON_MOMENTS:
                rows, columns = owned.parameter.shape
                partition = replace(owned.partition, replicated=self._replicated)
                yield Matrix((rows, columns), partition, owned.key, owned.offset, owned.numel)


def load_weights(model: torch.nn.Module, reader: FragmentReader, prefix: str = "") -> None:
    """Load a checkpoint's fp32 weights into a freshly built model's trainable parameters.

    Only the checkpoint's parameters whose names start with `prefix` belong to this model.

    Raises:
        CheckpointError: the checkpoint has other parameters than the model; names the first that differs.
    """
    parameters = {f"{prefix}{name}": p for name, p in model.named_parameters() if p.requires_grad}
    saved = {name for name in reader.index if name.startswith(CRITIC) == (prefix == CRITIC)}
    missing = sorted(set(parameters) ^ saved)
    if missing:
        raise CheckpointError(
            f"{reader.location} and the model differ in {len(missing)} parameters, "
            f"first {missing[0]}: the parameters to train aren't those that were saved"
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(torch.from_numpy(reader.tensor(name)))


def freeze_for_inference(
    job: TrainJob, model: PreTrainedModel, group: WorkerGroup
) -> PreTrainedModel:
    """Return a model for forward passes alone, on this worker's device; collective.

    Under ZeRO-3 its weights are partitioned over the workers, as the trained model's are.
    """
    # Only parameters are converted, as DeepSpeed does: rotary frequencies are buffers, and stay in fp32.
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
    return engine.module


@contextmanager
def gathered_parameters(parameters: Sequence[torch.nn.Parameter]) -> Iterator[None]:
    """Make the parameters whole on every rank within the block, under ZeRO-3 too. Collective."""
    if not any(hasattr(parameter, "ds_id") for parameter in parameters):
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(list(parameters)):
        yield
