"""transformers and DeepSpeed without the bars and notices that they print to a user's terminal."""

from __future__ import annotations

import logging
import os


def quieten() -> None:
    """To be called before a model is loaded or saved in a process that has a terminal."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    # Adapters import DeepSpeed, which says on which device it would run.
    logging.getLogger("DeepSpeed").addFilter(lambda record: record.levelno >= logging.ERROR)
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
