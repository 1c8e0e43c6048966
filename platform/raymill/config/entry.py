"""Entry of every script in jobs/: help, load, run, and an exit code instead of a stack trace."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable, Sequence
from typing import Any

from raymill.config.compose import load
from raymill.errors import ConfigError, RaymillError
from raymill.redaction import job_command, redacted
from raymill.schema.chat import ChatJob
from raymill.schema.jobs import AuditJob, PipelineJob
from raymill.schema.serving import ServeJob
from raymill.schema.storage import root_problems
from raymill.timeline import mark

EXIT_FAILED = 1
EXIT_REFUSED = 2
# The run was stopped from outside after a checkpoint; the same command continues it.
EXIT_PREEMPTED = 85
EXIT_INTERRUPTED = 130

# Errors of a disk or its permissions, which no bug of ours causes.
_STORAGE_ERRORS = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO,
    errno.ESTALE,
}  # fmt: skip


def _refuse_unusable_root(job: Any) -> None:
    """Raise ConfigError for a job that couldn't write below its storage root."""
    if isinstance(job, ChatJob | AuditJob):
        return
    # A service writes nothing but votes.
    if isinstance(job, ServeJob) and job.votes is None:
        return
    storage = job.pretrain.storage if isinstance(job, PipelineJob) else job.storage
    if problems := root_problems(storage):
        raise ConfigError(problems)


def main(job: str, run: Callable[[Any], int], arguments: Sequence[str] | None = None) -> int:
    """Run a job from the command line.

    Exit codes: 0 done, 1 failed with a message, 2 the configuration was refused, 85 preempted after a
    checkpoint, 130 interrupted. A bug in Raymill keeps its stack trace.
    """
    mark("interpreter")
    overrides = list(sys.argv[1:] if arguments is None else arguments)
    if any(argument in ("--help", "-h", "help") for argument in overrides):
        from raymill.config.help import help_text

        print(help_text(job, overrides))
        return 0
    try:
        loaded = load(job, overrides)
        _refuse_unusable_root(loaded)
        mark("configuration")
        return run(loaded)
    except ConfigError as error:
        print(
            f"{redacted(str(error))}\n({job_command(job, '--help')} shows the keys)",
            file=sys.stderr,
        )
        return EXIT_REFUSED
    except RaymillError as error:
        print(f"error: {redacted(str(error))}", file=sys.stderr)
        return EXIT_FAILED
    except OSError as error:
        if error.errno not in _STORAGE_ERRORS:
            raise
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {where}{error.strerror}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
