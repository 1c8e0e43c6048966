"""Fault injection at chosen points of a run.

Python imports this module at its start if the folder is on PYTHONPATH, so every process of a job has it, and
the package itself doesn't know of it.

RAYMILL_FAULTS names a JSON file with a list of faults, each of which happens once:
  {"what": "kill|stop|raise|memory|nan|sleep", "rank": 1, "step": 7, "phase": "forward"}
  {"what": "kill|full|denied", "rank": 0, "write": 3}   # at a rank's third call that makes a checkpoint durable
  {"what": "hold", "until": "/a/run/stop-*", "rank": 0, "step": 7, "phase": "forward"}  # until it exists
"""

from __future__ import annotations

import dataclasses
import errno
import glob
import importlib.abc
import importlib.util
import json
import os
import signal
import sys
import time
from typing import Any

_PATH = os.environ.get("RAYMILL_FAULTS", "")
_nan = False
_writes = 0
_ERRORS = {"full": errno.ENOSPC, "denied": errno.EACCES}


def _due(**place: Any) -> dict[str, Any] | None:
    """Return the fault to inject here, if one is due for the first time."""
    with open(_PATH, encoding="utf-8") as stream:
        faults = json.load(stream)
    for number, fault in enumerate(faults):
        wanted = {key: value for key, value in fault.items() if key not in ("what", "until")}
        if wanted != {key: place.get(key) for key in wanted}:
            continue
        try:
            os.close(os.open(f"{_PATH}.{number}.done", os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            continue
        due: dict[str, Any] = fault
        return due
    return None


def _happen(fault: dict[str, Any] | None, place: str) -> None:
    global _nan
    what = fault["what"] if fault else None
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif what == "sleep":
        time.sleep(3600)
    elif fault and what == "hold":
        while not glob.glob(fault["until"]):
            time.sleep(0.05)
    elif what == "raise":
        raise ValueError(f"injected at {place}")
    elif what == "memory":
        import torch

        raise torch.OutOfMemoryError(
            f"CUDA out of memory. Tried to allocate 2.00 GiB, injected at {place}"
        )
    elif what in _ERRORS:
        number = _ERRORS[what]
        raise OSError(number, f"{os.strerror(number)}, injected at {place}")
    elif what == "nan":
        _nan = True


def _patch_pulse(module: Any) -> None:
    beat = module.Heartbeat.beat

    def with_faults(self: Any, phase: str) -> None:
        beat(self, phase)
        rank = int(os.environ.get("RANK", "0"))
        _happen(_due(rank=rank, step=self.step, phase=phase), f"step {self.step}, {phase}")

    module.Heartbeat.beat = with_faults


class _Spoiled:
    """An objective whose next losses are NaN once a fault requests it."""

    def __init__(self, objective: Any) -> None:
        self._objective = objective

    def __getattr__(self, name: str) -> Any:
        return getattr(self._objective, name)

    def losses(self, *arguments: Any) -> Any:
        global _nan
        spoiled, _nan = _nan, False
        found = self._objective.losses(*arguments)
        return found * float("nan") if spoiled else found


def _patch_learner(module: Any) -> None:
    accumulate = module.Learner._accumulate

    def with_faults(self: Any, *arguments: Any) -> Any:
        spoiled = dataclasses.replace(self, objective=_Spoiled(self.objective))
        return accumulate(spoiled, *arguments)

    module.Learner._accumulate = with_faults


def _patch_writing(module: Any) -> None:
    """Count each of a commit's calls that put something on the disk, in order."""
    for name in ("write_fragments", "write_atomic", "fsync_path"):
        if hasattr(module, name):
            setattr(module, name, _counted(getattr(module, name)))


def _patch_uploading(module: Any) -> None:
    """Count a commit's uploads to an object store."""
    for name in ("upload", "publish"):
        setattr(module.RemoteRun, name, _counted(getattr(module.RemoteRun, name)))


def _counted(call: Any) -> Any:
    def with_faults(*arguments: Any, **more: Any) -> Any:
        global _writes
        result = call(*arguments, **more)
        _writes += 1
        rank = int(os.environ.get("RANK", "0"))
        _happen(_due(rank=rank, write=_writes), f"write {_writes}")
        return result

    return with_faults


_PATCHES = {
    "raymill.engine.heartbeat": _patch_pulse,
    "raymill.engine.learner": _patch_learner,
    "raymill.checkpoint.commit": _patch_writing,
    "raymill.checkpoint.remote": _patch_uploading,
}


class _Finder(importlib.abc.MetaPathFinder):
    """Lets the other finders find a module, and patches it once it is loaded."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name not in _PATCHES:
            return None
        sys.meta_path.remove(self)
        try:
            spec = importlib.util.find_spec(name)
        finally:
            sys.meta_path.insert(0, self)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def and_patch(module: Any) -> None:
            execute(module)
            _PATCHES[name](module)

        spec.loader.exec_module = and_patch  # type: ignore[method-assign]
        return spec


if _PATH:
    sys.meta_path.insert(0, _Finder())
