"""A whole preparation of preferences on Ray: once, found again, and the same whoever does it."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from data.chat_factory import write_jsonl
from data.preference.preference_factory import (
    job,
    pairs,
    prepared_here,
    stored,
    write_tokenizer,
)
from data.preparing import describe, find_prepared, prepare
from raymill.data.messages.prepare import Preparation
from raymill.data.messages.tokenizer import chat_tokenizer
from raymill.data.preference.kind import PreferenceKind
from raymill.errors import DataError


@pytest.mark.usefixtures("ray_session")
def test_once_and_the_same_whoever_does_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = chat_tokenizer(write_tokenizer(tmp_path / "parent"), "auto", ())
    path = write_jsonl(tmp_path / "pairs.jsonl", [*pairs(200), {**pairs(1)[0], "tie": True}])
    made = job(tmp_path / "ray", path, shard_input_bytes=4000)
    assert find_prepared(made, tokenizer) is None
    assert describe(made, tokenizer).endswith("(not finished)")
    prepared = prepare(made, tokenizer, tasks=2)
    said = capsys.readouterr().out
    assert "200 prompts" not in said and "1, from which nothing is learned" in said
    assert "the better answer is longer in 0% of the pairs and shorter in 100%" in said
    assert "no pair was judged by two named annotators" in said
    assert (
        prepared.folder
        == Preparation(PreferenceKind(), made.data, tokenizer, 7, tmp_path / "ray").folder
    )
    assert len(prepared.manifest.splits["train"].shards) > 2
    assert len(stored(prepared)) == 200

    here, _ = prepared_here(job(tmp_path / "here", path, shard_input_bytes=4000), tokenizer)
    assert here.manifest == prepared.manifest

    before = {file: file.stat().st_mtime_ns for file in prepared.folder.rglob("*.parquet")}
    again = prepare(made, tokenizer)
    found = find_prepared(made, tokenizer)
    assert found is not None
    assert again.manifest == found.manifest == prepared.manifest
    assert before == {file: file.stat().st_mtime_ns for file in prepared.folder.rglob("*.parquet")}
    assert describe(made, tokenizer).endswith("(finished)")

    # What shapes the rows names another folder; what doesn't, the same.
    other = Preparation(
        PreferenceKind(), job(tmp_path, path, sequence_length=31).data, tokenizer, 7, tmp_path
    ).folder
    assert other.name != prepared.folder.name
    same = job(tmp_path, path, shard_input_bytes=4000, max_bad_fraction=0.5).data
    assert (
        Preparation(PreferenceKind(), same, tokenizer, 7, tmp_path).folder.name
        == prepared.folder.name
    )

    out = io.StringIO()
    PreferenceKind().preview(prepared, 2, Console(file=out, width=200))
    text = out.getvalue()
    assert text.count("learned, weight 1") == 2
    assert text.count("prompt\n<|im_start|>user\nQuestion ") == 2
    assert text.count("chosen\n⟦Good ") == 2 and text.count("rejected\n⟦Not so good ") == 2
    assert text.count("<|im_end|>⟧") == 4

    write_jsonl(path, pairs(201))
    with pytest.raises(DataError, match="was prepared from other input"):
        find_prepared(made, tokenizer)
