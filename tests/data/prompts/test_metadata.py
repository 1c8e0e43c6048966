"""Prompt metadata: what is written is read back, and other files are refused."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from raymill.data.prompts.metadata import (
    PromptRecord,
    iterate_metadata,
    merge_metadata,
    read_metadata,
    write_metadata,
)
from raymill.errors import DataError

ASKED = ({"role": "user", "content": "a\u2028b\r\n\x85c “é” 漢"},)
CALLED = (
    {"role": "user", "content": "1 + 2?"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}],
    },
    {"role": "tool", "content": "3"},
)
TOOLS = ({"type": "function", "function": {"name": "add"}},)
PROMPTS = [
    PromptRecord(0, "train", ASKED, None, None, {}),
    PromptRecord(1 << 32, "validation", ASKED, "x\u2029y", "exact", {"n": 1, "z": [None, 0.5]}),
    PromptRecord((1 << 32) | 1, "train", CALLED, "3", "number", {}, TOOLS, "p-3"),
]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "metadata.jsonl"
    sha256 = write_metadata(path, PROMPTS)
    assert sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert list(iterate_metadata(path)) == PROMPTS
    assert repr(list(iterate_metadata(path))) == repr(PROMPTS), "keys keep their order"
    assert read_metadata(path) == {prompt.record: prompt for prompt in PROMPTS}
    lines = [json.loads(line) for line in path.read_bytes().split(b"\n") if line]
    assert [line["record"] for line in lines] == [0, 1 << 32, (1 << 32) | 1]
    assert ["tools" in line for line in lines] == [False, False, True]
    with pytest.raises(AttributeError):
        PROMPTS[0].answer = "y"  # type: ignore[misc]


def test_files_are_merged_in_their_order(tmp_path: Path) -> None:
    parts = []
    for number, prompts in enumerate(([PROMPTS[1]], [], [PROMPTS[0], PROMPTS[2]])):
        path = tmp_path / f"{number}.jsonl"
        parts.append((path, write_metadata(path, prompts)))
    whole = tmp_path / "whole.jsonl"
    sha256 = merge_metadata(parts, whole)
    assert sha256 == hashlib.sha256(whole.read_bytes()).hexdigest()
    assert list(iterate_metadata(whole)) == [PROMPTS[1], PROMPTS[0], PROMPTS[2]]

    parts[2][0].write_text(parts[2][0].read_text().replace("3", "4"))
    with pytest.raises(DataError, match=r"2\.jsonl: expected sha256 .* delete the folder"):
        merge_metadata(parts, tmp_path / "again.jsonl")
    parts[2][0].unlink()
    with pytest.raises(DataError, match=r"2\.jsonl can't be read \(No such file"):
        merge_metadata(parts, tmp_path / "again.jsonl")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.jsonl", "1.jsonl", "whole.jsonl"]


@pytest.mark.parametrize(
    "line", ["{", "[]", '"x"', "{}", '{"record": 1, "messages": []}', '{"messages": 3}', ""]
)
def test_other_files_are_refused(tmp_path: Path, line: str) -> None:
    path = tmp_path / "metadata.jsonl"
    write_metadata(path, PROMPTS[:1])
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(DataError, match=r"metadata\.jsonl:2 can't be read as a prompt"):
        read_metadata(path)


def test_a_number_stands_for_one_prompt(tmp_path: Path) -> None:
    path = tmp_path / "metadata.jsonl"
    write_metadata(path, [PROMPTS[0], PROMPTS[1], PROMPTS[0]])
    with pytest.raises(DataError, match="lists the prompt 0 twice"):
        read_metadata(path)
