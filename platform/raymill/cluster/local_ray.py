"""Start Ray on this machine alone, without unused processes, and with workers that are forked."""

from __future__ import annotations

import atexit
import logging
import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ray._private.node import Node

_PACKAGE = Path(__file__).resolve().parents[1]
# Modules that Ray's processes and ours import, in the order in which they need them; never Ray itself.
_RAY_MODULES = (
    "numpy", "pandas", "pyarrow.parquet", "pyarrow.dataset", "google.protobuf.descriptor_pb2",
    "aiohttp.web", "grpc.aio", "psutil", "requests", "jsonschema", "pydantic", "yaml", "msgpack",
    "filelock", "fsspec", "click", "colorful", "cloudpickle", "dill", "tqdm", "logging.config", "configparser",
)  # fmt: skip
_OWN_MODULES = (
    "torch", "torch._dynamo", "torch.distributed.tensor", "torch.export", "scipy.optimize", "sympy",
    "transformers", "transformers.modeling_utils", "transformers:AutoModelForCausalLM",
    "transformers.models.llama.modeling_llama", "raymill.engine.setup", "raymill.driver.worker",
    "raymill.engine.loop", "raymill.data.store.stream",
)  # fmt: skip
# DeepSpeed asks for the devices when it is imported; its Muon brings torch.compile.
_CPU_MODULES = (
    "deepspeed",
    "torch._inductor.compile_fx",
    "deepspeed.runtime.zero.muon.muon_optimizer",
)
WORKERS = (*_RAY_MODULES, *_OWN_MODULES)
WORKERS_ON_CPU = (*WORKERS, *_CPU_MODULES)
# Environment of the server: numpy and pyarrow would otherwise start threads at import, and a process
# with threads can't be forked safely.
FORKING = {
    "OPENBLAS_NUM_THREADS": "1",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
    "DS_ACCELERATOR": "cpu",
}
# On one machine nobody uses the autoscaler, the copying of workers' output to the driver, which
# doesn't show it, and the dashboard's server, which serves nothing without a dashboard.
_UNUSED = ("start_monitor", "start_log_monitor", "start_api_server")
REGISTRATION_S = 10.0


class _Launcher:
    """Launcher command and fork server, shared by all Rays of this process."""

    path: Path | None = None
    server: subprocess.Popen[bytes] | None = None


def fork_server(*modules: str) -> Path | None:
    """Start a server that imports `modules` and ends with this process, unless one is running
    already.

    Return the command that stands in for Python, or None where the system can't provide it.
    """
    # The system kills the server with the thread that started it, which must be the main thread.
    in_main_thread = threading.current_thread() is threading.main_thread()
    if _Launcher.path is not None or not in_main_thread or not _can_watch_processes():
        return _Launcher.path
    folder = Path(tempfile.mkdtemp(prefix="raymill-", dir=_temporary_folder()))
    # The folder is removed with this process, and the server ends with it.
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    launcher, address = folder / "python", str(folder / "socket")
    command = [sys.executable, "-I", "-S", str(_PACKAGE / "cluster" / "fork_launcher.py")]
    launcher.write_text(f'#!/bin/sh\nexec {shlex.join([*command, address, sys.executable])} "$@"\n')
    launcher.chmod(0o700)
    # The file system may forbid executables.
    if not os.access(launcher, os.X_OK):
        return None
    _Launcher.server = _start_server(folder, address, modules)
    _Launcher.path = launcher
    return launcher


def _can_watch_processes() -> bool:
    """Return whether the kernel has descriptors of processes: Linux since 5.3, unless a sandbox
    forbids them."""
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError):
        return False
    return True


def _temporary_folder() -> str:
    """Return a folder with a short name: the path of a socket is limited to 107 characters."""
    folder = tempfile.gettempdir()
    return folder if len(os.fsencode(folder)) < 80 else "/tmp"


def _start_server(folder: Path, address: str, modules: Sequence[str]) -> subprocess.Popen[bytes]:
    environment = os.environ | FORKING | {"PYTHONPATH": python_path()}
    script = str(_PACKAGE / "cluster" / "fork_server.py")
    # The socket listens before the server starts, so that early connections wait for it.
    with socket.socket(socket.AF_UNIX) as listening, (folder / "log").open("wb") as log:
        listening.bind(address)
        listening.listen(128)
        descriptor = listening.fileno()
        return subprocess.Popen(
            [sys.executable, "-P", "-u", script, str(descriptor), str(os.getpid()), *modules],
            env=environment, pass_fds=[descriptor], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip


def warm_up(gpu: bool) -> None:
    """Start importing the modules that a training job's workers need, in a separate process."""
    fork_server(*(WORKERS if gpu else WORKERS_ON_CPU))


def start_local_ray(slots: int) -> None:
    """Start Ray with `slots` CPUs and connect to it.

    Raises whatever Ray does.
    """
    import ray

    with _python(fork_server(*_RAY_MODULES)), _without_unused():
        ray.init(
            address="local",
            num_cpus=slots,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            # A local Ray must not be reachable from other machines.
            _node_ip_address="127.0.0.1",
        )


def python_path() -> str:
    """Return the PYTHONPATH of workers: the package's folder, then this process's own."""
    ours = str(_PACKAGE.parent)
    inherited = os.environ.get("PYTHONPATH", "")
    return os.pathsep.join(part for part in (ours, inherited) if part)


@contextmanager
def _python(launcher: Path | None) -> Iterator[None]:
    """Let Ray use the launcher as Python, and find the package, for the length of the block."""
    real, before = sys.executable, os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = python_path()
    sys.executable = str(launcher or real)
    try:
        yield
    finally:
        sys.executable = real
        del os.environ["PYTHONPATH"]
        if before is not None:
            os.environ["PYTHONPATH"] = before


def _wait_for_registration(node: Node) -> None:
    """Wait until the node is registered, or should be: Ray itself checks only once per second."""
    deadline = time.monotonic() + REGISTRATION_S
    while time.monotonic() < deadline and not node.get_gcs_client().get_all_node_info():
        time.sleep(0.05)


@contextmanager
def _without_unused() -> Iterator[None]:
    """Let Ray omit unused processes and choose any free port for its agent, for the length of the
    block.

    The usual port may belong to another Ray, and the agent would wait for it for four seconds.
    """
    from ray._private.node import Node

    start_raylet = Node.start_raylet

    def with_free_port(node: Node, *arguments: object, **options: object) -> None:
        node._ray_params.dashboard_agent_listen_port = 0
        start_raylet(node, *arguments, **options)
        _wait_for_registration(node)

    replacements: dict[str, Callable[..., None]] = {name: lambda *_, **__: None for name in _UNUSED}
    replacements["start_raylet"] = with_free_port
    originals = {name: getattr(Node, name) for name in replacements if hasattr(Node, name)}
    for name in originals:
        # There is no option for it; a method that another version of Ray lacks is skipped.
        setattr(Node, name, replacements[name])
    try:
        yield
    finally:
        for name, method in originals.items():
            setattr(Node, name, method)
