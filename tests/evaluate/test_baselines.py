"""Baselines against slow, obvious code."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import pytest

from data.prepared_factory import write_prepared
from raymill.engine.evaluation import Totals
from raymill.evaluate.baselines import documents, text_bytes, trigram_bits_per_byte


def slow_trigram(train: bytes, held_out: bytes) -> float:
    def probability(byte: int, context: bytes) -> float:
        if context is None:
            return 1 / 256
        lower = probability(byte, context[1:]) if context else 1 / 256
        following = tables[len(context)].get(context)
        if not following:
            return lower
        total, kinds = sum(following.values()), len(following)
        return (following[byte] + kinds * lower) / (total + kinds)

    tables: list[dict[bytes, Counter[int]]] = [{}, {}, {}]
    for order in range(3):
        for place in range(order, len(train)):
            context = train[place - order : place]
            tables[order].setdefault(context, Counter())[train[place]] += 1
    bits = [
        -math.log2(probability(byte, held_out[max(0, place - 2) : place]))
        for place, byte in enumerate(held_out)
    ]
    return sum(bits) / len(bits)


def test_the_trigram_is_the_formula() -> None:
    train = b"the cat sat on the mat, the rat ate the cat and that was that. " * 3
    held_out = b"that cat ate the hat\xff on the rat."
    assert trigram_bits_per_byte(train, held_out) == pytest.approx(
        slow_trigram(train, held_out), rel=1e-12
    )


def test_text_is_given_back_and_measured(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    prepared = write_prepared(tmp_path, vocab_size=257)
    tokenizer = Tokenizer.from_file(str(prepared.tokenizer_folder / "tokenizer.json"))
    pieces = [tokenizer.decode(ids) for ids in documents(prepared, "train")]
    assert sum(map(len, documents(prepared, "train"))) > 300
    assert len(pieces) > 3
    with pytest.raises(Exception, match="doesn't restore its text"):
        text_bytes(prepared, "train")  # the factory's bytes are made up


def test_bits_per_byte() -> None:
    result = Totals(nats=1000.0, weight=400, bytes=1200)
    assert result.loss == 2.5
    assert result.bits_per_byte == pytest.approx(1000 / math.log(2) / 1200)
