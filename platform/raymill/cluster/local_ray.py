"""A Ray on this machine alone, without the processes that nobody uses, whose workers are forked."""

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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_PACKAGE = Path(__file__).resolve().parents[1]
# What Ray's own processes and ours import, in the order in which they are wanted; never Ray itself.
_RAYS = (
    "numpy", "pandas", "pyarrow.parquet", "pyarrow.dataset", "google.protobuf.descriptor_pb2",
    "aiohttp.web", "grpc.aio", "psutil", "requests", "jsonschema", "pydantic", "yaml", "msgpack",
    "filelock", "fsspec", "click", "colorful", "cloudpickle", "dill", "tqdm", "logging.config", "configparser",
)  # fmt: skip
_OURS = (
    "torch", "torch._dynamo", "torch.distributed.tensor", "torch.export", "scipy.optimize", "sympy",
    "transformers", "transformers.modeling_utils", "transformers:AutoModelForCausalLM",
    "transformers.models.llama.modeling_llama", "raymill.engine.setup", "raymill.driver.worker",
    "raymill.engine.loop", "raymill.data.store.stream",
)  # fmt: skip
# DeepSpeed asks for the devices when it is imported; its Muon brings torch.compile.
_ON_CPU = ("deepspeed", "torch._inductor.compile_fx", "deepspeed.runtime.zero.muon.muon_optimizer")
WORKERS = (*_RAYS, *_OURS)
WORKERS_ON_CPU = (*WORKERS, *_ON_CPU)
# For a process that imports these and is forked: numpy and pyarrow would start threads at their import.
FORKING = {
    "OPENBLAS_NUM_THREADS": "1",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
    "DS_ACCELERATOR": "cpu",
}
# On one machine: the autoscaler, the copying of workers' output to the driver, which does not show it, and the
# dashboard's server, which serves nothing without a dashboard.
_UNUSED = ("start_monitor", "start_log_monitor", "start_api_server")
REGISTRATION_S = 10.0


class _Launcher:
    """A command that stands for Python and forks; one for all Rays of this process."""

    path: Path | None = None
    server: subprocess.Popen[bytes] | None = None


def fork_server(*modules: str) -> Path | None:
    """Start a server that imports `modules`, and lives as long as this process, unless there is one already.

    Return the command that stands for Python, or None where the system can't.
    """
    # The system kills the server with the thread that started it.
    in_time = threading.current_thread() is threading.main_thread()
    if _Launcher.path is not None or not in_time or not _can_watch_processes():
        return _Launcher.path
    folder = Path(tempfile.mkdtemp(prefix="raymill-", dir=_temporary_folder()))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    launcher, address = folder / "python", str(folder / "socket")
    stand_in = [sys.executable, "-I", "-S", str(_PACKAGE / "cluster" / "fork_launcher.py")]
    launcher.write_text(
        f'#!/bin/sh\nexec {shlex.join([*stand_in, address, sys.executable])} "$@"\n'
    )
    launcher.chmod(0o700)
    if not os.access(launcher, os.X_OK):  # nothing there may be run
        return None
    _Launcher.server = _start_server(folder, address, modules)
    _Launcher.path = launcher
    return launcher


def _can_watch_processes() -> bool:
    """Tell whether the kernel has descriptors of processes: Linux since 5.3, if no sandbox forbids them."""
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError):
        return False
    return True


def _temporary_folder() -> str:
    """A folder whose name leaves room: sockets' paths are limited to 107 characters."""
    folder = tempfile.gettempdir()
    return folder if len(os.fsencode(folder)) < 80 else "/tmp"


def _start_server(folder: Path, address: str, modules: Sequence[str]) -> subprocess.Popen[bytes]:
    environment = os.environ | FORKING | {"PYTHONPATH": python_path()}
    script = str(_PACKAGE / "cluster" / "fork_server.py")
    # Whoever connects before the server is there waits for it.
    with socket.socket(socket.AF_UNIX) as listening, (folder / "log").open("wb") as log:
        listening.bind(address)
        listening.listen(128)
        descriptor = listening.fileno()
        return subprocess.Popen(
            [sys.executable, "-P", "-u", script, str(descriptor), str(os.getpid()), *modules],
            env=environment, pass_fds=[descriptor], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip


def warm_up(gpu: bool) -> None:
    """Begin to import what the workers of a training job need, in a process beside this one."""
    fork_server(*(WORKERS if gpu else WORKERS_ON_CPU))


def start_local_ray(slots: int) -> None:
    """Start Ray and connect to it; `slots`: how many CPUs it says it has.

    Raises whatever Ray does.
    """
    import ray

    with _python(fork_server(*_RAYS)), _without_unused():
        ray.init(
            address="local",
            num_cpus=slots,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _node_ip_address="127.0.0.1",
        )


def python_path() -> str:
    """PYTHONPATH of workers: the package's place, then this process's own."""
    ours = str(_PACKAGE.parent)
    inherited = os.environ.get("PYTHONPATH", "")
    return os.pathsep.join(part for part in (ours, inherited) if part)


@contextmanager
def _python(launcher: Path | None) -> Iterator[None]:
    """Within the block Ray is told that this is Python, and where the package is."""
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


def _wait_for_registration(node: Any) -> None:
    """Until the node is known, or should be: Ray itself looks once a second."""
    deadline = time.monotonic() + REGISTRATION_S
    while time.monotonic() < deadline and not node.get_gcs_client().get_all_node_info():
        time.sleep(0.05)


@contextmanager
def _without_unused() -> Iterator[None]:
    """Within the block Ray leaves out processes that nobody uses, and its agent listens at any free port: the
    usual one may be another Ray's, and the agent would wait for it for four seconds."""
    from ray._private.node import Node

    start_raylet = Node.start_raylet

    def with_free_port(node: Any, *arguments: Any, **options: Any) -> None:
        node._ray_params.dashboard_agent_listen_port = 0
        start_raylet(node, *arguments, **options)
        _wait_for_registration(node)

    replaced: dict[str, Any] = {name: lambda *_, **__: None for name in _UNUSED}
    replaced["start_raylet"] = with_free_port
    kept = {name: getattr(Node, name) for name in replaced if hasattr(Node, name)}
    for name in kept:
        setattr(Node, name, replaced[name])
    try:
        yield
    finally:
        for name, method in kept.items():
            setattr(Node, name, method)
