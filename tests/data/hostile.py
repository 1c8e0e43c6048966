"""Inputs as nobody wants them: any JSON values, encodings, archives and tables."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard
from hypothesis import strategies as st

KINDS = ("text", "chat", "preference", "prompts")
END = "<|endoftext|>"

# Values.

TEXTS = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        ["", " ", "a", "\0", "\ud83d", "a\udc00b", "\ufeff", "\ufdd0", END, "\u2028", "</s>", "{", "[1",
         '{"a": "\\ud83d"}', "\x1b[2J", "x" * 3000, "🙂", "nan", "10" * 200]
    ),
)  # fmt: skip
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), TEXTS,
    st.sampled_from([10**400, -(10**4000), 1e308, float("nan"), float("inf"), -0.0, 2**63]),
)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)

CALL = {"id": "c", "function": {"name": "f", "arguments": '{"a": [1, {"b": null}]}'}}
SAID = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is a mill?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "name": "f", "content": [{"type": "text", "text": "stones"}]},
    {"role": "assistant", "content": "Stones that grind.", "weight": 1},
]
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
GOOD: dict[str, list[dict[str, Any]]] = {
    "text": [{"text": "The mill grinds wheat.", "src": "a", "meta": {"page": [1, None]}}],
    "chat": [
        {"messages": SAID, "tools": TOOLS, "weight": 0.5, "src": "a"},
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yes"}], "src": 3},
        {"instruction": "Say it", "input": "now", "output": "it", "src": "b"},
        {"prompt": "What?", "completion": "That.", "src": "c"},
    ],
    "preference": [
        {"prompt": "What?", "chosen": "That.", "rejected": "No.", "margin": 1.0, "annotator": "u", "src": 1},
        {"chosen": "\n\nHuman: Hi\n\nAssistant: Yes", "rejected": "\n\nHuman: Hi\n\nAssistant: No", "src": 2},
        {"prompt": SAID[:2], "answers": ["a", "b", "c"], "scores": [1, 2.5, 0], "annotator": 7, "src": 3},
        {"messages": SAID[:2], "answers": ["a", "b"], "ranks": [1, 2], "src": 3},
    ],
    "prompts": [
        {"prompt": "2 + 2?", "answer": 4, "verifier": "exact", "id": 1, "level": {"x": [1.5]}, "src": "a"},
        {"messages": SAID, "tools": TOOLS, "system": "", "id": "x", "src": "a"},
        {"question": "Why?", "answer": "Because.", "system": "Be kind.", "src": 5},
    ],
}  # fmt: skip


def paths(value: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return where each value within a value stands."""
    found = [here]
    if isinstance(value, dict):
        found += [path for key, item in value.items() for path in paths(item, (*here, key))]
    elif isinstance(value, list):
        found += [path for at, item in enumerate(value) for path in paths(item, (*here, at))]
    return found


def changed(value: Any, path: tuple[Any, ...], change: Callable[[Any], Any]) -> Any:
    """The value with what stands at a path changed."""
    if not path:
        return change(value)
    key, *rest = path
    if isinstance(value, list):
        items = [*value]
        items[key] = changed(items[key], tuple(rest), change)
        return items
    return {**value, key: changed(value[key], tuple(rest), change)}


@st.composite
def records(draw: st.DrawFn, kind: str) -> Any:
    """A good record, one with something put into it, or any value."""
    record: Any = draw(st.sampled_from(GOOD[kind]))
    how = draw(st.integers(0, 5))
    if how == 5:
        return draw(VALUES)
    for _ in range(min(how, 2)):
        path = draw(st.sampled_from(paths(record)))
        other = draw(VALUES)
        if draw(st.booleans()):
            key = draw(TEXTS)
            record = changed(
                record, path, lambda old, k=key, v=other: {**old, k: v} if isinstance(old, dict) else v
            )  # fmt: skip
        else:
            record = changed(record, path, lambda _, v=other: v)
    return record


# Lines.


@dataclass(frozen=True)
class Input:
    """A file by its ending and bytes; `sound`: how many good records it holds, that nothing else in it may
    cost."""

    kind: str
    ending: str
    content: bytes
    sound: int = 0


def spelled(draw: st.DrawFn, record: Any) -> bytes:
    """One line of JSON, in one of the ways that writers have."""
    text = json.dumps(record, ensure_ascii=draw(st.booleans()))
    how = draw(st.integers(0, 9))
    if how == 0:
        text = text[: draw(st.integers(0, len(text)))]
    elif how == 1:
        text = text[:-1] + "," + text[1:]  # every key twice
    elif how == 2:
        depth = draw(st.sampled_from([50, 150, 900, 990, 3000, 20000]))
        text = text[:-1] + ', "deep": ' + "[" * depth + "]" * depth + "}"
    elif how == 3:
        text = text[:-1] + ', "n": ' + "9" * draw(st.sampled_from([400, 4299, 5000])) + "}"
    return text.encode("utf-8", "surrogatepass")


