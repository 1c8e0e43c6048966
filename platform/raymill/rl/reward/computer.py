"""What answers are worth, all judges together: functions, services and a reward model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from raymill.rl.reward.combine import Combination, Combined
from raymill.rl.reward.model import SequenceJudge
from raymill.rl.reward.scoring import Scorer
from raymill.rl.reward.task import Sample

MODEL = "model"  # the reward model's name among the components


@dataclass(frozen=True)
class RewardComputer:
    """`model` is None where there is no reward model. It learned from whole renderings: `closing` are the
    tokens that the template writes after a turn that ends with `end_of_turn`."""

    scorer: Scorer
    combination: Combination
    model: SequenceJudge | None = None
    end_of_turn: int | None = None
    closing: tuple[int, ...] = ()

    def judge(self, samples: Sequence[Sample], sequences: Sequence[Sequence[int]]) -> Combined:
        """Rewards of answers; `sequences` are their tokens with their prompts'.

        Raises:
            RewardError: functions can't be called on this machine.
            RolloutError: the reward model's actors can't be had.
        """
        scores = self.scorer.score(samples)
        incidents: tuple[str, ...] = ()
        if self.model is not None:
            scores[MODEL], incidents = self.model.score([self._closed(ids) for ids in sequences])
        combined = self.combination.combine(scores, [len(one.answer_ids) for one in samples])
        return replace(combined, incidents=incidents)

    def _closed(self, ids: Sequence[int]) -> Sequence[int]:
        return [*ids, *self.closing] if ids[-1] == self.end_of_turn else ids

    def close(self) -> None:
        """End whatever was started."""
        self.scorer.close()
        if self.model is not None:
            self.model.close()
