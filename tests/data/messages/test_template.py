"""Renderings equal transformers', and the assistant's turns are located in every kind of template."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.messages.tokenizer_factory import (
    CHATML_TOKENS,
    LLAMA,
    LLAMA_TOKENS,
    QWEN,
    ZEPHYR,
    ZEPHYR_TOKENS,
    byte_level,
    transformers_tokenizer,
)
from raymill.data.messages.template import CHATML, ChatTemplate, RenderedSegment
from raymill.errors import DataError

USER = {"role": "user", "content": "Why?"}
REPLY = {"role": "assistant", "content": "So."}
AGAIN = {"role": "user", "content": "Eh?"}
LAST = {"role": "assistant", "content": "No."}
CHAT = [USER, REPLY, AGAIN, LAST]
CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"x": "é<"}}}],
}
TOOLS = [{"type": "function", "function": {"name": "f", "description": "Größe & <b>"}}]


def learned(segments: list[RenderedSegment]) -> list[str]:
    return [segment.text for segment in segments if segment.learned]


def test_the_default_template_word_for_word() -> None:
    system = {"role": "system", "content": "Be short."}
    assert ChatTemplate(CHATML, {}).segments([system, *CHAT]) == [
        RenderedSegment(
            "<|im_start|>system\nBe short.<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n"
            "<|im_start|>assistant\n",
            False,
        ),
        RenderedSegment("So.<|im_end|>", True, 0),
        RenderedSegment("\n<|im_start|>user\nEh?<|im_end|>\n<|im_start|>assistant\n", False),
        RenderedSegment("No.<|im_end|>", True, 1),
        RenderedSegment("\n", False),
    ]


def test_the_default_template_with_tools_word_for_word() -> None:
    messages = [USER, CALL, {"role": "tool", "content": "3"}, {**CALL, "content": "Hm."}]
    for given_messages in (messages, [{"role": "system", "content": "Be short."}, *messages]):
        segments = ChatTemplate(CHATML, {}).segments(given_messages, TOOLS)
        head = "Be short.\n\n" if len(given_messages) > len(messages) else ""
        assert segments[0].text == (
            f"<|im_start|>system\n{head}# Tools\n\nYou may call one or more functions to assist with "
            "the user query.\n\nYou are provided with function signatures within <tools></tools> XML "
            'tags:\n<tools>\n{"type": "function", "function": {"name": "f", "description": '
            '"Größe & <b>"}}\n</tools>\n\nFor each function call, return a json object with function '
            "name and arguments within <tool_call></tool_call> XML tags:\n<tool_call>\n"
            '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call><|im_end|>\n'
            "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
        )
        call = '<tool_call>\n{"name": "f", "arguments": {"x": "é<"}}\n</tool_call><|im_end|>'
        assert segments[1:] == [
            RenderedSegment(call, True, 0),
            RenderedSegment("\n<|im_start|>tool\n3<|im_end|>\n<|im_start|>assistant\n", False),
            RenderedSegment("Hm.\n" + call, True, 1),
            RenderedSegment("\n", False),
        ]


def test_only_the_last_turn() -> None:
    for source in (CHATML, QWEN):
        template = ChatTemplate(source, {}, CHATML_TOKENS)
        segments = template.segments(CHAT, train_on="last")
        assert learned(segments) == ["No.<|im_end|>"]
        assert len(segments) == 3
        everything = template.segments(CHAT)
        assert "".join(s.text for s in segments) == "".join(s.text for s in everything)


@pytest.mark.parametrize(
    ("source", "variables", "special", "replies"),
    [
        (QWEN, {}, CHATML_TOKENS, ["So.<|im_end|>", "No.<|im_end|>"]),
        (QWEN, {"eos_token": "<|im_end|>"}, (), ["So.<|im_end|>", "No.<|im_end|>"]),
        (
            LLAMA,
            {"bos_token": "<|begin_of_text|>"},
            LLAMA_TOKENS,
            ["So.<|eot_id|>", "No.<|eot_id|>"],
        ),
        (ZEPHYR, {"eos_token": "</s>"}, ZEPHYR_TOKENS, ["So.</s>", "No.</s>"]),
    ],
)
def test_templates_without_markers(
    source: str, variables: dict[str, str], special: tuple[str, ...], replies: list[str]
) -> None:
    template = ChatTemplate(source, variables, special)
    assert not template.has_markers
    segments = template.segments(CHAT)
    assert learned(segments) == replies
    assert [segment.turn for segment in segments] == [None, 0, None, 1, None][: len(segments)]
    assert "".join(segment.text for segment in segments) == template.render(CHAT)
    prompt = template.prompt([*CHAT, USER])
    assert learned(prompt) == replies
    assert "".join(s.text for s in prompt) == template.render(
        [*CHAT, USER], add_generation_prompt=True
    )


def test_a_turn_that_later_messages_change_is_refused_unless_it_is_the_last() -> None:
    """Some templates drop the reasoning of earlier turns."""
    source = QWEN.replace("message['content']", "(message['content'] if loop.last else 'x')")
    template = ChatTemplate(source, {}, CHATML_TOKENS)
    with pytest.raises(
        DataError,
        match=r"before assistant turn 1 \(message 2\) differently once that turn is there",
    ):
        template.segments(CHAT)
    plain = ChatTemplate(QWEN, {}, CHATML_TOKENS)
    with pytest.raises(DataError, match=r"turn 2 \(message 4\)"):
        template.segments(CHAT, train_on="last")
    assert learned(plain.segments(CHAT, train_on="last")) == ["No.<|im_end|>"]
    # A prompt needs only those turns apart whose tokens are at hand.
    assert learned(template.prompt([*CHAT, USER], turns=0)) == []
    with pytest.raises(DataError, match="turn 1"):
        template.prompt([*CHAT, USER], turns=1)


def test_last_only_needs_the_last_turns_beginning() -> None:
    """Earlier replies are shortened; before the last turn that is so with and without it."""
    source = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{{ m.content if m.role == 'user' or loop.last else 'x' }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    template = ChatTemplate(source, {}, CHATML_TOKENS)
    assert learned(template.segments(CHAT, train_on="last")) == ["No.<|im_end|>"]
    with pytest.raises(
        DataError, match=r"turn 1 \(message 2\).*data\.train_on=last.*generation %}"
    ):
        template.segments(CHAT)


def test_a_template_that_ends_no_turn_is_refused() -> None:
    source = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    with pytest.raises(DataError, match=r"doesn't end assistant turn 1 .*never learn to stop"):
        ChatTemplate(source, {}, CHATML_TOKENS).segments(CHAT)


def test_a_turn_of_several_marked_parts() -> None:
    source = (
        "{% for m in messages %}{% if m.role == 'assistant' %}A{% for part in m.content %}"
        "{% generation %}{{ part }}{% endgeneration %}-{% endfor %}"
        "{% else %}U{{ m.content }}{% endif %}{% endfor %}"
    )
    template = ChatTemplate(source, {})
    messages = [USER, {"role": "assistant", "content": "ab"}, AGAIN]
    messages += [{"role": "assistant", "content": "cde"}]
    segments = template.segments(messages)
    assert [(s.text, s.turn) for s in segments if s.learned] == [
        ("a", 0), ("b", 0), ("c", 1), ("d", 1), ("e", 1),
    ]  # fmt: skip
    assert learned(template.segments(messages, train_on="last")) == ["c", "d", "e"]


@pytest.mark.parametrize(
    "body",
    [
        "{% generation %}a{% generation %}b{% endgeneration %}{% endgeneration %}",
        "{% set x %}{% generation %}a{% endgeneration %}{% endset %}{{ x[:1] }}",
        "{{ '\\ufdd1' }}",
    ],
)
def test_markers_that_do_not_match_are_refused(body: str) -> None:
    source = "{% for m in messages %}{{ m.content }}{% endfor %}" + body
    if "generation" not in body:
        source += "{% generation %}{% endgeneration %}"
    with pytest.raises(DataError, match=r"markers|can't be matched"):
        ChatTemplate(source, {}).segments([USER, REPLY])


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("{% if %}", r"can't be read: Expected an expression.* in line 1\."),
        ("x" * 70_000, "longer than 64 KiB"),
        ("\ufdd0", "noncharacter"),
        ("{% include 'x' %}", "Include isn't supported"),
        ("{{ x | center(3) }}", "No filter named 'center'"),
    ],
)
def test_what_cannot_be_read(source: str, why: str) -> None:
    with pytest.raises(DataError, match=why):
        ChatTemplate(source, {})


def test_the_templates_own_complaint_is_passed_on() -> None:
    template = ChatTemplate("{{ raise_exception('Roles must alternate!') }}", {})
    with pytest.raises(DataError, match="Roles must alternate!"):
        template.render(CHAT)
    with pytest.raises(DataError, match="'nothing' is undefined"):
        ChatTemplate("{{ nothing.at.all }}", {}).render(CHAT)


def test_a_template_can_be_sent_to_another_process() -> None:
    template = ChatTemplate(QWEN, {"eos_token": "<|im_end|>"}, CHATML_TOKENS)
    again = pickle.loads(pickle.dumps(template))
    assert again.segments(CHAT) == template.segments(CHAT)


# What chat templates of known models use, statement by statement.
IDIOMS = (
    "{% for m in messages %}  {% if loop.first %}\n a {%- endif %}\n{{- m.content | trim }}\n\n{% endfor %}",
    "{{ tools | tojson }} {{ tools | tojson(indent=4) }} {{ messages[0] | tojson(sort_keys=true) }}",
    "{%- for m in messages[::-1] %}{{ m['content'][1:] ~ loop.index ~ m.role }}{% endfor %}",
    "{% macro f(m, n=2) %}[{{ m.role.upper() }}{{ n }}]{% endmacro %}{{ f(messages[0]) }}"
    "{{ f(messages[1], 3) }}",
    "{% set ns = namespace(a=0, b=[]) %}{% for m in messages %}{% set ns.a = ns.a + 1 %}"
    "{% set ns.b = ns.b + [m.role] %}{% endfor %}{{ ns.a }} {{ ns.b }} {{ ns.b | join(', ') }}",
    "{% for m in messages if m.role == 'user' %}{{ m.content.split('h')[-1].strip('?') }}{% endfor %}",
    "{% for m in messages %}{% if m.role in ['user'] %}{% continue %}{% endif %}{{ m }}{% endfor %}",
    "{% if tools is defined and tools is not none and tools is iterable %}{{ tools | length }}{% endif %}",
    "{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | list }}",
    "{% for k, v in messages[0].items() %}{{ k }}={{ v | default('x', true) }}{% endfor %}",
    "{% for k, v in tools[0].function | dictsort %}{{ k | capitalize }}: {{ v | string }};{% endfor %}",
    "{{ 'a{}b{}'.format(1, messages[0].role) }} {{ 'x' * 3 }} {{ 7 % 4 }} {{ 2 ** 10 }} {{ 7 // 2 }}",
    "{% set x %}{{ messages[0].content }}!{% endset %}{{ x | replace('W', 'w') }} {{ x.replace('?', '') }}",
    "{{ bos_token }}{% if not add_generation_prompt is defined %}{% set y = 1 %}{% endif %}{{ y }}",
    "{% for c in 'abc' recursive %}{{ c }}{{ loop.last }}{{ loop.previtem }}{% endfor %}{{ range(3) | list }}",
    "{{ ('&<' | e) + '<' }} {{ '<' | safe }} {{ 'a\nb' | indent(2, true) }} {{ [3, 1, 2] | sort | first }}",
    "{% filter upper %}{{ messages[0].content }}{% endfilter %}"
    "{% macro h() %}{{ caller(2) }}{% endmacro %}{% call(x) h() %}<{{ x }}>{% endcall %}",
    "{{ messages[-1]['content'] == 'No.' }} {{ 'N' in messages[-1].content }} {{ 'x' in messages[0] }}",
    "{{ [1, 2] | sum }} {{ dict(a=1) }} {{ {'a': (1, 2)} }} {{ undefined_thing }} {{ none }} {{ 1.5 }}",
    "{{ messages | groupby('role') | map('first') | list | length }} {{ ['b', 'a'] | unique | list }}",
)


@pytest.mark.parametrize("source", [CHATML, QWEN, LLAMA, ZEPHYR, *IDIOMS])
def test_renderings_equal_transformers(source: str) -> None:
    named = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    theirs = transformers_tokenizer(byte_level(), source, **named)
    ours = ChatTemplate(source, named)
    for tools in (None, TOOLS):
        for prompt in (False, True):
            if "tools[0]" in source and tools is None:
                continue
            expected = theirs.apply_chat_template(
                CHAT, tools=tools, tokenize=False, add_generation_prompt=prompt
            )
            segments = ours.prompt(CHAT, tools, turns=0) if prompt else None
            text = ours.render(CHAT, tools, add_generation_prompt=prompt)
            assert text.replace("\ufdd0", "").replace("\ufdd1", "") == expected
            assert segments is None or "".join(s.text for s in segments) == expected


@settings(deadline=None, max_examples=100)
@given(
    st.lists(
        st.fixed_dictionaries({"role": st.sampled_from(["user", "system"]), "content": st.text()}),
        max_size=4,
    )
)
def test_any_content_is_rendered_as_it_is(messages: list[dict[str, Any]]) -> None:
    text = ChatTemplate(CHATML, {}).render(messages)
    assert text == "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages)
