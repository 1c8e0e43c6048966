"""Cost of the training loop in the number of ranks: one rank's share of a step, measured on one machine.

    PYTHONPATH=platform .venv/bin/python bench/scale/loop.py --ranks 8 64 1024 8192 --json loop.json

Collectives are counted where `WorkerGroup` hands them to torch, and answered as if every other rank had sent
what this one sends. CPU seconds are this process's. `PYTHONPATH` may be another checkout's `platform`: code
that gathers objects in each step, or reads heartbeats from a shared folder, is measured by the same functions.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import pickle
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from raymill.engine.group import WorkerGroup

# A step of pretraining: rows per rank, and metrics of its objective.
RANK_ROWS, METRICS, STEPS = 4, 2, 50
RANKS_PER_NODE = 8
# A step of GRPO: prompts per rank, answers to each, tokens of a prompt and of an answer.
PROMPTS, GROUP, PROMPT_TOKENS, ANSWER_TOKENS = 1, 8, 128, 512
# Held-out rows, and rows of a row group.
HELD_OUT, ROW_GROUP = 4096, 64
POLL_S = 0.2


class Counted:
    """torch's collectives, counted and answered for a group of `world` equal ranks."""

    def __init__(self, world: int) -> None:
        self.world = world
        self.messages = 0
        self.received_bytes = 0

    def _count(self, received_bytes: int) -> None:
        self.messages += 1
        self.received_bytes += received_bytes

    def all_reduce(self, tensor: torch.Tensor, op: Any = None, group: Any = None) -> None:
        self._count(tensor.nbytes)
        if op is None:
            tensor.mul_(self.world)

    def all_gather_object(self, values: list[Any], value: Any, group: Any = None) -> None:
        data = pickle.dumps(value)
        # torch gathers the sizes first.
        self._count(8 * self.world)
        self._count(len(data) * self.world)
        values[:] = [pickle.loads(data) for _ in values]

    def all_gather_single(self, table: torch.Tensor, own: torch.Tensor, group: Any = None) -> None:
        self._count(table.nbytes)
        table.copy_(own.repeat(self.world))


def counted_group(world: int) -> tuple[WorkerGroup, Counted]:
    """Return rank 0 of a group of so many ranks."""
    counted = Counted(world)
    for name in ("all_reduce", "all_gather_object", "all_gather_single"):
        setattr(dist, name, getattr(counted, name))
    group = WorkerGroup(torch.device("cpu"))
    group.world_size = world
    return group, counted


def step(world: int) -> dict[str, float]:
    """Return messages, bytes and CPU milliseconds of a step's bookkeeping on rank 0, the model left out."""
    group, counted = counted_group(world)
    batch = RANK_ROWS * world
    ids = np.arange(RANK_ROWS, dtype=np.int64)
    seconds = {"data": 0.01, "forward": 0.5}
    sums = {f"metric {number}": [1.0, 2.0] for number in range(METRICS)}
    one = _step_now if _has("raymill.engine.stragglers") else _step_before
    make_step = one(group, batch, ids, seconds, sums)
    make_step(1)
    counted.messages = counted.received_bytes = 0
    started = time.process_time()
    for number in range(2, STEPS + 2):
        make_step(number)
    spent = time.process_time() - started
    return {
        "messages": counted.messages / STEPS,
        "bytes": counted.received_bytes / STEPS,
        "cpu_ms": 1e3 * spent / STEPS,
    }


def _has(module: str) -> bool:
    from importlib.util import find_spec

    return find_spec(module) is not None


