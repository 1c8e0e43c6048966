"""Sections of the jobs' configurations: their keys and types.

Defaults and explanations of the keys stand in `conf/`, in one place each; a section has no defaults of its own.
A field ending in `_` stands for a key that is a Python keyword (`run.from` is `RunConfig.from_`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Attention = Literal["sdpa", "eager", "flash_attention_2"]
Offload = Literal["none", "cpu", "nvme"]
Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class ArchConfig:
    """Shape of a decoder-only transformer."""

    name: str
    family: Literal["llama", "gpt2", "qwen3"]
    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int | None
    intermediate_size: int
    vocab_size: int | None
    max_positions: int
    tied_embeddings: bool
    rope_theta: float
    norm_eps: float
    dropout: float
    attention: Attention


@dataclass(frozen=True)
class OptimConfig:
    """AdamW (Loshchilov & Hutter 2019), for all parameters or, with Muon (Jordan et al. 2024), for those that
    aren't matrices of the blocks; decay applies to matrices only."""

    name: Literal["adamw", "muon"]
    learning_rate: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    grad_clip: float
    # Only Muon's file in conf/ has this key.
    momentum: float | None = None


@dataclass(frozen=True)
class ScheduleConfig:
    """Learning rate over steps, as a fraction of optim.learning_rate."""

    name: Literal["wsd", "cosine", "linear", "constant"]
    warmup_steps: int
    decay_fraction: float
    final_fraction: float


@dataclass(frozen=True)
class ZeroConfig:
    """DeepSpeed ZeRO (Rajbhandari et al. 2020): the state that is partitioned over the workers."""

    stage: Literal[0, 1, 2, 3]
    offload_optimizer: Offload
    offload_params: Offload
    nvme_path: str | None
    bucket_elements: int


@dataclass(frozen=True)
class TrainConfig:
    """Length of the training, its batches and its precision."""

    steps: int | None
    tokens: int | None
    global_batch: int
    micro_batch: int
    precision: Precision
    reduce_precision: Precision
    activation_checkpointing: bool
    compile: bool
    deterministic: bool
    threads: int | None


@dataclass(frozen=True)
class EvaluationConfig:
    """Held-out loss during training."""

    every: int
    rows: int | None
    batch: int


@dataclass(frozen=True)
class TextEvaluation(EvaluationConfig):
    """Held-out loss, and text sampled from fixed prompts."""

    prompts: tuple[str, ...]
    sample_every: int
    sample_tokens: int
    temperature: float
    top_p: float


@dataclass(frozen=True)
class ChatEvaluation(EvaluationConfig):
    """Held-out loss, answers to held-out questions, and a measure of forgetting."""

    questions: int
    answer_every: int
    answer_tokens: int
    refusal_phrase: str
    forgetting: str


@dataclass(frozen=True)
class PromptEvaluation(EvaluationConfig):
    """Held-out prompts, `rows` of them, that are answered and rewarded."""

    answers_shown: int
    table_every: int


@dataclass(frozen=True)
class PairLossConfig:
    """Loss of a pair of answers; `objective/preferences.py` has a few lines for each."""

    name: Literal["dpo", "ipo", "simpo", "orpo"]
    beta: float
    label_smoothing: float
    gamma: float
    reference: Literal["cached", "live"]


@dataclass(frozen=True)
class AlgorithmConfig:
    """Reinforcement learning: the choices that distinguish PPO, GRPO and their relatives."""

    name: Literal["ppo", "grpo", "dr_grpo", "rloo", "reinforce_pp"]
    advantage: Literal["gae", "grpo", "dr_grpo", "rloo", "reinforce_pp", "reinforce_pp_baseline"]
    aggregation: Literal["token_mean", "sequence_mean", "constant_length"]
    clip_low: float
    clip_high: float
    dual_clip: float | None
    kl: Literal["none", "reward", "loss"]
    kl_estimator: Literal["k1", "k2", "k3"]
    kl_coefficient: float
    kl_target: float | None
    kl_horizon: int
    entropy_coefficient: float
    gamma: float
    gae_lambda: float
    value_clip: float | None
    whiten: bool
    epochs: int
    minibatches: int
    skip_equal_groups: bool
    overlong: Literal["keep", "mask"]
    importance_cap: float | None


