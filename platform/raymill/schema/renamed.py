"""Keys that were renamed: the one table by which trees that were stored before are read.

Digests name runs and prepared folders. They are computed over the names under which keys were first stored, so
a configuration of today finds what it made under the old names (docs/adr/0013-renamed-keys.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

RENAMED = {
    "algorithm.lam": "algorithm.gae_lambda",
    "centring": "center_rewards",
    "data.unit_bytes": "data.shard_input_bytes",
    "guard.most_in_a_row": "guard.max_consecutive",
    "rollout.dump": "rollout.save_to",
    "rollout.group": "rollout.group_size",
    "rollout.replay": "rollout.load_from",
}
_FIRST_NAMES = {new: old for old, new in RENAMED.items()}

V = TypeVar("V")


def current_names(stored: Mapping[str, V]) -> dict[str, V]:
    """Return a stored mapping of dotted keys by the names that the keys have now."""
    return {RENAMED.get(key, key): value for key, value in stored.items()}


def first_names(flat: Mapping[str, V], group: str = "") -> dict[str, V]:
    """Return a mapping of keys by the names they were first stored under; `group` is the part of the names that
    the keys leave out."""
    prefix = f"{group}." if group else ""
    return {
        _FIRST_NAMES.get(f"{prefix}{key}", f"{prefix}{key}").removeprefix(prefix): value
        for key, value in flat.items()
    }
