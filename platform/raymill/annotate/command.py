"""`jobs/rank.py`: people compare a model's answers on a page, or write answers; or a rule stands in for them.

What they decide lies in `<storage root>/rankings/<name>/`, as data sets once it is exported.
"""

from __future__ import annotations

import secrets
import socket
import sys
from pathlib import Path

from raymill.annotate.app import PAGE, Site, create_app
from raymill.annotate.candidates import Drawing, Preparation, prepare
from raymill.annotate.database import DATABASE_NAME, Database
from raymill.annotate.export import export_conversations, export_preferences
from raymill.annotate.items import count_items, item_of, set_items, unusable_reasons
from raymill.annotate.judges import Judge, judge_all, judge_named
from raymill.annotate.prompts import choose_prompts, prompt_name
from raymill.annotate.sampler import ModelSampler
from raymill.durable import exclusive_lock
from raymill.errors import ConfigError, DataError
from raymill.progress_line import ProgressLine
from raymill.reading import MISSING, is_file, is_folder, read_text, user_path
from raymill.redaction import job_command
from raymill.schema.jobs import RankJob
from raymill.storage.mirror import pull_newest, push_newest
from raymill.track.registry import resolve_model

FIRST_GROUP = 4  # items prepared at once for people who wait
JUDGED_GROUP = 64
PLAIN_EVERY_S = 10.0
GRACE_S = 5  # for requests under way when the page ends
LOCAL = ("127.0.0.1", "localhost", "::1")


def run(job: RankJob) -> int:
    """Serve the page until Ctrl-C, or let a synthetic judge decide; then export. Returns the exit code.

    Raises:
        RaymillError: the prompts or a model can't be had, the folder is in use or isn't one of ours.
    """
    folder = job.storage.folder / "rankings" / job.name
    judge = None if job.judge is None else judge_named(job.judge, job.judge_noise, job.seed)
    instructions = _instructions(job)
    if job.export_only:
        if not is_folder(folder):
            pull_newest(job.storage, folder, DATABASE_NAME)
        return _export_only(folder)
    folder.mkdir(parents=True, exist_ok=True)
    refusal = (
        f"Another process asks for judgements in {folder} right now; end it first, or choose another "
        "name=."
    )
    with exclusive_lock(folder, refusal):
        pull_newest(job.storage, folder, DATABASE_NAME)
        try:
            with Database(folder / DATABASE_NAME) as database:
                _judge(job, database, folder, judge, instructions)
        finally:
            push_newest(job.storage, folder, DATABASE_NAME)
    return 0


def _judge(
    job: RankJob, database: Database, folder: Path, judge: Judge | None, instructions: str
) -> None:
    """Have answers, have them judged, and export what was decided."""
    drawing = _drawing(job)
    _ask(job, database, drawing)
    if judge is None:
        failure = _serve(job, database, drawing, instructions)
        _export(database, folder)
        if failure is not None:
            raise failure
        return
    _prepare_all(database, drawing)
    decided = judge_all(database, judge)
    listed = ", ".join(f"{count:,} {what}" for what, count in sorted(decided.items()))
    print(f"judged by the rule {judge.name}, not by people: {listed or 'nothing'}")
    _export(database, folder)


def _export_only(folder: Path) -> int:
    path = folder / DATABASE_NAME
    if not is_file(path):
        raise DataError(f"There are no judgements in {folder}; name= says which ranking is meant.")
    with Database(path) as database:
        if not _export(database, folder):
            raise DataError(f"{path} holds nothing to export yet: nobody has decided anything.")
    return 0


def _export(database: Database, folder: Path) -> bool:
    """Write what there is, and say where; False if there is nothing."""
    exports = {
        "preferences": (
            export_preferences,
            "SELECT 1 FROM ranked WHERE ranks IS NOT NULL OR text IS NOT NULL LIMIT 1",
        ),
        "conversations": (
            export_conversations,
            "SELECT 1 FROM verdicts WHERE decision IN ('accept', 'edit') LIMIT 1",
        ),
    }
    paths = [
        (what, export(database, folder))
        for what, (export, query) in exports.items()
        if database.rows(query)
    ]
    for what, path in paths:
        print(f"{what}  {path}")
    if not paths:
        print("nothing has been decided yet, so there is nothing to export")
    return bool(paths)


