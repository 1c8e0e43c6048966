"""A reward model judges an answer at the place where it learned to score: where its rendering ends."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from data.chat_factory import write_parent
from raymill.data.messages.conversation import Conversation, read_conversation
from raymill.data.messages.encode import ChatEncoder, EncodedChat
from raymill.data.messages.folder import closing_ids, load_chat_encoder
from raymill.data.messages.tokenizer import chat_tokenizer
from raymill.rl.reward.combine import Combination
from raymill.rl.reward.computer import MODEL, RewardComputer
from raymill.rl.reward.scoring import Scorer
from raymill.rl.reward.task import Score
from rl.reward.samples import sample


class Listener:
    """Scores by length, and keeps what it was given."""

    def __init__(self) -> None:
        self.given: list[list[int]] = []

    def score(self, sequences: Sequence[Sequence[int]]) -> tuple[list[Score], tuple[str, ...]]:
        self.given = [list(ids) for ids in sequences]
        return [Score(float(len(ids)), None, 0.0) for ids in sequences], ()

    def close(self) -> None:
        """Nothing was started."""


@pytest.fixture
def encoder(tmp_path: Path) -> ChatEncoder:
    chat_tokenizer(write_parent(tmp_path / "parent"), "chatml", ()).save(tmp_path / "data")
    found = load_chat_encoder(tmp_path / "data")
    assert found is not None
    return found


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
    model = Listener()
    combination = Combination({MODEL: 1.0}, max_tokens=8)
    with Scorer([], workers=1, timeout_s=5.0) as scorer:
        judge = RewardComputer(scorer, combination, model, encoder.end_of_turn_id, closing)
        combined = judge.judge([sample("Fine.", "4")] * 2, [sampled, [*prompt, 5, 6]])
    assert model.given == [learned.ids.tolist(), [*prompt, 5, 6]]
    assert combined.rewards == (len(learned.ids), len(prompt) + 2)
