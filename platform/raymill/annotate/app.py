"""What the page asks and is told. Blind: which model wrote what, and who judged before, never leaves here.

Everything is small JSON; every call that changes something answers with what this person is to do next.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.requests import Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.types import ASGIApp

from raymill.annotate.access import AuthMiddleware
from raymill.annotate.database import Database
from raymill.annotate.items import Mode, count_items
from raymill.annotate.judgements import RefusalError, Submission, annotator_name, record, undo
from raymill.annotate.tasks import LEASE_S, Task, keep_lease, next_task, progress

PAGE = Path(__file__).parent / "page"
TEXT_CHARACTERS = 100_000
DAY_S = 86_400.0
_KINDS = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}

Identifier = Annotated[str, Field(pattern=r"^[A-Za-z0-9-]{8,64}$")]
Text = Annotated[str, Field(max_length=TEXT_CHARACTERS)]


@dataclass(frozen=True)
class Site:
    """What a page is about. `failure`: what keeps answers from being made, if anything does."""

    database: Database
    mode: Mode
    instructions: str
    target: int  # judgements an item gets
    failure: Callable[[], str | None] = lambda: None
    lease_s: float = LEASE_S


class _Posted(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    annotator: Annotated[str, Field(max_length=256)]


class _Decided(_Posted):
    id: Identifier
    item: Identifier
    seconds: Annotated[float, Field(ge=0, le=DAY_S, allow_inf_nan=False)]


class _Rank(_Decided):
    decision: Literal["ranked", "bad", "skip"]
    ranks: Annotated[list[int], Field(max_length=64)] | None = None
    text: Text | None = None


class _Write(_Decided):
    decision: Literal["write", "skip"]
    text: Text | None = None


class _Review(_Decided):
    decision: Literal["accept", "edit", "reject", "skip"]
    about: Annotated[int, Field(ge=1, le=2**53)]
    text: Text | None = None
    reason: Text | None = None


class _Undo(_Posted):
    id: Identifier


def create_app(site: Site, token: str) -> ASGIApp:
    """The application behind its door."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    _serve_page(app)
    _serve_tasks(app, site)

    @app.exception_handler(RefusalError)
    async def _(request: Request, refusal: RefusalError) -> Response:
        return JSONResponse({"error": str(refusal)}, 409)

    @app.exception_handler(RequestValidationError)
    async def _(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"] if part != "body")
        return JSONResponse({"error": f"{place}: {first['msg']}".removeprefix(": ")}, 422)

    return AuthMiddleware(app, token)


def _serve_page(app: FastAPI) -> None:
    """The page's own files, by their names alone, and no others."""
    for path in sorted(PAGE.iterdir()):
        if path.suffix in _KINDS:
            address = "/" if path.name == "index.html" else f"/{path.name}"
            app.get(address)(_file(path.read_bytes(), _KINDS[path.suffix]))


def _file(content: bytes, kind: str) -> Callable[[], Response]:
    def file() -> Response:
        return Response(content, media_type=kind)

    return file


def _serve_tasks(app: FastAPI, site: Site) -> None:
    database = site.database

    @app.get("/api/about")
    def about() -> dict[str, Any]:
        return {"mode": site.mode, "instructions": site.instructions}

    @app.post("/api/next")
    def following(posted: _Posted) -> dict[str, Any]:
        return _situation(site, annotator_name(database, posted.annotator))

    @app.post("/api/keep")
    def keep(posted: _Posted) -> dict[str, Any]:
        keep_lease(database, annotator_name(database, posted.annotator), site.lease_s)
        return {}

    @app.post("/api/rank")
    def rank(posted: _Rank) -> dict[str, Any]:
        ranks = None if posted.ranks is None else tuple(posted.ranks)
        return _record(site, posted, "rank", ranks=ranks, text=posted.text)

    @app.post("/api/write")
    def write(posted: _Write) -> dict[str, Any]:
        return _record(site, posted, "write", text=posted.text)

    @app.post("/api/review")
    def review(posted: _Review) -> dict[str, Any]:
        given = {"about": posted.about, "text": posted.text, "reason": posted.reason}
        return _record(site, posted, "review", **given)

    @app.post("/api/undo")
    def take_back(posted: _Undo) -> dict[str, Any]:
        annotator = annotator_name(database, posted.annotator)
        undo(database, annotator, posted.id, site.lease_s)
        return _situation(site, annotator)


def _record(
    site: Site,
    posted: _Rank | _Write | _Review,
    kind: Literal["rank", "write", "review"],
    **given: Any,
) -> dict[str, Any]:
    annotator = annotator_name(site.database, posted.annotator)
    submission = Submission(
        judgement_id=posted.id,
        item_id=posted.item,
        annotator=annotator,
        kind=kind,
        decision=posted.decision,
        seconds=posted.seconds,
        **given,
    )
    record(site.database, submission)
    return _situation(site, annotator)


def _situation(site: Site, annotator: str) -> dict[str, Any]:
    """What this person is to do now, and how far all are."""
    found = next_task(site.database, site.mode, annotator, site.target, site.lease_s)
    if isinstance(found, Task):
        state, task, why = "task", _shown(found), None
    else:
        failure = site.failure() if found == "preparing" else None
        state, task, why = ("failed" if failure else found), None, failure
    counts = count_items(site.database)
    if state == "done" and counts.all and not counts.ready:
        state, why = "failed", "no question has answers that differ, so there is nothing to compare"
    done = progress(site.database, site.mode, annotator, site.target)
    return {
        "annotator": annotator,
        "state": state,
        "why": why,
        "task": task,
        "progress": asdict(done),
    }


def _shown(task: Task) -> Mapping[str, Any]:
    """A task as the browser gets it: text alone."""
    return {
        "kind": task.kind,
        "item": task.item.item_id,
        "messages": [
            {"role": message["role"], "content": message["content"]}
            for message in task.item.messages
        ],
        "answers": [
            {"text": answer.text, "cut": answer.finish == "length"} for answer in task.answers
        ],
        "about": task.about,
        "text": task.text,
        "returned": task.returned,
        "before": task.before,
    }
