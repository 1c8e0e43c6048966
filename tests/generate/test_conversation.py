"""Conversations: only answers are printed, the model's own tokens come back to it, old turns go."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer

from generate.chat_factory import (
    END,
    END_OF_TEXT,
    FILLERS,
    START,
    ScriptedModel,
    move_template_into_settings,
    write_chat_folder,
)
from raymill.config import load
from raymill.config.entry import main
from raymill.data.messages.encode import ChatEncoder
from raymill.data.messages.folder import load_chat_encoder
from raymill.data.messages.template import CHATML
from raymill.driver.generation import generate
from raymill.errors import DataError
from raymill.generate.batch import complete
from raymill.generate.conversation import ChatSession, converse
from raymill.generate.load import load_model

FILLER = FILLERS[0]  # decodes to text that encodes to other ids


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chat_folder(tmp_path_factory.mktemp("chat"))


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chat_folder(tmp_path_factory.mktemp("base"), template=None)


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


@pytest.fixture(scope="module")
def encoder(folder: Path) -> ChatEncoder:
    found = load_chat_encoder(folder)
    assert found is not None
    return found


def job(folder: Path, *overrides: str) -> Any:
    settings = ["tracking=none", "temperature=0", "max_new_tokens=12"]
    return load("generate", [f"model={folder}", *settings, *overrides])


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


class Talk:
    """A conversation with a scripted model."""

    def __init__(self, encoder: ChatEncoder, tokenizer: Tokenizer, *answers: list[Any],
                 positions: int = 256, **changes: Any) -> None:  # fmt: skip
        self.model = ScriptedModel(answers, positions)
        self.notes: list[str] = []
        settings = {"system": None, "max_new_tokens": 20, "temperature": 0.0, "top_p": 1.0}
        self.conversation = ChatSession(
            self.model, tokenizer, encoder, note=self.notes.append, **{**settings, **changes}
        )

    def ask(self, text: str) -> str:
        return "".join(self.conversation.ask(text, 0))

    def asked(self, tokenizer: Tokenizer) -> list[str]:
        """The prompts as text, without the special tokens' brackets."""
        return [
            tokenizer.decode(ids, skip_special_tokens=False)
            .replace("<|im_start|>", "[")
            .replace("<|im_end|>\n", "]")
            for ids in self.model.asked
        ]


@pytest.fixture(scope="module")
def said(tokenizer: Tokenizer) -> Any:
    return lambda text: [*tokenizer.encode(text).ids, END]


