"""Sampling engine on vLLM, inside the actor's own process: paged memory, and kernels for many answers at once.

vLLM keeps its weights in another layout (query, key and value are one matrix, others are packed for the
processor), so the weights that it holds can't be hashed like the policy's. Instead, the weights that it
receives are compared with the model's names, shapes and dtypes, and hashed. tests/rl/rollout/vllm verifies
that it samples from these weights, by comparison with transformers' forward pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from raymill.generate.batch import Completion
from raymill.generate.engine.vllm_library import (
    LEAST_TEMPERATURE,
    cache_bytes,
    starting_vllm,
)
from raymill.model.shape import context_length
from raymill.rl.rollout.engine import Dtype, RolloutError, Sampling
from raymill.rl.rollout.weights import DTYPES, Digest, TensorBucket, checked_tensors, saved_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class VllmSpec:
    """Recipe for a vLLM engine; see `EngineSpec`.

    `folder` holds the model's config.json. `vocab_size` is the policy's, which may have been extended; it never
    makes the model's smaller. `threads`: results depend on their number, in the last bits. `batch`: answers
    sampled at the same time; memory is reserved for the keys and values of as many answers of full length.
    `max_tokens`: of a prompt with its answer.

    vLLM changes the threads, environment and process groups of its whole process: build it where nothing else
    computes.
    """

    folder: str
    vocab_size: int
    dtype: Dtype
    threads: int
    batch: int
    max_tokens: int
    gpu: bool = False

    def build(self) -> VllmEngine:
        """See `EngineSpec`.

        Raises:
            ConfigError: vLLM isn't installed here, doesn't support the model, or lacks memory.
        """
        with starting_vllm(
            gpu=self.gpu,
            threads=self.threads,
            setting="rollout.engine=vllm",
            instead="rollout.engine=transformers",
            work=f"the model of {self.folder} with memory for rollout.batch={self.batch} answers of "
            f"{self.max_tokens} tokens",
        ):
            model = _model_without_memory(self)
            max_tokens = min(self.max_tokens, context_length(model.config) or self.max_tokens)
            llm = _start_vllm(self, model, max_tokens)
            return VllmEngine(llm, saved_weights(model), max_tokens)


def _model_without_memory(spec: VllmSpec) -> PreTrainedModel:
    """Return transformers' model on the "meta" device, for the names and shapes of the policy's weights."""
    from transformers import AutoModelForCausalLM

    from raymill.model.loading import load_hf_config, silence_libraries

    silence_libraries()
    config = load_hf_config(Path(spec.folder))
    text = config.get_text_config(decoder=True)
    text.vocab_size = max(text.vocab_size, spec.vocab_size)
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            config, dtype=DTYPES[spec.dtype], trust_remote_code=False
        )
    model.tie_weights()
    return model


def _start_vllm(spec: VllmSpec, model: PreTrainedModel, max_tokens: int) -> Any:
    from vllm import LLM, SamplingParams

    llm = LLM(
        spec.folder,
        hf_overrides={
            "vocab_size": model.config.get_text_config(decoder=True).vocab_size,
            "architectures": [type(model).__name__],
            # As the policy's; by default vLLM would use the model's dtype.
            "head_dtype": "float32",
        },
        # Prompts and answers are tokens.
        skip_tokenizer_init=True,
        load_format="dummy",
        dtype=DTYPES[spec.dtype],
        max_model_len=max_tokens,
        max_num_seqs=spec.batch,
        kv_cache_memory_bytes=cache_bytes(model.config, DTYPES[spec.dtype], spec.batch, max_tokens),
        enforce_eager=True,
        # With chunked prompts vLLM rewinds the row's random generator, which a CPU's doesn't support.
        enable_chunked_prefill=False,
        # Log-probabilities under the distribution that is drawn from.
        logprobs_mode="processed_logprobs",
        # The folder's own generation settings are ignored.
        generation_config="vllm",
        disable_log_stats=True,
    )
    # Unsupported kernels only fail when they run.
    llm.generate(
        [{"prompt_token_ids": [0]}], SamplingParams(max_tokens=1, detokenize=False), use_tqdm=False
    )
    return llm


def _repack_head(model: torch.nn.Module) -> None:
    """Update the packed copy of a tied output layer, which vLLM's reload on a CPU leaves unchanged."""
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

    for layer in model.modules():
        if isinstance(layer, ParallelLMHead):
            layer.quant_method.process_weights_after_loading(layer)


