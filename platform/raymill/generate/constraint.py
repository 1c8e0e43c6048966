"""Answers that follow a JSON schema or a regular expression: masks of the tokens that may come next.

The grammars are llguidance's, an Earley parser over a trie of the vocabulary. Values are those that the schema
allows, with the properties in its order; a schema with a part that can't be enforced is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from raymill.generate.engine.request import RequestError
from raymill.generate.token_text import TokenTexts

if TYPE_CHECKING:
    from llguidance import LLMatcher
    from tokenizers import Tokenizer

# Without a limit, a model that is unsure may write white space to the end.
_WHITE_SPACE = r"[ \n]{1,8}"
_QUOTED = re.compile(r'"([^"]+)"')


class ConstraintFactory:
    """Constraints for the answers of one model; built once, which reads the whole vocabulary.

    `vocab_size`: V of the model, which may exceed the tokenizer's. `stop_ids`: tokens that end an answer,
    allowed where the value is complete.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, stop_ids: Collection[int]) -> None:
        # Imported late, since few answers are constrained.
        from llguidance import LLTokenizer

        self._vocab_size = vocab_size
        self._stop_ids = sorted(stop_ids)
        self._tokenizer = LLTokenizer(_Vocabulary(tokenizer, vocab_size, self._stop_ids))  # type: ignore[arg-type]

    def json_schema(self, schema: Mapping[str, Any]) -> MatcherConstraint:
        """Return a constraint to the JSON values that a schema (draft 2020-12) allows.

        Raises:
            RequestError: the schema isn't one, or has a keyword that can't be enforced.
        """
        from llguidance import LLMatcher

        try:
            grammar = LLMatcher.grammar_from_json_schema(
                json.dumps(schema),
                overrides={
                    "whitespace_pattern": _WHITE_SPACE, "lenient": False, "coerce_one_of": False,
                },
            )  # fmt: skip
            return self._constraint(grammar)
        except (ValueError, RecursionError) as error:
            where, reason = _place(schema, str(error)), _reason(str(error))
            raise RequestError(
                "constraint", f"the JSON schema can't be enforced{where}: {reason}"
            ) from error

    def json_object(self) -> MatcherConstraint:
        """Return a constraint to JSON objects."""
        return self.json_schema({"type": "object"})

    def regex(self, pattern: str) -> MatcherConstraint:
        """Return a constraint to text that a regular expression matches whole, in the syntax of Rust's regex.

        Raises:
            RequestError: the pattern can't be read, or needs look-around or references.
        """
        from llguidance import LLMatcher

        try:
            return self._constraint(LLMatcher.grammar_from_regex(pattern))
        except ValueError as error:
            raise RequestError(
                "constraint", f"the regular expression can't be enforced: {_reason(str(error))}"
            ) from error

    def _constraint(self, grammar: str) -> MatcherConstraint:
        """Return a constraint to a grammar, whose first mask is known: that may take long.

        Raises:
            ValueError: the grammar can't be enforced.
        """
        from llguidance import LLMatcher

        matcher = LLMatcher(self._tokenizer, grammar, log_level=0)
        if matcher.is_error():
            raise ValueError(matcher.get_error())
        constraint = MatcherConstraint(matcher, self._vocab_size, self._stop_ids)
        constraint.allowed()
        if constraint.broken:
            raise ValueError(constraint.broken)
        return constraint


