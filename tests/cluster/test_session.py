"""A local Ray that doesn't come up the first time is started again; one that never does is said."""

from __future__ import annotations

from typing import Any

import pytest
import ray

from raymill.cluster import session
from raymill.cluster.session import NOTHING
from raymill.config.schema import ClusterConfig
from raymill.errors import ClusterError


@pytest.mark.parametrize("failures", [0, 2, 3])
def test_a_busy_machine_gets_another_try(monkeypatch: pytest.MonkeyPatch, failures: int) -> None:
    asked: list[dict[str, Any]] = []

    def init(**settings: Any) -> None:
        asked.append(settings)
        if len(asked) <= failures:
            raise Exception("The current node timed out during startup.")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    local = ClusterConfig("local", "local")
    if failures < session.STARTS:
        session._start_local(local, 1, NOTHING)
        assert len(asked) == failures + 1
    else:
        with pytest.raises(ClusterError, match="tried 3 times: The current node timed out"):
            session._start_local(local, 1, NOTHING)
