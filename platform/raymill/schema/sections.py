"""The sections of every job's configuration: the one place where a key, its type and its default meet.

Comments here explain a key to a reader of the code; `conf/` explains it to a user. A field ending in `_`
stands for a key that is a Python keyword (`run.from` is `RunConfig.from_`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Offload = Literal["none", "cpu", "nvme"]


@dataclass(frozen=True)
class ArchConfig:
    """The shape of a decoder-only transformer."""

    name: str
    family: Literal["llama", "gpt2", "qwen3"]
    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int | None  # None: hidden_size / heads
    intermediate_size: int
    vocab_size: int | None  # None: the tokenizer's
    max_positions: int
    tied_embeddings: bool
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5
    dropout: float = 0.0
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"


@dataclass(frozen=True)
class ValidationConfig:
    """Where the held-out text comes from."""

    fraction: float = 0.04  # of the groups (modules, files), chosen by a hash of the group's name
    group_column: str | None = None  # record files: rows sharing this value stay on one side
    path: tuple[str, ...] | None = None  # a held-out set of one's own; then fraction isn't used


@dataclass(frozen=True)
class RowsConfig:
    """What all data has in common: where it lies, and the rows of tokens that it becomes."""

    name: str
    path: tuple[str, ...] | None = None  # folders and globs
    sequence_length: int = 256  # predictions a row; a row holds one token more
    row_group_rows: int = 64  # rows read at once; the unit of shuffling on disk
    window_row_groups: int = 16  # row groups whose rows are shuffled together
    unit_bytes: int = 64 * 2**20  # input that becomes one shard
    max_bad_fraction: float = 0.001  # of records; more that can't be used is refused
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    mixture: dict[str, float] = field(
        default_factory=dict
    )  # prepared folder → weight; {}: this data alone

    @property
    def row_predictions(self) -> int:
        """Predictions a row has room for."""
        return self.sequence_length


@dataclass(frozen=True, kw_only=True)
class DataConfig(RowsConfig):
    """Raw text, and how it becomes packed rows of tokens."""

    source: Literal["stdlib", "demo", "files"]
    text_column: str = "text"
    document_mask: bool = False  # attention doesn't cross document boundaries


@dataclass(frozen=True, kw_only=True)
class MessagesConfig(RowsConfig):
    """Data made of messages: it is rendered by a chat template."""

    template: str = "auto"  # auto: the parent's own, or else chatml; chatml; or a Jinja file
    special_tokens: tuple[str, ...] = ()  # that a template of one's own needs


@dataclass(frozen=True, kw_only=True)
class ChatConfig(MessagesConfig):
    """Conversations, and how they become packed rows that say what is learned from."""

    source: Literal["stdlib_chat", "demo_chat", "chat"]
    format: Literal["auto", "messages", "sharegpt", "alpaca", "prompt_completion"] = "auto"
    train_on: Literal["all", "last"] = "all"  # which of the assistant's turns
    thinking: Literal["learn", "mask", "drop"] = "learn"  # mask: it stands there, not learned
    overlong: Literal["cut", "refuse"] = "cut"  # cut: leave off turns at the end that don't fit
    packing: bool = True  # several conversations a row
    pack_window: int = 4096  # conversations among which those that fill a row are sought
    questions: int = 512  # held-out conversations kept apart to be answered


@dataclass(frozen=True, kw_only=True)
class PreferenceConfig(MessagesConfig):
    """Answers that were compared, and how they become rows of pairs: the better, then the worse.

    `sequence_length` is of one answer with its prompt; a row holds two of them.
    """

    source: Literal["preference"]
    format: Literal["auto", "pairs", "hh", "rankings"] = "auto"
    thinking: Literal["learn", "mask", "drop"] = "learn"  # mask: it stands there, not compared

    @property
    def row_predictions(self) -> int:
        return 2 * self.sequence_length + 1


@dataclass(frozen=True, kw_only=True)
class PromptsConfig(MessagesConfig):
    """What a model is asked in reinforcement learning, with what a verifier needs to judge answers."""

    source: Literal["stdlib_prompts", "demo_prompts", "prompts"]
    verifier: str = "none"  # of prompts that name none themselves: a reward function


@dataclass(frozen=True)
class TokenizerConfig:
    """Train a byte-level BPE, or load an existing tokenizer."""

    name: str
    path: str | None = None  # tokenizer.json or Hugging Face folder; None: train one
    vocab_size: int = 4096
    train_bytes: int = 64 * 2**20  # at most this much training text is read to learn merges
    end_of_text: str = "<|endoftext|>"
    pattern: str | None = None  # what is cut apart before merges are learned; None: GPT-2's


@dataclass(frozen=True)
class OptimConfig:
    """AdamW (Loshchilov & Hutter 2019), for all parameters or, with Muon (Jordan et al. 2024), for those that
    aren't matrices of the blocks; decay applies to matrices only."""

    name: Literal["adamw", "muon"]
    learning_rate: float
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    grad_clip: float = 1.0  # global L2 norm; 0 switches clipping off
    momentum: float | None = None  # Muon's; None: there is no Muon


