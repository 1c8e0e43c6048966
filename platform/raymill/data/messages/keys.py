"""Keys of records that nothing reads: harmless ones, ones that change what is learned, and all others.

Harmless keys are ignored, those that would change what is learned are refused, and all others are reported. An
empty value (null, blank text, a list or an object of such) is ignored whatever its key.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Literal

from raymill.data.messages.problems import Refused

__all__ = [
    "COLUMN",
    "MEDIA",
    "THINKING",
    "JsonObject",
    "Record",
    "UnusedKeys",
    "is_empty",
    "refuse_altering",
    "unread_names",
]

# JSON from outside, whose values are checked where they are read, and JSON that was checked.
Record = Mapping[str, Any]
JsonObject = dict[str, Any]

THINKING = ("reasoning_content", "thinking", "reasoning")
MEDIA = ("image", "images", "image_url", "video", "videos", "audio", "audios", "input_audio")
COLUMN = "column"
NAME_CHARACTERS = 60  # of an unknown key in a report

# Keys for the origin, the topic and the ratings of a record or a message.
_HARMLESS = frozenset((
    "id", "idx", "index", "uuid", "guid", "key", "qid", "hash", "split", "subset", "version",
    "seed", "number", "turn", "turns", "num_turns", "length", "num_tokens", "token_count",
    "turn_identifier", "hashed_ip", "header", "state",
    "source", "sources", "origin", "dataset", "dataset_name", "dataset_source", "data_source",
    "_dataset_name", "url", "link", "license", "author", "user", "user_name", "username", "creator",
    "model", "models", "model_name", "generator", "generated_by", "provider", "openai_fingerprint",
    "system_fingerprint", "gen_input_configs", "avatarUrl", "views", "title", "num_responses",
    "date", "time", "timestamp", "created", "created_at", "updated_at", "created_date",
    "category", "categories", "subcategory", "topic", "subtopic", "domain", "subject", "field",
    "task", "task_type", "task_name", "type", "kind", "tag", "tags", "lang", "language",
    "languages", "locale", "country", "difficulty", "level", "ability", "problem_type",
    "question_type", "intent", "skill", "skills", "channel", "canonical_form", "translation",
    "toxic", "redacted", "toxicity", "openai_moderation", "detoxify_moderation", "moderation",
    "good_natured",
    "score", "rating", "ratings", "quality", "score_chosen", "score_rejected", "rating_chosen",
    "rating_rejected", "chosen_avg_rating", "rejected_avg_rating", "helpfulness", "correctness",
    "coherence", "complexity", "verbosity", "honesty", "instruction_following", "truthfulness",
    "overall_score", "fine_grained_score", "preference_statement", "preference_elaboration",
    "individual_preference", "three_most_similar_preferences", "all_preferences_unprocessed",
    "comment", "comments", "note", "notes", "meta", "metadata", "extra_info", "info",
    "parallel_tool_calls", "custom_instruction", "skip_prompt_formatting", "used_in_training",
    "cache_control", "annotations", "signature",
))  # fmt: skip
_HARMLESS_PATTERN = re.compile(
    r"__index_level_\d+__|.*_(id|ids|idx|index|uuid|hash)|(chosen|rejected)[-_](rating|model|score|reward)"
)

_UNSEEN = (
    "isn't empty, but a language model doesn't see it; remove it where the answers don't need it"
)
_TEMPLATE = (
    "changes what a template writes, but templates get only messages and tools; remove it, or use a template "
    "(data.template) that writes it"
)
_MASK = "selects learned tokens, which only the turns' weight does here; remove it"
_RENAME = "weighs what is learned, but isn't read; rename it to 'weight', or remove it"
# Key → the reason to refuse it in a prompt's record, in any other record, and in a message.
_OF_PROMPTS: dict[str, str] = {
    **dict.fromkeys(MEDIA, _UNSEEN),
    **dict.fromkeys(("chat_template_kwargs", "enable_thinking", "reasoning_effort"), _TEMPLATE),
    "functions": "defines tools, but isn't read; give it as 'tools'",
}
_OF_RECORDS = {
    **_OF_PROMPTS,
    **dict.fromkeys(("assistant_mask", "assistant_masks", "completion_mask", "token_mask"), _MASK),
    **dict.fromkeys(
        (
            "loss", "loss_mask", "loss_scale", "loss_weight", "train", "weights", "sample_weight",
            "example_weight",
        ),
        _RENAME,
    ),
}  # fmt: skip
_OF_MESSAGES = {
    **_OF_PROMPTS,
    "train_detail": "learns parts of a turn, but turns are learned whole or not at all; remove it",
    "refusal": "replaces the assistant's content; make it the content",
    "tools": "defines tools, but isn't read in a message; give it as a column of the record",
    "prefix": "makes the content the beginning of an answer; remove it",
    "partial": "makes the content the beginning of an answer; remove it",
}
_ALTERING = {"prompt": _OF_PROMPTS, "record": _OF_RECORDS, "message": _OF_MESSAGES}
_WEIGHTS = frozenset(key for key, why in _OF_RECORDS.items() if why == _RENAME)
_SWITCHES = frozenset(("prefix", "partial"))  # ignored where they are false
_THOUGHT = re.compile("think|thought|reasoning")


class UnusedKeys:
    """The names of a record's keys that nothing reads, each once."""

    def __init__(self) -> None:
        self._names: dict[str, None] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """The names, as `column 'x'` or `message key 'x'`, in the order in which they were noted."""
        return tuple(self._names)

    def note(self, holder: Record, read: Collection[str], what: str) -> None:
        """Note the keys of a holder (named `what`) that are neither read, nor harmless, nor empty.

        Keys that `refuse_altering` checks aren't noted either: those that are left have passed it.
        """
        checked = _OF_RECORDS if what == COLUMN else _OF_MESSAGES
        for key, value in holder.items():
            ignored = key in read or key in checked or _is_harmless(key) or is_empty(value)
            if not ignored:
                self._names[_named(what, key)] = None