def _step_now(
    group: WorkerGroup,
    batch: int,
    ids: Any,
    seconds: dict[str, float],
    sums: dict[str, list[float]],
) -> Callable[[int], None]:
    from raymill.engine.loop import samples_checksum
    from raymill.engine.step_sums import StepSums, means
    from raymill.engine.stragglers import Stragglers

    step_sums, stragglers = StepSums(group), Stragglers(group)

    def make(number: int) -> None:
        group.sum(False, False)  # errors and stop requests
        group.sum(1.0)  # weight of the update
        group.sum(1.0, False)  # loss
        numbers = {**sums, "learned": [1.0, 2.0], "tokens": [1.0], "samples": [1.0]}
        numbers["samples"] = [samples_checksum(ids)]
        means({name: v for name, v in step_sums.reduce(numbers).items() if len(v) == 2})
        stragglers.add(number, seconds)
        # Rank 0 alone.
        of_step = np.arange(number * batch, (number + 1) * batch, dtype=np.int64)
        samples_checksum(of_step)
        hashlib.sha256(of_step.astype("<i8").tobytes()).hexdigest()

    return make


def _step_before(
    group: WorkerGroup,
    batch: int,
    ids: Any,
    seconds: dict[str, float],
    sums: dict[str, list[float]],
) -> Callable[[int], None]:
    from raymill.engine.learner import mean_metrics  # type: ignore[attr-defined]
    from raymill.engine.loop import Stragglers  # type: ignore[attr-defined]

    stragglers = Stragglers()

    def make(number: int) -> None:
        group.sum(False, False)
        group.sum(1.0, 2.0)  # learned share
        group.sum(1.0)
        group.sum(1.0, False)
        mean_metrics(sums, group)
        ranks = group.gather((ids, seconds))
        of_step = np.sort(np.concatenate([samples for samples, _ in ranks]))
        stragglers.add(number, [of_rank for _, of_rank in ranks])
        hashlib.sha256(of_step.astype("<i8").tobytes()).hexdigest()

    return make


def watchdog(world: int) -> dict[str, float]:
    """Return reads of shared storage and driver's CPU milliseconds, both per second of a run."""
    from raymill.driver.watchdog import Watchdog
    from raymill.engine.heartbeat import Heartbeat

    with tempfile.TemporaryDirectory() as folder:
        heartbeats = [Heartbeat(Path(folder), rank) for rank in range(min(world, 1024))]
        for heartbeat in heartbeats:
            heartbeat.beat("forward")
        if _has("raymill.driver.heartbeats"):
            return _watch_nodes(world, Watchdog, Path(folder))
        looker: Any = Watchdog(Path(folder), len(heartbeats), None)  # type: ignore[arg-type]
        looker.look(1.0)
        started = time.process_time()
        looker.look(1.0)
        look_s = (time.process_time() - started) * world / len(heartbeats)
    return {"storage_reads": world / POLL_S, "cpu_ms": 1e3 * look_s / POLL_S, "calls": 0.0}


