"""Units whose borders another file doesn't move: chosen by the names of the files, as content-defined chunking
chooses borders by content (LBFS, Muthitacharoen et al. 2001), with a smallest and a largest size."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

from raymill.data.sources.inputs import InputRange, Unit

# Opening a file costs as much as reading so much of a unit, and a unit has at most twice as many ranges.
RANGES_PER_UNIT = 2048


def stable_units(ranges: Iterable[InputRange], unit_bytes: int) -> Iterator[Unit]:
    """Group consecutive ranges of a source into units of half to twice `unit_bytes`, on average about one.

    From half a unit on, a range begins the next unit with a probability that grows with its size, by the hash
    of its name. A new range changes the unit that it falls into, and sometimes the one after it.
    """
    unit: list[InputRange] = []
    size = 0
    for span in ranges:
        cost = max(span.length, unit_bytes // RANGES_PER_UNIT)
        if unit and (
            span.source.name != unit[0].source.name
            or size + cost > 2 * unit_bytes
            or (2 * size >= unit_bytes and _begins(span, 2 * cost / unit_bytes))
        ):
            yield tuple(unit)
            unit, size = [], 0
        unit.append(span)
        size += cost
    if unit:
        yield tuple(unit)


def _begins(span: InputRange, probability: float) -> bool:
    digest = hashlib.blake2b(f"{span.name}@{span.offset}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") < probability * 2**64
