"""Small prepared folders of every kind, from records that hold nearly all that a record may hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data.chat_factory import write_jsonl
from data.prepared_factory import _write_tokenizer
from data.preparing import prepare
from raymill.config import load
from raymill.data.messages.tokenizer import chat_tokenizer
from raymill.data.store.manifest import PreparedData
from raymill.schema.jobs import MessagesPrepareJob

_TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]


def _turn(role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def chats() -> list[Any]:
    """Conversations that are long, weighted, thoughtful, call tools, repeat, or can't be used."""
    records: list[Any] = []
    for n in range(60):
        messages = [
            _turn("user", f"Question {n}?"),
            _turn("assistant", f"Answer {n}. " * (1 + n % 4)),
        ]
        if n % 5 == 0:
            messages = [_turn("system", "Be brief."), *messages]
        if n % 7 == 0:
            messages += [_turn("user", "More?"), _turn("assistant", "No.", weight=n % 2)]
        records.append({"messages": messages, "topic": f"t{n % 9}", "colour": "red"})
    for n in range(0, 60, 11):
        records[n]["weight"] = 0.5
        records[n]["messages"][-1]["reasoning_content"] = f"I recall {n}."
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    records.append({
        "messages": [_turn("user", "Call."), _turn("assistant", "", tool_calls=[call]),
                     _turn("tool", "one"), _turn("assistant", "It is one.")],
        "tools": _TOOLS, "topic": "t1",
    })  # fmt: skip
    records.append({"topic": "t2", "messages": [
        _turn(("user", "assistant")[n % 2], f"turn {n} " + "x" * 20) for n in range(14)
    ]})  # fmt: skip
    records += [records[3], {"text": "no conversation"}, {"messages": [_turn("user", "Hi")]}, 5]
    return records


def preferences() -> list[Any]:
    """Pairs, rankings, ties, several annotators, contradictions, and what can't be used."""
    records: list[Any] = [
        {"prompt": f"Question {n % 40}?", "chosen": f"Good {n}.", "rejected": "Bad. " * (1 + n % 3),
         "margin": n % 4 / 2, "annotator": f"a{n % 3}", "topic": f"t{n % 9}", "colour": "red"}
        for n in range(60)
    ]  # fmt: skip
    for n in range(8):
        same = {"prompt": f"Judged {n}?", "topic": f"t{n}"}
        pair = {"chosen": "One.", "rejected": "Two."}
        records += [
            {**same, **pair, "annotator": "x"},
            {**same, **pair, "annotator": "y", "tie": n == 1},
        ]
        records.append({**same, "chosen": "Two.", "rejected": "One.", "weight": 2.0})
        records.append({**same, "answers": ["A.", "B.", "C."], "ranks": [1, 2, 2 + n % 2]})
    records += [
        {"prompt": "Same?", "chosen": "S.", "rejected": "S.", "topic": "t1"}, {"prompt": "x"},
        {"prompt": "Long? " * 60, "chosen": "A.", "rejected": "B.", "topic": "t1"},
    ]  # fmt: skip
    return records


def prompts() -> list[Any]:
    """Prompts with answers, verifiers, tools, extras, and what can't be used."""
    records: list[Any] = [
        {
            "question": f"Question {n}?",
            "answer": n * 1.0,
            "level": n % 3,
            "topic": f"t{n % 9}",
            "id": n,
        }
        for n in range(60)
    ]
    for n in range(0, 60, 6):
        records[n]["verifier"] = ("exact_match", "none")[n % 4 // 2]
    records += [
        {"messages": [_turn("system", "Be brief."), _turn("user", "Ask."), _turn("assistant", "Say.")],
         "tools": _TOOLS, "topic": "t1"},
        {"prompt": [_turn("user", "Listed."), _turn("assistant", "Go on."), _turn("user", "Yes?")],
         "topic": "t2", "extra_info": {"a": [1, None]}},
        records[4], {"prompt": ""}, {"answer": 3}, {"prompt": "Long " * 60, "topic": "t1"},
    ]  # fmt: skip
    return records


RECORDS = {"chat": chats, "preference": preferences, "prompts": prompts}
OVERRIDES = {
    "chat": ["data.questions=6", "data.thinking=mask", "data.pack_window=20"],
    "preference": ["data.thinking=drop"],
    "prompts": ["data.verifier=numeric_match"],
}


def prepared_kind(kind: str, root: Path, *overrides: str) -> PreparedData:
    """Prepare the records of a kind: a JSON Lines file and a table, in several units.

    Needs the fixture `no_ray`.
    """
    _write_tokenizer(root / "parent", 257)
    made: MessagesPrepareJob = load(
        "prepare",
        [f"kind={kind}", f"parent={root / 'parent'}", f"storage.root={root}",
         f"data.path={root / 'input'}", "data.sequence_length=180", "data.row_group_rows=4",
         "data.validation.fraction=0.3", "data.max_bad_fraction=0.2", "data.shard_input_bytes=5000",
         *OVERRIDES[kind], *overrides],
    )  # fmt: skip
    records = RECORDS[kind]()
    write_jsonl(root / "input" / "some.jsonl", records)
    table = [json.loads(json.dumps(one)) for one in records[:40]]
    pq.write_table(pa.Table.from_pylist(table), root / "input" / "table.parquet")
    return prepare(made, chat_tokenizer(root / "parent", "auto", ()))
