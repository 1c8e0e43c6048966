"""Following the advice of an error about data helps."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data.chat_factory import write_jsonl
from data.preparing import prepare
from raymill.config import load
from raymill.data.messages.conversation import Conversation, read_conversation
from raymill.data.messages.encode import ChatEncoder
from raymill.data.messages.problems import Problem
from raymill.data.messages.tokenizer import ChatTokenizer
from raymill.data.prompts.prompt import Prompt, read_prompt
from raymill.data.sources.planning import plan_units
from raymill.data.store.manifest import PreparedData
from raymill.errors import DataError
from raymill.schema.jobs import MessagesPrepareJob

pytestmark = pytest.mark.usefixtures("no_ray")
NOTHING_LEARNED = (
    "all of the assistant's turns have weight 0, or an equivalent train, loss or mask; "
    "give one another"
)


def record(kind: str, question: str, answer: str) -> dict[str, Any]:
    """A record of a kind of messages."""
    if kind == "prompts":
        return {"question": question, "answer": answer}
    if kind == "chat":
        return {"prompt": question, "completion": answer}
    return {"prompt": question, "chosen": answer, "rejected": f"not {answer}"}


def job(kind: str, root: Path, parent: Path, *overrides: str) -> MessagesPrepareJob:
    made: MessagesPrepareJob = load(
        "prepare",
        [f"kind={kind}", f"parent={parent}", f"storage.root={root}", f"data.path={root}/d.jsonl",
         "data.sequence_length=120", *overrides],
    )  # fmt: skip
    return made


def run(made: MessagesPrepareJob, tokenizer: ChatTokenizer) -> PreparedData:
    return prepare(made, tokenizer)


@pytest.mark.parametrize(
    ("kind", "questions", "fraction"),
    [("chat", 2, 0.001), ("preference", 3, 0.001), ("prompts", 9, 0.0001), ("prompts", 9, 0.999)],
)
def test_few_questions_are_divided_by_the_fraction_that_is_named(
    kind: str,
    questions: int,
    fraction: float,
    tmp_path: Path,
    parent: Path,
    tokenizer: ChatTokenizer,
) -> None:
    """More records of the same questions would change nothing."""
    records = [record(kind, f"What is {n % questions} + 1?", f"{n} is it") for n in range(60)]
    write_jsonl(tmp_path / "d.jsonl", records)
    with pytest.raises(DataError) as caught:
        run(job(kind, tmp_path, parent, f"data.validation.fraction={fraction}"), tokenizer)
    told = str(caught.value)
    assert (
        "all 60 usable ones are in the other split, since they have few different first questions"
        in told
    )
    [advised] = re.findall(r"data\.validation\.fraction=[0-9.]+[0-9]", told)
    prepared = run(job(kind, tmp_path, parent, advised), tokenizer)
    assert all(split.rows for split in prepared.manifest.splits.values())


def test_one_question_cannot_be_divided(
    tmp_path: Path, parent: Path, tokenizer: ChatTokenizer
) -> None:
    records = [record("prompts", "What is 1 + 1?", f"{n} is it") for n in range(20)]
    write_jsonl(tmp_path / "d.jsonl", records)
    message = "share one first question, which is never in both splits; give some that have another"
    for fraction in ("0.1", "0.9"):
        made = job("prompts", tmp_path, parent, f"data.validation.fraction={fraction}")
        with pytest.raises(DataError, match=message):
            run(made, tokenizer)
    write_jsonl(tmp_path / "held.jsonl", [record("prompts", "What is 2 + 1?", "3")])
    held = f"data.validation.path={tmp_path}/held.jsonl"
    assert run(job("prompts", tmp_path, parent, held), tokenizer)
    others = [record("prompts", f"And {n}?", "3") for n in range(60)]
    write_jsonl(tmp_path / "d.jsonl", [*records, *others])
    assert run(job("prompts", tmp_path, parent, "data.validation.fraction=0.5"), tokenizer)


def test_a_column_that_groups_records_is_named(
    tmp_path: Path, parent: Path, tokenizer: ChatTokenizer
) -> None:
    records = [record("prompts", f"{n}?", "1") | {"site": "a"} for n in range(20)]
    write_jsonl(tmp_path / "d.jsonl", records)
    by_site = "data.validation.group_column=site"
    with pytest.raises(
        DataError, match=rf"share one value of {by_site}, which is never in both splits"
    ):
        run(job("prompts", tmp_path, parent, by_site), tokenizer)


@pytest.mark.parametrize("kind", ["chat", "prompts"])
def test_where_nothing_can_be_used_no_split_is_blamed(
    kind: str, tmp_path: Path, parent: Path, tokenizer: ChatTokenizer
) -> None:
    write_jsonl(tmp_path / "d.jsonl", [{"nothing": n} for n in range(3)])
    with pytest.raises(DataError, match=r"or raise data\.max_bad_fraction"):
        run(job(kind, tmp_path, parent), tokenizer)
    with pytest.raises(DataError, match=r"there are no usable records; the bad ones are kept"):
        run(job(kind, tmp_path, parent, "data.max_bad_fraction=1"), tokenizer)


def test_bad_records_are_allowed_as_it_is_said(
    tmp_path: Path, parent: Path, tokenizer: ChatTokenizer
) -> None:
    records: list[dict[str, Any]] = [record("prompts", f"{n}?", "1") for n in range(40)]
    write_jsonl(tmp_path / "d.jsonl", [*records, {"nothing": 1}, {"nothing": 2}])
    wanted = ["data.validation.fraction=0.5", "data.max_bad_fraction=0"]
    with pytest.raises(DataError, match=r"or raise data\.max_bad_fraction"):
        run(job("prompts", tmp_path, parent, *wanted), tokenizer)
    assert run(job("prompts", tmp_path, parent, wanted[0], "data.max_bad_fraction=0.1"), tokenizer)


def test_text_of_one_file_has_three_ways_to_hold_some_out(tmp_path: Path) -> None:
    """A larger fraction, of one file, is none of them."""
    for name in ("a.jsonl", "b.jsonl"):
        write_jsonl(tmp_path / name, [{"text": f"{name} {n}", "site": n} for n in range(9)])
    data = load(
        "prepare", ["data=files", f"data.path={tmp_path}/a.jsonl", "data.validation.fraction=0.9"]
    ).data
    with pytest.raises(
        DataError, match=r"not two files.*Three solutions: provide more files.*group_column.*path"
    ) as caught:
        plan_units(data, 0)
    assert "raise data.validation.fraction" not in str(caught.value)
    assert plan_units(replace(data, path=(f"{tmp_path}/*.jsonl",)), 0)
    assert plan_units(replace(data, validation=replace(data.validation, group_column="site")), 0)
    own = replace(data.validation, path=(f"{tmp_path}/b.jsonl",))
    assert plan_units(replace(data, validation=own), 0)


@pytest.fixture(scope="module")
def encoder(tokenizer: ChatTokenizer, tmp_path_factory: pytest.TempPathFactory) -> ChatEncoder:
    from raymill.data.messages.folder import load_chat_encoder

    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(folder)
    found = load_chat_encoder(folder)
    assert found is not None
    return found


def talk(*weights: int | None) -> dict[str, Any]:
    """A conversation of so many answers; None: without a weight."""
    messages: list[dict[str, Any]] = []
    for number, weight in enumerate(weights):
        said = {"role": "assistant", "content": f"Answer {number}."}
        messages += [
            {"role": "user", "content": f"{number}?"},
            said if weight is None else said | {"weight": weight},
        ]
    return {"messages": messages}


@pytest.mark.parametrize(
    ("weights", "train_on", "message", "mended", "train_on_then"),
    [
        ((0,), "all", NOTHING_LEARNED, (1,), "all"),
        ((0, 0), "all", NOTHING_LEARNED, (0, 1), "all"),
        ((0, 0), "last", NOTHING_LEARNED, (0, 1), "last"),
        ((1, 0), "last", "use data.train_on=all, or give that turn another", (1, 0), "all"),
        ((1, 0), "last", "use data.train_on=all, or give that turn another", (1, 1), "last"),
    ],
)  # fmt: skip
def test_weights_of_0_are_what_keeps_a_record_from_being_learned(
    encoder: ChatEncoder,
    weights: tuple[int, ...],
    train_on: Any,
    message: str,
    mended: tuple[int, ...],
    train_on_then: Any,
) -> None:
    """The template isn't blamed, which writes every word."""

    def encoded(found: Conversation | Problem, learned: Any) -> Any:
        if isinstance(found, Problem):
            return found
        [chat] = encoder.encode([found], learned)
        return chat

    chat = encoded(read_conversation(talk(*weights)), train_on)
    assert isinstance(chat, Problem)
    assert chat.cause == "no_assistant"
    assert message in chat.why and "template" not in chat.why
    assert not isinstance(encoded(read_conversation(talk(*mended)), train_on_then), Problem)


def test_a_reference_that_calls_tools_is_left_out_or_given() -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": {}}}
    messages = [
        {"role": "user", "content": "2+3?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
    ]
    found = read_prompt({"messages": messages})
    assert isinstance(found, Problem)
    assert "leave that turn out, or give a column 'answer'" in found.why
    assert isinstance(read_prompt({"messages": messages[:1]}), Prompt)
    assert isinstance(read_prompt({"messages": messages, "answer": "5"}), Prompt)


def test_an_empty_answer_is_left_out() -> None:
    found = read_prompt({"question": "2+3?", "answer": " "})
    assert isinstance(found, Problem) and "leave it out where there is none" in found.why
    assert isinstance(read_prompt({"question": "2+3?"}), Prompt)
    assert json.dumps(found.cause) == '"empty"'
