"""The book of prompts beside the shards: what a row's `record` number stands for, one JSON line a prompt.

A row has a prompt's tokens alone; whoever rewards an answer looks the rest up here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raymill.data.store.manifest import AGAIN
from raymill.durable import atomic_replacement, write_atomic
from raymill.errors import DataError
from raymill.reading import MISSING, opened

BOOK_NAME = "prompts.jsonl"


@dataclass(frozen=True)
class PromptRecord:
    """A prompt by its number: `messages` to answer, the reference `answer`, the name of the reward function
    that judges (None: none), what else the record held, and the tools that may be called."""

    record: int
    split: str
    messages: tuple[dict[str, Any], ...]
    answer: str | None
    verifier: str | None
    extra: dict[str, Any]
    tools: tuple[dict[str, Any], ...] | None = None
    id: str | None = None


def write_book(path: Path, prompts: Iterable[PromptRecord]) -> str:
    """Write them; returns the file's sha256."""
    text = "".join(_line(prompt) for prompt in prompts)
    write_atomic(path, text)
    return hashlib.sha256(text.encode()).hexdigest()


def merge_books(parts: Iterable[tuple[Path, str]], target: Path) -> str:
    """Put books one after the other, each with the sha256 that it must have; returns that of the whole.

    Memory is one line.

    Raises:
        DataError: one of them is missing or isn't what was written.
    """
    whole = hashlib.sha256()
    with atomic_replacement(target) as temporary, temporary.open("wb") as merged:
        for path, sha256 in parts:
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


def read_book(path: Path) -> dict[int, PromptRecord]:
    """Record number → prompt.

    Raises:
        DataError: the file isn't a book, or lists a number twice.
    """
    book: dict[int, PromptRecord] = {}
    for prompt in book_prompts(path):
        if prompt.record in book:
            raise DataError(f"{path} lists the prompt {prompt.record} twice; {AGAIN}.")
        book[prompt.record] = prompt
    return book


def book_prompts(path: Path) -> Iterator[PromptRecord]:
    """The prompts of a book, one after the other.

    Raises:
        DataError: the file isn't a book.
    """
    for number, line in enumerate(_binary_lines(path), 1):
        try:
            yield _prompt(json.loads(line))
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(f"{path}:{number} can't be read as a prompt: {error!r}") from error


def _line(prompt: PromptRecord) -> str:
    stored = dict(vars(prompt))
    if prompt.tools is None:
        del stored["tools"]
    # Keys stay in their order: templates print tools and arguments as they come.
    return json.dumps(stored, separators=(",", ":"), ensure_ascii=False, allow_nan=False) + "\n"


def _prompt(stored: Any) -> PromptRecord:
    tree = dict(stored)
    tools = tree.pop("tools", None)
    messages = tuple(tree.pop("messages"))
    return PromptRecord(messages=messages, tools=None if tools is None else tuple(tools), **tree)


def _binary_lines(path: Path) -> Iterator[bytes]:
    """Lines as they are: only a line feed ends one."""
    try:
        with opened(path) as file:
            yield from file
    except MISSING as error:
        raise DataError(f"{path} can't be read ({error.strerror}).") from error
