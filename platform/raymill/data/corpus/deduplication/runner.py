"""Runner of a deduplication's stages, each of which reads files of those before."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import TypeVar

from raymill.data.corpus.deduplication.settings import FOLDER, DeduplicationSettings
from raymill.data.corpus.stages import Stage, StageUnit, UnitFiles, UnitOutcome, run_stage
from raymill.data.corpus.store import CorpusStore
from raymill.durable import JsonObject, sha256_json

Item = TypeVar("Item")
StageWork = Callable[[Item, DeduplicationSettings, UnitFiles], JsonObject]

# Raised when the code of a stage writes something else than before.
VERSION = 1
# Parameters by which no stage's results change.
_NOT_SHAPING = ("max_cluster", "memory_bytes", "paragraphs")
# Those by which only the stages of paragraphs change.
_OF_PARAGRAPHS = ("paragraph_words",)
_PARAGRAPH_STAGES = ("paragraphs", "repeated", "unique")


class StageRunner:
    """Runner with the settings of the next stage, which name the files of all earlier ones."""

    def __init__(
        self, store: CorpusStore, settings: DeduplicationSettings, tasks: int | None
    ) -> None:
        self.store, self.settings, self._tasks = store, settings, tasks

    def run(
        self,
        name: str,
        units: Iterable[StageUnit[Item]],
        work: StageWork[Item],
        leaves: Sequence[str] = (),
    ) -> list[UnitOutcome]:
        """Return the outcomes of a stage in the order of its units.

        `leaves`: folders of files, one a unit, that later stages read; by default the stage's name.
        """
        parameters = asdict(self.settings.config)
        for key in _NOT_SHAPING:
            del parameters[key]
        if name not in _PARAGRAPH_STAGES:
            for key in _OF_PARAGRAPHS:
                del parameters[key]
        stage = Stage(f"{FOLDER}/{name}", VERSION, parameters)
        found = run_stage(self.store, stage, units, work, self.settings, tasks=self._tasks)
        outcomes = sorted(found, key=lambda outcome: outcome.index)
        for folder in leaves or (name,):
            files = [
                file
                for outcome in outcomes
                for file in outcome.files
                if file.path.startswith(f"{FOLDER}/{folder}/")
            ]
            self.settings = self.settings.with_files(folder, files)
        return outcomes

    def each_unit(self, *stages: str) -> list[StageUnit[int]]:
        """Return a unit of work for each unit of documents, which may read all files of these stages."""
        inputs = self.digest(*stages)
        return [
            StageUnit(file.unit, inputs, number)
            for number, file in enumerate(self.settings.documents)
        ]

    def digest(self, *stages: str) -> str:
        """Return the digest of the files that stages left, and of the documents in their order."""
        stored = self.settings.stored
        return sha256_json(
            {
                "documents": [file.sha256 for file in self.settings.documents],
                **{stage: [file.sha256 for file in stored[stage]] for stage in stages},
            }
        )
