"""A pipeline's overrides, dealt out to its stages: each gets what its own job would be given.

Keys without a prefix are pretraining's; `sft.` leads to fine-tuning, `rlhf.` to reinforcement learning,
and so on. What belongs to all stages (where things lie, the cluster, the seed) is given once.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

PREFIXED = ("sft", "rank", "reward", "dpo", "rlhf")  # jobs whose keys and experiments have a prefix
STAGES = ("prepare", "pretrain", "sft", "rank", "reward", "rlhf")
OTHERS = tuple(stage for stage in STAGES if stage in PREFIXED)
# The held-out fraction too: modules that pretraining holds out, the embedded conversations hold out.
_SHARED = ("storage.", "data.validation.fraction", "tracking")
_SHARED_BY_TRAINING = ("cluster", "run.seed", "run.workers", "run.max_failures", "dry_run")


@dataclass(frozen=True)
class StageOverrides:
    """Overrides by stage; preparation takes those of the job whose data it prepares."""

    stages: list[str]
    pretrain: list[str]
    others: dict[str, list[str]]
    ask: tuple[str, ...]


def deal(overrides: Sequence[str], experiments: Collection[str]) -> StageOverrides:
    """Deal out. `experiment=x` means `experiment=sft_x` to fine-tuning, where there is one.

    Every stage's model needs an alias and a run name of its own, so neither is shared as it is.
    """
    stages, pretrain, ask = list(STAGES), [], []
    others: dict[str, list[str]] = {stage: [] for stage in OTHERS}
    for text in overrides:
        key, _, value = text.partition("=")
        prefix, _, rest = text.partition(".")
        if key == "stages":
            stages = [part.strip() for part in value.strip("[]").split(",") if part.strip()]
        elif key == "ask":  # verbatim, and as often as one likes
            ask.append(value)
        elif prefix in others:
            others[prefix].append(rest)
        else:
            pretrain.append(text)
            for stage, own in others.items():
                if key == "experiment" and f"{stage}_{value}" in experiments:
                    own.append(f"experiment={stage}_{value}")
                elif key != "tracking.alias" and _is_shared(key, stage):
                    own.append(text.replace("run.seed=", "seed=") if stage == "rank" else text)
    return StageOverrides(stages, pretrain, others, tuple(ask))


def _is_shared(key: str, stage: str) -> bool:
    if stage == "rank":
        return key.startswith(_SHARED) or key == "run.seed"
    # Compared answers are held out by a share of their own: there are few of them.
    shared = _SHARED if stage != "reward" else ("storage.", "tracking")
    return key.startswith((*shared, *_SHARED_BY_TRAINING))
