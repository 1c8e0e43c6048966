"""The stages of a model's life in one Ray session: `python jobs/pipeline.py --help`."""

import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# The tree this script lies in wins over any installed copy; workers are given the same one.
sys.path.insert(0, str(ROOT / "platform"))
# Each stage is the script of its own job.
sys.path.append(str(ROOT / "jobs"))

from raymill.config.entry import EXIT_PREEMPTED, main


def run(job):
    """Run the stages in order, each of which skips what is finished already; return the exit code."""
    import prepare
    import pretrain
    import rank
    import reward
    import rlhf
    import sft

    from raymill.cluster.session import warm_up
    from raymill.driver.interrupt import preemption_message, terminated
    from raymill.driver.pipeline import (
        ask_questions,
        pipeline_session,
        print_durations,
        show_demo,
        stage_job,
        was_stopped,
    )

    scripts = {
        "prepare": prepare,
        "pretrain": pretrain,
        "sft": sft,
        "rank": rank,
        "reward": reward,
        "rlhf": rlhf,
    }
    if job.pretrain.dry_run:
        # The parents of the other stages don't exist yet.
        return pretrain.run(job.pretrain)
    # Importing and starting Ray takes seconds, more on the first run after an installation.
    print(f"Starting Ray for the stages {' → '.join(job.stages)}", flush=True)
    warm_up(job.pretrain.cluster)
    seconds = {}
    with pipeline_session(job):
        for stage in job.stages:
            began = time.monotonic()
            # SIGTERM may have come while the stage before finished its export.
            if terminated():
                print(preemption_message(), flush=True)
                return EXIT_PREEMPTED
            current = stage_job(job, stage)
            code = scripts[stage].run(current)
            if code or was_stopped(current):
                return code
            seconds[stage] = time.monotonic() - began
    began = time.monotonic()
    show_demo(job)
    ask_questions(job)
    seconds["questions"] = time.monotonic() - began
    print_durations(seconds)
    return 0


if __name__ == "__main__":
    sys.exit(main("pipeline", run))
