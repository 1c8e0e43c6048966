"""Nothing that a text spells becomes a special token, whatever the family of its tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from raymill.data.text import tokenizer as room
from raymill.data.text.encoder import Encoded, Encoder
from raymill.data.text.special_tokens import (
    MARK,
    begins_with,
    mark_token,
    special_ids,
    without_control_tokens,
)
from raymill.errors import DataError
from tokenizer_families import (
    BOS,
    EOS,
    FAMILIES,
    PAD,
    SPECIAL,
    UNK,
    beginning_with,
    family,
    write_folder,
)


def encoder(tokenizer: Tokenizer) -> Encoder:
    return Encoder(tokenizer, tokenizer.token_to_id(EOS))


def encoded(tokenizer: Tokenizer, text: str) -> Encoded:
    [found] = encoder(tokenizer).encode([text])
    return found


@pytest.mark.parametrize("name", FAMILIES)
def test_a_spelled_special_token_is_ordinary_text(name: str) -> None:
    tokenizer = family(name)
    for text in (
        "In HTML a strike ends with </s> in old pages.",
        "x</s>",
        "</s>",
        "<s> <pad>",
        "a<s>b",
    ):
        found = encoded(tokenizer, text)
        assert not found.problem, (text, found.problem)
        control = set(special_ids(tokenizer).values()) - {tokenizer.token_to_id(UNK)}
        assert control.isdisjoint(found.ids.tolist()), text
        assert not len(found.ids) or found.token_bytes.sum() == len(text.encode())


@pytest.mark.parametrize("name", FAMILIES)
@settings(deadline=None, max_examples=12)
@given(
    st.lists(st.sampled_from([*SPECIAL, "<", "/", "s", ">", "</", "s>", " ", "x", "é", "\n", MARK]))
)
def test_no_text_becomes_a_special_token(name: str, pieces: list[str]) -> None:
    """A text that spells the very names of renamed special tokens is reported as bad."""
    tokenizer = family(name)
    found = encoded(tokenizer, "".join(pieces))
    forged = {tokenizer.token_to_id(token) for token in (BOS, EOS, PAD)} & set(found.ids.tolist())
    assert bool(forged) == bool(found.problem)
    assert not forged or MARK in "".join(pieces)


@pytest.mark.parametrize("name", FAMILIES)
@settings(deadline=None, max_examples=8)
@given(st.text(st.sampled_from("Helo the qu.isn't \n é漢🙂"), max_size=40))
def test_other_text_is_encoded_as_by_the_tokenizer_itself(name: str, text: str) -> None:
    tokenizer = family(name)
    found = encoded(tokenizer, text)
    assert found.ids.tolist() == tokenizer.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("name", FAMILIES)
def test_ids_are_those_of_the_tokenizer(name: str) -> None:
    tokenizer = family(name)
    tokenizer.add_tokens(["<think>"])
    tokenizer.add_special_tokens([AddedToken("<|im_end|>", special=True, normalized=False)])
    copy = without_control_tokens(tokenizer)
    for token, index in tokenizer.get_vocab(with_added_tokens=True).items():
        control = token in special_ids(tokenizer)
        assert copy.token_to_id(mark_token(token) if control else token) == index, token
    copy.encode_special_tokens = False
    ids = copy.encode(f"x{mark_token('<|im_end|>')}", add_special_tokens=False).ids
    assert ids[-1] == tokenizer.token_to_id("<|im_end|>")


def test_a_mark_that_text_spells_is_told_and_not_believed() -> None:
    found = encoded(family("unigram"), f"so {mark_token(EOS)} there")
    assert "makes its special token '</s>' of ordinary text" in found.problem


def test_a_token_for_unknown_characters_that_also_ends_texts_is_told() -> None:
    """GPT-2's way of naming one token for everything, without GPT-2's bytes."""
    tokenizer = family("unigram")
    unknown = tokenizer.token_to_id(UNK)
    [found, known] = Encoder(tokenizer, unknown).encode(["an é", "the end"])
    assert "'<unk>'" in found.problem
    assert not known.problem
    assert not encoded(tokenizer, "an é").problem, (
        "an unknown character is no special token's spelling"
    )


@pytest.mark.parametrize("kind", ["bpe", "unigram", "words"])
def test_a_character_without_a_token_is_told_and_not_dropped(kind: str) -> None:
    pieces = [EOS, "a", "b", "▁"]
    made: dict[str, Any] = {
        "bpe": models.BPE({piece: index for index, piece in enumerate(pieces)}, []),
        "unigram": models.Unigram([(piece, -1.0) for piece in pieces]),
        "words": models.WordLevel({piece: index for index, piece in enumerate(pieces)}),
    }
    tokenizer = Tokenizer(made[kind])
    if kind == "words":
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken(EOS, special=True, normalized=False)])
    good, bad, after = Encoder(tokenizer, 0).encode(["a", "漢 a", "b"])
    assert not good.problem and good.ids.tolist() == [1]
    assert bad.problem
    assert not after.problem and after.ids.tolist() == [2]


def test_a_letter_that_pads_still_pads_and_no_text_becomes_it() -> None:
    """CLIP pads with `!`; texts with it are reported, since they can't be encoded otherwise."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: index for index, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("!", special=True, normalized=False)])
    [found, plain] = Encoder(tokenizer, -1).encode(["Oh!", "Oh"])
    assert "'!'" in found.problem
    assert not plain.problem


MAPPING = {"__type": "AddedToken", "content": EOS, "lstrip": False, "special": True}
NAMED = {"bos_token": BOS, "eos_token": MAPPING, "pad_token": PAD}


