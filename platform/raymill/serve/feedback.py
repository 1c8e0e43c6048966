"""Votes and better answers from the chat page, stored as rankings so that using a model makes preference data.

They go to a ranking's folder, `<storage root>/rankings/<name>/`, as decisions of the ranking page do, and
`python jobs/rank.py name=<name> export_only=true` exports them. An edited answer is a ranking of one answer
below the person's own. Several processes of one machine may write to the same folder.

Authorization and the limit of a body's size are the server's: it mounts these routes behind its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from raymill.annotate.app import DAY_S, TEXT_CHARACTERS, Identifier
from raymill.annotate.database import Database
from raymill.annotate.decisions import (
    RefusalError,
    Submission,
    annotator_name,
    record,
    withdraw,
)
from raymill.annotate.items import (
    SampledAnswer,
    add_ready_item,
    make_item,
    messages_name,
)
from raymill.annotate.request_body import is_json
from raymill.data.messages.conversation import read_conversation
from raymill.data.messages.problems import Problem
from raymill.serve.errors import ApiError

MESSAGES = 4_096  # of one conversation

Text = Annotated[str, Field(max_length=TEXT_CHARACTERS)]
Name = Annotated[str, Field(min_length=1, max_length=512)]
# The values of sampling parameters, as they were sent with the request.
Setting = bool | int | float | str | list[str] | None


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


B = TypeVar("B", bound=_Body)


class ShownMessage(_Body):
    """A message that the model saw."""

    role: Literal["system", "user", "assistant"]
    content: Text


class ShownAnswer(_Body):
    """An answer as the page received it. `version`: the registry's name of what answered, in the response."""

    text: Text
    finish: Literal["stop", "length"]
    version: Name
    seed: Annotated[int, Field(ge=0, lt=2**63)]
    settings: Annotated[dict[str, Setting], Field(max_length=32)]


class Vote(_Body):
    """Judgment of the answers to one question; `answers` and `ranks` are in the order in which they were shown.

    `text`: a better answer by the person who judges.
    """

    id: Identifier
    annotator: Annotated[str, Field(max_length=256)]
    seconds: Annotated[float, Field(ge=0, le=DAY_S, allow_inf_nan=False)]
    messages: Annotated[list[ShownMessage], Field(min_length=1, max_length=MESSAGES)]
    answers: Annotated[list[ShownAnswer], Field(min_length=1, max_length=8)]
    decision: Literal["ranked", "bad"]
    ranks: list[int] | None = None
    text: Text | None = None


class Withdrawal(_Body):
    """Request to take back a vote."""

    id: Identifier
    annotator: Annotated[str, Field(max_length=256)]


@dataclass(frozen=True)
class Feedback:
    """Storage of votes. `digest_of` returns the digest of a version's weights, None if it is unknown."""

    database: Database
    digest_of: Callable[[str], str | None]

    def vote(self, vote: Vote) -> bool:
        """Record a vote; return False if it is recorded already.

        Raises:
            RefusalError: the conversation can't be trained on, a version is unknown, or the vote is invalid.
        """
        annotator = annotator_name(self.database, vote.annotator)
        messages = [message.model_dump() for message in vote.messages]
        answers = [self._sampled(answer) for answer in vote.answers]
        _check_answers(messages, answers, vote.text)
        # The order of display is part of the name, so that it is also the order of the stored answers.
        evidence = [answer.evidence for answer in answers]
        item = make_item("rank", messages_name(messages), messages, None, {"chat": evidence})
        add_ready_item(self.database, item, answers)
        submission = Submission(
            judgement_id=vote.id,
            item_id=item.item_id,
            annotator=annotator,
            kind="rank",
            decision=vote.decision,
            seconds=vote.seconds,
            ranks=None if vote.ranks is None else tuple(vote.ranks),
            text=vote.text,
            order=tuple(range(len(answers))),
        )
        return record(self.database, submission)

    def withdraw(self, withdrawal: Withdrawal) -> None:
        """Take a vote back.

        Raises:
            RefusalError: this person has made no such vote.
        """
        annotator = annotator_name(self.database, withdrawal.annotator)
        withdraw(self.database, annotator, withdrawal.id)

    def _sampled(self, answer: ShownAnswer) -> SampledAnswer:
        digest = self.digest_of(answer.version)
        # A judgment of unknown weights would be worth little, so nothing is made up here.
        if digest is None:
            raise RefusalError(
                f"This server doesn't know the weights of {answer.version}, for it serves other versions now; "
                "ask again and judge the new answers."
            )
        return SampledAnswer(
            answer.text, (), answer.finish, answer.version, digest, answer.seed, answer.settings
        )


def _check_answers(
    messages: Sequence[Mapping[str, object]], answers: Sequence[SampledAnswer], text: str | None
) -> None:
    """Refuse answers that no preparation of preferences would accept."""
    for answer in answers:
        whole = [*messages, {"role": "assistant", "content": answer.text}]
        conversation = read_conversation({"messages": whole}, "messages")
        if isinstance(conversation, Problem):
            raise RefusalError(f"These answers can't be trained on: {conversation.why}.")
    if len({answer.text.strip() for answer in answers}) < len(answers):
        raise RefusalError("The answers are equal, so none of them is better.")
    if len(answers) == 1 and text is None:
        raise RefusalError("A single answer needs a better one to be compared with.")


def feedback_routes(feedback: Feedback) -> list[Route]:
    """Build the routes `POST /feedback/vote` and `POST /feedback/withdraw`.

    Errors have the shape of OpenAI's: 400 for a body that isn't valid, 409 for a vote that is refused.
    """

    async def vote(request: Request) -> Response:
        body = await _read(request, Vote)
        if isinstance(body, Response):
            return body
        return await _answer(lambda: {"recorded": feedback.vote(body)})

    async def take_back(request: Request) -> Response:
        body = await _read(request, Withdrawal)
        if isinstance(body, Response):
            return body

        def work() -> dict[str, bool]:
            feedback.withdraw(body)
            return {"withdrawn": True}

        return await _answer(work)

    return [
        Route("/feedback/vote", vote, methods=["POST"]),
        Route("/feedback/withdraw", take_back, methods=["POST"]),
    ]


async def _read(request: Request, model: type[B]) -> B | Response:
    """Parse a body, or return the response that refuses it."""
    if not is_json(request.headers):
        return ApiError(415, "expected content-type application/json").response()
    try:
        return model.model_validate_json(await request.body())
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        message = f"{field}: {first['msg']}".removeprefix(": ")
        return ApiError(400, message, param=field or None).response()


async def _answer(work: Callable[[], dict[str, bool]]) -> Response:
    try:
        # SQLite flushes to the disk before it returns, and streams must not wait for that.
        return JSONResponse(await run_in_threadpool(work))
    except RefusalError as refusal:
        return ApiError(409, str(refusal)).response()
