"""Commit and resume of a model of 70 billion parameters, per rank, at any number of ranks.

    python bench/scale/commit.py --ranks 8 64 1024 8192 --json commit.json

What a rank reads is planned by the code that reads, over files that need not exist: files, reads,
bytes. One rank's file is written, read and verified here, for the seconds behind each byte. Nothing
else is measured: a cell of seconds is bytes times those, on this machine's processor and disk.
"""

from __future__ import annotations

import argparse
import json
import pickle
import resource
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np

from raymill.checkpoint.chunks import CHUNK_BYTES, DIGEST_BYTES, content_bytes
from raymill.checkpoint.file_record import FileRecord
from raymill.checkpoint.fragments import FragmentReader, write_fragments
from raymill.checkpoint.layout import Layout, ParameterEntry, Want, file_of
from raymill.checkpoint.manifest import INDEX_NAME, MANIFEST_NAME, CheckpointManifest
from raymill.checkpoint.partition import Partition
from raymill.checkpoint.verified_files import plan_runs
from raymill.checkpoint.votes import VOTE_BYTES, CommitVote, layout_digest, refusals
from raymill.durable import sha256_file

HIDDEN, LAYERS, FEED_FORWARD, KEYS, VOCABULARY = 8192, 80, 28672, 1024, 128256


def llama_70b() -> dict[str, ParameterEntry]:
    """Return the parameters of Llama 3 70B: 723 tensors, 70.6 billion elements."""
    block = {
        "self_attn.q_proj": (HIDDEN, HIDDEN),
        "self_attn.k_proj": (KEYS, HIDDEN),
        "self_attn.v_proj": (KEYS, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HIDDEN),
        "mlp.gate_proj": (FEED_FORWARD, HIDDEN),
        "mlp.up_proj": (FEED_FORWARD, HIDDEN),
        "mlp.down_proj": (HIDDEN, FEED_FORWARD),
        "input_layernorm": (HIDDEN,),
        "post_attention_layernorm": (HIDDEN,),
    }
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    for layer in range(LAYERS):
        shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in block.items()}
    shapes |= {"model.norm.weight": (HIDDEN,), "lm_head.weight": (VOCABULARY, HIDDEN)}
    return {name: ParameterEntry(shape) for name, shape in shapes.items()}


