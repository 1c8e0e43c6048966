"""Whole preparations of conversations: what is written, what is refused and where it is said to be."""

from __future__ import annotations

import io
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from tokenizers import Tokenizer

from data.chat_factory import write_jsonl, write_parent
from data.preparing import find_prepared, prepare
from raymill.config import load
from raymill.data.chat.kind import ChatKind
from raymill.data.chat.questions import read_questions
from raymill.data.messages.tokenizer import ChatTokenizer, chat_tokenizer
from raymill.data.store.manifest import PreparedData, load_prepared
from raymill.data.store.shards import row_groups
from raymill.errors import ConfigError, DataError
from raymill.schema.jobs import ChatPrepareJob

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_parent(tmp_path_factory.mktemp("parent"))


def job(root: Path, parent: Path, *overrides: str) -> ChatPrepareJob:
    made: ChatPrepareJob = load(
        "prepare",
        ["kind=chat", f"parent={parent}", f"storage.root={root}", "data.sequence_length=200",
         "data.row_group_rows=4", "data.validation.fraction=0.2", *overrides],
    )  # fmt: skip
    return made


def pairs(count: int) -> list[dict[str, Any]]:
    return [
        {"messages": [{"role": "user", "content": f"Question {n}?"},
                      {"role": "assistant", "content": f"Answer {n}."}]}
        for n in range(count)
    ]  # fmt: skip


def stored(prepared: PreparedData) -> Counter[tuple[str, str, str]]:
    """(split, text, learned text) of every conversation in the shards."""
    manifest = prepared.manifest
    tokenizer = Tokenizer.from_file(str(prepared.tokenizer_folder / "tokenizer.json"))
    found: Counter[tuple[str, str, str]] = Counter()
    for split, content in manifest.splits.items():
        for shard in content.shards:
            path = prepared.shard_path(shard)
            for rows in row_groups(path, shard, manifest.dtype, manifest.kind):
                assert rows.weight is not None and rows.segment is not None
                for row in range(len(rows)):
                    length = int(rows.length[row])
                    segment = rows.segment[row, :length]
                    for number in range(int(segment.max()) + 1):
                        mine = np.flatnonzero(segment == number)
                        ids = rows.tokens[row, mine]
                        learned = ids[rows.weight[row, mine] > 0]
                        found[
                            split,
                            tokenizer.decode(ids.tolist(), skip_special_tokens=False),
                            tokenizer.decode(learned.tolist(), skip_special_tokens=False),
                        ] += 1
    return found


def test_every_format_and_file_gives_the_same_rows(
    parent: Path, tokenizer: ChatTokenizer, tmp_path: Path
) -> None:
    plain = pairs(60)
    asked = [(r["messages"][0]["content"], r["messages"][1]["content"]) for r in plain]
    shapes = {
        "messages": plain,
        "sharegpt": [
            {"conversations": [{"from": "human", "value": q}, {"from": "gpt", "value": a}]}
            for q, a in asked
        ],
        "alpaca": [{"instruction": q, "input": "", "output": a} for q, a in asked],
        "prompt_completion": [{"prompt": q, "completion": a} for q, a in asked],
    }
    results = []
    for name, records in shapes.items():
        path = write_jsonl(tmp_path / name / "chats.jsonl", records)
        results.append(
            stored(prepare(job(tmp_path / name, parent, f"data.path={path}"), tokenizer))
        )
    (tmp_path / "table").mkdir()
    pq.write_table(pa.Table.from_pylist(plain), tmp_path / "table" / "chats.parquet")
    from datasets import Dataset

    Dataset.from_list(plain).save_to_disk(tmp_path / "disk")
    for path in (tmp_path / "table", tmp_path / "disk"):
        results.append(
            stored(
                prepare(job(tmp_path / f"{path.name}-out", parent, f"data.path={path}"), tokenizer)
            )
        )
    assert all(result == results[0] for result in results)
    assert results[0].total() == 60
    texts = {text: learned for _, text, learned in results[0]}
    assert texts[
        "<|im_start|>user\nQuestion 7?<|im_end|>\n<|im_start|>assistant\nAnswer 7.<|im_end|>\n"
    ] == "Answer 7.<|im_end|>"  # fmt: skip
    assert {split for split, _, _ in results[0]} == {"train", "validation"}


