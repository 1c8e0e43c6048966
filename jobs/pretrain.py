"""Prepared text → a registered base model: `python jobs/pretrain.py --help`."""

import sys
from pathlib import Path

# The tree this script lies in wins over any installed copy; workers are given the same one.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))

from raymill.config.entry import main


def run(job):
    """Pretrain; return the exit code."""
    # Imported late, so that --help and a refused configuration answer at once.
    from raymill.cluster.session import connect, warm_up
    from raymill.driver.resolution import resolve_pretraining
    from raymill.driver.run_session import (
        acquire_run,
        finish_again,
        finished_checkpoint,
        training_session,
    )
    from raymill.plan.report import pretraining_plan, print_plan

    if job.dry_run:
        print_plan(pretraining_plan(job))
        return 0
    warm_up(job.cluster)
    resolved = resolve_pretraining(job)
    with acquire_run(resolved) as (resolved, lease):
        checkpoint = finished_checkpoint(resolved)
        if checkpoint is not None:
            return finish_again(resolved, checkpoint)
        with connect(job.cluster, job.run), training_session(resolved, lease) as session:
            status = session.train()
            return session.finish(status)


if __name__ == "__main__":
    sys.exit(main("pretrain", run))
