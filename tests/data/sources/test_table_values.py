"""Values of tables, whichever way Arrow stores them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raymill.data.chat.kind import ChatParser
from raymill.data.sources.inputs import InputRange


def _as_json(values: list[Any]) -> pa.Array:
    return pa.ExtensionArray.from_storage(
        pa.json_(), pa.array(map(json.dumps, values), pa.string())
    )


def test_columns_that_hold_json(tmp_path: Path) -> None:
    """Columns as `datasets` stores values of mixed types, with all keys of a row and no others
    (pola-rs/polars#27219)."""
    arguments = {"a": {"limit": None}, "b": {"city": "Oslo"}}
    calls = [
        {"type": "function", "function": {"name": n, "arguments": a}} for n, a in arguments.items()
    ]
    said = [
        {"role": "user", "content": "Q"},
        {"role": "assistant", "content": "", "tool_calls": calls},
        {"role": "tool", "content": "R"},
        {"role": "assistant", "content": "A"},
    ]  # fmt: skip
    tools = [{"type": "function", "function": {"name": name}} for name in arguments]
    each = pa.ListArray.from_arrays(pa.array([0, len(said)], pa.int32()), _as_json(said))
    struct = pa.array([[{"role": m["role"], "content": m["content"]} for m in (said[0], said[-1])]])
    found = []
    for number, columns in enumerate(
        [
            {"messages": each, "tools": _as_json([tools])},
            {"messages": _as_json([said]), "tools": _as_json([json.dumps(tools)])},
            {"messages": struct, "loss_mask": _as_json([[0, 1]])},
            {"messages": pa.ExtensionArray.from_storage(pa.json_(), pa.array(["["]))},
        ]
    ):
        path = tmp_path / f"{number}.parquet"
        pq.write_table(pa.table(columns), path)
        size, changed = path.stat().st_size, path.stat().st_mtime_ns
        piece = InputRange(path.name, str(path), "parquet", "train", 0, size, size, changed, 0, 1)
        found += ChatParser(group_column=None, fraction=0.1, seed=0).read(piece, hashlib.sha256())
    for one in found[:2]:
        assert one.value.messages == tuple(said) and one.value.tools == tuple(tools)
    assert found[2].cause == "unread" and "'loss_mask'" in found[2].why
    assert found[3].cause == "unreadable" and "column 'messages'" in found[3].why
