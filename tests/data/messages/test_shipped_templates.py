"""Templates that models ship: what is trained on equals transformers byte for byte and holds all that
the assistant wrote, or the conversation is refused with advice that helps. The table in the docs is
what comes out; `PYTHONPATH=platform:tests python tests/data/chat/test_shipped_templates.py` writes it."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from data.messages.shipped import CONVERSATIONS, NAMES, VARIABLES, encoder, rendered, tokenizer
from raymill.data.messages.conversation import Problem
from raymill.data.messages.encode import ChatEncoder, EncodedChat
from raymill.data.messages.template import CHATML, ChatTemplate
from raymill.errors import DataError

PAGE = Path(__file__).resolve().parents[3] / "docs" / "templates.md"
ORIGINALS = tuple(name for name in NAMES if not name.endswith("_training"))
SETTINGS: tuple[tuple[str, Any, Any], ...] = (
    ("yes", "all", "learn"),
    ("`last`", "last", "learn"),
    ("`drop`", "all", "drop"),
    ("`last` and `drop`", "last", "drop"),
)
REASONS = {
    "prompts for assistant turn": "unlike its prompt",
    "leaves out": "left out",
    "doesn't end": "no end",
    "chat template fails": "refuses it itself",
}
# With markers a template may write what was said before otherwise than when it asked.
REWRITTEN = {("gptoss_training", "thinking, tools")}
ADVICE = re.compile(r"set data\.(train_on|thinking)=(\w+)(?: and data\.thinking=(\w+))?, or use ")


@cache
def encoded(
    chat: ChatEncoder, case: str, train_on: Any = "all", thinking: Any = "learn"
) -> EncodedChat | Problem:
    [found] = chat.encode([CONVERSATIONS[case]], train_on, thinking)
    return found


def text(ids: Any) -> str:
    return str(tokenizer().decode(list(ids), skip_special_tokens=False))


def check(name: str, case: str, found: EncodedChat, train_on: str) -> None:
    """Check that what is trained on is transformers' text; what is learned is what the assistant wrote."""
    conversation = CONVERSATIONS[case]
    messages, tools = conversation.messages, conversation.tools
    assert text(found.ids) == rendered(name, messages, tools, tokenize=False)
    learned = text(found.ids[found.learned])
    turns = [message for message in messages if message["role"] == "assistant"]
    for message in turns if train_on == "all" else turns[-1:]:
        thoughts = re.split("</?think>", message["content"])
        pieces = [*thoughts, message.get("reasoning_content", "")]
        if "tool_calls" in message:
            pieces += ["weather", "city", "Oslo", "days", "2"]
        assert all(piece.strip() in learned for piece in pieces), (message, learned)


def check_marks(name: str, case: str, found: EncodedChat) -> None:
    """Check that what is learned is marked; the rest of it is the prompt's, or stands after the end."""
    conversation = CONVERSATIONS[case]
    marked = rendered(
        name,
        conversation.messages,
        conversation.tools,
        return_dict=True,
        return_assistant_tokens_mask=True,
    )["assistant_masks"]
    assert all(mark for mark, is_learned in zip(marked, found.learned, strict=True) if is_learned)
    given = text(
        index
        for index, mark, is_learned in zip(found.ids, marked, found.learned, strict=True)
        if mark and not is_learned
    )
    assert re.fullmatch(
        r"(\s|<think>|</think>|<\|start\|>assistant|<\|assistant\|>|<eos>|<｜Assistant｜>|<｜tool▁outputs▁end｜>)*",
        given,
    ), given


def check_prompt(chat: ChatEncoder, case: str, found: EncodedChat) -> None:
    """A model is asked with exactly what stands before its last turn."""
    conversation = CONVERSATIONS[case]
    prompt = chat.prompt_ids(conversation.messages[:-1], conversation.tools)
    assert found.ids[: len(prompt)].tolist() == prompt
    before, after = found.by_assistant[len(prompt) - 1], found.by_assistant[len(prompt) :]
    assert not before and after.any()


