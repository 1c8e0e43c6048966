"""Units of preferences: every token and weight of a pair, and refusals with their location."""

from __future__ import annotations

import datetime
import json
import random
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.chat_factory import write_jsonl
from data.preference.preference_factory import (
    Stored,
    job,
    pairs,
    prepared_here,
    stored,
    words,
    write_tokenizer,
)
from raymill.data.messages.report import unused_keys
from raymill.data.messages.tokenizer import ChatTokenizer, chat_tokenizer
from raymill.data.store.manifest import PreparedData
from raymill.data.store.split import is_held_out
from raymill.errors import DataError


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> ChatTokenizer:
    return chat_tokenizer(write_tokenizer(tmp_path_factory.mktemp("parent")), "auto", ())


def texts(prepared: PreparedData, row: Stored) -> tuple[str, str, str]:
    """(prompt, better answer, worse answer) of a row of single turns."""
    sides = [words(prepared, ids) for ids in row.ids]
    answers = [words(prepared, ids) for ids in row.learned]
    for side, answer in zip(sides, answers, strict=True):
        assert side.endswith(f"<|im_start|>assistant\n{answer}\n")
    prompts = {
        side.removesuffix(f"<|im_start|>assistant\n{answer}\n")
        for side, answer in zip(sides, answers, strict=True)
    }
    [prompt] = prompts
    return prompt, *(answer.removesuffix("<|im_end|>") for answer in answers)  # type: ignore[return-value]


def test_ids_and_masks_are_transformers(tokenizer: ChatTokenizer, tmp_path: Path) -> None:
    """AutoTokenizer.apply_chat_template of the saved folder renders, encodes and marks the same."""
    say = random.Random(0)

    def text() -> str:
        return " ".join(say.choices(["the cat", "größer", "sat on\n\nthe mat", "🙂", "x  y"], k=3))

    records, whole = [], {}
    for number in range(24):
        prompt = [{"role": "system", "content": text()}] if number % 3 == 0 else []
        for _ in range(number % 2):
            prompt += [
                {"role": "user", "content": text()},
                {"role": "assistant", "content": text()},
            ]
        prompt.append({"role": "user", "content": f"{number} {text()}"})
        sides = []
        for name in ("better", "worse"):
            answer = [{"role": "assistant", "content": f"{name} {number} {text()}"}]
            if number % 4 == 3:  # an answer of several turns, of which the assistant's are learned
                answer += [
                    {"role": "user", "content": text()},
                    {"role": "assistant", "content": text()},
                ]
            sides.append(answer)
        records.append({"prompt": prompt, "chosen": sides[0], "rejected": sides[1]})
        whole[number] = (prompt, sides)
    path = write_jsonl(tmp_path / "pairs.jsonl", records)
    prepared, _ = prepared_here(job(tmp_path, path, sequence_length=255), tokenizer)
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(prepared.tokenizer_folder)
    rows = stored(prepared)
    assert sorted(row.record for row in rows) == list(range(24))  # one unit, one pair a record
    for row in rows:
        prompt, sides = whole[row.record]
        begun = theirs.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)
        for answer, ids, weights in zip(sides, row.ids, row.weights, strict=True):
            rendered = theirs.apply_chat_template(
                [*prompt, *answer], return_dict=True, return_assistant_tokens_mask=True
            )
            assert ids == rendered["input_ids"]
            given = len(begun["input_ids"])
            assert ids[:given] == begun["input_ids"]
            mask = [0] * given + rendered["assistant_masks"][given:]
            assert sum(mask) and weights == mask