@dataclass(frozen=True)
class ScheduleConfig:
    """Learning rate over steps, as a fraction of optim.learning_rate."""

    name: Literal["wsd", "cosine", "linear", "constant"]
    warmup_steps: int = 0
    decay_fraction: float = 0.2  # wsd: share of all steps spent decaying at the end
    final_fraction: float = 0.0  # where the decay ends


@dataclass(frozen=True)
class ZeroConfig:
    """DeepSpeed ZeRO (Rajbhandari et al. 2020): what is partitioned over the workers."""

    stage: Literal[0, 1, 2, 3]
    offload_optimizer: Offload = "none"
    offload_params: Offload = "none"
    nvme_path: str | None = None
    bucket_elements: int = 50_000_000  # reduced or gathered in one collective


@dataclass(frozen=True)
class TrainConfig:
    """How much, in what batches, in what precision."""

    steps: int | None = None  # exactly one of steps and tokens
    tokens: int | None = None
    global_batch: int = 32  # rows an optimizer step, over all workers
    micro_batch: int = 8  # rows a forward pass on one worker; accumulation follows
    precision: Literal["fp32", "bf16"] = "fp32"
    reduce_precision: Literal["fp32", "bf16"] = "fp32"  # of gradients summed over the workers
    activation_checkpointing: bool = False
    compile: bool = False
    deterministic: bool = True  # on a GPU, at some cost: a resumed run is bit-equal, as on a CPU
    threads: int | None = None  # CPU threads a worker; None: the cores shared out


@dataclass(frozen=True)
class EvaluationConfig:
    """Held-out loss during training."""

    every: int = 100  # steps; 0: only before the first and after the last
    rows: int | None = None  # None: the whole held-out set
    batch: int = 16  # rows a forward pass


@dataclass(frozen=True)
class TextEvaluation(EvaluationConfig):
    """And text sampled from fixed prompts."""

    prompts: tuple[str, ...] = ()
    sample_every: int = 0  # steps; 0: only after the last
    sample_tokens: int = 64
    temperature: float = 0.8
    top_p: float = 0.95


@dataclass(frozen=True)
class ChatEvaluation(EvaluationConfig):
    """And held-out questions answered, and what was forgotten."""

    questions: int = 128  # answered greedily at each occasion; 0: none
    answer_every: int = 0  # steps; 0: only before the first and after the last
    answer_tokens: int = 64
    refusal_phrase: str = "I don't know of"  # how an answer begins that declines to answer
    # Held-out text whose bits per byte tell what was forgotten: a prepared folder; auto: the one the
    # parent was pretrained with, where that is known; none.
    forgetting: str = "auto"


@dataclass(frozen=True)
class PromptEvaluation(EvaluationConfig):
    """Held-out prompts answered and rewarded; `rows` of them."""

    answers_shown: int = 8  # prompts with answers in the table
    table_every: int = 10  # steps; 0: none of the training rollouts


@dataclass(frozen=True)
class PairLossConfig:
    """What is learned from pairs, each a few lines in `objective/preferences.py`."""

    name: Literal["dpo", "ipo", "simpo", "orpo"] = "dpo"
    beta: float = 0.1  # dpo: how dear it is to leave the reference
    label_smoothing: float = 0.0  # dpo: share of the pairs that are the wrong way round (cDPO)
    gamma: float = 0.5  # simpo: by how much the better answer must win
    reference: Literal["cached", "live"] = (
        "cached"  # log-probabilities: once for all, or every step
    )


