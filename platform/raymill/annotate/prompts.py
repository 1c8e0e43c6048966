"""Selection of the prompts to annotate: a seeded sample of the training split, without repetitions."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from heapq import nsmallest

from raymill.annotate.items import messages_name
from raymill.data.prompts.kind import PromptKind, PromptParser
from raymill.data.prompts.prompt import Prompt
from raymill.data.sources.format import Bad
from raymill.data.store.split import TRAIN, hash_fraction
from raymill.durable import canonical_json, sha256_text
from raymill.errors import DataError
from raymill.schema.data_sections import PromptsConfig

NAMED_BAD = 5  # records listed in an error message


@dataclass
class ChosenPrompts:
    """Prompts in a seeded random order, and counts of those that were left out."""

    prompts: list[Prompt] = field(default_factory=list)
    held_out: int = 0
    repeated: int = 0
    with_tools: int = 0
    bad: int = 0

    def describe(self) -> str:
        """Return the number of prompts and of those left out, by reason."""
        left_out = {
            "held out": self.held_out,
            "repeated": self.repeated,
            "with tools": self.with_tools,
            "unusable": self.bad,
        }
        others = ", ".join(f"{count:,} {reason}" for reason, count in left_out.items() if count)
        return f"{len(self.prompts):,} prompts" + (f" (left out: {others})" if others else "")


def choose_prompts(data: PromptsConfig, limit: int, seed: int) -> ChosenPrompts:
    """Choose at most `limit` training prompts; held-out prompts stay unseen for later evaluation.

    Raises:
        DataError: the files can't be read, too many records are bad, or no prompt is left.
    """
    chosen = ChosenPrompts()
    candidates = _distinct(data, seed, chosen)
    # With the smallest hashes, a larger limit extends the choice instead of replacing it.
    chosen.prompts = nsmallest(limit, candidates, key=lambda p: hash_fraction(_content(p), seed))
    if not chosen.prompts:
        raise DataError(f"There is no prompt to annotate: {chosen.describe()}; give more prompts.")
    return chosen


def prompt_name(prompt: Prompt) -> str:
    """Return the prompt's own id, or else a digest of its messages."""
    return prompt.id or messages_name(prompt.messages)


def _distinct(data: PromptsConfig, seed: int, chosen: ChosenPrompts) -> Iterator[Prompt]:
    """Yield the usable prompts; count the others in `chosen`."""
    validation = data.validation
    parser = PromptParser(
        group_column=validation.group_column, fraction=validation.fraction, seed=seed
    )
    seen: set[str] = set()
    records, examples = 0, []
    for unit in PromptKind().plan(data):
        for piece in unit:
            for placed in parser.read(piece, hashlib.sha256()):
                if isinstance(placed, Bad):
                    records, chosen.bad = records + placed.count, chosen.bad + placed.count
                    examples.append(f"  {placed.where}: {placed.why}")
                    continue
                records += 1
                digest = sha256_text(_content(placed.value))
                # Held-out prompts would leak into the data on which models are trained.
                if placed.split != TRAIN:
                    chosen.held_out += 1
                elif digest in seen:
                    chosen.repeated += 1
                elif not _is_plain_text(placed.value):
                    chosen.with_tools += 1
                else:
                    yield placed.value
                seen.add(digest)
    if chosen.bad > data.max_bad_fraction * records:
        listed = "\n".join(examples[:NAMED_BAD])
        raise DataError(
            f"{chosen.bad} of {records} records can't be used as prompts, more than "
            f"data.max_bad_fraction={data.max_bad_fraction:g} allows:\n{listed}\n"
            "Fix or remove them, or raise data.max_bad_fraction."
        )


def _is_plain_text(prompt: Prompt) -> bool:
    """Tell whether a prompt is text alone: the page shows no tool calls."""
    plain = all(set(message) == {"role", "content"} for message in prompt.messages)
    return plain and prompt.tools is None


def _content(prompt: Prompt) -> str:
    return canonical_json(list(prompt.messages))
