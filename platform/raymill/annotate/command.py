"""`jobs/rank.py`: people rank a model's answers or write their own on a page, or a ranking rule does it.

Decisions are stored in `<storage root>/rankings/<name>/` and exported from there as datasets.
"""

from __future__ import annotations

import secrets
import sys
from pathlib import Path

from raymill.annotate.app import PAGE, Site, create_app
from raymill.annotate.candidates import BackgroundSampler, SamplingPlan, sample_answers
from raymill.annotate.database import DATABASE_NAME, Database
from raymill.annotate.export import export_conversations, export_preferences
from raymill.annotate.items import count_items, make_item, set_items, unusable_reasons
from raymill.annotate.listening import address, listen
from raymill.annotate.prompts import choose_prompts, prompt_name
from raymill.annotate.ranking_rules import RankingRule, rank_with_rule, resolve_rule
from raymill.annotate.sampler import ModelSampler
from raymill.config.serve_checks import LOCAL
from raymill.durable import exclusive_lock
from raymill.errors import ConfigError, DataError
from raymill.progress_line import ProgressLine
from raymill.reading import MISSING, is_file, is_folder, read_text, user_path
from raymill.redaction import job_command
from raymill.schema.jobs import RankJob
from raymill.storage.mirror import pull_newest, push_newest
from raymill.track.registry import resolve_model

# People wait for the first answers, so a page samples few items together; a rule waits for all of them.
PAGE_GROUP, RULE_GROUP = 4, 64
PLAIN_EVERY_S = 10.0
# Requests that are still open at shutdown get this time to finish.
GRACE_S = 5


def run(job: RankJob) -> int:
    """Serve the page until Ctrl-C, or rank by a rule; then export. Return the exit code.

    Raises:
        RaymillError: the prompts or a model can't be loaded, or the folder is in use or isn't a ranking's.
    """
    folder = job.storage.folder / "rankings" / job.name
    rule = None if job.judge is None else resolve_rule(job.judge, job.judge_noise, job.seed)
    instructions = _instructions(job)
    if job.export_only:
        if not is_folder(folder):
            pull_newest(job.storage, folder, DATABASE_NAME)
        return _export_only(folder)
    folder.mkdir(parents=True, exist_ok=True)
    refusal = (
        f"Another process is using {folder} right now; stop it first, or choose another name=."
    )
    with exclusive_lock(folder, refusal):
        pull_newest(job.storage, folder, DATABASE_NAME)
        # Decisions are uploaded even if the page ended with an error.
        try:
            with Database(folder / DATABASE_NAME) as database:
                _annotate(job, database, folder, rule, instructions)
        finally:
            push_newest(job.storage, folder, DATABASE_NAME)
    return 0


def _annotate(
    job: RankJob, database: Database, folder: Path, rule: RankingRule | None, instructions: str
) -> None:
    """Sample answers, collect decisions from people or from a rule, and export them."""
    plan = _sampling_plan(job)
    _set_items(job, database, plan)
    if rule is None:
        failure = _serve(job, database, plan, instructions)
        # A failed model must not cost the decisions that were already made.
        _export(database, folder)
        if failure is not None:
            raise failure
        return
    assert plan is not None, (
        "a ranking rule needs mode=rank, which the configuration's checks require"
    )
    with ProgressLine(PLAIN_EVERY_S, patient=True) as line:

        def show_progress() -> None:
            counts = count_items(database)
            line.show(f"answers to {counts.ready + counts.unusable:,} of {counts.all:,} prompts")

        sample_answers(database, plan, RULE_GROUP, on_group=show_progress)
    _print_sampled(database)
    decisions = rank_with_rule(database, rule)
    counted = ", ".join(f"{count:,} {decision}" for decision, count in sorted(decisions.items()))
    print(
        f"ranked     {counted or 'nothing'}, by the automatic rule {rule.name} standing in for human "
        "annotators"
    )
    _export(database, folder)


