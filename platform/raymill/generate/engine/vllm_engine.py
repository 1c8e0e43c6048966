"""Decoding engine on vLLM, inside the caller's process: paged memory, and kernels for many requests at once.

vLLM samples in its own order: minimum probability before nucleus. What would differ from `SamplingParameters`
for that reason is refused by name, as is what vLLM doesn't offer for single requests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raymill.generate.engine.request import (
    DrawnToken,
    EngineCounts,
    Finish,
    Progress,
    RequestError,
    SamplingParameters,
    TokenLogProb,
)
from raymill.generate.engine.vllm_library import (
    LEAST_TEMPERATURE,
    cache_bytes,
    starting_vllm,
)
from raymill.reading import read_json

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class VllmDecoderSpec:
    """Recipe for a vLLM engine that decodes with a folder's own weights.

    `slots`: requests answered at the same time; memory is reserved for the keys and values of as many rows of
    `positions` tokens. `adapters`: folders of LoRA adapters by name. `tensor_parallel`: devices that share the
    model. vLLM changes the threads, environment and process groups of its whole process.
    """

    folder: Path
    dtype: torch.dtype
    slots: int
    positions: int
    threads: int = 1
    gpu: bool = False
    tensor_parallel: int = 1
    adapters: Mapping[str, Path] = field(default_factory=dict)

    def build(self) -> VllmDecoder:
        """Return the engine, ready to decode.

        Raises:
            ConfigError: vLLM isn't installed here, doesn't support the model, or lacks memory.
        """
        with starting_vllm(
            gpu=self.gpu,
            threads=self.threads,
            setting="serve.decoder=vllm",
            instead="serve.decoder=slots",
            work=f"the model of {self.folder} with memory for {self.slots} requests of {self.positions} tokens",
        ):
            engine = _start(self)
        return VllmDecoder(engine, self)


def _start(spec: VllmDecoderSpec) -> Any:
    from vllm import EngineArgs, LLMEngine

    from raymill.generate.engine.vllm_constraint import ConstraintProcessor
    from raymill.model.loading import load_hf_config, silence_libraries

    silence_libraries()
    lora: dict[str, Any] = {}
    if spec.adapters:
        ranks = [_rank(folder) for folder in spec.adapters.values()]
        # On a CPU vLLM 0.32 gives rows without an adapter the last one, so there is an empty one after ours.
        lora = {"enable_lora": True, "max_loras": len(ranks) + 1, "max_lora_rank": max(ranks)}
    return LLMEngine.from_engine_args(
        EngineArgs(
            str(spec.folder),
            # Prompts and answers are tokens.
            skip_tokenizer_init=True,
            trust_remote_code=False,
            dtype=spec.dtype,
            max_model_len=spec.positions,
            max_num_seqs=spec.slots,
            kv_cache_memory_bytes=cache_bytes(
                load_hf_config(spec.folder), spec.dtype, spec.slots, spec.positions
            ),
            tensor_parallel_size=spec.tensor_parallel,
            enable_prefix_caching=True,
            # Capturing graphs pays on GPUs; on CPUs it means compiling for a minute.
            enforce_eager=not spec.gpu,
            # With chunked prompts vLLM rewinds the row's random generator, which a CPU's doesn't support.
            enable_chunked_prefill=spec.gpu,
            # A constraint must have seen the last token before the next pass.
            async_scheduling=False,
            # Log-probabilities of the model's own distribution.
            logprobs_mode="raw_logprobs",
            max_logprobs=-1,
            # The folder's own generation settings are ignored.
            generation_config="vllm",
            logits_processors=[ConstraintProcessor] if spec.tensor_parallel == 1 else None,
            disable_log_stats=True,
            **lora,
        )
    )


def _rank(folder: Path) -> int:
    return int(read_json(folder / "adapter_config.json")["r"])


@dataclass
class _Request:
    """Request that hasn't ended. `cached` is None until vLLM has started it."""

    prompt: tuple[int, ...]
    parameters: SamplingParameters
    cached: int | None = None


