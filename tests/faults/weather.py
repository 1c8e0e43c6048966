"""A file system that doesn't answer for one path, whether Python, Arrow or safetensors reads it."""

from __future__ import annotations

import builtins
import errno
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import safetensors
import transformers.modeling_utils


class Weather:
    """`away` makes the next calls for a path fail; `met` counts the failed calls."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.met = 0
        self._path: str | None = None
        self._left = 0
        self._number = 0
        for module, name in (
            (builtins, "open"), (io, "open"), (os, "open"), (os, "stat"), (os, "listdir"), (os, "scandir"),
            (pq, "ParquetFile"), (pq, "read_metadata"),
        ):  # fmt: skip
            monkeypatch.setattr(module, name, self._refusing(getattr(module, name), OSError))
        refusing = self._refusing(lambda path, *_: None, OSError)

        class RefusingFile(io.FileIO):
            def __init__(self, path: Any, *arguments: Any) -> None:
                refusing(path)
                super().__init__(path, *arguments)

        monkeypatch.setattr(io, "FileIO", RefusingFile)
        for module in (safetensors, transformers.modeling_utils):
            # It says so of whatever it can't open.
            opening = self._refusing(module.safe_open, lambda *said: FileNotFoundError(said[1]))
            monkeypatch.setattr(module, "safe_open", opening)

    def away(self, path: Path, times: int, number: int = errno.EIO) -> None:
        """Fail for this path, for a number of calls."""
        self._path, self._left, self._number, self.met = str(path), times, number, 0

    def clear(self) -> None:
        """Answer again."""
        self._left = 0

    def _refusing(
        self, call: Callable[..., Any], error: Callable[..., OSError]
    ) -> Callable[..., Any]:
        def refusing(*arguments: Any, **more: Any) -> Any:
            if (
                self._left
                and isinstance(arguments[0], str | Path)
                and self._path == str(arguments[0])
            ):
                self._left -= 1
                self.met += 1
                raise error(self._number, os.strerror(self._number), self._path)
            return call(*arguments, **more)

        return refusing
