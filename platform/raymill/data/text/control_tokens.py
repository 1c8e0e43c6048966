"""Tokens that steer a model: what each is for, in the folder of a model.

Beginning of text, end of text, end of turn and padding are four things. One token may be several of them, but
none follows from another: a model that begins its texts with a token doesn't end them with it.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raymill.data.store.manifest import Prepared, read_tokenizer
from raymill.data.text.tokenizer import (
    add_special_tokens,
    read_object,
    read_settings,
    special_token_variables,
    write_settings,
)
from raymill.durable import write_atomic

if TYPE_CHECKING:
    from tokenizers import Tokenizer

GENERATION_NAME = "generation_config.json"


@dataclass(frozen=True)
class ControlTokens:
    """Ids. `stops`: where generation ends: the end of turn first, the end of text, what else ends turns, and
    all that the parent stops at."""

    begin_of_text: int | None
    padding: int
    stops: tuple[int, ...]

    @classmethod
    def of(cls, prepared: Prepared, parent: Path | None) -> ControlTokens:
        """Those of a model that learns from prepared data, and began as `parent` if as any.

        Raises:
            DataError: a file of the folders isn't what it should be.
            StorageError: it can't be read.
        """
        folder, manifest = prepared.tokenizer_folder, prepared.manifest
        tokenizer = read_tokenizer(folder / "tokenizer.json")
        named = special_token_variables(read_settings(folder))
        end_of_text = manifest.tokenizer.end_of_text_id
        own = [end_of_text] if manifest.messages is None else [manifest.messages.end_of_turn_id]
        stops = [*own, end_of_text, *model_stops(folder, tokenizer)]
        stops += () if parent is None else named_stops(parent, tokenizer)
        padding = _id_of(tokenizer, named.get("pad_token"))
        return cls(
            begin_of_text=_id_of(tokenizer, named.get("bos_token")),
            padding=end_of_text if padding is None else padding,
            stops=tuple(dict.fromkeys(stops)),
        )

    def settings(self) -> dict[str, int | list[int]]:
        """Spelled as in transformers' config.json and generation_config.json."""
        stops = self.stops[0] if len(self.stops) == 1 else list(self.stops)
        begin = {} if self.begin_of_text is None else {"bos_token_id": self.begin_of_text}
        return {"eos_token_id": stops, "pad_token_id": self.padding, **begin}


def write_generation(folder: Path, settings: Mapping[str, Any], tokens: ControlTokens) -> None:
    """Write generation_config.json: a parent's settings with what these tokens are for.

    As JSON, since transformers reads what others wrote there but doesn't save all of it.
    """
    kept = {key: value for key, value in settings.items() if key != "_from_model_config"}
    text = json.dumps(kept | tokens.settings(), indent=2, sort_keys=True)
    write_atomic(folder / GENERATION_NAME, text + "\n")


def named_stops(folder: Path, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Every id at which the folder's model is said to stop, its tokenizer's eos_token first.

    Raises:
        DataError: one of the folder's files isn't a JSON object.
        StorageError: it can't be read.
    """
    eos = _id_of(tokenizer, special_token_variables(read_settings(folder)).get("eos_token"))
    own = () if eos is None else (eos,)
    return tuple(dict.fromkeys((*own, *model_stops(folder, tokenizer))))


def model_stops(folder: Path, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Those that generation_config.json and config.json name.

    What a model's configuration says alone may be the default of its family, an ordinary token here: it counts
    where it is one of the tokenizer's added tokens. Raises as `named_stops`.
    """
    added = tokenizer.get_added_tokens_decoder()
    generation, config = (read_object(folder / name) for name in (GENERATION_NAME, "config.json"))
    said = [*_ids(generation), *_ids(config), *_ids(config.get("text_config") or {})]
    explicit = () if generation.get("_from_model_config") else _ids(generation)
    size = tokenizer.get_vocab_size(with_added_tokens=True)
    known = [one for one in said if one in added or (one in explicit and one < size)]
    return tuple(dict.fromkeys(known))


def end_of_text_among(
    named: Mapping[str, str], stops: Sequence[str], end_of_turn: str | None = None
) -> str | None:
    """The token that ends a text, by what a tokenizer's settings name and where its model stops.

    A chat model's eos_token ends its turns: then it is another one at which the model stops, or both are one.
    A tokenizer without a model says nothing of that: there it may be the padding, as Qwen's is.
    """
    eos = named.get("eos_token")
    if eos is not None and eos != end_of_turn:
        return eos
    if stops:
        return next((stop for stop in stops if stop != end_of_turn), eos)
    padding = named.get("pad_token")
    return padding if padding not in (None, named.get("unk_token")) else eos


def give_own_padding(folder: Path, taken: Collection[int]) -> int:
    """The id of a padding token that is nothing else: no id of `taken`, and neither begins, ends nor stands for
    unknown text. The folder's tokenizer gets a new one, and names it, where it has none.

    transformers' classifiers give the score of the last token that isn't padding.

    Raises:
        DataError: the folder's tokenizer can't be used.
        StorageError: it can't be read.
    """
    path = folder / "tokenizer.json"
    tokenizer, settings = read_tokenizer(path), read_settings(folder)
    named = special_token_variables(settings)
    others = {_id_of(tokenizer, text) for role, text in named.items() if role != "pad_token"}
    padding = _id_of(tokenizer, named.get("pad_token"))
    if padding is None or padding in {*others, *taken}:
        token = next(name for name in _padding_names() if tokenizer.token_to_id(name) is None)
        add_special_tokens(tokenizer, [token])
        padding = tokenizer.token_to_id(token)
        assert padding is not None
        settings["pad_token"] = token
        write_atomic(path, tokenizer.to_str(pretty=True))
    # Positions that are counted from the left are right with every family where padding is on the right.
    settings["padding_side"] = "right"
    write_settings(folder, settings)
    return padding


def _padding_names() -> Iterable[str]:
    yield "<|pad|>"
    yield from (f"<|pad_{number}|>" for number in count(1))


def _id_of(tokenizer: Tokenizer, token: str | None) -> int | None:
    return None if token is None else tokenizer.token_to_id(token)


def _ids(settings: Mapping[str, Any]) -> list[int]:
    """transformers' settings name no token, one, or several."""
    value = settings.get("eos_token_id")
    several = value if isinstance(value, list) else [value]
    return [one for one in several if isinstance(one, int)]