class VllmDecoder:
    """See `DecodingEngine`."""

    def __init__(self, engine: Any, spec: VllmDecoderSpec) -> None:
        self._engine = engine
        self._spec = spec
        self._requests: dict[int, _Request] = {}
        self._submitted = 0
        self._prefilled = self._reused = self._drawn = self._passes = 0

    @property
    def positions(self) -> int:
        """See `DecodingEngine`."""
        return self._spec.positions

    @property
    def adapters(self) -> Sequence[str]:
        """See `DecodingEngine`."""
        return tuple(self._spec.adapters)

    @property
    def busy(self) -> bool:
        """See `DecodingEngine`."""
        return bool(self._requests)

    def submit(self, prompt: Sequence[int], parameters: SamplingParameters) -> int:
        """See `DecodingEngine`."""
        self._check_prompt(prompt)
        _check_parameters(parameters, self._spec)
        key = self._submitted
        self._submitted += 1
        self._engine.add_request(
            str(key),
            {"prompt_token_ids": list(prompt)},
            _sampling_params(parameters, self.positions - len(prompt)),
            lora_request=self._lora(parameters.adapter),
        )
        self._requests[key] = _Request(tuple(prompt), parameters)
        return key

    def cancel(self, key: int) -> None:
        """See `DecodingEngine`."""
        if self._requests.pop(key, None) is not None:
            self._engine.abort_request([str(key)])

    def step(self) -> list[Progress]:
        """See `DecodingEngine`."""
        if not self._requests:
            return []
        self._passes += 1
        return [
            self._progress(int(output.request_id), output)
            for output in self._engine.step()
            if int(output.request_id) in self._requests
        ]

    def counts(self) -> EngineCounts:
        """See `DecodingEngine`."""
        running = sum(request.cached is not None for request in self._requests.values())
        return EngineCounts(
            slots=self._spec.slots,
            running=running,
            waiting=len(self._requests) - running,
            prefilled=self._prefilled,
            reused=self._reused,
            drawn=self._drawn,
            passes=self._passes,
        )

    def _check_prompt(self, prompt: Sequence[int]) -> None:
        if not prompt:
            raise RequestError("prompt", "the prompt is empty; give at least one token")
        if len(prompt) >= self.positions:
            raise RequestError(
                "prompt",
                f"the prompt has {len(prompt)} tokens, and the model {self.positions} positions for prompt and "
                "answer together; shorten the prompt",
            )

    def _lora(self, adapter: str | None) -> Any:
        if adapter is None:
            return None
        from vllm.lora.request import LoRARequest

        # vLLM counts adapters from 1.
        number = list(self._spec.adapters).index(adapter) + 1
        return LoRARequest(adapter, number, str(self._spec.adapters[adapter]))

    def _progress(self, key: int, output: Any) -> Progress:
        request = self._requests[key]
        prompt, reused = None, None
        if request.cached is None:
            request.cached = output.num_cached_tokens or 0
            reused = request.cached
            self._reused += reused
            self._prefilled += len(request.prompt) - request.cached
            prompt = _prompt_log_probs(request, output.prompt_logprobs)
        (answer,) = output.outputs
        tokens = _drawn_tokens(request.parameters, answer)
        self._drawn += len(tokens)
        finish = _finish(answer.finish_reason)
        if finish is not None:
            del self._requests[key]
        return Progress(key, tokens, finish, prompt, reused)


def _check_parameters(parameters: SamplingParameters, spec: VllmDecoderSpec) -> None:
    """Refuse what vLLM would draw differently from what `SamplingParameters` says."""
    if 0 < parameters.temperature < LEAST_TEMPERATURE:
        raise RequestError(
            "temperature",
            f"temperature {parameters.temperature}: vLLM would sample at {LEAST_TEMPERATURE}; ask for that, or "
            "for 0",
        )
    if parameters.min_p and parameters.top_p < 1:
        raise RequestError(
            "min_p",
            f"min_p {parameters.min_p} with top_p {parameters.top_p}: vLLM applies them in another order; give "
            "only one of them",
        )
    if parameters.drawn_log_probs and parameters.temperature and not _draws_plainly(parameters):
        raise RequestError(
            "drawn_log_probs",
            "vLLM returns log-probabilities of the model's own distribution only; ask for them, or leave the "
            "distribution as it is",
        )
    if parameters.prompt_log_probs and parameters.top_log_probs is None:
        raise RequestError("prompt_log_probs", "prompt_log_probs also needs top_log_probs")
    if parameters.prompt_log_probs and spec.adapters:
        # vLLM 0.32 computes a prompt's logits with indices of its last token, which fails.
        raise RequestError(
            "prompt_log_probs",
            "vLLM can't return a prompt's log-probabilities where it has adapters",
        )
    if parameters.constraint is not None and spec.tensor_parallel > 1:
        raise RequestError(
            "constraint",
            f"an answer can't be constrained with tensor_parallel={spec.tensor_parallel}, since vLLM then "
            "samples in other processes",
        )
    if parameters.adapter is not None and parameters.adapter not in spec.adapters:
        known = ", ".join(spec.adapters) or "none"
        raise RequestError(
            "adapter", f"there is no adapter {parameters.adapter!r}; there is: {known}"
        )


