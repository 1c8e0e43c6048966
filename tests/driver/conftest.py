"""Data prepared once for all tests that run jobs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from driver import job


@dataclass(frozen=True)
class Workshop:
    """A storage root with prepared data, and the overrides that find it."""

    root: Path
    overrides: tuple[str, ...]

    def run_dir(self, name: str) -> Path:
        return self.root / "storage" / "runs" / name


@pytest.fixture(scope="session", autouse=True)
def nothing_left() -> Iterator[None]:
    """Check at the end that all processes which killed drivers had started have ended."""
    yield
    job.wait_for_agents()


@pytest.fixture(scope="session")
def workshop(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    root = tmp_path_factory.mktemp("workshop")
    job.write_corpus(root / "texts")
    overrides = (
        "experiment=tiny",
        "data=files",
        f"data.path={root / 'texts'}",
        "data.sequence_length=64",
        "data.row_group_rows=8",
        "data.validation.fraction=0.2",
        "tokenizer.vocab_size=300",
        # A second one would wait for a core that other tests hold.
        "train.threads=1",
    )
    code, output = job.run("prepare", *overrides, cwd=root)
    assert code == 0, output
    return Workshop(root, overrides)
