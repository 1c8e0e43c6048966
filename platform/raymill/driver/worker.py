"""Training in one Ray Train worker: set up, train, and write to the event log how it ended."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from raymill.checkpoint.file_record import DamagedError
from raymill.cluster.interface import GLOO
from raymill.engine.failure_note import exit_on_error
from raymill.engine.heartbeat import Heartbeat, heartbeat_folder, process_location
from raymill.engine.resolved_run import ResolvedRun
from raymill.errors import RaymillError, RewindError, ends_run
from raymill.timeline import mark

if TYPE_CHECKING:
    from raymill.data.store.order import SampleOrder
    from raymill.data.store.stream import RankStream
    from raymill.engine.event_log import EventLog
    from raymill.engine.group import WorkerGroup
    from raymill.engine.loop import Loop
    from raymill.engine.start import StartPoint

logger = logging.getLogger(__name__)


def train_worker(resolved: ResolvedRun) -> None:
    """Train as one rank of the worker group.

    An error that a retry can't repair (bad data, a contradicting configuration, a non-finite loss), and on
    which all ranks agree, is written to the event log and ends the run normally. Any other ends this process
    at once, and with it the group: a rank that merely returned would keep the others waiting for it.
    """
    rank = int(os.environ.get("RANK", "0"))
    folder = heartbeat_folder(resolved.start_name, process_location()["node"])
    heartbeat = Heartbeat(folder, rank)
    heartbeat.beat("start")
    resolved.pulses.mkdir(parents=True, exist_ok=True)
    with exit_on_error(resolved.pulses, rank):
        _train(resolved, rank, heartbeat)


def _train(resolved: ResolvedRun, rank: int, heartbeat: Heartbeat) -> None:
    import torch

    from raymill.engine.device import choose_device, join_deepspeed
    from raymill.engine.event_log import EventLog
    from raymill.engine.group import WorkerGroup

    # Before anything else prints: Ray would send the output to its own log folder.
    send_output_to(resolved.run_dir / "logs" / f"rank-{rank:05d}.log")
    job = resolved.job
    # Without a limit, every worker on a machine would use all of its cores.
    torch.set_num_threads(job.train.threads or threads_per_worker())
    device = choose_device(job.cluster.gpu, job.train.deterministic)
    join_deepspeed(job.cluster.gpu)
    group = WorkerGroup(device)
    mark("libraries")
    # Only rank 0 writes events, so that the log has one order.
    event_log = EventLog(resolved.event_log) if group.rank == 0 else None
    loop: Loop | None = None
    try:
        loop = build_loop(resolved, group, event_log, heartbeat)
        ending = {"status": loop.run()}
    except RewindError as error:
        ending = {"status": "rewind", "why": str(error)}
    except RaymillError as error:
        # An error of one rank alone ends this process, whatever its class: the others wait for it.
        if not (error.on_every_rank and ends_run(error)):
            raise
        logger.exception("the run failed")
        ending = {"status": "failed", "error": str(error), "error_type": type(error).__name__}
    if event_log is not None:
        event_log.write("status", loop.step if loop else 0, **ending)
        event_log.close()


def send_output_to(path: Path) -> None:
    """Append everything this process prints from now on, C libraries included, to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    # Ray replaces the streams by wrappers of its own; libraries logging through them would be lost.
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        force=True,
    )
    warnings.simplefilter("once")


def threads_per_worker() -> int:
    """Divide the machine's usable cores among the workers on it."""
    local_workers = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, len(os.sched_getaffinity(0)) // local_workers)