def _draws_plainly(parameters: SamplingParameters) -> bool:
    """Return whether an answer is drawn from the model's own distribution."""
    changing = (
        parameters.top_k,
        parameters.min_p,
        parameters.presence_penalty,
        parameters.frequency_penalty,
        parameters.logit_bias,
        parameters.constraint,
    )
    ones = (parameters.temperature, parameters.top_p, parameters.repetition_penalty)
    return not any(changing) and all(value == 1 for value in ones)


def _sampling_params(parameters: SamplingParameters, room: int) -> Any:
    """Return vLLM's settings. `room`: positions that the prompt leaves."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    from raymill.generate.engine.vllm_constraint import constraint_arguments

    log_probs = parameters.top_log_probs
    if log_probs is None and parameters.drawn_log_probs:
        log_probs = 0
    return SamplingParams(
        max_tokens=min(parameters.max_new_tokens, room),
        temperature=parameters.temperature,
        top_p=parameters.top_p,
        top_k=parameters.top_k,
        min_p=parameters.min_p,
        repetition_penalty=parameters.repetition_penalty,
        presence_penalty=parameters.presence_penalty,
        frequency_penalty=parameters.frequency_penalty,
        logit_bias=dict(parameters.logit_bias) or None,
        seed=parameters.seed,
        stop_token_ids=sorted(parameters.stop_ids),
        # Only `stop_ids` stop an answer.
        ignore_eos=True,
        logprobs=log_probs,
        prompt_logprobs=log_probs if parameters.prompt_log_probs else None,
        detokenize=False,
        # A step returns its own tokens, not all that came before.
        output_kind=RequestOutputKind.DELTA,
        extra_args=constraint_arguments(parameters.constraint),
    )


def _drawn_tokens(parameters: SamplingParameters, answer: Any) -> tuple[DrawnToken, ...]:
    ids = list(answer.token_ids)
    if parameters.top_log_probs is None and not parameters.drawn_log_probs:
        return tuple(DrawnToken(token) for token in ids)
    tokens = []
    for token, entry in zip(ids, answer.logprobs, strict=True):
        found = _log_prob(token, entry, parameters.top_log_probs or 0)
        drawn = None
        if parameters.drawn_log_probs:
            drawn = found.log_prob if parameters.temperature else 0.0
        tokens.append(DrawnToken(token, None if parameters.top_log_probs is None else found, drawn))
    return tuple(tokens)


def _prompt_log_probs(request: _Request, entries: Any) -> tuple[TokenLogProb, ...] | None:
    if not request.parameters.prompt_log_probs:
        return None
    count = request.parameters.top_log_probs or 0
    # vLLM has nothing to say of the first token.
    pairs = list(zip(request.prompt, entries, strict=True))[1:]
    return tuple(_log_prob(token, entry, count) for token, entry in pairs)


def _log_prob(token: int, entry: Mapping[int, Any], count: int) -> TokenLogProb:
    """Return what vLLM says of one place: token → log-probability and rank, the token's own included."""
    likeliest = sorted(
        (found.rank, other, float(found.logprob)) for other, found in entry.items() if found.rank
    )
    return TokenLogProb(
        float(entry[token].logprob),
        tuple((other, log_prob) for rank, other, log_prob in likeliest if rank <= count),
    )


def _finish(reason: str | None) -> Finish | None:
    if reason is None:
        return None
    if reason == "stop":
        return "stop"
    if reason == "length":
        return "length"
    raise RuntimeError(f"vLLM ended an answer for another reason: {reason}")
