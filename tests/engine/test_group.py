"""Failures on one rank: the others learn of it in the same call, the failed rank is named, and no rank keeps
waiting."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from data.prepared_factory import write_prepared
from engine.ranks import run_ranks
from raymill.engine.failure_note import (
    FailureNote,
    OtherRankError,
    exit_on_error,
    read_notes,
    write_note,
)
from raymill.errors import ConfigError, DataError, StorageError
from servers import free_port

if TYPE_CHECKING:
    import torch

    from raymill.engine.group import WorkerGroup

LIMIT_S = 20  # of a rank that waits for one that has left


class Gathering:
    """An objective that communicates in each forward pass, as under ZeRO-3."""

    def __init__(self, group: WorkerGroup) -> None:
        self.group = group
        self.passes = 0

    def weight(self, rows: Any) -> float:
        return float(len(rows))

    def losses(self, model: Any, rows: Any, device: torch.device) -> torch.Tensor:
        import torch

        self.passes += 1
        self.group.sum(1.0)
        return torch.zeros(len(rows))


def fails(error: Exception) -> None:
    raise error


def cases(group: WorkerGroup, folder: Path) -> dict[str, Callable[[], object]]:
    """Return work for all ranks; each raises on both, and leaves them in step."""
    import torch

    from raymill.data.store.validation import ValidationSet
    from raymill.engine.evaluation import evaluate_set
    from raymill.engine.group import exists_on_all_ranks, on_all_ranks, on_rank_zero

    second = group.rank == 1
    rows = ValidationSet(folder / f"data-{group.rank}", rank=group.rank, world_size=2, batch_rows=1)
    objective: Any = Gathering(group)

    def evaluate() -> None:
        try:
            evaluate_set(torch.nn.Linear(1, 1), objective, rows, group)
        finally:
            assert objective.passes == 2, "the row groups before the damaged one were evaluated"

    def on_second(error: Exception) -> Callable[[], object]:
        return partial(on_all_ranks, group, partial(fails, error) if second else int)

    return {
        "data": on_second(DataError("shard 3 is missing")),
        "bug": on_second(ValueError("no such\nmill")),
        "storage": on_second(StorageError("the store is away")),
        "configuration": partial(on_rank_zero, group, partial(fails, ConfigError(["no", "nor"]))),
        "first": partial(on_rank_zero, group, partial(fails, ZeroDivisionError("by nothing"))),
        "evaluation": evaluate,
        "seen": partial(exists_on_all_ranks, group, second, "a file"),
    }


def work(rank: int, port: int, folder: Path) -> None:
    import torch
    import torch.distributed as dist

    from raymill.engine.group import WorkerGroup

    os.environ.update(
        RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    dist.init_process_group("gloo", timeout=timedelta(seconds=LIMIT_S))
    group = WorkerGroup(torch.device("cpu"))
    found = {}
    for name, do in cases(group, folder).items():
        try:
            do()
        except Exception as error:  # noqa: BLE001
            found[name] = [type(error).__name__, str(error), getattr(error, "on_every_rank", None)]
            write_note(folder / name, rank, error)
        assert group.gather(name) == [name, name], "in step"
    (folder / f"rank-{rank}.json").write_text(json.dumps(found))
    dist.barrier()
    os._exit(0)  # Gloo's threads may still be ending


def test_what_two_ranks_make_of_what_one_meets(tmp_path: Path) -> None:
    for rank in range(2):
        write_prepared(tmp_path / f"data-{rank}", row_group_rows=2, validation_rows=(8,))
    shard = tmp_path / "data-1" / "validation" / "00000.parquet"
    flip_a_byte(shard)
    names = ["data", "bug", "storage", "configuration", "first", "evaluation", "seen"]
    for name in names:
        (tmp_path / name).mkdir()
    run_ranks(work, (free_port(), tmp_path), 2)
    first, second = (json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in range(2))
    assert list(first) == list(second) == names
    both = ["DataError", "shard 3 is missing", True]
    assert first["data"] == second["data"] == both
    assert first["bug"] == ["OtherRankError", "rank 1 failed: ValueError: no such", None]
    assert second["bug"] == ["ValueError", "no such\nmill", None]
    assert first["storage"][:2] == [
        "OtherRankError",
        "rank 1 failed: StorageError: the store is away",
    ]
    assert second["storage"] == ["StorageError", "the store is away", False]
    assert first["configuration"] == second["configuration"]
    assert first["configuration"][::2] == ["ConfigError", True]
    assert first["first"] == ["ZeroDivisionError", "by nothing", None]
    assert second["first"][:2] == ["OtherRankError", "rank 0 failed: ZeroDivisionError: by nothing"]
    assert first["evaluation"] == second["evaluation"]
    assert first["evaluation"][::2] == ["DataError", True] and str(shard) in first["evaluation"][1]
    assert first["seen"] == second["seen"] and "1 of 2 workers" in first["seen"][1]
    # Each rank notes who failed, also where it has only heard of it.
    assert {rank: note.cause for rank, note in read_notes(tmp_path / "bug", 2).items()} == {
        1: "ValueError: no such"
    }


def flip_a_byte(shard: Path) -> None:
    """Flip a byte in the last row group of a shard, the second that rank 1 reads."""
    import pyarrow.parquet as pq

    column = pq.ParquetFile(shard).metadata.row_group(3).column(0)
    content = bytearray(shard.read_bytes())
    content[column.data_page_offset + column.total_compressed_size // 2] ^= 1
    shard.write_bytes(content)


def test_an_exception_ends_its_process_at_once(tmp_path: Path) -> None:
    """Leave a note, and end other threads too."""
    child = os.fork()
    if child == 0:
        threading.Thread(target=time.sleep, args=(600,)).start()
        with exit_on_error(tmp_path, 3):
            raise RuntimeError("a step failed") from KeyError("mill")
    began = time.monotonic()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    assert time.monotonic() - began < 60
    assert read_notes(tmp_path, 4) == {
        3: FailureNote(
            ("KeyError", "LookupError", "Exception", "BaseException", "object"),
            "'mill'", "RuntimeError: a step failed", False, socket.gethostname(),
        )
    }  # fmt: skip


def test_where_no_note_can_be_written_the_error_is_passed_on(tmp_path: Path) -> None:
    with pytest.raises(DataError), exit_on_error(tmp_path / "nowhere", 0):
        raise DataError("shard 3 is missing")


def test_a_collective_that_failed_is_told_from_what_it_was_given(tmp_path: Path) -> None:
    """The first error is a lost connection, the second a wrong argument of this rank."""
    code = compile(
        "def f(error): raise error", "/lib/torch/distributed/distributed_c10d.py", "exec"
    )
    scope: dict[str, Any] = {}
    exec(code, scope)
    for rank, error in enumerate((RuntimeError("a timeout"), TypeError("no tensor"))):
        with pytest.raises(type(error)) as caught:
            scope["f"](error)
        write_note(tmp_path, rank, caught.value)
    assert [note.waited for note in read_notes(tmp_path, 2).values()] == [True, False]
    write_note(tmp_path, 0, OtherRankError(1, FailureNote(("X",), "x", "X: x", False)))
    assert read_notes(tmp_path, 2)[1].cause == "X: x"
