"""A process that imports once what workers need, and forks itself for each Python process that Ray starts.

    python fork_server.py SOCKET DRIVER MODULE …

Importing torch, transformers and DeepSpeed takes seconds, and Ray starts about a dozen Python processes for a
run. This process imports modules, one after another, and then does nothing but fork. It has one thread, has
not imported Ray, which reads its configuration from the environment at its import, and has not touched CUDA:
a fork of it is as good as a new interpreter. Where that is not so, it forks no more, and processes start
without it.

`fork_launcher.py` asks for forks. A forked process is killed with the launcher that stands for it, with the
Ray node that it works for and with this server, however busy or stopped it is; the server is killed with the
driver.
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
from typing import Any, NoReturn

from raymill.cluster.forked_process import (
    Request,
    become,
    hide_unused,
    import_name,
    receive,
    show_unused,
)
from raymill.parent_death import die_with

FORKED = b"\1"  # the answer to a launcher; one that gets none runs Python itself


class Forked(BaseException):
    """Raised in a fork, so that nothing of the server stays on its stack."""

    def __init__(self, request: Request) -> None:
        super().__init__()
        self.request = request


@dataclass(frozen=True)
class Child:
    process: int
    node: int
    launcher: socket.socket


class ForkServer:
    """Forks for those who connect to a listening socket."""

    def __init__(self, listening: socket.socket) -> None:
        self._selector = selectors.DefaultSelector()
        self._children: dict[int, Child] = {}
        self._nodes: set[int] = set()
        self._listening = listening
        self._watch(listening, self._accept)

    @property
    def ended(self) -> bool:
        """True once it was closed and all that it had forked has ended."""
        return self._listening.fileno() < 0 and not self._children

    def serve(self, timeout_s: float | None) -> bool:
        """Wait for something to happen, for so long at most or, with None, for ever; return whether it did.

        Raises:
            Forked: in each fork.
        """
        events = self._selector.select(timeout_s)
        for key, _ in events:
            # What happened first may have settled what happened second, and given its descriptor away.
            if self._selector.get_map().get(key.fd) is key:
                key.data()
        return bool(events)

    def close(self) -> None:
        """Fork no more; who has asked gets no answer."""
        self._selector.unregister(self._listening)
        self._listening.close()

    def _watch(self, what: socket.socket | int, call: Callable[[], None]) -> None:
        self._selector.register(what, selectors.EVENT_READ, call)

    def _accept(self) -> None:
        # The request is read when it is there: a launcher that was stopped keeps nobody waiting.
        launcher, _ = self._listening.accept()
        self._watch(launcher, lambda: self._fork_for(launcher))

    def _fork_for(self, launcher: socket.socket) -> None:
        self._selector.unregister(launcher)
        try:
            if self._listening.fileno() < 0:
                raise EOFError
            request = receive(launcher)
        except (
            OSError,
            EOFError,
            ValueError,
        ):  # it was killed meanwhile, or there are no more forks
            launcher.close()
            return
        process = _fork()
        if process == 0:
            launcher.close()
            self._close_in_child()
            raise Forked(request)
        for stream in request.streams:
            os.close(stream)
        if process is None:
            launcher.close()
            return
        with contextlib.suppress(OSError):  # it was killed meanwhile, which is seen below
            launcher.sendall(FORKED)
        self._children[process] = Child(process, request.node, launcher)
        ended = os.pidfd_open(process)
        self._watch(ended, lambda: self._child_ended(process, ended))
        self._watch(launcher, lambda: self._launcher_ended(process))
        if request.node and request.node not in self._nodes:
            self._watch_node(request.node)

    def _watch_node(self, node: int) -> None:
        try:
            ended = os.pidfd_open(node)
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
        # Nothing is unregistered: what is watched is the server's still.
        self._selector.close()

    def _child_ended(self, process: int, descriptor: int) -> None:
        """Let its launcher end in the same way."""
        self._unwatch(descriptor)
        _, status = os.waitpid(process, 0)
        launcher = self._children.pop(process).launcher
        if launcher in self._selector.get_map():
            self._selector.unregister(launcher)
            with contextlib.suppress(OSError):
                launcher.sendall(status.to_bytes(4, "little"))
        launcher.close()

    def _launcher_ended(self, process: int) -> None:
        """Kill the process that it stood for: somebody who killed the one meant the other."""
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
    """As `os.fork`; None where the system has no room for another process."""
    try:
        return os.fork()
    except OSError:
        return None


def import_modules(names: Sequence[str], server: ForkServer) -> None:
    """Import modules in their order, serving between them; leave out what is not installed or fails."""
    hide_unused()
    for name in names:
        try:
            import_name(name)
        except ImportError:
            pass
        except Exception:  # raised again in the process that needs it
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
    """Tell whether a fork of this process is as good as a new one."""
    torch: Any = sys.modules.get("torch")
    cuda = torch is not None and torch.cuda.is_initialized()
    return len(os.listdir("/proc/self/task")) == 1 and "ray" not in sys.modules and not cuda


def main(listening: str, driver: str, *modules: str) -> NoReturn:
    """Serve at a descriptor until the driver ends; in forks, do what was asked for."""
    die_with(int(driver))
    # As for all that Ray starts, Ctrl-C is the driver's affair; forks inherit this.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    # A process takes two descriptors.
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    server, process = ForkServer(socket.socket(fileno=int(listening))), os.getpid()
    try:
        import_modules(modules, server)
        # Nothing of it is garbage, and looking at it would copy its pages in each fork.
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
