"""The order against its description, in plain lists and whole numbers; and values that never change."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import pytest

from raymill.data.store.blocks import SourceShape
from raymill.data.store.mixture import Change
from raymill.data.store.order import Order

# Source, epoch, shard, row group, row.
Place = tuple[int, int, int, int, int]
WORD = 2**64


def mix(value: int) -> int:
    """splitmix64, as Steele, Lea & Flood print it."""
    word = (value + 0x9E3779B97F4A7C15) % WORD
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 % WORD
    word = (word ^ (word >> 27)) * 0x94D049BB133111EB % WORD
    return word ^ (word >> 31)


def key_of(*numbers: int) -> int:
    key = 0
    for number in numbers:
        key = mix(key ^ mix(number))
    return key


def feistel(value: int, size: int, largest: int, key: int) -> int:
    half = max(1, (max(largest - 1, 1).bit_length() + 1) // 2)
    mask = 2**half - 1
    while True:
        left, right = value >> half, value & mask
        for number in range(6):
            left, right = right, left ^ (mix(right ^ mix(key ^ mix(number + 101))) & mask)
        value = left << half | right
        if value < size:
            return value


def blocks_of(shape: SourceShape) -> list[list[tuple[int, int, int]]]:
    """Full row groups, then the rows that they leave, shard after shard, in parts as large."""
    size, blocks, rest = shape.row_group_rows, list[list[tuple[int, int, int]]](), []
    for shard, rows in enumerate(shape.shard_rows):
        places = [(shard, row // size, row % size) for row in range(rows)]
        full = rows // size * size
        blocks += [places[i : i + size] for i in range(0, full, size)]
        rest += places[full:]
    return blocks + [rest[i : i + size] for i in range(0, len(rest), size)]


def cut(line: list[Place], width: int) -> list[list[Place]]:
    width = min(width, len(line))
    lengths = [len(line) // width + (i < len(line) % width) for i in range(width)]
    ends = np.cumsum(lengths).tolist()
    return [line[end - length : end] for end, length in zip(ends, lengths, strict=True)]


def source_rows(
    number: int, shape: SourceShape, seed: int, widths: dict[int, int]
) -> Iterator[Place]:
    """Yield the rows of a source; `widths` by the position from which on they count."""
    blocks, position, width, epoch = blocks_of(shape), 0, widths[0], 0
    while True:
        key = mix((key_of(seed, 1, number) + epoch) % WORD)
        line = []
        for slot in range(len(blocks)):
            at = feistel(slot, len(blocks), len(blocks), key)
            own = mix(key ^ mix(at + 1))
            for row in range(len(blocks[at])):
                place = blocks[at][feistel(row, len(blocks[at]), shape.row_group_rows, own)]
                line.append((number, epoch, *place))
        width = widths.get(position, width)
        columns = cut(line, width)
        while any(columns):
            for column in range(len(columns)):
                if position in widths and widths[position] != width:
                    width = widths[position]
                    columns = cut([row for part in columns for row in part], width)
                    break
                if columns[column]:
                    yield columns[column].pop(0)
                    position += 1
        epoch += 1


def drawn_source(weights: tuple[int, int], number: int) -> int:
    """The source of a phase's sample: the lighter of two stands on the left."""
    light = min(range(2), key=lambda i: (weights[i], i))
    share = Fraction(weights[light], sum(weights))
    counts = [int(n * share + Fraction(1, 2)) for n in (number, number + 1)]
    return light if counts[1] > counts[0] else 1 - light


def test_one_source_agrees_with_its_description() -> None:
    for rows, batch, window in (((45, 17, 3), 6, 2), ((30,), 4, 9), ((5, 6), 40, 1)):
        shape = SourceShape("a", 1.0, 4, rows)
        # The least multiple of the batch that isn't below the window.
        expected = source_rows(0, shape, 99, {0: batch * -(-window // batch)})
        found = Order([shape], 99, window, batch).locate(0, 200)
        for sample, place in zip(range(200), expected, strict=False):
            columns = (found.source, found.epoch, found.shard, found.row_group, found.row)
            assert tuple(int(column[sample]) for column in columns) == place


@pytest.mark.parametrize("first", [8, 24, 64])
def test_a_change_of_weights_agrees_with_its_description(first: int) -> None:
    shapes = [SourceShape("a", 3.0, 4, (37, 22)), SourceShape("b", 1.0, 3, (20, 9, 7))]
    order = Order(shapes, 5, 1, 8, [Change(first, (1.0, 3.0))])
    sources = [drawn_source((3, 1), i) for i in range(first)]
    positions = [sources.count(0), sources.count(1)]
    sources += [drawn_source((1, 3), i) for i in range(160 - first)]
    # Of 8 places, 6 and 2; then 2 and 6.
    rows = [
        source_rows(0, shapes[0], 5, {0: 6, positions[0]: 2}),
        source_rows(1, shapes[1], 5, {0: 2, positions[1]: 6}),
    ]
    found = order.locate(0, 160)
    for sample, source in enumerate(sources):
        columns = (found.source, found.epoch, found.shard, found.row_group, found.row)
        assert tuple(int(column[sample]) for column in columns) == next(rows[source])


def test_version_2_never_changes() -> None:
    """Literal values, which the description above gave."""
    sources = [SourceShape("a", 3.0, 4, (10, 7, 16)), SourceShape("b", 1.0, 8, (30,))]
    found = Order(sources, 1234, 2, 8).locate(1020, 8)
    columns = (found.source, found.epoch, found.shard, found.row_group, found.row)
    assert np.stack(columns, axis=1).tolist() == [
        [0, 23, 2, 2, 1],
        [1, 8, 0, 0, 4],
        [0, 23, 0, 1, 3],
        [0, 23, 2, 1, 1],
        [0, 23, 1, 0, 1],
        [1, 8, 0, 3, 1],
        [0, 23, 2, 3, 1],
        [0, 23, 1, 1, 1],
    ]


def test_the_rank_of_a_row_agrees_with_its_description() -> None:
    sources = [SourceShape("a", 3.0, 4, (100, 70)), SourceShape("b", 1.0, 8, (300,))]
    batch, first, ranks = 24, 24 * 500, 4
    drawn = [drawn_source((3, 1), i) for i in range(first, first + batch)]
    # Of 24 places, a has the first 18 and b the other 6; as many rows have come of each, 500 times.
    shuffled = [
        feistel(place, batch, batch, key_of(1234, 2, 500 // (32 * 8))) for place in range(batch)
    ]
    samples, numbers = {}, [500 * 18, 500 * 6]
    for sample, source in enumerate(drawn, first):
        home = numbers[source] % (18, 6)[source]
        samples[shuffled.index(home + 18 * source)] = sample
        numbers[source] += 1
    for rank in range(ranks):
        expected = sorted(samples[place] for place in range(6 * rank, 6 * rank + 6))
        found, _ = Order(sources, 1234, 2, batch).rank_rows(first, 1, rank, ranks)
        assert found.tolist() == expected
