"""A model that answers prompts for a page: sampled, never greedy, each answer from a seed of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from raymill.annotate.items import Answer, Messages
from raymill.data.messages.folder import load_chat_encoder
from raymill.data.messages.problems import Problem
from raymill.errors import DataError
from raymill.model.shape import NO_LIMIT, context_length
from raymill.track.marker import weights_digest
from raymill.track.registry import ResolvedModel

BATCH = 32  # prompts of a forward pass


class Sampler(Protocol):
    """Who answers. `identity`: everything beside prompt and seed that determines an answer."""

    @property
    def identity(self) -> dict[str, Any]: ...

    def answers(self, prompts: Sequence[Messages], seeds: Sequence[int]) -> list[Answer | Problem]:
        """An answer to every prompt, drawn with its seed, or why there is none."""
        ...


class ModelSampler:
    """A model's folder; its weights are loaded when they are first needed.

    Raises:
        DataError: the folder has no chat template.
    """

    def __init__(
        self, found: ResolvedModel, *, temperature: float, top_p: float, max_new_tokens: int
    ) -> None:
        encoder = load_chat_encoder(found.folder)
        if encoder is None:
            raise DataError(
                f"model={found.name}: it has no chat template (chat_template.jinja, or chat_template "
                "in tokenizer_config.json, in its folder), so it can't be asked; give a fine-tuned one."
            )
        self._encoder = encoder
        self._found, self._digest = found, weights_digest(found.folder)
        self._settings: dict[str, Any] = {
            "temperature": temperature,
            "top_p": top_p,
            "max_new_tokens": max_new_tokens,
        }
        self._loaded: tuple[Any, Any] | None = None

    @property
    def identity(self) -> dict[str, Any]:
        """See `Sampler`."""
        return {"model": self._found.name, "digest": self._digest, **self._settings}

    def answers(self, prompts: Sequence[Messages], seeds: Sequence[int]) -> list[Answer | Problem]:
        """See `Sampler`. A prompt that leaves no room for the longest answer is a Problem."""
        from raymill.generate.batch import complete

        model, tokenizer = self._load()
        found = [self._prompt_ids(messages, model) for messages in prompts]
        asked = {place: ids for place, ids in enumerate(found) if not isinstance(ids, Problem)}
        answers: dict[int, Answer | Problem] = {
            place: problem for place, problem in enumerate(found) if isinstance(problem, Problem)
        }
        if not asked:
            return list(answers.values())
        completions = complete(
            model,
            list(asked.values()),
            seeds=[seeds[place] for place in asked],
            stop_ids=self._stop_ids(model),
            batch_size=BATCH,
            **self._settings,
        )
        for place, completion in zip(asked, completions, strict=True):
            ids = completion.ids[:-1] if completion.finish == "stop" else completion.ids
            answers[place] = Answer(
                tokenizer.decode(ids, skip_special_tokens=True),
                ids,
                completion.finish,
                self._found.name,
                self._digest,
                seeds[place],
                dict(self._settings),
            )
        return [answers[place] for place in range(len(prompts))]

    def _load(self) -> tuple[Any, Any]:
        if self._loaded is None:
            from raymill.generate.load import load

            model, tokenizer, _ = load(self._found.folder)
            self._loaded = model, tokenizer
        return self._loaded

    def _stop_ids(self, model: Any) -> frozenset[int]:
        from raymill.generate.load import named_ids

        return self._encoder.stop_ids | frozenset(named_ids(model.generation_config.eos_token_id))

    def _prompt_ids(self, messages: Messages, model: Any) -> list[int] | Problem:
        try:
            ids = self._encoder.prompt_ids(messages)
        except DataError as error:
            return Problem("template", str(error))
        positions = context_length(model.config) or NO_LIMIT
        longest = self._settings["max_new_tokens"]
        if len(ids) + longest > positions:
            return Problem(
                "over_long",
                f"the prompt has more than the {positions - longest} tokens for which the model "
                "has positions beside an answer",
            )
        return ids
