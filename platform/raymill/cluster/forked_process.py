"""Turn a fork of `fork_server.py` into the Python process that a launcher requested."""

from __future__ import annotations

import builtins
import contextlib
import importlib
import io
import json
import marshal
import os
import resource
import socket
import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import NoReturn

from raymill.parent_death import die_with

# DeepSpeed imports it for its tuner if it is installed, which takes seconds.
UNUSED = ("mlflow",)
_SETUP = "setup_worker.py"
_CONTEXT, _LANGUAGE = "--serialized-runtime-env-context=", "--language="
_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Request:
    """Request of a launcher.

    `launcher` and `node` are process numbers; `node` is that of the Ray node, 0 for none.
    `arguments` start with the script; `streams` are the descriptors of standard input, output and
    error.
    """

    launcher: int
    node: int
    arguments: list[str]
    environment: dict[str, str]
    folder: str
    streams: list[int]


def receive(launcher: socket.socket) -> Request:
    """Read a launcher's request.

    Raises:
        EOFError: the launcher ended before it had sent everything.
        OSError: it was stopped meanwhile.
        ValueError: it sent something else.
    """
    launcher.settimeout(_TIMEOUT_S)
    size, streams, _, _ = socket.recv_fds(launcher, 4, 3)
    try:
        left = int.from_bytes(size, "little")
        received = bytearray()
        while len(received) < left:
            part = launcher.recv(left - len(received))
            if not part:
                raise EOFError
            received += part
        # The launcher stays connected for as long as the forked process runs.
        launcher.settimeout(None)
        arguments, environment, folder = marshal.loads(received)
        node = int(environment.get("RAY_RAYLET_PID", "0"))
        credentials = launcher.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    except BaseException:
        for stream in streams:
            os.close(stream)
        raise
    process, _, _ = struct.unpack("3i", credentials)
    return Request(process, node, arguments, environment, folder, list(streams))


def become(request: Request, server: int) -> NoReturn:
    """Run the script as a newly started interpreter would, and exit."""
    die_with(server)
    for target, stream in enumerate(request.streams):
        os.dup2(stream, target)
        os.close(stream)
    _inherit(request.launcher)
    # The server may still be importing, with unused modules hidden.
    show_unused()
    # The server's own entries must not shadow those of the requested environment.
    servers = _path_entries()
    # The script must see the launcher's environment and nothing of the server's.
    os.environ.clear()
    os.environ.update(request.environment)
    os.chdir(request.folder)
    sys.argv = without_setup(request.arguments)
    script = sys.argv[0]
    rest = [entry for entry in sys.path if entry not in servers]
    sys.path[:] = [os.path.dirname(os.path.abspath(script)), *_path_entries(), *rest]
    _renew_libraries()
    main = ModuleType("__main__")
    vars(main).update(__file__=script, __builtins__=builtins)
    # Pickle and Ray look up classes of the script under this name.
    sys.modules["__main__"] = main
    with io.open_code(os.path.abspath(script)) as file:
        code = compile(file.read(), script, "exec")
    exec(code, vars(main))
    sys.exit(0)


def _path_entries() -> list[str]:
    """Return the folders of PYTHONPATH."""
    entries = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return [os.path.abspath(entry) for entry in entries if entry]


def _inherit(launcher: int) -> None:
    """Take over from the launcher the attributes that a process inherits from its parent.

    Ray raises limits after the server has started, and sets its workers' priority.
    """
    limits = [value for name, value in vars(resource).items() if name.startswith("RLIMIT_")]
    for limit in limits:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(limit, resource.prlimit(launcher, limit))
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, os.getpriority(os.PRIO_PROCESS, launcher))
    with contextlib.suppress(OSError):
        os.sched_setaffinity(0, os.sched_getaffinity(launcher))


def without_setup(arguments: Sequence[str]) -> list[str]:
    """Return the arguments without Ray's script that sets up a worker's runtime environment.

    Where that script would only set environment variables, they are set here; elsewhere the
    arguments are returned unchanged.
    """
    script, *rest = arguments
    context = [a.removeprefix(_CONTEXT) for a in rest if a.startswith(_CONTEXT)]
    if os.path.basename(script) != _SETUP or rest[0].startswith("-") or len(context) != 1:
        return list(arguments)
    environment = json.loads(context[0] or "{}")
    if environment.get("command_prefix") or environment.get("override_worker_entrypoint"):
        return list(arguments)
    if (environment.get("py_executable") or sys.executable) != sys.executable:
        return list(arguments)
    for name, value in (environment.get("env_vars") or {}).items():
        os.environ[name] = os.path.expandvars(value)
    return [a for a in rest if not a.startswith((_CONTEXT, _LANGUAGE))]


def _renew_libraries() -> None:
    """Reset the library state that each process should have of its own.

    Forks must not draw the same random numbers (Python's own generator handles that itself), and
    OpenMP reads the number of threads when it is loaded.
    """
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed()
    torch = sys.modules.get("torch")
    threads = os.environ.get("OMP_NUM_THREADS", "")
    if torch is not None and threads.isdecimal() and int(threads):
        torch.set_num_threads(int(threads))


def import_name(name: str) -> None:
    """Import a module, and the attribute after a colon, as in `transformers:AutoModel`.

    Some packages import such attributes only on access. Raises whatever the import does.
    """
    module, _, attribute = name.partition(":")
    imported = importlib.import_module(module)
    if attribute:
        getattr(imported, attribute)


def hide_unused() -> None:
    """Let imports of unused modules fail."""
    for name in UNUSED:
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]


def show_unused() -> None:
    """Let them succeed again."""
    for name in UNUSED:
        if name in sys.modules and sys.modules[name] is None:
            del sys.modules[name]
