"""The filter of addresses: lists in files, and decisions as of datatrove's URLFilter."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
import zstandard

from raymill.data.corpus.cleaning.block_lists import HashedEntries, fingerprint, loaded
from raymill.data.corpus.cleaning.urls import Urls
from raymill.data.corpus.draft import Draft
from raymill.errors import DataError


@pytest.fixture
def urls(tmp_path: Path) -> Urls:
    lists = {
        "domains": "# blocked\nbad.com\n\nads.news.org\n198.51.100.7\nxxx\n",
        "urls": "https://fine.org/one-bad-page\n",
        "words": "Porn\n",
        "soft_words": "live\ncams\nteen\n",
        "subwords": "free-money\n",
    }
    for name, text in lists.items():
        (tmp_path / name).write_text(text)
    return Urls(**{name: (str(tmp_path / name),) for name in lists}, min_soft_words=2)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("", None),
        ("https://good.com/page", None),
        ("https://bad.com", "domain"),
        ("http://a.b.BAD.com:8080/x", "domain"),
        ("bad.com/without-scheme", "domain"),
        ("https://notbad.com/", None),
        ("https://bad.com.org/", None),
        ("https://ads.news.org/x", "domain"),
        ("https://news.org/x", None),
        ("http://198.51.100.7/x", "domain"),
        ("https://any.xxx/", "domain"),
        ("https://fine.org/one-bad-page", "url"),
        ("https://fine.org/one-bad-page?x", None),
        ("https://fine.org/porn/1", "word"),
        ("https://fine.org/pornography/1", None),
        ("https://fine.org/live/1", None),
        ("https://fine.org/live/live/1", None),
        ("https://fine.org/live_cams", "soft_words"),
        ("https://fine.org/get-Free.Money/now", "subword"),
        ("http://[broken/", None),
    ],
)
def test_decisions(urls: Urls, url: str, reason: str | None) -> None:
    assert urls.apply(Draft("text", "web", url=url)) == reason


def test_soft_words_are_noted(urls: Urls) -> None:
    draft = Draft("text", "web", url="https://fine.org/live")
    urls.annotate(draft)
    assert draft.signals == {"urls.soft_words": 1}


def test_lists_may_be_compressed_and_change(tmp_path: Path) -> None:
    packed, zipped = tmp_path / "a.gz", tmp_path / "b.zst"
    packed.write_bytes(gzip.compress(b"one\n#no\n"))
    zipped.write_bytes(zstandard.compress("\ufefftwo\r\n  drei ß \n".encode()))
    paths = (str(packed), str(zipped))
    assert loaded(frozenset, paths) == {"one", "two", "drei ß"}
    before = fingerprint(paths)
    assert fingerprint(paths) == before
    packed.write_bytes(gzip.compress(b"another one\n"))
    assert loaded(frozenset, paths) == {"another one", "two", "drei ß"}
    assert fingerprint(paths) != before


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("cut.gz", gzip.compress(b"one\n" * 1000, mtime=0)[:-9]),
        ("cut.zst", zstandard.compress(bytes(range(33, 99)) * 99)[:-9]),
        ("latin1", "ä\n".encode("latin-1")),
    ],
)
def test_a_damaged_list_is_refused_by_name(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=name):
        loaded(frozenset, (str(tmp_path / name),))


def test_a_missing_list_is_refused_by_name(tmp_path: Path) -> None:
    step = Urls((str(tmp_path / "absent"),), (), (), (), (), 2)
    with pytest.raises(DataError, match="absent: there is no such file"):
        step.fingerprint()
    with pytest.raises(DataError, match="absent: there is no such file"):
        step.apply(Draft("text", "web", url="https://a.b"))


def test_hashed_entries_are_a_set() -> None:
    entries = HashedEntries(f"domain{number}.com" for number in range(70_000))
    assert len(entries) == 70_000
    assert all(f"domain{number}.com" in entries for number in range(0, 70_000, 1000))
    assert not any(f"domain{number}.org" in entries for number in range(1000))
    assert "x" not in HashedEntries([])
