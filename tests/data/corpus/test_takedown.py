"""Takedown lists, read and applied."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from data.documents_factory import write_documents
from data.in_process import without_ray
from raymill.data.corpus.bitmap import read_bitmap
from raymill.data.corpus.takedown import read_takedown, take_down
from raymill.errors import DataError


def test_documents_are_taken_down_by_url_digest_and_place(tmp_path: Path) -> None:
    texts = [["first", "second", "third", "fourth"]]
    store, files = write_documents(tmp_path, texts, urls=["https://a/1", "", "https://a/3", ""])
    listed = tmp_path / "list.txt"
    digest = hashlib.sha256(b"second").hexdigest().upper()
    listed.write_text(f"# wishes of the owners\n\nhttps://a/3\n{digest}\n0.txt@0\n")
    with without_ray():
        result = take_down(store, files, read_takedown([str(listed)]))
    assert read_bitmap(store.local(result.keep[0]), 4).tolist() == [False, False, False, True]
    assert result.dropped == {"web": 3}


@pytest.mark.parametrize("line", ["a page", "12345", "@7", "f" * 63])
def test_lines_of_no_kind_are_refused(tmp_path: Path, line: str) -> None:
    listed = tmp_path / "list.txt"
    listed.write_text(f"https://a/b\n{line}\n")
    with pytest.raises(DataError, match=r"list\.txt:2: expected a URL"):
        read_takedown([str(listed)])


def test_missing_list_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="matches nothing"):
        read_takedown([str(tmp_path / "no.txt")])
