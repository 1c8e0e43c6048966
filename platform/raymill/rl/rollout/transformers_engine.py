"""Sampling with transformers itself: on any machine, from any model that it knows."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from raymill.causes import first_line
from raymill.errors import ConfigError
from raymill.generate.batch import Completion, complete
from raymill.generate.modes import mode_of
from raymill.model.shape import context_length
from raymill.rl.rollout.engine import Sampling
from raymill.rl.rollout.failure import RolloutError
from raymill.rl.rollout.weights import DTYPES, Bucket, fill, held_weights, weights_digest

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelSpec:
    """What an empty model is made of; see `EngineSpec`. `folder` holds its config.json."""

    folder: str
    vocab_size: int  # the policy's, where that was extended; never makes it smaller
    attention: str
    dtype: Literal["fp32", "bf16"]
    threads: int  # results depend on them, in the last bits
    gpu: bool = False  # a pool's actors then need gpus_per_actor

    def build(self) -> TransformersEngine:
        """See `EngineSpec`.

        Raises:
            ConfigError: transformers knows no such model.
            StorageError: its folder can't be read.
        """
        return TransformersEngine(_empty_model(self), self.threads)


def _empty_model(spec: ModelSpec) -> Any:
    from transformers import AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    from raymill.model.quiet import config_of, silence_libraries

    silence_libraries()
    try:
        config = config_of(Path(spec.folder))
        text = config.get_text_config(decoder=True)
        text.vocab_size = max(text.vocab_size, spec.vocab_size)
        # On its device, not on "meta": what a model computes at its birth and never stores (the
        # frequencies of rotary positions) comes with no weights.
        with no_init_weights(), torch.device("cuda" if spec.gpu else "cpu"):
            model = AutoModelForCausalLM.from_config(
                config,
                dtype=DTYPES[spec.dtype],
                attn_implementation=spec.attention,
                trust_remote_code=False,
            )
    except (OSError, ValueError, ImportError) as error:
        raise ConfigError(
            [f"parent: transformers can't build the model of {spec.folder}: {first_line(error)}"]
        ) from error
    model.tie_weights()
    return model.eval()


class TransformersEngine:
    """See `RolloutEngine`."""

    def __init__(self, model: Any, threads: int) -> None:
        self.model = model
        self._threads = threads
        self._loaded = False
        self._told = False

    def load(self, buckets: Iterable[Bucket]) -> None:
        """See `RolloutEngine`."""
        self._loaded = False  # until all of them are there
        fill(held_weights(self.model), buckets)
        self._loaded = True

    def digest(self) -> str:
        """See `RolloutEngine`."""
        return weights_digest(held_weights(self.model).items())

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, seeds: Sequence[int]
    ) -> list[Completion]:
        """See `RolloutEngine`."""
        if not self._loaded:
            raise RolloutError("the sampling model has no weights yet; bring them first")
        self._check_room(prompts, sampling.max_new_tokens)
        with _threads(self._threads):
            self._tell_mode()
            return complete(
                self.model,
                prompts,
                max_new_tokens=sampling.max_new_tokens,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                seeds=seeds,
                stop_ids=sampling.stop_ids,
                batch_size=len(prompts),
                pad_id=sampling.pad_id,
                log_probs=True,
            )

    def _tell_mode(self) -> None:
        """Say it once where the family can't be sampled as fast as others."""
        mode = mode_of(self.model)
        if not self._told and (note := mode.note(self.model)) is not None:
            logger.warning(note)
        self._told = True

    def _check_room(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
        """`complete` would cut a prompt's beginning off, and the policy learn from the whole of it."""
        positions = context_length(self.model.config)
        longest = max(map(len, prompts), default=0)
        if positions is not None and longest + max_new_tokens > positions:
            raise RolloutError(
                f"a prompt of {longest} tokens and max_new_tokens={max_new_tokens} need "
                f"{longest + max_new_tokens} positions, the model has {positions}; ask for shorter "
                "answers, or prepare the prompts with a lower limit"
            )


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """The process may be a trainer's, which has its own number."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
