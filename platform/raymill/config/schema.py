"""Every key that a job accepts, as frozen dataclasses: the one place where a name, a type and a default meet.

Hydra composes `conf/` into a plain tree; `bind.py` turns that tree into these objects once, and no
DictConfig travels further. Comments here explain a key to a reader of the code; `conf/` explains it to
a user. A field ending in `_` stands for a key that is a Python keyword (`run.from` is `RunConfig.from_`).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
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

    source: Literal["stdlib", "files"]
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

    source: Literal["stdlib_chat", "chat"]
    format: Literal["auto", "messages", "sharegpt", "alpaca", "prompt_completion"] = "auto"
    train_on: Literal["all", "last"] = "all"  # which of the assistant's turns
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

    @property
    def row_predictions(self) -> int:
        return 2 * self.sequence_length + 1


@dataclass(frozen=True, kw_only=True)
class PromptsConfig(MessagesConfig):
    """What a model is asked in reinforcement learning, with what a verifier needs to judge answers."""

    source: Literal["stdlib_prompts", "prompts"]
    verifier: str = "none"  # of prompts that name none themselves: a reward function


@dataclass(frozen=True)
class TokenizerConfig:
    """Train a byte-level BPE, or load an existing tokenizer."""

    name: str
    path: str | None = None  # tokenizer.json or Hugging Face folder; None: train one
    vocab_size: int = 4096
    train_bytes: int = 64 * 2**20  # at most this much training text is read to learn merges
    end_of_text: str = "<|endoftext|>"


@dataclass(frozen=True)
class OptimConfig:
    """AdamW (Loshchilov & Hutter 2019); decay applies to matrices only."""

    name: Literal["adamw"]
    learning_rate: float
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    grad_clip: float = 1.0  # global L2 norm; 0 switches clipping off


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
class RunConfig:
    """Who this run is. The same name under the same storage root resumes."""

    name: str | None = None  # None: from the configuration's digest
    seed: int = 1234
    from_: str | None = None  # "<run name>@<step>" forks a run from its checkpoint
    workers: int = 1
    max_failures: int = 3  # infrastructure failures retried from the last commit


@dataclass(frozen=True)
class TrainConfig:
    """How much, in what batches, in what precision."""

    steps: int | None = None  # exactly one of steps and tokens
    tokens: int | None = None
    global_batch: int = 32  # rows an optimizer step, over all workers
    micro_batch: int = 8  # rows a forward pass on one worker; accumulation follows
    precision: Literal["fp32", "bf16"] = "fp32"
    activation_checkpointing: bool = False
    compile: bool = False
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
class LoraConfig:
    """Low-rank adapters (Hu et al. 2022) instead of all weights."""

    rank: int = 0  # 0: all weights are trained
    alpha: float = 16.0  # adapters count alpha / rank
    dropout: float = 0.0
    targets: tuple[str, ...] = ("all-linear",)  # or names of modules, as in [q_proj, v_proj]


@dataclass(frozen=True)
class CheckpointConfig:
    """When state is committed, and what is kept."""

    every: int = 100  # steps; the last step is always committed
    keep_last: int = 2
    keep_every: int = 0  # steps; a multiple of it is kept for ever. 0: none


@dataclass(frozen=True)
class StorageConfig:
    """Everything a job writes lies under this root: data/, runs/, mlflow.db."""

    root: str


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


@dataclass(frozen=True)
class PrepareJob:
    """`jobs/prepare.py kind=text`: text → tokenizer and tokenized shards.

    It takes every key that `jobs/pretrain.py` takes and uses these, so that the same overrides that
    prepare data find it again.
    """

    data: DataConfig
    tokenizer: TokenizerConfig
    cluster: ClusterConfig
    storage: StorageConfig
    seed: int = 1234
    dry_run: bool = False


@dataclass(frozen=True, kw_only=True)
class TrainJob:
    """What every job that trains has."""

    data: RowsConfig
    optim: OptimConfig
    schedule: ScheduleConfig
    zero: ZeroConfig
    run: RunConfig
    train: TrainConfig
    evaluation: EvaluationConfig
    checkpoint: CheckpointConfig
    cluster: ClusterConfig
    tracking: TrackingConfig
    storage: StorageConfig
    dry_run: bool = False


@dataclass(frozen=True, kw_only=True)
class PretrainJob(TrainJob):
    """`jobs/pretrain.py`: shards → a registered base model."""

    arch: ArchConfig
    data: DataConfig
    tokenizer: TokenizerConfig
    evaluation: TextEvaluation
    model: str | None = (
        None  # continue from models:/name@alias, models:/name/3 or a Hugging Face folder
    )

    def preparation(self) -> PrepareJob:
        """The job that prepares this one's data."""
        return PrepareJob(
            self.data, self.tokenizer, self.cluster, self.storage, self.run.seed, self.dry_run
        )