def test_a_prompt_weighs_one_together(tokenizer: ChatTokenizer, tmp_path: Path) -> None:
    """The format of its pairs, and the records between them, make no difference."""
    records: list[dict[str, Any]] = []
    for n in range(30):
        answers = [f"answer {n} {c}" for c in "abcd"[: 2 + n % 3]]
        records.append({"prompt": f"p{n}", "answers": answers, "ranks": [*range(len(answers))]})
        if n % 4 == 0:
            records.append(
                {"prompt": [{"role": "user", "content": f"p{n}"}], "chosen": "x", "rejected": "y"}
            )
        if n % 5 == 0:
            records[-1]["weight"] = 3.0
    random.Random(1).shuffle(records)
    path = write_jsonl(tmp_path / "pairs.jsonl", records)
    prepared, _ = prepared_here(job(tmp_path, path), tokenizer)
    rows = stored(prepared)
    count = {f"p{n}": (k := 2 + n % 3) * (k - 1) // 2 + (n % 4 == 0) for n in range(30)}
    weights: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        prompt, better, worse = texts(prepared, row)
        name = prompt.removeprefix("<|im_start|>user\n").removesuffix("<|im_end|>\n")
        weights[name].append(row.weight)
        assert better < worse  # answers are ranked as they are named
    for name, found in weights.items():
        assert len(found) == count[name]
        assert all(
            np.float32(w) in (np.float32(1 / len(found)), np.float32(3 / len(found))) for w in found
        )
        if int(name[1:]) % 5:
            assert sum(found) == pytest.approx(1.0)
    assert len(weights) == 30
    # Numbers of rows are unique, and pairs of a prompt don't lie side by side.
    assert sorted(row.record for row in rows) == list(range(len(rows)))
    assert [row.record for row in rows] != sorted(row.record for row in rows)


def test_margins(tokenizer: ChatTokenizer, tmp_path: Path) -> None:
    records = [{**record, "margin": n / 8} for n, record in enumerate(pairs(12))]
    records += [
        {"prompt": f"s{n}", "answers": ["worse", "better"], "scores": [n / 4, n]}
        for n in range(1, 9)
    ]
    path = write_jsonl(tmp_path / "pairs.jsonl", records)
    prepared, _ = prepared_here(job(tmp_path, path), tokenizer)
    expected = {n: n / 8 for n in range(12)} | {11 + n: 0.75 * n for n in range(1, 9)}
    rows = stored(prepared)
    assert {row.record: row.margin for row in rows} == expected
    for row in rows:
        if row.record >= 12:
            assert texts(prepared, row)[1:] == ("better", "worse")
    statistics = prepared.manifest.preference.statistics  # type: ignore[union-attr]
    assert statistics["train"]["margins"] + statistics["validation"]["margins"] == 19


def test_bad_records_are_counted_named_and_kept(tokenizer: ChatTokenizer, tmp_path: Path) -> None:
    records: list[Any] = pairs(40)
    records[3] = {"prompt": "q", "chosen": "equal", "rejected": "equal"}
    records[5] = {"prompt": "q", "chosen": "long " * 100, "rejected": "short"}
    records[7] = {"prompt": "q", "answers": ["a", "b", "long " * 100], "ranks": [1, 1, 2]}
    records[9] = {"prompt": "q", "answers": ["a", "a", "b"], "scores": [2, 1, 0]}
    records[11] = {"prompt": "q", "chosen": "", "rejected": "b"}
    records[13] = {"text": "nothing"}
    records[15] = {
        "chosen": "\n\nHuman: a\n\nAssistant: b",
        "rejected": "\n\nHuman: c\n\nAssistant: d",
    }
    records[17] = {"prompt": "q", "chosen": "a", "rejected": "b", "margin": -2}
    path = write_jsonl(tmp_path / "pairs.jsonl", records)
    path.write_text(path.read_text() + "{broken\n")
    with pytest.raises(DataError) as refused:
        prepared_here(job(tmp_path / "strict", path), tokenizer)
    message = str(refused.value)
    for cause in (
        "2 same",
        "2 over_long",
        "1 empty",
        "1 format",
        "1 prompt",
        "1 type",
        "1 unreadable",
    ):
        assert cause in message, message
    assert "pairs.jsonl:4: chosen and rejected are the same answer" in message
    assert "pairs.jsonl:6: chosen: " in message and "more than the 64 of an answer" in message
    assert "pairs.jsonl:8: answer 3: " in message
    assert "pairs.jsonl:10: answer 1 and answer 2 are the same answer" in message
    assert "pairs.jsonl:41: not JSON" in message
    assert "9 of 41 records" in message
    [folder] = (tmp_path / "strict" / "data").iterdir()
    assert not (folder / "manifest.json").exists()

    prepared, results = prepared_here(job(tmp_path, path, max_bad_fraction=0.5), tokenizer)
    assert prepared.manifest.bad_inputs.count == 9
    assert results[0].facts["causes"] == {
        "same": 2, "over_long": 2, "empty": 1, "format": 1, "prompt": 1, "type": 1, "unreadable": 1,
    }  # fmt: skip
    kept = [json.loads(line) for line in (prepared.folder / "quarantine.jsonl").open()]
    by_line = {int(entry["where"].rpartition(":")[2]): entry for entry in kept}
    assert set(by_line) == {4, 6, 8, 10, 12, 14, 16, 18, 41}
    for line in (4, 8, 16):
        assert by_line[line]["record"] == records[line - 1]
    assert len(stored(prepared)) == 32 == prepared.manifest.documents


def test_a_side_may_fill_its_half_of_a_row(tokenizer: ChatTokenizer, tmp_path: Path) -> None:
    records = pairs(12)
    # Digits are tokens of their own here: 12 and 13 of them in another answer make a side longer by one.
    records += [{"prompt": "q", "chosen": "1" * n, "rejected": "2"} for n in range(1, 64)]
    path = write_jsonl(tmp_path / "pairs.jsonl", records)
    prepared, results = prepared_here(job(tmp_path, path, max_bad_fraction=1.0), tokenizer)
    lengths = [len(ids) for row in stored(prepared) for ids in row.ids]
    assert max(lengths) == 64
    assert results[0].facts["causes"]["over_long"] == 63 - sum(
        words(prepared, row.learned[0]).startswith("1") for row in stored(prepared)
    )
    assert prepared.manifest.sequence_length == 127


def test_a_prompts_pairs_are_on_one_side(tokenizer: ChatTokenizer, tmp_path: Path) -> None:
    records = [
        {**record, "chosen": f"{record['chosen']} {k}"} for k in range(3) for record in pairs(60)
    ]
    for n, record in enumerate(records):
        record["author"] = n % 7
    path = write_jsonl(tmp_path / "pairs.jsonl", records)
    prepared, _ = prepared_here(job(tmp_path, path), tokenizer)
    found: dict[str, set[str]] = defaultdict(set)
    for row in stored(prepared):
        found[texts(prepared, row)[0].split("\n")[1].removesuffix("<|im_end|>")].add(row.split)
    for prompt, sides in found.items():
        assert sides == {"validation" if is_held_out(prompt, 0.25, 7) else "train"}
    assert len(found) == 60 and set.union(*found.values()) == {"train", "validation"}
    assert prepared.manifest.preference.statistics["leaked"] == 0  # type: ignore[union-attr]

    # By a column: one author's on one side, which puts prompts on both.
    grouped = job(tmp_path, path, validation={"group_column": "author", "fraction": 0.4})
    prepared, _ = prepared_here(grouped, tokenizer)
    authors: dict[int, set[str]] = defaultdict(set)
    for row in stored(prepared):
        authors[row.record % 7].add(row.split)
    assert all(
        sides == {"validation" if is_held_out(str(author), 0.4, 7) else "train"}
        for author, sides in authors.items()
    )
    prompts = {
        side: {texts(prepared, row)[0] for row in stored(prepared) if row.split == side}
        for side in ("train", "validation")
    }
    statistics = prepared.manifest.preference.statistics  # type: ignore[union-attr]
    assert statistics["leaked"] == len(prompts["train"] & prompts["validation"]) > 0

    # By a set of one's own.
    other = write_jsonl(tmp_path / "held_out.jsonl", pairs(5))
    own = job(tmp_path, path, validation={"path": (str(other),)})
    prepared, _ = prepared_here(own, tokenizer)
    assert Counter(row.split for row in stored(prepared)) == {"train": 180, "validation": 5}
    assert prepared.manifest.preference.statistics["leaked"] == 5  # type: ignore[union-attr]

    del records[4]["author"]
    write_jsonl(path, records)
    with pytest.raises(
        DataError, match=r"1 group.*\n.*pairs.jsonl:5: group column 'author' holds null"
    ):
        prepared_here(
            job(tmp_path / "again", path, validation={"group_column": "author"}), tokenizer
        )


def test_statistics(tokenizer: ChatTokenizer, tmp_path: Path) -> None:
    """Statistics over several units equal those counted from the rows and records themselves."""
    choose = random.Random(3)
    records: list[dict[str, Any]] = []
    for _ in range(300):
        prompt = f"p{choose.randrange(20)}"
        better, worse = choose.sample(["the cat", "the cat sat", "the mat", "größer"], 2)
        who, tie = choose.choice(["ann", "bob", None]), choose.random() < 0.2
        judged = {"chosen": better, "rejected": worse, "tie": tie, "annotator": who}
        records.append({"prompt": prompt, **judged})
    path = write_jsonl(tmp_path / "pairs.jsonl", records)
    prepared, results = prepared_here(job(tmp_path, path, shard_input_bytes=6000), tokenizer)
    assert len(results) > 3
    facts = prepared.manifest.preference
    assert facts is not None
    rows = stored(prepared)
    for split in ("train", "validation"):
        found = facts.statistics[split]
        mine = [r for r in records if is_held_out(r["prompt"], 0.25, 7) == (split == "validation")]
        preferred = [
            (r["prompt"], r["chosen"], r["rejected"], r["annotator"]) for r in mine if not r["tie"]
        ]
        directions = {one[:3] for one in preferred}
        assert found["comparisons"] == len(mine)
        assert found["ties"] == len(mine) - len(preferred)
        assert found["pairs"] == len(preferred)
        assert found["prompts"] == len({one[0] for one in preferred})
        assert found["duplicates"] == len(preferred) - len(set(preferred))
        assert (
            found["contradictions"] == sum((p, w, b) in directions for p, b, w in directions) // 2
        )
        here = [row for row in rows if row.split == split]
        assert len(here) == found["pairs"]
        learned = [tuple(map(len, row.learned)) for row in here]
        assert found["tokens"] == sum(len(ids) for row in here for ids in row.ids)
        assert found["learned"] == sum(map(sum, learned))
        assert found["length_bias"] == pytest.approx({
            "longer": np.mean([a > b for a, b in learned]), "shorter": np.mean([a < b for a, b in learned]),
            "tokens": np.mean([a - b for a, b in learned]),
        }, abs=1e-6)  # fmt: skip
        assert sum(found["lengths"].values()) == 2 * found["pairs"]
    assert facts.pairs == facts.statistics["train"]["pairs"]
    assert facts.prompts == facts.statistics["train"]["prompts"]
    agreement = facts.statistics["agreement"]
    judges = defaultdict(set)
    for r in records:
        if r["annotator"]:
            judges[r["prompt"], frozenset((r["chosen"], r["rejected"]))].add(r["annotator"])
    assert agreement["pairs"] == sum(len(who) == 2 for who in judges.values())
    assert agreement["judgements"] == 2 * agreement["pairs"] and agreement["annotators"] == 2
    assert -0.5 < agreement["alpha"] < 0.5  # they judged at random
    # Rows are numbered by unit, and uniquely.
    numbers = [row.record for row in rows]
    assert len(set(numbers)) == len(numbers)
    assert {number >> 32 for number in numbers} == set(range(len(results)))


def test_agreement_is_found_across_units(tokenizer: ChatTokenizer, tmp_path: Path) -> None:
    """Everyone's judgments may be a file of their own; the shards hold no metadata."""
    for who, wrong in (("ann", ()), ("bob", (3, 4))):
        records = []
        for n, record in enumerate(pairs(20)):
            turned = {**record, "chosen": record["rejected"], "rejected": record["chosen"]}
            records.append({**(turned if n in wrong else record), "annotator": who})
        write_jsonl(tmp_path / "in" / f"{who}.jsonl", records)
    prepared, results = prepared_here(
        job(tmp_path, tmp_path / "in", shard_input_bytes=1), tokenizer
    )
    assert len(results) > 2
    agreement = prepared.manifest.preference.statistics["agreement"]  # type: ignore[union-attr]
    assert (agreement["pairs"], agreement["annotators"]) == (20, 2)
    assert 0.5 < agreement["alpha"] < 1.0
    shard = prepared.manifest.splits["train"].shards[0]
    assert pq.read_schema(prepared.shard_path(shard)).names == [
        "tokens", "weight", "segment", "bytes", "record", "margin",
    ]  # fmt: skip
    assert prepared.manifest.kind == "preference"
    assert prepared.manifest.messages is prepared.manifest.preference


def test_files_of_every_kind_give_the_same_rows(tokenizer: ChatTokenizer, tmp_path: Path) -> None:
    plain = [{**record, "annotator": "ann", "ignored": 1} for record in pairs(40)]
    chats = [
        {side: [{"role": "user", "content": r["prompt"], "name": None},
                {"role": "assistant", "content": r[side], "name": None}] for side in ("chosen", "rejected")}
        for r in plain
    ]  # fmt: skip
    hh = [
        {
            side: f"\n\nHuman: {r['prompt']}\n\nAssistant: {r[side]}"
            for side in ("chosen", "rejected")
        }
        for r in plain
    ]
    ranked = [
        {"prompt": r["prompt"], "answers": [r["rejected"], r["chosen"]], "ranks": [2, 1]}
        for r in plain
    ]
    inputs = [
        write_jsonl(tmp_path / f"{name}.jsonl", records)
        for name, records in (("plain", plain), ("chats", chats), ("hh", hh), ("ranked", ranked))
    ]
    for name, records in (("plain", plain), ("chats", chats), ("ranked", ranked)):
        inputs.append(tmp_path / f"{name}.parquet")
        pq.write_table(pa.Table.from_pylist(records), inputs[-1])
    from datasets import Dataset

    Dataset.from_list(chats).save_to_disk(tmp_path / "disk")
    inputs.append(tmp_path / "disk")
    found = []
    for number, path in enumerate(inputs):
        prepared, _ = prepared_here(job(tmp_path / f"out{number}", path), tokenizer)
        found.append(
            sorted((row.split, row.record, row.ids, row.weights) for row in stored(prepared))
        )
    assert len(found[0]) == 40
    assert all(one == found[0] for one in found)


def test_tables_and_texts_without_comparisons(tokenizer: ChatTokenizer, tmp_path: Path) -> None:
    pq.write_table(pa.table({"prompt": ["a"] * 5, "answers": [["b"]] * 5}), tmp_path / "no.parquet")
    with pytest.raises(DataError, match=r"5 of 5 records.*\(5 format\)") as refused:
        prepared_here(job(tmp_path, tmp_path / "no.parquet"), tokenizer)
    assert "rankings: prompt, answers, ranks or prompt, answers, scores or" in str(refused.value)
    (tmp_path / "text.txt").write_text("Hello")
    with pytest.raises(DataError, match="is plain text; preferences are read from"):
        prepared_here(job(tmp_path / "out", tmp_path / "text.txt"), tokenizer)
    path = write_jsonl(tmp_path / "ties.jsonl", [{**record, "tie": True} for record in pairs(5)])
    with pytest.raises(DataError, match="No pair is to train on: there are no usable records"):
        prepared_here(job(tmp_path / "out", path), tokenizer)


def test_what_users_write_is_text(tokenizer: ChatTokenizer, tmp_path: Path) -> None:
    records = [
        {"prompt": f"{n} <|im_end|>", "chosen": "a <|im_end|> b", "rejected": "<|im_start|>"}
        for n in range(20)
    ]
    path = write_jsonl(tmp_path / "pairs.jsonl", records)
    prepared, _ = prepared_here(job(tmp_path, path), tokenizer)
    for row in stored(prepared):
        for learned in row.learned:
            assert learned.count(tokenizer.end_of_turn_id) == 1
            assert learned[-1] == tokenizer.end_of_turn_id


REWRITING = (  # forgets what the assistant thought in earlier turns, as many models' own templates do
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{{ m.content if loop.last else m.content.split('</think>')[-1] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_templates_that_rewrite_earlier_turns(tmp_path: Path) -> None:
    template = tmp_path / "own.jinja"
    template.write_text(REWRITING)
    own = chat_tokenizer(
        write_tokenizer(tmp_path / "parent"), str(template), ("<|im_start|>", "<|im_end|>")
    )
    records = [
        {"prompt": [{"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": "hm</think>a"},
                    {"role": "user", "content": "more"}],
         "chosen": "x</think>b", "rejected": "y</think>c"}
        for n in range(20)
    ]  # fmt: skip
    path = write_jsonl(tmp_path / "pairs.jsonl", records)
    prepared, _ = prepared_here(job(tmp_path, path), own)
    for row in stored(prepared):
        assert [words(prepared, ids) for ids in row.learned] == [
            "x</think>b<|im_end|>", "y</think>c<|im_end|>",
        ]  # fmt: skip
        assert "hm" not in words(prepared, row.ids[0])


def test_what_nobody_reads_is_counted(tokenizer: ChatTokenizer, tmp_path: Path) -> None:
    """Once for each key, in the manifest and in what is said; a table's columns that can't be read too."""
    records = [
        {
            "prompt": f"p{n}", "chosen": "a", "rejected": "b", "colour": "red", "topic": "x", "asked by": n % 7,
            "mood": None if n % 2 else "good",
        }
        for n in range(30)
    ]  # fmt: skip
    path = write_jsonl(tmp_path / "pairs.jsonl", records)
    grouped = {"validation": {"group_column": "asked by"}}
    prepared, results = prepared_here(job(tmp_path / "lines", path, **grouped), tokenizer)
    assert prepared.manifest.preference is not None
    unused = {"column 'colour'": 30, "column 'mood'": 15}
    assert prepared.manifest.preference.statistics["unused"] == unused
    assert unused_keys(results) == unused

    table = pa.Table.from_pylist(records)
    for name in ("heard", "created_at"):
        moments = pa.array([datetime.datetime(2024, 1, 1)] * 30, pa.timestamp("ns"))
        table = table.append_column(name, moments)
    pq.write_table(table, tmp_path / "pairs.parquet")
    made = job(tmp_path / "table", tmp_path / "pairs.parquet", **grouped)
    prepared, results = prepared_here(made, tokenizer)
    assert unused_keys(results) == {**unused, "column 'heard'": 30}


def test_keys_without_end_are_counted_together(tokenizer: ChatTokenizer, tmp_path: Path) -> None:
    records = [
        {"prompt": f"p{n}", "chosen": "a", "rejected": "b", f"note{n}": 1} for n in range(130)
    ]
    path = write_jsonl(tmp_path / "pairs.jsonl", records)
    _, results = prepared_here(job(tmp_path, path), tokenizer)
    assert unused_keys(results)["other keys"] == 30
    assert len(unused_keys(results)) == 101


def test_pictures_in_a_table_are_refused(tokenizer: ChatTokenizer, tmp_path: Path) -> None:
    pair = {
        "prompt": "p",
        "chosen": "a",
        "rejected": "b",
        "image": {"bytes": b"\xff", "path": None},
    }
    pq.write_table(pa.Table.from_pylist([pair] * 4), tmp_path / "pairs.parquet")
    with pytest.raises(DataError, match=r"pairs\.parquet, row 0: column 'image' isn't empty"):
        prepared_here(job(tmp_path, tmp_path / "pairs.parquet"), tokenizer)


def test_thinking_is_compared_masked_or_left_out(tokenizer: ChatTokenizer, tmp_path: Path) -> None:
    thought = "<think>\nthe cat\n</think>\n\n"
    rows = [
        {"prompt": f"q{n}", "chosen": f"{thought}sat", "rejected": f"{thought}mat"}
        for n in range(20)
    ]
    path = write_jsonl(tmp_path / "pairs.jsonl", rows)
    folders = set()
    for thinking, compared in (
        ("learn", f"{thought}sat<|im_end|>"),
        ("mask", "<think>\n\n</think>\n\nsat<|im_end|>"),
        ("drop", "sat<|im_end|>"),
    ):
        prepared, _ = prepared_here(job(tmp_path, path, thinking=thinking), tokenizer)
        folders.add(prepared.folder)
        row = stored(prepared)[0]
        learned = [i for i, weight in zip(row.ids[0], row.weights[0], strict=True) if weight]
        assert words(prepared, learned) == compared
        assert ("the cat" in words(prepared, row.ids[0])) == (thinking != "drop")
    assert len(folders) == 3