@st.composite
def line_inputs(draw: st.DrawFn, kind: str) -> Input:
    """JSON lines of any encoding, ends and compression."""
    lines = [spelled(draw, draw(records(kind))) for _ in range(draw(st.integers(0, 4)))]
    lines = [line.replace(b"\n", b" ").replace(b"\r", b" ") for line in lines]
    good = json.dumps(GOOD[kind][0]).encode()
    lines.insert(draw(st.integers(0, len(lines))), good)
    end = draw(st.sampled_from([b"\n", b"\r\n", b"\n\n", b"\r"]))
    content = end.join(lines) + draw(st.sampled_from([b"", end, end + b"\0", b"\n \n"]))
    sound = int(end != b"\r")
    how = draw(st.integers(0, 9))
    if how == 0:
        encoding = draw(st.sampled_from(["utf-16", "utf-16-le", "utf-32", "utf-8-sig", "latin-1"]))
        content = content.decode("utf-8", "replace").encode(encoding, "replace")
        sound = 0 if encoding.startswith(("utf-16", "utf-32")) else sound
    elif how == 1:
        content, sound = draw(st.binary(max_size=60)), 0
    compressed = draw(st.sampled_from(["", "", ".gz", ".zst"]))
    if compressed:
        packed = (gzip if compressed == ".gz" else zstandard).compress(content)
        damage = draw(st.integers(0, 5))
        if damage == 0:
            packed, sound = packed[: draw(st.integers(0, len(packed)))], 0
        elif damage == 1:
            packed, sound = packed + draw(st.binary(max_size=20)), 0
        elif damage == 2:
            packed, sound = content, 0
        content = packed
    return Input(kind, f"jsonl{compressed}", content, sound)


@st.composite
def text_inputs(draw: st.DrawFn) -> Input:
    """Plain text of any encoding."""
    encoding = draw(st.sampled_from(["utf-8", "utf-16", "utf-16-le", "utf-32-be", "latin-1"]))
    text = "".join(draw(st.lists(TEXTS, max_size=6)))
    content = text.encode(encoding, "replace" if encoding != "utf-8" else "surrogatepass")
    if draw(st.integers(0, 3)) == 0:
        content = draw(st.binary(max_size=40))
    return Input("text", draw(st.sampled_from(["txt", "md"])), content)


# Tables.

_MESSAGE = pa.struct([("role", pa.string()), ("content", pa.string())])
_TWICE = pa.struct([pa.field("role", pa.string()), pa.field("role", pa.string())])


def _columns() -> dict[str, tuple[pa.DataType, list[Any]]]:
    """Types of columns, with values that they take."""
    names = ["it", "a", None]
    said = [[{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}], [], None]
    return {
        "text": (pa.string(), names),
        "large": (pa.large_string(), names),
        "view": (pa.string_view(), names),
        "dictionary": (pa.dictionary(pa.int8(), pa.string()), names),
        "binary": (pa.binary(), [b"\xff\xfe", b"x", None]),
        "fixed": (pa.binary(2), [b"\xff\xfe", b"ab", None]),
        "null": (pa.null(), [None] * 3),
        "bool": (pa.bool_(), [True, False, None]),
        "int": (pa.int8(), [1, -1, None]),
        "unsigned": (pa.uint64(), [2**64 - 1, 0, None]),
        "half": (pa.float16(), [1.5, float("nan"), None]),
        "double": (pa.float64(), [1e308, float("-inf"), None]),
        "decimal": (pa.decimal128(38, 2), [Decimal("1.25"), Decimal(-(10**35)), None]),
        "date": (pa.date32(), [date(1, 1, 1), date(9999, 12, 31), None]),
        "far_date": (pa.date32(), [10**8, -(10**8), None]),
        "time": (pa.time64("ns"), [time(1), 1001, None]),
        "timestamp": (pa.timestamp("us", "Europe/Berlin"), [datetime(2026, 1, 1, tzinfo=UTC), 2**62, None]),
        "odd_zone": (pa.timestamp("us", "No/Where"), [1, 2, None]),
        "nanoseconds": (pa.timestamp("ns"), [2**62 + 1, 1, None]),
        "duration": (pa.duration("us"), [timedelta(days=1), 2**62, None]),
        "list": (pa.list_(pa.string()), [["a", None], [], None]),
        "fixed_list": (pa.list_(pa.int32(), 2), [[1, 2], [3, 4], None]),
        "messages": (pa.list_(_MESSAGE), said),
        "map": (pa.map_(pa.string(), pa.int32()), [[("a", 1), ("a", 2)], [], None]),
        "struct": (pa.struct([("a", pa.struct([("b", pa.int8())]))]), [{"a": {"b": 1}}, {"a": None}, None]),
        "uuid": (pa.uuid(), [b"0123456789abcdef"] * 2 + [None]),
        "json": (pa.json_(), ['{"a": 1}', "[", None]),
    }  # fmt: skip


