"""`/v1/chat/completions`: answers to conversations."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from raymill.errors import DataError
from raymill.generate.answer_form import AnswerForm, AnswerPiece, AnswerReader
from raymill.generate.constraint import ConstraintFactory
from raymill.generate.engine.request import RequestError, TokenConstraint
from raymill.generate.tools import ToolCall
from raymill.serve.answers import ChoiceReader, Piece, Usage
from raymill.serve.errors import ApiError, unsupported
from raymill.serve.exchange import Exchange, Json
from raymill.serve.log_probs import chat_log_probs
from raymill.serve.model_text import ModelText
from raymill.serve.requests import ChatMessage, ChatRequest, ToolDefinition
from raymill.serve.sampling import answer_limit, nth, sampling_parameters
from raymill.serve.served_model import ModelTable, ServedModel


@dataclass
class ChatExchange(Exchange):
    """Answers to a conversation. `log_probs`: they are returned with the likeliest tokens."""

    log_probs: bool = False
    with_tools: bool = False
    kind: str = "chat.completion"
    chunk_kind: str = "chat.completion.chunk"
    prefix: str = "chatcmpl"

    def __post_init__(self) -> None:
        super().__post_init__()
        form = self.model.text.form
        assert form is not None, "only models with a chat template get here"
        self._parsers = [AnswerReader(form, with_tools=self.with_tools) for _ in self.answers]
        self._calls = [0] * len(self.answers)

    def choices(self, answer: ChoiceReader, piece: Piece) -> list[Json]:
        """See `Exchange`."""
        index = answer.index
        part = self._parsed(index, piece)
        delta: Json = {}
        if answer.pieces == 1:
            delta["role"] = "assistant"
        if part.thought:
            delta["reasoning_content"] = part.thought
        # Clients expect content in the first event.
        if part.content or (answer.pieces == 1 and not part.thought):
            delta["content"] = part.content
        if part.calls:
            first = self._calls[index]
            delta["tool_calls"] = [
                {"index": first + place, **_call(call)} for place, call in enumerate(part.calls)
            ]
            self._calls[index] += len(part.calls)
        if not delta and not piece.tokens and piece.finish is None:
            return []
        return [
            {
                "index": index,
                "delta": delta,
                "logprobs": self._log_probs([piece]),
                "finish_reason": self._finish(piece, self._calls[index]),
            }
        ]

    def whole(self, answer: ChoiceReader, pieces: Sequence[Piece]) -> Json:
        """See `Exchange`."""
        parts = [self._parsed(answer.index, piece) for piece in pieces]
        calls = [call for part in parts for call in part.calls]
        content = "".join(part.content for part in parts)
        message: Json = {
            "role": "assistant",
            "content": None if calls and not content else content,
            "refusal": None,
        }
        if thought := "".join(part.thought for part in parts):
            message["reasoning_content"] = thought
        if calls:
            message["tool_calls"] = [_call(call) for call in calls]
        return {
            "index": answer.index,
            "message": message,
            "logprobs": self._log_probs(pieces),
            "finish_reason": self._finish(pieces[-1], len(calls)),
        }

    def _parsed(self, index: int, piece: Piece) -> AnswerPiece:
        """Return the parts of a piece; the last one has what was held back."""
        part = self._parsers[index].push(piece.text)
        if piece.finish is None:
            return part
        last = self._parsers[index].finish()
        return AnswerPiece(
            part.thought + last.thought, part.content + last.content, part.calls + last.calls
        )

    def _finish(self, piece: Piece, calls: int) -> str | None:
        return "tool_calls" if calls and piece.finish == "stop" else piece.finish

    def _log_probs(self, pieces: Sequence[Piece]) -> Json | None:
        if not self.log_probs:
            return None
        tokens = [token for piece in pieces for token in piece.tokens]
        return {"content": chat_log_probs(self.model.text, tokens), "refusal": None}


async def open_chat(request: ChatRequest, models: ModelTable, most: int | None) -> ChatExchange:
    """Encode a conversation and queue its answers.

    Raises:
        ApiError: the conversation can't be encoded or answered.
    """
    model, adapter = models.find(request.model)
    _check(request)
    tools = None if request.tool_choice == "none" else request.tools
    prompt = await asyncio.to_thread(chat_prompt, model, request.messages, tools)
    form = model.text.form
    assert form is not None, "a prompt was encoded by the chat template"
    field = "max_tokens" if request.max_completion_tokens is None else "max_completion_tokens"
    most_asked = request.max_completion_tokens or request.max_tokens
    limit = answer_limit(most_asked, len(prompt), model.runner.positions, most, field)
    parameters = sampling_parameters(
        request, model, max_new_tokens=limit, stop_ids=model.text.chat_stops, adapter=adapter
    )
    if request.logprobs:
        parameters = replace(parameters, top_log_probs=request.top_logprobs or 0)
    constraints = await asyncio.to_thread(_constraints, request, model.text)
    asked = [
        (prompt, replace(nth(parameters, number), constraint=constraint))
        for number, constraint in enumerate(constraints)
    ]
    streams = await model.open_streams(asked, prompt_field="messages")
    usage = Usage(len(prompt))
    answers = [
        ChoiceReader(
            index,
            stream,
            model.text,
            prompt,
            parameters.stop_ids,
            request.stop,
            form.shown(with_tools=tools is not None),
            usage,
            limit,
            counts_prompt=index == 0,
        )
        for index, stream in enumerate(streams)
    ]
    return ChatExchange(
        model, adapter, request.model, answers, usage, request.wants_usage,
        log_probs=request.logprobs, with_tools=tools is not None,
    )  # fmt: skip


def chat_prompt(
    model: ServedModel, messages: Sequence[ChatMessage], tools: Sequence[ToolDefinition] | None
) -> list[int]:
    """Return the tokens of a conversation up to the assistant's answer.

    Raises:
        ApiError: the model has no chat template, or it refuses these messages.
    """
    form = model.text.form
    written = [_template_message(message, number, form) for number, message in enumerate(messages)]
    given = None
    if tools is not None:
        if form is not None and form.tools is None:
            raise unsupported(
                "tools", "the model's chat template knows none, or calls of a form unknown here"
            )
        given = [
            tool.model_dump(exclude_none=True, exclude={"function": {"strict"}}) for tool in tools
        ]
    try:
        return model.text.chat_ids(written, given)
    except DataError as error:
        raise ApiError(400, str(error), param="messages", code="invalid_value") from error


def _constraints(request: ChatRequest, text: ModelText) -> Sequence[TokenConstraint | None]:
    """Return the grammar of each answer, which holds the answer's state.

    Raises:
        ApiError: a schema or an expression can't be enforced.
    """
    wanted = request.response_format
    kind = "text" if wanted is None else wanted.type
    if request.guided_regex is None and kind == "text":
        return [None] * request.n
    field = "response_format" if request.guided_regex is None else "guided_regex"
    if request.guided_regex is not None and kind != "text":
        raise unsupported("guided_regex", "response_format says already what is written")
    if request.tools is not None:
        raise unsupported(field, "together with tools")
    if text.form is not None and text.form.thoughts is not None and text.form.thoughts.opened:
        raise unsupported(field, "the model's answers begin with a thought")
    try:
        build = _grammar(request, text.constraints)
        return [build() for _ in range(request.n)]
    except RequestError as error:
        raise ApiError(400, str(error), param=field, code="invalid_value") from error


def _grammar(request: ChatRequest, factory: ConstraintFactory) -> Callable[[], TokenConstraint]:
    wanted = request.response_format
    if request.guided_regex is not None:
        return partial(factory.regex, request.guided_regex)
    if wanted is not None and wanted.json_schema is not None:
        return partial(factory.json_schema, wanted.json_schema.schema_)
    return factory.json_object


def _check(request: ChatRequest) -> None:
    """Refuse fields that contradict each other, or that need others."""
    if request.stream_options is not None and not request.stream:
        raise unsupported("stream_options", "it needs stream=true")
    if request.top_logprobs is not None and not request.logprobs:
        raise unsupported("top_logprobs", "it needs logprobs=true")
    wanted = request.response_format
    if wanted is not None and (wanted.type == "json_schema") != (wanted.json_schema is not None):
        raise ApiError(
            400,
            "response_format.json_schema belongs to the type json_schema, which needs it",
            param="response_format.json_schema",
            code="invalid_value",
        )
    if request.tools is None:
        for field in ("tool_choice", "parallel_tool_calls"):
            if field in request.model_fields_set:
                raise unsupported(field, "it needs tools")
    if request.max_tokens is not None and request.max_completion_tokens not in (
        None,
        request.max_tokens,
    ):
        raise ApiError(
            400,
            "max_tokens and max_completion_tokens are the same limit; give one of them",
            param="max_tokens",
            code="invalid_value",
        )


def _template_message(message: ChatMessage, number: int, form: AnswerForm | None) -> dict[str, Any]:
    """Return a message as chat templates read it; what this model's would leave out is refused."""
    where = f"messages.{number}"
    role = "system" if message.role == "developer" else message.role
    if message.content is None and not message.tool_calls:
        raise ApiError(
            400, f"'{where}.content' is missing", param=f"{where}.content",
            code="missing_required_parameter",
        )  # fmt: skip
    written: dict[str, Any] = {"role": role, "content": message.content or ""}
    own = {
        "reasoning_content": message.reasoning_content,
        "tool_calls": message.tool_calls,
        "tool_call_id": message.tool_call_id,
        "name": message.name,
    }
    allowed = {"assistant": ("reasoning_content", "tool_calls"), "tool": ("tool_call_id", "name")}
    if form is not None and form.tools is None and (role == "tool" or message.tool_calls):
        raise unsupported(where, "the model's chat template knows no tools")
    if form is not None and form.thoughts is None and message.reasoning_content:
        raise unsupported(
            f"{where}.reasoning_content", "the model's chat template knows no thoughts"
        )
    for key, value in own.items():
        if value is None:
            continue
        if key not in allowed.get(role, ()):
            raise unsupported(f"{where}.{key}", f"a message of the role {message.role} has none")
        written[key] = value
    if message.tool_calls:
        written["tool_calls"] = [
            _called(call.model_dump(), f"{where}.tool_calls.{index}")
            for index, call in enumerate(message.tool_calls)
        ]
    return written


def _call(call: ToolCall) -> Json:
    return {
        "id": f"call_{uuid.uuid4().hex[:24]}",
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments},
    }


def _called(call: dict[str, Any], where: str) -> Mapping[str, object]:
    """Return a call with its arguments as an object, which templates expect."""
    try:
        arguments = json.loads(call["function"]["arguments"] or "{}")
    except ValueError as error:
        raise ApiError(
            400,
            f"{where}.function.arguments isn't JSON: {error}",
            param=f"{where}.function.arguments",
            code="invalid_value",
        ) from error
    return {**call, "function": {**call["function"], "arguments": arguments}}
