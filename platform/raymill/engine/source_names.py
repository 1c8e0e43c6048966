"""What data sources are called in figures."""

from __future__ import annotations

from collections.abc import Sequence

from raymill.data.store.manifest import PreparedData


def source_names(prepared: Sequence[PreparedData]) -> list[str]:
    """A name for each data source, for figures of its own; two of one name are told apart."""
    names: list[str] = []
    for data in prepared:
        same = sum(name.partition("~")[0] == data.manifest.name for name in names)
        names.append(data.manifest.name if not same else f"{data.manifest.name}~{same + 1}")
    return names
