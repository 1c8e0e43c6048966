"""Code trees: source files by their ending, with the license of their tree."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from functools import lru_cache
from pathlib import PurePosixPath
from typing import ClassVar

from raymill.data.sources.charset import decoded
from raymill.data.sources.format import Bad, Format, Found, Place, Skipped
from raymill.data.sources.inputs import InputRange
from raymill.data.sources.licenses import (
    LICENSE_NAMES,
    MISSING,
    is_permissive,
    license_of,
    stated_license,
)
from raymill.data.sources.raw_streams import open_input
from raymill.reading import MISSING as MISSING_FILE

_LICENSE_BYTES = 1 << 20
# A statement of a file's own license stands at its head.
_HEAD_CHARACTERS = 4096


class CodeTree(Format):
    """Source files of many languages; `data.sources.*.license` says which trees are read.

    A file's license is the one that it states itself (SPDX), or that of the nearest license file in its folder
    and those above it, up to the folder that `path` names.
    """

    name: ClassVar[str] = "code"
    endings: ClassVar[tuple[str, ...]] = (
        "py", "pyi", "c", "h", "cc", "cpp", "cxx", "hh", "hpp", "cu", "cs", "java", "kt", "scala", "go",
        "rs", "swift", "m", "js", "mjs", "jsx", "ts", "tsx", "rb", "php", "pl", "pm", "lua", "r", "jl",
        "hs", "ml", "mli", "erl", "ex", "exs", "clj", "lisp", "el", "scm", "f", "f90", "for", "pas", "d",
        "zig", "nim", "dart", "sh", "bash", "ps1", "sql", "tex", "proto", "cmake", "asm", "s", "v", "sv",
        "vhd", "vhdl",
    )  # fmt: skip
    has_columns: ClassVar[bool] = False
    extracts: ClassVar[bool] = True

    def records(self, span: InputRange, stream: io.BufferedReader) -> Iterator[Found | Bad]:
        limit = span.extraction.max_page_bytes
        content = stream.read(limit + 1)
        if len(content) > limit:
            why = f"the file is larger than {limit} bytes"
            yield Bad(span.name, why, cause="page too large")
            return
        if b"\0" in content:
            yield Skipped.because("not text")
            return
        text = decoded(content)
        license_name = stated_license(text[:_HEAD_CHARACTERS]) or tree_license(span)
        if span.source.license == "permissive" and not is_permissive(license_name):
            yield Skipped.because(f"license {license_name}")
            return
        place = Place(0, len(content), hashlib.sha256(content).digest())
        yield Found({"license": license_name}, place, text)


def tree_license(span: InputRange) -> str:
    """Return the license of the tree that a file belongs to, MISSING where no file states one."""
    folder = PurePosixPath(span.path).parent
    # A range's name is relative to the folder that `path` names, after the name of the source.
    name = span.name.removeprefix(f"{span.source.name}/")
    levels = len(PurePosixPath(name).parts) - 1
    for _ in range(max(levels, 1)):
        if found := _folder_license(str(folder)):
            return found
        folder = folder.parent
    return MISSING


@lru_cache(maxsize=4096)
def _folder_license(folder: str) -> str | None:
    for name in LICENSE_NAMES:
        try:
            with open_input(f"{folder}/{name}") as file:
                return license_of(file.read(_LICENSE_BYTES).decode("utf-8", "replace"))
        except MISSING_FILE:
            continue
    return None
