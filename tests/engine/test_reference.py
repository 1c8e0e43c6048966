"""The cached reference: values are loaded as they were computed, or refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from raymill.engine.reference import CachedReference
from raymill.errors import DataError


@pytest.mark.parametrize("damage", ["cut", "flipped", "emptied", "another"])
def test_a_damaged_cache_is_refused_by_name(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "reference.npz"
    kept = CachedReference(path)
    kept.record = np.arange(50, dtype=np.int64)
    kept.values = np.linspace(-9, -1, 100, dtype=np.float32).reshape(-1, 2)
    kept._save()
    again = CachedReference(path)
    again.load()
    assert np.array_equal(again.values, kept.values)
    whole = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(whole[: len(whole) // 2])
    elif damage == "emptied":
        path.write_bytes(b"")
    elif damage == "flipped":
        place = whole.find(kept.values.tobytes()[:16])
        whole[place] ^= 1
        path.write_bytes(whole)
    else:
        kept.values = kept.values + 1
        np.savez(path, record=kept.record, values=kept.values, digest=np.array("0" * 64))
    with pytest.raises(DataError, match=r"reference\.npz .*delete it"):
        again.load()
