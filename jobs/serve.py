"""Models are served by OpenAI's API, and on a page: `python jobs/serve.py --help`."""

import sys
from pathlib import Path

# The tree this script lies in wins over any installed copy; workers are given the same one.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))

from raymill.config.entry import main


def run(job):
    """Serve until a signal; return the exit code."""
    # Imported late, so that --help and a refused configuration answer at once.
    from raymill.driver.serving import serve

    return serve(job)


if __name__ == "__main__":
    sys.exit(main("serve", run))
