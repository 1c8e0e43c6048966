"""The fate of an input: a unit of a preparation reads it, as every kind of data, without Ray.

It is used, its bad records are counted and named, or it is refused by name; anything else is a crash.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from data.hostile import END, KINDS, Input
from data.preference.preference_factory import job as preference_job
from data.preference.preference_factory import write_tokenizer
from raymill.data.kinds import preparation_of
from raymill.data.messages.tokenizer import chat_tokenizer
from raymill.data.sources.documents import DocumentParser
from raymill.data.sources.planning import plan_units
from raymill.data.store.manifest import TOKENIZER_FOLDER
from raymill.data.text import tokenizer as tokenizers_room
from raymill.data.text.text_unit import Settings
from raymill.data.text.unit import UnitResult, UnitSettings, run_unit
from raymill.errors import DataError
from raymill.schema.data_sections import (
    ChatConfig,
    DataConfig,
    PromptsConfig,
    RowsConfig,
    ValidationConfig,
)
from raymill.schema.jobs import ChatPrepareJob, PromptsPrepareJob
from sections import plain


class Preparer:
    """Units of every kind in a folder, one input after the other, without Ray."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.input = folder / "input"
        parent = write_tokenizer(folder / "parent")
        held_out = plain(ValidationConfig, fraction=0.5, group_column="src")
        path = (str(self.input),)
        base = preference_job(folder, self.input, sequence_length=1023)
        common = (base.cluster, base.tracking, base.storage)
        tokenizer = chat_tokenizer(parent, "chatml", ())
        shared: Any = {"path": path, "validation": held_out, "sequence_length": 1023}
        chat_data = plain(ChatConfig, name="c", source="chat", **shared)
        prompts_data = plain(PromptsConfig, name="p", source="prompts", **shared)
        preference_data = replace(base.data, validation=held_out)
        text_data = plain(DataConfig, name="t", source="files", path=path, validation=held_out)
        self.data: dict[str, RowsConfig] = {
            "text": text_data, "chat": chat_data, "preference": preference_data, "prompts": prompts_data,
        }  # fmt: skip
        made = [
            preparation_of(plain(ChatPrepareJob, "p", chat_data, *common), tokenizer),
            preparation_of(replace(base, data=preference_data), tokenizer),
            preparation_of(plain(PromptsPrepareJob, "p", prompts_data, *common), tokenizer),
        ]
        text = folder / "text"
        loaded = tokenizers_room.load(parent, END)
        tokenizers_room.save(loaded, text / TOKENIZER_FOLDER, END)
        identity = tokenizers_room.identity(loaded, END)
        reading = DocumentParser("text", "src", 0.5, 0)
        self.settings: dict[str, UnitSettings] = {
            "text": Settings(str(text), reading, identity, END, 16, 4)
        }
        for kind, preparation in zip(KINDS[1:], made, strict=True):
            preparation.folder.mkdir(parents=True)
            tokenizer.save(preparation.folder / TOKENIZER_FOLDER)
            self.settings[kind] = preparation.settings

    def prepare(self, given: Input) -> list[UnitResult]:
        """Plan the input and do its units.

        Raises:
            DataError: the input is refused as a whole.
        """
        shutil.rmtree(self.input, ignore_errors=True)
        self.input.mkdir()
        (self.input / f"given.{given.ending}").write_bytes(given.content)
        units = plan_units(self.data[given.kind], seed=0)
        return [run_unit(n, unit, self.settings[given.kind]) for n, unit in enumerate(units)]


def judged(preparer: Preparer, given: Input) -> str:
    """Prepare an input: `used`, `counted` (with bad records) or `refused` as a whole.

    Raises:
        AssertionError: nothing tells about it, or a bad record cost a good one.
    """
    refusal, results = "", list[UnitResult]()
    try:
        results = preparer.prepare(given)
    except DataError as error:
        refusal = str(error)
    if refusal:
        assert "given." in refusal, f"a refusal names the file: {refusal}"
        assert not given.sound, f"good records are lost: {refusal}"
        return "refused"
    records, bad = sum(one.records for one in results), sum(one.bad for one in results)
    assert records, "nothing was read, and nothing tells why"
    assert all("given." in text for one in results for text in one.bad_examples)
    assert records - bad >= given.sound, f"a good record is lost: {results[0].bad_examples}"
    return "counted" if bad else "used"