def _watch_nodes(world: int, watchdog_class: Any, folder: Path) -> dict[str, float]:
    from raymill.driver.heartbeats import CALLS_PER_S, MOST_S
    from raymill.engine.heartbeat import read_heartbeats

    record = read_heartbeats(folder)[0]
    nodes = -(-world // RANKS_PER_NODE)
    interval_s = max(POLL_S, min(MOST_S, nodes / CALLS_PER_S))
    records = {rank: dict(record) for rank in range(world)}
    answers = [
        pickle.dumps({rank: dict(record) for rank in range(RANKS_PER_NODE)}) for _ in range(nodes)
    ]
    looker = watchdog_class(lambda: records, world, None)
    looker.look(1.0)
    started = time.process_time()
    for answer in answers:
        records |= pickle.loads(answer)
    looker.look(1.0)
    look_s = time.process_time() - started
    # What a call of `NodeHeartbeats.read` took of the driver, measured by itself: 1,000 calls on a local Ray.
    call_s = nodes * 0.37e-3
    return {
        "storage_reads": 0.0,
        "cpu_ms": 1e3 * (look_s + call_s) / interval_s,
        "calls": nodes / interval_s,
    }


def held_out(world: int) -> dict[str, float]:
    """Return the row groups that a rank reads in an evaluation of `HELD_OUT` rows, and all ranks together."""
    if not _has("raymill.engine.stragglers"):
        groups = HELD_OUT // ROW_GROUP
        return {"groups_per_rank": groups, "groups": groups * world}
    bounds = [HELD_OUT * rank // world for rank in range(world + 1)]
    groups_by_rank = [
        -(-stop // ROW_GROUP) - start // ROW_GROUP if stop > start else 0
        for start, stop in pairwise(bounds)
    ]
    return {"groups_per_rank": max(groups_by_rank), "groups": sum(groups_by_rank)}


def rollouts(world: int) -> dict[str, float]:
    """Return what one rank receives of a step of GRPO, in MB, and CPU milliseconds for it.

    Rank 0 receives every prompt and every answer once from the samplers, and sends every answer once.
    """
    prompt, answer = list(range(PROMPT_TOKENS)), list(range(ANSWER_TOKENS))
    answers = PROMPTS * GROUP
    if _has("raymill.rl.shares"):
        from raymill.rl.shares import AnswerShare

        share = AnswerShare(
            np.arange(answers), np.arange(answers), np.zeros(answers), np.zeros(answers, bool),
            tuple(np.array(prompt, np.int32) for _ in range(answers)),
            tuple(np.array(answer, np.int32) for _ in range(answers)),
            tuple(np.zeros(ANSWER_TOKENS, np.float32) for _ in range(answers)),
        )  # fmt: skip
        share = pickle.loads(pickle.dumps(share))
        data = pickle.dumps(share)
        started = time.process_time()
        for _ in range(100):
            pickle.loads(data)
        spent = (time.process_time() - started) / 100
        rank_0 = world * (len(data) + 8 * (3 + PROMPT_TOKENS) * PROMPTS)
        return {"mb": len(data) / 1e6, "cpu_ms": 1e3 * spent, "rank_0_mb": rank_0 / 1e6}
    own = [(0, 0, tuple(prompt))] * PROMPTS
    record = [
        (
            np.array(prompt, np.int32),
            np.array(answer, np.int32),
            np.zeros(ANSWER_TOKENS, np.float32),
        )
        for _ in range(answers)
    ]
    prompts_data, data = pickle.dumps(own), pickle.dumps(record)
    started = time.process_time()
    for _ in range(100):
        pickle.loads(prompts_data)
        pickle.loads(data)
    spent = world * (time.process_time() - started) / 100
    received = world * (len(prompts_data) + len(data)) / 1e6
    return {"mb": received, "cpu_ms": 1e3 * spent, "rank_0_mb": received}


def digest(_: int) -> dict[str, float]:
    """Return the speed of hashing weights on one core, and the seconds for 70 billion bf16 parameters."""
    from raymill.rl.rollout.weights import weights_digest

    weights = torch.randn(2**24).bfloat16()
    weights_digest([("warm", weights)])
    started = time.process_time()
    for _ in range(4):
        weights_digest([("w", weights)])
    speed = 4 * weights.nbytes / (time.process_time() - started)
    return {"gb_per_s": speed / 1e9, "seconds_70b": 140e9 / speed}


MEASURES = {
    "step": step, "watchdog": watchdog, "held_out": held_out, "rollouts": rollouts, "digest": digest,
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 64, 1024, 8192])
    parser.add_argument("--only", nargs="+", choices=list(MEASURES), default=list(MEASURES))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    table: dict[str, dict[str, list[float]]] = {}
    for name in options.only:
        ranks = options.ranks[:1] if name == "digest" else options.ranks
        rows = [MEASURES[name](world) for world in ranks]
        table[name] = {key: [row[key] for row in rows] for key in rows[0]}
        for key, values in table[name].items():
            print(f"{name:>9} {key:<16}", *(f"{value:>14,.3f}" for value in values), flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps({"ranks": options.ranks, **table}, indent=1))


if __name__ == "__main__":
    main()
