"""Sections of a configuration for tests that build them by hand: what a test doesn't set has a plain value,
which no change of a default in `conf/` moves."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar, cast

from raymill.schema.corpus_sections import DecontaminationConfig, DeduplicationConfig
from raymill.schema.data_sections import RowsConfig, ValidationConfig
from raymill.schema.extraction_section import ExtractionConfig

T = TypeVar("T")

HELD_OUT = ValidationConfig(fraction=0.04, group_column=None, path=None)
EXTRACTION = ExtractionConfig(
    extractor="trafilatura", focus="balanced", max_page_bytes=10_485_760, max_depth=250,
    max_cpu_s=10.0, max_memory_bytes=2**30,
)  # fmt: skip
NO_DEDUPLICATION = DeduplicationConfig(
    documents=False,
    paragraphs=False,
    near=False,
    shingle_words=5,
    bands=16,
    band_rows=7,
    min_similarity=0.7,
    max_cluster=10_000,
    paragraph_words=13,
    memory_bytes=10**9,
)
NO_DECONTAMINATION = DecontaminationConfig(path=None, ngram=12, max_share=0.001)
PLAIN: dict[str, dict[str, Any]] = {
    "ArchConfig": {"rope_theta": 10_000.0, "norm_eps": 1e-5, "dropout": 0.0, "attention": "sdpa"},
    "ValidationConfig": {"fraction": 0.04, "group_column": None, "path": None},
    "RowsConfig": {
        "path": None, "sequence_length": 256, "row_group_rows": 64, "window_row_groups": 16,
        "shard_input_bytes": 64 * 2**20, "max_bad_fraction": 0.001, "validation": HELD_OUT, "mixture": {},
        "mixture_changes": {}, "max_epochs": {},
    },
    "DataConfig": {
        "sources": {}, "text_column": "text", "url_column": "url", "language_column": "language",
        "shuffle_documents": True, "packing": "concatenate", "document_mask": False, "corpus": None,
        "extraction": EXTRACTION,
        "cleaning": {}, "takedown": None, "keep_rejects": 0.0, "deduplication": NO_DEDUPLICATION,
        "decontamination": NO_DECONTAMINATION,
    },
    "ChatConfig": {
        "template": "auto", "special_tokens": (), "format": "auto", "train_on": "all", "thinking": "learn",
        "overlong": "cut", "packing": True, "pack_window": 4096, "questions": 512,
    },
    "PreferenceConfig": {
        "template": "auto", "special_tokens": (), "format": "auto", "thinking": "learn",
    },
    "PromptsConfig": {"template": "auto", "special_tokens": (), "verifier": "none"},
    "TokenizerConfig": {
        "path": None, "vocab_size": 4096, "train_bytes": 64 * 2**20, "end_of_text": "<|endoftext|>",
        "pattern": None, "engine": "auto",
    },
    "OptimConfig": {
        "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1, "grad_clip": 1.0, "momentum": None,
    },
    "ScheduleConfig": {"warmup_steps": 0, "decay_fraction": 0.2, "final_fraction": 0.0},
    "ZeroConfig": {
        "offload_optimizer": "none", "offload_params": "none", "nvme_path": None,
        "bucket_elements": 50_000_000,
    },
    "TrainConfig": {
        "steps": None, "tokens": None, "global_batch": 32, "micro_batch": 8, "precision": "fp32",
        "reduce_precision": "fp32", "activation_checkpointing": False, "compile": False,
        "deterministic": True, "threads": None,
    },
    "TextEvaluation": {
        "every": 100, "rows": None, "batch": 16, "prompts": (), "sample_every": 0, "sample_tokens": 64,
        "temperature": 0.8, "top_p": 0.95,
    },
    "ChatEvaluation": {
        "every": 100, "rows": None, "batch": 16, "questions": 128, "answer_every": 0, "answer_tokens": 64,
        "refusal_phrase": "I don't know of", "forgetting": "auto",
    },
    "AlgorithmConfig": {
        "aggregation": "token_mean", "clip_low": 0.2, "clip_high": 0.2, "dual_clip": None, "kl": "none",
        "kl_estimator": "k2", "kl_coefficient": 0.0, "kl_target": None, "kl_horizon": 10_000,
        "entropy_coefficient": 0.0, "gamma": 1.0, "gae_lambda": 0.95, "value_clip": 0.2, "whiten": False,
        "epochs": 1, "minibatches": 1, "skip_equal_groups": False, "overlong": "keep",
        "importance_cap": None,
    },
    "LoraConfig": {"rank": 0, "alpha": 16.0, "dropout": 0.0, "targets": ("all-linear",)},
    "ClusterConfig": {
        "gpu": False, "cpus_per_worker": 1.0, "device_memory_gib": None, "host_memory_gib": None,
        "workers_per_node": 8, "peak_tflops": None,
    },
    "TrackingConfig": {
        "uri": None, "experiment": "raymill", "registered_model": "assistant", "alias": "pretrained",
        "register": True, "system_metrics": True, "flush_timeout_s": 60.0,
    },
    "RunConfig": {"name": None, "seed": 1234, "from_": None, "workers": 1, "max_failures": 3},
    "CheckpointConfig": {"every": 100, "keep_last": 2, "keep_every": 0},
    "GuardConfig": {"policy": "stop", "spike_z": None, "max_consecutive": 3},
    "WatchdogConfig": {"timeout_s": None},
    "StorageConfig": {"scratch": None},
    "PrepareJob": {"seed": 1234, "dry_run": False, "preview": 0, "estimate": False, "core_hour_price": 0.0},
    "ChatPrepareJob": {"seed": 1234, "dry_run": False, "preview": 0},
    "PreferencePrepareJob": {"seed": 1234, "dry_run": False, "preview": 0},
    "PromptsPrepareJob": {"seed": 1234, "dry_run": False, "preview": 0},
    "PretrainJob": {"dry_run": False, "model": None},
}  # fmt: skip


def plain(section: type[T], *values: object, **named: object) -> T:
    """Build a section or job: `values` in the order of its fields, `named` by their names, the rest plain."""
    fields = [field.name for field in dataclasses.fields(cast(Any, section))]
    rows = PLAIN["RowsConfig"] if issubclass(section, RowsConfig) else {}
    given = dict(zip(fields, values, strict=False)) | named
    return section(**{**rows, **PLAIN[section.__name__], **given})