def _drawing(job: RankJob) -> Drawing | None:
    """Who answers; None where people do."""
    if job.mode == "write":
        return None
    root = job.storage.folder
    samplers = [
        ModelSampler(
            resolve_model(reference, job.tracking, root),
            temperature=job.temperature,
            top_p=job.top_p,
            max_new_tokens=job.max_new_tokens,
        )
        for reference in job.model
    ]
    return Drawing(samplers, job.answers, job.seed)


def _ask(job: RankJob, database: Database, drawing: Drawing | None) -> None:
    """Set what is asked."""
    chosen = choose_prompts(job.data, job.prompts, job.seed)
    drawn = {}
    if drawing is not None:
        models = [sampler.identity for sampler in drawing.samplers]
        drawn = {"models": models, "answers": drawing.answers, "seed": drawing.seed}
    items = [
        item_of(job.mode, prompt_name(prompt), prompt.messages, prompt.answer, drawn)
        for prompt in chosen.prompts
    ]
    set_items(database, job.mode, items)
    print(f"asked      {chosen.describe()}")


def _prepare_all(database: Database, drawing: Drawing | None) -> None:
    assert drawing is not None  # a judge ranks: the configuration's checks see to it
    with ProgressLine(PLAIN_EVERY_S, patient=True) as line:

        def note() -> None:
            counts = count_items(database)
            line.show(f"answers to {counts.ready + counts.unusable:,} of {counts.all:,} prompts")

        prepare(database, drawing, JUDGED_GROUP, note=note)
    _say_prepared(database)


def _say_prepared(database: Database) -> None:
    counts = count_items(database)
    print(f"answers    ready to {counts.ready:,} of {counts.all:,} prompts", flush=True)
    for why, items in unusable_reasons(database):
        print(f"           {items:,} left out: {why}", flush=True)


def _serve(
    job: RankJob, database: Database, drawing: Drawing | None, instructions: str
) -> BaseException | None:
    """Serve until Ctrl-C; returns what kept answers from being made, if anything did."""
    import uvicorn

    def ended(error: BaseException | None) -> None:
        if error is None:
            _say_prepared(database)
        else:
            print(f"error: answers can't be made: {error}", file=sys.stderr, flush=True)

    bound = _bound(job.host, job.port)
    preparation = None
    if drawing is not None:
        preparation = Preparation(database, drawing, FIRST_GROUP, ended)

    def failure() -> str | None:
        # Not why: it may name the model.
        failed = preparation is not None and preparation.failure is not None
        return "whoever started this page sees why in its terminal" if failed else None

    token = secrets.token_urlsafe(24)
    site = Site(database, job.mode, instructions, job.annotators_per_item, failure)
    settings = uvicorn.Config(
        create_app(site, token),
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=GRACE_S,
    )
    print(f"page       {_address(bound, job.host)}/?token={token}")
    if job.host not in LOCAL:
        print("           anyone on the way can read along: put a TLS proxy in front of it")
    print(f"judgements {database.path}")
    scratch = () if job.storage.uri is None else (f"storage.scratch={job.storage.folder}",)
    again = job_command(
        "rank", f"name={job.name}", f"storage.root={job.storage.root}", *scratch, "export_only=true"
    )
    print(f"stop       Ctrl-C, which exports them (so does {again})", flush=True)
    try:
        uvicorn.Server(settings).run(sockets=[bound])
    except KeyboardInterrupt:
        print()
    finally:
        bound.close()
        if preparation is not None:
            preparation.stop()
    return None if preparation is None else preparation.failure


def _bound(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise ConfigError(
            [f"host={host} port={port}: can't be listened at ({error.strerror or error})"]
        ) from error


def _address(bound: socket.socket, host: str) -> str:
    name = socket.gethostname() if host in ("0.0.0.0", "::") else host
    name = f"[{name}]" if ":" in name else name
    return f"http://{name}:{bound.getsockname()[1]}"


def _instructions(job: RankJob) -> str:
    path = PAGE / f"{job.mode}.md" if job.instructions is None else user_path(job.instructions)
    try:
        return read_text(path)
    except (*MISSING, UnicodeDecodeError) as error:
        raise ConfigError([f"instructions={path}: can't be read: {error}"]) from error
