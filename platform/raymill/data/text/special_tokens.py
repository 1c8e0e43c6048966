"""Special tokens: those that a folder's settings name, those that begin a text, and how a text that spells one
stays text.

`encode_special_tokens` alone isn't enough: it switches off the search for special tokens, but a model's own
vocabulary may hold them, too. Unigram takes `</s>` for its likeliest piece, WordPiece for a word, and merges
may add up to it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from raymill.errors import DataError

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer

# Unicode's noncharacters U+FDD0 to U+FDEF are for a program's own use and occur in no text.
MARK = "\ufdd3"
NAMED = (
    "bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token",
)  # fmt: skip
_LISTS = ("extra_special_tokens", "additional_special_tokens")


def special_token_variables(settings: Mapping[str, Any]) -> dict[str, str]:
    """The special tokens that a tokenizer's settings name, plain or as {"content": …}: what a chat template
    may name beside the messages."""
    found = ((name, _content(settings.get(name))) for name in NAMED)
    return {name: text for name, text in found if text is not None}


def special_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """A tokenizer's special tokens and their ids."""
    return {
        token.content: index
        for index, token in tokenizer.get_added_tokens_decoder().items()
        if token.special
    }


def completed(tokenizer: Tokenizer, settings: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer as transformers makes it of a folder: tokens that the settings alone list are added, those
    that they name are special, and `add_bos_token` puts one before a text.

    Raises:
        DataError: `added_tokens_decoder` isn't a mapping of ids to tokens.
    """
    from tokenizers import processors

    # A file may carry training-time padding and truncation, which would silently cut documents.
    tokenizer.no_padding()
    tokenizer.no_truncation()
    known = {repr(token) for token in tokenizer.get_added_tokens_decoder().values()}
    tokenizer.add_tokens([one for one in _listed(settings) if repr(one) not in known])
    tokenizer.add_special_tokens(list(_to_be_special(tokenizer, settings)))
    bos = special_token_variables(settings).get("bos_token")
    index = None if bos is None else tokenizer.token_to_id(bos)
    # transformers 5 forgets this key beside a tokenizer.json; version 4 and the model's authors heeded it.
    if settings.get("add_bos_token") and index is not None and not begins_with(tokenizer):
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, index)]
        )
    return tokenizer


def begins_with(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Ids that a tokenizer puts before every text."""
    # The first text that has a token of its own; some vocabularies lack an x, and fail on it.
    for text in ("x", *tokenizer.get_vocab(with_added_tokens=False)):
        try:
            encoding = tokenizer.encode(text)
        except Exception:  # noqa: BLE001  (`tokenizers` has nothing narrower)
            continue
        mask = encoding.special_tokens_mask
        if 0 in mask:
            return tuple(encoding.ids[: mask.index(0)])
    return ()


def text_beginning(tokenizer: Tokenizer, settings: Mapping[str, Any]) -> tuple[int, ...]:
    """Ids that stand before a text: those that the tokenizer puts there, or else its bos token where that also
    ends texts or pads, as GPT-2's and those trained here, whose documents it stands between."""
    put, named = begins_with(tokenizer), special_token_variables(settings)
    bos = named.get("bos_token")
    if put or bos is None or settings.get("add_bos_token") is False:
        return put
    index = tokenizer.token_to_id(bos)
    between = bos in (named.get("eos_token"), named.get("pad_token"))
    return (index,) if between and index is not None else ()


def text_only(tokenizer: Tokenizer) -> Tokenizer:
    """A copy with the same ids that makes no special token of a text, whatever that spells.

    Its special tokens are called by other names, between noncharacters (`marked`): a text doesn't spell those.
    With `encode_special_tokens` off, it takes them, and no others, for special.
    """
    from tokenizers import Tokenizer

    tree = json.loads(tokenizer.to_str())
    tree["padding"] = tree["truncation"] = None
    _rename(tree, frozenset(_renamed(tree)))
    copy = Tokenizer.from_str(json.dumps(tree))
    copy.encode_special_tokens = True
    return copy


def marked(token: str) -> str:
    """Return what `text_only` calls a special token."""
    return f"{MARK}{token}{MARK}"


def unknown_id(tokenizer: Tokenizer) -> int | None:
    """The id that stands for whatever the vocabulary lacks, as text may become; None without one."""
    model = tokenizer.model
    if type(model).__name__ == "Unigram":  # which tells it in its file alone
        found: int | None = json.loads(tokenizer.to_str())["model"]["unk_id"]
        return found
    token = getattr(model, "unk_token", None)
    return None if token is None else tokenizer.token_to_id(token)


def _content(value: object) -> str | None:
    text = value.get("content") if isinstance(value, Mapping) else value
    return text if isinstance(text, str) else None


def _listed(settings: Mapping[str, Any]) -> Iterator[AddedToken]:
    """Tokens of `added_tokens_decoder` in the order of their ids."""
    from tokenizers import AddedToken

    fields = ("single_word", "lstrip", "rstrip", "normalized", "special")
    entries = settings.get("added_tokens_decoder") or {}
    try:
        for _, entry in sorted(entries.items(), key=lambda pair: int(pair[0])):
            flags = {key: entry[key] for key in fields if key in entry}
            yield AddedToken(entry["content"], **flags)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"The tokenizer's added_tokens_decoder isn't ids and tokens ({error}); mend its "
            "tokenizer_config.json."
        ) from error


def _to_be_special(tokenizer: Tokenizer, settings: Mapping[str, Any]) -> Iterator[AddedToken]:
    """Tokens of the vocabulary that the settings name and the tokenizer takes for ordinary ones.

    A single character that text needs, as CLIP pads with `!`, stays ordinary.
    """
    from tokenizers import AddedToken

    added = {token.content: token for token in tokenizer.get_added_tokens_decoder().values()}
    lists = [_content(one) for key in _LISTS for one in _items(settings.get(key))]
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


def _renamed(tree: Mapping[str, Any]) -> Iterator[str]:
    """Special tokens that text can do without under their own names."""
    model = tree["model"]
    stands_in = model.get("byte_fallback") or model.get("unk_token") is not None
    for token in tree["added_tokens"]:
        text = token["content"]
        is_byte = model.get("byte_fallback") and text.startswith("<0x")
        is_letter = model["type"] == "BPE" and len(text) == 1 and not stands_in
        if token["special"] and text and not is_byte and not is_letter:
            yield text


def _rename(tree: dict[str, Any], tokens: frozenset[str]) -> None:
    def name(text: str) -> str:
        return marked(text) if text in tokens else text

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
        inner = len(model.get("continuing_subword_prefix") or "")
        model["merges"] = [
            [left, right]
            for left, right in model["merges"]
            if tokens.isdisjoint((left, right, left + right[inner:]))
        ]
