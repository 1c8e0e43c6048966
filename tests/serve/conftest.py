"""A tiny model's folder, and a service over a scripted engine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from raymill.serve.app import ServeApplication
from serve.service import Service


@pytest.fixture(scope="session")
def folder(chat_folder: Path) -> Path:
    return chat_folder


@pytest.fixture
def service(folder: Path) -> Iterator[Service]:
    with Service(folder) as service:
        yield service


@pytest.fixture
def client(service: Service) -> TestClient:
    return client_of(service)


def client_of(service: Service, app: ServeApplication | None = None) -> TestClient:
    return TestClient(
        app or service.app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False
    )
