"""Whole preparations of prompts: what is written, what is refused and where it is said to be."""

from __future__ import annotations

import datetime
import gzip
import io
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from data.chat_factory import write_jsonl
from data.preparing import describe, find_prepared, prepare
from data.prompts.prompts_factory import job, stored_rows
from raymill.data.kinds import preparation_of
from raymill.data.messages.folder import load_chat_encoder
from raymill.data.messages.tokenizer import ChatTokenizer, chat_tokenizer
from raymill.data.prompts.kind import PromptKind
from raymill.data.prompts.metadata import PromptRecord, read_metadata
from raymill.data.store.facts import PromptsFacts
from raymill.data.store.manifest import PreparedData, load_prepared
from raymill.data.store.split import is_held_out
from raymill.data.store.validation import ValidationSet
from raymill.errors import DataError

SYSTEM = {"role": "system", "content": "Be short."}
TOOLS = [{"type": "function", "function": {"name": "add", "description": "Sum."}}]


@pytest.fixture(autouse=True)
def no_ray_unless_asked_for(request: pytest.FixtureRequest) -> None:
    if "ray_session" not in request.fixturenames:
        request.getfixturevalue("no_ray")


def questions(count: int) -> list[dict[str, Any]]:
    return [
        {"question": f"What is {n} + 1?", "answer": n + 1, "level": n % 3} for n in range(count)
    ]


def facts_of(prepared: PreparedData) -> PromptsFacts:
    assert prepared.manifest.prompts is not None
    return prepared.manifest.prompts


def metadata_of(prepared: PreparedData) -> dict[int, PromptRecord]:
    return read_metadata(prepared.folder / facts_of(prepared).book)


def contents(prepared: PreparedData) -> Counter[str]:
    """Every row with its metadata, by what it is rather than by number."""
    metadata = metadata_of(prepared)
    found: Counter[str] = Counter()
    for split, row in stored_rows(prepared):
        assert row.record is not None
        prompt = metadata[int(row.record[0])]
        assert prompt.split == split
        ids = row.tokens[0, : row.length[0]].tolist()
        found[json.dumps([split, ids, *map(str, list(vars(prompt).values())[2:])])] += 1
    assert found.total() == len(metadata)
    return found


def test_every_form_and_file_gives_the_same_rows(
    parent: Path, tokenizer: ChatTokenizer, tmp_path: Path
) -> None:
    plain = questions(60)
    asked = [({"role": "user", "content": one["question"]}, one) for one in plain]
    shapes: dict[str, list[dict[str, Any]]] = {
        "question": plain,
        "prompt": [{"prompt": u["content"], **_rest(one)} for u, one in asked],
        "prompt_list": [{"prompt": [u], **_rest(one)} for u, one in asked],
        "messages": [
            {"messages": [u, {"role": "assistant", "content": str(one["answer"])}],
             "level": one["level"]}
            for u, one in asked
        ],
    }  # fmt: skip
    paths = [write_jsonl(tmp_path / name / "in.jsonl", records) for name, records in shapes.items()]
    packed = tmp_path / "packed.jsonl.gz"
    packed.write_bytes(gzip.compress(paths[0].read_bytes()))
    # A table fills in what a record doesn't have; times and the like aren't JSON and aren't read.
    first: dict[str, Any] = {"verifier": None, "tools": None}
    columns = [record | first | {"when": datetime.datetime(2020, 1, 2)} for record in plain]
    pq.write_table(pa.Table.from_pylist(columns), tmp_path / "table.parquet")
    from datasets import Dataset

    Dataset.from_list(shapes["prompt_list"]).save_to_disk(tmp_path / "disk")
    results = [
        contents(prepare(job(tmp_path / f"out-{n}", parent, f"data.path={path}"), tokenizer))
        for n, path in enumerate((*paths, packed, tmp_path / "table.parquet", tmp_path / "disk"))
    ]
    assert all(result == results[0] for result in results)
    assert results[0].total() == 60


def _rest(record: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name != "question"}


