"""Extraction of pages in a child process that may be killed: a page that breaks a limit costs itself only."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing.connection import Connection
from pathlib import Path

import raymill
from raymill.data.sources.extraction import TOO_DEEP, Page
from raymill.data.sources.extraction_child import FAILED, OUT_OF_MEMORY, READY, REFUSED, TEXT
from raymill.errors import ClusterError
from raymill.schema.extraction_section import ExtractionConfig

# Libraries cache and leak a little with every page.
PAGES_PER_CHILD = 10_000
# Seconds of a clock that a second of processor time may take on a busy machine, and that a start may take.
_SECONDS_PER_CPU_S, _START_S = 30, 120


@dataclass(frozen=True, slots=True)
class Refusal:
    """Reason why a page has no text. `cause` is the category in which it is counted."""

    cause: str
    why: str


class Extractor:
    """Extracts pages one after another, in one child process after another."""

    def __init__(self, config: ExtractionConfig) -> None:
        self.config = config
        self._child: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._pages_done = 0

    def texts(self, pages: Sequence[Page]) -> Iterator[str | Refusal]:
        """Yield the text of each page ("": no text was found), or why it has none."""
        done = 0
        while done < len(pages):
            connection = self._connected()
            # The child answers each page, so that the parent knows which of them ended it.
            connection.send(pages[done:])
            for page in pages[done:]:
                answer = self._received(connection, page)
                done += 1
                self._pages_done += 1
                yield answer
                if self._connection is None:
                    break

    def close(self) -> None:
        """End the child."""
        if self._connection is not None:
            self._connection.close()
        if self._child is not None:
            self._child.kill()
            self._child.wait()
        self._connection = self._child = None

    def _received(self, connection: Connection, page: Page) -> str | Refusal:
        config = self.config
        patience_s = _SECONDS_PER_CPU_S * max(config.max_cpu_s, 1)
        # Text is hardly longer than its page; a child that has lost its mind may say anything.
        longest = 4 * len(page.content) + 2**20
        try:
            if not connection.poll(patience_s):
                self.close()
                return Refusal("took too long", f"no answer within {patience_s:.0f} s")
            answer = connection.recv_bytes(longest)
        except (EOFError, OSError):
            return self._death()
        if answer[:1] == OUT_OF_MEMORY:
            self.close()
            return _memory(config)
        rest = answer[1:].decode("utf-8")
        if answer[:1] == TEXT:
            return rest
        if answer[:1] == REFUSED and rest == TOO_DEEP:
            return Refusal(rest, f"elements nest deeper than {config.max_depth} levels")
        assert answer[:1] == FAILED, "the child knows these answers only"
        return Refusal("extractor failed", f"the extractor failed with {rest}")

    def _death(self) -> Refusal:
        """Return why the child has ended itself with a page."""
        assert self._child is not None, "a child was asked"
        code = self._child.wait()
        self.close()
        if code == -signal.SIGPROF:
            why = f"extracting took more than {self.config.max_cpu_s:g} seconds of processor time"
            return Refusal("took too long", why)
        name = signal.Signals(-code).name if code < 0 else f"exit status {code}"
        return Refusal("extractor crashed", f"the extractor ended with {name}")

    def _connected(self) -> Connection:
        if self._connection is not None and self._pages_done < PAGES_PER_CHILD:
            return self._connection
        self.close()
        ours, theirs = socket.socketpair()
        with theirs:
            self._child = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "raymill.data.sources.extraction_child",
                    str(theirs.fileno()),
                ],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=os.environ | {"PYTHONPATH": _python_path()},
                # An interrupt from the keyboard is the parent's to handle.
                start_new_session=True,
            )
        self._connection, self._pages_done = Connection(ours.detach()), 0
        try:
            self._connection.send(self.config)
            ready = self._connection.poll(_START_S) and self._connection.recv_bytes() == READY
        except (EOFError, OSError):
            ready = False
        if not ready:
            self.close()
            # Without this, every page would seem to crash the extractor.
            raise ClusterError("The process that extracts pages doesn't start on this node.")
        return self._connection


def _memory(config: ExtractionConfig) -> Refusal:
    why = f"extracting needs more than {config.max_memory_bytes >> 20} MiB of memory"
    return Refusal("took too much memory", why)


def _python_path() -> str:
    package = str(Path(raymill.__file__).parents[1])
    return os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))


@lru_cache(maxsize=1)
def extractor(config: ExtractionConfig) -> Extractor:
    """Return this process's extractor, whose child serves one input range after another.

    The child ends with this process, since its connection closes.
    """
    return Extractor(config)
