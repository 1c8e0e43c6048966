"""Every row is traced to its documents' bytes, and packing keeps every token of them once."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest

from data.in_process import without_ray
from data.text.test_prepare import EOT, job, write_texts
from raymill.data.store.lineage import Origin, read_lineage
from raymill.data.store.manifest import PreparedData
from raymill.data.store.shards import row_groups
from raymill.data.text import prepare, tasks
from raymill.data.text import tokenizer as room
from raymill.data.text.unit import UNITS_FOLDER
from raymill.errors import DataError


@contextmanager
def in_process() -> Iterator[None]:
    """Preparation without Ray, the tokenizer's training included."""
    with without_ray(), patch.object(prepare, "train_tokenizer", tasks._train_tokenizer):
        yield


def write_inputs(folder: Path) -> None:
    write_texts(folder, files=8, words=60)
    lines = [json.dumps({"text": f"line {n} " * (n % 9)}) + "\n" for n in range(40)]
    (folder / "records.jsonl").write_text("".join(lines))
    (folder / "long.txt").write_text("one two three. " * 150)


def prepared(tmp_path: Path, **data: object) -> PreparedData:
    if not (tmp_path / "texts").exists():
        write_inputs(tmp_path / "texts")
    with in_process():
        return prepare.prepare_with_ray(job(tmp_path, storage=str(data), **data))


def origin_bytes(folder: Path, origin: Origin) -> bytes:
    """Bytes from which a document was read."""
    content = (folder / origin.file.partition("/")[2]).read_bytes()
    part = content[origin.offset : origin.offset + origin.length]
    assert hashlib.sha256(part).digest() == origin.sha256
    return part


def traced(data: PreparedData) -> dict[str, dict[Origin, dict[int, int]]]:
    """Split → document → its tokens by their number in it, from the rows that the lineage names."""
    text = data.manifest.text
    assert text is not None
    files = {file.path: file for file in text.lineage}
    found: dict[str, dict[Origin, dict[int, int]]] = {}
    for name, split in data.manifest.splits.items():
        documents = found[name] = defaultdict[Origin, dict[int, int]](dict)
        for shard in split.shards:
            number = 0
            for group in row_groups(data.shard_path(shard), shard, data.manifest.dtype):
                for tokens, count in zip(group.tokens, group.length, strict=True):
                    parts = read_lineage(data.folder, files[f"lineage/{shard.path}"], number)
                    covered = np.zeros(int(count), dtype=np.bool_)
                    for part in parts:
                        assert part.last <= count
                        assert not covered[part.first : part.last].any(), "parts don't overlap"
                        covered[part.first : part.last] = True
                        for place, token in enumerate(tokens[part.first : part.last].tolist()):
                            kept = documents[part.origin].setdefault(part.token + place, token)
                            assert kept == token, "rows that share a token agree"
                    others = tokens[:count][~covered]
                    assert set(others.tolist()) <= {data.manifest.tokenizer.end_of_text_id} or (
                        # The token before a row's first one is that of a document it continues.
                        not covered[0] and set(others[1:].tolist()) <= {0}
                    )
                    number += 1
    return found


@pytest.mark.parametrize("packing", ["concatenate", "best_fit"])
@pytest.mark.parametrize("shuffle", [False, True])
def test_every_token_of_a_row_is_traced_to_the_bytes_it_was_read_from(
    tmp_path: Path, packing: str, shuffle: bool
) -> None:
    data = prepared(tmp_path, packing=packing, shuffle_documents=shuffle)
    tokenizer = room.load(data.tokenizer_folder, EOT)
    documents = [item for split in traced(data).values() for item in split.items()]
    assert len(documents) == data.manifest.documents
    for origin, tokens in documents:
        assert sorted(tokens) == list(range(len(tokens))), "from the first to the last"
        read = origin_bytes(tmp_path / "texts", origin)
        text = json.loads(read)["text"] if origin.file.endswith("jsonl") else read.decode()
        assert tokenizer.decode([tokens[number] for number in sorted(tokens)]) == text
    assert data.manifest.splits["train"].bytes + data.manifest.splits["validation"].bytes == sum(
        len(tokenizer.decode(list(tokens.values())).encode()) for _, tokens in documents
    )


def test_best_fit_cuts_only_what_is_longer_than_a_row(tmp_path: Path) -> None:
    counts = {}
    for packing in ("concatenate", "best_fit"):
        data = prepared(tmp_path, packing=packing)
        documents = traced(data)["train"]
        lengths = [len(tokens) for tokens in documents.values()]
        assert data.manifest.text is not None
        counts[packing] = data.manifest.text.packing["train"]
        longer = sum(length > 32 for length in lengths)
        assert (counts[packing]["documents"], counts[packing]["longer"]) == (len(lengths), longer)
    assert counts["best_fit"]["cut"] == counts["best_fit"]["longer"] < counts["concatenate"]["cut"]
    filled = counts["best_fit"]["predicted"] / counts["best_fit"]["positions"]
    assert filled > 0.9


def test_the_rows_digest_tells_of_rows_and_the_lineage_of_its_own_damage(tmp_path: Path) -> None:
    data = prepared(tmp_path)
    text = data.manifest.text
    assert text is not None
    file = next(iter(text.lineage))
    (data.folder / file.path).write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"lineage.*expected sha256"):
        read_lineage(data.folder, file, 0)
    manifest = data.folder / "manifest.json"
    tree = json.loads(manifest.read_text())
    tree["text"]["fertility"] = {}
    manifest.write_text(json.dumps(tree))
    with pytest.raises(DataError, match="was changed after it was written"):
        prepare.load_prepared(data.folder)
    # Folders from before there was a lineage have the same digest.
    del tree["text"], tree["text_sha256"]
    manifest.write_text(json.dumps(tree))
    before = prepare.load_prepared(data.folder).manifest
    assert (before.digest, before.text) == (data.manifest.digest, None)


def test_units_of_an_earlier_version_are_done_again(tmp_path: Path) -> None:
    data = prepared(tmp_path, shuffle_documents=False)
    (data.folder / "manifest.json").unlink()
    sidecars = sorted((data.folder / UNITS_FOLDER).glob("0*.json"))
    tree = json.loads(sidecars[0].read_text())
    del tree["result"]["facts"]["packed"]
    sidecars[0].write_text(json.dumps(tree))
    again = prepared(tmp_path, shuffle_documents=False)
    assert again.manifest == data.manifest
