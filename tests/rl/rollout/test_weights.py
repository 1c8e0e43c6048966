"""Weights arrive as they were sent, in buckets of any size, or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from raymill.data.store.hashing import mix
from raymill.rl.rollout.engine import RolloutError
from raymill.rl.rollout.weights import (
    HASH_WORDS,
    Digest,
    bits_hash,
    buckets,
    converted,
    copy_into,
    saved_weights,
    weights_digest,
)
from rl.rollout.tiny import tiny_model, weights_of

MIXED = {
    "a": torch.arange(6.0).view(2, 3),
    "b": torch.randn(3, 5, generator=torch.Generator().manual_seed(1)).bfloat16(),
    "scalar": torch.tensor(2.5).bfloat16(),
    "big": torch.randn(40, 7, generator=torch.Generator().manual_seed(2)),
    "turned": torch.arange(12.0).view(3, 4).T,  # not contiguous
    "count": torch.tensor([3, 4]),
}


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2"])
@pytest.mark.parametrize("tied", [True, False])
def test_what_is_held_is_what_a_file_holds(tmp_path: Path, family: str, tied: bool) -> None:
    model = tiny_model(family, tied)
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    held = saved_weights(model)
    assert set(held) == set(stored)
    assert all(torch.equal(held[name], stored[name]) for name in stored)
    assert ("lm_head.weight" in held) != tied


@pytest.mark.parametrize("bucket_bytes", [1, 50, 200, 10**6])
def test_buckets_carry_every_bit(bucket_bytes: int) -> None:
    packed = list(buckets(MIXED.items(), bucket_bytes))
    assert [name for bucket in packed for name in bucket.names] == list(MIXED)
    for bucket in packed:
        assert len(bucket.names) == 1 or bucket.data.nbytes <= bucket_bytes
        assert bucket.data.nbytes == sum(MIXED[name].nbytes for name in bucket.names)
        bucket.data.flags.writeable = False  # as shared memory is
    targets = {name: torch.full_like(tensor, 7) for name, tensor in MIXED.items()}
    copy_into(targets, packed)
    for name, tensor in MIXED.items():
        assert torch.equal(targets[name], tensor), name
        assert targets[name].dtype == tensor.dtype


def test_buckets_are_filled() -> None:
    tensors = {str(n): torch.zeros(10) for n in range(10)}
    assert [len(bucket.names) for bucket in buckets(tensors.items(), 120)] == [3, 3, 3, 1]


def test_a_digest_is_of_names_shapes_dtypes_and_bytes_in_any_order() -> None:
    digest = weights_digest(MIXED.items())
    assert weights_digest(reversed(MIXED.items())) == digest
    copies: list[tuple[str, Any]] = [(name, tensor.clone()) for name, tensor in MIXED.items()]
    assert weights_digest(copies) == digest
    counted = Digest()
    assert [name for name, _ in counted.passing(iter(MIXED.items()))] == list(MIXED)
    assert counted.hexdigest() == digest
    assert counted.bytes == sum(tensor.nbytes for tensor in MIXED.values())
    flipped = MIXED["a"].clone()
    flipped[1, 2] = torch.nextafter(flipped[1, 2], torch.tensor(9.0))
    for change in (
        {"a": flipped},
        {"a": MIXED["a"].view(3, 2)},
        {"a": MIXED["a"].view(torch.int32)},
        {"a": MIXED["turned"], "turned": MIXED["a"]},
        {"another": torch.zeros(0)},
    ):
        assert weights_digest((MIXED | change).items()) != digest, change


def test_conversion_is_of_floats_alone() -> None:
    found = dict(converted(MIXED.items(), "bf16"))
    assert found["a"].dtype == torch.bfloat16
    assert torch.equal(found["count"], MIXED["count"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lm_head.weight": None}, "sent 20 of 21 weights; the first missing one is lm_head"),
        ({"base_model.x": torch.zeros(2)}, "sent base_model.x, which the sampling model doesn't have"),
        ({"model.norm.weight": torch.zeros(0)}, r"model.norm.weight as float32 \[0\].*float32 \[32\]"),
        ({"model.norm.weight": torch.zeros(32).half()}, "as float16"),
    ],
)  # fmt: skip
def test_weights_that_are_not_the_models_are_refused(change: dict[str, Any], message: str) -> None:
    model = tiny_model()
    sent = {name: tensor for name, tensor in (dict(weights_of(model)) | change).items()
            if tensor is not None}  # fmt: skip
    with pytest.raises(RolloutError, match=message):
        copy_into(saved_weights(model), buckets(sent.items()))


def test_a_weight_that_is_sent_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="weight a was passed twice"):
        list(buckets([("a", torch.zeros(1)), ("a", torch.zeros(1))]))


def hash_by_integers(tensor: torch.Tensor) -> int:
    """Return `bits_hash` by Python's integers."""
    content = tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    content += bytes(-len(content) % 4)
    words = np.frombuffer(content, "<i4").tolist()
    keys = [int(key) | 1 for key in mix(np.arange(2 * HASH_WORDS, dtype=np.uint64))]
    total = 0
    for first in range(0, len(words), HASH_WORDS):
        stretch = words[first : first + HASH_WORDS]
        of_stretch = sum(word * key for word, key in zip(stretch, keys, strict=False))
        total += of_stretch * keys[HASH_WORDS + first // HASH_WORDS % HASH_WORDS]
    return (total + 2**63) % 2**64 - 2**63


@pytest.mark.parametrize("numbers", [0, 1, 3, 1000, HASH_WORDS, 2 * HASH_WORDS + 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_the_hash_is_that_of_the_formula(numbers: int, dtype: torch.dtype) -> None:
    drawn = torch.randn(numbers + 1, generator=torch.Generator().manual_seed(numbers)).to(dtype)
    # The second begins in the middle of a word.
    for tensor in (drawn, drawn[1:]):
        assert bits_hash(tensor) == hash_by_integers(tensor)


def test_the_hash_notices_what_sums_do_not() -> None:
    drawn = torch.randn(2 * HASH_WORDS, generator=torch.Generator().manual_seed(3))
    found = {bits_hash(drawn)}
    changes: list[Any] = [
        lambda t: t.neg_(),
        lambda t: t[:2].neg_(),
        lambda t: t[::HASH_WORDS].neg_(),
        lambda t: t.copy_(t.flip(0)),
        lambda t: t.copy_(t.roll(HASH_WORDS)),
        lambda t: t[7:9].copy_(t[7:9].flip(0)),
        lambda t: t.zero_(),
        lambda t: t[5:6].copy_(torch.nextafter(t[5:6], t[5:6] + 1)),
    ]
    for change in changes:
        changed = drawn.clone()
        change(changed)
        assert not torch.equal(changed, drawn)
        found.add(bits_hash(changed))
    assert len(found) == 1 + len(changes)
