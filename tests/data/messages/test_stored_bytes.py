"""Prepared data stays what it was: rows, manifests and the files next to the shards, by stored digests.

A digest may change only with `READING_VERSION`: runs find their prepared data by its name and digest.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from data.messages.stored_factory import prepared_kind
from data.prompts.prompts_factory import stored_rows
from raymill.data.store.manifest import PreparedData
from raymill.durable import canonical_json

DIGESTS: dict[str, dict[str, str]] = json.loads(
    (Path(__file__).parent / "stored_digests.json").read_text()
)
# Libraries that write Parquet and tokenizers may change the first of these, and messages about bad records may
# be reworded; neither changes the prepared data. Nor does the time that a unit took.
NOT_COMPARED = (
    "file_bytes", "sha256", "footer_sha256", "tokenizer", "digest", "unit_digest",
    "why", "examples", "bad_examples", "seconds",
)  # fmt: skip


def content(value: Any) -> Any:
    """Return JSON without NOT_COMPARED, and without the location of the input."""
    if isinstance(value, list):
        return [content(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key: content(item)
        for key, item in value.items()
        if key not in NOT_COMPARED and not (key == "path" and isinstance(item, list))
    }


def digests(prepared: PreparedData) -> dict[str, str]:
    """Return a digest of every file's content; of the shards, one of all rows."""
    rows = hashlib.sha256()
    for split, row in stored_rows(prepared):
        rows.update(split.encode())
        for name, column in row.columns().items():
            rows.update(f"{name} {column.dtype} {column.shape}".encode() + column.tobytes())
    found = {"rows": rows.hexdigest()[:16]}
    for path in sorted(prepared.folder.rglob("*.json*")):
        name = path.relative_to(prepared.folder).as_posix()
        if name.startswith("tokenizer/"):
            continue
        stored = [content(json.loads(line)) for line in path.read_text().split("\n") if line]
        found[name] = hashlib.sha256(canonical_json(stored).encode()).hexdigest()[:16]
    return found


@pytest.mark.usefixtures("no_ray")
@pytest.mark.parametrize("kind", ["chat", "preference", "prompts"])
def test_prepared_data_is_what_it_was(kind: str, tmp_path: Path) -> None:
    found = digests(prepared_kind(kind, tmp_path))
    assert len(found) > 8, "several units"
    assert found == DIGESTS[kind]
