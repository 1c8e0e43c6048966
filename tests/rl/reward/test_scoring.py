"""A whole combination over a batch: functions, the user's own, prompts' own, and a service."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from raymill.rl.reward.combine import Combination
from raymill.rl.reward.scoring import Scorer
from rl.reward.samples import sample
from rl.reward.service import Service


@pytest.fixture
def address() -> Iterator[str]:
    with Service() as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/length"
        server.shutdown()


def test_from_samples_to_rewards(address: str) -> None:
    samples = [
        sample("#### 4", "4", verifier="exact"),
        sample("four", "4", verifier="exact"),
        sample("4", "4", verifier="nobody"),
    ]
    weights = {"auto": 1.0, "rl.reward.hostile:own": 2.0, address: 0.1}
    with Scorer([*weights], workers=2, timeout_s=5.0) as scorer:
        scores = scorer.score(samples)
        assert {name: [score.value for score in column] for name, column in scores.items()} == {
            "auto": [1.0, 0.0, None], "rl.reward.hostile:own": [0.25] * 3, address: [6.0, 4.0, 1.0],
        }  # fmt: skip
        assert scorer.restarts == 0
        assert scorer.score([]) == {name: [] for name in weights}
    combination = Combination(weights, max_tokens=4, length_penalty=0.5)
    combined = combination.combine(scores, [len(sample.answer_ids) for sample in samples])
    assert combined.rewards[:2] == pytest.approx((1 + 0.5 + 0.6 - 0.25, 0.5 + 0.4 - 0.125))
    assert combined.rewards[2] is None
    assert combined.causes == {"auto: unknown verifier": 1}
