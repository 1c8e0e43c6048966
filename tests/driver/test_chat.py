"""Chat at the terminal: only answers are printed, lines converse, base models continue text."""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from generate.chat_factory import Talk, said, write_chat_folder
from raymill.config import load
from raymill.config.entry import main
from raymill.data.messages.encode import ChatEncoder
from raymill.driver.chat import chat
from raymill.driver.terminal import HELP, converse
from raymill.generate import sampling
from raymill.model.build import build_model
from tokenizer_families import BOS, EOS, PAD, UNK, beginning_with, family, write_folder


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chat_folder(tmp_path_factory.mktemp("base"), template=None)


def job(chat_folder: Path, *overrides: str) -> Any:
    settings = ["tracking=none", "temperature=0", "max_new_tokens=12"]
    return load("chat", [f"model={chat_folder}", *settings, *overrides])


def type_lines(monkeypatch: pytest.MonkeyPatch, *lines: str) -> list[str]:
    """A person at a terminal, who ends with Ctrl-D; returns the prompts that were shown."""
    shown: list[str] = []
    waiting = iter(lines)

    def answer(prompt: str = "") -> str:
        shown.append(prompt)
        try:
            return next(waiting)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", answer)
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdin", terminal)
    return shown


def prompt_overrides(
    given: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    """The same prompt on the command line, in a file and piped."""
    file = tmp_path / "prompt.txt"
    file.write_text(text, encoding="utf-8")
    if given == "stdin":
        monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    plain = text.removeprefix("\ufeff").removesuffix("\n")
    return {"prompt": [f"prompt={plain}"], "prompt_file": [f"prompt_file={file}"]}.get(given, [])


GIVEN = pytest.mark.parametrize("given", ["prompt", "prompt_file", "stdin"])


@GIVEN
def test_the_answer_alone_is_printed(
    given: str, chat_folder: Path, chat_encoder: ChatEncoder, chat_tokenizer: Tokenizer, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    system = "Be brief, ${or} not."
    # The last newline isn't part of the message.
    overrides = prompt_overrides(given, "What is it?\n", tmp_path, monkeypatch)
    assert chat(job(chat_folder, f"system={system}", *overrides)) == 0
    messages = [{"role": "system", "content": system}, {"role": "user", "content": "What is it?"}]
    import torch

    model = AutoModelForCausalLM.from_pretrained(chat_folder)
    ids = torch.tensor([chat_encoder.prompt_ids(messages)])
    drawn = model.generate(
        ids, do_sample=False, max_new_tokens=12, eos_token_id=[*chat_encoder.stop_ids]
    )
    answer = chat_tokenizer.decode(drawn[0, ids.shape[1] :].tolist())
    assert answer
    assert capsys.readouterr().out == answer + "\n"


def test_a_base_model_continues_text_as_ever(
    chat_folder: Path, base_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chat(job(base_folder, "prompt=def f("))
    continued = capsys.readouterr().out
    assert continued.startswith("def f(")
    assert len(continued) > len("def f(\n")
    chat(job(chat_folder, "prompt=def f(", "chat=false"))  # the same weights
    assert capsys.readouterr().out == continued


def test_a_base_model_continues_what_is_typed(
    base_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    type_lines(monkeypatch, "one", "two", "")
    chat(job(base_folder))
    lines = capsys.readouterr().out.split("\n")
    assert lines[0].startswith("one")
    assert any(line.startswith("two") for line in lines[1:])


@pytest.mark.parametrize(
    ("overrides", "message"), [(["chat=true"], "chat=true: "), (["system=Be brief."], "system: ")]
)
def test_a_base_model_does_not_converse(
    base_folder: Path, overrides: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [f"model={base_folder}", "tracking=none", "prompt=hello", *overrides]
    assert main("chat", chat, given) == 2
    printed = capsys.readouterr()
    assert f"{message}{base_folder} has no chat template" in printed.err
    assert not printed.out


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["chat=false", "system=x"], "system: chat=false continues text"),
        (["api_key=x"], "api_key: it is for url="),
    ],
)
def test_contradictions_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(Exception, match=message):
        load("chat", overrides)


def test_a_terminal_converses(
    chat_encoder: ChatEncoder, chat_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    stopped = [*said(chat_tokenizer, "Sto")[:-1], KeyboardInterrupt]
    answers = [said(chat_tokenizer, text) for text in ("Hi", "Ho", "Ha")]
    talk = Talk(
        chat_encoder, chat_tokenizer, answers[0], stopped, [KeyboardInterrupt], *answers[1:]
    )
    shown = type_lines(
        monkeypatch, "Hello", "Go on", "Never", "\ufdd0", "And?", "/reset", "New", " ", "x"
    )
    converse(talk.conversation, 0, dict)
    assert shown == ["you> "] * 8
    printed = capsys.readouterr()
    assert printed.out == "Hi\nSto\n\nHo\nHa\n"
    assert "noncharacter" in printed.err
    prompts = talk.asked(chat_tokenizer)
    cut = "[user\nHello][assistant\nHi][user\nGo on][assistant\nSto]"
    assert prompts[3] == f"{cut}[user\nAnd?][assistant\n", "what never got an answer wasn't asked"
    assert prompts[4] == "[user\nNew][assistant\n"


def test_commands(
    chat_encoder: ChatEncoder, chat_tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    answers = [said(chat_tokenizer, text) for text in ("Hi", "Ho", "Ha")]
    talk = Talk(chat_encoder, chat_tokenizer, *answers, system="Sys")
    file = tmp_path / "talk.json"
    type_lines(
        monkeypatch, "Hello", "Wrong", "/undo", "/what is it", "/save", f"/save {tmp_path}/no/x",
        "/usr/bin is what?", "/history", f"/save {file}", "/help",
    )  # fmt: skip
    converse(talk.conversation, 5, lambda: {"model": "models:/a/1", "top_p": 0.5})
    printed = capsys.readouterr()
    assert printed.out == "Hi\nHo\nHa\n\n"
    assert talk.engine.seeds == [5, 6, 7], "another seed may give another answer"
    said_so_far = "system> Sys\nuser> Hello\nassistant> Hi\nuser> /usr/bin is what?\nassistant> Ha"
    assert said_so_far in printed.err
    assert "There is no command /what" in printed.err
    assert "/save needs the name of a file" in printed.err
    assert "no/x can't be written" in printed.err
    assert printed.err.count(HELP) == 3
    saved = json.loads(file.read_text())
    contents = [message.pop("content") for message in saved["messages"]]
    assert contents == ["Sys", "Hello", "Hi", "/usr/bin is what?", "Ha"]
    assert saved == {
        "model": "models:/a/1",
        "top_p": 0.5,
        "seeds": [5, 7],
        "messages": [{"role": role} for role in ("system", *("user", "assistant") * 2)],
    }


def test_a_folder_converses_at_a_terminal(
    chat_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    type_lines(monkeypatch, "Hello", "Again", f"/save {tmp_path / 'x.json'}")
    assert chat(job(chat_folder)) == 0
    printed = capsys.readouterr()
    assert len(printed.out) > 2
    assert "Ctrl-D ends" in printed.err and "positions" not in printed.err
    saved = json.loads((tmp_path / "x.json").read_text())
    assert saved["model"] == str(chat_folder)
    assert (saved["temperature"], saved["max_new_tokens"], saved["seeds"]) == (0, 12, [0, 1])


@pytest.mark.parametrize(("length", "left_out"), [(62, 0), (72, 10)])
def test_a_prompt_that_the_model_does_not_see_whole_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], length: int, left_out: int
) -> None:
    folder = write_chat_folder(tmp_path / "small", template=None, positions=64)
    chat(job(folder, f"prompt={'x' * length}", "max_new_tokens=1"))
    printed = capsys.readouterr()
    assert f"\n{'x' * length}" in f"\n{printed.out}"
    told = f"it doesn't see the first {left_out} of the prompt's {length + 1} tokens"
    assert (told in printed.err) == bool(left_out)


@pytest.fixture(scope="module")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tokenizer like Llama 2's: bos begins a text, and isn't eos."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = beginning_with(family("llama 2"), BOS)
    write_folder(folder, tokenizer, bos_token=BOS, eos_token=EOS)
    arch = load("pretrain", ["experiment=tiny", "arch.max_positions=64"]).arch
    end = tokenizer.token_to_id(EOS)
    build_model(arch, tokenizer.get_vocab_size(), end, 1).save_pretrained(folder)
    return folder


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Return what models are asked with from now on; they answer nothing."""
    found: list[list[int]] = []

    def heard(model: Any, ids: list[int], **settings: Any) -> Iterator[int]:
        found.append(list(ids))
        return iter(())

    monkeypatch.setattr(sampling, "sample", heard)
    return found


@GIVEN
def test_a_text_begins_as_its_tokenizer_says_and_without_a_byte_order_mark(
    given: str, llama_folder: Path, asked: list[list[int]], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    chat(job(llama_folder, *prompt_overrides(given, "\ufeffTwo plus two", tmp_path, monkeypatch)))
    assert asked == [AutoTokenizer.from_pretrained(llama_folder)("Two plus two").input_ids]


def test_what_a_prompt_spells_is_text(llama_folder: Path, asked: list[list[int]]) -> None:
    tokenizer = family("llama 2")
    chat(job(llama_folder, "prompt=x</s> and <s>"))
    control = {tokenizer.token_to_id(token) for token in (EOS, PAD, UNK)}
    assert not control & set(asked[0])
    assert asked[0].count(tokenizer.token_to_id(BOS)) == 1
    assert tokenizer.decode(asked[0]) == "x</s> and <s>"


def test_text_ends_wherever_the_model_is_said_to_stop(
    llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    two, four, end = (family("llama 2").token_to_id(word) for word in ("▁two", "▁four", EOS))
    folder = shutil.copytree(llama_folder, tmp_path / "model")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [end, four]}))
    monkeypatch.setattr(sampling, "sample", lambda *_, **__: iter([two, two, four, two]))
    chat(job(folder, "prompt=plus"))
    assert capsys.readouterr().out == "plus two two\n"
