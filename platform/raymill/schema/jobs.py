"""Every job that there is, as a frozen dataclass of the sections it has.

Hydra composes `conf/` into a plain tree; `bind.py` turns that tree into these objects once, and no
DictConfig travels further.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from raymill.schema.run_sections import (
    AuditedRun as AuditedRun,
    CheckpointConfig as CheckpointConfig,
    GuardConfig as GuardConfig,
    RunConfig as RunConfig,
    WatchdogConfig as WatchdogConfig,
)
from raymill.schema.sections import (
    AlgorithmConfig as AlgorithmConfig,
    ArchConfig as ArchConfig,
    ChatConfig as ChatConfig,
    ChatEvaluation as ChatEvaluation,
    ClusterConfig as ClusterConfig,
    CriticConfig as CriticConfig,
    DataConfig as DataConfig,
    EvaluationConfig as EvaluationConfig,
    LoraConfig as LoraConfig,
    MessagesConfig as MessagesConfig,
    Offload as Offload,
    OptimConfig as OptimConfig,
    PairLossConfig as PairLossConfig,
    PreferenceConfig as PreferenceConfig,
    PromptEvaluation as PromptEvaluation,
    PromptsConfig as PromptsConfig,
    RewardConfig as RewardConfig,
    RolloutConfig as RolloutConfig,
    RowsConfig as RowsConfig,
    ScheduleConfig as ScheduleConfig,
    TextEvaluation as TextEvaluation,
    TokenizerConfig as TokenizerConfig,
    TrackingConfig as TrackingConfig,
    TrainConfig as TrainConfig,
    ValidationConfig as ValidationConfig,
    ZeroConfig as ZeroConfig,
)
from raymill.schema.storage import StorageConfig as StorageConfig


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
    guard: GuardConfig
    watchdog: WatchdogConfig
    cluster: ClusterConfig
    tracking: TrackingConfig
    storage: StorageConfig
    dry_run: bool = False

    # Traits: the ways in which the jobs differ, so that code elsewhere needn't ask for their class.
    row_unit: ClassVar[str] = "rows"  # name of the rows that an optimizer update learns from
    sequences_per_row: ClassVar[int] = 1  # that the model sees
    fp32_head: ClassVar[bool] = False  # log-probabilities are computed in fp32
    scalar_head: ClassVar[bool] = False  # the trained model scores texts instead of writing them

    @property
    def rows_per_sample(self) -> int:
        """Rows that are learned from for each sample drawn from the data."""
        return 1

    @property
    def updates_per_step(self) -> int:
        """Optimizer updates among which a step's rows are divided."""
        return 1

    @property
    def forward_length(self) -> int:
        """Predictions of one sequence in a forward pass."""
        return self.data.sequence_length

    @property
    def has_adapters(self) -> bool:
        """Tell whether LoRA adapters are trained instead of the model's own weights."""
        return False


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
class ParentJob(TrainJob):
    """Training that starts from a model."""

    parent: str  # models:/name@alias, models:/name/3 or a Hugging Face folder
    data: MessagesConfig
    lora: LoraConfig
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"

    @property
    def has_adapters(self) -> bool:
        return self.lora.rank > 0

    @property
    def position_demands(self) -> dict[str, int]:
        """Positions that the parent must have, by the keys from which they follow."""
        return {"data.sequence_length": self.data.sequence_length}


@dataclass(frozen=True, kw_only=True)
class SftJob(ParentJob):
    """`jobs/sft.py`: conversations and a parent model → a registered assistant."""

    data: ChatConfig
    evaluation: ChatEvaluation
    freeze: tuple[str, ...] = ()  # patterns of parameter names that aren't trained
    neftune_alpha: float = 0.0  # noise on embeddings while training (Jain et al. 2023); 0: none

    @property
    def position_demands(self) -> dict[str, int]:
        demands = super().position_demands
        if self.evaluation.questions:
            # A question takes at least one position.
            demands["evaluation.answer_tokens"] = self.evaluation.answer_tokens + 1
        return demands

    def preparation(self) -> ChatPrepareJob:
        """The job that prepares this one's data."""
        return ChatPrepareJob(**_shared(self), data=self.data)


@dataclass(frozen=True, kw_only=True)
class RewardJob(ParentJob):
    """`jobs/reward.py`: compared answers and a parent model → a registered reward model."""

    row_unit: ClassVar[str] = "pairs"
    sequences_per_row: ClassVar[int] = 2
    scalar_head: ClassVar[bool] = True
    data: PreferenceConfig
    margin_scale: float = 0.0  # of the margins that the data states; 0: they don't count
    centring: float = 0.0  # pulls rewards towards a mean of 0; 0.01 is usual

    def preparation(self) -> PreferencePrepareJob:
        """The job that prepares this one's data."""
        return PreferencePrepareJob(**_shared(self), data=self.data)