class _Vocabulary:
    """Vocabulary as llguidance asks for it: the bytes of every token, as Raymill streams them."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, stop_ids: list[int]) -> None:
        texts = TokenTexts(tokenizer)
        self.tokens = [texts.bytes(token) for token in range(vocab_size)]
        added = tokenizer.get_added_tokens_decoder()
        special = {token for token, properties in added.items() if properties.special}
        # The ends aren't part of any text, special or not.
        self.special_token_ids = sorted(special | {*stop_ids})
        self.eos_token_id = stop_ids[0]
        self._tokenizer = tokenizer
        self._by_bytes = {
            spelled: token
            for token, spelled in enumerate(self.tokens)
            if spelled and token not in self.special_token_ids
        }

    def __call__(self, text: str) -> list[int]:
        """Return a text's tokens, which the mask demands where a grammar leaves no choice."""
        wanted = text.encode()
        # Behind another letter, no space is put in front.
        for before in ("", "x"):
            start = len(self._encoded(before))
            ids = self._encoded(before + text)[start:]
            if b"".join(self.tokens[token] for token in ids) == wanted:
                return ids
        return self._longest_first(wanted)

    def _encoded(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def _longest_first(self, wanted: bytes) -> list[int]:
        """Return tokens that spell as much of a text as can be spelled by taking the longest each time."""
        longest = max(map(len, self._by_bytes), default=0)
        ids: list[int] = []
        at = 0
        while at < len(wanted):
            sizes = range(min(longest, len(wanted) - at), 0, -1)
            size = next((n for n in sizes if wanted[at : at + n] in self._by_bytes), 0)
            if not size:
                break
            ids.append(self._by_bytes[wanted[at : at + size]])
            at += size
        return ids


class MatcherConstraint:
    """State of one answer under a grammar; a `TokenConstraint`.

    Where the grammar can't be followed to its end, since it became too complex or the vocabulary can't spell
    what must come, the answer may only end, and `broken` says why.
    """

    def __init__(self, matcher: LLMatcher, vocab_size: int, stop_ids: Collection[int]) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size
        self._stop_ids = list(stop_ids)
        self.broken = ""

    def allowed(self) -> torch.Tensor:
        """[V] bool, on the CPU: tokens that may come next, among them the answer's end where it may end."""
        matcher, allowed_V = self._matcher, np.zeros(self._vocab_size, dtype=np.bool_)
        if not matcher.is_stopped():
            bits = np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8)
            known = np.unpackbits(bits, bitorder="little")[: self._vocab_size]
            allowed_V[: len(known)] = known
        allowed_V[self._stop_ids] = False
        may_end = matcher.is_accepting()
        if not may_end and not allowed_V.any():
            reason = _reason(matcher.get_error())
            self.broken = (
                reason
                if matcher.is_error() and "NoExtension" not in reason
                else "no token of the model's vocabulary spells what must come next"
            )
        if may_end or self.broken:
            allowed_V[self._stop_ids] = True
        return torch.from_numpy(allowed_V)

    def accept(self, token: int) -> None:
        """Advance by a token that was drawn."""
        if token not in self._stop_ids:
            self._matcher.consume_token(token)


def _reason(error: str) -> str:
    """Return the sentence of one of llguidance's errors, which may have an excerpt in its middle."""
    # Its advice names options that aren't a user's.
    error = error.partition(". Enable ")[0]
    lines = [line.strip() for line in error.strip().splitlines()] or ["unknown error"]
    end = lines[-1].removeprefix("error: ")
    return (f"{lines[0]} {end}" if len(lines) > 1 and lines[0].endswith(":") else lines[0]).rstrip(
        "."
    )


def _place(schema: Mapping[str, Any], error: str) -> str:
    """Return where a schema has what an error quotes, as " at properties.a.not", or ""."""
    quoted = {*_QUOTED.findall(error), *map(str.strip, error.splitlines())}
    try:
        for path, value in _leaves(schema, ()):
            if path and (path[-1] in quoted or (isinstance(value, str) and value in quoted)):
                return f" at {'.'.join(path)}"
    except RecursionError:
        return ""
    return ""


def _leaves(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield the path and value of every key and item within a value."""
    yield path, value
    items: Iterator[tuple[Any, Any]] = iter(())
    if isinstance(value, Mapping):
        items = iter(value.items())
    elif isinstance(value, list):
        items = iter(enumerate(value))
    for key, inner in items:
        yield from _leaves(inner, (*path, str(key)))