@dataclass(frozen=True)
class AlgorithmConfig:
    """Reinforcement learning: the choices that distinguish PPO, GRPO and their kin."""

    name: Literal["ppo", "grpo", "dr_grpo", "rloo", "reinforce_pp"]
    advantage: Literal["gae", "grpo", "dr_grpo", "rloo", "reinforce_pp", "reinforce_pp_baseline"]
    aggregation: Literal["token_mean", "sequence_mean", "constant_length"] = "token_mean"
    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float | None = None  # bound on the loss of negative advantages; 3 is usual
    kl: Literal["none", "reward", "loss"] = "none"  # where the distance to the reference counts
    kl_estimator: Literal["k1", "k2", "k3"] = "k2"
    kl_coefficient: float = 0.0
    kl_target: float | None = None  # adaptive coefficient: the KL that it steers to
    kl_horizon: int = 10_000  # answers
    entropy_coefficient: float = 0.0
    gamma: float = 1.0
    lam: float = 0.95  # gae
    value_clip: float | None = 0.2
    whiten: bool = False  # advantages, over all ranks
    epochs: int = 1  # passes over a step's rollouts
    minibatches: int = 1  # updates a pass
    skip_equal_groups: bool = False  # groups whose answers all got the same reward
    overlong: Literal["keep", "mask"] = "keep"  # answers that didn't end: learned from, or not
    importance_cap: float | None = None  # truncated importance sampling; None: off


@dataclass(frozen=True)
class RolloutConfig:
    """Who samples answers, and how."""

    engine: Literal["transformers", "vllm"] = "transformers"
    actors: int = 1  # 0: inside the first worker
    cpus_per_actor: float = 1.0
    gpus_per_actor: float = 0.0
    threads: int | None = None  # CPU threads of an actor; None: cpus_per_actor
    group: int = 8  # answers a prompt
    batch: int = 64  # answers sampled together: the unit of work, whoever does it
    max_new_tokens: int = 64
    temperature: float = 1.0
    top_p: float = 1.0
    staleness: Literal[0, 1] = 0  # steps by which the sampling weights may lag
    timeout_s: float = 600.0  # for a unit of work, and for bringing weights to an actor
    dump: str | None = None  # folder to which rollouts are written
    replay: str | None = None  # folder from which they are read instead of being sampled


@dataclass(frozen=True)
class RewardConfig:
    """What an answer is worth: a weighted sum."""

    # name → weight: a function of rl/reward/functions.py, auto (the prompt's own verifier),
    # module:function, or an http address
    functions: dict[str, float] = field(default_factory=dict)
    model: str | None = None  # a reward model: models:/name@reward, or a folder
    model_weight: float = 1.0
    model_actors: int = 1  # 0: inside the first worker
    length_penalty: float = 0.0  # taken off an answer of max_new_tokens, and less from shorter ones
    workers: int = 1  # processes that call functions
    timeout_s: float = 10.0  # for one call


@dataclass(frozen=True)
class CriticConfig:
    """What predicts the return, where the advantage needs it (gae)."""

    learning_rate: float = 1e-5
    parent: str | None = (
        None  # None: the reward model where there is one, or else the policy's parent
    )


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters (Hu et al. 2022) instead of all weights."""

    rank: int = 0  # 0: all weights are trained
    alpha: float = 16.0  # adapters count alpha / rank
    dropout: float = 0.0
    targets: tuple[str, ...] = ("all-linear",)  # or names of modules, as in [q_proj, v_proj]


@dataclass(frozen=True)
class ClusterConfig:
    """Which Ray, and what one worker takes of it."""

    name: str
    address: str  # "local" starts one; "auto" or host:port joins one
    gpu: bool = False
    cpus_per_worker: float = 1.0
    device_memory_gib: float | None = (
        None  # memory of one GPU (or a worker's share of RAM); None: asked
    )
    host_memory_gib: float | None = None  # RAM of one node, for offload; None: asked
    peak_tflops: float | None = (
        None  # dense peak of one device at train.precision; None: MFU isn't shown
    )


@dataclass(frozen=True)
class TrackingConfig:
    """MLflow: where runs, datasets and model versions are recorded."""

    name: str
    uri: str | None = None  # None: SQLite under storage.root; "none": no tracking
    experiment: str = "raymill"
    registered_model: str = "assistant"
    alias: str = "pretrained"
    register: bool = True
    system_metrics: bool = True
    flush_timeout_s: float = 60.0  # how long a finished run waits for a slow server
