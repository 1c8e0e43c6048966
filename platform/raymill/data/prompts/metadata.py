"""Prompt metadata next to the shards: one JSON line per prompt, by the number in the rows' `record` column.

A row holds only a prompt's tokens; reward functions find its messages, reference and verifier here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raymill.data.messages.keys import JsonObject
from raymill.data.store.manifest import AGAIN
from raymill.durable import atomic_replacement, write_atomic
from raymill.errors import DataError
from raymill.reading import MISSING, opened

METADATA_NAME = "prompts.jsonl"


@dataclass(frozen=True)
class PromptRecord:
    """Metadata of one prompt.

    `record` is its number, `messages` are to be answered, `answer` is the reference, `verifier` names a reward
    function (None: none), `extra` is the rest of the input record, and `tools` may be called.
    """

    record: int
    split: str
    messages: tuple[JsonObject, ...]
    answer: str | None
    verifier: str | None
    extra: JsonObject
    tools: tuple[JsonObject, ...] | None = None
    id: str | None = None


def write_metadata(path: Path, prompts: Iterable[PromptRecord]) -> str:
    """Write prompts to a file; return its sha256."""
    text = "".join(_line(prompt) for prompt in prompts)
    write_atomic(path, text)
    return hashlib.sha256(text.encode()).hexdigest()


def merge_metadata(parts: Iterable[tuple[Path, str]], target: Path) -> str:
    """Concatenate files, each with its expected sha256, into one; return the sha256 of the whole.

    At most one line is held in memory.

    Raises:
        DataError: a file is missing or has another sha256.
    """
    whole = hashlib.sha256()
    with atomic_replacement(target) as temporary, temporary.open("wb") as merged:
        for path, sha256 in parts:
            # Each file is checked while it is copied, so it is read only once.
            digest = hashlib.sha256()
            for line in _binary_lines(path):
                digest.update(line)
                whole.update(line)
                merged.write(line)
            if digest.hexdigest() != sha256:
                raise DataError(
                    f"{path}: expected sha256 {sha256[:12]}, found {digest.hexdigest()[:12]}; "
                    f"delete the folder {path.parent} and {AGAIN}."
                )
    return whole.hexdigest()


def read_metadata(path: Path) -> dict[int, PromptRecord]:
    """Return the prompts of a file by their record number.

    Raises:
        DataError: the file isn't prompt metadata, or lists a number twice.
    """
    metadata: dict[int, PromptRecord] = {}
    for prompt in iterate_metadata(path):
        if prompt.record in metadata:
            raise DataError(f"{path} lists the prompt {prompt.record} twice; {AGAIN}.")
        metadata[prompt.record] = prompt
    return metadata


def iterate_metadata(path: Path) -> Iterator[PromptRecord]:
    """Yield the prompts of a file, one after the other.

    Raises:
        DataError: the file isn't prompt metadata.
    """
    for number, line in enumerate(_binary_lines(path), 1):
        try:
            yield _prompt(json.loads(line))
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(f"{path}:{number} can't be read as a prompt: {error!r}") from error


def _line(prompt: PromptRecord) -> str:
    stored = dict(vars(prompt))
    # Files written before there were tools don't have the key, and their digests stay valid.
    if prompt.tools is None:
        del stored["tools"]
    # Keys stay in their order, since templates print tools and arguments in the order in which they come.
    return json.dumps(stored, separators=(",", ":"), ensure_ascii=False, allow_nan=False) + "\n"


def _prompt(stored: Any) -> PromptRecord:
    tree = dict(stored)
    tools = tree.pop("tools", None)
    messages = tuple(tree.pop("messages"))
    return PromptRecord(messages=messages, tools=None if tools is None else tuple(tools), **tree)


def _binary_lines(path: Path) -> Iterator[bytes]:
    """Yield lines as they are: only a line feed ends one."""
    try:
        with opened(path) as file:
            yield from file
    except MISSING as error:
        raise DataError(f"{path} can't be read ({error.strerror}).") from error
