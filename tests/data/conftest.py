"""A parent's folder and its tokenizer, for tests that need no model."""

from __future__ import annotations

from pathlib import Path

import pytest

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
