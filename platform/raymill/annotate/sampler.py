"""Sampling answers from a model: never greedy, and each answer from its own seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, TypedDict

from raymill.annotate.items import Messages, SampledAnswer
from raymill.data.messages.folder import load_chat_encoder
from raymill.data.messages.problems import Problem
from raymill.errors import DataError
from raymill.model.shape import NO_LIMIT, context_length
from raymill.track.marker import weights_digest
from raymill.track.registry import ResolvedModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BATCH = 32  # prompts per forward pass


class SamplingSettings(TypedDict):
    """Settings of sampling, as they are stored with every answer."""

    temperature: float
    top_p: float
    max_new_tokens: int


class Sampler(Protocol):
    """Source of answers. `identity`: everything besides prompt and seed that determines an answer."""

    @property
    def identity(self) -> Mapping[str, object]: ...

    def answers(
        self, prompts: Sequence[Messages], seeds: Sequence[int]
    ) -> list[SampledAnswer | Problem]:
        """Return an answer to every prompt, sampled with its seed, or the reason for having none."""
        ...


class ModelSampler:
    """Sampler of a model folder; the weights are loaded at the first use.

    Raises:
        DataError: the folder has no chat template.
    """

    def __init__(
        self, resolved: ResolvedModel, *, temperature: float, top_p: float, max_new_tokens: int
    ) -> None:
        encoder = load_chat_encoder(resolved.folder)
        if encoder is None:
            raise DataError(
                f"model={resolved.name}: its folder has no chat template (chat_template.jinja, or "
                "chat_template in tokenizer_config.json), so it can't answer prompts; give a "
                "fine-tuned model."
            )
        self._encoder = encoder
        self._resolved, self._digest = resolved, weights_digest(resolved.folder)
        self._settings: SamplingSettings = {
            "temperature": temperature,
            "top_p": top_p,
            "max_new_tokens": max_new_tokens,
        }
        self._loaded: tuple[PreTrainedModel, PreTrainedTokenizerBase] | None = None

    @property
    def identity(self) -> dict[str, object]:
        """See `Sampler`."""
        return {"model": self._resolved.name, "digest": self._digest, **self._settings}

    def answers(
        self, prompts: Sequence[Messages], seeds: Sequence[int]
    ) -> list[SampledAnswer | Problem]:
        """See `Sampler`. A prompt that leaves no room for the longest answer is a Problem."""
        from raymill.generate.batch import complete

        model, tokenizer = self._load()
        encoded = [self._prompt_ids(messages, model) for messages in prompts]
        usable = {n: ids for n, ids in enumerate(encoded) if not isinstance(ids, Problem)}
        answers: dict[int, SampledAnswer | Problem] = {
            n: problem for n, problem in enumerate(encoded) if isinstance(problem, Problem)
        }
        if not usable:
            return list(answers.values())
        completions = complete(
            model,
            list(usable.values()),
            seeds=[seeds[n] for n in usable],
            stop_ids=self._stop_ids(model),
            batch_size=BATCH,
            **self._settings,
        )
        for n, completion in zip(usable, completions, strict=True):
            # The stop token ends the turn and is no part of the answer.
            ids = completion.ids[:-1] if completion.finish == "stop" else completion.ids
            answers[n] = SampledAnswer(
                tokenizer.decode(ids, skip_special_tokens=True),
                ids,
                completion.finish,
                self._resolved.name,
                self._digest,
                seeds[n],
                dict(self._settings),
            )
        return [answers[n] for n in range(len(prompts))]

    def _load(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        # Write mode and exports never get here, and start without loading torch.
        if self._loaded is None:
            from raymill.generate.load import load_model

            model, tokenizer, _ = load_model(self._resolved.folder)
            self._loaded = model, tokenizer
        return self._loaded

    def _stop_ids(self, model: PreTrainedModel) -> frozenset[int]:
        from raymill.generate.load import token_id_list

        return self._encoder.stop_ids | frozenset(
            token_id_list(model.generation_config.eos_token_id)
        )

    def _prompt_ids(self, messages: Messages, model: PreTrainedModel) -> list[int] | Problem:
        try:
            ids = self._encoder.prompt_ids(messages)
        except DataError as error:
            return Problem("template", str(error))
        positions = context_length(model.config) or NO_LIMIT
        prompt_limit = positions - self._settings["max_new_tokens"]
        if len(ids) > prompt_limit:
            return Problem(
                "over_long",
                f"the prompt is longer than {prompt_limit} tokens, the model's context less "
                "max_new_tokens",
            )
        return ids