def layout_of(stage: int, world_size: int) -> Layout:
    """Return the layout of ZeRO-3, or of ZeRO-1 and 2: one sequence, cut into equal parts."""
    entries = llama_70b()
    if stage == 3:
        return Layout.equal_parts(world_size, entries)
    whole = sum(entry.numel for entry in entries.values())
    first, parameters = 0, {}
    for name, entry in entries.items():
        parameters[name] = entry, Partition(entry.numel, first, -(-whole // world_size))
        first += entry.numel
    return Layout.of(world_size, parameters)


@dataclass(frozen=True)
class Resume:
    """Reads of the rank in the middle; parts differ by one element per parameter."""

    writers: str
    readers: str
    files: int
    reads: int
    used_gb: float
    read_gb: float
    plan_s: float


def resume(written: Layout, readers: Layout, names: tuple[str, str], memory: np.memmap) -> Resume:
    """Plan what a rank reads, into memory that is never touched."""
    wants, position = list[Want](), 0
    for kind, name, start, numel in readers.tensors(readers.world_size // 2):
        wants.append(Want(kind, name, memory[position : position + numel], start))
        position += numel
    sizes = written.file_sizes()
    started = time.perf_counter()
    files = reads = read = 0
    for file, pieces in written.pieces(wants):
        size = sizes[int(file[5:10])]
        content = content_bytes(size, CHUNK_BYTES)
        # The table of digests is one read more.
        files, reads, read = files + 1, reads + 1, read + size - content
        for run in plan_runs(pieces, CHUNK_BYTES):
            reads += 1
            read += min(run.stop * CHUNK_BYTES, content) - run.first * CHUNK_BYTES
    seconds = time.perf_counter() - started
    return Resume(*names, files, reads, 4 * position / 1e9, read / 1e9, seconds)


@dataclass(frozen=True)
class CommitCost:
    """Costs of a commit that depend on the number of ranks."""

    ranks: int
    file_gb: float
    index_kb: float
    manifest_kb: float
    vote_bytes: int
    received_by_zero_kb: float
    received_by_others_bytes: int
    table_kb: float
    rank_zero_s: float


def commit_cost(world_size: int) -> CommitCost:
    """Return what a commit of so many ranks gathers and stores, and the seconds of rank 0 alone."""
    layout = layout_of(3, world_size)
    sizes = layout.file_sizes()
    digest = layout_digest(layout)
    sent = [CommitVote(FileRecord(size, "ab" * 32, CHUNK_BYTES), digest).encode() for size in sizes]
    started = time.perf_counter()
    layout.check()
    votes = [CommitVote.decode(data) for data in sent]
    assert refusals(votes, layout) == [], "all ranks agree"
    index = json.dumps(layout.to_json())
    records = [vote.record for vote in votes if vote.record is not None]
    files = {file_of(rank): record for rank, record in enumerate(records)}
    manifest = json.dumps(replace(empty_manifest(world_size), files=files).to_json(), indent=1)
    seconds = time.perf_counter() - started
    return CommitCost(
        ranks=world_size,
        file_gb=max(sizes) / 1e9,
        index_kb=len(index) / 1e3,
        manifest_kb=len(manifest) / 1e3,
        vote_bytes=VOTE_BYTES,
        received_by_zero_kb=world_size * VOTE_BYTES / 1e3,
        received_by_others_bytes=len(pickle.dumps(None)),
        table_kb=-(-max(sizes) // CHUNK_BYTES) * DIGEST_BYTES / 1e3,
        rank_zero_s=seconds,
    )


def empty_manifest(world_size: int) -> CheckpointManifest:
    """Return a manifest that names no files."""
    return CheckpointManifest(1, 1, 1, world_size, 1, {}, "", (), "", None, None, {})


@dataclass(frozen=True)
class Measured:
    """One rank's file, written and read here. Memory is what the process needed beyond the state."""

    ranks: int
    file_gb: float
    write_s: float
    read_s: float
    memory_mb: float


def measure(world_size: int, folder: Path) -> Measured:
    """Write one rank's file of so many, and read it back as that rank resumes."""
    layout, rank = layout_of(3, world_size), world_size // 2
    state = np.zeros(sum(numel for *_, numel in layout.tensors(rank)), np.float32)
    state += 1
    fragments = list(parts(layout, rank, state))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    record = write_fragments(folder, rank, layout, fragments)
    write_s = time.perf_counter() - started
    index = folder / INDEX_NAME
    index.write_text(json.dumps(layout.to_json()))
    files = {
        file_of(rank): record,
        INDEX_NAME: FileRecord(index.stat().st_size, sha256_file(index)),
    }
    body = replace(empty_manifest(world_size), files=files).to_json()
    (folder / MANIFEST_NAME).write_text(json.dumps(body))
    state[:] = 0
    started = time.perf_counter()
    FragmentReader.open(folder).load(
        [
            Want(kind, name, array, start)
            for name, start, arrays in fragments
            for kind, array in arrays.items()
        ]
    )
    read_s = time.perf_counter() - started
    assert state.min() == 1, "everything was read"
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return Measured(world_size, record.bytes / 1e9, write_s, read_s, used / 1e3)


def parts(
    layout: Layout, rank: int, state: np.ndarray
) -> Iterator[tuple[str, int, dict[str, np.ndarray]]]:
    """Yield a rank's fragments, in the memory of `state`."""
    position = 0
    for name, part in layout.partitions.items():
        start, numel = part.range_of(rank)
        arrays = {}
        for kind in layout.kinds if numel else ():
            arrays[kind] = state[position : position + numel]
            position += numel
        if numel:
            yield name, start, arrays


def main() -> None:
    """Print the tables, and write them as JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 64, 1024, 8192])
    parser.add_argument("--measure", type=int, default=1024, help="ranks of the measured one")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    commits = [commit_cost(ranks) for ranks in arguments.ranks]
    show(commits)
    print()
    layouts = {
        (stage, ranks): layout_of(stage, ranks) for stage in (1, 3) for ranks in arguments.ranks
    }
    between = 1024 if 1024 in arguments.ranks else max(arguments.ranks)
    resumes = []
    with tempfile.NamedTemporaryFile() as sparse:
        # Of the largest share; nothing is ever written to it.
        elements = 3 * (-(-70_600_000_000 // min(arguments.ranks)) + 2**24)
        memory = np.memmap(sparse.name, np.float32, "w+", shape=(elements,))
        for (stage, writers), (other, readers) in product(layouts, layouts):
            # From ZeRO-3 to ZeRO-3 at all sizes, and between the stages at one.
            if (stage, other) != (3, 3) and {writers, readers} != {between}:
                continue
            names = f"{writers} (ZeRO-{stage})", f"{readers} (ZeRO-{other})"
            resumes.append(resume(layouts[stage, writers], layouts[other, readers], names, memory))
            show(resumes[-1:], header=len(resumes) == 1)
    print()
    with tempfile.TemporaryDirectory() as folder:
        measured = measure(arguments.measure, Path(folder))
    show([measured])
    if arguments.json:
        tables = {"commit": commits, "resume": resumes, "measured": [measured]}
        text = {name: [asdict(row) for row in rows] for name, rows in tables.items()}
        arguments.json.write_text(json.dumps(text, indent=1))


def show(rows: list[CommitCost] | list[Resume] | list[Measured], header: bool = True) -> None:
    """Print rows, under their names if there is to be a `header`."""
    names = list(asdict(rows[0]))
    for line in ([names] if header else []) + [[*map(cell, asdict(row).values())] for row in rows]:
        print(
            "  ".join(text.rjust(max(9, len(name))) for name, text in zip(names, line, strict=True))
        )
    print(end="", flush=True)


def cell(value: float | str) -> str:
    """Return a value as a table shows it."""
    return (
        f"{value:,.3f}"
        if isinstance(value, float)
        else f"{value:,}"
        if isinstance(value, int)
        else value
    )


if __name__ == "__main__":
    main()