def test_rows_are_what_transformers_asks(
    parent: Path, tokenizer: ChatTokenizer, tmp_path: Path
) -> None:
    """Tokens by transformers' own rendering and encoding; numbers, sizes and sides by hand."""
    records: list[dict[str, Any]] = [
        {"prompt": f"Question {n}: é “漢” <|im_end|>?", "id": f"q{n}"} for n in range(40)
    ]
    turns = [{"role": "user", "content": "And?"}, {"role": "assistant", "content": "Or."}]
    for n in range(0, 40, 4):
        asked = [{"role": "user", "content": f"{n} sacks"}, *reversed(turns)]
        records[n] = {"prompt": asked, "system": "Be short.", "id": f"q{n}"}
    path = write_jsonl(tmp_path / "in.jsonl", records)
    prepared = prepare(job(tmp_path, parent, f"data.path={path}"), tokenizer)
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(prepared.tokenizer_folder)
    manifest, metadata = prepared.manifest, metadata_of(prepared)
    assert (manifest.kind, manifest.sequence_length, manifest.dtype) == ("prompts", 120, "uint16")
    assert manifest.documents == 40
    assert facts_of(prepared).prompts == manifest.splits["train"].rows
    assert facts_of(prepared).end_of_turn_id == theirs.convert_tokens_to_ids("<|im_end|>")
    assert sorted(metadata) == list(range(40)), "the only unit's, in the order of the records"
    rows = 0
    for split, row in stored_rows(prepared):
        assert row.record is not None and row.bytes is not None and row.weight is None
        prompt = metadata[int(row.record[0])]
        assert prompt.id == f"q{prompt.record}"
        # What is spelled like a control token is text: theirs makes a token of it, so it's put in after.
        shown = [
            {**one, "content": one["content"].replace("<|im_end|>", "@")} for one in prompt.messages
        ]
        text = theirs.apply_chat_template(shown, tokenize=False, add_generation_prompt=True)
        assert text.endswith("<|im_start|>assistant\n")
        expected = theirs(text, add_special_tokens=False)["input_ids"]
        [at] = theirs("@", add_special_tokens=False)["input_ids"]
        spelled = [
            theirs.convert_tokens_to_ids(character) for character in "<|im_end|>"
        ]  # one token a byte
        expected = [i for one in expected for i in (spelled if one == at else [one])]
        assert row.tokens[0, : row.length[0]].tolist() == expected
        assert not row.tokens[0, row.length[0] :].any()
        assert row.bytes[0] == sum(len(one["content"].encode()) for one in prompt.messages)
        first = next(one["content"] for one in prompt.messages if one["role"] == "user")
        assert split == prompt.split == ("validation" if is_held_out(first, 0.2, 1234) else "train")
        rows += 1
    assert rows == 40


