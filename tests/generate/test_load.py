"""Text that is continued: what the model is asked with, and where it stops."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, GenerationConfig

from raymill.config import load
from raymill.data.messages.folder import load_chat_encoder
from raymill.data.text.text_prompts import TextPrompts
from raymill.driver import generation
from raymill.errors import DataError
from raymill.generate import sampling
from raymill.generate.load import load_model, text_prompts
from raymill.model.build import build_model
from tokenizer_families import BOS, EOS, PAD, UNK, beginning_with, family, write_folder


def model_folder(folder: Path, tokenizer: Any, **settings: Any) -> Path:
    write_folder(folder, tokenizer, **settings)
    arch = load("pretrain", ["experiment=tiny", "arch.max_positions=64"]).arch
    end = tokenizer.token_to_id(EOS)
    build_model(arch, tokenizer.get_vocab_size(), end, 1).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tokenizer like Llama 2's: bos begins a text, and isn't eos."""
    tokenizer = beginning_with(family("llama 2"), BOS)
    return model_folder(tmp_path_factory.mktemp("model"), tokenizer, bos_token=BOS, eos_token=EOS)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Return what models are asked with from now on; they answer nothing."""
    found: list[list[int]] = []

    def heard(model: Any, ids: list[int], **settings: Any) -> Iterator[int]:
        found.append(list(ids))
        return iter(())

    monkeypatch.setattr(sampling, "sample", heard)
    return found


def run(folder: Path, *overrides: str) -> None:
    settings = ["tracking=none", "temperature=0", "max_new_tokens=12"]
    assert generation.generate(load("generate", [f"model={folder}", *settings, *overrides])) == 0


@pytest.mark.parametrize("given", ["prompt", "prompt_file", "stdin"])
def test_a_text_begins_as_its_tokenizer_says_and_without_a_byte_order_mark(
    given: str, folder: Path, asked: list[list[int]], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    file = tmp_path / "prompt.txt"
    file.write_text("\ufeffTwo plus two", encoding="utf-8")
    overrides = {"prompt": ["prompt=Two plus two"], "prompt_file": [f"prompt_file={file}"]}
    if given == "stdin":
        monkeypatch.setattr(sys, "stdin", io.StringIO("\ufeffTwo plus two"))
    run(folder, *overrides.get(given, []))
    assert asked == [AutoTokenizer.from_pretrained(folder)("Two plus two").input_ids]


def test_what_a_prompt_spells_is_text(folder: Path, asked: list[list[int]]) -> None:
    run(folder, "prompt=x</s> and <s>")
    tokenizer = family("llama 2")
    control = {tokenizer.token_to_id(token) for token in (EOS, PAD, UNK)}
    assert not control & set(asked[0])
    assert asked[0].count(tokenizer.token_to_id(BOS)) == 1
    assert tokenizer.decode(asked[0]) == "x</s> and <s>"


def test_text_ends_wherever_the_model_is_said_to_stop(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, tokenizer, end = load_model(folder)
    two, four = (tokenizer.convert_tokens_to_ids(f"▁{word}") for word in ("two", "four"))
    model.generation_config = GenerationConfig(eos_token_id=[end, four])
    monkeypatch.setattr(sampling, "sample", lambda *_, **__: iter([two, two, four, two]))
    job = load("generate", [f"model={folder}", "prompt=plus", "chat=false"])
    generation._answer(job, model, tokenizer, end, "plus", 0)
    assert capsys.readouterr().out == "plus two two\n"


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
