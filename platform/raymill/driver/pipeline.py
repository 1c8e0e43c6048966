"""`jobs/pipeline.py`: each stage exactly as its own job would run it, in one Ray session."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from raymill.annotate import command as serve
from raymill.cluster.session import NO_ACTORS, connect, warm_up
from raymill.config.entry import EXIT_PREEMPTED
from raymill.data.text import prepare
from raymill.driver import pretraining as pretrain
from raymill.driver import tuning
from raymill.driver.failure import RunState
from raymill.driver.finish import SUMMARY_NAME, preempted
from raymill.driver.interrupt import end_preempted, on_termination, terminated
from raymill.driver.rewards import actors_of
from raymill.reading import is_file, read_json
from raymill.schema.jobs import (
    GenerateJob,
    ParentJob,
    PipelineJob,
    TrainJob,
)
from raymill.track.state_log import read_history

P = TypeVar("P", bound=ParentJob)

# What a stage's parent is by default: what the stage before registered.
_DEFAULT_PARENTS = {"pretrained": "pretrain", "sft": "sft", "reward": "reward"}


def run(job: PipelineJob) -> int:
    """Run the stages in order; each skips what is finished already. Returns the exit code."""
    if job.pretrain.dry_run:
        return pretrain.run(job.pretrain)  # what the other stages start from doesn't exist yet
    took: dict[str, float] = {}
    warm_up(job.pretrain.cluster)
    trained = (job.pretrain, job.sft, job.reward, job.rlhf)
    most = max((stage.run for stage in trained), key=lambda run: run.most)
    beside = actors_of(job.rlhf) if "rlhf" in job.stages else NO_ACTORS
    with (
        on_termination(partial(end_preempted, preempted())),
        connect(job.pretrain.cluster, most, beside),
    ):
        for stage in job.stages:
            began = time.monotonic()
            if terminated():  # while the stage before was exported, say
                print(preempted(), flush=True)
                return EXIT_PREEMPTED
            code = _STAGES[stage](job)
            if code or _was_stopped(getattr(job, stage, None)):
                return code
            took[stage] = time.monotonic() - began
    began = time.monotonic()
    if job.pretrain.data.source == "demo":
        _show(job)
    _ask(job)
    took["questions"] = time.monotonic() - began
    told = ", ".join(f"{stage} {seconds:.0f} s" for stage, seconds in took.items())
    print(f"\ntook     {told}; {sum(took.values()):.0f} s in all", flush=True)
    return 0


def _show(job: PipelineJob) -> None:
    """Print and draw what each stage of the demonstration changed."""
    from raymill.demo.show import show

    trained: dict[str, TrainJob] = {
        stage: getattr(job, stage) for stage in job.stages if stage not in ("prepare", "rank")
    }
    paths = {stage: _run_dir(found) / SUMMARY_NAME for stage, found in trained.items()}
    summaries = {stage: read_json(path) for stage, path in paths.items() if is_file(path)}
    data, seed = job.pretrain.data, job.pretrain.run.seed
    show(summaries, job.pretrain.storage.folder, data.validation.fraction, seed)


def _was_stopped(stage: object) -> bool:
    """Whether a stage ended before its end, at the user's request; the ones after it wait, too."""
    if not isinstance(stage, TrainJob):
        return False
    history = read_history(_run_dir(stage))
    return bool(history) and history[-1]["state"] == RunState.STOPPED


def _prepare(job: PipelineJob) -> int:
    prepare.run(job.pretrain.preparation())
    return 0


def _rank(job: PipelineJob) -> int:
    models = tuple(_made(job, model) for model in job.rank.model)
    return serve.run(replace(job.rank, model=models))


def _rlhf(job: PipelineJob) -> int:
    rlhf = _with_parent(job, job.rlhf)
    model = rlhf.reward.model
    if model is not None:
        rlhf = replace(rlhf, reward=replace(rlhf.reward, model=_made(job, model)))
    return tuning.run(rlhf)


_STAGES: dict[str, Callable[[PipelineJob], int]] = {
    "prepare": _prepare,
    "pretrain": lambda job: pretrain.run(job.pretrain),
    "sft": lambda job: tuning.run(_with_parent(job, job.sft)),
    "rank": _rank,
    "reward": lambda job: tuning.run(_with_parent(job, job.reward)),
    "rlhf": _rlhf,
}


def _with_parent(job: PipelineJob, stage: P) -> P:
    return replace(stage, parent=_made(job, stage.parent))


def _made(job: PipelineJob, reference: str) -> str:
    """What an alias means in this pipeline: the very version that its own stage registered, or the folder
    it exported where nothing is registered. Other references are the user's choice."""
    name = job.pretrain.tracking.registered_model
    model, _, alias = reference.partition("@")
    stage = _DEFAULT_PARENTS.get(alias)
    if model != f"models:/{name}" or stage is None:
        return reference
    trained: TrainJob = getattr(job, stage)
    summary = read_json(_run_dir(trained) / SUMMARY_NAME)
    if summary is None:
        return reference
    registered = summary["registered"]
    return str(registered.split()[0] if registered else summary["export"])


def _run_dir(trained: TrainJob) -> Path:
    return trained.storage.folder / "runs" / str(trained.run.name)


def _ask(job: PipelineJob) -> None:
    """Put the questions to the models that the stages made: to the last one, or to all assistants side by
    side where alignment has made one of them another."""
    trained: dict[str, TrainJob] = {
        stage: getattr(job, stage) for stage in job.stages if stage in ("pretrain", "sft", "rlhf")
    }
    assistants: list[str] = [stage for stage in ("sft", "rlhf") if stage in trained]
    shown = assistants or list(trained)
    if "rlhf" not in trained:
        shown = shown[-1:]
    for question in job.ask if shown else ():
        print(f"\nyou> {question}", flush=True)
        for stage in shown:
            if len(shown) > 1:
                print(f"@{trained[stage].tracking.alias}", flush=True)
            _answer(trained[stage], question)


def _answer(trained: TrainJob, question: str) -> None:
    from raymill.driver.generation import run as generate

    generate(
        GenerateJob(
            model=str(_run_dir(trained) / "export"),
            storage=trained.storage,
            tracking=trained.tracking,
            prompt=question,
            max_new_tokens=80,
            temperature=0.0,
        )
    )
