"""Fixtures that rooms share. Ray starts once a session, and only if a test asks for it."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from sections import plain
from servers import s3_server

os.environ["RAY_AUTH_MODE"] = "disabled"  # this Ray listens to this test session alone
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"  # a test that needs Ray asks for the fixture
# Ray's workers find the package, and what tests pickle, where this process finds them.
_ROOT = Path(__file__).resolve().parents[1]
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(_ROOT / "platform"), str(_ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
).rstrip(os.pathsep)


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """A local Ray, as jobs start it, with room for any of the tests' jobs."""
    import ray

    from raymill.cluster import local_ray
    from raymill.cluster.session import warm_up
    from raymill.schema.sections import ClusterConfig

    warm_up(plain(ClusterConfig, "local", "local"))
    local_ray.start_local_ray(slots=8)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def s3() -> Iterator[dict[str, str]]:
    """An S3 server, as this process's environment names it."""
    with s3_server() as environment:
        os.environ.update(environment)
        yield environment
        for name in environment:
            del os.environ[name]


@pytest.fixture
def uri(request: pytest.FixtureRequest) -> str:
    """A place of a test's own on it, or in the store that RAYMILL_TEST_STORE names, as in az://container."""
    store = os.environ.get("RAYMILL_TEST_STORE")
    if store is None:
        request.getfixturevalue("s3")
    return f"{store or 's3://bucket'}/{uuid.uuid4().hex}"
