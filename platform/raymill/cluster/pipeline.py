"""`jobs/pipeline.py`: each stage exactly as its own job would run it, in one Ray session."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from raymill.cluster import pretrain, sft
from raymill.cluster.finish import SUMMARY_NAME
from raymill.cluster.session import connect
from raymill.config.schema import GenerateJob, PipelineJob, PretrainJob, SftJob
from raymill.data import prepare

DEFAULT_PARENT = "models:/assistant@pretrained"


def run(job: PipelineJob) -> int:
    """Run the stages in order; each skips what is finished already. Returns the exit code."""
    if job.pretrain.dry_run:
        return pretrain.run(job.pretrain)  # what fine-tuning starts from doesn't exist yet
    with connect(job.pretrain.cluster, max(job.pretrain.run.workers, job.sft.run.workers)):
        for stage in job.stages:
            if stage == "prepare":
                prepare.run(job.pretrain.preparation())
                continue
            if stage == "pretrain":
                code = pretrain.run(job.pretrain)
            else:
                code = sft.run(fine_tuning_of(job.sft, job.pretrain))
            if code:
                return code
    _ask(job)
    return 0


def _ask(job: PipelineJob) -> None:
    """Put the questions to the model that the last stage made."""
    from raymill.generate.command import run as generate

    by_stage = {"pretrain": job.pretrain, "sft": job.sft}
    trained = [by_stage[stage] for stage in job.stages if stage in by_stage]
    for stage in trained[-1:] if job.ask else ():
        model = Path(stage.storage.root) / "runs" / str(stage.run.name) / "export"
        for question in job.ask:
            print(f"\nyou> {question}", flush=True)
            generate(
                GenerateJob(
                    model=str(model),
                    storage=stage.storage,
                    tracking=stage.tracking,
                    prompt=question,
                    max_new_tokens=80,
                    temperature=0.0,
                )
            )


def fine_tuning_of(job: SftJob, pretraining: PretrainJob) -> SftJob:
    """The fine-tuning stage with what this pipeline's pretraining made as its parent: the very version
    that it registered, or the folder it exported where nothing is registered."""
    if job.parent != DEFAULT_PARENT:  # chosen by the user
        return job
    path = Path(job.storage.root) / "runs" / str(pretraining.run.name) / SUMMARY_NAME
    if not path.exists():
        return job
    summary = json.loads(path.read_text(encoding="utf-8"))
    registered = summary["registered"]
    return replace(job, parent=registered.split()[0] if registered else summary["export"])