def build_loop(
    resolved: ResolvedRun, group: WorkerGroup, event_log: EventLog | None, heartbeat: Heartbeat
) -> Loop:
    """Build everything that the first step needs; collective."""
    from raymill.engine.fall_back import fall_back
    from raymill.engine.group import on_all_ranks, on_rank_zero
    from raymill.engine.loop import Loop
    from raymill.engine.samples import settle_sampling
    from raymill.engine.setup import build_learners
    from raymill.engine.start import claim_and_resolve_start, open_data, open_order
    from raymill.recipes.registry import recipe_of

    prepared = on_all_ranks(group, lambda: open_data(resolved))
    digests = tuple(data.manifest.digest for data in prepared)
    # One rank decides, since a checkpoint may be committed or deleted between two looks.
    start = on_rank_zero(group, lambda: claim_and_resolve_start(resolved, digests))
    _log_attempt(resolved, start, event_log, group)
    order = on_all_ranks(group, lambda: open_order(resolved, prepared, start))
    stream = open_stream(resolved, order, start, group)
    # Reading starts here, so that the first rows are ready when the models are built.
    stream.open()
    mark("data")
    recipe = recipe_of(resolved, prepared)
    try:
        learners = build_learners(recipe, resolved, start, group)
    except DamagedError as error:
        fall_back(start, error, group, resolved.remote)
    if start.checkpoint is not None:
        # All ranks have read what they need by now, and this node's may go.
        shutil.rmtree(start.checkpoint.cache, ignore_errors=True)
    # Some families sample wrongly in batches or with a cache; all ranks then avoid that.
    if recipe.samples:
        settle_sampling(learners[0].model, group, event_log, start.step)
    mark("learners")
    batch_builder = recipe.batch_builder(learners, group, event_log)
    batch_builder.restore(start.state)
    return Loop(
        resolved=resolved,
        prepared=prepared,
        start=start,
        learners=learners,
        batch_builder=batch_builder,
        evaluators=recipe.evaluators(learners, batch_builder, group, event_log),
        stream=stream,
        group=group,
        event_log=event_log,
        heartbeat=heartbeat,
        peak_flops=_peak_of_all(resolved, group),
        flops_per_token=recipe.flops_per_token(learners[0].model),
    )


def _log_attempt(
    resolved: ResolvedRun, start: StartPoint, event_log: EventLog | None, group: WorkerGroup
) -> None:
    # The driver watches these nodes: whether they are drained, and for their metrics.
    ranks = group.gather(process_location() | _place_in_group())
    if event_log is None:
        return
    origin = start.checkpoint.directory if start.checkpoint else resolved.model_folder
    event_log.write(
        "attempt",
        start.step,
        world_size=group.world_size,
        ranks=ranks,
        resumed=start.resumed,
        resumed_from=str(origin) if origin else None,
        total_steps=resolved.total_steps,
        messages=list(start.messages),
    )


def _place_in_group() -> dict[str, int | str]:
    """Return this rank's numbers, as Ray Train set them, and the interface of its process groups.

    The interface is "" where it is torch's own choice, because all ranks are on one host.
    """
    numbers = {"node_rank": "0", "local_rank": "0", "local_world_size": "1"}
    found = {name: int(os.environ.get(name.upper(), alone)) for name, alone in numbers.items()}
    return found | {"interface": os.environ.get(GLOO, "")}


def open_stream(
    resolved: ResolvedRun, order: SampleOrder, start: StartPoint, group: WorkerGroup
) -> RankStream:
    """Open this rank's stream of batches, from the run's position on."""
    from raymill.data.store.stream import RankStream, StreamSpec

    job = resolved.job
    spec = StreamSpec(
        folders=resolved.folders,
        order=order,
        world_size=group.world_size,
        start_sample=start.samples,
        total_samples=start.samples + (resolved.total_steps - start.step) * job.train.global_batch,
    )
    return RankStream(spec, group.rank)


def _peak_of_all(resolved: ResolvedRun, group: WorkerGroup) -> float:
    """Return the peak FLOP/s of all workers together: as configured, or measured now on all at once."""
    import torch

    from raymill.engine.device import benchmark_peak_flops

    stated = resolved.job.cluster.peak_tflops
    if stated is not None:
        return stated * 1e12 * group.world_size
    precision = torch.bfloat16 if resolved.job.train.precision == "bf16" else torch.float32
    # Measured on all ranks at once, since workers that share a machine slow each other down.
    return group.sum(benchmark_peak_flops(group.device, precision))[0]
