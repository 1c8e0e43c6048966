"""A tiny chat model: a folder as SFT exports it, and a model with scripted answers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer

from data.prepared_factory import _write_tokenizer
from raymill.config import load
from raymill.data.messages.template import CHATML
from raymill.generate.modes import SamplingMode, use_mode
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


class ScriptedModel:
    """Says `answers` one after the other, whatever it is asked; `asked`: the prompts it was given.

    An answer may end in KeyboardInterrupt, which is then raised instead of a token.
    """

    def __init__(self, answers: Sequence[Sequence[Any]], positions: int = 256) -> None:
        self.config = SimpleNamespace(max_position_embeddings=positions)
        self._answers = [list(answer) for answer in answers]
        self.asked: list[list[int]] = []
        use_mode(
            self, SamplingMode(batched=False)
        )  # it can't be tried: it would have nothing left to say

    def parameters(self) -> Any:
        return iter([torch.zeros(1)])

    def get_output_embeddings(self) -> torch.nn.Module:
        return torch.nn.Identity()

    def __call__(self, input_ids: torch.Tensor, cache: Any, use_cache: bool) -> Any:
        if cache is None:
            self.asked.append(input_ids[0].tolist())
            cache = iter(self._answers[len(self.asked) - 1])
        token = next(cache)
        if token is KeyboardInterrupt:
            raise KeyboardInterrupt
        logits = torch.zeros(1, input_ids.shape[1], VOCAB_SIZE)
        logits[0, -1, token] = 1
        return SimpleNamespace(logits=logits, cache=cache)
