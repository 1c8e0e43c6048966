"""A process that imports once what workers need, and forks itself for each Python process that Ray starts.

    python fork_server.py SOCKET DRIVER MODULE …

Importing torch, transformers and DeepSpeed takes seconds, and Ray starts about a dozen Python processes for a
run. This process imports modules, one after another, and then does nothing but fork. It has one thread, has
not imported Ray, which reads its configuration from the environment at its import, and has not touched CUDA:
a fork of it is as good as a new interpreter. Where that is not so, it ends, and processes start without it.

`fork_launcher.py` asks for forks. A forked process is killed with the launcher that stands for it, with the
Ray node that it works for and with this server, however busy or stopped it is; the server is killed with the
driver.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import marshal
import os
import runpy
import selectors
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from raymill.lifetime import die_with

# DeepSpeed imports it for its tuner, if it is there, which takes seconds.
UNUSED = ("mlflow",)
_SETUP = "setup_worker.py"
_CONTEXT, _LANGUAGE = "--serialized-runtime-env-context=", "--language="
_PATIENCE_S = 10.0


@dataclass(frozen=True)
class Request:
    """What a launcher was called with: arguments from the script on, environment, working directory, and the
    descriptors of its standard input, output and error."""

    arguments: list[str]
    environment: dict[str, str]
    folder: str
    streams: list[int]

    @property
    def node(self) -> int:
        """The process of the Ray node that asks; 0 if Ray does not say."""
        return int(self.environment.get("RAY_RAYLET_PID", "0"))


@dataclass(frozen=True)
class Child:
    process: int
    node: int
    launcher: socket.socket


class ForkServer:
    """Listens at a path. `serve` deals with what has happened since it was called last."""

    def __init__(self, path: str) -> None:
        self._selector = selectors.DefaultSelector()
        self._children: dict[int, Child] = {}
        self._nodes: set[int] = set()
        self._listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listening.bind(path)
        self._listening.listen(128)
        self._watch(self._listening, self._accept)

    def serve(self, timeout_s: float | None) -> bool:
        """Wait for something to happen, for so long at most or, with None, for ever; returns whether it did."""
        events = self._selector.select(timeout_s)
        for key, _ in events:
            # What happened first may have settled what happened second.
            if key.fd in self._selector.get_map():
                key.data()
        return bool(events)

    def _watch(self, what: socket.socket | int, call: Callable[[], None]) -> None:
        self._selector.register(what, selectors.EVENT_READ, call)

    def _accept(self) -> None:
        launcher, _ = self._listening.accept()
        try:
            request = receive(launcher)
        except (OSError, EOFError, ValueError):  # it was killed meanwhile
            launcher.close()
            return
        server = os.getpid()
        process = os.fork()
        if process == 0:
            self._close_in_child()
            launcher.close()
            become(request, server)
        for stream in request.streams:
            os.close(stream)
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
            os.close(key.fd)
        self._selector.close()

    def _child_ended(self, process: int, descriptor: int) -> None:
        """Its launcher ends in the same way."""
        self._unwatch(descriptor)
        _, status = os.waitpid(process, 0)
        launcher = self._children.pop(process).launcher
        if launcher.fileno() in self._selector.get_map():
            with contextlib.suppress(OSError):
                launcher.sendall(status.to_bytes(4, "little"))
            self._selector.unregister(launcher)
        launcher.close()

    def _launcher_ended(self, process: int) -> None:
        """Somebody killed it, and means the process that it stands for."""
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


def receive(launcher: socket.socket) -> Request:
    """A launcher's request.

    Raises:
        EOFError: it ended before it had sent all of it.
    """
    launcher.settimeout(_PATIENCE_S)
    size, streams, _, _ = socket.recv_fds(launcher, 4, 3)
    left = int.from_bytes(size, "little")
    received = b""
    while len(received) < left:
        part = launcher.recv(left - len(received))
        if not part:
            raise EOFError
        received += part
    launcher.settimeout(None)
    arguments, environment, folder = marshal.loads(received)
    return Request(arguments, environment, folder, list(streams))


def become(request: Request, server: int) -> NoReturn:
    """In a fork: run the script as an interpreter that was started for it would, and exit."""
    die_with(server)
    for target, stream in enumerate(request.streams):
        os.dup2(stream, target)
        os.close(stream)
    os.environ.clear()
    os.environ.update(request.environment)
    os.chdir(request.folder)
    _show_unused()  # where the server is still importing
    arguments = without_setup(request.arguments)
    sys.argv = arguments
    extra = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:0] = [os.path.dirname(arguments[0]), *(p for p in extra if p and p not in sys.path)]
    _draw_anew()
    runpy.run_path(arguments[0], run_name="__main__")
    sys.exit(0)


def without_setup(arguments: Sequence[str]) -> list[str]:
    """A worker's arguments without Ray's script that sets up its runtime environment, where that changes
    nothing but variables: those are set here. Elsewhere the arguments as they are."""
    script, *rest = arguments
    context = [a.removeprefix(_CONTEXT) for a in rest if a.startswith(_CONTEXT)]
    if not script.endswith(_SETUP) or rest[0].startswith("-") or len(context) != 1:
        return list(arguments)
    asked = json.loads(context[0])
    if asked["command_prefix"] or asked["override_worker_entrypoint"]:
        return list(arguments)
    if asked["py_executable"] != sys.executable:
        return list(arguments)
    for name, value in asked["env_vars"].items():
        os.environ[name] = os.path.expandvars(value)
    return [a for a in rest if not a.startswith((_CONTEXT, _LANGUAGE))]


def _draw_anew() -> None:
    """Forks must not draw the same random numbers; Python's own generator sees to it itself."""
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed()


def import_modules(names: Sequence[str], serve: Callable[[], None]) -> None:
    """Import them in their order, serving between them; those that are not installed are left out."""
    for name in UNUSED:
        sys.modules[name] = None  # type: ignore[assignment]
    for name in names:
        module, _, attribute = name.partition(":")
        with contextlib.suppress(ImportError):
            imported = importlib.import_module(module)
            if attribute:
                getattr(imported, attribute)
        if not is_fit_to_fork():
            sys.exit(
                f"importing {name} started a thread, Ray or CUDA: processes start without forks"
            )
        serve()
    _show_unused()


def _show_unused() -> None:
    for name in UNUSED:
        if name in sys.modules and sys.modules[name] is None:
            del sys.modules[name]


def is_fit_to_fork() -> bool:
    """Whether a fork of this process is as good as a new one."""
    torch: Any = sys.modules.get("torch")
    cuda = torch is not None and torch.cuda.is_initialized()
    return len(os.listdir("/proc/self/task")) == 1 and "ray" not in sys.modules and not cuda


def main(path: str, driver: str, *modules: str) -> NoReturn:
    """Serve until the driver ends."""
    die_with(int(driver))
    # As for all that Ray starts, Ctrl-C is the driver's affair; forks inherit this.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    server = ForkServer(path)

    def serve_all() -> None:
        while server.serve(0):
            pass

    import_modules(modules, serve_all)
    # Nothing of it is garbage, and looking at it would copy its pages in each fork.
    gc.freeze()
    while True:
        server.serve(None)


if __name__ == "__main__":
    main(*sys.argv[1:])
