"""A run's history and samples, checked for gaps or traced to documents: `python jobs/audit.py --help`."""

import sys
from pathlib import Path

# The tree this script lies in wins over any installed copy; workers are given the same one.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))

from raymill.config.entry import main


def run(job):
    if job.trace.is_on:
        from raymill.report.trace import run
    else:
        from raymill.report.audit import run

    return run(job)


if __name__ == "__main__":
    sys.exit(main("audit", run))
