"""Special tokens: those that a folder's settings name, and those that a text must not produce.

`encode_special_tokens` alone isn't enough to keep a text that spells a special token ordinary text:
it switches off the search for special tokens, but a model's own vocabulary may hold them too.
Unigram takes `</s>` for its likeliest piece, WordPiece for a word, and merges may produce it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from raymill.durable import JsonObject
from raymill.errors import DataError

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer

# Unicode reserves the noncharacters U+FDD0 to U+FDEF for internal use, so they occur in no text.
MARK = "\ufdd3"
NAMED = (
    "bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token",
)  # fmt: skip
# Settings of a tokenizer, as its JSON files have them.
TokenizerSettings = Mapping[str, Any]
_LISTS = ("extra_special_tokens", "additional_special_tokens")


def special_token_variables(settings: TokenizerSettings) -> dict[str, str]:
    """Return the special tokens that a tokenizer's settings name, plain or as {"content": …}.

    A chat template may use these variables besides the messages.
    """
    contents = ((name, _content(settings.get(name))) for name in NAMED)
    return {name: text for name, text in contents if text is not None}


def special_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """Return a tokenizer's special tokens and their ids."""
    return {
        token.content: index
        for index, token in tokenizer.get_added_tokens_decoder().items()
        if token.special
    }


def apply_settings(tokenizer: Tokenizer, settings: TokenizerSettings) -> Tokenizer:
    """Complete a tokenizer as transformers does when it loads a folder.

    Tokens that only the settings list are added, those that they name become special, and
    `add_bos_token` puts one before a text.

    Raises:
        DataError: `added_tokens_decoder` isn't a mapping of ids to tokens.
    """
    from tokenizers import processors

    # A file may carry training-time padding and truncation, which would silently cut documents.
    tokenizer.no_padding()
    tokenizer.no_truncation()
    known = {repr(token) for token in tokenizer.get_added_tokens_decoder().values()}
    tokenizer.add_tokens([token for token in _listed(settings) if repr(token) not in known])
    tokenizer.add_special_tokens(list(_to_be_special(tokenizer, settings)))
    bos = special_token_variables(settings).get("bos_token")
    index = None if bos is None else tokenizer.token_to_id(bos)
    # transformers 5 ignores this key next to a tokenizer.json; version 4, and so the model's authors,
    # followed it.
    if settings.get("add_bos_token") and index is not None and not begins_with(tokenizer):
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, index)]
        )
    return tokenizer