def test_templates_see_the_tools(parent: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.jinja"
    own.write_text(
        "{% if tools %}{{ tools | tojson }}{% endif %}"
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}"
        "{% endif %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    special = ("<|user|>", "<|assistant|>", "<|end|>")
    tokenizer = chat_tokenizer(parent, str(own), special)
    records = [{"prompt": f"Add {n}.", "tools": TOOLS} for n in range(30)]
    path = write_jsonl(tmp_path / "in.jsonl", records)
    made = job(
        tmp_path, parent, f"data.path={path}", f"data.template={own}",
        "data.special_tokens=['<|user|>','<|assistant|>','<|end|>']", "data.max_bad_fraction=0.1",
    )  # fmt: skip
    prepared = prepare(made, tokenizer)
    words = tokenizer.tokenizer
    texts = {
        words.decode(row.tokens[0, : row.length[0]].tolist(), skip_special_tokens=False)
        for _, row in stored_rows(prepared)
    }
    said = json.dumps(TOOLS)
    assert texts == {f"{said}<|user|>Add {n}.<|end|><|assistant|>" for n in range(30)}
    metadata = metadata_of(prepared)
    encoder = load_chat_encoder(prepared.tokenizer_folder)
    assert encoder is not None
    for _, row in stored_rows(prepared):
        prompt = metadata[int(row.record[0])]  # type: ignore[index]
        assert prompt.tools == tuple(TOOLS)
        again = encoder.prompt_ids(prompt.messages, prompt.tools)
        assert row.tokens[0, : row.length[0]].tolist() == again, "keys keep their order"
    assert facts_of(prepared).statistics["train"]["tools"] == facts_of(prepared).prompts

    write_jsonl(path, [*records, {"prompt": "x", "system": "Hm."}])
    with pytest.raises(DataError, match="was prepared from other input"):
        prepare(made, tokenizer)
    again = job(
        tmp_path / "again", parent, f"data.path={path}", f"data.template={own}",
        "data.special_tokens=['<|user|>','<|assistant|>','<|end|>']",
    )  # fmt: skip
    with pytest.raises(DataError, match=r"\(1 encoding\).*\n.*in\.jsonl:31: .*no system"):
        prepare(again, tokenizer)


def test_bad_records_are_counted_named_and_kept(
    parent: Path, tokenizer: ChatTokenizer, tmp_path: Path
) -> None:
    records: list[Any] = questions(40)
    user = {"role": "user", "content": "Hi"}
    records[3] = {"prompt": [user, user]}
    records[5] = {"question": "Hi", "answer": "  "}
    records[9] = {"messages": [user, {"role": "narrator", "content": "x"}]}
    records[11] = {"question": "Hi", "answer": [1]}
    records[13] = {"text": "not a prompt"}
    records[15] = {"question": "long " * 60}
    records[17] = {"question": "Hi", "tests": "x" * 70_000}
    path = write_jsonl(tmp_path / "in.jsonl", records)
    path.write_text(path.read_text() + "{broken\n")
    with pytest.raises(DataError) as refused:
        prepare(job(tmp_path, parent, f"data.path={path}"), tokenizer)
    message = str(refused.value)
    causes = ("order", "empty", "role", "type", "format", "over_long", "extra", "unreadable")
    for cause in causes:
        assert f"1 {cause}" in message, message
    assert "in.jsonl:4: message 2: user after the user" in message
    assert "in.jsonl:16: " in message and "more than the 121 of a row" in message
    assert "8 of 41 records" in message
    assert not list((tmp_path / "data").glob("*/manifest.json"))

    made = job(tmp_path, parent, f"data.path={path}", "data.max_bad_fraction=0.5")
    prepared = prepare(made, tokenizer)
    assert prepared.manifest.bad_inputs.count == 8
    kept = [json.loads(line) for line in (prepared.folder / "quarantine.jsonl").open()]
    assert Counter(entry["cause"] for entry in kept) == Counter(causes)
    by_cause = {entry["cause"]: entry for entry in kept}
    assert by_cause["order"]["record"] == records[3]
    assert by_cause["over_long"]["record"] == records[15]
    assert by_cause["over_long"]["where"].endswith("in.jsonl:16")
    assert len(metadata_of(prepared)) == 33
    assert sum(contents(prepared).values()) == 33


def test_the_longest_prompt_that_fits(
    parent: Path, tokenizer: ChatTokenizer, tmp_path: Path
) -> None:
    """A row holds one token more than data.sequence_length: <|im_start|>user\\n…, byte by byte."""
    around = len("user\n") + len("\nassistant\n") + 3
    records = [{"prompt": f"{n:02d}".ljust(121 - around, "x")} for n in range(30)]
    path = write_jsonl(tmp_path / "in.jsonl", records)
    prepared = prepare(job(tmp_path, parent, f"data.path={path}"), tokenizer)
    assert {int(row.length[0]) for _, row in stored_rows(prepared)} == {121}
    records.append({"prompt": "y" * (122 - around)})
    path = write_jsonl(tmp_path / "longer.jsonl", records)
    with pytest.raises(DataError, match="122 tokens, more than the 121 of a row"):
        prepare(job(tmp_path, parent, f"data.path={path}"), tokenizer)


def test_verifiers_and_statistics(parent: Path, tokenizer: ChatTokenizer, tmp_path: Path) -> None:
    records = questions(90)
    for n, record in enumerate(records):
        if n % 3 == 1:
            record["verifier"] = "number"
        elif n % 3 == 2:
            record["verifier"] = "none"
            del record["answer"]
    path = write_jsonl(tmp_path / "in.jsonl", [*records, records[0]])
    found = {}
    for name in ("exact", "none"):
        prepared = prepare(
            job(tmp_path, parent, f"data.path={path}", f"data.verifier={name}"), tokenizer
        )
        metadata = metadata_of(prepared)
        verifiers = [metadata[n].verifier for n in range(4)]
        assert verifiers == [None if name == "none" else name, "number", None, verifiers[0]]
        assert [metadata[n].answer for n in range(3)] == ["1", "2", None]
        assert [metadata[n].extra for n in range(3)] == [{"level": n} for n in range(3)]
        statistics = facts_of(prepared).statistics
        assert (statistics["duplicates"], statistics["leaked"]) == (1, 0)
        for split, expected in _counted(prepared).items():
            assert {key: statistics[split][key] for key in expected} == expected
        found[name] = prepared.manifest.splits["train"].shards[0].sha256
    assert found["exact"] == found["none"], "the verifier is in the metadata alone"


def _counted(prepared: PreparedData) -> dict[str, dict[str, Any]]:
    """Statistics by their definitions, from the rows and the metadata."""
    metadata = metadata_of(prepared)
    result = {}
    for split in ("train", "validation"):
        rows = [row for side, row in stored_rows(prepared) if side == split]
        lengths = [int(row.length[0]) for row in rows]
        prompts = [metadata[int(row.record[0])] for row in rows]  # type: ignore[index]
        names = [prompt.verifier or "none" for prompt in prompts]
        bounds = Counter(
            next(str(2**power) for power in range(32) if 2**power >= n) for n in lengths
        )
        result[split] = {
            "prompts": len(rows),
            "tokens": sum(lengths),
            "lengths": dict(bounds),
            "turns": {"user": len(rows)},
            "tools": 0,
            "verifiers": dict(Counter(names)),
            "answered": {
                name: sum(
                    p.answer is not None and n == name for p, n in zip(prompts, names, strict=True)
                )
                for name in set(names)
            },
        }
    return result


def test_sides_by_question_group_or_file(
    parent: Path, tokenizer: ChatTokenizer, tmp_path: Path
) -> None:
    records = questions(100)
    again = [{"messages": [SYSTEM, {"role": "user", "content": r["question"]}]} for r in records]
    path = write_jsonl(tmp_path / "in.jsonl", [*records, *again])
    sides: dict[str, set[str]] = {}
    for prompt in metadata_of(
        prepare(job(tmp_path, parent, f"data.path={path}"), tokenizer)
    ).values():  # fmt: skip
        sides.setdefault(prompt.messages[-1]["content"], set()).add(prompt.split)
    assert len(sides) == 100 and all(len(side) == 1 for side in sides.values())

    for n, record in enumerate(records):
        record["topic"] = n % 10
    path = write_jsonl(tmp_path / "groups.jsonl", records)
    grouped = job(
        tmp_path, parent, f"data.path={path}", "data.validation.group_column=topic",
        "data.validation.fraction=0.4",
    )  # fmt: skip
    for prompt in metadata_of(prepare(grouped, tokenizer)).values():
        held_out = is_held_out(str(prompt.extra["topic"]), 0.4, 1234)
        assert prompt.split == ("validation" if held_out else "train")
    records[6]["topic"] = None
    path = write_jsonl(tmp_path / "groups.jsonl", records)
    with pytest.raises(DataError, match=r"\(1 group\)[\s\S]*groups\.jsonl:7: group column 'topic'"):
        prepare(
            job(tmp_path / "x", parent, f"data.path={path}",
                "data.validation.group_column=topic", "data.validation.fraction=0.4"),
            tokenizer,
        )  # fmt: skip

    held_out = write_jsonl(tmp_path / "own.jsonl", [*questions(3), {"prompt": "Other?"}])
    made = job(
        tmp_path, parent, f"data.path={tmp_path / 'in.jsonl'}", f"data.validation.path={held_out}"
    )
    prepared = prepare(made, tokenizer)
    rows = {split: content.rows for split, content in prepared.manifest.splits.items()}
    assert rows == {"train": 200, "validation": 4}
    assert facts_of(prepared).statistics["leaked"] == 3
    assert facts_of(prepared).statistics["duplicates"] == 0


def test_nothing_held_out_or_readable(
    parent: Path, tokenizer: ChatTokenizer, tmp_path: Path
) -> None:
    path = write_jsonl(tmp_path / "in.jsonl", questions(10))
    with pytest.raises(
        DataError, match="No prompt is held out: all 10 usable ones are in the other split"
    ):
        prepare(
            job(tmp_path, parent, f"data.path={path}", "data.validation.fraction=1e-6"), tokenizer
        )
    (tmp_path / "text.txt").write_text("Hello")
    with pytest.raises(DataError, match="is plain text; prompts are read from"):
        prepare(job(tmp_path, parent, f"data.path={tmp_path / 'text.txt'}"), tokenizer)
    pq.write_table(pa.table({"text": ["a", "b"]}), tmp_path / "table.parquet")
    with pytest.raises(DataError, match=r"2 format[\s\S]*expected messages: messages; prompt: pr"):
        prepare(job(tmp_path, parent, f"data.path={tmp_path / 'table.parquet'}"), tokenizer)


def test_held_out_rows_are_shared_out(
    parent: Path, tokenizer: ChatTokenizer, tmp_path: Path
) -> None:
    path = write_jsonl(tmp_path / "in.jsonl", questions(60))
    made = job(tmp_path, parent, f"data.path={path}", "data.shard_input_bytes=1500")
    prepared = prepare(made, tokenizer)
    assert len(prepared.manifest.splits["validation"].shards) > 1
    expected = [
        (int(row.record[0]), row.tokens[0].tolist())  # type: ignore[index]
        for split, row in stored_rows(prepared)
        if split == "validation"
    ]
    assert sorted(n for n, _ in expected) == sorted(
        prompt.record for prompt in metadata_of(prepared).values() if prompt.split == "validation"
    )
    for rows in (None, 3, 1):
        count = len(expected) if rows is None else rows
        found: dict[int, tuple[int, list[int]]] = {}
        batches = []
        for rank in (0, 1):
            held_out = ValidationSet(
                prepared.folder, rank=rank, world_size=2, batch_rows=2, rows=rows, source=1
            )
            mine = list(held_out)
            batches.append(len(mine))
            for batch in mine:
                assert batch.record is not None and batch.record.dtype == np.int64
                assert batch.tokens.shape == (len(batch), 121)
                for row in range(len(batch)):
                    number = int(batch.record[row]) - (1 << 48)
                    found[len(found)] = number, batch.tokens[row].tolist()
        assert batches[0] == batches[1] == math.ceil(math.ceil(count / 2) / 2)
        assert sorted(found.values()) == sorted(expected[:count])


def test_preview_and_summary(
    parent: Path, tokenizer: ChatTokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = questions(60)
    del records[7]["answer"]
    path = write_jsonl(tmp_path / "in.jsonl", records)
    made = job(tmp_path, parent, f"data.path={path}", "data.verifier=number")
    assert describe(made, tokenizer).endswith("(not finished)")
    prepared = prepare(made, tokenizer)
    assert prepared.folder == preparation_of(made, tokenizer).folder
    assert describe(made, tokenizer).endswith(f"→ {prepared.folder} (finished)")
    said = " ".join(capsys.readouterr().out.split())
    splits = prepared.manifest.splits
    rows, held_out = splits["train"].rows, splits["validation"].rows
    assert f"prompts {rows} to train on, {held_out} held out, of 60 records" in said
    assert f"verifiers number {rows}" in said
    out = io.StringIO()
    PromptKind().preview(prepared, 60, Console(file=out, width=200))
    text = out.getvalue()
    assert text.count("tokens, judged by number") == rows
    metadata = metadata_of(prepared)
    answers = [
        metadata[int(row.record[0])].answer  # type: ignore[index]
        for split, row in stored_rows(prepared)
        if split == "train"
    ]
    shown = [line.removeprefix("→ ") for line in text.split("\n") if line.startswith("→ ")]
    assert shown == ["no reference answer" if answer is None else answer for answer in answers]
    assert f"What is {int(shown[0]) - 1} + 1?<|im_end|>" in text.split("→ ")[0]
    assert "<|im_start|>assistant" in text and "⟦" not in text


def test_changed_metadata_are_refused(
    parent: Path, tokenizer: ChatTokenizer, tmp_path: Path
) -> None:
    path = write_jsonl(tmp_path / "in.jsonl", questions(40))
    prepared = prepare(job(tmp_path, parent, f"data.path={path}"), tokenizer)
    metadata = prepared.folder / "prompts.jsonl"
    metadata.write_text(metadata.read_text().replace('"answer":"7"', '"answer":"8"'))
    with pytest.raises(DataError, match=r"prompts\.jsonl: expected sha256"):
        load_prepared(prepared.folder)


@pytest.mark.usefixtures("ray_session")
def test_parallelism_and_restarts_do_not_matter(
    parent: Path, tokenizer: ChatTokenizer, tmp_path: Path
) -> None:
    path = write_jsonl(tmp_path / "in.jsonl", questions(300))
    digests = set()
    for tasks in (1, 3):
        made = job(
            tmp_path / str(tasks), parent, f"data.path={path}", "data.shard_input_bytes=4000"
        )
        prepared = prepare(made, tokenizer, tasks=tasks)
        assert len(prepared.manifest.splits["train"].shards) > 3
        digests.add(prepared.manifest.digest)
        found = find_prepared(made, tokenizer)
        assert found is not None and found.manifest == prepared.manifest
    metadata = metadata_of(prepared)
    assert {number >> 32 for number in metadata} == set(range(5))
    # Killed before its manifest, it continues from the units' files; one that was lost in part is refused.
    (prepared.folder / "manifest.json").unlink()
    (prepared.folder / "prompts.jsonl").unlink()
    digests.add(prepare(made, tokenizer).manifest.digest)
    assert len(digests) == 1
    (prepared.folder / "manifest.json").unlink()
    part = prepared.folder / "units" / "00001.prompts.jsonl"
    part.write_text(part.read_text()[:-40])
    with pytest.raises(DataError, match=r"00001\.prompts\.jsonl: expected sha256"):
        prepare(made, tokenizer)
