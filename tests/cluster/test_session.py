"""A local Ray that fails to start is started again; one that never starts is reported."""

from __future__ import annotations

import builtins
import inspect
import os
import signal
import sys
from functools import partial
from typing import Any

import pytest
import ray

from raymill.cluster import session
from raymill.cluster.session import NO_ACTORS, connect
from raymill.driver.interrupt import end_preempted, on_termination, terminated
from raymill.errors import ClusterError
from raymill.schema.sections import ClusterConfig
from sections import plain


@pytest.mark.parametrize("failures", [0, 2, 3])
def test_a_busy_machine_gets_another_try(monkeypatch: pytest.MonkeyPatch, failures: int) -> None:
    asked: list[dict[str, Any]] = []

    def init(**settings: Any) -> None:
        asked.append(settings)
        if len(asked) <= failures:
            raise Exception("The current node timed out during startup.")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    local = plain(ClusterConfig, "local", "local")
    if failures < session.STARTS:
        session._start_local(local, 1, NO_ACTORS)
        assert len(asked) == failures + 1
    else:
        with pytest.raises(ClusterError, match="tried 3 times: The current node timed out"):
            session._start_local(local, 1, NO_ACTORS)


def test_sigterm_while_ray_starts_is_a_preemption(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ray takes the signal over before it starts its node, and would end with 15."""

    def init(**_: Any) -> None:
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(number))
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    before = signal.getsignal(signal.SIGTERM)
    try:
        with (
            pytest.raises(SystemExit) as ended,
            on_termination(partial(end_preempted, "the same command")),
            connect(plain(ClusterConfig, "local", "local")),
        ):
            pass
        assert terminated()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ended.value.code == 85
    assert capsys.readouterr().out == "the same command\n"


def test_ray_leaves_print_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray would replace it when it prints a worker's line, and with it a document of the embedded corpus."""
    from ray.experimental import tqdm_ray

    monkeypatch.setattr(builtins, "print", builtins.print)
    monkeypatch.setattr(tqdm_ray, "_manager", None)
    monkeypatch.delenv("RAY_TQDM_PATCH_PRINT", raising=False)
    session._silence_ray()
    tqdm_ray.instance()
    assert inspect.isbuiltin(builtins.print)
