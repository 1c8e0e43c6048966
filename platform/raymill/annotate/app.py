"""HTTP API of the page. Annotation is blind: no response names a model or another annotator.

Requests and responses are small JSON. Every request that changes something returns the annotator's next task.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal, TypedDict, Unpack

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.requests import Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.types import ASGIApp

from raymill.annotate.access import AuthMiddleware
from raymill.annotate.database import Database
from raymill.annotate.decisions import RefusalError, Submission, annotator_name, record, undo
from raymill.annotate.items import Mode, count_items
from raymill.annotate.tasks import LEASE_S, Task, keep_lease, next_task, progress

PAGE = Path(__file__).parent / "page"
TEXT_CHARACTERS = 100_000
# No decision takes longer than a day; more seconds than that are an error of the page.
DAY_S = 86_400.0
MEDIA_TYPES = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}

# Identifiers come from the browser and become keys of the database.
Identifier = Annotated[str, Field(pattern=r"^[A-Za-z0-9-]{8,64}$")]
Text = Annotated[str, Field(max_length=TEXT_CHARACTERS)]


@dataclass(frozen=True)
class Site:
    """Everything a page is served from. `failure` returns an explanation once sampling has failed."""

    database: Database
    mode: Mode
    instructions: str
    target: int  # judgments per item
    failure: Callable[[], str | None] = lambda: None
    lease_s: float = LEASE_S


# Requests with unknown keys or other types come from an outdated page or from somebody else's script.
class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    annotator: Annotated[str, Field(max_length=256)]


class _Decision(_Request):
    id: Identifier
    item: Identifier
    seconds: Annotated[float, Field(ge=0, le=DAY_S, allow_inf_nan=False)]


class _Rank(_Decision):
    decision: Literal["ranked", "bad", "skip"]
    ranks: Annotated[list[int], Field(max_length=64)] | None = None
    text: Text | None = None


class _Write(_Decision):
    decision: Literal["write", "skip"]
    text: Text | None = None


class _Review(_Decision):
    decision: Literal["accept", "edit", "reject", "skip"]
    about: Annotated[int, Field(ge=1, le=2**53)]
    text: Text | None = None
    reason: Text | None = None


class _Undo(_Request):
    id: Identifier


def create_app(site: Site, token: str) -> ASGIApp:
    """Build the application, protected by the token."""
    # FastAPI's own documentation pages load scripts from another host.
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    _serve_page(app)
    _serve_tasks(app, site)

    @app.exception_handler(RefusalError)
    async def _(_request: Request, refusal: RefusalError) -> Response:
        return JSONResponse({"error": str(refusal)}, 409)

    @app.exception_handler(RequestValidationError)
    async def _(_request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"] if part != "body")
        return JSONResponse({"error": f"{field}: {first['msg']}".removeprefix(": ")}, 422)

    return AuthMiddleware(app, token)


def _serve_page(app: FastAPI) -> None:
    """Route exactly the files of the page, each by its name."""
    # The files are read once, so no request can reach any other path.
    for path in sorted(PAGE.iterdir()):
        if path.suffix in MEDIA_TYPES:
            address = "/" if path.name == "index.html" else f"/{path.name}"
            app.get(address)(_static(path.read_bytes(), MEDIA_TYPES[path.suffix]))


def _static(content: bytes, media_type: str) -> Callable[[], Response]:
    def respond() -> Response:
        return Response(content, media_type=media_type)

    return respond


def _serve_tasks(app: FastAPI, site: Site) -> None:
    database = site.database

    @app.get("/api/about")
    def about() -> dict[str, object]:
        return {"mode": site.mode, "instructions": site.instructions}

    @app.post("/api/next")
    def next_state(request: _Request) -> dict[str, object]:
        return _state(site, annotator_name(database, request.annotator))

    @app.post("/api/keep")
    def keep(request: _Request) -> dict[str, object]:
        keep_lease(database, annotator_name(database, request.annotator), site.lease_s)
        return {}

    @app.post("/api/rank")
    def rank(request: _Rank) -> dict[str, object]:
        ranks = None if request.ranks is None else tuple(request.ranks)
        return _record(site, request, "rank", ranks=ranks, text=request.text)

    @app.post("/api/write")
    def write(request: _Write) -> dict[str, object]:
        return _record(site, request, "write", text=request.text)

    @app.post("/api/review")
    def review(request: _Review) -> dict[str, object]:
        return _record(
            site, request, "review", about=request.about, text=request.text, reason=request.reason
        )

    @app.post("/api/undo")
    def undo_last(request: _Undo) -> dict[str, object]:
        annotator = annotator_name(database, request.annotator)
        undo(database, annotator, request.id, site.lease_s)
        return _state(site, annotator)


class _Details(TypedDict, total=False):
    ranks: tuple[int, ...] | None
    text: str | None
    reason: str | None
    about: int


def _record(
    site: Site,
    request: _Rank | _Write | _Review,
    kind: Literal["rank", "write", "review"],
    **details: Unpack[_Details],
) -> dict[str, object]:
    annotator = annotator_name(site.database, request.annotator)
    submission = Submission(
        judgement_id=request.id,
        item_id=request.item,
        annotator=annotator,
        kind=kind,
        decision=request.decision,
        seconds=request.seconds,
        **details,
    )
    record(site.database, submission)
    return _state(site, annotator)


def _state(site: Site, annotator: str) -> dict[str, object]:
    """Return the annotator's next task, or the reason for having none, and the progress of all."""
    task = next_task(site.database, site.mode, annotator, site.target, site.lease_s)
    why = None
    state: str
    if isinstance(task, Task):
        state = "task"
    else:
        why = site.failure() if task == "preparing" else None
        state = "failed" if why else task
    counts = count_items(site.database)
    # Without this check the page would thank for work that nobody could do.
    if state == "done" and counts.all and not counts.ready:
        state, why = "failed", "no question has answers that differ, so there is nothing to compare"
    done = progress(site.database, site.mode, annotator, site.target)
    return {
        "annotator": annotator,
        "state": state,
        "why": why,
        "task": _task_json(task) if isinstance(task, Task) else None,
        "progress": asdict(done),
    }


def _task_json(task: Task) -> dict[str, object]:
    """Convert a task for the browser, without anything that identifies a model."""
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
