"""Notes of failed ranks: a rank that can't continue writes its error down for the driver and ends its process.

The process ends at once, so that the other ranks, which may be waiting for it in a collective, fail as well
instead of waiting until their timeout.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from raymill.causes import cause_of, innermost
from raymill.durable import write_atomic
from raymill.errors import StorageError
from raymill.reading import MISSING, read_text

# Notes that are read at once.
READERS = 32
_COMMUNICATION = (f"torch{os.sep}distributed{os.sep}", f"deepspeed{os.sep}comm{os.sep}")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FailureNote:
    """A rank's error, in a form for processes that may not have its class."""

    kinds: tuple[str, ...]  # names of the error's class and of its base classes
    text: str  # the message as raised
    cause: str  # the innermost cause, on one line
    waited: bool  # raised where a rank waits for others, and so probably the consequence of their failure
    host: str = ""  # "" where another process than the rank's describes the error

    @classmethod
    def from_error(cls, error: BaseException) -> FailureNote:
        """Describe an error by the innermost one of its chain."""
        inner = innermost(error)
        kinds = tuple(kind.__name__ for kind in type(inner).__mro__)
        return cls(kinds, str(inner), cause_of(error), _is_from_communication(inner))

    @classmethod
    def of_this_rank(cls, error: BaseException) -> FailureNote:
        """Describe an error of this process, with its host."""
        return replace(cls.from_error(error), host=socket.gethostname())


class OtherRankError(RuntimeError):
    """Another rank failed in a way that ends its process; this rank can't continue without it."""

    def __init__(self, rank: int, note: FailureNote) -> None:
        super().__init__(f"rank {rank} failed: {note.cause}")
        self.rank = rank
        self.note = note


@contextmanager
def exit_on_error(folder: Path, rank: int) -> Iterator[None]:
    """End the process at once if the block raises, with a note of the error in `folder`.

    `os._exit` skips everything that could keep the process, and with it the rank's connections, alive: threads,
    exit handlers, open collectives. Where the note can't be written, the error is raised instead.
    """
    try:
        yield
    except BaseException as error:
        logger.exception("rank %d can't continue", rank)
        try:
            write_note(folder, rank, error)
        except OSError:
            # Without a note, Ray is the only one left to report the error.
            raise error from None
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(1)


def write_note(folder: Path, rank: int, error: BaseException) -> None:
    """Write down this rank's error, or another rank's that was reported to it.

    The other rank may not get to write its own note.
    """
    if isinstance(error, OtherRankError):
        rank, note = error.rank, error.note
    else:
        note = FailureNote.of_this_rank(error)
    write_atomic(_path(folder, rank), json.dumps(asdict(note)))


def read_notes(folder: Path, ranks: int) -> dict[int, FailureNote]:
    """Return rank → note for those of the first `ranks` ranks that left a readable one."""

    def read(rank: int) -> FailureNote | None:
        # By name, since a network file system may list a folder as it was a minute ago.
        with suppress(*MISSING, StorageError, ValueError):
            stored = json.loads(read_text(_path(folder, rank)))
            return FailureNote(**stored | {"kinds": tuple(stored["kinds"])})
        return None

    # Almost all of them are missing, and a server takes about a millisecond to say so.
    with ThreadPoolExecutor(max_workers=READERS) as threads:
        notes = list(threads.map(read, range(ranks)))
    return {rank: note for rank, note in enumerate(notes) if note is not None}


def _path(folder: Path, rank: int) -> Path:
    return folder / f"rank-{rank:05d}.failure"


def _is_from_communication(error: BaseException) -> bool:
    """Return True for errors that torch's collectives raise.

    They raise RuntimeError for lost peers and timeouts, and other classes for wrong arguments.
    """
    if not isinstance(error, RuntimeError):
        return False
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and any(part in frames[-1].filename for part in _COMMUNICATION)
