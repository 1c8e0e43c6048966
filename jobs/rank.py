"""People rank answers on a page, or write them: `python jobs/rank.py --help`."""

import sys
from pathlib import Path

# The tree this script lies in wins over any installed copy; workers are given the same one.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))

from raymill.config.entry import main


def run(job):
    from raymill.annotate.command import run

    return run(job)


if __name__ == "__main__":
    sys.exit(main("rank", run))
