"""Votes of a commit, which rank 0 alone receives: a fixed number of bytes from each rank."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from raymill.checkpoint.chunks import CHUNK_BYTES
from raymill.checkpoint.file_record import FileRecord
from raymill.checkpoint.layout import Layout
from raymill.durable import sha256_text

VOTE_BYTES = 256
# Refusals that a message quotes: a full disk refuses thousands of ranks in the same words.
_QUOTED = 4


@dataclass(frozen=True)
class CommitVote:
    """Vote of a rank: the record of its file and the layout that it wrote by, or its refusal."""

    record: FileRecord | None = None
    layout: str = ""
    refusal: str = ""

    def encode(self) -> bytes:
        """Return the vote as VOTE_BYTES bytes."""
        if self.refusal:
            # The end of a long message names the path, and its start the reason.
            text = self.refusal.encode()
            room = VOTE_BYTES - 1
            if len(text) > room:
                half = (room - 5) // 2
                text = text[:half] + b" ... " + text[-half:]
            return (b"\1" + text).ljust(VOTE_BYTES, b"\0")
        assert self.record is not None, "a vote is a record or a refusal"
        digests = bytes.fromhex(self.record.sha256 + self.layout)
        return (b"\0" + self.record.bytes.to_bytes(8, "little") + digests).ljust(VOTE_BYTES, b"\0")

    @classmethod
    def decode(cls, data: bytes) -> CommitVote:
        """Return the vote that `encode` gave."""
        if data[0]:
            return cls(refusal=data[1:].rstrip(b"\0").decode(errors="replace"))
        record = FileRecord(int.from_bytes(data[1:9], "little"), data[9:41].hex(), CHUNK_BYTES)
        return cls(record, data[41:73].hex())


def layout_digest(layout: Layout) -> str:
    """Return a digest of a layout, which all ranks must have computed alike."""
    # The order of the parameters counts, since it is that of the files.
    return sha256_text(json.dumps(layout.to_json()))


def refusals(votes: Sequence[CommitVote], layout: Layout) -> list[str]:
    """List why a checkpoint of these votes can't be committed: a few reasons, or none."""
    expected = layout_digest(layout)
    found = []
    for rank, (vote, size) in enumerate(zip(votes, layout.file_sizes(), strict=True)):
        if vote.refusal:
            found.append(f"rank {rank}: {vote.refusal}")
        elif vote.record is None or vote.record.bytes != size or vote.layout != expected:
            found.append(f"rank {rank}: it wrote by another layout than rank 0's")
    more = len(found) - _QUOTED
    return found if more <= 0 else [*found[:_QUOTED], f"and {more} more ranks"]
