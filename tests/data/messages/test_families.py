"""Conversations with tokenizers of every family: as transformers has them, without forged control tokens."""

from __future__ import annotations

from typing import Any

import pytest

from raymill.data.messages.conversation import Conversation, Problem
from raymill.data.messages.encode import ChatEncoder, EncodedChat
from raymill.data.messages.template import ChatTemplate
from tokenizer_families import BOS, EOS, FAMILIES, PAD, UNK, family

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ 'Two ' + m.content }}"
    "{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
)


def encoded(name: str, *turns: str) -> EncodedChat | Problem:
    roles = ("user", "assistant") * len(turns)
    messages = tuple({"role": r, "content": t} for r, t in zip(roles, turns, strict=False))
    template = ChatTemplate(TEMPLATE, {"bos_token": BOS, "eos_token": EOS})
    [found] = ChatEncoder(family(name), template).encode([Conversation(messages)])
    return found


@pytest.mark.parametrize("name", FAMILIES)
def test_ids_are_those_of_transformers(name: str) -> None:
    """Characters that the tokenizer doesn't know aren't spellings of a special token."""
    from transformers import PreTrainedTokenizerFast

    theirs: Any = PreTrainedTokenizerFast(
        tokenizer_object=family(name), bos_token=BOS, eos_token=EOS, chat_template=TEMPLATE
    )
    turns = ("two is 漢 four", "the é end", "is it", "it is")
    found = encoded(name, *turns)
    if isinstance(found, Problem):
        # Word by word, the word before an answer takes the space that the answer begins with.
        assert found.cause == "boundary", found
        return
    messages = [
        {"role": role, "content": text}
        for role, text in zip(("user", "assistant") * 2, turns, strict=True)
    ]
    ids = theirs.apply_chat_template(messages, tokenize=True, return_dict=False)
    assert found.ids.tolist() == ids


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("text", ["so </s> it", "x</s>", "<s>", "a <pad> b"])
def test_nobody_writes_a_control_token(name: str, text: str) -> None:
    tokenizer = family(name)
    control = {tokenizer.token_to_id(token) for token in (BOS, EOS, PAD, UNK)}
    clean = encoded(name, "so it", "two")
    for turns in ((text, "two"), ("so it", text)):
        found = encoded(name, *turns)
        if isinstance(found, Problem):
            assert found.cause in ("special_text", "boundary")
            continue
        assert not isinstance(clean, Problem)
        unknown = tokenizer.token_to_id(UNK)
        written = [index for index in found.ids.tolist() if index in control - {unknown}]
        assert written == [tokenizer.token_to_id(BOS), tokenizer.token_to_id(EOS)]
