"""Shared fixtures. Ray starts at most once per session, and only if a test needs it."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sections import plain
from servers import s3_server

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from raymill.data.messages.encode import ChatEncoder

# Only this test session talks to its Ray.
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# A test that needs Ray uses the fixture.
os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"
# Ray's workers must find the package, and the test modules whose objects are pickled.
_ROOT = Path(__file__).resolve().parents[1]
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(_ROOT / "platform"), str(_ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
).rstrip(os.pathsep)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Spread the files that start jobs evenly among the others, and leave none of them to the end.

    Of two processes, mostly one then waits for a job's processes while the other one computes.
    """
    files = list(dict.fromkeys(item.path for item in items))
    jobs = [path for path in files if path.parent.name == "driver"]
    others = [path for path in files if path.parent.name != "driver"]
    place = {
        path: number / len(group) for group in (jobs, others) for number, path in enumerate(group)
    }
    items.sort(key=lambda item: place[item.path])


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """Start a local Ray as jobs do, with enough slots for every test."""
    import ray

    from raymill.cluster import local_ray
    from raymill.cluster.session import warm_up
    from raymill.schema.sections import ClusterConfig

    warm_up(plain(ClusterConfig, "local", "local"))
    local_ray.start_local_ray(slots=8)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def chat_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a tiny chat model, which no test changes."""
    from generate.chat_factory import write_chat_folder

    return write_chat_folder(tmp_path_factory.mktemp("chat"))


@pytest.fixture(scope="session")
def chat_tokenizer(chat_folder: Path) -> Tokenizer:
    """Return the tiny chat model's tokenizer."""
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(chat_folder / "tokenizer.json"))


@pytest.fixture(scope="session")
def chat_encoder(chat_folder: Path) -> ChatEncoder:
    """Return the encoder of the tiny chat model's template."""
    from raymill.data.messages.folder import load_chat_encoder

    found = load_chat_encoder(chat_folder)
    assert found is not None, "the folder has a template"
    return found


@pytest.fixture(scope="session")
def s3() -> Iterator[dict[str, str]]:
    """Start an S3 server and point the environment of this process to it."""
    with s3_server() as environment:
        os.environ.update(environment)
        yield environment
        for name in environment:
            del os.environ[name]


@pytest.fixture
def uri(request: pytest.FixtureRequest) -> str:
    """Return a test's own URI in the S3 server, or in the store named by RAYMILL_TEST_STORE (az://container)."""
    store = os.environ.get("RAYMILL_TEST_STORE")
    if store is None:
        request.getfixturevalue("s3")
    return f"{store or 's3://bucket'}/{uuid.uuid4().hex}"