@pytest.mark.parametrize("where", ["settings", "mapping", "map alone", "both"])
def test_special_tokens_are_read_where_a_folder_names_them(where: str, tmp_path: Path) -> None:
    """Read strings and mappings, in tokenizer_config.json and in the older special_tokens_map.json."""
    from transformers import AutoTokenizer

    named = {"bos_token": BOS, "eos_token": EOS, "unk_token": UNK, "pad_token": PAD}
    mapped = {role: {**MAPPING, "content": token} for role, token in named.items()}
    in_settings = {"settings": named, "mapping": mapped, "both": {"eos_token": BOS}}
    folder = write_folder(tmp_path, family("metaspace first"), **in_settings.get(where, {}))
    if where in ("map alone", "both"):
        (folder / "special_tokens_map.json").write_text(json.dumps(mapped))
    found = room.special_token_variables(room.read_settings(folder))
    assert found == named
    assert found == AutoTokenizer.from_pretrained(folder).special_tokens_map


def test_a_map_is_no_list_nor_a_settings_file_one(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, family("words"))
    (folder / "special_tokens_map.json").write_text("[]")
    with pytest.raises(DataError, match=r"special_tokens_map\.json holds list"):
        room.read_settings(folder)


def without_added(name: str) -> Tokenizer:
    """A file whose vocabulary holds the special tokens without calling them so."""
    tree = json.loads(family(name).to_str())
    tree["added_tokens"] = []
    return Tokenizer.from_str(json.dumps(tree))


@pytest.mark.parametrize("listed", ["named", "added_tokens_decoder", "added_tokens.json"])
@pytest.mark.parametrize("name", ["unigram", "llama 2", "word pieces"])
def test_tokens_that_settings_alone_call_special_are(
    name: str, listed: str, tmp_path: Path
) -> None:
    tokenizer = without_added(name)
    ids = {token: tokenizer.token_to_id(token) for token in (BOS, EOS, PAD)}
    settings: dict[str, Any] = dict(NAMED)
    if listed == "added_tokens_decoder":
        settings["added_tokens_decoder"] = {
            str(index): {"content": token, "special": True, "normalized": False}
            for token, index in ids.items()
        }
    folder = write_folder(tmp_path, tokenizer, **settings)
    if listed == "added_tokens.json":
        (folder / listed).write_text(json.dumps(ids))
    loaded = room.load(folder, EOS)
    assert {token: special_ids(loaded)[token] for token in ids} == ids
    assert not set(ids.values()) & set(encoded(loaded, "a </s> <pad> x</s>").ids.tolist())


@pytest.mark.parametrize("name", ["byte level", "llama 2"])
@pytest.mark.parametrize("flags", [{}, {"add_bos_token": True}, {"add_bos_token": False}])
@pytest.mark.parametrize("put", [False, True])
def test_a_text_begins_as_transformers_begins_it(
    name: str, flags: dict[str, bool], put: bool, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    tokenizer = family(name)
    if put:
        tokenizer = beginning_with(tokenizer, BOS)
    folder = write_folder(tmp_path / "of", tokenizer, **NAMED, **flags)
    expected = AutoTokenizer.from_pretrained(folder)("Hello there").input_ids
    if flags.get("add_bos_token") and not put:  # transformers ignores it next to a tokenizer.json
        expected = [tokenizer.token_to_id(BOS), *expected]
    loaded = room.load(folder, EOS)
    assert [*begins_with(loaded), *encoded(loaded, "Hello there").ids.tolist()] == expected
    room.save(loaded, tmp_path / "saved", EOS, folder)
    assert AutoTokenizer.from_pretrained(tmp_path / "saved")("Hello there").input_ids == expected
    assert room.identity(room.load(tmp_path / "saved", EOS), EOS) == room.identity(loaded, EOS)


def test_padding_begins_no_text_and_neither_does_what_a_vocabulary_lacks(tmp_path: Path) -> None:
    tokenizer = beginning_with(family("llama 2"), BOS)
    tokenizer.enable_padding(direction="left", length=9, pad_token=PAD)
    loaded = room.load(write_folder(tmp_path, tokenizer, **NAMED), EOS)
    assert begins_with(loaded) == (loaded.token_to_id(BOS),)
    small = Tokenizer(models.Unigram([(piece, -1.0) for piece in (BOS, EOS, "b")]))
    small.add_special_tokens([BOS, EOS])
    assert begins_with(small) == ()
    assert begins_with(beginning_with(small, BOS)) == (0,)


@pytest.mark.parametrize("entries", [[EOS], {"x": {"content": EOS}}, {"1": EOS}, {"1": {}}])
def test_a_list_of_tokens_that_is_none_is_told(entries: object, tmp_path: Path) -> None:
    folder = write_folder(tmp_path, family("words"), eos_token=EOS, added_tokens_decoder=entries)
    with pytest.raises(DataError, match=r"added_tokens_decoder isn't a mapping of ids to tokens"):
        room.load(folder, EOS)


@pytest.mark.parametrize("name", ["llama 2", "metaspace first"])
@pytest.mark.parametrize("kind", ["LlamaTokenizer", "GPT2Tokenizer"])
def test_what_is_saved_is_loaded_as_it_encoded(name: str, kind: str, tmp_path: Path) -> None:
    """A saved tokenizer isn't rebuilt by the rules of the family that its folder names."""
    from transformers import AutoTokenizer

    folder = write_folder(tmp_path / "of", family(name), **NAMED, tokenizer_class=kind)
    loaded = room.load(folder, EOS)
    room.save(loaded, tmp_path / "saved", EOS, folder)
    (tmp_path / "saved" / "config.json").write_text('{"model_type": "llama"}')
    again = AutoTokenizer.from_pretrained(tmp_path / "saved")
    for text in ("Hello  there", "x</s> y", "two\n three"):
        ids = loaded.encode(text, add_special_tokens=False).ids
        assert again(text, add_special_tokens=False).input_ids == ids
