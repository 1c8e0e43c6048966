"""Constrained answers are what was asked for, whatever the model would rather say."""

from __future__ import annotations

import json
import re
from typing import Any

import jsonschema
import pytest
import torch

from raymill.generate.constraint import ConstraintFactory, MatcherConstraint
from raymill.generate.engine.request import RequestError
from tokenizer_families import EOS, PAD, family

# Ids beyond the tokenizer's, as models with padded vocabularies have them.
PADDED = 37
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 5},
        "age": {"type": "integer", "minimum": 3, "exclusiveMaximum": 120},
        "tags": {"type": "array", "items": {"enum": ["a", "é", '"\\']}, "maxItems": 3},
        "place": {"$ref": "#/$defs/place"},
        "when": {"type": "string", "format": "date"},
    },
    "required": ["name", "age", "place", "when"],
    "additionalProperties": False,
    "$defs": {
        "place": {
            "anyOf": [{"type": "null"}, {"type": "boolean"}, {"const": [1, {"x": None}]}],
        }
    },
}


@pytest.fixture(scope="module", params=["byte level", "llama 2", "unigram with bytes"])
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return family(request.param)


def factory_of(tokenizer: Any) -> ConstraintFactory:
    size = tokenizer.get_vocab_size() + PADDED
    return ConstraintFactory(tokenizer, size, [tokenizer.token_to_id(EOS)])


@pytest.fixture(scope="module")
def factory(tokenizer: Any) -> ConstraintFactory:
    return factory_of(tokenizer)


def drawn(
    constraint: MatcherConstraint, tokenizer: Any, seed: int, most: int = 300
) -> tuple[list[int], bool]:
    """The tokens of an answer by random logits, and whether it ended by itself."""
    generator = torch.Generator().manual_seed(seed)
    size, end = tokenizer.get_vocab_size(), tokenizer.token_to_id(EOS)
    ids: list[int] = []
    for _ in range(most):
        logits_V = 3 * torch.randn(size + PADDED, generator=generator)
        allowed_V = constraint.allowed()
        assert allowed_V.shape == logits_V.shape
        assert not allowed_V[size:].any(), "no token has these ids"
        assert not allowed_V[tokenizer.token_to_id(PAD)]
        probabilities_V = logits_V.masked_fill(~allowed_V, -torch.inf).softmax(dim=0)
        token = int(probabilities_V.multinomial(1, generator=generator))
        constraint.accept(token)
        if token == end:
            return ids, True
        ids.append(token)
    return ids, False


def text_of(tokenizer: Any, ids: list[int]) -> str:
    """The text behind a prompt, where a first space isn't dropped."""
    before = tokenizer.encode("x", add_special_tokens=False).ids
    return str(tokenizer.decode([*before, *ids])[len(tokenizer.decode(before)) :])


def test_every_answer_fits_the_schema(factory: ConstraintFactory, tokenizer: Any) -> None:
    ended = 0
    for seed in range(8):
        ids, complete = drawn(factory.json_schema(SCHEMA), tokenizer, seed)
        ended += complete
        if complete:
            jsonschema.validate(json.loads(text_of(tokenizer, ids)), SCHEMA)
    assert ended >= 6


@pytest.mark.parametrize(
    "pattern", [r"(yes|no)( [a-z]{1,4})?", r"\d{2}:[0-5]\d", r"[^ab]{3}é?", "漢*"]
)
def test_every_answer_matches_the_expression(
    pattern: str, factory: ConstraintFactory, tokenizer: Any
) -> None:
    for seed in range(4):
        ids, complete = drawn(factory.regex(pattern), tokenizer, seed)
        assert complete
        assert re.fullmatch(pattern, text_of(tokenizer, ids))


def test_json_objects_are_objects(factory: ConstraintFactory, tokenizer: Any) -> None:
    values = list[Any]()
    for seed in range(12):
        ids, complete = drawn(factory.json_object(), tokenizer, seed)
        values += [json.loads(text_of(tokenizer, ids))] if complete else []
    assert values and all(isinstance(value, dict) for value in values)


def test_two_answers_have_states_of_their_own() -> None:
    tokenizer = family("byte level")
    factory = factory_of(tokenizer)
    first, second = (factory.regex("ab") for _ in range(2))
    a, b = (tokenizer.token_to_id(letter) for letter in "ab")
    first.accept(a)
    assert first.allowed().nonzero().flatten().tolist() == [b]
    assert second.allowed()[a] and not second.allowed()[b]
    first.accept(b)
    assert first.allowed().nonzero().flatten().tolist() == [tokenizer.token_to_id(EOS)]
    assert first.broken == ""


def nested(depth: int) -> Any:
    return {"items": nested(depth - 1)} if depth else {}


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "nothing"}, "nothing"),
        (
            {"type": "object", "properties": {"a": {"not": {"type": "null"}}}},
            r"at properties\.a\.not: .*not",
        ),
        ({"type": "string", "format": "shoe-size"}, "shoe-size"),
        ({"$ref": "https://example.com/schema.json"}, "example.com"),
        ({"properties": {"a": {"pattern": "(x"}}}, r"at properties\.a\.pattern: .*unclosed group"),
        ({"type": "integer", "minimum": 3, "maximum": 1}, "minimum"),
        ({"type": 3}, "type"),
        ({"const": float("nan")}, "enforced: ."),
        ({"const": "\ud800"}, "enforced: ."),
        ({"$ref": "#"}, "no token .* spells what must come next"),
        (
            {"oneOf": [{"type": "number"}, {"type": "integer"}]},
            "oneOf constraints are not supported$",
        ),
        (nested(300), "recursion"),
        ({"type": "object", "x-guidance": {"lenient": True}, "not": {}}, "at not"),
    ],
)
def test_a_schema_that_cannot_be_enforced_is_refused(schema: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message) as refused:
        factory_of(family("byte level")).json_schema(schema)
    assert refused.value.parameter == "constraint"
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("pattern", ["(", "(?=a)b", r"(a)\1", "\ud800"])
def test_an_expression_that_cannot_be_enforced_is_refused(pattern: str) -> None:
    with pytest.raises(RequestError, match=r"regular expression can't be enforced: \S"):
        factory_of(family("byte level")).regex(pattern)


def test_a_vocabulary_that_cannot_spell_the_answer_is_told() -> None:
    tokenizer = family("words")
    with pytest.raises(RequestError, match="no token of the model's vocabulary"):
        factory_of(tokenizer).json_object()
    hello, end = (tokenizer.token_to_id(word) for word in ("Hello", EOS))
    constraint = factory_of(tokenizer).regex("( Hello){2}!")
    constraint.accept(hello)
    assert not constraint.broken
    constraint.accept(hello)
    assert constraint.allowed().nonzero().flatten().tolist() == [end]
    assert "no token" in constraint.broken