def test_bad_records_are_counted_named_and_kept(
    parent: Path, tokenizer: ChatTokenizer, tmp_path: Path
) -> None:
    records: list[Any] = pairs(40)
    turn = {"role": "user", "content": "Hi"}
    answer = {"role": "assistant", "content": "Yo"}
    records[3] = {"messages": [turn, turn, answer]}
    records[5] = {"messages": [turn, {"role": "assistant", "content": "  "}]}
    records[7] = {"messages": [turn]}
    records[9] = {"messages": [turn, {"role": "narrator", "content": "x"}]}
    records[11] = {"messages": [turn, {"role": "assistant", "content": 5}]}
    records[13] = {"text": "not a conversation"}
    records[15] = {"messages": [turn, {"role": "assistant", "content": "long " * 100}]}
    path = write_jsonl(tmp_path / "chats.jsonl", records)
    path.write_text(path.read_text() + "{broken\n")
    with pytest.raises(DataError) as refused:
        prepare(job(tmp_path, parent, f"data.path={path}"), tokenizer)
    message = str(refused.value)
    for cause in ("1 order", "1 empty", "1 no_assistant", "1 role", "1 type", "1 format",
                  "1 over_long", "1 unreadable"):  # fmt: skip
        assert cause in message, message
    assert "chats.jsonl:4: message 2: user after the user" in message
    assert "chats.jsonl:16: " in message and "more than the 201 of a row" in message
    assert "8 of 41 records" in message
    folders = list((tmp_path / "data").iterdir())
    assert not any((folder / "manifest.json").exists() for folder in folders)

    prepared = prepare(
        job(tmp_path, parent, f"data.path={path}", "data.max_bad_fraction=0.5"), tokenizer
    )
    assert prepared.manifest.bad_inputs.count == 8
    kept = [json.loads(line) for line in (prepared.folder / "quarantine.jsonl").open()]
    assert {entry["cause"] for entry in kept} >= {"order", "over_long", "unreadable"}
    assert kept[0]["record"] == records[3]
    assert stored(prepared).total() == 33


def test_what_is_too_long_loses_its_last_turns(
    parent: Path, tokenizer: ChatTokenizer, tmp_path: Path
) -> None:
    long = {"messages": [
        {"role": ("user", "assistant")[i % 2], "content": f"turn {i} " + "x" * 20}
        for i in range(12)
    ]}  # fmt: skip
    path = write_jsonl(tmp_path / "chats.jsonl", [*pairs(30), long])
    prepared = prepare(job(tmp_path, parent, f"data.path={path}"), tokenizer)
    [text] = [text for _, text, _ in stored(prepared) if "turn 0" in text]
    assert text.endswith("<|im_end|>\n")
    assert "turn 3" in text and "turn 5" not in text
    statistics = prepared.manifest.chat.statistics  # type: ignore[union-attr]
    assert statistics["train"]["cut"] + statistics["validation"]["cut"] == 1
    with pytest.raises(DataError, match="over_long"):
        prepare(job(tmp_path, parent, f"data.path={path}", "data.overlong=refuse"), tokenizer)


@pytest.mark.parametrize(("train_on", "first"), [("all", "1.0<|im_end|>"), ("last", "")])
def test_what_is_cut_ends_with_a_turn_that_is_learned(
    parent: Path, tokenizer: ChatTokenizer, tmp_path: Path, train_on: str, first: str
) -> None:
    """Turns of weight 0, of which a beginning may be full, aren't the end (karpathy/nanochat#486)."""
    records = pairs(30)
    for number, weights in enumerate(((0, 0, 0, 1, 1), (1, 0, 0, 1, 1))):
        messages: list[dict[str, Any]] = []
        for turn, weight in enumerate(weights):
            words = f"{number}.{turn}" + "x" * (150 if turn == 4 else 0)
            messages += [
                {"role": "user", "content": "Go on."},
                {"role": "assistant", "content": words, "weight": weight},
            ]
        records.append({"messages": messages})
    path = write_jsonl(tmp_path / "chats.jsonl", records)
    made = job(tmp_path, parent, f"data.path={path}", f"data.train_on={train_on}")
    learned = [words for _, text, words in stored(prepare(made, tokenizer)) if "Go on" in text]
    assert sorted(learned) == ["0.3<|im_end|>", f"{first}1.3<|im_end|>"]