@dataclass(frozen=True)
class RolloutConfig:
    """Sampling of answers: by which processes, in what batches, in what order."""

    engine: Literal["transformers", "vllm"]
    actors: int
    cpus_per_actor: float
    gpus_per_actor: float
    threads: int | None
    group_size: int
    batch: int
    max_new_tokens: int
    temperature: float
    top_p: float
    staleness: Literal[0, 1]
    timeout_s: float
    save_to: str | None
    load_from: str | None


@dataclass(frozen=True)
class RewardConfig:
    """Reward of an answer: a weighted sum of functions and a reward model."""

    functions: dict[str, float]
    model: str | None
    model_weight: float
    model_actors: int
    length_penalty: float
    workers: int
    timeout_s: float


@dataclass(frozen=True)
class CriticConfig:
    """Model that predicts the return, where the advantage needs one (gae)."""

    learning_rate: float
    parent: str | None


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters (Hu et al. 2022) instead of all weights."""

    rank: int
    alpha: float
    dropout: float
    targets: tuple[str, ...]


@dataclass(frozen=True)
class ClusterConfig:
    """Ray cluster, and the resources that one worker takes of it."""

    name: str
    address: str
    gpu: bool
    cpus_per_worker: float
    device_memory_gib: float | None
    host_memory_gib: float | None
    workers_per_node: int
    peak_tflops: float | None


@dataclass(frozen=True)
class TrackingConfig:
    """MLflow: the record of runs, datasets and model versions."""

    name: str
    uri: str | None
    experiment: str
    registered_model: str
    alias: str
    register: bool
    system_metrics: bool
    flush_timeout_s: float


@dataclass(frozen=True)
class RunConfig:
    """Identity of a run, its workers, and its persistence."""

    name: str | None
    seed: int
    from_: str | None
    workers: int | str
    max_failures: int

    @property
    def least(self) -> int:
        """Workers without which the run doesn't start."""
        return self._range()[0]

    @property
    def most(self) -> int:
        """Workers beyond which it doesn't grow."""
        return self._range()[1]

    def _range(self) -> tuple[int, int]:
        match = re.fullmatch(r"(\d+)(?:\.\.(\d+))?", str(self.workers))
        if match is None:
            # The checks refuse a range that begins at 0.
            return 0, 0
        return int(match[1]), int(match[2] or match[1])


@dataclass(frozen=True)
class AuditedRun:
    """Run to audit; its name must be set."""

    name: str | None


@dataclass(frozen=True)
class TraceConfig:
    """Rows to trace to their documents: of a run's sample or step, or one of a prepared folder."""

    sample: int | None
    step: int | None
    data: str | None
    row: int | None

    @property
    def is_on(self) -> bool:
        """Tell whether anything is to be traced."""
        return any(value is not None for value in (self.sample, self.step, self.data, self.row))


@dataclass(frozen=True)
class CheckpointConfig:
    """Steps that are committed, and checkpoints that are kept."""

    every: int
    keep_last: int
    keep_every: int


@dataclass(frozen=True)
class GuardConfig:
    """Reaction to a loss or gradient that isn't finite, or to a spike of the loss.

    `stop` ends the run before the update, `skip` leaves the update out, `rewind` goes back to the last
    checkpoint and past the samples since.
    """

    policy: Literal["stop", "skip", "rewind"]
    spike_z: float | None
    max_consecutive: int


@dataclass(frozen=True)
class WatchdogConfig:
    """Time after which a rank without progress is ended, and the run restarted."""

    timeout_s: float | None
