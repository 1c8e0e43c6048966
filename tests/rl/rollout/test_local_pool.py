"""The pool without actors keeps to the protocol."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from raymill.rl.rollout.engine import RolloutError
from raymill.rl.rollout.pool import LocalPool, Pool
from raymill.rl.rollout.transformers_engine import ModelSpec
from raymill.rl.rollout.weights import weights_digest
from rl.rollout.tiny import (
    SAMPLING,
    VOCAB_SIZE,
    batches,
    folder_of,
    sampled,
    tiny_model,
    weights_of,
)


def test_from_sync_to_answers(tmp_path: Path) -> None:
    policy = tiny_model()
    pool: Pool = LocalPool(ModelSpec(folder_of(policy, tmp_path), VOCAB_SIZE, "sdpa", "fp32", 1))
    with pytest.raises(RolloutError, match="call sync first"):
        pool.start_generate(batches(), SAMPLING)
    with pytest.raises(RolloutError, match="call start_generate first"):
        pool.collect()
    report = pool.sync(weights_of(policy), 4)
    assert (report.version, report.digest) == (4, weights_digest(weights_of(policy)))
    assert report.bytes == sum(tensor.nbytes for _, tensor in weights_of(policy))
    pool.start_generate(batches(), SAMPLING)
    with pytest.raises(RolloutError, match="collect it first"):
        pool.start_generate(batches(), SAMPLING)
    with pytest.raises(RolloutError, match="collect it first"):
        pool.sync(weights_of(policy), 5)
    with torch.no_grad():
        next(policy.parameters()).add_(1)  # the policy learns; the sampler's weights are its own
    first = pool.collect()
    assert [result.batch for result in first.results] == batches()
    assert {result.version for result in first.results} == {4}
    assert sampled(pool.generate(batches(), SAMPLING)) == sampled(first)
    assert pool.sync(weights_of(policy), 5).digest != report.digest
    second = pool.generate(batches(), SAMPLING)
    assert {result.version for result in second.results} == {5}
    assert sampled(second) != sampled(first)
    pool.close()
    with pytest.raises(RolloutError, match="call sync first"):
        pool.generate(batches(), SAMPLING)


def test_a_transfer_that_fails_leaves_nothing_to_sample_with(tmp_path: Path) -> None:
    policy = tiny_model()
    pool = LocalPool(ModelSpec(folder_of(policy, tmp_path), VOCAB_SIZE, "sdpa", "fp32", 1))
    pool.sync(weights_of(policy), 1)
    with pytest.raises(RolloutError, match="sent 3 of 21"):
        pool.sync(list(weights_of(policy))[:3], 2)
    with pytest.raises(RolloutError, match="call sync first"):
        pool.generate(batches(), SAMPLING)
