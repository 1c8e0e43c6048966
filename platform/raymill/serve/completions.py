"""`/v1/completions`: continuations of texts or tokens."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from raymill.errors import DataError
from raymill.serve.answers import ChoiceReader, Piece, Usage
from raymill.serve.errors import ApiError, unsupported
from raymill.serve.exchange import Exchange, Json
from raymill.serve.log_probs import completion_log_probs
from raymill.serve.requests import CompletionRequest
from raymill.serve.sampling import answer_limit, nth, sampling_parameters
from raymill.serve.served_model import ModelTable, ServedModel


@dataclass
class CompletionExchange(Exchange):
    """Continuations of prompts. `prompts`: texts that are repeated before the answers, by their index."""

    log_probs: bool = False
    prompts: dict[int, str] = field(default_factory=dict)
    kind: str = "text_completion"
    chunk_kind: str = "text_completion"
    prefix: str = "cmpl"

    def choices(self, answer: ChoiceReader, piece: Piece) -> list[Json]:
        """See `Exchange`."""
        choice = self._choice(answer, [piece], first=answer.pieces == 1)
        empty = not choice["text"] and not piece.tokens and piece.finish is None
        return [] if empty else [choice]

    def whole(self, answer: ChoiceReader, pieces: Sequence[Piece]) -> Json:
        """See `Exchange`."""
        return self._choice(answer, pieces, first=True)

    def _choice(self, answer: ChoiceReader, pieces: Sequence[Piece], *, first: bool) -> Json:
        prompt = self.prompts.get(answer.index, "")
        return {
            "index": answer.index,
            "text": (prompt if first else "") + "".join(piece.text for piece in pieces),
            "logprobs": self._log_probs(answer, pieces, prompt, first) if self.log_probs else None,
            "finish_reason": pieces[-1].finish,
        }

    def _log_probs(
        self, answer: ChoiceReader, pieces: Sequence[Piece], prompt: str, first: bool
    ) -> Json:
        tokens = [token for piece in pieces for token in piece.tokens]
        ids = [token.id for token in tokens]
        log_probs = [token.model for token in tokens]
        offsets = [len(prompt) + offset for piece in pieces for offset in piece.offsets]
        if first and answer.index in self.prompts:
            shown = self.model.text.answer_text(())
            for token in answer.prompt_ids:
                shown.push(token)
            ids = [*answer.prompt_ids, *ids]
            log_probs = [None, *answer.prompt, *log_probs]
            offsets = [*shown.offsets, *offsets]
        return completion_log_probs(self.model.text, ids, log_probs, offsets)


async def open_completions(
    request: CompletionRequest, models: ModelTable, most: int | None
) -> CompletionExchange:
    """Encode prompts and queue their answers.

    Raises:
        ApiError: a prompt can't be encoded or answered.
    """
    model, adapter = models.find(request.model)
    if request.stream_options is not None and not request.stream:
        raise unsupported("stream_options", "it needs stream=true")
    prompts = await asyncio.to_thread(_prompts, model, request.prompt)
    limits = [
        answer_limit(request.max_tokens, len(ids), model.runner.positions, most, "max_tokens")
        for ids in prompts
    ]
    parameters = replace(
        sampling_parameters(
            request, model, max_new_tokens=1, stop_ids=model.text.text_stops, adapter=adapter
        ),
        top_log_probs=request.logprobs,
        prompt_log_probs=request.echo and request.logprobs is not None,
    )
    # All answers to a prompt stand together, as in OpenAI's API.
    asked = [
        (ids, nth(replace(parameters, max_new_tokens=max(1, limit)), number), limit)
        for ids, limit in zip(prompts, limits, strict=True)
        for number in range(request.n)
    ]
    streams = await model.open_streams(
        [(ids, wanted) for ids, wanted, _ in asked], prompt_field="prompt"
    )
    usage = Usage(sum(map(len, prompts)))
    answers = [
        ChoiceReader(
            index,
            stream,
            model.text,
            ids,
            wanted.stop_ids,
            request.stop,
            frozenset(),
            usage,
            limit,
            counts_prompt=index % request.n == 0,
        )
        for index, (stream, (ids, wanted, limit)) in enumerate(zip(streams, asked, strict=True))
    ]
    shown = {}
    if request.echo:
        shown = {
            answer.index: _shown(model, request.prompt[answer.index // request.n])
            for answer in answers
        }
    return CompletionExchange(
        model, adapter, request.model, answers, usage, request.wants_usage,
        log_probs=request.logprobs is not None, prompts=shown,
    )  # fmt: skip


def _prompts(model: ServedModel, prompts: Sequence[str | list[int]]) -> list[list[int]]:
    try:
        return [model.text.prompt_ids(one) if isinstance(one, str) else one for one in prompts]
    except DataError as error:
        raise ApiError(400, str(error), param="prompt", code="invalid_value") from error


def _shown(model: ServedModel, prompt: str | list[int]) -> str:
    return prompt if isinstance(prompt, str) else model.text.decode(prompt)