def test_parallelism_and_restarts_do_not_matter(
    parent: Path, tokenizer: ChatTokenizer, tmp_path: Path
) -> None:
    path = write_jsonl(tmp_path / "chats.jsonl", pairs(400))
    digests = set()
    for tasks in (1, 3):
        made = job(
            tmp_path / str(tasks), parent, f"data.path={path}", "data.shard_input_bytes=8000"
        )
        prepared = prepare(made, tokenizer, tasks=tasks)
        assert len(prepared.manifest.splits["train"].shards) > 3
        digests.add(prepared.manifest.digest)
        found = find_prepared(made, tokenizer)
        assert found is not None and found.manifest == prepared.manifest
    assert len(digests) == 1
    # A record added later is other input, and prepared data isn't overwritten.
    write_jsonl(path, pairs(401))
    with pytest.raises(DataError, match="was prepared from other input"):
        find_prepared(made, tokenizer)


def test_held_out_questions_and_sides(
    parent: Path, tokenizer: ChatTokenizer, tmp_path: Path
) -> None:
    records = pairs(200)
    for record in records:  # every question is asked twice, with another answer
        record["weight"] = 2.0
    twice = [json.loads(json.dumps(record)) for record in records]
    for record in twice:
        record["messages"][1]["content"] += " Again."
    path = write_jsonl(tmp_path / "chats.jsonl", [*records, *twice])
    prepared = prepare(job(tmp_path, parent, f"data.path={path}", "data.questions=10"), tokenizer)
    sides: dict[str, set[str]] = {}
    for split, text, _ in stored(prepared):
        sides.setdefault(text.split("?")[0], set()).add(split)
    assert all(len(side) == 1 for side in sides.values()), "one question, one side"
    questions = list(read_questions(prepared.folder / "questions.jsonl"))
    held_out = [q for q in questions if q.split == "validation"]
    assert len(held_out) == 10
    words = Tokenizer.from_file(str(prepared.tokenizer_folder / "tokenizer.json"))
    for question in held_out:
        prompt = words.decode(list(question.prompt_ids), skip_special_tokens=False)
        assert prompt == (
            f"<|im_start|>user\n{question.question}<|im_end|>\n<|im_start|>assistant\n"
        )
        assert words.decode(list(question.answer_ids)) == question.reference
    shard = prepared.manifest.splits["train"].shards[0]
    rows = next(row_groups(prepared.shard_path(shard), shard, "uint16", "chat"))
    assert rows.weight is not None
    assert set(np.unique(rows.weight)) == {0.0, 2.0}


def test_odd_line_ends_and_turns_left_out(
    parent: Path, tokenizer: ChatTokenizer, tmp_path: Path
) -> None:
    """U+2028 and the like end no line of JSON; a turn of weight 0 is there and not learned."""
    records = pairs(60)
    for record in records:
        record["messages"][0]["content"] += " a\u2028b\x85c"
        record["messages"] += [
            {"role": "user", "content": "More?"},
            {"role": "assistant", "content": "Left out.", "weight": 0},
            {"role": "user", "content": "And?"},
            {"role": "assistant", "content": "Learned."},
        ]
    path = write_jsonl(tmp_path / "chats.jsonl", records)
    prepared = prepare(job(tmp_path, parent, f"data.path={path}"), tokenizer)
    assert len(list(read_questions(prepared.folder / "questions.jsonl"))) == 60
    for _, text, learned in stored(prepared):
        assert "Left out." in text
        assert learned.endswith("<|im_end|>Learned.<|im_end|>")
        assert "Left out" not in learned