def _export_only(folder: Path) -> int:
    path = folder / DATABASE_NAME
    if not is_file(path):
        raise DataError(f"There are no judgments in {folder}; name= selects the ranking.")
    with Database(path) as database:
        if not _export(database, folder):
            raise DataError(f"{path} holds nothing to export yet: no decision has been made.")
    return 0


def _export(database: Database, folder: Path) -> bool:
    """Write every dataset that has rows and print its path. Return False if there is none."""
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
        (dataset, export(database, folder))
        for dataset, (export, query) in exports.items()
        if database.rows(query)
    ]
    for dataset, path in paths:
        print(f"{dataset}  {path}")
    if not paths:
        print("There is nothing to export yet: no decision has been made.")
    return bool(paths)


def _sampling_plan(job: RankJob) -> SamplingPlan | None:
    """Resolve the models that answer; None in write mode, where people do."""
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
    return SamplingPlan(samplers, job.answers, job.seed)


def _set_items(job: RankJob, database: Database, plan: SamplingPlan | None) -> None:
    """Choose the prompts and make them the database's active items."""
    chosen = choose_prompts(job.data, job.prompts, job.seed)
    sampling: dict[str, object] = {}
    if plan is not None:
        models = [sampler.identity for sampler in plan.samplers]
        sampling = {"models": models, "answers": plan.answers, "seed": plan.seed}
    items = [
        make_item(job.mode, prompt_name(prompt), prompt.messages, prompt.answer, sampling)
        for prompt in chosen.prompts
    ]
    set_items(database, job.mode, items)
    print(f"prompts    {chosen.describe()}")


def _print_sampled(database: Database) -> None:
    counts = count_items(database)
    print(f"answers    ready for {counts.ready:,} of {counts.all:,} prompts", flush=True)
    for reason, items in unusable_reasons(database):
        print(f"           {items:,} left out: {reason}", flush=True)


def _serve(
    job: RankJob, database: Database, plan: SamplingPlan | None, instructions: str
) -> BaseException | None:
    """Serve until Ctrl-C. Return the error that stopped the sampling, if there was one."""
    import uvicorn

    def on_end(error: BaseException | None) -> None:
        if error is None:
            _print_sampled(database)
        else:
            print(f"error: sampling answers failed: {error}", file=sys.stderr, flush=True)

    # The port is claimed before sampling starts, so that a wrong host= fails at once.
    listening = listen(job.host, job.port)
    sampling = None if plan is None else BackgroundSampler(database, plan, PAGE_GROUP, on_end)

    def failure() -> str | None:
        # The page doesn't show the error itself, which may name the model.
        failed = sampling is not None and sampling.failure is not None
        return (
            "sampling failed; the terminal that serves this page shows the error"
            if failed
            else None
        )

    # Each start has a new token: an address that was passed on stops working at the next restart.
    token = secrets.token_urlsafe(24)
    site = Site(database, job.mode, instructions, job.annotators_per_item, failure)
    settings = uvicorn.Config(
        create_app(site, token),
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=GRACE_S,
    )
    print(f"page       {address(listening, job.host)}/?token={token}")
    if job.host not in LOCAL:
        print("           the connection is not encrypted: put a TLS proxy in front of it")
    print(f"judgments  {database.path}")
    scratch = () if job.storage.uri is None else (f"storage.scratch={job.storage.folder}",)
    export_command = job_command(
        "rank", f"name={job.name}", f"storage.root={job.storage.root}", *scratch, "export_only=true"
    )
    print(f"stop       with Ctrl-C, which exports them (as does {export_command})", flush=True)
    try:
        uvicorn.Server(settings).run(sockets=[listening])
    except KeyboardInterrupt:
        print()
    finally:
        listening.close()
        if sampling is not None:
            sampling.stop()
    return None if sampling is None else sampling.failure


def _instructions(job: RankJob) -> str:
    path = PAGE / f"{job.mode}.md" if job.instructions is None else user_path(job.instructions)
    try:
        return read_text(path)
    except (*MISSING, UnicodeDecodeError) as error:
        raise ConfigError([f"instructions={path}: can't be read: {error}"]) from error
