"""Records of a planned piece as prompts, each on its side of the held-out split."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from raymill.data.messages.records import (
    known_columns,
    message_side,
    place_of_record,
    plain_record,
    read_told,
)
from raymill.data.prompts.prompt import COLUMNS, OTHER_COLUMNS, Problem, Prompt, read_prompt
from raymill.data.store.split import TRAIN, VALIDATION
from raymill.data.text.records import Bad
from raymill.data.text.sources import EMBEDDED, InputRange
from raymill.durable import canonical_json

NO_VERIFIER = "none"
EMBEDDED_VERIFIER = "answer_f1"  # of the embedded prompts, where data.verifier is none


@dataclass(frozen=True)
class PlacedPrompt:
    """A usable prompt, its split, the record that it was, where that stands, and the names of what nobody
    read in it.

    The prompt's verifier is the one that judges: the record's own, or else data.verifier; None: none.
    """

    split: str
    prompt: Prompt
    record: dict[str, Any]
    piece: InputRange
    number: int
    unused: tuple[str, ...] = ()

    @property
    def where(self) -> str:
        """file:line or row, for a message; looked up only then."""
        return place_of_record(self.piece, self.number)


@dataclass(frozen=True)
class PromptsReading:
    """Records read as prompts; what of the configuration decides how."""

    verifier: str  # of prompts that name none themselves
    group_column: str | None  # None: the first question decides the side
    fraction: float
    seed: int

    def parse_text(self, text: str, piece: InputRange) -> Bad:
        """Plain text has no turns."""
        return Bad(piece.name, "plain text isn't a prompt", cause="format")

    def parse_record(
        self, record: Mapping[str, Any], piece: InputRange, number: int
    ) -> PlacedPrompt | Bad:
        """A prompt, or what is wrong with the record."""
        plain = plain_record(record, piece)
        found = read_prompt(plain)
        if isinstance(found, Problem):
            return Bad("", found.why, cause=found.cause, record=plain)
        side = message_side(
            piece, plain, found.first_user, self.group_column, self.fraction, self.seed
        )
        if isinstance(side, Bad):
            return side
        name = found.verifier or self.verifier
        found = replace(found, verifier=None if name == NO_VERIFIER else name)
        return PlacedPrompt(side, found, plain, piece, number, found.unused)

    def columns(self, stored: pa.Schema, piece: InputRange) -> list[str] | Bad:
        """All that JSON can hold (others aren't read), if what is asked is among them."""
        formats = {name: ((name,),) for name in COLUMNS}
        return known_columns(stored, formats, (*OTHER_COLUMNS, self.group_column or ""))

    def read(self, piece: InputRange, digest: hashlib._Hash) -> Iterator[PlacedPrompt | Bad]:
        """The piece's prompts in order; `digest` has seen its bytes at the end."""
        if piece.format != EMBEDDED:
            yield from read_told(piece, self, digest)
            return
        from raymill.data.demo.embedded import entries

        verifier = EMBEDDED_VERIFIER if self.verifier == NO_VERIFIER else self.verifier
        for number, entry in enumerate(entries(piece.name, self.fraction, self.seed)):
            digest.update(canonical_json(entry.record).encode())
            record = {
                **entry.record, "verifier": verifier, "about": entry.name, "kind": entry.kind,
            }  # fmt: skip
            found = read_prompt(record)
            assert isinstance(found, Prompt)  # the embedded corpus is well-formed
            side = VALIDATION if entry.held_out else TRAIN
            yield PlacedPrompt(side, found, record, piece, number)
