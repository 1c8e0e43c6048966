"""The pipeline around its stages: the Ray session that they share, their models, and the questions at the end.

The loop over the stages is in `jobs/pipeline.py`, which runs each one as its own job's script does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from raymill.cluster.session import NO_ACTORS, connect
from raymill.driver.failure import RunState
from raymill.driver.finish import SUMMARY_NAME
from raymill.driver.interrupt import end_preempted, on_termination, preemption_message
from raymill.driver.reward_resolution import actor_resources
from raymill.reading import is_file, read_json
from raymill.schema.chat import ChatJob
from raymill.schema.jobs import ParentJob, PipelineJob, PrepareJob, RankJob, TrainJob
from raymill.track.state_log import read_history

P = TypeVar("P", bound=ParentJob)
StageJob = PrepareJob | TrainJob | RankJob

# Aliases by which a stage's parent is given by default, and the stages that register them.
_DEFAULT_PARENTS = {"pretrained": "pretrain", "sft": "sft", "reward": "reward"}


@contextmanager
def pipeline_session(job: PipelineJob) -> Iterator[None]:
    """Connect to a Ray that is large enough for every stage; the stages use it instead of their own."""
    # A local Ray can't grow, so it is started for the stage that takes most.
    trained = (job.pretrain, job.sft, job.reward, job.rlhf)
    largest = max((stage.run for stage in trained), key=lambda run: run.most)
    actors = actor_resources(job.rlhf) if "rlhf" in job.stages else NO_ACTORS
    with (
        on_termination(partial(end_preempted, preemption_message())),
        connect(job.pretrain.cluster, largest, actors),
    ):
        yield


def stage_job(job: PipelineJob, stage: str) -> StageJob:
    """Return a stage's job, with the models that this pipeline's earlier stages made as its parents."""
    if stage == "prepare":
        return job.pretrain.preparation()
    if stage == "rank":
        return replace(job.rank, model=tuple(_own_model(job, model) for model in job.rank.model))
    if stage == "rlhf":
        rlhf, model = _with_parent(job, job.rlhf), job.rlhf.reward.model
        if model is None:
            return rlhf
        return replace(rlhf, reward=replace(rlhf.reward, model=_own_model(job, model)))
    tuned = {"sft": job.sft, "reward": job.reward}
    return _with_parent(job, tuned[stage]) if stage in tuned else job.pretrain


def _with_parent(job: PipelineJob, stage: P) -> P:
    return replace(stage, parent=_own_model(job, stage.parent))


def _own_model(job: PipelineJob, reference: str) -> str:
    """Return the version that this pipeline's own stage registered under an alias.

    The alias may have moved to another pipeline's version since. Where nothing is registered, return the
    exported folder. Other references are the user's choice and stay as they are.
    """
    name = job.pretrain.tracking.registered_model
    model, _, alias = reference.partition("@")
    stage = _DEFAULT_PARENTS.get(alias)
    if model != f"models:/{name}" or stage is None:
        return reference
    summary = read_json(_run_dir(_trained(job, [stage])[stage]) / SUMMARY_NAME)
    if summary is None:
        return reference
    registered = summary["registered"]
    return str(registered.split()[0] if registered else summary["export"])


def was_stopped(stage: StageJob) -> bool:
    """Tell whether a stage was stopped by the user, so that the following ones must not start."""
    if not isinstance(stage, TrainJob):
        return False
    history = read_history(_run_dir(stage))
    return bool(history) and history[-1]["state"] == RunState.STOPPED


def _trained(job: PipelineJob, stages: list[str]) -> dict[str, TrainJob]:
    """Return the jobs that train, by stage."""
    jobs: dict[str, TrainJob] = {
        "pretrain": job.pretrain,
        "sft": job.sft,
        "reward": job.reward,
        "rlhf": job.rlhf,
    }
    return {stage: jobs[stage] for stage in stages if stage in jobs}


def _run_dir(trained: TrainJob) -> Path:
    return trained.storage.folder / "runs" / str(trained.run.name)


def show_demo(job: PipelineJob) -> None:
    """Print and draw the change that each stage of the demonstration made; nothing with other data."""
    from raymill.demo.show import show

    data, seed = job.pretrain.data, job.pretrain.run.seed
    if data.source != "demo":
        return
    trained = _trained(job, list(job.stages))
    paths = {stage: _run_dir(found) / SUMMARY_NAME for stage, found in trained.items()}
    summaries = {stage: read_json(path) for stage, path in paths.items() if is_file(path)}
    show(summaries, job.pretrain.storage.folder, data.validation.fraction, seed)


def ask_questions(job: PipelineJob) -> None:
    """Put the pipeline's questions to the last model; to both assistants where alignment made a second one."""
    from raymill.driver.chat import chat

    trained = _trained(job, [stage for stage in job.stages if stage != "reward"])
    assistants: list[str] = [stage for stage in ("sft", "rlhf") if stage in trained]
    asked = assistants or list(trained)
    if "rlhf" not in trained:
        asked = asked[-1:]
    for question in job.ask if asked else ():
        print(f"\nyou> {question}", flush=True)
        for stage in asked:
            if len(asked) > 1:
                print(f"@{trained[stage].tracking.alias}", flush=True)
            chat(
                ChatJob(
                    model=str(_run_dir(trained[stage]) / "export"),
                    url=None,
                    api_key=None,
                    storage=trained[stage].storage,
                    tracking=trained[stage].tracking,
                    prompt=question,
                    prompt_file=None,
                    chat=None,
                    system=None,
                    max_new_tokens=80,
                    # Greedy, so that two assistants differ by training and not by chance.
                    temperature=0.0,
                    # Greedy decoding draws nothing.
                    top_p=1.0,
                    seed=0,
                )
            )


def print_durations(seconds: Mapping[str, float]) -> None:
    """Print the time that each stage took."""
    stages = ", ".join(f"{stage} {value:.0f} s" for stage, value in seconds.items())
    print(f"\ntook     {stages}; {sum(seconds.values()):.0f} s in all", flush=True)
