"""What goes wrong while sampling: what ends a run, and what the run survives but must tell."""

from __future__ import annotations

from dataclasses import dataclass

from raymill.errors import RaymillError

NO_WEIGHTS = "the samplers have no weights, or not all of them took over the last; call sync first"
NOT_COLLECTED = "a generation is under way; collect it first"
NOT_BEGUN = "nothing is being generated; call start_generate first"


class RolloutError(RaymillError):
    """Answers can't be sampled, or would come from other weights than the policy's."""


@dataclass(frozen=True)
class Incident:
    """An actor that was lost and replaced; its work is given out again."""

    actor: str  # its role, its number among those, and its id
    place: str  # host, node and process
    work: str
    reason: str

    def __str__(self) -> str:
        return f"{self.actor} on {self.place} was lost {self.work}: {self.reason}"


def require_digest(found: str, expected: str, where: str) -> None:
    """Refuse weights that arrived as others than were sent.

    Raises:
        RolloutError: they did.
    """
    if found != expected:
        raise RolloutError(
            f"{where} holds weights with digest {found[:12]}, the policy sent {expected[:12]}: what "
            "it samples wouldn't be the policy's, so nothing was sampled"
        )