@pytest.mark.parametrize("given", ["prompt", "prompt_file", "stdin"])
def test_the_answer_alone_is_printed(
    given: str,
    folder: Path,
    encoder: ChatEncoder,
    tokenizer: Tokenizer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "question.txt"
    file.write_text("What is it?\n")  # the last newline isn't part of the message
    text = {"prompt": "prompt=What is it?", "prompt_file": f"prompt_file={file}"}.get(given)
    if given == "stdin":
        monkeypatch.setattr(sys, "stdin", io.StringIO(file.read_text()))
    system = "Be brief, ${or} not."
    assert generate(job(folder, f"system={system}", *([text] if text else []))) == 0
    messages = [{"role": "system", "content": system}, {"role": "user", "content": "What is it?"}]
    [expected] = complete(
        load_model(folder)[0],
        [encoder.prompt_ids(messages)],
        max_new_tokens=12, temperature=0, top_p=1, seeds=[0], stop_ids=encoder.stop_ids,
        batch_size=1,
    )  # fmt: skip
    answer = tokenizer.decode([id for id in expected.ids if id not in encoder.stop_ids])
    assert answer
    assert capsys.readouterr().out == answer + "\n"


def test_a_base_model_continues_text_as_ever(
    folder: Path, base_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generate(job(base_folder, "prompt=def f("))
    continued = capsys.readouterr().out
    assert continued.startswith("def f(")
    assert len(continued) > len("def f(\n")
    generate(job(folder, "prompt=def f(", "chat=false"))  # the same weights
    assert capsys.readouterr().out == continued


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["chat=true"], "chat=true: "),
        (["system=Be brief."], "system: "),
    ],
)
def test_a_base_model_does_not_converse(
    base_folder: Path,
    overrides: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = [f"model={base_folder}", "tracking=none", "prompt=hello", *overrides]
    assert main("generate", generate, given) == 2
    printed = capsys.readouterr()
    assert f"{message}{base_folder} has no chat template" in printed.err
    assert not printed.out


def test_a_system_message_needs_a_conversation() -> None:
    with pytest.raises(Exception, match="system: chat=false continues text"):
        load("generate", ["chat=false", "system=x"])


def test_turns_give_back_the_very_tokens(
    encoder: ChatEncoder, tokenizer: Tokenizer, said: Any
) -> None:
    first = [*tokenizer.encode("It is ").ids, FILLER, END]
    talk = Talk(encoder, tokenizer, first, said("Yes."), system="Be brief.")
    assert talk.ask("What?") == f"It is {tokenizer.id_to_token(FILLER)}"
    assert talk.ask("Really?") == "Yes."
    before = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What?"}]
    opening = encoder.prompt_ids(before)
    assert talk.model.asked[0] == opening
    expected = [*opening, *first, *tokenizer.encode("\n<|im_start|>user\nReally?<|im_end|>\n").ids]
    assert talk.model.asked[1][: len(expected)] == expected
    assert talk.asked(tokenizer)[1].endswith("[user\nReally?][assistant\n")
    assert talk.conversation.spoken == [first, said("Yes.")]


def test_an_answer_ends_with_its_turn(
    encoder: ChatEncoder, tokenizer: Tokenizer, said: Any
) -> None:
    """An answer that ends with the text or at `max_new_tokens` still ends its turn for the next one."""
    word = said("word")[:-1]
    other = FILLERS[3]
    talk = Talk(
        encoder, tokenizer, [*word, END, 7], [*word, END_OF_TEXT, 7], [*word, other, 7], word * 9,
        [END], stop_ids=[other],
    )  # fmt: skip
    answers = [talk.ask("?") for _ in range(5)]
    assert answers == ["word", "word", "word", "word" * 5, ""]
    assert talk.conversation.spoken == [*[[*word, END]] * 3, [*word * 5, END], [END]]
    assert sum(token == START for token in talk.model.asked[4]) == 10


def test_an_outgrown_conversation_drops_the_oldest_pair(
    encoder: ChatEncoder, tokenizer: Tokenizer, said: Any
) -> None:
    answers = [said(f"answer {number}") for number in range(4)]
    talk = Talk(encoder, tokenizer, *answers, positions=130, system="Sys")
    for number in range(4):
        talk.ask(f"question {number}")
    prompts = talk.asked(tokenizer)
    assert all(prompt.startswith("[system\nSys]") for prompt in prompts)
    assert [prompt.count("question") for prompt in prompts] == [1, 2, 2, 2]
    assert "answer 1" in prompts[2] and "question 0" not in prompts[2]
    assert all(len(asked) + 20 <= 130 for asked in talk.model.asked)
    assert (
        talk.notes
        == ["the model has 130 positions: it no longer sees the oldest question and its answer"] * 2
    )


def test_a_message_that_cannot_fit_changes_nothing(
    encoder: ChatEncoder, tokenizer: Tokenizer, said: Any
) -> None:
    talk = Talk(encoder, tokenizer, said("Hi"), said("x" * 100), said("Ho"), positions=100)
    talk.ask("Hello")
    with pytest.raises(DataError, match=r"too long: .* 100 positions"):
        talk.ask("x" * 100)
    assert [message["content"] for message in talk.conversation.messages] == ["Hello", "Hi"]
    for bad in ("\ud800", "\ufdd0"):
        with pytest.raises(DataError):
            talk.ask(bad)
    long = talk.ask("y" * 70)
    assert long == "x" * (100 - len(talk.model.asked[-1])), "what room there is"
    assert len(talk.conversation.spoken) == 1


def test_more_tokens_than_positions_keep_the_memory(
    encoder: ChatEncoder, tokenizer: Tokenizer, said: Any
) -> None:
    talk = Talk(encoder, tokenizer, said("Hi"), said("Ho"), max_new_tokens=999, positions=256)
    talk.ask("Hello")
    talk.ask("Again")
    assert "Hello" in talk.asked(tokenizer)[1]


def test_thoughts_come_back_as_the_template_has_them(
    tmp_path: Path, tokenizer: Tokenizer, said: Any
) -> None:
    """The prompt opens a thought that the answer ends; what was thought in earlier turns goes."""
    thinks = CHATML.replace("message.reasoning_content -%}", "loop.last -%}").replace(
        "message.reasoning_content +", "(message.reasoning_content or '') +"
    )
    source = thinks.replace("assistant\\n' -}}", "assistant\\n<think>\\n' -}}")
    encoder = load_chat_encoder(write_chat_folder(tmp_path / "m", template=source))
    assert encoder is not None
    first = said("Hm.\n</think>\n\nIt is one.")
    talk = Talk(encoder, tokenizer, first, said("Two."), max_new_tokens=40)
    assert talk.ask("Is it?") == "Hm.\n</think>\n\nIt is one."
    talk.ask("And?")
    asked = "[user\nIs it?][assistant\n<think>\n", "[user\nIs it?][assistant\nIt is one.]"
    assert talk.asked(tokenizer) == [asked[0], asked[1] + "[user\nAnd?][assistant\n<think>\n"]


def test_a_template_that_rewrites_turns_has_its_way(
    tokenizer: Tokenizer, said: Any, tmp_path: Path
) -> None:
    source = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{{ m.content.split('!')[-1] if not loop.last else m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    encoder = load_chat_encoder(write_chat_folder(tmp_path / "m", template=source))
    assert encoder is not None
    talk = Talk(encoder, tokenizer, said("thought!answer"), said("Ho"))
    assert talk.ask("Hello") == "thought!answer"
    talk.ask("Again")
    assert talk.asked(tokenizer)[1] == "[user\nHello][assistant\nanswer][user\nAgain][assistant\n"


def test_a_terminal_converses(
    encoder: ChatEncoder,
    tokenizer: Tokenizer,
    said: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stopped = [*said("Sto")[:-1], KeyboardInterrupt]
    talk = Talk(
        encoder, tokenizer, said("Hi"), stopped, [KeyboardInterrupt], said("Ho"), said("Ha")
    )
    shown = type_lines(
        monkeypatch, "Hello", "Go on", "Never", "\ufdd0", "And?", "/reset", "New", " ", "x"
    )
    converse(talk.conversation, 0)
    assert shown == ["you> "] * 8
    printed = capsys.readouterr()
    assert printed.out == "Hi\nSto\n\nHo\nHa\n"
    assert "noncharacter" in printed.err
    prompts = talk.asked(tokenizer)
    cut = "[user\nHello][assistant\nHi][user\nGo on][assistant\nSto]"
    assert prompts[3] == f"{cut}[user\nAnd?][assistant\n", "what never got an answer wasn't asked"
    assert prompts[4] == "[user\nNew][assistant\n"


def test_a_folder_converses_at_a_terminal(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert type_lines(monkeypatch, "Hello", "Again") == []
    assert generate(job(folder)) == 0
    printed = capsys.readouterr()
    assert len(printed.out) > 2
    assert "Ctrl-D ends" in printed.err and "positions" not in printed.err


def test_seeds_differ_by_turn(encoder: ChatEncoder, folder: Path) -> None:
    model, tokenizer, _ = load_model(folder)
    settings = {"system": None, "max_new_tokens": 8, "temperature": 1.0, "top_p": 1.0}

    def answer(seed: int) -> str:
        return "".join(ChatSession(model, tokenizer, encoder, **settings).ask("Hello", seed))

    before = torch.get_rng_state()
    assert answer(1) == answer(1) != answer(2)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.fixture
def own_folder(tmp_path: Path) -> Path:
    return write_chat_folder(tmp_path / "own")


@pytest.mark.parametrize("named", [False, True])
def test_older_folders_keep_the_template_in_their_settings(own_folder: Path, named: bool) -> None:
    move_template_into_settings(own_folder, named)
    encoder = load_chat_encoder(own_folder)
    assert encoder is not None
    assert encoder.end_of_turn_id == END
    assert encoder.stop_ids == {END, END_OF_TEXT}


def test_a_template_may_name_the_special_tokens(own_folder: Path) -> None:
    template = own_folder / "chat_template.jinja"
    template.write_text("{{ bos_token }}" + CHATML)
    encoder = load_chat_encoder(own_folder)
    assert encoder is not None
    assert encoder.prompt_ids([{"role": "user", "content": "x"}])[0] == END_OF_TEXT


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("chat_template.jinja", "{% for %}", "can't be read"),
        ("chat_template.jinja", "{{ messages[0].content }}", "own: The chat template"),
        ("tokenizer.json", "{}", "has a chat template, but"),
        ("tokenizer_config.json", "{", "isn't JSON"),
        ("tokenizer_config.json", "[]", "expected an object"),
    ],
)
def test_a_folder_that_cannot_be_used_says_why(
    own_folder: Path, file: str, content: str, message: str
) -> None:
    (own_folder / file).write_text(content)
    with pytest.raises(DataError, match=message):
        load_chat_encoder(own_folder)
    with pytest.raises(DataError, match="chat=false continues text"):
        generate(job(own_folder, "prompt=x"))


@pytest.mark.parametrize(("length", "left_out"), [(62, 0), (72, 10)])
def test_a_prompt_that_the_model_does_not_see_whole_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], length: int, left_out: int
) -> None:
    folder = write_chat_folder(tmp_path / "small", template=None, positions=64)
    generate(job(folder, f"prompt={'x' * length}", "max_new_tokens=1"))
    printed = capsys.readouterr()
    assert f"\n{'x' * length}" in f"\n{printed.out}"
    told = f"it doesn't see the first {left_out} of the prompt's {length + 1} tokens"
    assert (told in printed.err) == bool(left_out)
