"""Which prompts people are asked: a seeded choice of the training side's, each once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from heapq import nsmallest

from raymill.data.prompts.prepare import plan_prompt_units
from raymill.data.prompts.prompt import Prompt
from raymill.data.prompts.records import PromptsReading
from raymill.data.store.split import TRAIN, hash_fraction
from raymill.data.text.records import Bad
from raymill.durable import canonical_json, sha256_text
from raymill.errors import DataError
from raymill.schema.data_sections import PromptsConfig

NAMED_BAD = 5  # bad records named in a refusal


@dataclass
class ChosenPrompts:
    """Prompts in a random order that `seed` decides, and what was left out of the choice."""

    prompts: list[Prompt] = field(default_factory=list)
    held_out: int = 0
    repeated: int = 0
    with_tools: int = 0  # what they call isn't text that people compare
    bad: int = 0

    def describe(self) -> str:
        """How many there are, and what isn't among them."""
        left_out = {
            "held out": self.held_out,
            "repeated": self.repeated,
            "with tools": self.with_tools,
            "that can't be used": self.bad,
        }
        others = ", ".join(f"{count:,} {what}" for what, count in left_out.items() if count)
        return f"{len(self.prompts):,} prompts" + (f" (left out: {others})" if others else "")


def choose_prompts(data: PromptsConfig, most: int, seed: int) -> ChosenPrompts:
    """At most `most` of the training prompts; what models are tested with later isn't among them.

    Raises:
        DataError: the files can't be read, too many records are bad, or no prompt is left.
    """
    chosen = ChosenPrompts()
    found = _distinct(data, seed, chosen)
    chosen.prompts = nsmallest(most, found, key=lambda prompt: hash_fraction(_key(prompt), seed))
    if not chosen.prompts:
        raise DataError(f"There is nobody to ask anything: {chosen.describe()}; give more prompts.")
    return chosen


def prompt_name(prompt: Prompt) -> str:
    """Its own id, or a digest of what it says."""
    return prompt.id or sha256_text(_key(prompt))[:16]


def _distinct(data: PromptsConfig, seed: int, chosen: ChosenPrompts) -> Iterator[Prompt]:
    reading = PromptsReading("none", data.validation.group_column, data.validation.fraction, seed)
    seen: set[str] = set()
    records, examples = 0, []
    for unit in plan_prompt_units(data):
        for piece in unit:
            for placed in reading.read(piece, hashlib.sha256()):
                if isinstance(placed, Bad):
                    records, chosen.bad = records + placed.count, chosen.bad + placed.count
                    examples.append(f"  {placed.where}: {placed.why}")
                    continue
                records += 1
                digest = sha256_text(_key(placed.prompt))
                if placed.split != TRAIN:
                    chosen.held_out += 1
                elif digest in seen:
                    chosen.repeated += 1
                elif not _is_text(placed.prompt):
                    chosen.with_tools += 1
                else:
                    yield placed.prompt
                seen.add(digest)
    if chosen.bad > data.max_bad_fraction * records:
        named = "\n".join(examples[:NAMED_BAD])
        raise DataError(
            f"{chosen.bad} of {records} records can't be used as prompts, more than "
            f"data.max_bad_fraction={data.max_bad_fraction:g} allows:\n{named}\n"
            "Mend or remove them, or raise data.max_bad_fraction."
        )


def _is_text(prompt: Prompt) -> bool:
    plain = all(set(message) == {"role", "content"} for message in prompt.messages)
    return plain and prompt.tools is None


def _key(prompt: Prompt) -> str:
    return canonical_json(list(prompt.messages))
