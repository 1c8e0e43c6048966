"""Checks of `jobs/audit.py`: either a run, or a row of a folder."""

from __future__ import annotations

from raymill.config.ranges import at_least, safe_name
from raymill.schema.jobs import AuditJob


def audit_problems(job: AuditJob) -> list[str]:
    """Return the contradictions of an audit."""
    trace = job.trace
    if trace.data is not None:
        return (
            ["trace.row: name the row of trace.data to trace, counted from 0"]
            if trace.row is None
            else [*at_least("trace.row", trace.row, 0)]
        )
    if trace.row is not None:
        return ["trace.row: a row is one of a folder; name it by trace.data"]
    if job.run.name is None:
        return ["run.name: name the run to look at, as in run.name=demo"]
    if trace.sample is not None and trace.step is not None:
        return ["trace.sample and trace.step are both set: give one"]
    return [
        *safe_name("run.name", job.run.name),
        *(at_least("trace.sample", trace.sample, 0) if trace.sample is not None else []),
        *(at_least("trace.step", trace.step, 1) if trace.step is not None else []),
    ]
