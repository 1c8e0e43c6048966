"""Conversations: the model's own tokens come back to it, old turns go."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer

from generate import chat_factory
from generate.chat_factory import (
    END,
    END_OF_TEXT,
    FILLERS,
    START,
    Talk,
    move_template_into_settings,
    write_chat_folder,
)
from raymill.config import load
from raymill.data.messages.encode import ChatEncoder
from raymill.data.messages.folder import load_chat_encoder
from raymill.data.messages.template import CHATML
from raymill.driver.chat import chat
from raymill.errors import DataError
from raymill.generate.build import build_engine
from raymill.generate.conversation import ChatSession
from raymill.generate.engine.request import SamplingParameters
from raymill.generate.load import load_model

FILLER = FILLERS[0]  # decodes to text that encodes to other ids


@pytest.fixture(scope="module")
def said(chat_tokenizer: Tokenizer) -> Any:
    return partial(chat_factory.said, chat_tokenizer)


def test_turns_give_back_the_very_tokens(
    chat_encoder: ChatEncoder, chat_tokenizer: Tokenizer, said: Any
) -> None:
    first = [*chat_tokenizer.encode("It is ").ids, FILLER, END]
    talk = Talk(chat_encoder, chat_tokenizer, first, said("Yes."), system="Be brief.")
    assert talk.ask("What?") == f"It is {chat_tokenizer.id_to_token(FILLER)}"
    assert talk.ask("Really?") == "Yes."
    before = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What?"}]
    opening = chat_encoder.prompt_ids(before)
    assert talk.engine.asked[0] == opening
    expected = [
        *opening,
        *first,
        *chat_tokenizer.encode("\n<|im_start|>user\nReally?<|im_end|>\n").ids,
    ]
    assert talk.engine.asked[1][: len(expected)] == expected
    assert talk.asked(chat_tokenizer)[1].endswith("[user\nReally?][assistant\n")
    assert talk.spoken == [first, said("Yes.")]


def test_an_answer_ends_with_its_turn(
    chat_encoder: ChatEncoder, chat_tokenizer: Tokenizer, said: Any
) -> None:
    """An answer that ends with the text or at `max_new_tokens` still ends its turn for the next one."""
    word = said("word")[:-1]
    other = FILLERS[3]
    talk = Talk(
        chat_encoder, chat_tokenizer, [*word, END, 7], [*word, END_OF_TEXT, 7], [*word, other, 7], word * 9,
        [END], stop_ids=frozenset([other]),
    )  # fmt: skip
    answers = [talk.ask("?") for _ in range(5)]
    assert answers == ["word", "word", "word", "word" * 5, ""]
    assert talk.spoken == [*[[*word, END]] * 3, [*word * 5, END], [END]]
    assert sum(token == START for token in talk.engine.asked[4]) == 10


def test_an_outgrown_conversation_drops_the_oldest_pair(
    chat_encoder: ChatEncoder, chat_tokenizer: Tokenizer, said: Any
) -> None:
    answers = [said(f"answer {number}") for number in range(4)]
    talk = Talk(chat_encoder, chat_tokenizer, *answers, positions=130, system="Sys")
    for number in range(4):
        talk.ask(f"question {number}")
    prompts = talk.asked(chat_tokenizer)
    assert all(prompt.startswith("[system\nSys]") for prompt in prompts)
    assert [prompt.count("question") for prompt in prompts] == [1, 2, 2, 2]
    assert "answer 1" in prompts[2] and "question 0" not in prompts[2]
    assert all(len(asked) + 20 <= 130 for asked in talk.engine.asked)
    assert (
        talk.notes
        == ["the model has 130 positions: it no longer sees the oldest question and its answer"] * 2
    )


def test_a_message_that_cannot_fit_changes_nothing(
    chat_encoder: ChatEncoder, chat_tokenizer: Tokenizer, said: Any
) -> None:
    talk = Talk(
        chat_encoder, chat_tokenizer, said("Hi"), said("x" * 100), said("Ho"), positions=100
    )
    talk.ask("Hello")
    with pytest.raises(DataError, match=r"too long: .* 100 positions"):
        talk.ask("x" * 100)
    assert [message["content"] for message in talk.conversation.messages] == ["Hello", "Hi"]
    for bad in ("\ud800", "\ufdd0"):
        with pytest.raises(DataError):
            talk.ask(bad)
    long = talk.ask("y" * 70)
    assert long == "x" * (100 - len(talk.engine.asked[-1])), "what room there is"
    assert len(talk.spoken) == 1


def test_more_tokens_than_positions_keep_the_memory(
    chat_encoder: ChatEncoder, chat_tokenizer: Tokenizer, said: Any
) -> None:
    talk = Talk(
        chat_encoder, chat_tokenizer, said("Hi"), said("Ho"), max_new_tokens=999, positions=256
    )
    talk.ask("Hello")
    talk.ask("Again")
    assert "Hello" in talk.asked(chat_tokenizer)[1]


def test_thoughts_come_back_as_the_template_has_them(
    tmp_path: Path, chat_tokenizer: Tokenizer, said: Any
) -> None:
    """The prompt opens a thought that the answer ends; what was thought in earlier turns goes."""
    thinks = CHATML.replace("message.reasoning_content -%}", "loop.last -%}").replace(
        "message.reasoning_content +", "(message.reasoning_content or '') +"
    )
    source = thinks.replace("assistant\\n' -}}", "assistant\\n<think>\\n' -}}")
    encoder = load_chat_encoder(write_chat_folder(tmp_path / "m", template=source))
    assert encoder is not None
    first = said("Hm.\n</think>\n\nIt is one.")
    talk = Talk(encoder, chat_tokenizer, first, said("Two."), max_new_tokens=40)
    assert talk.ask("Is it?") == "Hm.\n</think>\n\nIt is one."
    talk.ask("And?")
    asked = "[user\nIs it?][assistant\n<think>\n", "[user\nIs it?][assistant\nIt is one.]"
    assert talk.asked(chat_tokenizer) == [asked[0], asked[1] + "[user\nAnd?][assistant\n<think>\n"]


def test_a_template_that_rewrites_turns_has_its_way(
    chat_tokenizer: Tokenizer, said: Any, tmp_path: Path
) -> None:
    source = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{{ m.content.split('!')[-1] if not loop.last else m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    encoder = load_chat_encoder(write_chat_folder(tmp_path / "m", template=source))
    assert encoder is not None
    talk = Talk(encoder, chat_tokenizer, said("thought!answer"), said("Ho"))
    assert talk.ask("Hello") == "thought!answer"
    talk.ask("Again")
    assert (
        talk.asked(chat_tokenizer)[1] == "[user\nHello][assistant\nanswer][user\nAgain][assistant\n"
    )


def test_seeds_differ_by_turn(chat_encoder: ChatEncoder, chat_folder: Path) -> None:
    model, tokenizer, _ = load_model(chat_folder)
    engine = build_engine(model, slots=1)

    def answer(seed: int) -> str:
        session = ChatSession(engine, tokenizer, chat_encoder, SamplingParameters(max_new_tokens=8))
        return "".join(session.ask("Hello", seed))

    before = torch.get_rng_state()
    assert answer(1) == answer(1) != answer(2)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_second_turn_does_not_read_the_first_again(
    chat_encoder: ChatEncoder, chat_folder: Path
) -> None:
    model, tokenizer, _ = load_model(chat_folder)
    engine = build_engine(model, slots=1)
    session = ChatSession(engine, tokenizer, chat_encoder, SamplingParameters(max_new_tokens=8))
    for number, question in enumerate(("Hello", "And then?")):
        before = engine.counts()
        assert "".join(session.ask(question, number))
    known = len(chat_encoder.prompt_ids(session.messages[:1])) + 7
    assert engine.counts().reused - before.reused >= known
    asked = engine.counts().prefilled - before.prefilled
    assert asked < len(chat_encoder.prompt_ids(session.messages[2:3])) + 6


def test_undo_takes_back_a_turn(
    chat_encoder: ChatEncoder, chat_tokenizer: Tokenizer, said: Any
) -> None:
    talk = Talk(chat_encoder, chat_tokenizer, said("Hi"), said("Ho"), said("Ha"), positions=110)
    talk.ask("Hello")
    talk.ask("x" * 60)
    assert talk.conversation.forgotten == 1
    talk.conversation.undo()
    assert [message["content"] for message in talk.conversation.messages] == ["Hello", "Hi"]
    talk.ask("Again")
    assert "Hello" in talk.asked(chat_tokenizer)[2], "it fits again"
    talk.conversation.undo()
    talk.conversation.undo()
    assert talk.conversation.messages == []
    with pytest.raises(DataError, match="nothing to take back"):
        talk.conversation.undo()


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
    job = load("chat", [f"model={own_folder}", "tracking=none", "prompt=x"])
    with pytest.raises(DataError, match="chat=false continues text"):
        chat(job)
