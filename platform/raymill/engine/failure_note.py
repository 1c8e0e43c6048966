"""The end of a rank that can't go on: it leaves a note of its error, for the driver, and its process ends at
once, so that the others, which may be waiting for it, end too."""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from raymill.causes import cause_of, innermost
from raymill.durable import write_atomic
from raymill.errors import StorageError
from raymill.reading import MISSING, read_text

_COMMUNICATION = (f"torch{os.sep}distributed{os.sep}", f"deepspeed{os.sep}comm{os.sep}")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FailureNote:
    """A rank's error, for a process that may know nothing of its class."""

    kinds: tuple[str, ...]  # the names of its class and of those that this one derives from
    text: str  # its message, as it was raised
    cause: str  # its innermost cause, in a line
    waited: bool  # whether it came up where a rank waits for others


class OtherRankError(RuntimeError):
    """Another rank failed, in a way that ends its process: this one can't go on without it."""

    def __init__(self, rank: int, note: FailureNote) -> None:
        super().__init__(f"rank {rank} failed: {note.cause}")
        self.rank = rank
        self.note = note


@contextmanager
def ending_at_once(folder: Path, rank: int) -> Iterator[None]:
    """Within the block, an exception leaves a note in `folder` and ends the process: nothing else that is open
    may keep it, and the rank's connections with it.

    Raises whatever the block does, where the note can't be written.
    """
    try:
        yield
    except BaseException as error:
        logger.exception("rank %d can't go on", rank)
        try:
            leave_note(folder, rank, error)
        except OSError:  # then Ray tells of it
            raise error from None
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(1)


def leave_note(folder: Path, rank: int, error: BaseException) -> None:
    """Write down an error of this rank, or of another that it has heard of: that one may not come to it."""
    failed = (
        (error.rank, error.note) if isinstance(error, OtherRankError) else (rank, note_of(error))
    )
    write_atomic(_path(folder, failed[0]), json.dumps(asdict(failed[1])))


def note_of(error: BaseException) -> FailureNote:
    """Describe an error by the innermost one within it."""
    inner = innermost(error)
    kinds = tuple(kind.__name__ for kind in type(inner).__mro__)
    return FailureNote(kinds, str(inner), cause_of(error), _is_of_communication(inner))


def read_notes(folder: Path, ranks: int) -> dict[int, FailureNote]:
    """Read the notes of those of so many ranks that left one, by rank; what can't be read is left out."""
    found = {}
    for rank in range(ranks):
        # By name, since a network file system may list a folder as it was a minute ago.
        with suppress(*MISSING, StorageError, ValueError):
            kept = json.loads(read_text(_path(folder, rank)))
            found[rank] = FailureNote(**kept | {"kinds": tuple(kept["kinds"])})
    return found


def _path(folder: Path, rank: int) -> Path:
    return folder / f"rank-{rank:05d}.failure"


def _is_of_communication(error: BaseException) -> bool:
    """Tell whether torch's collectives raised it; they raise other classes for what they are given."""
    if not isinstance(error, RuntimeError):
        return False
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and any(place in frames[-1].filename for place in _COMMUNICATION)
