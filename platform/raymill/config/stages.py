"""A pipeline's overrides, dealt out to its stages: each gets what its own job would be given.

Keys without a prefix are pretraining's; `sft.` leads to fine-tuning. What belongs to all stages (where
things lie, the cluster, the seed) is given once.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

STAGES = ("prepare", "pretrain", "sft")
# The held-out fraction too: modules that pretraining holds out, the embedded conversations hold out.
_SHARED = (
    "storage.",
    "data.validation.fraction",
    "cluster",
    "tracking",
    "run.seed",
    "run.workers",
    "run.max_failures",
    "dry_run",
)


@dataclass(frozen=True)
class StageOverrides:
    """Overrides by stage; preparation takes those of the job whose data it prepares."""

    stages: list[str]
    pretrain: list[str]
    sft: list[str]
    ask: tuple[str, ...]


def stage_overrides(overrides: Sequence[str], experiments: Collection[str]) -> StageOverrides:
    """Deal out. `experiment=x` means `experiment=sft_x` to fine-tuning, where there is one.

    The fine-tuned model needs an alias and a run name of its own, so neither is shared as it is.
    """
    stages, pretrain, sft, ask = list(STAGES), [], [], []
    for text in overrides:
        key, _, value = text.partition("=")
        if key == "stages":
            stages = [part.strip() for part in value.strip("[]").split(",") if part.strip()]
        elif key == "ask":  # verbatim, and as often as one likes
            ask.append(value)
        elif key.startswith("sft."):
            sft.append(text.removeprefix("sft."))
        else:
            pretrain.append(text)
            if key == "experiment" and f"sft_{value}" in experiments:
                sft.append(f"experiment=sft_{value}")
            elif key.startswith(_SHARED) and key != "tracking.alias":
                sft.append(text)
    return StageOverrides(stages, pretrain, sft, tuple(ask))
