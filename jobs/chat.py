"""Converse with a model, or let it continue a prompt: `python jobs/chat.py --help`."""

import sys
from pathlib import Path

# The tree this script lies in wins over any installed copy; workers are given the same one.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))

from raymill.config.entry import main


def run(job):
    """Answer a prompt, or those that are typed; return the exit code."""
    # Imported late, so that --help and a refused configuration answer at once.
    from raymill.driver.chat import chat

    return chat(job)


if __name__ == "__main__":
    sys.exit(main("chat", run))
