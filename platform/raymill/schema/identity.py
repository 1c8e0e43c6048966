"""What a run *is*, and what may change while it goes on.

Changing anything else would make the curve a splice of two experiments, so resuming refuses it by name.
The same division names a run by default: two configurations that differ only in what may change are
the same run.
"""

from __future__ import annotations

import fnmatch

CHANGEABLE_ON_RESUME = (
    "train.steps",
    "train.tokens",
    "train.micro_batch",
    "train.activation_checkpointing",
    "train.compile",
    "train.deterministic",
    "train.threads",
    "evaluation.*",
    "checkpoint.*",
    "guard.*",
    "watchdog.*",
    "tracking.*",
    "cluster.*",
    "storage.*",
    "zero.*",
    "run.name",
    "run.workers",
    "run.max_failures",
    "run.from",
    "dry_run",
    "rollout.actors",
    "rollout.cpus_per_actor",
    "rollout.gpus_per_actor",
    "rollout.timeout_s",
    "rollout.dump",
    "reward.workers",
    "reward.model_actors",
    "parent",  # compared by the version it means, not by its spelling
)
# A fork keeps weights, data position and, unless it changes optim.name, moments; how it goes on from there is
# free.
CHANGEABLE_ON_FORK = (
    *CHANGEABLE_ON_RESUME,
    "optim.*",
    "schedule.*",
    "train.precision",
    "train.reduce_precision",
    "arch.dropout",
    "arch.attention",
    "model",
)

# Keys that runs of before don't have, and the key whose value theirs was.
FORMERLY = {"train.reduce_precision": "train.precision"}


def is_changeable(key: str, patterns: tuple[str, ...] = CHANGEABLE_ON_RESUME) -> bool:
    """Whether `key`, as a user types it, is outside what a run is."""
    return any(fnmatch.fnmatchcase(key, pattern) for pattern in patterns)
