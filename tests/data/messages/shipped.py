"""Templates that models ship, conversations to render with them, and transformers' rendering."""

from __future__ import annotations

import json
import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from data.messages.tokenizer_factory import byte_level, transformers_tokenizer
from raymill.data.messages.conversation import Conversation
from raymill.data.messages.encode import ChatEncoder
from raymill.data.messages.template import ChatTemplate

# TRL keeps them in its package, and its own variants of them with `{% generation %}` marks (`*_training`).
_TRL = find_spec("trl")
assert _TRL is not None and _TRL.origin is not None
FOLDER = Path(_TRL.origin).parent / "chat_templates"
NAMES = tuple(sorted(path.stem for path in FOLDER.glob("*.jinja")))
VARIABLES = {"bos_token": "<bos>", "eos_token": "<eos>"}

_SPECIAL = re.compile(r"<\|[^<>|{}\s]+\|?>|<[a-z_\"]+\|>|<｜[^<>｜{}]+｜>")
_OTHERS = ("<start_of_turn>", "<end_of_turn>", "</s>", "<end_of_utterance>", "[gMASK]", "<sop>")
_CALL = {
    "type": "function",
    "function": {"name": "weather", "arguments": {"city": "Oslo", "days": 2, "fine": True}},
}
_PROPERTIES = {
    "city": {"type": "string", "description": "A town's name."},
    "days": {"type": "integer", "description": "How many."},
    "fine": {"type": "boolean", "description": "In tenths of degrees."},
}
_TOOLS = (
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather to come.",
            "parameters": {"type": "object", "properties": _PROPERTIES, "required": ["city"]},
        },
    },
)


def _user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def _assistant(text: str, thinking: str | None = None, **more: Any) -> dict[str, Any]:
    thought = {} if thinking is None else {"reasoning_content": thinking}
    return {"role": "assistant", "content": text, **thought, **more}


def _called(first: str | None = None, second: str | None = None) -> Conversation:
    """A turn that only calls a tool, and one that answers."""
    return Conversation(
        (
            _user("Will it rain in Oslo?"),
            _assistant("", first, tool_calls=[_CALL]),
            {"role": "tool", "name": "weather", "content": "4 C, no rain"},
            _assistant("It stays dry.", second),
        ),
        _TOOLS,
    )


CONVERSATIONS = {
    "one turn": Conversation((_user("2+2?"), _assistant("four"))),
    "several turns": Conversation(
        (_user("2+2?"), _assistant("four"), _user("And 3+3?"), _assistant("six"))
    ),
    "system": Conversation(
        ({"role": "system", "content": "Be brief."}, _user("2+2?"), _assistant("four"))
    ),
    "tools": _called(),
    "thinking": Conversation((_user("2+2?"), _assistant("four", "two and two"))),
    "thinking, several": Conversation(
        (
            _user("2+2?"),
            _assistant("four", "two and two"),
            _user("And 3+3?"),
            _assistant("six", "three more"),
        )
    ),
    "thinking, tools": _called("ask for it", "no rain there"),
    "<think> in the text": Conversation(
        (_user("2+2?"), _assistant("<think>\ntwo and two\n</think>\n\nfour"))
    ),
}


def source(name: str) -> str:
    return (FOLDER / f"{name}.jinja").read_text()


@cache
def tokenizer() -> Tokenizer:
    """One for all templates: byte for byte, with all their special tokens."""
    found = [token for name in NAMES for token in _SPECIAL.findall(source(name))]
    return byte_level(tuple(dict.fromkeys((*VARIABLES.values(), *_OTHERS, *found))))


@cache
def encoder(name: str) -> ChatEncoder:
    return ChatEncoder(tokenizer(), ChatTemplate(source(name), VARIABLES))


@cache
def _theirs() -> Any:
    return transformers_tokenizer(tokenizer(), "", **VARIABLES)


def rendered(name: str, messages: Any, tools: Any, **options: Any) -> Any:
    """Return what transformers makes of a conversation that is spelled as this template documents it."""
    theirs = _theirs()
    theirs.chat_template = source(name)
    given = [_spelled(name.removesuffix("_training"), name, message) for message in messages]
    return theirs.apply_chat_template(
        given, tools=None if tools is None else list(tools), **options
    )


def _spelled(family: str, name: str, message: dict[str, Any]) -> dict[str, Any]:
    message = dict(message)
    if family in ("gptoss", "lfm2_2_5") and "reasoning_content" in message:
        message["thinking"] = message.pop("reasoning_content")
    if name == "deepseek_r1_distill_training" and "reasoning_content" in message:
        thought = message.pop("reasoning_content")
        message["content"] = f"<think>\n{thought}\n</think>\n\n{message['content']}"
    if family in ("idefics3", "llava_next", "smolvlm"):
        message["content"] = [{"type": "text", "text": message["content"]}]
    if name == "deepseekv3" and "tool_calls" in message:
        function = message["tool_calls"][0]["function"]
        text = json.dumps(function["arguments"])
        message["tool_calls"] = [{**_CALL, "function": {**function, "arguments": text}}]
    return message