def test_what_nobody_reads_is_told_once(
    parent: Path, tokenizer: ChatTokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = [{**record, "colour": "red", "source": "x"} for record in pairs(60)]
    for record in records[:50]:
        record["messages"][1]["mood"] = "good"
    path = write_jsonl(tmp_path / "chats.jsonl", records)
    prepared = prepare(job(tmp_path, parent, f"data.path={path}"), tokenizer)
    said = capsys.readouterr().out
    assert said.count("colour") == said.count("mood") == 1
    assert "unused        column 'colour', in 60 records: nothing reads it" in said
    assert "unused        message key 'mood', in 50 records: nothing reads it" in said
    assert prepared.manifest.chat is not None
    unused = {"column 'colour'": 60, "message key 'mood'": 50}
    assert prepared.manifest.chat.statistics["unused"] == unused


def test_a_changed_questions_file_is_refused(
    parent: Path, tokenizer: ChatTokenizer, tmp_path: Path
) -> None:
    path = write_jsonl(tmp_path / "chats.jsonl", pairs(60))
    prepared = prepare(job(tmp_path, parent, f"data.path={path}"), tokenizer)
    questions = prepared.folder / "questions.jsonl"
    questions.write_text(questions.read_text().replace("Answer", "Ansver"))
    with pytest.raises(DataError, match=r"questions\.jsonl: expected sha256"):
        load_prepared(prepared.folder)


def test_preview_shows_what_is_learned(
    parent: Path, tokenizer: ChatTokenizer, tmp_path: Path
) -> None:
    path = write_jsonl(tmp_path / "chats.jsonl", pairs(60))
    prepared = prepare(job(tmp_path, parent, f"data.path={path}"), tokenizer)
    out = io.StringIO()
    ChatKind().preview(prepared, 2, Console(file=out, width=200))
    text = out.getvalue()
    assert text.count("tokens, ") == 2
    assert "<|im_start|>assistant" in text
    assert "⟦Answer " in text and "<|im_end|>⟧" in text


def test_inputs_that_are_no_conversations(
    parent: Path, tokenizer: ChatTokenizer, tmp_path: Path
) -> None:
    (tmp_path / "text.txt").write_text("Hello")
    with pytest.raises(DataError, match="is plain text; conversations are read from"):
        prepare(job(tmp_path, parent, f"data.path={tmp_path / 'text.txt'}"), tokenizer)
    from datasets import Dataset, DatasetDict

    both = {"train": Dataset.from_list(pairs(5)), "test": Dataset.from_list(pairs(5))}
    DatasetDict(both).save_to_disk(tmp_path / "dict")
    with pytest.raises(DataError, match=r"holds several splits \(test, train\)"):
        prepare(job(tmp_path, parent, f"data.path={tmp_path / 'dict'}"), tokenizer)


def test_templates_and_tokens(parent: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected auto, chatml, brief or a Jinja file"):
        chat_tokenizer(parent, "nowhere.jinja", ())
    own = tmp_path / "own.jinja"
    own.write_text(
        "{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'assistant' %}{% generation %}"
        "{{ m.content }}<|end|>{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    with pytest.raises(DataError, match="isn't a special token"):
        chat_tokenizer(parent, str(own), ())
    made = chat_tokenizer(parent, str(own), ("<|user|>", "<|assistant|>", "<|end|>"))
    assert made.added == ("<|user|>", "<|assistant|>", "<|end|>")
    assert made.tokenizer.id_to_token(made.end_of_turn_id) == "<|end|>"
    assert made.identity.vocab_size == 260
    made.save(tmp_path / "saved")
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert theirs.eos_token == "<|end|>"
    assert theirs.pad_token == "<|endoftext|>"
    again = chat_tokenizer(tmp_path / "saved", "auto", ())
    assert (again.template, again.added, again.end_of_text) == (made.template, (), "<|endoftext|>")
    assert again.identity == made.identity
    assert replace(again, settings={}).template_sha256 == made.template_sha256


def test_thinking_is_learned_masked_or_left_out(
    parent: Path, tokenizer: ChatTokenizer, tmp_path: Path
) -> None:
    thought = "<think>\nWell\n</think>\n\n"
    records = pairs(12)
    for record in records:
        record["messages"][1]["content"] = thought + record["messages"][1]["content"]
    path = write_jsonl(tmp_path / "chats.jsonl", records)
    for thinking, learned in (
        ("mask", "<think>\n\n</think>\n\nAnswer 3.<|im_end|>"),
        ("drop", "Answer 3.<|im_end|>"),
    ):
        made = job(tmp_path, parent, f"data.path={path}", f"data.thinking={thinking}")
        prepared = prepare(made, tokenizer)
        found = {words for _, _, words in stored(prepared)}
        assert learned in found and len(found) == 12
        # Held-out questions are asked without the thought.
        questions = [q for q in read_questions(prepared.folder / "questions.jsonl") if q.prompt_ids]
        decode = Tokenizer.from_file(str(prepared.tokenizer_folder / "tokenizer.json")).decode
        assert questions
        assert all(decode(list(q.prompt_ids)).endswith("assistant\n") for q in questions)
