"""Server that imports modules once, and forks itself for each Python process that Ray starts.

    python fork_server.py SOCKET DRIVER MODULE …

Importing torch, transformers and DeepSpeed takes seconds, and Ray starts about a dozen Python
processes for a run. The server imports modules, one after another, and then only forks. It has one
thread, hasn't imported Ray, which reads its configuration from the environment at import, and
hasn't touched CUDA: so a fork of it is as good as a new interpreter. Where that isn't so, it stops
forking, and processes start without it.

`fork_launcher.py` requests forks. A forked process is killed with the launcher that stands for it,
with the Ray node that it works for and with this server, even if it is busy or stopped; the server
is killed with the driver.
"""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import selectors
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn

from raymill.cluster.forked_process import (
    Request,
    become,
    hide_unused,
    import_name,
    receive,
    show_unused,
)
from raymill.parent_death import die_with

# The answer to a launcher; one that gets none runs Python itself.
FORKED = b"\1"


class Forked(BaseException):
    """Raised in a fork, so that nothing of the server stays on its stack."""

    def __init__(self, request: Request) -> None:
        super().__init__()
        self.request = request


@dataclass(frozen=True)
class Child:
    """Forked process: its number, its Ray node's, and the connection to its launcher."""

    process: int
    node: int
    launcher: socket.socket


class ForkServer:
    """Server that forks for the launchers that connect to a listening socket."""

    def __init__(self, listening: socket.socket) -> None:
        self._selector = selectors.DefaultSelector()
        self._children: dict[int, Child] = {}
        self._nodes: set[int] = set()
        self._listening = listening
        self._watch(listening, self._accept)

    @property
    def ended(self) -> bool:
        """True once the server was closed and all its forks have ended."""
        return self._listening.fileno() < 0 and not self._children

    def serve(self, timeout_s: float | None) -> bool:
        """Wait up to `timeout_s` for an event (None: forever); return whether there was one.

        Raises:
            Forked: in each fork.
        """
        events = self._selector.select(timeout_s)
        for key, _ in events:
            # The first event may have handled the second one too, and closed its descriptor.
            if self._selector.get_map().get(key.fd) is key:
                key.data()
        return bool(events)

    def close(self) -> None:
        """Stop forking; launchers whose requests are pending get no answer."""
        self._selector.unregister(self._listening)
        self._listening.close()

    def _watch(self, what: socket.socket | int, call: Callable[[], None]) -> None:
        self._selector.register(what, selectors.EVENT_READ, call)

    def _accept(self) -> None:
        # The request is read once it arrives, so that a stopped launcher keeps nobody waiting.
        launcher, _ = self._listening.accept()
        self._watch(launcher, lambda: self._fork_for(launcher))

    def _fork_for(self, launcher: socket.socket) -> None:
        self._selector.unregister(launcher)
        try:
            # The server may have been closed while the request was pending.
            if self._listening.fileno() < 0:
                raise EOFError
            request = receive(launcher)
        # The launcher was killed meanwhile, or the server forks no more.
        except (OSError, EOFError, ValueError):
            launcher.close()
            return
        process = _fork()
        if process == 0:
            launcher.close()
            self._close_in_child()
            raise Forked(request)
        # The fork has its own copies of these descriptors.
        for stream in request.streams:
            os.close(stream)
        if process is None:
            launcher.close()
            return
        # If the launcher was killed meanwhile, its closed socket shows that below.
        with contextlib.suppress(OSError):
            launcher.sendall(FORKED)
        self._children[process] = Child(process, request.node, launcher)
        ended = os.pidfd_open(process)
        # A descriptor of a process becomes readable when the process ends.
        self._watch(ended, lambda: self._child_ended(process, ended))
        self._watch(launcher, lambda: self._launcher_ended(process))
        if request.node and request.node not in self._nodes:
            self._watch_node(request.node)

    def _watch_node(self, node: int) -> None:
        try:
            ended = os.pidfd_open(node)
        # The node has ended before it could be watched.
        except ProcessLookupError:
            self._kill_children_of(node)
            return
        self._nodes.add(node)
        self._watch(ended, lambda: self._node_ended(node, ended))

    def _close_in_child(self) -> None:
        for key in list(self._selector.get_map().values()):
            if isinstance(key.fileobj, int):
                os.close(key.fileobj)
            else:
                key.fileobj.close()  # type: ignore[attr-defined]
        for child in self._children.values():
            child.launcher.close()
        # Nothing is unregistered, because the server still watches these descriptors.
        self._selector.close()

    def _child_ended(self, process: int, descriptor: int) -> None:
        """Pass the child's exit status to its launcher, which ends in the same way."""
        self._unwatch(descriptor)
        _, status = os.waitpid(process, 0)
        launcher = self._children.pop(process).launcher
        if launcher in self._selector.get_map():
            self._selector.unregister(launcher)
            with contextlib.suppress(OSError):
                launcher.sendall(status.to_bytes(4, "little"))
        launcher.close()

    def _launcher_ended(self, process: int) -> None:
        """Kill the process that the launcher stood for: killing the one means the other."""
        self._selector.unregister(self._children[process].launcher)
        os.kill(process, signal.SIGKILL)

    def _node_ended(self, node: int, descriptor: int) -> None:
        self._unwatch(descriptor)
        self._nodes.discard(node)
        self._kill_children_of(node)

    def _kill_children_of(self, node: int) -> None:
        for child in self._children.values():
            if child.node == node:
                os.kill(child.process, signal.SIGKILL)

    def _unwatch(self, descriptor: int) -> None:
        self._selector.unregister(descriptor)
        os.close(descriptor)


def _fork() -> int | None:
    """Fork as `os.fork` does; return None where the system has no capacity for another process."""
    try:
        return os.fork()
    except OSError:
        return None


def import_modules(names: Sequence[str], server: ForkServer) -> None:
    """Import modules in order, and serve between them; skip those that are missing or fail."""
    hide_unused()
    for name in names:
        try:
            import_name(name)
        except ImportError:
            pass
        # The error occurs again in the process that needs the module.
        except Exception:
            traceback.print_exc()
        if not is_fit_to_fork():
            print(
                f"importing {name} started a thread, Ray or CUDA: forking no more", file=sys.stderr
            )
            server.close()
            break
        while server.serve(0):
            pass
    show_unused()


def is_fit_to_fork() -> bool:
    """Return whether a fork of this process is as good as a new one."""
    torch = sys.modules.get("torch")
    cuda = torch is not None and torch.cuda.is_initialized()
    return len(os.listdir("/proc/self/task")) == 1 and "ray" not in sys.modules and not cuda


def main(listening: str, driver: str, *modules: str) -> NoReturn:
    """Serve at a descriptor until the driver ends; in forks, run the requested script."""
    # A server without a driver would stay forever.
    die_with(int(driver))
    # Only the driver handles Ctrl-C, as for all processes of Ray; forks inherit this.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    # Each process takes two descriptors, so the limit is raised as far as possible.
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    server, process = ForkServer(socket.socket(fileno=int(listening))), os.getpid()
    try:
        import_modules(modules, server)
        # The imported modules aren't garbage; collecting would copy their pages in each fork.
        gc.freeze()
        while not server.ended:
            server.serve(None)
        sys.exit("no more forks")
    except Forked as forked:
        request = forked.request
    del server
    become(request, process)


if __name__ == "__main__":
    main(*sys.argv[1:])
