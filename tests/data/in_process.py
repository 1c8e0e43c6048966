"""Preparation in the process of the test, without Ray."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from raymill.data import cluster_tasks


def one_by_one(
    function: Callable[..., Any], items: Sequence[Any], *, shared: Any, tasks: int | None = None
) -> Iterator[Any]:
    """Call the function for each item in order, as `parallel` does on the cluster in any order."""
    return (function(item, shared) for item in items)


def combined(
    function: Callable[[Any, Any], Any],
    combine: Callable[[list[Any]], Any],
    items: Sequence[Any],
    *,
    shared: Any,
    tasks: int | None = None,
) -> Any:
    """Return the combination of all results, computed here."""
    return combine([function(item, shared) for item in items])


@contextmanager
def without_ray() -> Iterator[None]:
    """Replace the tasks on the cluster."""
    with (
        patch.object(cluster_tasks, "parallel", one_by_one),
        patch.object(cluster_tasks, "reduced", combined),
    ):
        yield
