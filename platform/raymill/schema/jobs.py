"""Jobs as frozen dataclasses of their sections.

Hydra composes `conf/` into a plain tree; `schema/bind.py` turns that tree into these objects once, and no
DictConfig travels further. Defaults and explanations of the keys stand in `conf/`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal, TypedDict

from raymill.schema.data_sections import (
    ChatConfig,
    DataConfig,
    MessagesConfig,
    PreferenceConfig,
    PromptsConfig,
    RowsConfig,
    TokenizerConfig,
)
from raymill.schema.sections import (
    AlgorithmConfig,
    ArchConfig,
    Attention,
    AuditedRun,
    TraceConfig,
    ChatEvaluation,
    CheckpointConfig,
    ClusterConfig,
    CriticConfig,
    EvaluationConfig,
    GuardConfig,
    LoraConfig,
    OptimConfig,
    PairLossConfig,
    PromptEvaluation,
    RewardConfig,
    RolloutConfig,
    RunConfig,
    ScheduleConfig,
    TextEvaluation,
    TrackingConfig,
    TrainConfig,
    WatchdogConfig,
    ZeroConfig,
)
from raymill.schema.storage import StorageConfig


@dataclass(frozen=True)
class PrepareJob:
    """`jobs/prepare.py kind=text`: prepare text as a tokenizer and tokenized shards.

    It takes every key that `jobs/pretrain.py` takes and uses these, so that training finds the data by the
    same overrides.
    """

    data: DataConfig
    tokenizer: TokenizerConfig
    cluster: ClusterConfig
    storage: StorageConfig
    seed: int
    dry_run: bool
    preview: int
    estimate: bool
    core_hour_price: float


@dataclass(frozen=True, kw_only=True)
class TrainJob:
    """Common part of every job that trains."""

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
    dry_run: bool

    # Traits: the ways in which the jobs differ, so that no code elsewhere has to ask for their class.
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
    """`jobs/pretrain.py`: train a base model on prepared text, and register it."""

    arch: ArchConfig
    data: DataConfig
    tokenizer: TokenizerConfig
    evaluation: TextEvaluation
    model: str | None

    def preparation(self) -> PrepareJob:
        """Return the job that prepares this one's data."""
        common = (self.data, self.tokenizer, self.cluster, self.storage, self.run.seed)
        return PrepareJob(*common, self.dry_run, preview=0, estimate=False, core_hour_price=0.0)


@dataclass(frozen=True)
class MessagesPrepareJob:
    """`jobs/prepare.py kind=chat|preference|prompts`: prepare messages as tokenized shards for a parent model.

    It takes every key of the job that trains on them, and uses these.
    """

    parent: str
    data: MessagesConfig
    cluster: ClusterConfig
    tracking: TrackingConfig
    storage: StorageConfig
    seed: int
    dry_run: bool
    preview: int


@dataclass(frozen=True)
class ChatPrepareJob(MessagesPrepareJob):
    """Preparation of conversations, for jobs/sft.py."""

    data: ChatConfig


@dataclass(frozen=True)
class PreferencePrepareJob(MessagesPrepareJob):
    """Preparation of compared answers, for jobs/reward.py and jobs/dpo.py."""

    data: PreferenceConfig


@dataclass(frozen=True)
class PromptsPrepareJob(MessagesPrepareJob):
    """Preparation of prompts, for jobs/rlhf.py."""

    data: PromptsConfig


class _Preparation(TypedDict):
    """Settings that a preparation takes from the job that trains on its data."""

    parent: str
    cluster: ClusterConfig
    tracking: TrackingConfig
    storage: StorageConfig
    seed: int
    dry_run: bool
    preview: int


@dataclass(frozen=True, kw_only=True)
class ParentJob(TrainJob):
    """Training that starts from a model."""

    parent: str
    data: MessagesConfig
    lora: LoraConfig
    attention: Attention

    def _preparation(self) -> _Preparation:
        return {
            "parent": self.parent,
            "cluster": self.cluster,
            "tracking": self.tracking,
            "storage": self.storage,
            "seed": self.run.seed,
            "dry_run": self.dry_run,
            "preview": 0,
        }

    @property
    def has_adapters(self) -> bool:
        return self.lora.rank > 0

    @property
    def position_demands(self) -> dict[str, int]:
        """Positions that the parent must have, by the keys from which they follow."""
        return {"data.sequence_length": self.data.sequence_length}


