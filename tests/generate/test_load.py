"""Prompts of text begin as their tokenizer says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from raymill.data.messages.folder import load_chat_encoder
from raymill.data.text.text_prompts import TextPrompts
from raymill.errors import DataError
from raymill.generate.load import text_prompts
from tokenizer_families import BOS, EOS, PAD, family, write_folder


@pytest.mark.parametrize(
    ("named", "begins"),
    [
        ({"bos_token": BOS, "eos_token": EOS}, []),
        ({"bos_token": EOS, "eos_token": EOS}, [EOS]),
        ({"bos_token": EOS, "eos_token": EOS, "add_bos_token": False}, []),
        ({"bos_token": BOS, "eos_token": EOS, "add_bos_token": True}, [BOS]),
        ({"bos_token": PAD, "eos_token": EOS, "pad_token": PAD}, [PAD]),
        ({"eos_token": EOS, "pad_token": EOS}, []),
        ({"eos_token": {"content": EOS}}, []),
    ],
)
def test_end_of_text_never_stands_in_for_beginning(
    named: dict[str, Any], begins: list[str], tmp_path: Path
) -> None:
    """The end-of-text token begins a text only where a folder says that one token does both."""
    tokenizer = family("metaspace first")
    prompts = TextPrompts.from_folder(write_folder(tmp_path, tokenizer, **named))
    ids = tokenizer.encode("Two plus", add_special_tokens=False).ids
    begin = [tokenizer.token_to_id(token) for token in begins]
    assert prompts.ids("Two plus") == [*begin, *ids]
    alone = named.get("bos_token", EOS)
    assert prompts.ids("") == [tokenizer.token_to_id(alone)], "a model continues at least one token"


def test_a_family_may_name_what_its_folders_do_not(tmp_path: Path) -> None:
    """Tokenizer like GPT-2's, whose one token separates documents."""
    from transformers import PreTrainedTokenizerFast

    folder = write_folder(tmp_path, family("byte level"))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=family("byte level"), bos_token=EOS, eos_token=EOS
    )
    tokenizer.name_or_path = str(folder)
    assert text_prompts(tokenizer).ids("x")[0] == tokenizer.eos_token_id


def test_a_prompt_that_cannot_be_encoded_is_told(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, family("words"))
    with pytest.raises(DataError, match="names none that begins or ends a text"):
        TextPrompts.from_folder(folder).ids("")


def test_a_chat_folder_may_name_its_tokens_in_the_older_map_alone(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, family("llama 2"))
    template = "{% for m in messages %}{{ bos_token + m.content + eos_token }}{% endfor %}"
    (folder / "chat_template.jinja").write_text("\ufeff" + template)
    named = {"bos_token": BOS, "eos_token": {"content": EOS}}
    (folder / "special_tokens_map.json").write_text(json.dumps(named))
    encoder = load_chat_encoder(folder)
    assert encoder is not None
    assert encoder.end_of_turn_id == family("llama 2").token_to_id(EOS)
    ids = encoder.prompt_ids([{"role": "user", "content": "x"}])
    assert ids[0] == family("llama 2").token_to_id(BOS)