@dataclass(frozen=True, kw_only=True)
class DpoJob(ParentJob):
    """`jobs/dpo.py`: compared answers and a parent model → a registered, aligned assistant."""

    row_unit: ClassVar[str] = "pairs"
    sequences_per_row: ClassVar[int] = 2
    fp32_head: ClassVar[bool] = True
    data: PreferenceConfig
    loss: PairLossConfig

    def preparation(self) -> PreferencePrepareJob:
        """The job that prepares this one's data."""
        return PreferencePrepareJob(**_shared(self), data=self.data)


@dataclass(frozen=True, kw_only=True)
class RlhfJob(ParentJob):
    """`jobs/rlhf.py`: prompts, rewards and a parent model → a registered, aligned assistant.

    A sample is a prompt drawn: `train.global_batch` of them a step; `train.micro_batch` counts answers.
    """

    row_unit: ClassVar[str] = "answers"
    fp32_head: ClassVar[bool] = True
    data: PromptsConfig
    evaluation: PromptEvaluation
    algorithm: AlgorithmConfig
    rollout: RolloutConfig
    reward: RewardConfig
    critic: CriticConfig

    @property
    def rows_per_sample(self) -> int:
        return self.rollout.group

    @property
    def updates_per_step(self) -> int:
        return max(1, self.algorithm.minibatches)

    @property
    def forward_length(self) -> int:
        return self.data.sequence_length + self.rollout.max_new_tokens

    @property
    def max_sequence_tokens(self) -> int:
        """Tokens of a prompt, whose row holds one more than it has predictions, with its answer."""
        return self.data.sequence_length + 1 + self.rollout.max_new_tokens

    @property
    def position_demands(self) -> dict[str, int]:
        sampling = {"data.sequence_length + 1 + rollout.max_new_tokens": self.max_sequence_tokens}
        return super().position_demands | sampling

    def preparation(self) -> PromptsPrepareJob:
        """The job that prepares this one's data."""
        return PromptsPrepareJob(**_shared(self), data=self.data)


def _shared(job: ParentJob) -> dict[str, Any]:
    """What a preparation takes of the job that trains on it, beside the data."""
    return {
        "parent": job.parent,
        "cluster": job.cluster,
        "tracking": job.tracking,
        "storage": job.storage,
        "seed": job.run.seed,
        "dry_run": job.dry_run,
    }


@dataclass(frozen=True, kw_only=True)
class ChatPreparation(SftJob):
    """The keys of `jobs/prepare.py kind=chat`, of which it uses a part."""

    preview: int = 0  # conversations shown as the model will see them

    def preparation(self) -> ChatPrepareJob:
        return replace(super().preparation(), preview=self.preview)


@dataclass(frozen=True, kw_only=True)
class PreferencePreparation(RewardJob):
    """The keys of `jobs/prepare.py kind=preference`, of which it uses a part."""

    preview: int = 0

    def preparation(self) -> PreferencePrepareJob:
        return replace(super().preparation(), preview=self.preview)


@dataclass(frozen=True, kw_only=True)
class PromptsPreparation(RlhfJob):
    """The keys of `jobs/prepare.py kind=prompts`, of which it uses a part."""

    preview: int = 0

    def preparation(self) -> PromptsPrepareJob:
        return replace(super().preparation(), preview=self.preview)


@dataclass(frozen=True)
class RankJob:
    """`jobs/rank.py`: a page on which people compare answers, or write them."""

    model: tuple[str, ...]  # whose answers are compared
    data: PromptsConfig
    tracking: TrackingConfig
    storage: StorageConfig
    name: str = "rankings"
    mode: Literal["rank", "write"] = "rank"
    judge: str | None = None  # a synthetic judge instead of people
    judge_noise: float = 0.0  # share of its judgements that are the wrong way round
    answers: int = 2  # compared at once
    prompts: int = 200  # at most so many
    annotators_per_item: int = 1
    instructions: str | None = None  # a text file shown to the annotators
    host: str = "127.0.0.1"
    port: int = 0  # 0: any that is free
    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 128
    seed: int = 1234
    export_only: bool = False


@dataclass(frozen=True)
class PipelineJob:
    """`jobs/pipeline.py`: the stages of a model's life in one Ray session, each as its own job."""

    stages: tuple[Literal["prepare", "pretrain", "sft", "rank", "reward", "rlhf"], ...]
    pretrain: PretrainJob
    sft: SftJob
    rank: RankJob
    reward: RewardJob
    rlhf: RlhfJob
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


@dataclass(frozen=True)
class AuditJob:
    """`jobs/audit.py`: what became of a run."""

    run: AuditedRun
    storage: StorageConfig