@dataclass(frozen=True, kw_only=True)
class SftJob(ParentJob):
    """`jobs/sft.py`: fine-tune a model on conversations, and register the assistant.

    Noise on embeddings (`neftune_alpha`): Jain et al. 2023.
    """

    data: ChatConfig
    evaluation: ChatEvaluation
    freeze: tuple[str, ...]
    neftune_alpha: float

    @property
    def position_demands(self) -> dict[str, int]:
        demands = super().position_demands
        if self.evaluation.questions:
            # A question takes at least one position.
            demands["evaluation.answer_tokens"] = self.evaluation.answer_tokens + 1
        return demands

    def preparation(self) -> ChatPrepareJob:
        """Return the job that prepares this one's data."""
        return ChatPrepareJob(**self._preparation(), data=self.data)


@dataclass(frozen=True, kw_only=True)
class RewardJob(ParentJob):
    """`jobs/reward.py`: train a reward model on compared answers, and register it."""

    row_unit: ClassVar[str] = "pairs"
    sequences_per_row: ClassVar[int] = 2
    scalar_head: ClassVar[bool] = True
    data: PreferenceConfig
    margin_scale: float
    center_rewards: float

    def preparation(self) -> PreferencePrepareJob:
        """Return the job that prepares this one's data."""
        return PreferencePrepareJob(**self._preparation(), data=self.data)


@dataclass(frozen=True, kw_only=True)
class DpoJob(ParentJob):
    """`jobs/dpo.py`: align a model on compared answers, and register the assistant."""

    row_unit: ClassVar[str] = "pairs"
    sequences_per_row: ClassVar[int] = 2
    fp32_head: ClassVar[bool] = True
    data: PreferenceConfig
    loss: PairLossConfig

    def preparation(self) -> PreferencePrepareJob:
        """Return the job that prepares this one's data."""
        return PreferencePrepareJob(**self._preparation(), data=self.data)


@dataclass(frozen=True, kw_only=True)
class RlhfJob(ParentJob):
    """`jobs/rlhf.py`: align a model on prompts by rewards, and register the assistant.

    A sample is a prompt drawn: `train.global_batch` of them per step; `train.micro_batch` counts answers.
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
        return self.rollout.group_size

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
        """Return the job that prepares this one's data."""
        return PromptsPrepareJob(**self._preparation(), data=self.data)


@dataclass(frozen=True, kw_only=True)
class TextPreparation(PretrainJob):
    """Keys of `jobs/prepare.py kind=text`, which uses a part of them."""

    preview: int
    estimate: bool
    core_hour_price: float

    def preparation(self) -> PrepareJob:
        made = replace(super().preparation(), preview=self.preview, estimate=self.estimate)
        return replace(made, core_hour_price=self.core_hour_price)


@dataclass(frozen=True, kw_only=True)
class ChatPreparation(SftJob):
    """Keys of `jobs/prepare.py kind=chat`, which uses a part of them."""

    preview: int

    def preparation(self) -> ChatPrepareJob:
        return replace(super().preparation(), preview=self.preview)


@dataclass(frozen=True, kw_only=True)
class PreferencePreparation(RewardJob):
    """Keys of `jobs/prepare.py kind=preference`, which uses a part of them."""

    preview: int

    def preparation(self) -> PreferencePrepareJob:
        return replace(super().preparation(), preview=self.preview)


@dataclass(frozen=True, kw_only=True)
class PromptsPreparation(RlhfJob):
    """Keys of `jobs/prepare.py kind=prompts`, which uses a part of them."""

    preview: int

    def preparation(self) -> PromptsPrepareJob:
        return replace(super().preparation(), preview=self.preview)


@dataclass(frozen=True)
class RankJob:
    """`jobs/rank.py`: serve a page on which people compare answers, or write them."""

    model: tuple[str, ...]
    data: PromptsConfig
    tracking: TrackingConfig
    storage: StorageConfig
    name: str
    mode: Literal["rank", "write"]
    judge: str | None
    judge_noise: float
    answers: int
    prompts: int
    annotators_per_item: int
    instructions: str | None
    host: str
    port: int
    temperature: float
    top_p: float
    max_new_tokens: int
    seed: int
    export_only: bool


@dataclass(frozen=True)
class PipelineJob:
    """`jobs/pipeline.py`: run the stages of a model's life in one Ray session, each as its own job.

    `ask` are questions for the finished assistant.
    """

    stages: tuple[Literal["prepare", "pretrain", "sft", "rank", "reward", "rlhf"], ...]
    pretrain: PretrainJob
    sft: SftJob
    rank: RankJob
    reward: RewardJob
    rlhf: RlhfJob
    ask: tuple[str, ...]


@dataclass(frozen=True)
class AuditJob:
    """`jobs/audit.py`: report what became of a run, or trace rows to their documents."""

    run: AuditedRun
    trace: TraceConfig
    storage: StorageConfig
