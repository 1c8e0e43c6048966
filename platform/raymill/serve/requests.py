"""Requests as clients send them: OpenAI's fields, and a few of other servers' for sampling.

Fields that nothing reads are refused by name, apart from those that change no answer: they say who asks
(`user`, `metadata`, `safety_identifier`), or repeat what holds anyway (`store=false`). A field that is null
counts as left out.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, ValidationError
from pydantic_core import PydanticCustomError, from_json

from raymill.serve.errors import ApiError

MOST_ALTERNATIVES = 20
MOST_CHOICES = 128
MOST_STOPS = 16
_INTEGER_BITS = 63

T = TypeVar("T", bound=BaseModel)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


def _one_or_more(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _joined_parts(value: object) -> object:
    """Return the text of content that is a list of parts; other parts than text are refused."""
    if not isinstance(value, list):
        return value
    texts = []
    for part in value:
        if not isinstance(part, dict) or part.get("type") != "text":
            kind = part.get("type") if isinstance(part, dict) else part
            raise PydanticCustomError(
                "unsupported_content",
                "content of the type {kind} isn't supported",
                {"kind": repr(kind)},
            )
        if set(part) != {"type", "text"} or not isinstance(part["text"], str):
            raise PydanticCustomError(
                "unsupported_content",
                'a part of text has the form {{"type": "text", "text": "…"}}',
                {},
            )
        texts.append(part["text"])
    return "".join(texts)


def _prompts(value: object) -> list[str | list[int]]:
    """Return prompts as a list: a text, texts, tokens, or lists of tokens."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and value:
        if all(isinstance(one, str) for one in value):
            return value
        if _are_tokens(value):
            return [value]
        if all(isinstance(one, list) and one and _are_tokens(one) for one in value):
            return value
    raise PydanticCustomError(
        "prompt",
        "expected a text, a list of texts, a list of tokens, or a list of lists of tokens",
        {},
    )


def _are_tokens(value: list[Any]) -> bool:
    return all(type(one) is int and one >= 0 for one in value)


Content = Annotated[str | None, BeforeValidator(_joined_parts)]
Stops = Annotated[
    list[Annotated[str, Field(min_length=1)]],
    BeforeValidator(_one_or_more),
    Field(max_length=MOST_STOPS),
]
Choices = Annotated[int, Field(ge=1, le=MOST_CHOICES)]
Penalty = Annotated[float, Field(ge=-2, le=2)]


class StreamOptions(_Strict):
    """Options of a streamed response."""

    include_usage: bool = False


class SamplingRequest(_Strict):
    """Fields that both kinds of requests have."""

    model: str
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: Choices = 1
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=0)] = 0
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] = 1.0
    presence_penalty: Penalty = 0.0
    frequency_penalty: Penalty = 0.0
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] = {}
    seed: Annotated[int, Field(ge=-(2**_INTEGER_BITS), lt=2**_INTEGER_BITS)] | None = None
    stop: Stops = []
    # These change nothing.
    user: str | None = None
    metadata: dict[str, str] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    store: Literal[False] = False
    service_tier: Literal["auto", "default"] = "auto"

    @property
    def wants_usage(self) -> bool:
        """True if a stream ends with the usage."""
        return self.stream_options is not None and self.stream_options.include_usage


class CompletionRequest(SamplingRequest):
    """Body of `/v1/completions`."""

    prompt: Annotated[list[str | list[int]], PlainValidator(_prompts)]
    max_tokens: Annotated[int, Field(ge=0)] = 16
    echo: bool = False
    logprobs: Annotated[int, Field(ge=0, le=MOST_ALTERNATIVES)] | None = None


class CalledFunction(_Strict):
    """Function that the assistant called, with its arguments as JSON text."""

    name: str
    arguments: str


class EarlierCall(_Strict):
    """Call of a tool in an earlier turn of the assistant."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class ChatMessage(_Strict):
    """Message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content = None
    reasoning_content: str | None = None
    tool_calls: list[EarlierCall] | None = None
    tool_call_id: str | None = None
    name: str | None = None


class FunctionDefinition(_Strict):
    """Function that the assistant may call."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    # Nothing makes arguments follow their schema.
    strict: Literal[False] = False


class ToolDefinition(_Strict):
    """Tool that the assistant may call."""

    type: Literal["function"]
    function: FunctionDefinition


class JsonSchemaFormat(_Strict):
    """Schema of the answer; `strict` changes nothing, since every answer follows its schema."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: str | None = None
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    strict: bool | None = None


class ResponseFormat(_Strict):
    """Form that the answer must have."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None


class ChatRequest(SamplingRequest):
    """Body of `/v1/chat/completions`."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_ALTERNATIVES)] | None = None
    response_format: ResponseFormat | None = None
    guided_regex: str | None = None
    tools: Annotated[list[ToolDefinition], Field(min_length=1, max_length=128)] | None = None
    # Nothing makes a model call a tool, or only one.
    tool_choice: Literal["none", "auto"] = "auto"
    parallel_tool_calls: Literal[True] = True
    modalities: Annotated[list[Literal["text"]], Field(min_length=1, max_length=1)] | None = None


class TokenizeRequest(_Strict):
    """Body of `/tokenize`: a text as it begins a completion, or a conversation as it is answered."""

    model: str
    prompt: str | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1)] | None = None


class DetokenizeRequest(_Strict):
    """Body of `/detokenize`."""

    model: str
    tokens: list[Annotated[int, Field(ge=0)]]


def parse(kind: type[T], body: bytes) -> T:
    """Return a request's body as its model.

    Raises:
        ApiError: it isn't JSON, or doesn't have this form; the field at fault is named.
    """
    try:
        tree = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise ApiError(400, f"the body isn't JSON: {error}", code="invalid_json") from error
    if not isinstance(tree, dict):
        raise ApiError(400, "the body isn't a JSON object", code="invalid_json")
    try:
        return kind.model_validate(_without_nulls(tree))
    except ValidationError as error:
        raise _refusal(error) from error


def _without_nulls(value: dict[str, Any]) -> dict[str, Any]:
    """Leave out the fields that are null, in messages too."""
    kept = {key: item for key, item in value.items() if item is not None}
    if isinstance(kept.get("messages"), list):
        kept["messages"] = [
            {key: item for key, item in one.items() if item is not None}
            if isinstance(one, dict)
            else one
            for one in kept["messages"]
        ]
    return kept


def _refusal(error: ValidationError) -> ApiError:
    details = error.errors(include_url=False, include_context=False, include_input=False)
    # Of a union, every member reports a problem, one level below the field.
    unknown = [detail for detail in details if detail["type"] == "extra_forbidden"]
    first = (unknown or details)[0]
    path = [str(part) for part in first["loc"]]
    param = ".".join(path)
    if first["type"] == "unsupported_content":
        return ApiError(400, f"{param}: {first['msg']}", param=param, code="unsupported_parameter")
    if first["type"] == "extra_forbidden":
        return ApiError(
            400, f"'{param}' isn't supported", param=param, code="unsupported_parameter"
        )
    if first["type"] == "missing":
        return ApiError(
            400, f"'{param}' is missing", param=param, code="missing_required_parameter"
        )
    return ApiError(400, f"{param}: {first['msg']}", param=param, code="invalid_value")
