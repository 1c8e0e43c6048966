"""Distribution of a pipeline's overrides to its stages: each gets those that its own job would take.

Keys without a prefix belong to pretraining, `sft.` to fine-tuning, `rlhf.` to reinforcement learning, and so
on. Overrides that all stages share (storage, cluster, seed) are typed once.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

# Jobs whose keys and experiments have a prefix.
PREFIXED = ("sft", "rank", "reward", "dpo", "rlhf")
STAGES = ("prepare", "pretrain", "sft", "rank", "reward", "rlhf")
OTHERS = tuple(stage for stage in STAGES if stage in PREFIXED)
# The held-out fraction is shared: embedded conversations hold out the modules that pretraining holds out.
_SHARED = ("storage.", "data.validation.fraction", "tracking")
_SHARED_BY_TRAINING = ("cluster", "run.seed", "run.workers", "run.max_failures", "dry_run")


@dataclass(frozen=True)
class StageOverrides:
    """Overrides by stage. Preparation takes those of the job whose data it prepares."""

    stages: list[str]
    pretrain: list[str]
    others: dict[str, list[str]]
    ask: tuple[str, ...]


def deal(overrides: Sequence[str], experiments: Collection[str]) -> StageOverrides:
    """Distribute the overrides. `experiment=x` means `experiment=sft_x` to fine-tuning, where there is one.

    Every stage's model needs its own alias and run name, so neither is shared.
    """
    stages, pretrain, ask = list(STAGES), [], []
    others: dict[str, list[str]] = {stage: [] for stage in OTHERS}
    for text in overrides:
        key, _, value = text.partition("=")
        prefix, _, rest = text.partition(".")
        if key == "stages":
            stages = [part.strip() for part in value.strip("[]").split(",") if part.strip()]
        # Questions are taken verbatim, and there may be several.
        elif key == "ask":
            ask.append(value)
        elif prefix in others:
            others[prefix].append(rest)
        else:
            pretrain.append(text)
            for stage, overrides_of_stage in others.items():
                if key == "experiment" and f"{stage}_{value}" in experiments:
                    overrides_of_stage.append(f"experiment={stage}_{value}")
                elif key != "tracking.alias" and _is_shared(key, stage):
                    overrides_of_stage.append(
                        text.replace("run.seed=", "seed=") if stage == "rank" else text
                    )
    return StageOverrides(stages, pretrain, others, tuple(ask))


def _is_shared(key: str, stage: str) -> bool:
    if stage == "rank":
        return key.startswith(_SHARED) or key == "run.seed"
    # There are few compared answers, so they are held out by their own share.
    shared = _SHARED if stage != "reward" else ("storage.", "tracking")
    return key.startswith((*shared, *_SHARED_BY_TRAINING))
