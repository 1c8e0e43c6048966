"""Compared answers and a parent model → a registered, aligned assistant: `python jobs/dpo.py --help`."""

import sys
from pathlib import Path

# The tree this script lies in wins over any installed copy; workers are given the same one.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))

from raymill.config.entry import main


def run(job):
    """Tune on compared answers; return the exit code."""
    # Imported late, so that --help and a refused configuration answer at once.
    from raymill.cluster.session import connect, warm_up
    from raymill.driver.run_session import (
        acquire_run,
        finish_again,
        finished_checkpoint,
        training_session,
    )
    from raymill.driver.tuning_resolution import (
        prepared_data,
        print_tuning_plan,
        resolve_parent,
        resolve_tuning,
    )

    if not job.dry_run:
        # The workers' imports take seconds, so they start while the inputs are resolved.
        warm_up(job.cluster)
    parent = resolve_parent(job)
    if job.dry_run:
        print_tuning_plan(job, parent)
        return 0
    folders = prepared_data(job, parent)
    resolved = resolve_tuning(job, parent, folders)
    with acquire_run(resolved) as (resolved, lease):
        checkpoint = finished_checkpoint(resolved)
        if checkpoint is not None:
            return finish_again(resolved, checkpoint)
        with connect(job.cluster, job.run), training_session(resolved, lease) as session:
            status = session.train()
            return session.finish(status)


if __name__ == "__main__":
    sys.exit(main("dpo", run))
