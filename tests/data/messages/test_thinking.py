"""All that the assistant wrote is learned, thinking and calls too, or the row is refused with a true reason."""

from __future__ import annotations

from typing import Any

import pytest

from data.messages.tokenizer_factory import (
    CHATML_TOKENS,
    byte_level,
    merging,
    transformers_tokenizer,
)
from raymill.data.chat.questions import question_of
from raymill.data.messages.completeness import missing_from_turn
from raymill.data.messages.conversation import Conversation, Problem
from raymill.data.messages.encode import ChatEncoder, EncodedChat
from raymill.data.messages.template import CHATML, ChatTemplate

ASKED = {"role": "user", "content": "2+2?"}
THOUGHT = {"role": "assistant", "content": "four", "reasoning_content": "two, and two"}
INLINE = {"role": "assistant", "content": "<think>\ntwo, and two\n</think>\n\nfour"}
CALLS = [{"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}]
CALLING = {"role": "assistant", "content": "", "tool_calls": CALLS}
RESULT = {"role": "tool", "content": "4 C"}
HEAD = "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n"
PROMPT = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


def writing(assistant: str, prompt: str = PROMPT, *, marked: bool = False) -> str:
    """A template that writes an assistant's message `m` so."""
    begin, end = ("{% generation %}", "{% endgeneration %}") if marked else ("", "")
    return (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
        + f"{begin}{assistant}<|im_end|>\n{end}"
        + "{% else %}{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
        + prompt
    )


def made(source: str, tokenizer: Any = None, **variables: str) -> ChatEncoder:
    return ChatEncoder(tokenizer or byte_level(), ChatTemplate(source, variables))


def shown(encoder: ChatEncoder, *messages: dict[str, Any], **settings: Any) -> str:
    """A conversation as it is trained on, what is learned between ⟦ and ⟧; or why it isn't."""
    [found] = encoder.encode([Conversation(messages)], **settings)
    if isinstance(found, Problem):
        return f"{found.cause}: {found.why}"
    parts, ids, start = [], found.ids.tolist(), 0
    for stop in range(1, len(ids) + 1):
        if stop == len(ids) or found.learned[stop] != found.learned[start]:
            text = encoder._segments._plain.decode(ids[start:stop], skip_special_tokens=False)
            parts.append(f"⟦{text}⟧" if found.learned[start] else text)
            start = stop
    return "".join(parts)


THINK = "<think>\n{{ m.%s or '' }}\n</think>\n\n{{ m.content }}"
PARTS = (
    "{% for p in m.content %}{% if p.type == 'thinking' %}<think>\n{{ p.thinking }}\n</think>\n\n"
    "{% elif p.type == 'text' %}{{ p.text }}{% else %}{{ p }}{% endif %}{% endfor %}"
)
CUT = "{{ m.content.split('</think>')[-1] }}"


@pytest.mark.parametrize(
    "assistant",
    [
        THINK % "reasoning_content",
        THINK % "thinking",
        THINK % "reasoning",
        THINK % "get('reasoning')",
        "{% if 'thinking' in m %}<think>\n{{ m['thinking'] }}\n</think>\n\n{% endif %}{{ m.content }}",
        "{% if m.content is string %}{{ m.content }}{% else %}" + PARTS + "{% endif %}",
        "{% if '</think>' in m.content %}{{ m.content }}{% endif %}",
    ],
)
def test_thinking_is_given_as_the_template_reads_it(assistant: str) -> None:
    encoder = made(writing(assistant))
    told = "two, and two"
    assert shown(encoder, ASKED, THOUGHT) == (
        f"{HEAD}⟦<think>\n{told}\n</think>\n\nfour<|im_end|>⟧\n"
    )
    masked = shown(encoder, ASKED, THOUGHT, thinking="mask")
    assert masked == f"{HEAD}⟦<think>\n⟧{told}⟦\n</think>\n\nfour<|im_end|>⟧\n"


def test_the_default_template_writes_thinking() -> None:
    assert shown(made(CHATML), ASKED, THOUGHT) == (
        f"{HEAD}⟦<think>\ntwo, and two\n</think>\n\nfour<|im_end|>⟧\n"
    )
    assert shown(made(CHATML), ASKED, THOUGHT) == shown(made(CHATML), ASKED, INLINE)
    for message in (THOUGHT, INLINE):
        without = shown(made(CHATML), ASKED, message, thinking="drop")
        assert without == f"{HEAD}⟦four<|im_end|>⟧\n"


@pytest.mark.parametrize("thinking", ["mask", "drop"])
@pytest.mark.parametrize(
    "content",
    [
        "<think>never closed",
        "<think>one</think>two<think>three</think>four",
        "one</think>two<think>three</think>four",
        "two <think>three</think> four",
        "a </think> b </think> c",
    ],
)
def test_thoughts_that_cannot_be_told_apart_are_not_learned(content: str, thinking: Any) -> None:
    """A thought that isn't one before the answer would be learned as the answer, or take words along."""
    message = {"role": "assistant", "content": content}
    assert f"⟦{content}<|im_end|>⟧" in shown(made(CHATML), ASKED, message)
    refused = shown(made(CHATML), ASKED, message, thinking=thinking)
    assert refused.startswith("order: message 2: "), refused
    assert "data.thinking=learn" in refused


def test_marks_beside_a_thought_of_its_own_are_the_answers() -> None:
    message = {**THOUGHT, "content": "It ends with </think>, mostly"}
    refused = shown(made(CHATML), ASKED, message, thinking="drop")
    assert refused.startswith("order: message 2: "), refused


def test_only_turns_that_are_learned_are_masked() -> None:
    unclosed = {"role": "assistant", "content": "<think>never closed", "weight": 0}
    masked = shown(made(CHATML), ASKED, unclosed, ASKED, THOUGHT, thinking="mask")
    assert "never closed<|im_end|>" in masked and "⟧two, and two⟦" in masked


def test_masked_tokens_are_those_of_the_whole() -> None:
    """Thinking isn't cut from what stands around it before it is encoded: only the mask differs."""
    encoder = made(CHATML, merging())
    chat = Conversation((ASKED, {**INLINE, "content": "<think>the cat sat\n</think>\n\nthe mat"}))
    [learned], [masked] = (encoder.encode([chat], "all", mode) for mode in ("learn", "mask"))
    assert isinstance(learned, EncodedChat) and isinstance(masked, EncodedChat)
    assert learned.ids.tolist() == masked.ids.tolist()
    assert learned.by_assistant.tolist() == masked.by_assistant.tolist() == learned.learned.tolist()
    decode = encoder._segments._plain.decode
    hidden = masked.ids[masked.by_assistant & ~masked.learned].tolist()
    assert "the cat sat" in decode(hidden) and "mat" not in decode(hidden)
    # A held-out question is asked without the thought, and the thought is part of its answer.
    for found in (learned, masked):
        question = question_of(chat, found, encoder.end_of_turn_id, "validation", 0)
        assert question is not None
        assert decode(list(question.answer_ids)) == "<think>the cat sat\n</think>\n\nthe mat"


@pytest.mark.parametrize("thought", ["think", "four", ">", "analysis"])
def test_a_thought_is_masked_where_it_stands(thought: str) -> None:
    """A mark, or other text before the thought, may spell the same (snowflakedb/ArcticTraining#339)."""
    fields = {**THOUGHT, "reasoning_content": thought}
    inline = {**INLINE, "content": f"<think>\n{thought}\n</think>\n\nfour"}
    for message in (fields, inline):
        assert shown(made(CHATML), ASKED, message, thinking="mask") == (
            f"{HEAD}⟦<think>\n⟧{thought}⟦\n</think>\n\nfour<|im_end|>⟧\n"
        )
    named = "analysis: {{ m.reasoning_content or '' }}</think>{{ m.content }}"
    assert shown(made(writing(named)), ASKED, fields, thinking="mask") == (
        f"{HEAD}⟦analysis: ⟧{thought}⟦</think>four<|im_end|>⟧\n"
    )


@pytest.mark.parametrize("message", [THOUGHT, INLINE])
def test_dropped_thinking_is_refused_with_what_helps(message: dict[str, Any]) -> None:
    encoder = made(writing(CUT))
    refused = shown(encoder, ASKED, message)
    assert refused.startswith("template: The chat template leaves out the t")
    assert "in assistant turn 1 (message 2); set data.thinking=drop, or use a template" in refused
    assert shown(encoder, ASKED, message, thinking="mask") == refused
    assert shown(encoder, ASKED, message, thinking="drop") == f"{HEAD}⟦four<|im_end|>⟧\n"
    assert "⟦<think>\ntwo, and two\n</think>" in shown(made(CHATML), ASKED, message)


def test_thinking_that_earlier_turns_lose_is_learned_in_the_last() -> None:
    forgetting = "{% if loop.last %}" + THINK % "reasoning_content"
    encoder = made(writing(forgetting + "{% else %}{{ m.content }}{% endif %}", marked=True))
    chat = (ASKED, THOUGHT, ASKED, {**THOUGHT, "reasoning_content": "as before"})
    refused = shown(encoder, *chat)
    assert (
        "leaves out the thinking in assistant turn 1 (message 2); set data.train_on=last" in refused
    )
    last = shown(encoder, *chat, train_on="last")
    thought = "⟦<think>\nas before\n</think>\n\nfour<|im_end|>⟧\n"
    assert last == f"{HEAD}four<|im_end|>\n{HEAD}{thought}"


def test_a_prompt_that_opens_a_thought() -> None:
    opening = PROMPT.replace("assistant\n", "assistant\n<think>\n")
    dropping = made(writing(CUT, opening))
    for thinking in ("learn", "mask", "drop"):
        for train_on in ("all", "last"):
            for message in (THOUGHT, INLINE, {**THOUGHT, "reasoning_content": ""}):
                refused = shown(dropping, ASKED, message, thinking=thinking, train_on=train_on)
                assert "prompts for assistant turn 1 (message 2) with" in refused
                assert "data.train_on" not in refused and "data.template=chatml" in refused
    # It can be asked all the same.
    assert dropping.end_of_turn_id == byte_level().token_to_id("<|im_end|>")
    assert len(dropping.prompt_ids([ASKED])) == len(made(writing(CUT)).prompt_ids([ASKED])) + 8
    # Where turns are written as they are asked for, what the prompt has is given, marked or not.
    for marked in (False, True):
        encoder = made(writing(THINK % "reasoning_content", opening, marked=marked))
        assert shown(encoder, ASKED, THOUGHT) == (
            f"{HEAD}<think>\n⟦two, and two\n</think>\n\nfour<|im_end|>⟧\n"
        )
        assert shown(encoder, ASKED, THOUGHT, thinking="drop") == (
            f"{HEAD}<think>\n⟦\n</think>\n\nfour<|im_end|>⟧\n"
        )


def test_marks_that_hold_a_newline_behind_the_end() -> None:
    encoder = made(writing("{{ m.content }}", marked=True))
    plain = {"role": "assistant", "content": "four"}
    assert shown(encoder, ASKED, plain) == f"{HEAD}⟦four<|im_end|>⟧\n"
    # A prompt puts what was generated where it stood.
    drawn = [40, 41, encoder.end_of_turn_id]
    asked = encoder.prompt_ids([ASKED, plain, ASKED], generated=[drawn])
    first = encoder.prompt_ids([ASKED])
    newline = byte_level().encode("\n").ids
    assert asked == [*first, *drawn, *newline, *first]


@pytest.mark.parametrize("marked", [False, True])
def test_a_turn_that_only_calls_a_tool(marked: bool) -> None:
    encoder = made(writing("{{ m.content }}", marked=marked))
    chat = (ASKED, CALLING, RESULT, {"role": "assistant", "content": "Four degrees."})
    for train_on in ("all", "last"):
        refused = shown(encoder, *chat, train_on=train_on)
        assert refused.startswith("template: The chat template leaves out the call of 'weather'")
    assert "Oslo" in shown(made(CHATML), *chat)


def test_what_stands_before_a_turn_is_written_too() -> None:
    source = writing("{{ m.content }}").replace("{% else %}", "{% elif m.role == 'user' %}")
    encoder = made(source)
    answer = {"role": "assistant", "content": "four"}
    system = {"role": "system", "content": "Be brief."}
    assert "leaves out the system message (message 1)" in shown(encoder, system, ASKED, answer)
    tools = ({"type": "function", "function": {"name": "weather"}},)
    [found] = encoder.encode([Conversation((ASKED, answer), tools)])
    assert isinstance(found, Problem) and "leaves out the tool 'weather'" in found.why


def test_arguments_are_given_as_the_template_takes_them() -> None:
    """Text that is added to others, or printed as it is; an object where both would do."""
    call = "{% for c in m.tool_calls or [] %}{% set a = c.function.arguments %}"
    for taken in ("{{ ' ' + a }}", " {{ a }}", " {{ a if a is string else a | tojson }}"):
        called = "{{ c.function.name }}" + taken + "{% endfor %}"
        text = shown(made(writing("{{ m.content }}" + call + called)), ASKED, CALLING)
        assert text == f'{HEAD}⟦weather {{"city": "Oslo"}}<|im_end|>⟧\n'


def test_marks_of_thoughts_that_are_special_tokens() -> None:
    """An assistant's own stay so, as transformers has them; a user's are text."""
    tokenizer = byte_level((*CHATML_TOKENS, "<think>", "</think>"))
    encoder = made(CHATML, tokenizer)
    marks = [tokenizer.token_to_id(mark) for mark in ("<think>", "</think>")]
    chat = Conversation(({"role": "user", "content": "<think>"}, INLINE))
    [found] = encoder.encode([chat])
    assert isinstance(found, EncodedChat)
    assert [int(i) for i in found.ids if i in marks] == marks
    theirs = transformers_tokenizer(tokenizer, CHATML)
    calm = theirs.apply_chat_template([ASKED, INLINE], return_dict=True)["input_ids"]
    [ours] = encoder.encode([Conversation((ASKED, INLINE))])
    assert isinstance(ours, EncodedChat) and ours.ids.tolist() == calm


def test_an_end_of_text_after_the_last_turn_isnt_its_end() -> None:
    """Phi 3's, for instance, is written only where the conversation ends."""
    ended = PROMPT.replace("{% endif %}", "{% else %}{{ eos_token }}{% endif %}")
    encoder = made(writing("{{ m.content }}", ended), eos_token="<|endoftext|>")
    answer = {"role": "assistant", "content": "four"}
    assert encoder.end_of_turn_id == byte_level().token_to_id("<|im_end|>")
    several = shown(encoder, ASKED, answer, ASKED, answer)
    assert several == f"{HEAD}⟦four<|im_end|>⟧\n{HEAD}⟦four<|im_end|>⟧\n<|endoftext|>"


def test_nothing_left_to_learn_is_said_so() -> None:
    silent = shown(made(CHATML), ASKED, {**THOUGHT, "weight": 0})
    assert silent.startswith("no_assistant: all of the assistant's turns have weight 0")
    only = {"role": "assistant", "content": "<think>\nHm.\n</think>"}
    assert shown(made(CHATML), ASKED, only, thinking="drop").startswith(
        "empty: message 2: nothing is"
    )


@pytest.mark.parametrize(
    ("message", "text", "missing"),
    [
        ({"content": "4"}, "4", None),
        ({"content": " 4\n"}, "<x>4", None),
        # The thought's 4 doesn't stand for the answer.
        ({"content": "4", "reasoning_content": "2+2=4"}, "2+2=4", "the content"),
        ({"content": "4", "reasoning_content": "2+2=4"}, "2+2=4\n4", None),
        ({"content": "<think>a1</think>b2<think>c3</think>d4"}, "a1 b2 d4", "the text before </think>"),
        ({"content": "", "tool_calls": CALLS}, "weather", "the call of 'weather'"),
        ({"content": "", "tool_calls": CALLS}, "weather(city='Oslo')", None),
    ],
)  # fmt: skip
def test_pieces_are_looked_for_one_by_one(
    message: dict[str, Any], text: str, missing: str | None
) -> None:
    assert missing_from_turn(message, text) == missing


def test_arguments_in_all_their_spellings() -> None:
    odd = {"a": 'say "é"\n', "n": 1.5, "t": True, "none": None, "deep": [{"k": "it's"}], "e": ""}
    calls = [{"type": "function", "function": {"name": "f", "arguments": odd}}]
    message = {"role": "assistant", "content": "", "tool_calls": calls}
    for form in (
        "a | tojson",
        "a | tojson(ensure_ascii=true)",
        "a | tojson(indent=2)",
        "a | string",
    ):
        call = "{% for c in m.tool_calls or [] %}{% set a = c.function.arguments %}f {{ "
        encoder = made(writing("{{ m.content }}" + call + form + " }}{% endfor %}"))
        assert "⟦f {" in shown(encoder, ASKED, message)