class VllmEngine:
    """See `Engine`. `weights`: names, shapes and dtypes of the policy's weights, as tensors without memory."""

    def __init__(self, llm: Any, weights: Mapping[str, torch.Tensor], max_tokens: int) -> None:
        self.llm = llm
        self._weights = weights
        self._max_tokens = max_tokens
        # None while there are no weights, or an incomplete load has left a mixture.
        self._digest: str | None = None

    def load(self, buckets: Iterable[TensorBucket]) -> None:
        """See `Engine`."""
        self._digest = None
        transfer = _Transfer(self._weights, buckets)
        self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": transfer.tensors()})
        self.llm.apply_model(_repack_head)
        self._digest = transfer.finish()

    def digest(self) -> str:
        """Return `weights_digest` of the weights that were sent to vLLM.

        Raises:
            RolloutError: there are none yet.
        """
        if self._digest is None:
            raise RolloutError("the sampling model has no weights yet; load them first")
        return self._digest

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, seeds: Sequence[int]
    ) -> list[Completion]:
        """See `Engine`. With the same seeds, vLLM draws other tokens than transformers does.

        Raises:
            RolloutError: also for a temperature that vLLM would change.
        """
        from vllm import SamplingParams

        self.digest()
        if 0 < sampling.temperature < LEAST_TEMPERATURE:
            raise RolloutError(
                f"temperature={sampling.temperature}: vLLM would sample at {LEAST_TEMPERATURE}; ask "
                "for that, or for 0"
            )
        longest = max(map(len, prompts), default=0)
        if longest + sampling.max_new_tokens > self._max_tokens:
            raise RolloutError(
                f"a prompt of {longest} tokens and max_new_tokens={sampling.max_new_tokens} need "
                f"{longest + sampling.max_new_tokens} positions, vLLM was started with "
                f"{self._max_tokens}; ask for shorter answers, or prepare the prompts with a lower "
                "limit"
            )
        # A prefix cache filled by earlier calls would change results, in the last bits.
        self.llm.reset_prefix_cache()
        outputs = self.llm.generate(
            [{"prompt_token_ids": list(prompt)} for prompt in prompts],
            [
                SamplingParams(
                    temperature=sampling.temperature,
                    top_p=sampling.top_p,
                    seed=seed,
                    max_tokens=sampling.max_new_tokens,
                    stop_token_ids=list(sampling.stop_ids),
                    # Only `stop_ids` stop an answer.
                    ignore_eos=True,
                    # The drawn token's log-probability alone.
                    logprobs=0,
                    flat_logprobs=True,
                    detokenize=False,
                )
                for seed in seeds
            ],
            use_tqdm=False,
        )
        return [_completion(output.outputs[0], sampling) for output in outputs]


def _completion(answer: Any, sampling: Sampling) -> Completion:
    if answer.finish_reason not in ("stop", "length"):
        raise RolloutError(f"vLLM ended an answer for another reason: {answer.finish_reason}")
    ids = tuple(answer.token_ids)
    # At temperature 0 sampling is deterministic, but vLLM returns the log-probabilities of temperature 1.
    log_probs = tuple(answer.logprobs.logprobs) if sampling.temperature else (0.0,) * len(ids)
    return Completion(ids, answer.finish_reason, log_probs)


class _Transfer:
    """Weights on their way into vLLM, checked and hashed as they pass.

    A load that is interrupted leaves vLLM's layers waiting for the remaining tensors, which they would take
    from the next load. So an error only ends the iteration, and is raised when vLLM has finished its load.
    """

    def __init__(
        self, targets: Mapping[str, torch.Tensor], buckets: Iterable[TensorBucket]
    ) -> None:
        self._checked = checked_tensors(buckets, targets)
        self._digest = Digest()
        self._error: Exception | None = None

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the tensors up to the first error."""
        try:
            yield from self._digest.passing(self._checked)
        except Exception as error:  # noqa: BLE001  (raised by `finish`)
            self._error = error

    def finish(self) -> str:
        """Return the digest of the weights.

        Raises:
            RolloutError: they weren't exactly the model's.
        """
        if self._error is not None:
            raise self._error
        for name, _ in self._checked:
            raise RolloutError(f"vLLM didn't load {name} and the weights after it")
        return self._digest.hexdigest()
