"""Every row of the tables in docs/data.md is read as it says, and well-known data sets without a word."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from raymill.data.messages.conversation import Conversation, read_conversation
from raymill.data.messages.problems import Problem
from raymill.data.preference.comparison import Comparison, read_comparison
from raymill.data.prompts.prompt import Prompt, read_prompt

PAGE = Path(__file__).parents[2] / "docs" / "data.md"
ROW = re.compile(r"\| (?P<tool>[^|]+) \| `(?P<record>[^|`]+)` \| (?P<read>[^|]+) \|")


def rows() -> Iterator[tuple[str, str, str]]:
    """(kind, record, what it is read as) of every row of the tables."""
    kind = ""
    for line in PAGE.read_text().splitlines():
        if line.startswith("#"):
            kind = line.removeprefix("### ")
        elif (row := ROW.fullmatch(line)) is not None:
            yield kind, row["record"], row["read"]


def spelled(messages: Sequence[Mapping[str, Any]], given: int = 0) -> str:
    """Messages in the notation of the tables."""
    texts = []
    for number, message in enumerate(messages):
        calls = [
            f"{call['function']['name']}({json.dumps(call['function']['arguments'])})"
            for call in message.get("tool_calls", ())
        ]
        thought = f"⟨{message['reasoning_content']}⟩" if "reasoning_content" in message else ""
        said = " ".join([thought + message["content"], *calls]).strip().replace("\n", "⏎")
        left_out = message["role"] == "assistant" and (number < given or "weight" in message)
        texts.append(f"{message['role']} {f'({said})' if left_out else said}")
    return " · ".join(texts)


def conversation_read(record: Any) -> str:
    found = read_conversation(record)
    if isinstance(found, Problem):
        return f"refused: {found.why}"
    assert found.unused == ()
    return spelled(found.messages, found.prompt_length)


def comparison_read(record: Any) -> str:
    found = read_comparison(record)
    if isinstance(found, Problem):
        return f"refused: {found.why}"
    assert found.unused == ()
    [pair] = found.pairs
    better, worse = found.answers[pair.better], found.answers[pair.worse]
    prompt = spelled(better.messages[: better.prompt_length], better.prompt_length)
    assert prompt == spelled(worse.messages[: worse.prompt_length], worse.prompt_length)
    return f"{prompt} → {better.messages[-1]['content']} > {worse.messages[-1]['content']}"


def prompt_read(record: Any) -> str:
    found = read_prompt(record)
    if isinstance(found, Problem):
        return f"refused: {found.why}"
    assert found.unused == ()
    return f"{spelled(found.messages)} → {found.answer}"


READ = {"Conversations": conversation_read, "Preferences": comparison_read, "Prompts": prompt_read}


@pytest.mark.parametrize(("kind", "record", "read"), rows())
def test_the_tables_hold(kind: str, record: str, read: str) -> None:
    found = READ[kind](json.loads(record))
    if read.startswith("refused: "):
        assert found.startswith("refused: ") and read.removeprefix("refused: ") in found, found
    else:
        assert found == read


def test_the_tables_are_there() -> None:
    kinds = [kind for kind, _, _ in rows()]
    assert {kind: kinds.count(kind) >= 10 for kind in READ} == dict.fromkeys(READ, True)
    tools = {
        row["tool"].split(",")[0]
        for row in map(ROW.fullmatch, PAGE.read_text().splitlines())
        if row
    }
    assert tools >= {"TRL", "LLaMA-Factory", "axolotl", "ms-swift", "NeMo", "verl"}


def turns(*texts: str, **more: Any) -> list[dict[str, Any]]:
    roles = ("user", "assistant")
    return [{"role": roles[n % 2], "content": text, **more} for n, text in enumerate(texts)]


CHOSEN, REJECTED = turns("Q", "A"), turns("Q", "B")
# Data sets as they lie on the hub: a record of each, with all its columns.
CONVERSATIONS: dict[str, dict[str, Any]] = {
    "ultrachat_200k": {"prompt": "Q", "prompt_id": "1f", "messages": CHOSEN},
    "no_robots": {"prompt": "Q", "prompt_id": "1f", "messages": CHOSEN, "category": "Coding"},
    "ultrafeedback_binarized": {
        "prompt": "Q", "prompt_id": "1f", "chosen": CHOSEN, "rejected": REJECTED, "messages": CHOSEN,
        "score_chosen": 8.5, "score_rejected": 2.0,
    },
    "OpenHermes-2.5": {
        "custom_instruction": None, "topic": None, "model_name": None, "model": None,
        "skip_prompt_formatting": False, "category": "orca", "conversations": [
            {"from": "system", "value": "S", "weight": None}, {"from": "human", "value": "Q", "weight": None},
            {"from": "gpt", "value": "A", "weight": None},
        ], "views": None, "language": None, "id": None, "title": None, "idx": None, "hash": None,
        "avatarUrl": None, "system_prompt": "S", "source": "airoboros2.2",
    },
    "SlimOrca": {"conversations": [
        {"from": "system", "value": "S", "weight": None}, {"from": "human", "value": "Q", "weight": 0.0},
        {"from": "gpt", "value": "A", "weight": 1.0},
    ]},
    "tulu-3-sft-mixture": {"id": "x_1", "messages": CHOSEN, "source": "ai2-adapt-dev/flan"},
    "oasst2_top": {"messages": CHOSEN, "message_tree_id": "1f", "lang": "en"},
    "lima": {"conversations": ["Q", "A"], "source": "stackexchange"},
    "gsm8k": {"question": "Q", "answer": "2 + 2 = <<2+2=4>>4\n#### 4"},
    "MATH": {"problem": "Q", "level": "Level 5", "type": "Algebra", "solution": "A"},
    "HelpSteer": {
        "prompt": "Q", "response": "A", "helpfulness": 4, "correctness": 4, "coherence": 4,
        "complexity": 1, "verbosity": 1,
    },
    "alpaca": {"instruction": "Q", "input": "", "output": "A", "text": "Below is … Q … A"},
    "dolly-15k": {"instruction": "Q", "context": "", "response": "A", "category": "open_qa"},
    "OpenOrca": {"id": "niv.1", "system_prompt": "", "question": "Q", "response": "A"},
    "MetaMathQA": {"type": "MATH_AnsAug", "query": "Q", "original_question": "Q", "response": "A"},
    "NuminaMath-CoT": {"source": "amc", "problem": "Q", "solution": "A", "messages": CHOSEN},
    "OpenThoughts-114k": {"system": "S", "conversations": [
        {"from": "user", "value": "Q"}, {"from": "assistant", "value": "<think>T</think>A"},
    ]},
    "Capybara": {"source": "s", "conversation": [{"input": "Q", "output": "A"}]},
    "lmsys-chat-1m": {
        "conversation_id": "1f", "model": "m", "conversation": CHOSEN, "turn": 1, "language": "English",
        "openai_moderation": [{"flagged": False}], "redacted": False,
    },
    "WildChat": {
        "conversation_hash": "1f", "model": "m", "timestamp": "2024", "turn": 1, "language": "English",
        "conversation": turns(
            "Q", "A", language="English", toxic=False, redacted=False, hashed_ip="1f", country="x",
            state=None, header={"accept-language": "en"}, turn_identifier=1, timestamp=None,
        ),
        "openai_moderation": [], "detoxify_moderation": [], "toxic": False, "redacted": False,
    },
    "kto-mix-14k": {"prompt": CHOSEN[:1], "completion": CHOSEN[1:], "label": True},
}  # fmt: skip
PREFERENCES: dict[str, dict[str, Any]] = {
    "ultrafeedback_binarized": CONVERSATIONS["ultrafeedback_binarized"],
    "hh-rlhf": {
        "chosen": "\n\nHuman: Q\n\nAssistant: A", "rejected": "\n\nHuman: Q\n\nAssistant: B",
    },
    "tulu-3-preference": {
        "id": "x", "source": "s", "prompt": "Q", "chosen": CHOSEN, "rejected": REJECTED,
        "chosen_model": "m", "rejected_model": "n", "chosen_rating": 5.0, "rejected_rating": 1.0,
    },
    "Nectar": {
        "prompt": "\n\nHuman: Q\n\nAssistant: ", "turns": 1, "num_responses": 2, "source": ["lmsys"],
        "good_natured": True, "answers": [
            {"answer": "A", "model": "m", "rank": 1.0}, {"answer": "B", "model": "n", "rank": 2.0},
        ],
    },
    "HelpSteer2": {
        "split": "train", "prompt": "Q", "response_1": "B", "response_2": "A", "preference_strength": 3,
        "preference_statement": "2 is better", "preference_elaboration": "It is.",
        "three_most_similar_preferences": [{"statement": "x"}],
        "all_preferences_unprocessed": [{"strength": 3}],
    },
    "HelpSteer3": {
        "domain": "general", "language": "english", "context": CHOSEN[:1], "response1": "A",
        "response2": "B", "overall_preference": -1, "individual_preference": [{"score": -1}],
    },
    "orca_dpo_pairs": {"system": "S", "question": "Q", "chosen": "A", "rejected": "B"},
    "dpo-mix-7k": {
        "dataset": "d", "chosen": CHOSEN, "rejected": REJECTED, "chosen_rating": 5.0, "rejected_rating": 1.0,
    },
    "orpo-dpo-mix-40k": {
        "source": "s", "chosen": CHOSEN, "rejected": REJECTED, "prompt": "Q", "question": "Q",
    },
    "truthy-dpo": {
        "id": "1f", "source": "s", "system": "S", "prompt": "Q", "chosen": "A", "rejected": "B",
    },
}  # fmt: skip


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_well_known_conversations_are_read_without_a_word(name: str) -> None:
    found = read_conversation(CONVERSATIONS[name])
    assert isinstance(found, Conversation), found
    assert found.unused == ()
    said = [message["role"] for message in found.messages if message["role"] != "system"]
    assert said == ["user", "assistant"]


@pytest.mark.parametrize("name", PREFERENCES)
def test_well_known_preferences_are_read_without_a_word(name: str) -> None:
    assert comparison_read(PREFERENCES[name]).endswith("user Q → A > B")
    assert isinstance(read_comparison(PREFERENCES[name]), Comparison)


def test_of_prompts_everything_else_is_kept() -> None:
    record = {"data_source": "d", "prompt": CHOSEN[:1], "ability": "math",
              "reward_model": {"ground_truth": 4.0, "style": "rule"}}  # fmt: skip
    found = read_prompt(record)
    assert isinstance(found, Prompt)
    assert found.answer == "4"
    assert found.extra == {key: record[key] for key in ("data_source", "ability", "reward_model")}
    # What isn't text or a number is no reference, but is there for reward functions.
    found = read_prompt({"prompt": "Q", "ground_truth": {"target": [4]}})
    assert isinstance(found, Prompt)
    assert (found.answer, found.extra) == (None, {"ground_truth": {"target": [4]}})