def unread_names(keys: Iterable[str], read: Collection[str]) -> tuple[str, ...]:
    """Return the names of the columns that are neither `read` nor harmless, as `UnusedKeys` has them."""
    return tuple(_named(COLUMN, key) for key in keys if key not in read and not _is_harmless(key))


def is_empty(value: object) -> bool:
    """Tell whether a value is empty: null, blank text, or a list or object of such."""
    # A loop rather than recursion: values may be nested deeper than Python's stack.
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, str):
            if item.strip():
                return False
        elif isinstance(item, Mapping):
            pending.extend(item.values())
        elif isinstance(item, Sequence) and not isinstance(item, bytes | bytearray):
            pending.extend(item)
        elif item is not None:
            return False
    return True


def refuse_altering(
    holder: Record, where: str, kind: Literal["prompt", "record", "message"]
) -> None:
    """Refuse keys that would change what is learned, or what is asked, if they were read.

    `kind` is that of the holder: a prompt's record, any other record, or a message or part of its content.

    Raises:
        Refused: of the cause `unread`, naming `where` and the key.
    """
    for key, why in _ALTERING[kind].items():
        # An empty value changes nothing, so it isn't refused.
        value = holder.get(key)
        if is_empty(value) or (key in _SWITCHES and value is False):
            continue
        if not (key in _WEIGHTS and isinstance(value, bool | int | float) and value == 1):
            raise Refused("unread", f"{where} {key!r} {why}")
    if kind == "message" and holder.get("role") == "assistant":
        for key, value in holder.items():
            unread = isinstance(key, str) and key not in THINKING and _THOUGHT.search(key)
            if unread and isinstance(value, str) and not is_empty(value):
                raise Refused(
                    "unread",
                    f"{where} {key!r} seems to hold the assistant's thinking, and wouldn't be learned; "
                    f"rename it to {THINKING[0]!r}, or remove it",
                )


def _is_harmless(key: object) -> bool:
    if not isinstance(key, str):
        return False
    return key in _HARMLESS or _HARMLESS_PATTERN.fullmatch(key) is not None


def _named(what: str, key: object) -> str:
    """Return `column 'x'`, shortened and printable."""
    return f"{what} {repr(key)[:NAME_CHARACTERS]}"
