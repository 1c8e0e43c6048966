"""Sampling engine on transformers: runs on any machine, with any model that transformers supports."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from raymill.causes import first_line
from raymill.errors import ConfigError
from raymill.generate.batch import Completion, complete
from raymill.generate.modes import mode_of
from raymill.model.shape import context_length
from raymill.rl.rollout.engine import Dtype, RolloutError, Sampling
from raymill.rl.rollout.weights import (
    DTYPES,
    TensorBucket,
    copy_into,
    saved_weights,
    weights_digest,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelSpec:
    """Recipe for an engine without weights; see `EngineSpec`.

    `folder` holds the model's config.json. `vocab_size` is the policy's, which may have been extended; it never
    makes the model's smaller. `threads`: results depend on their number, in the last bits.
    """

    folder: str
    vocab_size: int
    attention: str
    dtype: Dtype
    threads: int
    gpu: bool = False

    def build(self) -> TransformersEngine:
        """See `EngineSpec`.

        Raises:
            ConfigError: transformers doesn't support the model.
            StorageError: its folder can't be read.
        """
        from transformers import AutoModelForCausalLM
        from transformers.initialization import no_init_weights

        from raymill.model.loading import load_hf_config, silence_libraries

        silence_libraries()
        try:
            config = load_hf_config(Path(self.folder))
            text = config.get_text_config(decoder=True)
            text.vocab_size = max(text.vocab_size, self.vocab_size)
            # Built on its device and not on "meta", because buffers that a model computes when it is built
            # and never saves (the frequencies of rotary positions) don't arrive with the weights.
            with no_init_weights(), torch.device("cuda" if self.gpu else "cpu"):
                model = AutoModelForCausalLM.from_config(
                    config,
                    dtype=DTYPES[self.dtype],
                    attn_implementation=self.attention,
                    trust_remote_code=False,
                )
        except (OSError, ValueError, ImportError) as error:
            raise ConfigError(
                [
                    f"parent: transformers can't build the model of {self.folder}: "
                    f"{first_line(error)}"
                ]
            ) from error
        model.tie_weights()
        return TransformersEngine(model.eval(), self.threads)


class TransformersEngine:
    """See `Engine`."""

    def __init__(self, model: PreTrainedModel, threads: int) -> None:
        self.model = model
        self._threads = threads
        self._loaded = False
        self._warned = False

    def load(self, buckets: Iterable[TensorBucket]) -> None:
        """See `Engine`."""
        # False while a load is incomplete, so that a failed one leaves no mixture to sample from.
        self._loaded = False
        copy_into(saved_weights(self.model), buckets)
        self._loaded = True

    def digest(self) -> str:
        """See `Engine`."""
        return weights_digest(saved_weights(self.model).items())

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, seeds: Sequence[int]
    ) -> list[Completion]:
        """See `Engine`."""
        if not self._loaded:
            raise RolloutError("the sampling model has no weights yet; load them first")
        # `complete` would cut the beginning of a long prompt, while the policy learns from the whole of it.
        positions = context_length(self.model.config)
        longest, max_new_tokens = max(map(len, prompts), default=0), sampling.max_new_tokens
        if positions is not None and longest + max_new_tokens > positions:
            raise RolloutError(
                f"a prompt of {longest} tokens and max_new_tokens={max_new_tokens} need "
                f"{longest + max_new_tokens} positions, the model has {positions}; ask for shorter "
                "answers, or prepare the prompts with a lower limit"
            )
        with _torch_threads(self._threads):
            mode = mode_of(self.model)
            if not self._warned and (note := mode.note(self.model)) is not None:
                logger.warning(note)
            self._warned = True
            return complete(
                self.model,
                prompts,
                max_new_tokens=sampling.max_new_tokens,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                seeds=seeds,
                stop_ids=sampling.stop_ids,
                batch_size=len(prompts),
                log_probs=True,
            )


@contextmanager
def _torch_threads(count: int) -> Iterator[None]:
    """Set torch's number of threads within the block; the process may be a trainer with its own setting."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
