"""Thoughts and calls are split from an answer, however its text is cut, and marks never leak."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.messages import shipped
from raymill.data.messages.encode import ChatEncoder
from raymill.data.messages.template import CHATML, ChatTemplate
from raymill.generate.answer_form import AnswerReader, answer_form
from raymill.generate.decoding import AnswerText
from raymill.generate.thoughts import ThoughtMarks, ThoughtSplitter, thought_marks
from raymill.generate.tools import HERMES, LLAMA, MISTRAL, ToolCall, ToolSplitter, tool_format_of


def cuts(text: str, data: st.DataObject) -> Iterator[str]:
    """The text in pieces."""
    at = 0
    while at < len(text):
        size = data.draw(st.integers(1, 12))
        yield text[at : at + size]
        at += size


MARKS = {
    "unopened": ThoughtMarks(),
    "opened": ThoughtMarks(opened=True),
    "channels": ThoughtMarks("<a>", "<end><f>", plain="<f>"),
}


def split_whole(text: str, marks: ThoughtMarks) -> tuple[str, str]:
    """Thought and content of a whole answer."""
    begun = text.lstrip()
    if begun.startswith(marks.opens) or marks.opened:
        thought, _, content = begun.removeprefix(marks.opens).partition(marks.closes)
        return thought.strip(), content.lstrip()
    if marks.plain and begun.startswith(marks.plain):
        return "", begun.removeprefix(marks.plain).lstrip()
    return "", text


@pytest.mark.parametrize("marks", MARKS.values(), ids=MARKS)
@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_thoughts_are_split_however_the_text_is_cut(
    marks: ThoughtMarks, data: st.DataObject
) -> None:
    words = [marks.opens, marks.closes, marks.plain, marks.closes[:-1], "<", "\n", " ", "x", "hm"]
    text = "".join(data.draw(st.lists(st.sampled_from(words), max_size=9)))
    splitter = ThoughtSplitter(marks)
    pieces = [*(splitter.push(piece) for piece in cuts(text, data)), splitter.finish()]
    found = tuple("".join(part) for part in zip(*pieces, strict=True))
    assert found == split_whole(text, marks)


def test_text_is_held_back_only_while_it_may_be_a_mark() -> None:
    splitter = ThoughtSplitter(ThoughtMarks())
    pushed = [
        "<th",
        "ink>\n",
        "I ",
        "see <",
        "b> ",
        "</thi",
        "nk>",
        "\n\n",
        "It ",
        "is <thi",
        "nk>",
    ]
    assert [tuple(splitter.push(piece)) for piece in pushed] == [
        ("", ""), ("", ""), ("I", ""), (" see", ""), (" <b>", ""), ("", ""), ("", ""), ("", ""),
        ("", "It "), ("", "is <thi"), ("", "nk>"),
    ]  # fmt: skip


SHIPPED_MARKS = {
    "qwen3": ThoughtMarks(),
    "qwen2_5": None,
    "llama3_1": None,
    "deepseek_r1_distill": ThoughtMarks(opened=True),
    "gptoss": ThoughtMarks(
        "<|channel|>analysis<|message|>",
        "<|end|><|start|>assistant<|channel|>final<|message|>",
        plain="<|channel|>final<|message|>",
    ),
}


@pytest.mark.parametrize("name", SHIPPED_MARKS)
def test_templates_tell_their_marks(name: str) -> None:
    assert thought_marks(shipped.encoder(name)) == SHIPPED_MARKS[name]


FORMATS = {
    "qwen2_5": HERMES, "qwen3": HERMES, "llama3_1": LLAMA, "llama3_2": LLAMA, "llama3": None, "phi3": None,
    "gemma": None, "smolvlm": None,
}  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_templates_tell_how_they_write_calls(name: str) -> None:
    assert tool_format_of(shipped.encoder(name).template) is FORMATS[name]


MISTRAL_TEMPLATE = """{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}
{% if tools %}[AVAILABLE_TOOLS] {{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}[INST] {{ m.content }}[/INST]
{% elif m.tool_calls %}[TOOL_CALLS] [{% for c in m.tool_calls %}{"name": "{{ c.function.name }}", "arguments":
{{ c.function.arguments | tojson }}, "id": "{{ c.id }}"}{% if not loop.last %}, {% endif %}{% endfor %}]
{{ eos_token }}{% elif m.role == 'tool' %}[TOOL_RESULTS]{{ m.content }}{% else %}{{ m.content }}
{{ eos_token }}{% endif %}{% endfor %}"""


def test_mistral_calls_are_known_by_their_template() -> None:
    template = ChatTemplate(MISTRAL_TEMPLATE, shipped.VARIABLES)
    assert tool_format_of(template) is MISTRAL
    assert tool_format_of(ChatTemplate(CHATML, {}, ("<|im_end|>",))) is HERMES


ARGUMENTS = st.dictionaries(
    st.text("ab</>\"{}\\é", max_size=4),
    st.recursive(st.none() | st.booleans() | st.integers() | st.text("x\"\\}>é ", max_size=4),
                 lambda inner: st.lists(inner, max_size=2)),
    max_size=3,
)  # fmt: skip
CALLS = st.lists(
    st.tuples(st.sampled_from(["weather", "f.g", "a-b_1"]), ARGUMENTS), min_size=1, max_size=3
)


def hermes(calls: list[tuple[str, Any]]) -> str:
    written = [json.dumps({"name": name, "arguments": given}) for name, given in calls]
    return "\n".join(f"<tool_call>\n{text}\n</tool_call>" for text in written)


def mistral(calls: list[tuple[str, Any]]) -> str:
    named = [{"name": name, "arguments": given, "id": "123456789"} for name, given in calls]
    return f"[TOOL_CALLS] {json.dumps(named)}"


def new_mistral(calls: list[tuple[str, Any]]) -> str:
    return "".join(f"[TOOL_CALLS]{name}[ARGS]{json.dumps(given)}" for name, given in calls)


def llama(calls: list[tuple[str, Any]]) -> str:
    return "; ".join(json.dumps({"name": name, "parameters": given}) for name, given in calls)


WRITERS: dict[str, tuple[Any, Callable[[Any], str], bool]] = {
    "hermes": (HERMES, hermes, True),
    "mistral": (MISTRAL, mistral, True),
    "newer mistral": (MISTRAL, new_mistral, True),
    "llama": (LLAMA, llama, False),
    "llama with a tag": (LLAMA, lambda calls: "<|python_tag|>" + llama(calls), True),
}


@pytest.mark.parametrize("kind", WRITERS)
@settings(deadline=None, max_examples=40)
@given(calls=CALLS, before=st.sampled_from(["", "Let me see.\n", "<tool <", "  "]), data=st.data())
def test_calls_are_parsed_however_the_text_is_cut(
    kind: str, calls: list[tuple[str, Any]], before: str, data: st.DataObject
) -> None:
    form, write, takes_text = WRITERS[kind]
    before = before if takes_text else before and " "
    splitter = ToolSplitter(form)
    pieces = [splitter.push(piece) for piece in cuts(before + write(calls), data)]
    pieces.append(splitter.finish())
    found = [call for piece in pieces for call in piece.calls]
    assert [(call.name, json.loads(call.arguments)) for call in found] == calls
    assert "".join(piece.content for piece in pieces) == before.rstrip()


@pytest.mark.parametrize("form", [HERMES, MISTRAL, LLAMA], ids=lambda form: form.name)
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_what_is_no_call_stays_text(form: Any, data: st.DataObject) -> None:
    words = [
        form.opens,
        form.closes or "]",
        '{"name": 1}',
        "{",
        "<tool",
        "x ",
        "\n",
        '{"name": "f',
        "[ARGS]",
    ]
    text = "".join(data.draw(st.lists(st.sampled_from(words), max_size=8)))
    splitter = ToolSplitter(form)
    pieces = [*(splitter.push(piece) for piece in cuts(text, data)), splitter.finish()]
    assert all(not piece.calls for piece in pieces)
    assert "".join("".join(piece.content for piece in pieces).split()) == "".join(text.split())


def test_json_that_is_no_call_comes_at_once() -> None:
    splitter = ToolSplitter(LLAMA)
    assert splitter.push('{"na').content == ""
    assert splitter.push('ture": 1').content == '{"nature": 1'


def test_special_tokens_of_marks_are_read(encoder: ChatEncoder) -> None:
    """Here `<think>` and `<tool_call>` are special tokens, which decoders usually leave out."""
    form = answer_form(encoder)
    shown = form.shown(with_tools=True)
    assert len(shown) == 4
    assert len(form.shown(with_tools=False)) == 2
    tokenizer = shipped.byte_level(TOKENS)
    words = ["<think>\nSo be it.\n</think>\n\n", 'Well.\n<tool_call>\n{"name": "f"}\n</tool_call>']
    ids = tokenizer.encode("".join(words) + "<|im_end|>", add_special_tokens=False).ids
    text, reader = AnswerText(tokenizer, shown=shown), AnswerReader(form, with_tools=True)
    pieces = [reader.push(text.push(token)) for token in ids]
    pieces += [reader.push(text.finish()), reader.finish()]
    assert "".join(piece.thought for piece in pieces) == "So be it."
    assert "".join(piece.content for piece in pieces) == "Well."
    assert [call for piece in pieces for call in piece.calls] == [ToolCall("f", "{}")]


TOKENS = ("<|im_start|>", "<|im_end|>", "<think>", "</think>", "<tool_call>", "</tool_call>")


@pytest.fixture(scope="module")
def encoder() -> ChatEncoder:
    return ChatEncoder(shipped.byte_level(TOKENS), ChatTemplate(CHATML, {}))
