"""A tiny chat model: a folder as SFT exports it, and an engine with scripted answers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from data.prepared_factory import _write_tokenizer
from raymill.config import load
from raymill.data.messages.encode import ChatEncoder
from raymill.data.messages.template import CHATML
from raymill.generate.conversation import ChatSession
from raymill.generate.engine.request import (
    DrawnToken,
    EngineCounts,
    Progress,
    RequestError,
    SamplingParameters,
)
from raymill.model.build import build_model

END_OF_TEXT, FILLERS, START, END = 0, range(257, 300), 300, 301
VOCAB_SIZE = 302


def write_chat_folder(folder: Path, *, template: str | None = CHATML, positions: int = 256) -> Path:
    """A random model with a byte-level tokenizer; fillers are tokens that no text becomes."""
    _write_tokenizer(folder, FILLERS.stop)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for text in ("<|im_start|>", "<|im_end|>"):
        tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False)])
    tokenizer.save(str(folder / "tokenizer.json"))
    arch = load("pretrain", ["experiment=tiny", f"arch.max_positions={positions}"]).arch
    build_model(arch, VOCAB_SIZE, END_OF_TEXT, 1).save_pretrained(folder)
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return folder


def move_template_into_settings(folder: Path, named: bool) -> None:
    """Store the template as older folders do: in tokenizer_config.json, alone or among several by name."""
    path = folder / "chat_template.jinja"
    source = path.read_text()
    path.unlink()
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    others = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": source}]
    settings["chat_template"] = others if named else source
    settings["eos_token"] = {"content": settings["eos_token"], "lstrip": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


class ScriptedEngine:
    """Engine that says `answers` one after the other, whatever it is asked; `asked`: the prompts it was given.

    An answer may end in KeyboardInterrupt, which is then raised instead of a token.
    """

    adapters = ()

    def __init__(self, answers: Sequence[Sequence[Any]], positions: int | None = 256) -> None:
        self.positions = positions
        self._answers = [list(answer) for answer in answers]
        self._left = 0
        self._stops: frozenset[int] = frozenset()
        self.asked: list[list[int]] = []
        self.seeds: list[int] = []

    @property
    def busy(self) -> bool:
        return self._left > 0

    def submit(self, prompt: Sequence[int], parameters: SamplingParameters) -> int:
        room = self.positions - len(prompt) if self.positions else parameters.max_new_tokens
        if room < 1:
            raise RequestError("prompt", "the prompt is too long")
        self.asked.append(list(prompt))
        self.seeds.append(parameters.seed)
        self._left, self._stops = min(room, parameters.max_new_tokens), parameters.stop_ids
        return len(self.asked)

    def cancel(self, key: int) -> None:
        self._left = 0

    def step(self) -> list[Progress]:
        token = self._answers[len(self.asked) - 1].pop(0)
        if token is KeyboardInterrupt:
            raise KeyboardInterrupt
        self._left -= 1
        finish = "stop" if token in self._stops else None if self._left else "length"
        self._left = 0 if finish else self._left
        return [Progress(len(self.asked), (DrawnToken(token),), finish)]

    def counts(self) -> EngineCounts:
        raise NotImplementedError


class Talk:
    """A conversation with a scripted engine."""

    def __init__(self, encoder: ChatEncoder, tokenizer: Tokenizer, *answers: list[Any],
                 positions: int = 256, system: str | None = None, **changes: Any) -> None:  # fmt: skip
        self.engine = ScriptedEngine(answers, positions)
        self.notes: list[str] = []
        parameters = SamplingParameters(max_new_tokens=20, temperature=0)
        self.conversation = ChatSession(
            self.engine, tokenizer, encoder, replace(parameters, **changes), system=system,
            note=self.notes.append,
        )  # fmt: skip

    def ask(self, text: str) -> str:
        return "".join(self.conversation.ask(text, 0))

    @property
    def spoken(self) -> list[list[int]]:
        """The tokens of the turns that the model still sees."""
        seen = self.conversation.turns[self.conversation.forgotten :]
        return [list(turn.tokens) for turn in seen]

    def asked(self, tokenizer: Tokenizer) -> list[str]:
        """The prompts as text, without the special tokens' brackets."""
        return [
            tokenizer.decode(ids, skip_special_tokens=False)
            .replace("<|im_start|>", "[")
            .replace("<|im_end|>\n", "]")
            for ids in self.engine.asked
        ]


def said(tokenizer: Tokenizer, text: str) -> list[Any]:
    """The tokens of an answer."""
    return [*tokenizer.encode(text).ids, END]
