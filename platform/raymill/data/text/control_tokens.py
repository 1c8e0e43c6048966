"""Control tokens of a model: the purpose of each, as the files of a model folder state it.

Beginning of text, end of text, end of turn and padding are four roles. One token may have several
of them, but none follows from another: texts that begin with a token need not
end with it.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from raymill.data.store.manifest import PreparedData, read_tokenizer
from raymill.data.text.special_tokens import TokenizerSettings
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
    """Ids of a model's control tokens.

    `stops` are the ids at which generation ends: the end of turn first, then the end of text, other
    ends of turns, and all stops of the parent.
    """

    begin_of_text: int | None
    padding: int
    stops: tuple[int, ...]

    @classmethod
    def from_prepared(cls, prepared: PreparedData, parent: Path | None) -> ControlTokens:
        """Return the tokens of a model that learns from prepared data, and that started as `parent`
        (or as none).

        Raises:
            DataError: a file of the folders has unexpected contents.
            StorageError: it can't be read.
        """
        folder, manifest = prepared.tokenizer_folder, prepared.manifest
        tokenizer = read_tokenizer(folder / "tokenizer.json")
        named = special_token_variables(read_settings(folder))
        end_of_text = manifest.tokenizer.end_of_text_id
        first = [end_of_text] if manifest.messages is None else [manifest.messages.end_of_turn_id]
        stops = [*first, end_of_text, *model_stops(folder, tokenizer)]
        # A fine-tuned model may still produce the stops that its parent learned.
        stops += () if parent is None else named_stops(parent, tokenizer)
        padding = _id_of(tokenizer, named.get("pad_token"))
        return cls(
            begin_of_text=_id_of(tokenizer, named.get("bos_token")),
            padding=end_of_text if padding is None else padding,
            stops=tuple(dict.fromkeys(stops)),
        )

    def settings(self) -> dict[str, int | list[int]]:
        """Return the ids under the keys of transformers' config.json and generation_config.json."""
        # transformers writes a single id as a number.
        stops = self.stops[0] if len(self.stops) == 1 else list(self.stops)
        begin = {} if self.begin_of_text is None else {"bos_token_id": self.begin_of_text}
        return {"eos_token_id": stops, "pad_token_id": self.padding, **begin}


def write_generation(folder: Path, settings: TokenizerSettings, tokens: ControlTokens) -> None:
    """Write generation_config.json: a parent's settings, with these control tokens.

    It is written as JSON, because transformers reads settings of others that it doesn't save again.
    """
    kept = {key: value for key, value in settings.items() if key != "_from_model_config"}
    text = json.dumps(kept | tokens.settings(), indent=2, sort_keys=True)
    write_atomic(folder / GENERATION_NAME, text + "\n")


def named_stops(folder: Path, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Return every id at which the folder's model stops, its tokenizer's eos_token first.

    Raises:
        DataError: one of the folder's files isn't a JSON object.
        StorageError: it can't be read.
    """
    eos = _id_of(tokenizer, special_token_variables(read_settings(folder)).get("eos_token"))
    first = () if eos is None else (eos,)
    return tuple(dict.fromkeys((*first, *model_stops(folder, tokenizer))))


def model_stops(folder: Path, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Return the stops that generation_config.json and config.json name.

    A stop that only the model's configuration names may be the default of its family, and an
    ordinary token here: it counts if it is one of the tokenizer's added tokens. Raises as
    `named_stops`.
    """
    added = tokenizer.get_added_tokens_decoder()
    generation, config = (read_object(folder / name) for name in (GENERATION_NAME, "config.json"))
    stated = [*_ids(generation), *_ids(config), *_ids(config.get("text_config") or {})]
    # transformers marks settings that it derived from config.json, where they are defaults.
    explicit = () if generation.get("_from_model_config") else _ids(generation)
    size = tokenizer.get_vocab_size(with_added_tokens=True)
    known = [stop for stop in stated if stop in added or (stop in explicit and stop < size)]
    return tuple(dict.fromkeys(known))


def end_of_text_among(
    named: Mapping[str, str], stops: Sequence[str], end_of_turn: str | None = None
) -> str | None:
    """Return the token that ends a text, from a tokenizer's settings and its model's stops.

    A chat model's eos_token ends its turns: then the end of text is another of the model's stops,
    or the same token. A tokenizer without a model doesn't reveal that: there it may be the padding,
    as Qwen's is.
    """
    eos = named.get("eos_token")
    if eos is not None and eos != end_of_turn:
        return eos
    if stops:
        return next((stop for stop in stops if stop != end_of_turn), eos)
    padding = named.get("pad_token")
    return padding if padding not in (None, named.get("unk_token")) else eos


def give_own_padding(folder: Path, taken: Collection[int]) -> int:
    """Return the id of a padding token that has no other role; add one to the folder's tokenizer if
    needed.

    The id is none of `taken`, and neither begins or ends text nor stands for unknown text.
    transformers' classifiers return the score of the last token that isn't padding.

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
        assert padding is not None, f"the tokenizer didn't add {token}"
        settings["pad_token"] = token
        write_atomic(path, tokenizer.to_str(pretty=True))
    # With padding on the right, positions counted from the left are correct for every model family.
    settings["padding_side"] = "right"
    write_settings(folder, settings)
    return padding


def _padding_names() -> Iterable[str]:
    yield "<|pad|>"
    yield from (f"<|pad_{number}|>" for number in count(1))


def _id_of(tokenizer: Tokenizer, token: str | None) -> int | None:
    return None if token is None else tokenizer.token_to_id(token)


def _ids(settings: TokenizerSettings) -> list[int]:
    """Return the ids that transformers' settings name: none, one, or several."""
    value = settings.get("eos_token_id")
    several = value if isinstance(value, list) else [value]
    return [stop for stop in several if isinstance(stop, int)]
