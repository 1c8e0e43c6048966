"""Text or conversations → tokenized shards: `python jobs/prepare.py --help`."""

import sys
from pathlib import Path

# The tree this script lies in wins over any installed copy; workers are given the same one.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))

from raymill.config.entry import main


def run(job):
    """Prepare data; return the exit code."""
    # Imported late, so that --help and a refused configuration answer at once.
    from raymill.driver.preparation import describe_preparation, prepare

    if job.dry_run:
        print(describe_preparation(job))
    else:
        prepare(job)
    return 0


if __name__ == "__main__":
    sys.exit(main("prepare", run))
