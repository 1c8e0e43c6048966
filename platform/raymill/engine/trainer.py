"""DeepSpeed behind a small interface: forward and backward, optimizer update, training state out and in."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import torch

from raymill.checkpoint.fragments import MUON_MOMENTS, WEIGHT, FloatArray, FragmentReader
from raymill.checkpoint.layout import Layout
from raymill.engine.compilation import compile_layers, layers_of
from raymill.engine.deepspeed_config import clips_gradients_itself, deepspeed_config
from raymill.engine.group import WorkerGroup, on_all_ranks
from raymill.engine.materialize import Stored, freed_blocks_returned, materialize
from raymill.engine.matrix_exchange import Matrix, MatrixExchange
from raymill.engine.muon import Muon
from raymill.engine.optimizers import build_optimizer, moments_of
from raymill.engine.ownership import Destinations, Owned, Trained, layout, owned_by_this_rank
from raymill.model.blueprint import Blueprint
from raymill.model.values import fill
from raymill.plan.batch import accumulation_steps
from raymill.schema.jobs import TrainJob

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Trainer:
    """A model under DeepSpeed. Collective throughout: every rank calls every method in step."""

    def __init__(
        self, job: TrainJob, blueprint: Blueprint, group: WorkerGroup, prefix: str = ""
    ) -> None:
        import deepspeed
        from deepspeed.utils import set_z3_leaf_module

        self.group = group
        self.updates = 0  # optimizer updates applied so far
        # Names and shapes are read here, before the parameters are partitioned.
        moments = moments_of(blueprint.model, job.optim)
        trained = {
            name: Trained(f"{prefix}{name}", tuple(parameter.shape), moments[name])
            for name, parameter in blueprint.model.named_parameters()
            if name in moments
        }
        # Where DeepSpeed doesn't return the norm, the trainer computes it and clips.
        self._own_norm = not clips_gradients_itself(job)
        self._grad_clip = job.optim.grad_clip or math.inf
        self.accumulation = accumulation_steps(job, group.world_size)
        with freed_blocks_returned():
            model = on_all_ranks(group, partial(materialize, job, blueprint, group))
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
        with freed_blocks_returned():
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
        self._replicated = self.engine.zero_optimization_stage() == 0
        on_all_ranks(group, partial(self._fill_masters, blueprint))
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

        Without `moments` these stay zero. The model was planned with the same weights (`continue_from`), so
        its low-precision copy is the rounding of these already.
        """
        self.updates = updates
        parts = list(self._updated())
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

    def _updated(self) -> Iterator[Owned]:
        """Return the parts that this rank updates: its own, and under ZeRO-0 all."""
        # Unpartitioned state (stage 0) is written in shares, but every rank needs all of it.
        shares = 1 if self._replicated else self.group.world_size
        rank = self.group.rank if shares > 1 else 0
        return owned_by_this_rank(self.engine, self._parameters, rank, shares)

    def _fill_masters(self, blueprint: Blueprint) -> None:
        """Give the fp32 weights their values, where DeepSpeed has made them of a copy in low precision.

        For ZeRO-0 in bf16 it creates the moments by a step on zero gradients, which decays the weights, too.
        """
        if all(parameter.dtype == torch.float32 for parameter in self._parameters):
            return
        values = {
            trained.name: blueprint.values[parameter]
            for parameter, trained in self._parameters.items()
        }
        with torch.no_grad():
            for owned in self._updated():
                # A checkpoint's weights are read together with its moments (`load_state`).
                if not isinstance(values[owned.name], Stored):
                    fill(owned.weight(), values[owned.name], owned.start)
                if self._replicated:
                    # That step counts as AdamW's first, which would change its bias correction.
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


def freeze_for_inference(
    job: TrainJob, blueprint: Blueprint, group: WorkerGroup
) -> PreTrainedModel:
    """Return a model for forward passes alone, on this worker's device; collective.

    Under ZeRO-3 its weights are partitioned over the workers, as the trained model's are.
    """
    blueprint.model.requires_grad_(False).eval()
    model = on_all_ranks(group, partial(materialize, job, blueprint, group))
    if job.zero.stage < 3:
        return model
    import deepspeed

    config = deepspeed_config(job, group.world_size)
    engine, *_ = deepspeed.initialize(model=model, config=config, dist_init_required=False)
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
