"""Stages of a corpus: units of work that are done once, whatever is killed on the way.

A unit writes its files under temporary names; when all are whole they are renamed, and a sidecar
`<stage>/<unit>.json` names them, with a key: the digest of the unit's inputs, the stage's version and its
parameters. Where a sidecar has the key already, nothing is done. Units are named by what they read and not by
their number, so that a new file changes one unit of its stage and none of the others.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Generic, TypeVar

from raymill.data import cluster_tasks
from raymill.data.corpus.progress import StageProgress
from raymill.data.corpus.store import CorpusStore, StoredFile
from raymill.durable import JsonObject, fsync_path, sha256_file, sha256_json
from raymill.reading import entries

Item = TypeVar("Item")
Shared = TypeVar("Shared")
# Hex digits of a unit's name.
NAME_DIGITS = 16


@dataclass(frozen=True)
class Stage:
    """Kind of work. `name` is the folder of its sidecars; `version` changes with what its code writes;
    `parameters` are everything else, besides a unit's inputs, that shapes its files."""

    name: str
    version: int
    parameters: JsonObject

    def key(self, inputs: str) -> str:
        """Return the key of a unit whose inputs have this digest."""
        return sha256_json({"inputs": inputs, **asdict(self)})


@dataclass(frozen=True)
class StageUnit(Generic[Item]):
    """Unit of a stage. `inputs` is the digest of everything that it reads; `item` tells its work what to do,
    in a few kilobytes at most. `bytes` of input are for the progress that is shown."""

    name: str
    inputs: str
    item: Item
    bytes: int = 0


@dataclass(frozen=True)
class UnitOutcome:
    """Result of a unit: the files that it wrote, and `facts` about them, as JSON values.

    `earlier`: an earlier run had finished it. `index` counts the units as they were given; `bytes` are
    those of its input.
    """

    index: int
    name: str
    key: str
    files: tuple[StoredFile, ...]
    facts: JsonObject
    earlier: bool
    bytes: int = 0

    def file(self, suffix: str) -> StoredFile:
        """Return the file whose path ends so; there must be one."""
        [found] = [file for file in self.files if file.path.endswith(suffix)]
        return found


class UnitFiles:
    """Files that a unit reads, and those that it writes."""

    def __init__(self, store: CorpusStore) -> None:
        self._store = store
        self._written: dict[str, Path] = {}

    def read(self, file: StoredFile) -> Path:
        """Return the place of a finished file of an earlier stage. Raises as `CorpusStore.local` does."""
        return self._store.local(file)

    def read_range(self, file: StoredFile, offset: int, buffer: memoryview) -> int:
        """Fill the buffer from an offset on, without the rest of the file; return the bytes there were."""
        return self._store.read_range(file, offset, buffer)

    def new(self, path: str) -> Path:
        """Return where to write the file that `path` will name when the unit is finished."""
        target = self._store.path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        self._written[path] = target.with_name(f"{target.name}.tmp-{uuid.uuid4().hex}")
        return self._written[path]

    def commit(self) -> tuple[StoredFile, ...]:
        """Rename the files, all of which are on the disk first, and copy them to the object store."""
        files = []
        for path, temporary in self._written.items():
            fsync_path(temporary)
            files.append(StoredFile(path, temporary.stat().st_size, sha256_file(temporary)))
        for path, temporary in self._written.items():
            target = self._store.path(path)
            temporary.replace(target)
            fsync_path(target.parent)
            self._store.upload(path)
        return tuple(files)

    def discard(self) -> None:
        """Delete what was written and not committed."""
        for temporary in self._written.values():
            with suppress(FileNotFoundError):
                temporary.unlink()


# Writes a unit's files (item, shared, files) and returns its facts; a function of a module.
Work = Callable[[Item, Shared, UnitFiles], JsonObject]


@dataclass(frozen=True)
class _StageTask(Generic[Item, Shared]):
    """Everything that the units of a running stage share."""

    store: CorpusStore
    stage: Stage
    work: Work[Item, Shared]
    shared: Shared


def run_stage(
    store: CorpusStore,
    stage: Stage,
    units: Iterable[StageUnit[Item]],
    work: Work[Item, Shared],
    shared: Shared,
    *,
    tasks: int | None = None,
) -> Iterator[UnitOutcome]:
    """Yield the outcome of every unit, in no fixed order; `outcome.index` tells which it is.

    Units may come from an iterator of any length. `tasks`: see `cluster_tasks.parallel`.

    Raises:
        RaymillError: the first one that a unit raised; what others finished is kept.
    """
    total = sum(unit.bytes for unit in units) if isinstance(units, Sequence) else 0
    outcomes = cluster_tasks.parallel(
        _run_unit, enumerate(units), shared=_StageTask(store, stage, work, shared), tasks=tasks
    )
    with StageProgress(stage.name, units, total) as progress:
        for outcome in outcomes:
            progress.done(outcome.bytes, earlier=outcome.earlier)
            yield outcome


def unit_name(parts: Sequence[object]) -> str:
    """Return the name of a unit that reads these parts (JSON values) of inputs."""
    return sha256_json(list(parts))[:NAME_DIGITS]


def finished_unit(store: CorpusStore, stage: Stage, unit: StageUnit[Item]) -> UnitOutcome | None:
    """Return what an earlier run made of a unit; None if it is to be done (again)."""
    tree = store.read_json(_sidecar(stage, unit.name))
    try:
        if tree is None or tree["key"] != stage.key(unit.inputs):
            return None
        files = tuple(StoredFile(**file) for file in tree["files"])
        outcome = UnitOutcome(0, unit.name, tree["key"], files, tree["facts"], earlier=True)
    # A sidecar that lacks an entry is as good as none.
    except (KeyError, TypeError):
        return None
    return outcome if store.has(files) else None


def remove_leftovers(
    store: CorpusStore, stage: Stage, names: set[str], folders: Sequence[str]
) -> None:
    """Delete sidecars of units that there are no longer, and what killed tasks left half-written.

    `folders` are those of the stage's files, which are named by their units.
    """
    for folder in (stage.name, *folders):
        for path in entries(store.path(folder)):
            if path.name.partition(".")[0] not in names or ".tmp-" in path.name:
                path.unlink()


def _run_unit(numbered: tuple[int, StageUnit[Item]], task: _StageTask[Item, Shared]) -> UnitOutcome:
    index, unit = numbered
    earlier = finished_unit(task.store, task.stage, unit)
    if earlier is not None:
        return replace(earlier, index=index, bytes=unit.bytes)
    files = UnitFiles(task.store)
    started = time.monotonic()
    try:
        facts = task.work(unit.item, task.shared, files)
        written = files.commit()
    finally:
        files.discard()
    key = task.stage.key(unit.inputs)
    tree = {
        "key": key,
        "files": [asdict(file) for file in written],
        "facts": facts,
        "seconds": time.monotonic() - started,
    }
    # The sidecar comes last, so that it never names a file that isn't whole.
    task.store.write_json(_sidecar(task.stage, unit.name), tree)
    return UnitOutcome(index, unit.name, key, written, facts, False, unit.bytes)


def _sidecar(stage: Stage, name: str) -> str:
    return f"{stage.name}/{name}.json"
