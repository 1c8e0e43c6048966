"""Random numbers by position: element i of a named stream, whoever draws it, and in whichever range.

A stream is cut into blocks, and each block is drawn by a Philox generator (Salmon et al. 2011, "Parallel
random numbers: as easy as 1, 2, 3") whose key is a hash of the seed and the name, and whose counter starts at
the block's number. So a range is drawn alone by drawing the blocks that it overlaps, and the values depend on
nothing else. They are always drawn on the host, in float64, and so are the same on every device.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

BLOCK = 1 << 14  # elements
# Blocks from which on several threads draw; below, starting them takes longer than drawing.
_MANY_BLOCKS = 64

Doubles: TypeAlias = npt.NDArray[np.float64]
# Draws the first n elements of a block; they don't depend on n.
Distribution = Callable[[np.random.Generator, int], Doubles]


def normal(generator: np.random.Generator, count: int) -> Doubles:
    """Draw standard normal numbers."""
    return generator.standard_normal(count)


def uniform(generator: np.random.Generator, count: int) -> Doubles:
    """Draw numbers in [0, 1)."""
    return generator.random(count)


def fill_drawn(
    out: npt.NDArray[np.float32],
    distribution: Distribution,
    transform: Callable[[Doubles], Doubles],
    seed: int,
    name: str,
    start: int,
    threads: int = 1,
) -> None:
    """Write elements [start, start + len(out)) of a stream, transformed in float64 and then rounded."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    # Philox takes a key of 128 bits.
    key = int.from_bytes(digest[:16], "little")

    def draw(first: int, stop: int, block: int) -> None:
        base = block * BLOCK
        # A block's own numbers follow from the low word of the counter, which has 64 bits.
        generator = np.random.Generator(np.random.Philox(key=key, counter=block << 64))
        values = transform(distribution(generator, stop - base)[first - base :])
        out[first - start : stop - start] = values

    pieces = list(blocks(start, start + len(out)))
    if threads > 1 and len(pieces) >= _MANY_BLOCKS:
        # numpy draws without Python's lock.
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(lambda piece: draw(*piece), pieces))
    else:
        for piece in pieces:
            draw(*piece)


def blocks(start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """Yield (first, stop, block) of a range's pieces in each block."""
    for block in range(start // BLOCK, math.ceil(stop / BLOCK)):
        yield max(start, block * BLOCK), min(stop, (block + 1) * BLOCK), block
