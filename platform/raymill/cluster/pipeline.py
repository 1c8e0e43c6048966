"""`jobs/pipeline.py`: each stage exactly as its own job would run it, in one Ray session."""

from __future__ import annotations

from raymill.cluster import pretrain
from raymill.cluster.session import connect
from raymill.config.schema import PipelineJob
from raymill.data import prepare


def run(job: PipelineJob) -> int:
    """Run the stages in order; each skips what is finished already. Returns the exit code."""
    if job.dry_run:
        return pretrain.run(job)
    with connect(job.cluster, job.run.workers):
        for stage in job.stages:
            if stage == "prepare":
                prepare.run(job.preparation())
            else:
                code = pretrain.run(job)
                if code:
                    return code
    return 0
