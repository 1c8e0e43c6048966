"""Tokenizers of every family through preparation, a step of training, and generation from what that leaves."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from raymill.config import load
from raymill.data.store.manifest import DataManifest, PreparedData
from raymill.data.store.shards import row_groups
from raymill.data.text import prepare
from raymill.driver.chat import chat
from raymill.errors import DataError
from raymill.evaluate.baselines import documents
from raymill.generate import sampling
from raymill.generate.load import load_model
from raymill.model.build import build_model
from raymill.model.export import copy_tokenizer
from raymill.objective.language_modeling import LanguageModeling
from raymill.schema.data_sections import DataConfig, TokenizerConfig, ValidationConfig
from raymill.schema.jobs import PrepareJob
from raymill.schema.sections import ClusterConfig
from raymill.schema.storage import StorageConfig
from sections import plain
from tokenizer_families import BOS, EOS, FAMILIES, PAD, UNK, beginning_with, family, write_folder

TEXTS = [
    "Two plus two is four.",
    "In HTML a strike ends with </s> in old pages.",
    "So <s> and <pad>, <unk> too x</s>",
    "The quick brown fox\n\n  jumps over the lazy dog.",
]
pytestmark = pytest.mark.usefixtures("no_ray")
# The beginning of a text, and the special tokens that a folder names besides its end of text.
BEGINNINGS = {
    "nothing begins": ((), {}),
    "named alone": ((), {"bos_token": BOS, "pad_token": PAD}),
    "bos begins": ((BOS,), {"bos_token": BOS, "pad_token": PAD, "unk_token": UNK}),
    "one for all": ((), {"bos_token": EOS, "pad_token": EOS}),
    "two begin": ((PAD, BOS), {}),
}


def folder_of(tmp_path: Path, name: str, beginning: str) -> Path:
    begin, named = BEGINNINGS[beginning]
    tokenizer = family(name)
    if begin:
        tokenizer = beginning_with(tokenizer, *begin)
    return write_folder(tmp_path / "of", tokenizer, eos_token=EOS, **named)


def prepared_from(tmp_path: Path, folder: Path, texts: list[str], **data: Any) -> PreparedData:
    (tmp_path / "texts").mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"text": text}) for text in texts]
    (tmp_path / "texts" / "a.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "texts" / "held.txt").write_text(TEXTS[0])
    data.setdefault(
        "validation", plain(ValidationConfig, path=(str(tmp_path / "texts" / "held.txt"),))
    )
    # The tokens are compared in the order of the texts.
    data.setdefault("shuffle_documents", False)
    job = plain(PrepareJob,
        data=plain(DataConfig,
            name="tiny", source="files", path=(str(tmp_path / "texts" / "a.jsonl"),),
            text_column="text", sequence_length=16, row_group_rows=4, **data,
        ),
        tokenizer=plain(TokenizerConfig, name="existing", path=str(folder), end_of_text="auto"),
        cluster=plain(ClusterConfig, name="local", address="local"),
        storage=plain(StorageConfig, root=str(tmp_path / "storage")),
    )  # fmt: skip
    return prepare.prepare_with_ray(job)


def stream_of(prepared: PreparedData) -> list[int]:
    manifest, stream = prepared.manifest, list[int]()
    for shard in manifest.splits["train"].shards:
        for rows in row_groups(prepared.shard_path(shard), shard, manifest.dtype):
            for row, count in zip(rows.tokens, rows.length, strict=True):
                stream += row[1 if stream else 0 : count].tolist()
    return stream


def ordinary(tokenizer: Tokenizer, text: str) -> bool:
    """Return whether the tokenizer alone, with `encode_special_tokens`, makes no special token of a text."""
    tokenizer.encode_special_tokens = True
    return not {tokenizer.token_to_id(token) for token in (BOS, EOS, PAD, UNK)} & set(
        tokenizer.encode(text, add_special_tokens=False).ids
    )


@pytest.mark.parametrize(
    ("name", "beginning"),
    [
        *product(FAMILIES, ("nothing begins", "bos begins")),
        *product(("byte level", "unigram"), ("named alone", "one for all", "two begin")),
    ],
)
def test_documents_begin_and_end_as_their_tokenizer_says(
    name: str, beginning: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepared = prepared_from(tmp_path, folder_of(tmp_path, name, beginning), TEXTS)
    assert prepared.manifest.bad_inputs.count == 0
    tokenizer = family(name)
    begin = [tokenizer.token_to_id(token) for token in BEGINNINGS[beginning][0]]
    end = tokenizer.token_to_id(EOS)
    stream = stream_of(prepared)
    assert stream[0] == (begin[0] if begin else end)
    assert stream.count(end) == len(TEXTS) + (not begin)
    cut = np.split(stream, np.flatnonzero(np.array(stream) == end) + 1)
    for document, text in zip([part for part in cut if len(part) > 1], TEXTS, strict=True):
        ids = document.tolist()
        assert ids[: len(begin)] == begin and ids[-1] == end
        inside = ids[len(begin) : -1]
        assert not {tokenizer.token_to_id(token) for token in (BOS, EOS, PAD)} & set(inside), text
        if ordinary(family(name), text):
            assert inside == tokenizer_alone(name, text)
    found = list(documents(prepared, "train"))
    assert [len(ids) for ids in found] == [len(p) - 1 - len(begin) for p in cut if len(p) > 1]
    total = sum(len(text.encode()) for text in TEXTS)
    assert prepared.manifest.splits["train"].bytes == total


def tokenizer_alone(name: str, text: str) -> list[int]:
    tokenizer = family(name)
    tokenizer.encode_special_tokens = True
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids


def test_a_document_that_cannot_be_text_is_one_bad_record(tmp_path: Path) -> None:
    """One token stands for the unknown and ends documents, and a document holds what is unknown."""
    folder = write_folder(tmp_path / "of", family("unigram"), eos_token=UNK)
    texts = [*["Two plus two is four."] * 5, "é is unknown"]
    prepared = prepared_from(tmp_path, folder, texts, max_bad_fraction=0.2)
    bad = prepared.manifest.bad_inputs
    assert bad.count == 1
    assert bad.examples[0].startswith(
        "texts/a.jsonl:6: the tokenizer makes its special token '<unk>'"
    )
    assert prepared.manifest.documents == 6
    with pytest.raises(DataError, match=r"a\.jsonl:6: the tokenizer makes its special"):
        prepared_from(tmp_path / "again", folder, texts, max_bad_fraction=0.0)


def test_what_is_prepared_is_found_again(tmp_path: Path) -> None:
    """Use a folder whose settings, not its tokenizer.json, name special tokens and the beginning of a text."""
    tree = json.loads(family("unigram").to_str())
    tree["added_tokens"] = []
    tokenizer = Tokenizer.from_str(json.dumps(tree))
    named = {"bos_token": BOS, "eos_token": EOS, "add_bos_token": True}
    folder = write_folder(tmp_path / "of", tokenizer, **named)
    prepared = prepared_from(tmp_path, folder, TEXTS)
    assert prepared.manifest.tokenizer.begins_with == (tokenizer.token_to_id(BOS),)
    again = prepared_from(tmp_path, folder, TEXTS)
    assert again.manifest.digest == prepared.manifest.digest


def settings_of(prepared: PreparedData) -> dict[str, Any]:
    text = (prepared.tokenizer_folder / "tokenizer_config.json").read_text()
    found: dict[str, Any] = json.loads(text)
    return found


def trained(manifest: DataManifest, prepared: PreparedData) -> Any:
    """A model after a step on the prepared rows, in which documents don't see each other."""
    tokenizer = manifest.tokenizer
    arch = load("pretrain", ["experiment=tiny", "arch.max_positions=64"]).arch
    model: Any = build_model(arch, tokenizer.vocab_size, tokenizer.end_of_text_id, 1)
    first = next(iter(tokenizer.begins_with), tokenizer.end_of_text_id)
    objective = LanguageModeling(first, document_mask=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    [shard] = manifest.splits["train"].shards
    for rows in row_groups(prepared.shard_path(shard), shard, manifest.dtype):
        loss = objective.losses(model, rows, torch.device("cpu")).sum() / objective.weight(rows)
        loss.backward()
        assert torch.isfinite(loss)
        optimizer.step()
        return model
    raise AssertionError("no rows")


@pytest.mark.parametrize(
    ("name", "beginning"),
    [
        ("llama 2", "bos begins"),
        ("metaspace never", "two begin"),
        ("unigram", "nothing begins"),
        ("word pieces", "named alone"),
        ("byte level", "one for all"),
    ],
)
def test_a_model_is_trained_and_asked_in_the_same_way(
    name: str, beginning: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    from transformers import AutoTokenizer

    prepared = prepared_from(tmp_path, folder_of(tmp_path, name, beginning), TEXTS)
    export = tmp_path / "export"
    trained(prepared.manifest, prepared).save_pretrained(export)
    copy_tokenizer(prepared.tokenizer_folder, export)
    capsys.readouterr()
    tokenizer = load_model(export)[1]
    asked, drawn = list[int](), list[int]()
    sample = sampling.sample

    def watched(model: Any, ids: list[int], **settings: Any) -> Iterator[int]:
        asked.extend(ids)
        for token in sample(model, ids, **settings):
            drawn.append(token)
            yield token

    monkeypatch.setattr(sampling, "sample", watched)
    prompt = "Two plus two"
    job = load("chat", [f"model={export}", f"prompt={prompt}", "chat=false", "max_new_tokens=12",
                        "tracking=none", f"storage.root={tmp_path}"])  # fmt: skip
    chat(job)
    printed = capsys.readouterr().out

    put = AutoTokenizer.from_pretrained(export)(prompt).input_ids
    between = [prepared.manifest.tokenizer.end_of_text_id] if beginning == "one for all" else []
    assert asked == [*between, *put]
    begun = len(asked) - len(tokenizer_alone(name, prompt))
    assert stream_of(prepared)[: len(asked)][:begun] == asked[:begun], "as documents begin"
    assert drawn
    told = tokenizer.decode(asked, skip_special_tokens=True)
    whole = tokenizer.decode([*asked, *drawn], skip_special_tokens=True)
    assert printed == f"{prompt}{whole[len(told) :]}\n"
    assert settings_of(prepared)["eos_token"] == EOS
    named = BEGINNINGS[beginning][1].get("bos_token")
    assert settings_of(prepared).get("bos_token") == named, "none is made up"
