"""The embedded questions: the embedded conversations', each on its conversation's side."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from data.prepared_factory import _write_tokenizer
from data.preparing import describe, find_prepared, prepare
from data.prompts.prompts_factory import job, stored_rows
from raymill.data.chat.kind import ChatParser
from raymill.data.demo import stdlib_conversations as stdlib
from raymill.data.messages.conversation import Conversation
from raymill.data.messages.records import ParsedRecord
from raymill.data.messages.tokenizer import chat_tokenizer
from raymill.data.prompts.kind import PromptParser
from raymill.data.prompts.metadata import read_metadata
from raymill.data.sources.format import Bad
from raymill.data.sources.inputs import BY_RECORD, EMBEDDED, InputRange

FRACTION, SEED = 0.04, 1234


def test_every_conversation_asks_its_last_question() -> None:
    piece = InputRange("stdlib_chat", "", EMBEDDED, BY_RECORD, 0, 1, 1, 0)
    digests = hashlib.sha256(), hashlib.sha256()
    chats = list(
        ChatParser(group_column=None, fraction=FRACTION, seed=SEED).read(piece, digests[0])
    )
    prompts = list(
        PromptParser(group_column=None, fraction=FRACTION, seed=SEED).read(piece, digests[1])
    )
    assert digests[0].digest() == digests[1].digest()
    assert len(chats) == len(prompts) > 8_000
    for chat, placed in zip(chats, prompts, strict=True):
        assert not isinstance(chat, Bad) and isinstance(placed, ParsedRecord)
        assert isinstance(chat.value, Conversation)
        *asked, answer = chat.value.messages
        assert placed.value.messages == tuple(asked)
        assert placed.value.answer == answer["content"]
        assert placed.split == chat.split
        assert placed.value.verifier == "answer_f1"
        assert placed.where == chat.where
    kinds = {placed.value.extra["kind"] for placed in prompts if isinstance(placed, ParsedRecord)}
    assert {"what", "unknown", "turns"} <= kinds
    sides: dict[str, set[str]] = {}
    for placed in prompts:
        assert isinstance(placed, ParsedRecord)
        sides.setdefault(placed.value.extra["about"], set()).add(placed.split)
    assert all(len(side) == 1 for side in sides.values()), "one function, one side"


@pytest.mark.usefixtures("no_ray")
def test_they_are_prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    some = stdlib.conversations(FRACTION, SEED)[::40]
    monkeypatch.setattr(stdlib, "conversations", lambda fraction, seed: list(some))
    _write_tokenizer(tmp_path / "parent", 257)
    tokenizer = chat_tokenizer(tmp_path / "parent", "auto", ())
    made = job(
        tmp_path, tmp_path / "parent", "data=stdlib_prompts", "data.sequence_length=511",
        f"data.validation.fraction={FRACTION}", f"run.seed={SEED}",
    )  # fmt: skip
    assert "about this Python's functions" in describe(made, tokenizer)
    prepared = prepare(made, tokenizer)
    facts = prepared.manifest.prompts
    assert facts is not None
    metadata = read_metadata(prepared.folder / facts.book)
    expected = {
        json.dumps(one.record["messages"][:-1]): (
            one.record["messages"][-1]["content"],
            "validation" if one.held_out else "train",
        )
        for one in some
    }
    found = {json.dumps(list(one.messages)): (one.answer, one.split) for one in metadata.values()}
    assert found == expected and len(metadata) == len(some) > 300
    assert {split for _, split in expected.values()} == {"train", "validation"}
    splits = [split for split, _ in stored_rows(prepared)]
    assert facts.prompts == splits.count("train") == len(some) - splits.count("validation")
    assert facts.statistics["train"]["answered"] == {"answer_f1": facts.prompts}
    assert (facts.statistics["duplicates"], facts.statistics["leaked"]) == (0, 0)
    assert prepared.manifest.config["data"]["python"]
    again = find_prepared(made, tokenizer)
    assert again is not None and again.manifest == prepared.manifest

    other = job(tmp_path, tmp_path / "parent", "data=stdlib_prompts", "data.verifier=contains",
                "data.sequence_length=511")  # fmt: skip
    prepared = prepare(other, tokenizer)
    assert prepared.folder != again.folder
    assert {
        prompt.verifier for prompt in read_metadata(prepared.folder / "prompts.jsonl").values()
    } == {"contains"}
