"""Process group of workers on several hosts: find its interfaces, check that hosts reach each other,
and form it within a limit, or say which ranks are missing and why."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from ray.train.torch import TorchConfig
from ray.train.torch.config import (
    _set_torch_distributed_env_vars,
    _setup_torch_process_group,
    _TorchBackend,
)

from raymill.causes import cause_of
from raymill.cluster.interface import GroupEndpoint, set_interface
from raymill.errors import GroupError

if TYPE_CHECKING:
    import ray
    from ray.train.v2._internal.execution.worker_group import ExecutionGroup, Worker

# A connection within a cluster takes milliseconds; this allows for some lost packets.
CONNECT_S = 10.0
# Importing torch from a cold disk takes most of it; each rank connects to all others.
FORM_S, FORM_S_PER_RANK = 120.0, 0.1
# After the first error of a rank, the errors of others are awaited for so long.
ECHO_S = 5.0
# Ranks named in a message.
NAMED = 8

T = TypeVar("T")

# Sockets to which other ranks of this process's group connect during the check.
_listening: list[socket.socket] = []


class GroupBackend(_TorchBackend):  # type: ignore[misc]
    """Backend of Ray Train that forms the process group of an attempt."""

    def on_start(self, worker_group: ExecutionGroup, backend_config: GroupConfig) -> None:
        """Form the group.

        Raises:
            GroupError: it doesn't form; the message names hosts.
        """
        calls = _Calls(worker_group)
        if len({worker.metadata.node_id for worker in calls.workers}) > 1:
            _check_connections(calls)
        # Of Ray's own: a free port of rank 0's node.
        address, port = calls.one(0, FORM_S, _store_address)
        rendezvous = {"MASTER_ADDR": address, "MASTER_PORT": str(port)}
        calls.each(FORM_S, _prepare, [(rendezvous,) for _ in calls.workers])
        ranks, backend = len(calls.workers), backend_config.backend
        limit_s = FORM_S + FORM_S_PER_RANK * ranks
        calls.each(
            limit_s,
            _setup_torch_process_group,
            [(backend, rank, ranks, "env://", backend_config.timeout_s) for rank in range(ranks)],
        )


@dataclass
class GroupConfig(TorchConfig):  # type: ignore[misc]
    """Ray Train's configuration of torch, with our backend."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        """Ray Train makes the backend from it."""
        return GroupBackend


class _Calls:
    """Calls to all workers of a group, in which a failure names ranks and hosts."""

    def __init__(self, group: ExecutionGroup) -> None:
        self._group = group
        self.workers: Sequence[Worker] = group.get_workers()

    def describe(self, rank: int) -> str:
        """Describe a rank, as in `rank 3 on host-b (10.0.0.7)`."""
        place = self.workers[rank].metadata
        return f"rank {rank} on {place.hostname} ({place.node_ip})"

    def one(self, rank: int, limit_s: float, work: Callable[..., T], *arguments: object) -> T:
        """Return the result of one rank's call; raises as `each`."""
        return self._results({rank: self._start(rank, work, arguments)}, limit_s)[rank]

    def each(
        self, limit_s: float, work: Callable[..., T], arguments: Sequence[tuple[object, ...]]
    ) -> list[T]:
        """Return the results of a call on each rank, with its own arguments.

        Raises:
            GroupError: a rank failed, or some didn't answer within the limit.
        """
        calls = {rank: self._start(rank, work, own) for rank, own in enumerate(arguments)}
        return list(self._results(calls, limit_s).values())

    def _start(
        self, rank: int, work: Callable[..., object], arguments: Sequence[object]
    ) -> ray.ObjectRef:
        return self._group.execute_single_async(rank, work, *arguments)

    def _results(self, calls: dict[int, ray.ObjectRef], limit_s: float) -> dict[int, T]:
        import ray

        ranks = {call: rank for rank, call in calls.items()}
        results: dict[int, T] = {}
        failed: dict[int, str] = {}
        started = time.monotonic()
        deadline = started + limit_s
        pending = list(ranks)
        while pending and (left := deadline - time.monotonic()) > 0:
            ready, pending = ray.wait(pending, num_returns=len(pending), timeout=min(1.0, left))
            for call in ready:
                try:
                    results[ranks[call]] = ray.get(call)
                except ray.exceptions.RayError as error:
                    failed[ranks[call]] = cause_of(error).removeprefix("GroupError: ")
                    deadline = min(deadline, time.monotonic() + ECHO_S)
        if not failed and not pending:
            return {rank: results[rank] for rank in calls}
        silent = {
            ranks[call]: f"didn't answer for {time.monotonic() - started:.0f} s" for call in pending
        }
        raise GroupError(f"the process group didn't form: {self._listed(failed or silent)}")

    def _listed(self, reasons: dict[int, str]) -> str:
        told = [f"{self.describe(rank)}: {reason}" for rank, reason in sorted(reasons.items())]
        more = [f"and {len(told) - NAMED} more ranks"] if len(told) > NAMED else []
        return "; ".join(told[:NAMED] + more)


def _check_connections(calls: _Calls) -> None:
    """Set each rank's interface, and let each rank connect to rank 0 and to the next one.

    Gloo and NCCL would wait for minutes, and not tell for whom.
    """
    ends = calls.each(FORM_S, _listen, [()] * len(calls.workers))
    count = len(ends)
    targets: list[dict[str, tuple[str, int]]] = [
        {
            calls.describe(to): (ends[to][0].address, ends[to][1])
            for to in {0, (rank + 1) % count} - {rank}
        }
        for rank in range(count)
    ]
    calls.each(3 * CONNECT_S, _connect, [(own,) for own in targets])


def _listen() -> tuple[GroupEndpoint, int]:
    """Set this process's interface, and listen there; return the port too."""
    import ray

    end = set_interface(ray.util.get_node_ip_address())
    family = socket.AF_INET6 if ":" in end.address else socket.AF_INET
    # The system accepts connections as long as the socket is open.
    listening = socket.create_server((end.address, 0), family=family, backlog=1024)
    _listening.append(listening)
    return end, listening.getsockname()[1]


def _connect(targets: dict[str, tuple[str, int]]) -> None:
    """Connect to each target once.

    Raises:
        GroupError: one can't be reached.
    """
    for name, target in targets.items():
        try:
            socket.create_connection(target, timeout=CONNECT_S).close()
        except OSError as error:
            raise GroupError(f"can't reach {name} at {target[0]}: {error}") from error


def _store_address() -> tuple[str, int]:
    from ray.train._internal.utils import get_address_and_port

    found: tuple[str, int] = get_address_and_port()
    return found


def _prepare(rendezvous: dict[str, str]) -> None:
    """Set what torch reads from the environment."""
    while _listening:
        _listening.pop().close()
    os.environ.update(rendezvous)
    _set_torch_distributed_env_vars()
