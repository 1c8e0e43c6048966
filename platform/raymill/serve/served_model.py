"""A model that is served: its name, its text side, its engine, and where it comes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from raymill.durable import sha256_json
from raymill.generate.engine.request import RequestError, SamplingParameters
from raymill.serve.errors import ApiError
from raymill.serve.model_text import ModelText
from raymill.serve.runner import EngineFailedError, EngineRunner, QueueFullError, TokenStream

Prompt = Sequence[int]
# Parameters of the engines by the fields that clients know.
FIELDS = {
    "max_new_tokens": "max_tokens",
    "top_log_probs": "logprobs",
    "prompt_log_probs": "echo",
    "constraint": "response_format",
    "adapter": "model",
}


@dataclass(frozen=True)
class ServedModel:
    """A model under the id that requests give.

    `version` names exactly what answers, such as models:/assistant/4; `fingerprint` is the sha256 of its
    weights; `adapters` has the same of its adapters, by name; `created` is a time in seconds since 1970.
    `lineage` begins with the model itself, followed by its parents, each with its version, data digests
    and commit as far as they are known.
    """

    id: str
    version: str
    fingerprint: str
    adapters: Mapping[str, str]
    created: int
    lineage: Sequence[Mapping[str, object]]
    text: ModelText
    runner: EngineRunner

    def version_of(self, adapter: str | None) -> str:
        """Return the name of what answers with an adapter, or without one."""
        return self.version if adapter is None else f"{self.version}:{adapter}"

    def fingerprint_of(self, adapter: str | None) -> str:
        """Return the sha256 of the weights with an adapter, or without one."""
        if adapter is None:
            return self.fingerprint
        return sha256_json([self.fingerprint, self.adapters[adapter]])

    @property
    def digests(self) -> dict[str, str]:
        """Digests of the weights by all versions that answer."""
        return {
            self.version_of(adapter): self.fingerprint_of(adapter)
            for adapter in (None, *self.adapters)
        }

    def description(self, adapter: str | None = None) -> dict[str, object]:
        """Return the model, or one of its adapters, as `/v1/models` lists it."""
        return {
            "id": self.id if adapter is None else f"{self.id}:{adapter}",
            "object": "model",
            "created": self.created,
            "owned_by": "raymill",
            "version": self.version_of(adapter),
            "fingerprint": self.fingerprint_of(adapter),
            "positions": self.runner.positions,
            "chat": self.text.chat is not None,
            "adapter": adapter,
            "lineage": list(self.lineage),
        }

    async def open_streams(
        self, requests: Sequence[tuple[Prompt, SamplingParameters]], *, prompt_field: str
    ) -> list[TokenStream]:
        """Queue answers, all or none; `prompt_field` names the client's field of the prompt.

        Raises:
            ApiError: a prompt is too long, the engine refuses a parameter, or there is no room.
        """
        for prompt, _ in requests:
            self._check_length(prompt, prompt_field)
        if len(requests) > self.runner.capacity:
            raise ApiError(
                400,
                f"the request asks for {len(requests)} answers, and at most {self.runner.capacity} can be "
                "drawn or wait at the same time; split it",
                param="n",
                code="too_many_answers",
            )
        try:
            return await self.runner.submit(requests)
        except RequestError as error:
            field = prompt_field if error.parameter == "prompt" else FIELDS.get(error.parameter)
            raise ApiError(400, str(error), param=field or error.parameter) from error
        except QueueFullError as error:
            raise ApiError(
                503, str(error), code="queue_full", retry_after_s=error.retry_after_s
            ) from error
        except EngineFailedError as error:
            raise ApiError(503, str(error), code="engine_failed") from error

    def _check_length(self, prompt: Prompt, field: str) -> None:
        positions = self.runner.positions
        if positions is not None and len(prompt) >= positions:
            raise ApiError(
                400,
                f"the model has {positions} positions for a prompt and its answer, and the prompt has "
                f"{len(prompt)} tokens; shorten it",
                param=field,
                code="context_length_exceeded",
            )


class ModelTable:
    """Models by the ids that requests give: a model's own, or `model:adapter`."""

    def __init__(self, models: Mapping[str, ServedModel]) -> None:
        self._models = models

    def find(self, name: str) -> tuple[ServedModel, str | None]:
        """Return a model, and the adapter that the id names.

        Raises:
            ApiError: there is no such model; the message lists those that there are.
        """
        if name in self._models:
            return self._models[name], None
        base, _, adapter = name.rpartition(":")
        if base in self._models and adapter in self._models[base].runner.adapters:
            return self._models[base], adapter
        known = ", ".join(str(one["id"]) for one in self.descriptions())
        raise ApiError(
            404,
            f"there is no model {name!r} here; there is {known}",
            param="model",
            code="model_not_found",
        )

    def descriptions(self) -> list[dict[str, object]]:
        """Return all models and adapters."""
        return [
            model.description(adapter)
            for model in self._models.values()
            for adapter in (None, *model.runner.adapters)
        ]
