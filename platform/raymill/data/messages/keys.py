"""Keys that data sets have beside what is read: harmless ones, ones that would change what is learned, and
all others, which are told.

A value that is empty (null, blank text, a list or an object of such) says nothing, whatever its key.
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
    "UnusedKeys",
    "is_empty",
    "refuse_altering",
    "unread_names",
]

THINKING = ("reasoning_content", "thinking", "reasoning")
MEDIA = ("image", "images", "image_url", "video", "videos", "audio", "audios", "input_audio")
COLUMN = "column"
NAME_CHARACTERS = 60  # of an unknown key, in what is told

# Where a record or a message is from, what it is about, and how others rated it.
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
    "isn't empty, and a language model doesn't see it; remove it where the answers don't need it"
)
_TEMPLATE = (
    "changes what a template writes, and templates get messages and tools alone; remove it, or use a "
    "template (data.template) that writes what it asks for"
)
_MASK = "says which tokens are learned, which is read from the turns' weight alone; remove it"
_RENAME = "weighs what is learned, but isn't read; rename it to 'weight', or remove it"
# Key → why it mustn't be there, by what holds it: a prompt's record, any other record, a message.
_OF_PROMPTS: dict[str, str] = {
    **dict.fromkeys(MEDIA, _UNSEEN),
    **dict.fromkeys(("chat_template_kwargs", "enable_thinking", "reasoning_effort"), _TEMPLATE),
    "functions": "says what may be called, but isn't read; give it as 'tools'",
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
    "refusal": "is what the assistant said in place of its content; make it the content",
    "tools": "says what may be called, but isn't read there; give it beside the messages",
    "prefix": "makes the content the beginning of an answer; remove it",
    "partial": "makes the content the beginning of an answer; remove it",
}
_ALTERING = {"prompt": _OF_PROMPTS, "record": _OF_RECORDS, "message": _OF_MESSAGES}
_WEIGHTS = frozenset(key for key, why in _OF_RECORDS.items() if why == _RENAME)
_SWITCHES = frozenset(("prefix", "partial"))  # say nothing where they are false
_THOUGHT = re.compile("think|thought|reasoning")


class UnusedKeys:
    """The names of a record's keys that nothing reads, each once."""

    def __init__(self) -> None:
        self._names: dict[str, None] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """As `column 'x'`, `message key 'x'`, …, in the order in which they were found."""
        return tuple(self._names)

    def note(self, holder: Mapping[Any, Any], read: Collection[str], what: str) -> None:
        """Name the keys of a `what` that aren't `read`, empty or harmless; those that `refuse_altering` looks
        at have passed."""
        passed = _OF_RECORDS if what == COLUMN else _OF_MESSAGES
        for key, value in holder.items():
            said_nothing = key in read or key in passed or _is_harmless(key) or is_empty(value)
            if not said_nothing:
                self._names[_named(what, key)] = None


def unread_names(keys: Iterable[str], read: Collection[str]) -> tuple[str, ...]:
    """The names of those columns that are neither `read` nor harmless, as `UnusedKeys` has them."""
    return tuple(_named(COLUMN, key) for key in keys if key not in read and not _is_harmless(key))


def is_empty(value: object) -> bool:
    """Tell whether a value says nothing: null, blank text, lists and objects of such."""
    left = [value]
    while left:
        one = left.pop()
        if isinstance(one, str):
            if one.strip():
                return False
        elif isinstance(one, Mapping):
            left.extend(one.values())
        elif isinstance(one, Sequence) and not isinstance(one, bytes | bytearray):
            left.extend(one)
        elif one is not None:
            return False
    return True


def refuse_altering(
    holder: Mapping[Any, Any], where: str, kind: Literal["prompt", "record", "message"]
) -> None:
    """Refuse what would change what is learned or asked, if it were read. `kind` of the holder: a prompt's
    record, any other record, or a message or part of its content.

    Raises:
        Refused: of the cause `unread`, naming `where` and the key.
    """
    for key, why in _ALTERING[kind].items():
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
                    f"{where} {key!r} seems to hold what the assistant thought, and wouldn't be learned; "
                    f"rename it to {THINKING[0]!r}, or remove it",
                )


def _is_harmless(key: object) -> bool:
    if not isinstance(key, str):
        return False
    return key in _HARMLESS or _HARMLESS_PATTERN.fullmatch(key) is not None


def _named(what: str, key: object) -> str:
    """`column 'x'`, short, and without what isn't text."""
    return f"{what} {repr(key)[:NAME_CHARACTERS]}"
