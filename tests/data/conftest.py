"""Fixtures of data preparation: a parent's folder and tokenizer, and preparation without Ray."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from data.in_process import without_ray
from data.prepared_factory import _write_tokenizer
from raymill.data.messages.tokenizer import ChatTokenizer, chat_tokenizer


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parent")
    _write_tokenizer(folder, 257)
    return folder


@pytest.fixture(scope="module")
def tokenizer(parent: Path) -> ChatTokenizer:
    return chat_tokenizer(parent, "auto", ())


@pytest.fixture
def no_ray() -> Iterator[None]:
    """Prepare data in the process of the test."""
    with without_ray():
        yield