def check_read_back(chat: ChatEncoder, case: str, found: EncodedChat) -> None:
    """A turn that was generated is given back to the template as the message that it writes so."""
    *_, message = CONVERSATIONS[case].messages
    if "<think>" in message["content"]:
        return
    start = len(found.by_assistant) - 1
    while not found.by_assistant[start] or found.by_assistant[start - 1]:
        start -= 1
    turn = found.ids[start:][found.by_assistant[start:]]
    while chat._segments.is_special(turn[-1:]).all():
        turn = turn[:-1]
    read = chat.message_of(turn.tolist())
    assert read["content"].strip() == message["content"]
    assert read.get("reasoning_content", "").strip() == message.get("reasoning_content", "")


@pytest.mark.parametrize(
    ("name", "ends"),
    [
        ("glm4moe_training", {"<|user|>", "<|observation|>"}),
        ("gptoss", {"<|return|>", "<|call|>"}),
        ("diffusion_gemma", {"<turn|>", "<|tool_response>"}),
        # Of several calls each has this mark at its end.
        ("diffusion_gemma_training", {"<turn|>"}),
        ("qwen3", {"<|im_end|>"}),
        ("llama3_1", {"<|eot_id|>"}),
        ("gemma", {"<end_of_turn>"}),
    ],
)
def test_turns_that_call_tools_stop_too(name: str, ends: set[str]) -> None:
    """Turns that end otherwise than answers do (huggingface/trl#5988)."""
    assert {tokenizer().id_to_token(index) for index in encoder(name).stop_ids} == ends


def check_advice(chat: ChatEncoder, case: str, train_on: str, refused: Problem) -> None:
    """The advice helps."""
    if refused.why.startswith("The chat template fails"):  # its own words
        return
    if (found := ADVICE.search(refused.why)) is not None:
        settings = {"train_on": train_on, "thinking": "learn", found[1]: found[2]}
        settings["thinking"] = found[3] or settings["thinking"]
        again = encoded(chat, case, settings["train_on"], settings["thinking"])
        assert isinstance(again, EncodedChat), again
    elif "set data.train_on=last" in refused.why:
        assert isinstance(encoded(chat, case, "last"), EncodedChat)
    assert re.search(r"data\.template=chatml|with {% generation %} markers", refused.why)
    assert isinstance(encoded(chatml(), case), EncodedChat)


@cache
def chatml() -> ChatEncoder:
    return ChatEncoder(tokenizer(), ChatTemplate(CHATML, VARIABLES))


@pytest.mark.parametrize("name", NAMES)
def test_what_is_trained_on_is_what_transformers_renders(name: str) -> None:
    if name == "glm4moe":
        with pytest.raises(
            DataError, match=r"doesn't end assistant turn 1 .*data\.template=chatml"
        ):
            encoder(name)
        return
    chat = encoder(name)
    for case in CONVERSATIONS:
        several = len(CONVERSATIONS[case].messages) > 3
        for train_on in ("all", "last") if several else ("all",):
            found = encoded(chat, case, train_on)
            if isinstance(found, Problem):
                check_advice(chat, case, train_on, found)
                continue
            check(name, case, found, train_on)
            # After a tool's result these ask otherwise than after a question.
            if not ("tools" in case and name.startswith(("deepseek", "diffusion_gemma"))):
                check_read_back(chat, case, found)
            if (name, case) not in REWRITTEN:
                check_prompt(chat, case, found)
            if name.endswith("_training") and train_on == "all":
                check_marks(name, case, found)


def cell(chat: ChatEncoder | None, case: str) -> str:
    if chat is None:
        return "no: no end"
    for words, train_on, thinking in SETTINGS:
        if isinstance(encoded(chat, case, train_on, thinking), EncodedChat):
            return words
    refused = encoded(chat, case)
    assert isinstance(refused, Problem)
    return "no: " + next(words for reason, words in REASONS.items() if reason in refused.why)


def table() -> str:
    cases = [case for case in CONVERSATIONS if "<" not in case]
    rows = [["template", *cases], ["---"] * (len(cases) + 1)]
    for name in ORIGINALS:
        chat = None if name == "glm4moe" else encoder(name)
        rows.append([f"`{name}`", *(cell(chat, case) for case in cases)])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def test_the_table_in_the_docs() -> None:
    assert table() in PAGE.read_text(), "write it anew: run this file as a script"


if __name__ == "__main__":
    page = PAGE.read_text()
    start, end = page.index("| template |"), page.index("\n\n", page.index("| template |")) + 1
    PAGE.write_text(page[:start] + table() + page[end:])