@dataclass(frozen=True)
class MessagesPrepareJob:
    """`jobs/prepare.py kind=chat|preference|prompts`: messages → tokenized shards for a parent model.

    It takes every key that the job which trains on them takes, and uses these.
    """

    parent: str
    data: MessagesConfig
    cluster: ClusterConfig
    tracking: TrackingConfig
    storage: StorageConfig
    seed: int = 1234
    dry_run: bool = False
    preview: int = 0


@dataclass(frozen=True)
class ChatPrepareJob(MessagesPrepareJob):
    """Conversations, for jobs/sft.py."""

    data: ChatConfig


@dataclass(frozen=True)
class PreferencePrepareJob(MessagesPrepareJob):
    """Compared answers, for jobs/reward.py and jobs/dpo.py."""

    data: PreferenceConfig


@dataclass(frozen=True)
class PromptsPrepareJob(MessagesPrepareJob):
    """Prompts, for jobs/rlhf.py."""

    data: PromptsConfig


@dataclass(frozen=True, kw_only=True)
class SftJob(TrainJob):
    """`jobs/sft.py`: conversations and a parent model → a registered assistant."""

    parent: str  # models:/name@alias, models:/name/3 or a Hugging Face folder
    data: ChatConfig
    evaluation: ChatEvaluation
    lora: LoraConfig
    freeze: tuple[str, ...] = ()  # patterns of parameter names that aren't trained
    neftune_alpha: float = 0.0  # noise on embeddings while training (Jain et al. 2023); 0: none
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"

    def preparation(self) -> ChatPrepareJob:
        """The job that prepares this one's data."""
        return ChatPrepareJob(
            self.parent,
            self.data,
            self.cluster,
            self.tracking,
            self.storage,
            self.run.seed,
            self.dry_run,
        )


@dataclass(frozen=True, kw_only=True)
class ChatPreparation(SftJob):
    """The keys of `jobs/prepare.py kind=chat`, of which it uses a part."""

    preview: int = 0  # conversations shown as the model will see them

    def preparation(self) -> ChatPrepareJob:
        return replace(super().preparation(), preview=self.preview)


@dataclass(frozen=True)
class PipelineJob:
    """`jobs/pipeline.py`: the stages of a model's life in one Ray session, each as its own job."""

    stages: tuple[Literal["prepare", "pretrain", "sft"], ...]
    pretrain: PretrainJob
    sft: SftJob
    ask: tuple[str, ...] = ()  # what the assistant is asked in the end


@dataclass(frozen=True)
class GenerateJob:
    """`jobs/generate.py`: a model continues a prompt, or converses."""

    model: str
    storage: StorageConfig
    tracking: TrackingConfig
    prompt: str | None = None
    prompt_file: str | None = None
    chat: bool | None = None  # None: as the model's folder says, by having a chat template
    system: str | None = None  # what a conversation begins with
    max_new_tokens: int = 128
    temperature: float = 0.8  # 0: greedy
    top_p: float = 0.95
    seed: int = 0