_COLUMNS = _columns()
_NAMES = (
    "text", "src", "messages", "prompt", "completion", "chosen", "rejected", "answers", "scores", "question",
    "answer", "system", "tools", "annotator", "id", "a.b", "", "\0", "ü", "list.element", "weight",
)  # fmt: skip


def invalid_text() -> pa.Array:
    """A column of text whose bytes aren't UTF-8, as writers that don't check leave them."""
    offsets = pa.py_buffer(b"".join(n.to_bytes(4, "little") for n in (0, 1, 4, 5)))
    return pa.StringArray.from_buffers(3, offsets, pa.py_buffer(b"a\xed\xa0\xbdb"))


def twice_named() -> pa.Array:
    """A column of objects that have two fields of one name."""
    half = pa.array(["a", "b", None])
    return pa.StructArray.from_arrays([half, half], fields=[*_TWICE])


@st.composite
def table_inputs(draw: st.DrawFn, kind: str) -> Input:
    """Parquet or Arrow with columns of any types and names, also two of one name, none, and no rows."""
    arrays, names = [], []
    for name, value in draw(st.sampled_from(GOOD[kind])).items():
        if draw(st.integers(0, 4)):
            try:
                arrays.append(pa.array([value] * 3))
            except (pa.ArrowException, OverflowError):
                continue
            names.append(name)
    for _ in range(draw(st.integers(0, 3))):
        how = draw(st.sampled_from([*_COLUMNS, "invalid", "twice", "any"]))
        if how == "invalid":
            column = invalid_text()
        elif how == "twice":
            column = twice_named()
        elif how == "any":
            try:
                column = pa.array([draw(VALUES) for _ in range(3)])
            except (pa.ArrowException, OverflowError, ValueError, TypeError):
                continue
        else:
            stored, values = _COLUMNS[how]
            if isinstance(stored, pa.BaseExtensionType):
                storage = pa.array(values, stored.storage_type)
                column = pa.ExtensionArray.from_storage(stored, storage)
            else:
                column = pa.array(values, stored)
        name = draw(st.sampled_from([*_NAMES, *names]))
        at = draw(st.integers(0, len(arrays)))
        if name in names and draw(st.booleans()):  # in its place
            arrays[names.index(name)] = column
        else:
            arrays.insert(at, column)
            names.insert(at, name)
    table = pa.Table.from_arrays(arrays, names=names)
    table = table.slice(0, draw(st.sampled_from([3, 3, 3, 2, 0])))
    sink = io.BytesIO()
    arrow = draw(st.integers(0, 3)) == 0
    try:
        if arrow:
            new = pa.ipc.new_file if draw(st.integers(0, 5)) == 0 else pa.ipc.new_stream
            with new(sink, table.schema) as writer:
                writer.write_table(table)
        elif draw(st.integers(0, 5)) == 0:
            pq.ParquetWriter(sink, table.schema).close()  # without row groups
        else:
            pq.write_table(
                table, sink, row_group_size=draw(st.integers(1, 3)),
                compression=draw(st.sampled_from(["none", "snappy", "zstd"])),
                write_page_checksum=draw(st.booleans()),
            )  # fmt: skip
    except (pa.ArrowException, ValueError):
        return Input(kind, "parquet", b"")
    content = bytearray(sink.getvalue())
    damage = draw(st.integers(0, 9))
    if damage == 0:
        content = content[: draw(st.integers(0, len(content)))]
    elif damage == 1 and content:
        content[draw(st.integers(0, len(content) - 1))] ^= 1 << draw(st.integers(0, 7))
    return Input(kind, "arrow" if arrow else "parquet", bytes(content))


INPUTS = st.sampled_from(KINDS).flatmap(
    lambda kind: st.one_of(
        line_inputs(kind), line_inputs(kind), table_inputs(kind), table_inputs(kind),
        *([text_inputs()] if kind == "text" else []),
    )
)  # fmt: skip
