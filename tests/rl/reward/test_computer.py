"""Rewards of a batch: scores of functions, services and a reward model, and their weighted sum by hand."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from data.chat_factory import write_parent
from raymill.data.messages.conversation import Conversation, read_conversation
from raymill.data.messages.encode import ChatEncoder, EncodedChat
from raymill.data.messages.folder import closing_ids, load_chat_encoder
from raymill.data.messages.tokenizer import chat_tokenizer
from raymill.rl.reward.computer import MODEL, Combination, RewardComputer, Scorer, metric_name
from raymill.rl.reward.task import Score, failed_score, score_of
from rl.reward.samples import sample
from rl.reward.service import Service


def scores(*values: float | str) -> list[Score]:
    return [failed_score(v) if isinstance(v, str) else Score(v, None, 0.0) for v in values]


def test_a_weighted_sum_less_the_length() -> None:
    combination = Combination({"exact": 1.0, "length": -0.5}, max_tokens=10, length_penalty=0.2)
    combined = combination.combine({"exact": scores(1, 0), "length": scores(4, 2)}, [5, 10])
    assert combined.rewards == pytest.approx((1 - 2 - 0.1, -1 - 0.2))
    assert combined.components == {"exact": (1, 0), "length": (4, 2)}
    assert combined.causes == {}


def test_an_error_costs_its_sample_and_is_counted_by_cause() -> None:
    combination = Combination({"a": 1.0, "b": 1.0}, max_tokens=1)
    combined = combination.combine(
        {
            "a": scores(1, "timeout: a took 3 s", "timeout: a took 4 s", 1, math.nan),
            "b": scores(1, "died: signal 9", 1, math.inf, 1),
        },
        [1, 1, 1, 1, 1],
    )
    assert combined.rewards == (2, None, None, None, None)
    assert combined.components["a"] == (1, None, None, 1, None)
    assert combined.causes == {
        "a: timeout": 2, "b: died": 1, "b: not finite": 1, "a: not finite": 1,
    }  # fmt: skip


def test_what_has_no_weight_may_be_missing() -> None:
    given = {"a": scores(1.0, 2.0), "b": scores("timeout: 10 s", 3.0)}
    combined = Combination({"a": 1.0, "b": 0.0}, max_tokens=1).combine(given, [0, 0])
    assert combined.rewards == (1.0, 2.0)
    assert combined.components["b"] == (None, 3.0)
    assert combined.causes == {"b: timeout": 1}


def test_a_sum_that_overflows_is_no_reward() -> None:
    combined = Combination({"a": 1e200}, max_tokens=1).combine({"a": scores(1e200, 1)}, [0, 0])
    assert combined.rewards == (None, 1e200)
    assert combined.causes == {"sum: not finite": 1}


def test_all_may_fail() -> None:
    combined = Combination({"a": 1.0}, max_tokens=1).combine({"a": scores("x: y")}, [1])
    assert combined.rewards == (None,)
    assert Combination({"a": 1.0}, max_tokens=1).combine({"a": []}, []).rewards == ()


def test_metrics_have_names_that_trackers_take() -> None:
    assert metric_name("http://host:80/a?b=c") == "http_host_80_a_b_c"
    assert metric_name("my.module:f") == "my.module_f"


def test_scores_must_fit() -> None:
    combination = Combination({"a": 1.0, "b": 1.0}, max_tokens=1)
    with pytest.raises(ValueError, match="expected scores of"):
        combination.combine({"a": scores(1)}, [1])
    with pytest.raises(ValueError, match="expected 1 scores each"):
        combination.combine({"a": scores(1), "b": scores(1, 2)}, [1])


def test_judged_takes_numbers_only() -> None:
    import numpy as np

    assert score_of(np.float32(0.5), 0.1) == Score(0.5, None, 0.1)
    assert score_of(True, 0).value == 1.0
    assert score_of(np.array([1.0, 2.0]), 0).cause == "not a number"
    for value in (None, "1", b"1", 1j, [1.0], 10**400):
        assert score_of(value, 0).cause == "not a number", value
    for number in (math.nan, math.inf, -math.inf, np.float64("nan")):
        assert score_of(number, 0).cause == "not finite"
    assert len(failed_score("x" * 10_000).error or "") == 500


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


class RecordingScorer:
    """Scores by length, and records the sequences."""

    def __init__(self) -> None:
        self.sequences: list[list[int]] = []

    def score(self, sequences: Sequence[Sequence[int]]) -> tuple[list[Score], tuple[str, ...]]:
        self.sequences = [list(ids) for ids in sequences]
        return [Score(float(len(ids)), None, 0.0) for ids in sequences], ()

    def close(self) -> None:
        """Do nothing."""


@pytest.fixture
def encoder(tmp_path: Path) -> ChatEncoder:
    chat_tokenizer(write_parent(tmp_path / "parent"), "chatml", ()).save(tmp_path / "data")
    loaded = load_chat_encoder(tmp_path / "data")
    assert loaded is not None
    return loaded


def test_an_answer_is_judged_as_it_was_learned(encoder: ChatEncoder) -> None:
    question = {"role": "user", "content": "How are you?"}
    answer = {"role": "assistant", "content": "Fine."}
    conversation = read_conversation({"messages": [question, answer]})
    assert isinstance(conversation, Conversation)
    [learned] = encoder.encode([conversation])
    assert isinstance(learned, EncodedChat)
    prompt = encoder.prompt_ids([question])
    closing = closing_ids(encoder)
    sampled = learned.ids.tolist()[: -len(closing)]
    assert sampled[-1] == encoder.end_of_turn_id
    # One that ended, one that was cut.
    model = RecordingScorer()
    combination = Combination({MODEL: 1.0}, max_tokens=8)
    with Scorer([], workers=1, timeout_s=5.0) as scorer:
        computer = RewardComputer(scorer, combination, model, encoder.end_of_turn_id, closing)
        combined = computer.compute([sample("Fine.", "4")] * 2, [sampled, [*prompt, 5, 6]])
    assert model.sequences == [learned.ids.tolist(), [*prompt, 5, 6]]
    assert combined.rewards == (len(learned.ids), len(prompt) + 2)
