"""Identity of a run, and the keys that may change while it continues.

A resumed run refuses, by name, any other change: its curve would be a splice of two experiments. The same
division names a run by default: two configurations that differ only in changeable keys are the same run.
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
    # The data's digests are compared, so it only tells where to find the data.
    "data.shuffle_documents",
    # Every engine gives the same ids.
    "tokenizer.engine",
    "run.name",
    "run.workers",
    "run.max_failures",
    "run.from",
    "dry_run",
    "rollout.actors",
    "rollout.cpus_per_actor",
    "rollout.gpus_per_actor",
    "rollout.timeout_s",
    "rollout.save_to",
    "reward.workers",
    "reward.model_actors",
    # Resuming compares the version that a parent resolves to, not its spelling.
    "parent",
)
# A fork keeps the weights, the position in the data and, unless it changes optim.name, the optimizer's moments;
# the rest of the training is free to differ.
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

# Keys that older runs were stored without, and the key whose value they had.
FORMERLY = {"train.reduce_precision": "train.precision"}
# Keys that came later, and the value by which runs without them behave. Digests leave a key out while it has
# this value, so that these runs keep their names.
CAME_LATER: dict[str, object] = {
    "data.mixture_changes": {}, "data.max_epochs": {}, "data.sources": {}, "data.url_column": "url",
    "data.language_column": "language", "data.corpus": None, "data.cleaning": {},
    "data.deduplication.documents": False, "data.deduplication.paragraphs": False,
    "data.deduplication.near": False, "data.deduplication.shingle_words": 5,
    "data.deduplication.bands": 16, "data.deduplication.band_rows": 7,
    "data.deduplication.min_similarity": 0.7, "data.deduplication.max_cluster": 10_000,
    "data.deduplication.paragraph_words": 13, "data.deduplication.memory_bytes": 10**9,
    "data.decontamination.path": None, "data.decontamination.ngram": 12,
    "data.extraction.extractor": "trafilatura", "data.extraction.focus": "balanced",
    "data.extraction.max_page_bytes": 10_485_760, "data.extraction.max_depth": 250,
    "data.extraction.max_cpu_s": 10.0, "data.extraction.max_memory_bytes": 1_073_741_824,
    "data.decontamination.max_share": 0.001, "data.takedown": None, "data.keep_rejects": 0.0,
    "data.packing": "concatenate",
}  # fmt: skip


def is_changeable(key: str, patterns: tuple[str, ...] = CHANGEABLE_ON_RESUME) -> bool:
    """Tell whether `key`, as a user types it, isn't part of a run's identity."""
    return any(fnmatch.fnmatchcase(key, pattern) for pattern in patterns)