def begins_with(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Return the ids that a tokenizer puts before every text."""
    # Some vocabularies lack an x and fail on it, so other texts are tried after it.
    for text in ("x", *tokenizer.get_vocab(with_added_tokens=False)):
        try:
            encoding = tokenizer.encode(text)
        # `tokenizers` raises nothing narrower.
        except Exception:  # noqa: BLE001
            continue
        mask = encoding.special_tokens_mask
        if 0 in mask:
            return tuple(encoding.ids[: mask.index(0)])
    return ()


def text_beginning(tokenizer: Tokenizer, settings: TokenizerSettings) -> tuple[int, ...]:
    """Return the ids before a text: those that the tokenizer adds, or else its bos token.

    The bos token counts where it also ends texts or pads, as with GPT-2 and the tokenizers trained
    here, whose documents it separates.
    """
    added, named = begins_with(tokenizer), special_token_variables(settings)
    bos = named.get("bos_token")
    if added or bos is None or settings.get("add_bos_token") is False:
        return added
    index = tokenizer.token_to_id(bos)
    between = bos in (named.get("eos_token"), named.get("pad_token"))
    return (index,) if between and index is not None else ()


def without_control_tokens(tokenizer: Tokenizer) -> Tokenizer:
    """Copy a tokenizer, with the same ids, so that no text produces a special token.

    The copy's special tokens have other names, between noncharacters (`mark_token`), which no text
    spells. With `encode_special_tokens` off, the copy treats these names, and no others, as
    special.
    """
    from tokenizers import Tokenizer

    tree = json.loads(tokenizer.to_str())
    tree["padding"] = tree["truncation"] = None
    _rename(tree, frozenset(_renamed(tree)))
    copy = Tokenizer.from_str(json.dumps(tree))
    copy.encode_special_tokens = True
    return copy


def mark_token(token: str) -> str:
    """Return the name of a special token in the copy of `without_control_tokens`."""
    return f"{MARK}{token}{MARK}"


def unknown_id(tokenizer: Tokenizer) -> int | None:
    """Return the id that stands for text outside the vocabulary; None without one."""
    model = tokenizer.model
    # Unigram's object doesn't reveal the id; only its file does.
    if type(model).__name__ == "Unigram":
        unk_id: int | None = json.loads(tokenizer.to_str())["model"]["unk_id"]
        return unk_id
    token = getattr(model, "unk_token", None)
    return None if token is None else tokenizer.token_to_id(token)


def _content(value: object) -> str | None:
    text = value.get("content") if isinstance(value, Mapping) else value
    return text if isinstance(text, str) else None


def _listed(settings: TokenizerSettings) -> Iterator[AddedToken]:
    """Yield the tokens of `added_tokens_decoder` in the order of their ids."""
    from tokenizers import AddedToken

    fields = ("single_word", "lstrip", "rstrip", "normalized", "special")
    entries = settings.get("added_tokens_decoder") or {}
    try:
        for _, entry in sorted(entries.items(), key=lambda pair: int(pair[0])):
            flags = {key: entry[key] for key in fields if key in entry}
            yield AddedToken(entry["content"], **flags)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"The tokenizer's added_tokens_decoder isn't a mapping of ids to tokens ({error}); fix its "
            "tokenizer_config.json."
        ) from error


def _to_be_special(tokenizer: Tokenizer, settings: TokenizerSettings) -> Iterator[AddedToken]:
    """Yield vocabulary tokens that the settings name as special, but the tokenizer treats as
    ordinary.

    A single character that text needs, such as the `!` that CLIP pads with, stays ordinary.
    """
    from tokenizers import AddedToken

    added = {token.content: token for token in tokenizer.get_added_tokens_decoder().values()}
    lists = [_content(item) for key in _LISTS for item in _items(settings.get(key))]
    for text in dict.fromkeys([*special_token_variables(settings).values(), *filter(None, lists)]):
        if text in added:
            if not added[text].special:
                added[text].special = True
                yield added[text]
        elif len(text) > 1 and tokenizer.token_to_id(text) is not None:
            yield AddedToken(text, special=True, normalized=False)


def _items(value: object) -> Sequence[object]:
    if isinstance(value, Mapping):
        return list(value.values())
    return value if isinstance(value, list) else ()


def _renamed(tree: JsonObject) -> Iterator[str]:
    """Yield the special tokens that can be renamed without harm to ordinary text."""
    model = tree["model"]
    stands_in = model.get("byte_fallback") or model.get("unk_token") is not None
    for token in tree["added_tokens"]:
        text = token["content"]
        # Byte tokens are looked up by their names, and a letter without a stand-in is needed by
        # text.
        is_byte = model.get("byte_fallback") and text.startswith("<0x")
        is_letter = model["type"] == "BPE" and len(text) == 1 and not stands_in
        if token["special"] and text and not is_byte and not is_letter:
            yield text


def _rename(tree: JsonObject, tokens: frozenset[str]) -> None:
    def name(text: str) -> str:
        return mark_token(text) if text in tokens else text

    model = tree["model"]
    for token in tree["added_tokens"]:
        token["content"] = name(token["content"])
    if isinstance(model["vocab"], list):
        model["vocab"] = [[name(piece), score] for piece, score in model["vocab"]]
    else:
        model["vocab"] = {name(piece): index for piece, index in model["vocab"].items()}
    if model.get("unk_token") is not None:
        model["unk_token"] = name(model["unk_token"])
    if model.get("merges"):
        # A merge joins two pieces without the prefix of the second one.
        inner = len(model.get("continuing_subword_prefix") or "")
        model["merges"] = [
            [left, right]
            for left, right in model["merges"]
            if tokens.isdisjoint((left, right, left + right[inner:]))
        ]
